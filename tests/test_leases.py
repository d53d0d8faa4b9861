"""Leases of keys: who holds a key without a lease holds it for ever, and nobody else does."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import expecting_process
import numpy as np
import pytest
from programmable_engine import Network

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from llmdd._core.leases import advance_lease_clock
from llmdd.transport.engines import ENGINES

OK = int(LLMStatusCode.LLM_SUCCESS)
MISSING = int(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
NOT_LINKED = int(LLMStatusCode.LLM_NOT_YET_LINK)

#: Longer than any test takes: it ends when the clock is put forward, and not before.
LONG_MS = 1_000_000

DESC = CacheDesc(2, (4, 64), DataType.DT_UINT8)
K1, K2, K3 = (CacheKey(1, number) for number in (1, 2, 3))
PREFIX = CacheKey(1, 2**64 - 1, 0, 1)
PLACEHOLDER = CacheKey(1, 2**64 - 1)


def options(**others: str) -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    config.mem_pool_cfg = '{"memory_size": 67108864, "page_shift": 10}'
    return {**config.generate_options(), **others}


def initialised(cluster_id: int, **others: str) -> LLMDataDist:
    datadist = LLMDataDist(LLMRole.MIX, cluster_id)
    datadist.init(options(**others))
    return datadist


@pytest.fixture
def owner(request: pytest.FixtureRequest) -> LLMDataDist:
    datadist = initialised(1)
    request.addfinalizer(datadist.finalize)
    return datadist


@pytest.fixture
def manager(owner: LLMDataDist) -> CacheManager:
    return owner.cache_manager


@pytest.fixture(params=["on the host", "on another host"])
def peers(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    link: Callable[[LLMDataDist, LLMDataDist], None],
) -> tuple[LLMDataDist, LLMDataDist]:
    """An owner, cluster 1, and a peer, cluster 2, that reaches its memory itself, or by messages."""
    others = {}
    if request.param == "on another host":
        monkeypatch.setitem(ENGINES, "nixl", Network().open)
        others = {"llm.TransferBackend": "nixl"}
    made = [initialised(number, **others) for number in (1, 2)]
    for datadist in made:
        request.addfinalizer(datadist.finalize)
    link(made[1], made[0])
    return made[0], made[1]


def bound(manager: CacheManager) -> list[int]:
    """The request keys that are bound, of those in the tests."""
    manager.expire_leases()
    return [key.req_id for key in (K1, K2, K3) if manager.lookup(key) is not None]


def is_empty(manager: CacheManager) -> bool:
    usage = manager.pool_usage()
    return manager.live_caches == 0 and usage.free_bytes == usage.total_bytes


# -- the end of a lease ------------------------------------------------------------------------------------------------


def test_a_key_is_bound_until_its_lease_is_over(manager: CacheManager) -> None:
    manager.deallocate_cache(manager.allocate_cache(DESC, [K1, K2], lease=LONG_MS))
    advance_lease_clock(LONG_MS - 100_000)
    assert bound(manager) == [1, 2]
    advance_lease_clock(100_000)
    assert bound(manager) == []
    assert is_empty(manager)
    manager.check()


def test_nothing_else_need_happen(manager: CacheManager, eventually: Callable[..., None]) -> None:
    """The memory goes back though nobody calls anything that could notice that the lease is over."""
    manager.deallocate_cache(manager.allocate_cache(DESC, [K1], lease=30))
    eventually(lambda: manager.lookup(K1) is None, "the lease is over")  # looking up settles nothing
    eventually(lambda: is_empty(manager), "the memory has gone back")


def test_the_id_keeps_the_cache_when_its_leases_are_over(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [K1], lease=LONG_MS)
    advance_lease_clock(LONG_MS)
    assert bound(manager) == []
    assert manager.live_caches == 1
    assert cache.tensors[0].shape == (4, 64)
    manager.deallocate_cache(cache)
    assert is_empty(manager)


def test_without_a_lease_a_key_stays(manager: CacheManager) -> None:
    manager.allocate_cache(DESC, [K1])
    manager.allocate_cache(DESC, [K2], lease=0)
    advance_lease_clock(2**31)
    assert bound(manager) == [1, 2]


def test_the_default_is_that_of_the_options(request: pytest.FixtureRequest) -> None:
    datadist = initialised(1, **{"llmdd.CacheKeyLease": str(LONG_MS)})
    request.addfinalizer(datadist.finalize)
    manager = datadist.cache_manager
    manager.allocate_cache(DESC, [K1])
    manager.allocate_cache(DESC, [K2], lease=0)
    manager.allocate_cache(DESC, [K3], lease=3 * LONG_MS)
    advance_lease_clock(LONG_MS)
    assert bound(manager) == [2, 3]
    assert manager.renew_leases([K2, K3]).tolist() == [OK, OK]


def test_prefix_keys_have_leases_too_and_placeholders_hold_nothing(manager: CacheManager) -> None:
    manager.deallocate_cache(manager.allocate_cache(DESC, [PLACEHOLDER, PREFIX], lease=LONG_MS))
    advance_lease_clock(LONG_MS)
    manager.expire_leases()
    assert manager.lookup(PREFIX) is None
    assert is_empty(manager)


def test_a_key_bound_anew_has_the_lease_it_was_given_then(manager: CacheManager) -> None:
    for lease in (LONG_MS, 2 * LONG_MS):
        manager.deallocate_cache(manager.allocate_cache(DESC, [K1], lease=lease))
        manager.remove_cache_key(K1)
    manager.allocate_cache(DESC, [K1], lease=0)
    advance_lease_clock(3 * LONG_MS)
    assert bound(manager) == [1]


@pytest.mark.parametrize("keys", [1, 6, 33, 100])
@pytest.mark.parametrize("tensors", [1, 33, 200])
def test_each_batch_slot_has_a_lease_of_its_own(manager: CacheManager, keys: int, tensors: int) -> None:
    """Wherever the words stand: inside of the slot, or outside."""
    named = [CacheKey(1, number) for number in range(keys)]
    manager.deallocate_cache(
        manager.allocate_cache(CacheDesc(tensors, (keys, 16), DataType.DT_UINT8), named, lease=LONG_MS)
    )
    kept = named[::3]
    assert manager.renew_leases(kept, 2 * LONG_MS).tolist() == [OK] * len(kept)
    advance_lease_clock(LONG_MS)
    manager.expire_leases()
    assert [key.req_id for key in named if manager.lookup(key)] == [key.req_id for key in kept]
    manager.check()
    advance_lease_clock(LONG_MS)
    manager.expire_leases()
    assert is_empty(manager)
    manager.check()


def test_a_key_that_stands_twice_is_one(manager: CacheManager) -> None:
    manager.deallocate_cache(manager.allocate_cache(DESC, [K1, K2, K1], lease=LONG_MS))
    before = manager.key_counts
    advance_lease_clock(LONG_MS)
    assert bound(manager) == []
    assert manager.key_counts.expired - before.expired == 2


def test_how_keys_went_is_counted_apart_and_told(manager: CacheManager, caplog: pytest.LogCaptureFixture) -> None:
    manager.deallocate_cache(manager.allocate_cache(DESC, [K1, K2, K3], lease=LONG_MS))
    manager.remove_cache_key(K1)
    with caplog.at_level(logging.WARNING, "llmdd"):
        advance_lease_clock(LONG_MS)
        assert bound(manager) == []
    assert manager.key_counts == (0, 1, 2, 0)
    told = [record.getMessage() for record in caplog.records if "leases" in record.getMessage()]
    assert len(told) == 1
    assert "cluster 1" in told[0]
    assert "2 cache keys" in told[0]
    assert "request 2, request 3" in told[0]


# -- renewing ----------------------------------------------------------------------------------------------------------


def test_a_renewal_puts_the_end_off(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.allocate_cache(DESC, [K1, K2, K3], lease=LONG_MS)
    advance_lease_clock(LONG_MS // 2)
    assert peer.renew_leases([K1, CacheKey(1, 404)], LONG_MS).tolist() == [OK, MISSING]
    assert owner.renew_leases([K2], LONG_MS).tolist() == [OK]
    advance_lease_clock(LONG_MS // 2)
    assert bound(owner) == [1, 2]
    advance_lease_clock(LONG_MS // 2)
    assert bound(owner) == []


def test_a_renewal_never_shortens(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.allocate_cache(DESC, [K1, K2], lease=LONG_MS)
    assert peer.renew_leases([K1], 1).tolist() == [OK]
    assert owner.renew_leases([K2], 1).tolist() == [OK]
    advance_lease_clock(LONG_MS - 100_000)
    assert bound(owner) == [1, 2]


def test_no_renewal_gives_a_lease_to_a_key_without_one(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.allocate_cache(DESC, [K1])
    assert peer.renew_leases([K1], 1).tolist() == [OK]
    advance_lease_clock(LONG_MS)
    assert bound(owner) == [1]


def test_what_is_over_is_not_renewed(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.allocate_cache(DESC, [K1], lease=LONG_MS)
    advance_lease_clock(LONG_MS)
    assert bound(owner) == []
    assert peer.renew_leases([K1], LONG_MS).tolist() == [MISSING]
    assert owner.renew_leases([K1], LONG_MS).tolist() == [MISSING]
    assert bound(owner) == []


def test_a_slot_is_named_by_its_cache_too(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    cache = owner.allocate_cache(DESC, [K1, PLACEHOLDER, K3], lease=LONG_MS)
    slots = [CacheKeyByIdAndIndex(1, cache.cache_id, index) for index in range(5)]
    expected = [OK, MISSING, OK, MISSING, MISSING]  # the placeholder, a slot without a key, and one that is none
    assert peer.renew_leases(slots, 2 * LONG_MS).tolist() == expected
    assert owner.renew_leases(slots, 2 * LONG_MS).tolist() == expected
    assert peer.renew_leases([CacheKeyByIdAndIndex(1, 0, 0)], 1).tolist() == [MISSING]
    advance_lease_clock(LONG_MS)
    assert bound(owner) == [1, 3]


def test_many_are_renewed_in_one_call(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    count = 1000
    keys = [CacheKey(1, number) for number in range(count)]
    owner.allocate_cache(CacheDesc(1, (count, 16), DataType.DT_UINT8), keys, lease=LONG_MS)
    wanted = np.arange(0, 2 * count, 2)
    codes = peer.renew_leases(wanted, 2 * LONG_MS, cluster_id=1)
    assert codes.tolist() == [OK if number < count else MISSING for number in wanted]
    advance_lease_clock(LONG_MS)
    owner.expire_leases()
    assert owner.live_keys == count // 2


def test_a_cluster_that_is_not_linked_has_a_result_too(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.allocate_cache(DESC, [K1], lease=LONG_MS)
    assert peer.renew_leases([CacheKey(9, 1), K1, CacheKey(2, 1)], 1).tolist() == [NOT_LINKED, OK, MISSING]
    peers[0].finalize()
    assert peer.renew_leases([K1], 1).tolist() == [NOT_LINKED]


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ((None, 1), {}, AttributeError),
        (([K1], "1"), {}, TypeError),
        (([K1], -1), {}, ValueError),
        (([K1], 2**31), {}, ValueError),
        (([K1, 7], 1), {}, TypeError),
        (([7], 1), {}, AttributeError),
        (([7], 1), {"cluster_id": -1}, ValueError),
        (([K1], 1), {"cluster_id": 1}, LLMException),
        (([K1],), {}, LLMException),
        (([K1], 0), {}, LLMException),
    ],
)
def test_what_cannot_be_renewed_is_refused(
    manager: CacheManager, arguments: tuple[Any, ...], keywords: dict[str, Any], error: type[Exception]
) -> None:
    manager.allocate_cache(DESC, [K1], lease=LONG_MS)
    with pytest.raises(error):
        manager.renew_leases(*arguments, **keywords)
    advance_lease_clock(LONG_MS)
    assert bound(manager) == []


@pytest.mark.parametrize(
    ("lease", "error"), [("5", TypeError), (1.5, TypeError), (-1, ValueError), (2**31, ValueError)]
)
def test_a_lease_that_cannot_be_is_refused_and_nothing_allocated(
    manager: CacheManager, lease: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="lease"):
        manager.allocate_cache(DESC, [K1], lease=lease)
    assert is_empty(manager)


@pytest.mark.parametrize("value", ["-1", "1.5", "", "2147483648", "x"])
def test_a_default_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(LLMException, match=r"llmdd\.CacheKeyLease"):
        initialised(1, **{"llmdd.CacheKeyLease": value})


# -- transfers ---------------------------------------------------------------------------------------------------------


def target(manager: CacheManager) -> Cache:
    return manager.allocate_cache(DESC)


def test_a_pull_in_time_consumes_the_key_and_none_comes_after(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.deallocate_cache(owner.allocate_cache(DESC, [K1, K2], lease=LONG_MS))
    peer.pull_cache(K1, target(peer))
    advance_lease_clock(LONG_MS)
    assert bound(owner) == []
    assert is_empty(owner)
    with pytest.raises(LLMException) as caught:
        peer.pull_cache(K2, target(peer))
    assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert owner.key_counts == (1, 0, 1, 0)


def test_layers_that_were_pulled_do_not_keep_a_key(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = (each.cache_manager for each in peers)
    owner.deallocate_cache(owner.allocate_cache(DESC, [K1], lease=LONG_MS))
    cache = target(peer)
    one_layer = {"src_layer_range": range(1), "dst_layer_range": range(1), "tensor_num_per_layer": 1}
    peer.pull_cache(K1, cache, **one_layer)
    assert bound(owner) == [1]
    advance_lease_clock(LONG_MS)
    assert bound(owner) == []
    assert is_empty(owner)


def test_memory_that_is_looked_at_outlasts_the_lease(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [K1], lease=LONG_MS)
    tensor = cache.tensors[0]
    tensor[:] = 7
    manager.deallocate_cache(cache)
    advance_lease_clock(LONG_MS)
    assert bound(manager) == []
    assert manager.live_caches == 1
    assert (np.asarray(tensor) == 7).all()
    del tensor
    assert is_empty(manager)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_who_expects_keys_keeps_them_until_they_are_pulled(
    peers: tuple[LLMDataDist, LLMDataDist], eventually: Callable[..., None]
) -> None:
    owner, peer = (each.cache_manager for each in peers)
    peer.keep_leases([K1, K2], lease=1500)  # before they are bound
    owner.deallocate_cache(owner.allocate_cache(DESC, [K1, K2, K3], lease=1500))
    eventually(lambda: bound(owner) == [1, 2], "the lease of the third key is over")
    assert sorted(key.req_id for key in peer.kept_leases) == [1, 2]
    peer.pull_cache(K1, target(peer))
    eventually(lambda: [key.req_id for key in peer.kept_leases] == [2], "the key that was pulled is kept no longer")
    peer.let_leases_lapse([CacheKey(1, 2), CacheKey(1, 404)])
    assert peer.kept_leases == []
    eventually(lambda: is_empty(owner), "nobody keeps the second key")


def test_a_key_that_was_pulled_before_it_was_renewed_is_kept_no_longer(
    peers: tuple[LLMDataDist, LLMDataDist], eventually: Callable[..., None]
) -> None:
    owner, peer = (each.cache_manager for each in peers)
    peer.keep_leases([K1, CacheKey(1, 404)], lease=150)
    owner.allocate_cache(DESC, [K1], lease=LONG_MS)
    assert peer.pull_many([1], [target(peer)], cluster_id=1).tolist() == [OK]
    eventually(lambda: [key.req_id for key in peer.kept_leases] == [404], "only what has never been there is awaited")


def test_a_program_keeps_keys_of_its_own(manager: CacheManager, eventually: Callable[..., None]) -> None:
    manager.allocate_cache(DESC, [K1, K2], lease=1000)
    manager.keep_leases([K1], lease=1000)
    eventually(lambda: bound(manager) == [1], "the lease of the other is over")
    manager.remove_cache_key(K1)
    eventually(lambda: not manager.kept_leases, "a key that was removed is kept no longer")


@pytest.mark.parametrize(
    ("keys", "lease", "error"),
    [
        (None, 1, AttributeError),
        ([7], 1, TypeError),
        ([PLACEHOLDER], 1, LLMException),
        ([CacheKey(1, 1, 0, 1)], 1, LLMException),
        ([K1], None, LLMException),
        ([K1], -1, ValueError),
    ],
)
def test_what_cannot_be_kept_is_refused(
    manager: CacheManager, keys: Any, lease: int | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        manager.keep_leases(keys, lease)
    assert manager.kept_leases == []


def test_finalizing_ends_the_heartbeat(peers: tuple[LLMDataDist, LLMDataDist]) -> None:
    owner, peer = peers
    owner.cache_manager.allocate_cache(DESC, [K1], lease=1000)
    manager = peer.cache_manager
    manager.keep_leases([K1], lease=30)
    peer.finalize()
    assert not [thread for thread in threading.enumerate() if thread.name == "llmdd leases 2"]
    with pytest.raises(LLMException) as caught:
        manager.keep_leases([K1], lease=30)
    assert caught.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED


# -- processes that die ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_holds_nothing_beyond_its_lease(
    owner: LLMDataDist, eventually: Callable[..., None], end: signal.Signals
) -> None:
    manager = owner.cache_manager
    manager.deallocate_cache(manager.allocate_cache(DESC, [K1], lease=2000))
    processes = multiprocessing.get_context("forkserver")
    connection, theirs = processes.Pipe()
    arguments = (theirs, options(), owner.listen_address, 1000, advance_lease_clock(0))
    worker = processes.Process(target=expecting_process.run, args=arguments, daemon=True)
    worker.start()
    theirs.close()
    assert worker.pid is not None
    try:
        assert connection.recv() == [OK]
        os.kill(worker.pid, end)
        eventually(lambda: is_empty(manager), "the lease is over")
    finally:
        worker.kill()
        worker.join()
