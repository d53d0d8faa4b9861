"""What users of systems like this have been hurt by: a test for each of the eleven lessons."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arena_layout import StillPeer
from conversing_nodes import Line, contents, conversing_nodes
from programmable_engine import Course, Network

from llmdd import (
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from llmdd._core.page_pool import PagePool
from llmdd._core.store import CacheStore
from llmdd.link import messages
from llmdd.link.handshake import new_identity
from llmdd.link.transfer_messages import Abandon, Answer, Finish, Written

#: Longer than the tests wait: what ends before was told to.
LONG_MS = 200_000
#: Too much for the messages: an engine writes it.
LARGE_BYTES = 1 << 20
SMALL = CacheDesc(1, (1, 64), DataType.DT_UINT8)
#: All of the pool of an instance.
WHOLE = CacheDesc(1, (1, 1 << 20), DataType.DT_UINT8)
#: Of keys that nobody comes for. One that is kept is renewed three times in it.
LEASE_MS = 600

OUT_OF_MEMORY = LLMStatusCode.LLM_OUT_OF_MEMORY
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK


def code_of(call: Callable[..., object], *arguments: Any) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        call(*arguments)
    return refused.value.status_code


def options(listen: str, **settings: Any) -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.mem_pool_cfg = '{"memory_size": 1048576, "page_shift": 12}'
    config.listen_ip_info = listen
    for name, value in settings.items():
        setattr(config, name, value)
    return config.generate_options()


def cluster(cluster_id: int, address: tuple[str, int]) -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*address)
    return info


@pytest.fixture
def network() -> Network:
    return Network(target_proceeds=True)


@pytest.fixture
def line(network: Network, eventually: Any) -> Iterator[Line]:
    """The line on which node 1 asks node 2, which is on another host."""
    with conversing_nodes(eventually) as make:
        yield Line(make(1, network, timeout_ms=LONG_MS), make(2, network, timeout_ms=LONG_MS))


def test_01_a_decoder_that_never_comes_holds_nothing_beyond_its_lease(make_datadist: Any, eventually: Any) -> None:
    manager = make_datadist(1).cache_manager
    manager.deallocate_cache(manager.allocate_cache(WHOLE, [CacheKey(1, 7)], lease=LEASE_MS))
    assert code_of(manager.allocate_cache, WHOLE) is OUT_OF_MEMORY, "the key holds it for the decoder"
    eventually(lambda: manager.live_caches == 0, "its lease is over")
    assert manager.lookup(CacheKey(1, 7)) is None
    manager.deallocate_cache(manager.allocate_cache(WHOLE))


def test_02_a_renewal_lengthens_a_lease_and_never_shortens_it(make_datadist: Any, eventually: Any) -> None:
    manager = make_datadist(1).cache_manager
    keys = [CacheKey(1, number) for number in range(3)]
    cache = manager.allocate_cache(CacheDesc(1, (3, 64), DataType.DT_UINT8), keys, lease=LEASE_MS)
    manager.renew_leases(keys[:1], LONG_MS)
    manager.renew_leases(keys[:1], 1)
    manager.keep_leases(keys[1:2], LEASE_MS)
    eventually(lambda: manager.lookup(keys[2]) is None, "nobody renews this one")
    assert manager.lookup(keys[0]) is not None, "it is renewed for longer, whatever a later renewal says"
    assert manager.lookup(keys[1]) is not None, "a heartbeat keeps it"
    manager.let_leases_lapse(keys[1:2])
    eventually(lambda: manager.lookup(keys[1]) is None, "the heartbeat has ended")
    manager.deallocate_cache(cache)


def test_03_leases_end_though_no_work_arrives_and_wherever_they_stand(make_datadist: Any, eventually: Any) -> None:
    """On a full pool, with nobody calling, and with others among them that live on."""
    manager = make_datadist(1, device_bytes=64 << 10).cache_manager
    page = CacheDesc(1, (1, 4096), DataType.DT_UINT8)
    keys = [CacheKey(1, number) for number in range(16)]
    for key in keys:
        lease = LONG_MS if key.req_id % 3 == 0 else LEASE_MS
        manager.deallocate_cache(manager.allocate_cache(page, [key], lease=lease))
    # To look a key up sweeps nothing.
    eventually(lambda: sum(manager.lookup(key) is not None for key in keys) == 6, "all leases that are over have ended")
    assert manager.pool_usage().free_bytes == 10 * 4096


def test_04_a_release_too_many_raises_and_changes_nothing() -> None:
    store = CacheStore(cluster_id=1, device_pool=(1 << 20, 12))
    bit = store.admit_peer()
    store.dismiss_peer(bit)
    with pytest.raises(ValueError, match="was given to nobody"):
        store.dismiss_peer(bit)
    assert store.admitted_peers == 0
    assert store.admit_peer() == bit
    store.check()
    store.close()
    pool = PagePool(8)
    first = pool.take(4)
    pool.give_back(first, 4)
    with pytest.raises(ValueError):
        pool.give_back(first, 4)
    assert pool.take(8) == first, "no page is there twice"


def test_05_memory_that_is_still_written_to_is_not_given_to_another(eventually: Any) -> None:
    store = CacheStore(cluster_id=1, device_pool=(1 << 16, 12))
    whole = CacheDesc(1, (1, 1 << 16), DataType.DT_UINT8)
    cache = store.allocate_cache(whole, [CacheKey(1, 7)])
    writer = StillPeer(store, store.admit_peer())
    writer.pin(0, writing=True)
    store.remove_cache_key(CacheKey(1, 7))
    store.deallocate_cache(cache)
    assert code_of(store.allocate_cache, whole) is OUT_OF_MEMORY, "the request has let go, the transfer has not"
    writer.unpin(0, writing=True)
    store.reap()
    store.deallocate_cache(store.allocate_cache(whole))
    writer.close()
    store.close()


@pytest.mark.parametrize("failing", ["the owner's engine", "the asker"])
def test_06_a_transfer_that_fails_at_one_end_has_a_last_word_for_the_other(
    line: Line, network: Network, eventually: Any, failing: str
) -> None:
    """Nobody waits out his time for it."""

    def give_up_when_bytes_are_there(answer: Answer) -> list[Answer]:
        if isinstance(answer, Written):
            line.peer.break_off()
            return []
        return [answer]

    line.owner.store.deallocate_cache(line.owner.cache(LARGE_BYTES, 7, seed=1))
    target = line.asker.cache(LARGE_BYTES)
    if failing == "the owner's engine":
        network.usual = Course(fails=0)
    else:
        line.alter_answer = give_up_when_bytes_are_there
    told = LLMStatusCode.LLM_FAILED if failing == "the owner's engine" else NOT_LINKED
    assert code_of(line.asker.store.pull_cache, CacheKey(2, 7), target) is told
    eventually(line.owner.is_served_by_nobody, "the owner has been told")
    line.owner.store.remove_cache_key(CacheKey(2, 7))
    assert line.owner.used_bytes == 0, "it holds nothing for the transfer"


def test_06_late_and_repeated_words_change_nothing(line: Line) -> None:
    repeated = (Finish, Abandon)
    line.alter_request = lambda request: [request] * (3 if isinstance(request, repeated) else 1)
    for number in range(3):
        source = line.owner.cache(LARGE_BYTES, number, seed=1 + number)
        target = line.asker.cache(LARGE_BYTES)
        line.asker.store.pull_cache(CacheKey(2, number), target)
        line.say_to_owner(Finish(line.conversation._last_number, [True]), Abandon(line.conversation._last_number))
        assert contents(target) == contents(source)
        assert line.owner.store.live_keys == 0
    assert not line.dropped.is_set()


def test_07_a_deadline_begins_with_the_transfer_and_not_with_the_request(eventually: Any) -> None:
    """The request waits for longer than a transfer may take, twice; then each call has all of its time."""
    patience_ms = 300
    prompt, decoder = LLMDataDist(LLMRole.PROMPT, 1), LLMDataDist(LLMRole.DECODER, 2)
    with prompt, decoder:
        for instance in (prompt, decoder):
            instance.init(options("127.0.0.1:0", sync_kv_timeout=patience_ms, wait_for_memory=True))
        assert prompt.listen_address is not None
        decoder.link_clusters([cluster(1, prompt.listen_address)])
        queued = time.monotonic()
        prompt.cache_manager.allocate_cache(SMALL, [CacheKey(1, 7)])
        target = decoder.cache_manager.allocate_cache(SMALL)
        eventually(lambda: time.monotonic() > queued + 2 * patience_ms / 1000, "it was queued for long")
        decoder.cache_manager.pull_cache(CacheKey(1, 7), target)
        manager = decoder.cache_manager
        began = time.monotonic()
        assert code_of(manager.allocate_cache, WHOLE) is LLMStatusCode.LLM_TIMEOUT
        assert time.monotonic() >= began + patience_ms / 1000, "it has waited for all of its time"


def test_08_what_a_former_life_says_concerns_its_own_links_alone(make_datadist: Any, link: Any) -> None:
    owner, peer = make_datadist(1), make_datadist(2)
    link(peer, owner)
    former = new_identity(2, remote_accessible=False)
    with socket.create_connection(owner.listen_address, timeout=20) as late:
        late.sendall(messages.frame(messages.UnlinkRequest(former, 1)))
        header = late.recv(messages.HEADER.size, socket.MSG_WAITALL)
        answer = messages.decode(late.recv(messages.payload_length(header), socket.MSG_WAITALL))
    assert answer == messages.Unlinked(), "it has no link here"
    owner.cache_manager.allocate_cache(SMALL, [CacheKey(1, 7)])
    peer.cache_manager.pull_cache(CacheKey(1, 7), peer.cache_manager.allocate_cache(SMALL))
    assert owner.transports == {2: "shared memory"}


@pytest.mark.parametrize("ip", ["127.0.0.1", "[::1]"])
def test_09_an_address_in_use_is_an_error_and_port_0_finds_a_free_one(ip: str) -> None:
    with LLMDataDist(LLMRole.PROMPT, 1) as first, LLMDataDist(LLMRole.DECODER, 2) as second:
        first.init(options(f"{ip}:0"))
        assert first.listen_address is not None and first.listen_address[1] > 0
        taken = options(f"{ip}:{first.listen_address[1]}")
        with pytest.raises(LLMException, match=r"LLM_FAILED.*cannot listen at .*[Aa]ddress already in use"):
            second.init(taken)
        second.init(options(f"{ip}:0"))
        assert second.link_clusters([cluster(1, first.listen_address)])[0] is LLMStatusCode.LLM_SUCCESS


def test_10_failures_are_counted_apart(make_datadist: Any, link: Any, eventually: Any) -> None:
    owner, peer = make_datadist(1), make_datadist(2)
    link(peer, owner)
    manager = peer.cache_manager
    target = manager.allocate_cache(SMALL)
    assert peer.counters.failed_transfers == {}
    assert code_of(manager.pull_cache, CacheKey(1, 7), target) is NOT_EXIST
    two = manager.allocate_cache(CacheDesc(1, (2, 64), DataType.DT_UINT8))
    manager.pull_many([CacheKey(1, 8), CacheKey(1, 9)], two, [0, 1])
    assert code_of(manager.pull_cache, CacheKey(3, 7), target) is NOT_LINKED
    assert code_of(manager.pull_cache, CacheKeyByIdAndIndex(1, 5), target) is NOT_EXIST
    assert peer.counters.failed_transfers == {NOT_EXIST: 4, NOT_LINKED: 1}
    assert owner.counters.failed_transfers == {}, "who has the cache has asked for nothing"
    info = cluster(1, owner.listen_address)
    assert peer.unlink_clusters([info], force=True)[0] is LLMStatusCode.LLM_SUCCESS
    eventually(lambda: owner.counters.links_lost == 1, "its other end has been dropped by force")
    assert peer.counters.links_lost == 0


def test_10_what_has_expired_is_counted_apart_from_what_has_failed(
    make_datadist: Any, link: Any, eventually: Any
) -> None:
    owner, peer = make_datadist(1), make_datadist(2)
    link(peer, owner)
    owner.cache_manager.allocate_cache(SMALL, [CacheKey(1, 7)], lease=LEASE_MS)
    eventually(lambda: owner.counters.keys_expired == 1, "nobody came for it")
    target = peer.cache_manager.allocate_cache(SMALL)
    assert code_of(peer.cache_manager.pull_cache, CacheKey(1, 7), target) is NOT_EXIST
    assert (peer.counters.failed_transfers, peer.counters.keys_expired) == ({NOT_EXIST: 1}, 0)
    assert (owner.counters.failed_transfers, owner.counters.keys_expired) == ({}, 1)


def test_11_installing_llmdd_brings_no_library_of_an_accelerator() -> None:
    """Nor does anything that comes with it."""
    seen: set[str] = set()
    waiting = ["llmdd"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            needed = importlib.metadata.requires(name) or []
            waiting += [re.match(r"[\w.-]+", each)[0].lower() for each in needed if "extra ==" not in each]
    assert {"numpy", "msgspec", "ml_dtypes"} <= seen
    accelerators = re.compile(r"torch|nvidia|cuda|cu1\d|cupy|rocm|hip|nixl|triton|ascend|npu")
    assert [name for name in seen if accelerators.search(name)] == []
