"""Processes that are killed, or frozen, at any moment: whoever survives is not held up and keeps nothing of theirs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_process
import pytest
from cluster_process import cluster_info, outcome

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)

SUCCESS = LLMStatusCode.LLM_SUCCESS
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK

HERE, THERE = 1, 2
KILLS = 12
PATIENCE_S = 60.0
LONGEST_DELAY_S = 0.03
TIMEOUT_MS = 3000

# Large enough that a transfer is in flight at most moments.
LARGE = CacheDesc(4, (1, 2 << 20), DataType.DT_UINT8)
SMALL = CacheDesc(4, (1, 512), DataType.DT_UINT8)
# So many keys of so many tensors that their bits lie outside of the slot.
BATCHED = CacheDesc(16, (12, 64 << 10), DataType.DT_UINT8)
CACHES = 4
POOL_BYTES = 48 << 20

_processes = multiprocessing.get_context("forkserver")


class ClusterProcess:
    """Another cluster, in a process of its own."""

    def __init__(self, cluster_id: int, options: dict[str, str]) -> None:
        self.cluster_id = cluster_id
        self._connection, theirs = _processes.Pipe()
        self._process = _processes.Process(target=cluster_process.run, args=(theirs, cluster_id, options), daemon=True)
        self._process.start()
        theirs.close()
        assert self.answer() == "ready"

    def tell(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return self.answer()

    def answer(self) -> Any:
        """What comes of something that was begun."""
        assert self._connection.poll(PATIENCE_S), "the process does not answer"
        return self._connection.recv()

    def freeze(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        state = Path(f"/proc/{self._process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0005)

    def thaw(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``, and the end of the process waited for."""
        self._process.kill()
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == -signal.SIGKILL

    def end(self) -> None:
        """Leave nothing of it here. Ending again does nothing."""
        if self._connection.closed:
            return
        self._process.kill()
        self._process.join(PATIENCE_S)
        self._process.close()
        self._connection.close()


def options_of(remote: bool = False, wait_for_memory: bool = False) -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = remote
    config.listen_ip_info = "127.0.0.1:0"
    config.sync_kv_timeout = TIMEOUT_MS if not wait_for_memory else int(PATIENCE_S * 1000)
    config.wait_for_memory = wait_for_memory
    config.mem_pool_cfg = f'{{"memory_size": {POOL_BYTES}, "page_shift": 16}}'
    return config.generate_options()


def shared_memory_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


def our_sockets() -> list[str]:
    return [line for line in Path("/proc/net/unix").read_text().splitlines() if "llmdd" in line]


def our_mappings() -> list[str]:
    gc.collect()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "llmdd" in line]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def nothing_left_behind(eventually: Any) -> Iterator[None]:
    """Requested first, so that it looks last, when every instance has been finalized."""
    starter = _processes.Process(target=int)  # what starting the first keeps open is not left behind by a test
    starter.start()
    starter.join()
    starter.close()
    files, mappings, descriptors = shared_memory_files(), our_mappings(), open_descriptors()
    yield
    eventually(lambda: shared_memory_files() <= files, "no file of shared memory is left")
    eventually(lambda: not our_sockets(), "no socket is left")
    eventually(lambda: len(our_mappings()) <= len(mappings), "no memory of a dead peer is mapped")
    eventually(lambda: open_descriptors() <= descriptors, "no descriptor is left")


@pytest.fixture
def start_cluster(nothing_left_behind: None) -> Iterator[Callable[..., ClusterProcess]]:
    started: list[ClusterProcess] = []

    def start(remote: bool = False) -> ClusterProcess:
        started.append(ClusterProcess(THERE, options_of(remote)))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def make_survivor(nothing_left_behind: None) -> Iterator[Callable[..., LLMDataDist]]:
    made: list[LLMDataDist] = []

    def make(remote: bool = False, wait_for_memory: bool = False) -> LLMDataDist:
        made.append(LLMDataDist(LLMRole.MIX, HERE))
        made[-1].init(options_of(remote, wait_for_memory))
        return made[-1]

    yield make
    for datadist in made:
        datadist.finalize()


def bind(manager: CacheManager, desc: CacheDesc, fill: int) -> list[int]:
    """Caches that are kept by their keys alone, filled with one number."""
    ids = []
    for number in range(CACHES):
        cache = manager.allocate_cache(desc, [CacheKey(HERE, number)])
        for tensor in cache.tensors:
            tensor[:] = fill
        manager.deallocate_cache(cache)
        ids.append(cache.cache_id)
    return ids


def remove_keys(manager: CacheManager) -> None:
    for number in range(CACHES):
        manager.remove_cache_key(CacheKey(HERE, number))


def is_entirely_free(manager: CacheManager) -> bool:
    usage = manager.pool_usage()
    return usage.free_bytes == usage.total_bytes and manager.live_caches == manager.live_keys == 0


def every_pin_bit_is_free(manager: CacheManager) -> bool:
    return manager.admitted_peers == 0


# ----------------------------------------------------------------------------------------------- a peer that transfers


@pytest.mark.parametrize("doing", ["pull_for_ever", "consume_for_ever", "push_for_ever", "link_and_unlink_for_ever"])
def test_a_peer_killed_at_any_moment_leaves_nothing(
    start_cluster: Any, make_survivor: Any, eventually: Any, doing: str
) -> None:
    moments = random.Random(doing)
    remote = doing == "push_for_ever"
    survivor = make_survivor(remote)
    manager, address = survivor.cache_manager, survivor.listen_address
    assert address is not None
    for kill_number in range(KILLS):
        peer = start_cluster(remote)
        if doing != "link_and_unlink_for_ever":
            assert peer.tell("link", HERE, address) is SUCCESS
        ids = bind(manager, LARGE, kill_number)
        last = {"consume_for_ever": list(range(CACHES)), "link_and_unlink_for_ever": address}.get(doing, ids)
        assert peer.tell(doing, LARGE, HERE, last) == "begun"
        time.sleep(moments.uniform(0, LONGEST_DELAY_S))
        if moments.random() < 0.5:
            peer.kill()
            remove_keys(manager)
        else:
            remove_keys(manager)
            peer.kill()
        eventually(lambda: is_entirely_free(manager), f"the memory is back after kill {kill_number}")
        eventually(lambda: every_pin_bit_is_free(manager), f"the pin bits are back after kill {kill_number}")
        manager.check()
        peer.end()
        if kill_number == 0:
            descriptors = open_descriptors()
    survivor.unlink_clusters([cluster_info(THERE, ("127.0.0.1", 1))], force=True)
    eventually(lambda: open_descriptors() <= descriptors, "no descriptor is left")


def test_a_key_that_a_killed_peer_did_not_finish_can_be_pulled_by_another(
    start_cluster: Any, make_survivor: Any, eventually: Any
) -> None:
    """Rule 11: what a dead peer had not completed it has not done."""
    moments = random.Random(11)
    survivor = make_survivor()
    manager = survivor.cache_manager
    for kill_number in range(KILLS // 2):
        bind(manager, LARGE, kill_number)
        peer = start_cluster()
        assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
        assert peer.tell("consume_for_ever", LARGE, HERE, list(range(CACHES))) == "begun"
        time.sleep(moments.uniform(0, 0.2 * LONGEST_DELAY_S))
        peer.kill()
        other = start_cluster()
        assert other.tell("link", HERE, survivor.listen_address) is SUCCESS
        left = [number for number in range(CACHES) if manager.lookup(CacheKey(HERE, number)) is not None]
        for number in range(CACHES):
            assert other.tell("pull", LARGE, HERE, number) is (SUCCESS if number in left else NOT_EXIST)
        eventually(lambda: is_entirely_free(manager), f"the memory is back after kill {kill_number}")
        other.kill()
        for process in (peer, other):
            process.end()


# ------------------------------------------------------------------------------------------ a peer that is pulled from


def pulls_until_the_link_is_lost(
    manager: CacheManager, key: CacheKeyByIdAndIndex, cache: Cache
) -> Iterator[LLMStatusCode]:
    """How each pull ended, to the one that found the link lost."""
    deadline = time.monotonic() + PATIENCE_S
    code = SUCCESS
    while code is not NOT_LINKED:
        assert time.monotonic() < deadline, "the death of the peer goes unnoticed"
        code = outcome(manager.pull_cache, key, cache)
        yield code


@pytest.mark.parametrize("owner_is", ["idle", "busy"])
def test_pulls_from_an_owner_killed_at_any_moment_end(
    start_cluster: Any, make_survivor: Any, eventually: Any, owner_is: str
) -> None:
    moments = random.Random(owner_is)
    survivor = make_survivor()
    manager = survivor.cache_manager
    ours = manager.allocate_cache(LARGE)
    # One that dies while it changes its index leaves it in motion: whoever looks something up runs out of time.
    allowed = {SUCCESS, NOT_LINKED} if owner_is == "idle" else {SUCCESS, NOT_LINKED, LLMStatusCode.LLM_TIMEOUT}
    for kill_number in range(KILLS):
        owner = start_cluster()
        ids = owner.tell("bind", LARGE, kill_number, 1)
        assert survivor.link_clusters([cluster_info(THERE, owner.tell("listen_address"))])[0] is SUCCESS
        if owner_is == "busy":
            assert owner.tell("allocate_and_free_for_ever", SMALL) == "begun"
        killer = threading.Timer(moments.uniform(0, LONGEST_DELAY_S), owner.kill)
        killer.start()
        for code in pulls_until_the_link_is_lost(manager, CacheKeyByIdAndIndex(THERE, ids[0]), ours):
            assert code in allowed, code
            if code is SUCCESS:
                assert all((tensor[0, ::4096] == kill_number).all() for tensor in ours.tensors)
        killer.join()
        assert outcome(manager.pull_cache, CacheKey(THERE, kill_number), ours) is NOT_LINKED
        assert survivor.unlink_clusters([cluster_info(THERE, ("127.0.0.1", 1))], force=True)[0] is SUCCESS
        owner.end()
        if kill_number == 0:
            descriptors = open_descriptors()
    manager.deallocate_cache(ours)
    manager.check()
    eventually(lambda: is_entirely_free(manager), "the memory is back")
    eventually(lambda: open_descriptors() <= descriptors, "no descriptor is left")


def test_both_ends_are_pulled_from_when_one_is_killed(start_cluster: Any, make_survivor: Any, eventually: Any) -> None:
    moments = random.Random(2)
    survivor = make_survivor()
    manager = survivor.cache_manager
    ours = manager.allocate_cache(SMALL)
    for kill_number in range(KILLS // 2):
        peer = start_cluster()
        (theirs,) = peer.tell("bind", SMALL, 7, 1)
        assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
        ids = bind(manager, LARGE, kill_number)
        assert peer.tell("pull_for_ever", LARGE, HERE, ids) == "begun"
        killer = threading.Timer(moments.uniform(0, LONGEST_DELAY_S), peer.kill)
        killer.start()
        for code in pulls_until_the_link_is_lost(manager, CacheKeyByIdAndIndex(THERE, theirs), ours):
            assert code in (SUCCESS, NOT_LINKED)
            assert (ours.tensors[3] == 7).all() or code is NOT_LINKED
        killer.join()
        remove_keys(manager)
        eventually(lambda: manager.live_caches == 1, f"the memory is back after kill {kill_number}")
        peer.end()


# ------------------------------------------------------------------------------------------------ a peer that is frozen


def freeze_in_a_pull(peer: ClusterProcess, manager: CacheManager) -> None:
    """The peer stands still with a pin on one of our caches, whose other references are gone."""
    moments = random.Random(200)
    for _ in range(200):
        bind(manager, LARGE, 1)
        time.sleep(moments.uniform(0, LONGEST_DELAY_S))
        peer.freeze()
        # Whether it holds one of these is seen when nothing else does.
        remove_keys(manager)
        if manager.live_caches:
            return
        peer.thaw()
    raise AssertionError("the peer was never caught in a pull")


@pytest.mark.parametrize("then", ["thaw", "kill"])
def test_a_frozen_peer_holds_its_memory_and_nothing_else(
    start_cluster: Any, make_survivor: Any, eventually: Any, then: str
) -> None:
    survivor = make_survivor()
    manager = survivor.cache_manager
    peer = start_cluster()
    assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
    assert peer.tell("pull_for_ever", LARGE, HERE, list(range(1, 2000))) == "begun"
    freeze_in_a_pull(peer, manager)
    usage = manager.pool_usage()
    held = manager.live_caches
    assert usage.total_bytes - usage.free_bytes == held * 4 * LARGE.size
    for number in range(200):
        cache = manager.allocate_cache(SMALL, [CacheKey(HERE, number)])
        manager.copy_cache(cache, cache)
        assert manager.lookup(CacheKey(HERE, number)) is not None
        manager.deallocate_cache(cache)
        manager.remove_cache_key(CacheKey(HERE, number))
        manager.check()
    assert (manager.pool_usage(), manager.live_caches) == (usage, held)
    getattr(peer, then)()
    eventually(lambda: is_entirely_free(manager), f"the memory is back after {then}")
    manager.check()


def test_the_death_of_a_frozen_peer_wakes_who_waits_for_its_memory(
    start_cluster: Any, make_survivor: Any, eventually: Any
) -> None:
    survivor = make_survivor(wait_for_memory=True)
    manager = survivor.cache_manager
    peer = start_cluster()
    assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
    assert peer.tell("pull_for_ever", LARGE, HERE, list(range(1, 2000))) == "begun"
    freeze_in_a_pull(peer, manager)
    whole = CacheDesc(1, (1, POOL_BYTES), DataType.DT_UINT8)
    waiting = threading.Thread(
        target=lambda: manager.deallocate_cache(manager.allocate_cache(whole, [CacheKey(HERE, 9)]))
    )
    waiting.start()
    eventually(lambda: manager.waiting_allocations == 1, "the call waits")
    peer.kill()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert manager.lookup(CacheKey(HERE, 9)) is not None
    manager.remove_cache_key(CacheKey(HERE, 9))
    manager.check()


@pytest.mark.parametrize("end", ["finalize", "unlink"])
def test_a_frozen_peer_does_not_hold_up_the_end(
    start_cluster: Any, make_survivor: Any, eventually: Any, end: str
) -> None:
    survivor = make_survivor()
    manager = survivor.cache_manager
    peer = start_cluster()
    assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
    assert peer.tell("pull_for_ever", LARGE, HERE, list(range(1, 2000))) == "begun"
    freeze_in_a_pull(peer, manager)
    if end == "finalize":
        survivor.finalize()
        assert outcome(manager.check) is LLMStatusCode.LLM_ENGINE_FINALIZED
        return
    assert survivor.unlink_clusters([cluster_info(THERE, ("127.0.0.1", 1))], force=True)[0] is SUCCESS
    eventually(lambda: is_entirely_free(manager), "the memory is back, whatever the peer does when it goes on")
    assert manager.admitted_peers == 1
    peer.kill()
    eventually(lambda: every_pin_bit_is_free(manager), "its pin bit is back")
    manager.check()


def freeze_between_two_keys(peer: ClusterProcess, manager: CacheManager, desc: CacheDesc, numbers: list[int]) -> None:
    """The peer stands still with a pin on a cache of ours, some of whose keys it has consumed, and which nothing else
    refers to."""
    moments = random.Random(0)
    for _ in range(200):
        bind_all(manager, desc, numbers)
        deadline = time.monotonic() + PATIENCE_S
        while manager.live_keys == len(numbers):
            assert time.monotonic() < deadline, "the peer pulls nothing"
        # It looks at what it has pulled now; the next pull begins at a moment that is not ours to know.
        time.sleep(moments.uniform(0, 0.005))
        peer.freeze()
        unbind(manager, numbers)
        if manager.live_caches:
            return
        peer.thaw()
    raise AssertionError("the peer was never caught in a pull")


def fill_pool(manager: CacheManager, fill: int) -> None:
    """Whoever reads a cache as soon as it is bound finds this number in it."""
    whole = manager.allocate_cache(CacheDesc(1, (1, manager.pool_usage().free_bytes), DataType.DT_UINT8))
    whole.tensors[0][:] = fill
    manager.deallocate_cache(whole)


def bind_all(manager: CacheManager, desc: CacheDesc, numbers: list[int]) -> None:
    """Caches that are kept by their keys alone: as many as take all the numbers."""
    for first in range(0, len(numbers), desc.batch_size):
        cache = manager.allocate_cache(desc, [CacheKey(HERE, number) for number in numbers[first:][: desc.batch_size]])
        manager.deallocate_cache(cache)


def unbind(manager: CacheManager, numbers: list[int]) -> None:
    for number in numbers:
        manager.remove_cache_key(CacheKey(HERE, number))


@pytest.mark.parametrize(("desc", "caches"), [(LARGE, CACHES), (BATCHED, 1)], ids=["large", "many keys"])
def test_a_frozen_reader_is_evicted_when_its_link_is_dropped(
    start_cluster: Any, make_survivor: Any, eventually: Any, desc: CacheDesc, caches: int
) -> None:
    """While it stands still its memory is another's. When it goes on it finds out, and does that one no harm."""
    survivor = make_survivor()
    manager = survivor.cache_manager
    keys = caches * desc.batch_size
    numbers, others = list(range(keys)), list(range(keys, 2 * keys))
    row = CacheDesc(desc.num_tensors, (1, desc.shape[1]), desc.data_type)
    fill_pool(manager, 1)
    peer = start_cluster()
    assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
    assert peer.tell("consume_to_the_end", row, HERE, numbers, 1) == "begun"
    freeze_between_two_keys(peer, manager, desc, numbers)
    assert survivor.unlink_clusters([cluster_info(THERE, ("127.0.0.1", 1))], force=True)[0] is SUCCESS
    eventually(lambda: is_entirely_free(manager), "the memory is back")
    fill_pool(manager, 2)
    bind_all(manager, desc, others)
    peer.thaw()
    assert peer.answer() == (NOT_LINKED, True)
    assert all(manager.lookup(CacheKey(HERE, number)) is not None for number in others)
    manager.check()
    eventually(lambda: every_pin_bit_is_free(manager), "it has noticed, and promised to transfer no more")
    assert survivor.link_clusters([cluster_info(THERE, peer.tell("listen_address"))])[0] is SUCCESS
    for number in others:
        assert peer.tell("pull", row, HERE, number) is SUCCESS
    eventually(lambda: is_entirely_free(manager), "every key has been consumed")
    manager.check()


@pytest.mark.parametrize("then", ["thaw", "kill"])
def test_a_frozen_writer_is_not_evicted(start_cluster: Any, make_survivor: Any, eventually: Any, then: str) -> None:
    survivor = make_survivor(True)
    manager = survivor.cache_manager
    peer = start_cluster(True)
    assert peer.tell("link", HERE, survivor.listen_address) is SUCCESS
    assert peer.tell("push_for_ever", LARGE, HERE, list(range(1, 2000))) == "begun"
    freeze_in_a_pull(peer, manager)
    held = manager.live_caches
    assert survivor.unlink_clusters([cluster_info(THERE, ("127.0.0.1", 1))], force=True)[0] is SUCCESS
    assert manager.evict_peer(0) == 0, "it reads nothing"
    usage = manager.pool_usage()
    assert (manager.live_caches, usage.total_bytes - usage.free_bytes) == (held, held * 4 * LARGE.size)
    others = [manager.allocate_cache(SMALL) for _ in range(100)]
    for cache in others:
        for tensor in cache.tensors:
            tensor[:] = 2
    manager.check()
    getattr(peer, then)()
    eventually(lambda: manager.live_caches == len(others), f"the memory is back after {then}")
    eventually(lambda: every_pin_bit_is_free(manager), f"the pin bit is back after {then}")
    assert all((tensor == 2).all() for cache in others for tensor in cache.tensors)
    manager.check()


def test_a_call_to_a_frozen_owner_is_carried_out_all_the_same(start_cluster: Any, make_survivor: Any) -> None:
    """A pull needs no work of the owner's."""
    survivor = make_survivor()
    manager = survivor.cache_manager
    owner = start_cluster()
    owner.tell("bind", LARGE, 5, 1)
    assert survivor.link_clusters([cluster_info(THERE, owner.tell("listen_address"))])[0] is SUCCESS
    ours = manager.allocate_cache(LARGE)
    owner.freeze()
    manager.pull_cache(CacheKey(THERE, 5), ours)
    assert all((tensor == 5).all() for tensor in ours.tensors)
    assert outcome(manager.pull_cache, CacheKey(THERE, 5), ours) is NOT_EXIST
    owner.thaw()
    assert owner.tell("listen_address") is not None
