"""pull_many does, item by item, what pull_cache and pull_blocks do; or all of it or nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from mmap import PAGESIZE, PROT_READ, PROT_WRITE, mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMException,
    LLMStatusCode,
)

INV = 2**64 - 1
DESC = CacheDesc(2, (4, 8), DataType.DT_UINT8)
BLOCKS = CacheDesc(2, (12, 4), DataType.DT_UINT8)
OK = LLMStatusCode.LLM_SUCCESS
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
INVALID = LLMStatusCode.LLM_PARAM_INVALID

CodeOf = Callable[..., LLMStatusCode]


def codes(answer: np.ndarray) -> list[LLMStatusCode]:
    assert answer.dtype == np.int64
    return [LLMStatusCode(code) for code in answer.tolist()]


# -- one after the other ---------------------------------------------------------------------------------------------


def test_every_status_code_has_room() -> None:
    assert {LLMStatusCode(np.int64(code.value)) for code in LLMStatusCode} == set(LLMStatusCode)


def test_slots_of_two_clusters_go_where_they_should(trio: Any, empty: Any, slots: Any) -> None:
    trio.one.publish(1, 2)
    trio.two.publish(11, 12, 13)
    target = empty(trio.puller)
    keys = [trio.two.key(12), trio.one.key(1), trio.one.key(2), trio.two.key(13)]
    assert codes(trio.puller.pull_many(keys, target, [3, 0, 2, 1])) == [OK] * 4
    assert slots(target) == [1, 13, 2, 12]
    assert trio.one.manager.live_caches == 0
    assert trio.two.bound(11, 12, 13) == [True, False, False]


def test_by_default_the_slots_come_in_order(trio: Any, empty: Any, slots: Any) -> None:
    trio.one.publish(1, 2, 3)
    target = empty(trio.puller)
    assert codes(trio.puller.pull_many(np.array([3, 1]), target, cluster_id=1)) == [OK, OK]
    assert slots(target) == [3, 1, 0, 0]


def test_a_cache_for_each(trio: Any, empty: Any, slots: Any) -> None:
    trio.one.publish(1, 2, 3)
    caches = [empty(trio.puller) for _ in range(2)]
    assert codes(trio.puller.pull_many([1, 2], caches, cluster_id=1)) == [OK, OK]
    assert [slots(cache) for cache in caches] == [[1, 0, 0, 0], [2, 0, 0, 0]]
    assert codes(trio.puller.pull_many([3], (caches[1],), [2], cluster_id=1)) == [OK]
    assert slots(caches[1]) == [2, 0, 3, 0]


def test_each_item_has_its_own_refusal(trio: Any, empty: Any, slots: Any) -> None:
    trio.one.publish(1, 2)
    small = trio.two.manager.allocate_cache(CacheDesc(2, (2, 4), DataType.DT_UINT8), [trio.two.key(11)])
    gone, target = empty(trio.puller), empty(trio.puller)
    trio.puller.deallocate_cache(gone)
    items = [
        (trio.one.key(1), target, 0, OK),
        (trio.one.key(1), target, 1, NOT_EXIST),  # the one before has released it
        (trio.one.key(9), target, 2, NOT_EXIST),
        (CacheKey(1, INV), target, 3, INVALID),  # a placeholder
        (CacheKey(1, 5, prefix_id=5), target, 4, INVALID),
        (CacheKey(3, 1), target, 5, INVALID),  # our own cluster
        (CacheKey(9, 1), target, 6, INVALID),  # there is no slot 6, which is looked at first
        (trio.one.key(2), gone, 0, NOT_EXIST),
        (trio.two.key(11), empty(trio.puller), 0, INVALID),  # its slots are smaller
        (CacheKeyByIdAndIndex(1, 0), empty(trio.puller), 0, NOT_EXIST),
        (CacheKeyByIdAndIndex(2, small.cache_id, 9), empty(trio.puller), 0, NOT_EXIST),
        (CacheKey(9, 1), empty(trio.puller), 0, NOT_LINKED),
        (trio.one.key(2), empty(trio.puller), 3, OK),
    ]
    keys, caches, indices, expected = (list(column) for column in zip(*items, strict=True))
    assert codes(trio.puller.pull_many(keys, caches, indices)) == expected
    assert slots(target) == [1, 0, 0, 0]
    assert slots(caches[-1]) == [0, 0, 0, 2]
    assert trio.two.bound(11) == [True]


def test_a_size_is_for_every_item(trio: Any, empty: Any) -> None:
    trio.one.publish(1, 2)
    target = empty(trio.puller)
    assert codes(trio.puller.pull_many([1, 2], target, cluster_id=1, size=3)) == [OK, OK]
    assert target.tensors[1].tolist() == [[1] * 3 + [0] * 5, [2] * 3 + [0] * 5, [0] * 8, [0] * 8]
    assert codes(trio.puller.pull_many([1, 2], target, cluster_id=1, size=9)) == [INVALID] * 2


def test_prefixes_are_pulled_as_often_as_they_are_named(trio: Any, empty: Any, slots: Any) -> None:
    prefix = CacheKey(1, INV, prefix_id=7)
    cache = trio.one.manager.allocate_cache(DESC, [prefix])
    for tensor in cache.tensors:
        tensor[:] = 7
    del tensor
    for all_or_nothing in (False, True):
        target = empty(trio.puller)
        answer = trio.puller.pull_many([prefix] * 3, target, all_or_nothing=all_or_nothing)
        assert codes(answer) == [OK] * 3
        assert slots(target) == [7, 7, 7, 0]
    assert trio.one.manager.live_keys == 1


def test_slots_are_cut_into_blocks(trio: Any, slots: Any) -> None:
    trio.one.publish(1, 2, 3)
    blocks = trio.puller.allocate_blocks_cache(BLOCKS)
    for tensor in blocks.tensors:
        tensor[:] = 0
    del tensor
    tables = [(5, 0), np.array([3]), [9, 8]]
    assert codes(trio.puller.pull_many([1, 2, 3], blocks, block_tables=tables, cluster_id=1)) == [OK] * 3
    assert slots(blocks) == [1, 0, 0, 2, 0, 1, 0, 0, 3, 3, 0, 0]


def test_a_table_of_blocks_is_an_array(trio: Any, slots: Any) -> None:
    trio.one.publish(1, 2)
    blocks = trio.puller.allocate_blocks_cache(BLOCKS)
    tables = np.array([[11, 0], [10, 0], [9, 0], [8, 0]], ">u2")[::2, :1]
    assert codes(trio.puller.pull_many(np.array([1, 2]), blocks, block_tables=tables, cluster_id=1)) == [OK, OK]
    assert [slots(blocks)[block] for block in (11, 9)] == [1, 2]


def test_blocks_are_refused_item_by_item(trio: Any) -> None:
    trio.one.publish(1, 2, 3, 4)
    blocks = trio.puller.allocate_blocks_cache(BLOCKS)
    tables = [[0], [12], [], [1, 2, 3]]  # beyond the blocks, none, and more than a slot fills
    answer = trio.puller.pull_many([1, 2, 3, 4], blocks, block_tables=tables, cluster_id=1)
    assert codes(answer) == [OK, INVALID, INVALID, INVALID]
    assert trio.one.bound(1, 2, 3, 4) == [False, True, True, True]


@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_many_keys_of_one_cache_leave_no_pin(trio: Any, all_or_nothing: bool) -> None:
    """One pin bit is for all of them, and the owner gets its memory back with the last key."""
    desc = CacheDesc(2, (100, 8), DataType.DT_UINT8)
    trio.one.publish(*range(100), desc=desc)
    target = trio.puller.allocate_cache(desc)
    for first in (0, 50):
        ids = np.arange(first, first + 50)
        assert not trio.puller.pull_many(ids, target, ids, cluster_id=1, all_or_nothing=all_or_nothing).any()
        trio.one.manager.check()
    assert target.tensors[1][:, 7].tolist() == list(range(100))
    assert trio.one.manager.live_caches == 0


def test_registered_memory_at_both_ends(trio: Any) -> None:
    theirs, ours = (np.full((2, 8), fill, np.uint8) for fill in (5, 0))
    desc = CacheDesc(1, (2, 8), DataType.DT_UINT8)
    keys = [trio.one.key(1), trio.one.key(2)]
    trio.one.manager.register_cache(desc, [theirs.ctypes.data], keys)
    target = trio.puller.register_cache(desc, [ours.ctypes.data])
    for all_or_nothing in (False, True):
        ours[:] = 0
        assert codes(trio.puller.pull_many(keys, target, all_or_nothing=all_or_nothing)) == [OK, OK]
        assert (ours == theirs).all()
    # Its keys stay: so they may be named twice.
    assert codes(trio.puller.pull_many([keys[0]] * 2, target, all_or_nothing=True)) == [OK, OK]
    for owner, cache_id in ((trio.one.manager, 1), (trio.puller, target.cache_id)):
        owner.unregister_cache(cache_id)


# -- all or nothing --------------------------------------------------------------------------------------------------


def test_all_slots_of_two_clusters(trio: Any, empty: Any, slots: Any) -> None:
    trio.one.publish(1, 2)
    trio.two.publish(11, 12)
    target = empty(trio.puller)
    keys = [trio.two.key(11), trio.one.key(1), trio.two.key(12), trio.one.key(2)]
    assert codes(trio.puller.pull_many(keys, target, all_or_nothing=True)) == [OK] * 4
    assert slots(target) == [11, 1, 12, 2]
    assert trio.one.manager.live_caches == trio.two.manager.live_caches == 0


def refusals(trio: Any) -> list[tuple[Any, int, LLMStatusCode]]:
    """What cannot be pulled, and into which slot of a cache of four."""
    return [
        (trio.one.key(9), 3, NOT_EXIST),
        (trio.one.key(1), 3, NOT_EXIST),  # named before
        (CacheKeyByIdAndIndex(2, 99), 3, NOT_EXIST),
        (CacheKeyByIdAndIndex(2, 0), 3, NOT_EXIST),
        (CacheKey(1, INV), 3, INVALID),
        (CacheKey(3, 1), 3, INVALID),
        (trio.two.key(12), 4, INVALID),
        (CacheKey(9, 1), 3, NOT_LINKED),
    ]


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("position", range(4))
def test_one_refusal_refuses_all(trio: Any, empty: Any, case: int, position: int) -> None:
    trio.one.publish(1, 2)
    trio.two.publish(11, 12)
    target = empty(trio.puller)
    wrong, index, code = refusals(trio)[case]
    keys: list[Any] = [trio.one.key(1), trio.two.key(11), trio.one.key(2)]
    indices = [0, 1, 2]
    refused_at = position
    if case == 1:  # of two that are the same, the later one
        refused_at = max(position, 1)
    keys.insert(position, wrong)
    indices.insert(position, index)
    with pytest.raises(LLMException, match=f"^item {refused_at}: ") as refused:
        trio.puller.pull_many(keys, target, indices, all_or_nothing=True)
    assert refused.value.status_code is code
    assert not any(tensor.any() for tensor in target.tensors)
    for owner, numbers in ((trio.one, (1, 2)), (trio.two, (11, 12))):
        assert owner.bound(*numbers) == [True, True]
        assert owner.manager.remove_cache_keys(list(numbers)).all()
        assert owner.manager.live_caches == 0  # no pin was left
    trio.puller.deallocate_cache(target)
    assert trio.puller.live_caches == 0


def test_the_first_refusal_counts_whoever_finds_it(trio: Any, empty: Any) -> None:
    """One that the owner's side refuses before one that our own side does."""
    trio.one.publish(1)
    target = empty(trio.puller)
    keys = [trio.one.key(1), trio.one.key(8), CacheKey(3, 1)]
    with pytest.raises(LLMException, match=r"^item 1: ") as refused:
        trio.puller.pull_many(keys, target, all_or_nothing=True)
    assert refused.value.status_code is NOT_EXIST


def test_a_slot_named_by_key_and_by_id(trio: Any, empty: Any, slots: Any) -> None:
    cache = trio.one.publish(1, 2)
    by_id = CacheKeyByIdAndIndex(1, cache.cache_id, 0)
    target = empty(trio.puller)
    with pytest.raises(LLMException, match=r"^item 1: ") as refused:
        trio.puller.pull_many([by_id, trio.one.key(1)], target, all_or_nothing=True)
    assert refused.value.status_code is NOT_EXIST
    assert codes(trio.puller.pull_many([trio.one.key(1), by_id], target, all_or_nothing=True)) == [OK, OK]
    assert slots(target) == [1, 1, 0, 0]
    assert trio.one.bound(1, 2) == [False, True]


@pytest.fixture
def untouchable() -> Iterator[Callable[[np.ndarray], None]]:
    """Takes the right to read and write the page away that begins with an array, as if it were not mapped."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages: list[int] = []

    def forbid(array: np.ndarray) -> None:
        pages.append(array.ctypes.data)
        assert protect(pages[-1], PAGESIZE, 0) == 0

    yield forbid
    for page in pages:
        assert protect(page, PAGESIZE, PROT_READ | PROT_WRITE) == 0


def test_memory_that_was_taken_away_releases_no_key(trio: Any, empty: Any, untouchable: Any) -> None:
    trio.one.publish(1, 2)
    array = np.frombuffer(mmap(-1, PAGESIZE), np.uint8)
    gone = trio.puller.register_cache(CacheDesc(2, (1, 8), DataType.DT_UINT8), [array.ctypes.data + i for i in (0, 64)])
    untouchable(array)
    keys = [trio.one.key(1), trio.one.key(2)]
    with pytest.raises(LLMException, match=r"^item 1: ") as refused:
        trio.puller.pull_many(keys, [empty(trio.puller), gone], all_or_nothing=True)
    assert refused.value.status_code is INVALID
    assert trio.one.bound(1, 2) == [True, True]
    assert codes(trio.puller.pull_many(keys, [empty(trio.puller), gone])) == [OK, INVALID]
    assert trio.one.bound(1, 2) == [False, True]
    assert trio.one.manager.remove_cache_keys([2]).all()
    assert trio.one.manager.live_caches == 0
    trio.puller.unregister_cache(gone.cache_id)


# -- as single calls -------------------------------------------------------------------------------------------------

#: An owner, whether by id and index, and a request: there are three, in a cache of four slots.
ITEM = st.tuples(st.sampled_from(("one", "two")), st.booleans(), st.integers(1, 6))


class Twin:
    """The same three clusters, for pulls one by one or all in one call."""

    def __init__(self, trio: Any) -> None:
        self.trio = trio
        self.owners = {"one": trio.one, "two": trio.two}

    def prepare(self, first: int) -> tuple[Cache, dict[str, Cache]]:
        published = {name: owner.publish(first, first + 1, first + 2) for name, owner in self.owners.items()}
        target = self.trio.puller.allocate_cache(CacheDesc(2, (6, 8), DataType.DT_UINT8))
        for tensor in target.tensors:
            tensor[:] = 0
        return target, published

    def key(self, name: str, by_id: bool, number: int, published: dict[str, Cache]) -> CacheKey | CacheKeyByIdAndIndex:
        owner = self.owners[name]
        return (
            CacheKeyByIdAndIndex(owner.cluster_id, published[name].cache_id, number - 1) if by_id else owner.key(number)
        )

    def seen(self, target: Cache) -> list[Any]:
        contents = [tensor.tolist() for tensor in target.tensors]
        bound = [owner.bound(1, 2, 3, 4) for owner in self.owners.values()]
        return [contents, bound, [owner.manager.live_caches for owner in self.owners.values()]]

    def clear(self, target: Cache) -> None:
        self.trio.puller.deallocate_cache(target)
        for owner in self.owners.values():
            owner.manager.remove_cache_keys([1, 2, 3, 4])
            owner.manager.check()
            assert owner.manager.live_caches == 0
        assert self.trio.puller.live_caches == 0


def one_by_one(code_of: CodeOf, puller: CacheManager, keys: Sequence[Any], target: Cache) -> list[LLMStatusCode]:
    return [code_of(puller.pull_cache, key, target, index) for index, key in enumerate(keys)]


def test_many_pulls_are_as_one_by_one(make_trio: Any, code_of: CodeOf) -> None:
    single, bulk, whole = (Twin(make_trio()) for _ in range(3))

    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(items=st.lists(ITEM, min_size=1, max_size=6))
    def same(items: list[tuple[str, bool, int]]) -> None:
        seen, ended = [], []
        for twin in (single, bulk, whole):
            target, published = twin.prepare(1)
            keys = [twin.key(*item, published) for item in items]
            if twin is single:
                ended.append(one_by_one(code_of, twin.trio.puller, keys, target))
            elif twin is bulk:
                ended.append(codes(twin.trio.puller.pull_many(keys, target)))
            else:
                refused = code_of(twin.trio.puller.pull_many, keys, target, all_or_nothing=True)
                untouched = twin.seen(target)
            seen.append(twin.seen(target))
            twin.clear(target)
        assert ended[0] == ended[1]
        assert seen[0] == seen[1]
        if refused is OK:
            assert seen[2][:2] == seen[0][:2] or NOT_EXIST in ended[0]
        else:
            assert refused in ended[0]
            assert untouched == [[[[0] * 8] * 6] * 2, [[True, True, True, False]] * 2, [1, 1]]

    same()
