"""lookup_many, remove_cache_keys and deallocate_many answer for each item what the single call does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmdd import BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheManager, DataType, LLMException, LLMStatusCode

INV = 2**64 - 1
DESC = CacheDesc(2, (4, 8), DataType.DT_UINT8)
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
INVALID = LLMStatusCode.LLM_PARAM_INVALID


def keys(*numbers: int) -> list[CacheKey]:
    return [CacheKey(1, number) for number in numbers]


def refusal(code: LLMStatusCode, call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(LLMException) as refused:
        call(*arguments, **named)
    assert refused.value.status_code is code
    return str(refused.value)


# -- lookup_many -----------------------------------------------------------------------------------------------------


def test_lookups_are_those_of_single_keys(manager: CacheManager) -> None:
    prefix = CacheKey(1, INV, 0, 7)
    one = manager.allocate_cache(DESC, [*keys(5, 6), CacheKey(1, INV), prefix])
    two = manager.allocate_cache(DESC, [CacheKey(1, 5, model_id=2)])
    wanted = [*keys(6, 5, 9), prefix, CacheKey(1, INV), CacheKey(1, 5, 2), CacheKey(77, 6)]
    places = manager.lookup_many(wanted)
    assert places.cache_ids.dtype == np.int64
    assert places.batch_indices.dtype == np.uint32
    assert places.cache_ids.tolist() == [one.cache_id, one.cache_id, 0, one.cache_id, 0, two.cache_id, one.cache_id]
    assert places.batch_indices.tolist() == [1, 0, 0, 3, 0, 0, 1]
    for key, cache_id, index in zip(wanted, *places, strict=True):
        found = manager.lookup(key)
        assert (found.cache_id, found.batch_index) == (cache_id, index) if found else cache_id == 0


def test_request_ids_are_of_one_model(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [CacheKey(1, 5, 3), CacheKey(1, 2**64 - 2, 3)])
    ids = np.array([5, 2**64 - 2, INV], np.uint64)
    assert manager.lookup_many(ids, model_id=3).cache_ids.tolist() == [cache.cache_id, cache.cache_id, 0]
    assert manager.lookup_many(ids).cache_ids.tolist() == [0, 0, 0]
    assert manager.lookup_many([5, 2**64 - 2, INV], model_id=3).batch_indices.tolist() == [0, 1, 0]


@pytest.mark.parametrize("live", [0, 1, 31, 32, 33, 3000])
def test_any_number_of_keys(manager: CacheManager, live: int) -> None:
    """Groups that are full, and one that is not."""
    wide = CacheDesc(1, (100, 1), DataType.DT_INT8)
    made = {}
    for first in range(0, live, 100):
        cache = manager.allocate_cache(wide, keys(*range(first, min(first + 100, live))))
        made |= {number: (cache.cache_id, number - first) for number in range(first, min(first + 100, live))}
    places = manager.lookup_many(np.arange(live + 5))
    assert list(zip(places.cache_ids.tolist(), places.batch_indices.tolist(), strict=True)) == [
        made.get(number, (0, 0)) for number in range(live + 5)
    ]


def test_a_key_that_a_peer_dropped_is_not_bound(manager: CacheManager, make_datadist: Any, link: Any) -> None:
    other = make_datadist(2)
    prompt = make_datadist(3)
    link(other, prompt)
    prompt.cache_manager.allocate_cache(DESC, keys(1, 2))
    target = other.cache_manager.allocate_cache(DESC)
    other.cache_manager.pull_cache(CacheKey(3, 1), target)
    assert prompt.cache_manager.lookup_many([1, 2]).cache_ids.tolist() == [0, 1]
    assert prompt.cache_manager.remove_cache_keys([1, 2]).tolist() == [False, True]


# -- remove_cache_keys -----------------------------------------------------------------------------------------------


def test_removed_keys_are_those_that_were_bound(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, keys(1, 2, 3))
    manager.deallocate_cache(cache)
    removed = manager.remove_cache_keys([*keys(2, 9, 2), CacheKey(1, INV), *keys(1)])
    assert removed.dtype == np.bool_
    assert removed.tolist() == [True, False, False, False, True]
    assert (manager.live_keys, manager.live_caches) == (1, 1)
    assert manager.remove_cache_keys(np.array([3], np.int8)).tolist() == [True]
    assert manager.live_caches == 0


@pytest.mark.parametrize("wrong", [9, 2, INV], ids=["not bound", "named before", "placeholder"])
def test_all_keys_or_none(manager: CacheManager, wrong: int) -> None:
    manager.allocate_cache(DESC, keys(1, 2, 3))
    for given in (keys(1, 2, wrong), np.array([1, 2, wrong], np.uint64)):
        message = refusal(NOT_EXIST, manager.remove_cache_keys, given, all_or_nothing=True)
        assert "item 2" in message
        assert str(wrong) in message
    assert manager.live_keys == 3
    assert manager.remove_cache_keys([3, 1], all_or_nothing=True).tolist() == [True, True]


def test_prefix_keys_and_keys_of_registered_caches_are_removed(manager: CacheManager) -> None:
    array = np.zeros((4, 8), np.uint8)
    cache = manager.register_cache(CacheDesc(1, (4, 8), DataType.DT_UINT8), [array.ctypes.data], keys(1))
    prefix = CacheKey(1, INV, 0, 7)
    manager.allocate_cache(DESC, [prefix])
    assert manager.remove_cache_keys([prefix, *keys(1)], all_or_nothing=True).tolist() == [True, True]
    assert manager.live_keys == 0
    manager.unregister_cache(cache.cache_id)


# -- deallocate_many -------------------------------------------------------------------------------------------------


def test_deallocated_caches_are_those_whose_id_was_held(manager: CacheManager) -> None:
    caches = [manager.allocate_cache(DESC) for _ in range(3)]
    keyed = manager.allocate_cache(DESC, keys(1))
    manager.deallocate_cache(caches[1])
    assert manager.deallocate_many([*caches, keyed, caches[0]]).tolist() == [True, False, True, True, False]
    assert [cache.tensor_addrs for cache in (*caches, keyed)] == [[]] * 4
    assert (manager.live_caches, manager.live_keys) == (1, 1)
    assert manager.deallocate_many([keyed]).tolist() == [False]


def test_by_ids_too(manager: CacheManager) -> None:
    free = manager.allocate_cache(DESC)
    keyed = manager.allocate_cache(DESC, keys(1))
    ids = np.array([keyed.cache_id, 99, free.cache_id, keyed.cache_id, 0])
    assert manager.deallocate_many(ids).tolist() == [True, False, True, False, False]
    assert keyed.tensor_addrs == free.tensor_addrs == []
    assert manager.lookup(CacheKey(1, 1)) is not None


@pytest.fixture
def others(manager: CacheManager, make_datadist: Any) -> dict[str, Cache]:
    """Caches that deallocate_cache does not deallocate."""
    array = np.zeros((4, 8), np.uint8)
    desc = CacheDesc(1, (4, 8), DataType.DT_UINT8)
    gone = manager.allocate_cache(desc)
    manager.deallocate_cache(gone)
    return {
        "blocks": manager.allocate_blocks_cache(desc, BlocksCacheKey(1)),
        "registered": manager.register_cache(desc, [array.ctypes.data]),
        "foreign": make_datadist(9).cache_manager.allocate_cache(desc),
        "gone": gone,
    }


@pytest.mark.parametrize(
    ("which", "code"), [("blocks", INVALID), ("registered", INVALID), ("foreign", NOT_EXIST), ("gone", NOT_EXIST)]
)
def test_what_another_call_takes_is_left(
    manager: CacheManager, others: dict[str, Cache], which: str, code: LLMStatusCode
) -> None:
    cache, other = manager.allocate_cache(DESC), others[which]
    assert "item 1" in refusal(code, manager.deallocate_many, [cache, other], all_or_nothing=True)
    assert cache.tensor_addrs != []
    before = manager.live_caches
    assert manager.deallocate_many([cache, other]).tolist() == [True, False]
    assert manager.live_caches == before - 1


@pytest.mark.parametrize(("which", "code"), [("blocks", INVALID), ("registered", INVALID), ("gone", NOT_EXIST)])
def test_nor_by_its_id(manager: CacheManager, others: dict[str, Cache], which: str, code: LLMStatusCode) -> None:
    cache = manager.allocate_cache(DESC)
    ids = [cache.cache_id, others[which].cache_id]
    refusal(code, manager.deallocate_many, ids, all_or_nothing=True)
    assert manager.deallocate_many(ids).tolist() == [True, False]
    assert (others[which].tensor_addrs == []) is (which == "gone")


def test_all_caches_or_none(manager: CacheManager) -> None:
    caches = [manager.allocate_cache(DESC) for _ in range(3)]
    refusal(NOT_EXIST, manager.deallocate_many, [*caches, caches[1]], all_or_nothing=True)
    refusal(NOT_EXIST, manager.deallocate_many, [1, 2, 2], all_or_nothing=True)
    assert manager.live_caches == 3
    assert all(cache.tensor_addrs for cache in caches)
    assert manager.deallocate_many(caches, all_or_nothing=True).tolist() == [True] * 3
    assert manager.live_caches == 0


def test_views_keep_the_memory_of_what_is_deallocated(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC)
    view = cache.tensors[0]
    assert manager.deallocate_many([cache]).tolist() == [True]
    assert manager.live_caches == 1
    del view
    assert manager.live_caches == 0
