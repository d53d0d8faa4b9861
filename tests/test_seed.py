"""The reference page for ``allocate_cache``, clause by clause (seed §1-§12), through the public API."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMDataDist,
    LLMException,
    LLMStatusCode,
    Placement,
)

UINT64_MAX = 2**64 - 1
PROMPT_ID, DECODER_ID = 1, 2
DESC = CacheDesc(2, (2, 512), DataType.DT_FLOAT16)


def request_key(req_id: int, model_id: int = 0) -> CacheKey:
    return CacheKey(PROMPT_ID, req_id, model_id)


def placeholder(model_id: int = 0) -> CacheKey:
    return CacheKey(PROMPT_ID, req_id=UINT64_MAX, model_id=model_id)


def is_entirely_free(manager: CacheManager) -> bool:
    manager.check()
    usage = manager.pool_usage()
    return usage.free_bytes == usage.total_bytes and manager.live_caches == manager.live_keys == 0


def state_of(manager: CacheManager) -> tuple[object, ...]:
    """What a refused call must leave as it was."""
    manager.check()
    return (
        manager.pool_usage(),
        manager.pool_usage(Placement.HOST),
        manager.live_caches,
        manager.live_keys,
        [repr(manager.lookup(request_key(number))) for number in range(8)],
    )


@pytest.fixture
def prompt(make_datadist: Any) -> LLMDataDist:
    datadist: LLMDataDist = make_datadist(PROMPT_ID)
    return datadist


@pytest.fixture
def manager(prompt: LLMDataDist) -> CacheManager:
    return prompt.cache_manager


@pytest.fixture
def decoder(prompt: LLMDataDist, make_datadist: Any, link: Any) -> CacheManager:
    """The caches of another cluster, linked to the prompt's."""
    datadist: LLMDataDist = make_datadist(DECODER_ID)
    link(datadist, prompt)
    return datadist.cache_manager


@contextmanager
def held_still(manager: CacheManager) -> Iterator[None]:
    """Another thread holds the manager's caches still meanwhile."""
    ended = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with manager.paused():
            holding.set()
            ended.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert holding.wait(30)
        yield
    finally:
        ended.set()
        holder.join()


def status_of(call: Callable[[], object]) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        call()
    return refused.value.status_code


# ------------------------------------------------------------------------------------------------------- purpose


@pytest.mark.parametrize("order", list(itertools.permutations(("id", 1, 2))))
def test_seed_1_memory_is_released_when_the_last_reference_goes(
    manager: CacheManager, order: tuple[str | int, ...]
) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    in_use = manager.pool_usage().free_bytes
    for number, reference in enumerate(order):
        assert manager.pool_usage().free_bytes == in_use, f"memory went after {order[:number]}"
        assert manager.live_caches == 1
        if isinstance(reference, int):
            manager.remove_cache_key(request_key(reference))
        else:
            manager.deallocate_cache(cache)
    assert is_entirely_free(manager)


def test_seed_1_a_cache_is_referenced_by_id_and_by_keys_at_once(manager: CacheManager, decoder: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1)])
    cache.tensors[0][0] = 5
    found = manager.lookup(request_key(1))
    assert repr(found) == repr(CacheKeyByIdAndIndex(PROMPT_ID, cache.cache_id, 0))
    ours = decoder.allocate_cache(DESC)
    decoder.pull_cache(CacheKeyByIdAndIndex(PROMPT_ID, cache.cache_id, 1), ours)
    decoder.pull_cache(request_key(1), ours)
    assert (ours.tensors[0][0] == 5).all()


def test_seed_1_released_memory_is_given_to_the_next_cache(manager: CacheManager) -> None:
    everything = CacheDesc(1, (1, manager.pool_usage().total_bytes), DataType.DT_UINT8)
    for number in range(3):
        cache = manager.allocate_cache(everything, [request_key(number)])
        manager.deallocate_cache(cache)
        assert status_of(lambda: manager.allocate_cache(everything)) is LLMStatusCode.LLM_OUT_OF_MEMORY
        manager.remove_cache_key(request_key(number))
    assert is_entirely_free(manager)


def test_seed_1_dropping_the_python_object_releases_nothing(manager: CacheManager) -> None:
    cache_id = manager.allocate_cache(DESC, [request_key(1)]).cache_id
    assert manager.live_caches == 1
    assert repr(manager.lookup(request_key(1))) == repr(CacheKeyByIdAndIndex(PROMPT_ID, cache_id, 0))


def test_seed_2_deallocate_cache_drops_the_reference_by_id(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC)
    manager.deallocate_cache(cache)
    assert cache.tensor_addrs == []
    assert is_entirely_free(manager)


def test_seed_2_deallocate_cache_leaves_the_keys(manager: CacheManager, decoder: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    cache.tensors[1][1] = 3
    manager.deallocate_cache(cache)
    ours = decoder.allocate_cache(DESC)
    decoder.pull_cache(request_key(2), ours)
    assert (ours.tensors[1][0] == 3).all()
    assert manager.lookup(request_key(1)) is not None


def test_seed_2_deallocating_twice_drops_one_reference(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1)])
    manager.deallocate_cache(cache)
    manager.deallocate_cache(cache)
    assert manager.lookup(request_key(1)) is not None
    successor = manager.allocate_cache(DESC)
    manager.remove_cache_key(request_key(1))
    manager.deallocate_cache(cache)
    assert manager.live_caches == 1
    assert len(successor.tensor_addrs) == 2


def test_seed_3a_a_completed_pull_drops_the_key(manager: CacheManager, decoder: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    manager.deallocate_cache(cache)
    ours = decoder.allocate_cache(DESC)
    decoder.pull_cache(request_key(1), ours)
    assert manager.lookup(request_key(1)) is None
    assert manager.live_caches == 1
    assert status_of(lambda: decoder.pull_cache(request_key(1), ours)) is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    decoder.pull_cache(request_key(2), ours, batch_index=1)
    assert is_entirely_free(manager)


def test_seed_3a_a_completed_push_drops_the_key(make_datadist: Any, link: Any) -> None:
    prompt = make_datadist(PROMPT_ID, remote_accessible=True)
    decoder = make_datadist(DECODER_ID, remote_accessible=True)
    link(prompt, decoder)
    theirs = decoder.cache_manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    ours = prompt.cache_manager.allocate_cache(DESC)
    ours.tensors[0][0] = 9
    prompt.cache_manager.push_cache(CacheKeyByIdAndIndex(DECODER_ID, theirs.cache_id, batch_index=1), ours)
    assert (theirs.tensors[0][1] == 9).all()
    assert decoder.cache_manager.lookup(request_key(1)) is not None
    assert decoder.cache_manager.lookup(request_key(2)) is None


def test_seed_3a_a_pull_that_fails_drops_nothing(manager: CacheManager, decoder: CacheManager) -> None:
    manager.deallocate_cache(manager.allocate_cache(DESC, [request_key(1)]))
    other_count = decoder.allocate_cache(CacheDesc(1, (2, 512), DataType.DT_FLOAT16))
    larger_slot = decoder.allocate_cache(CacheDesc(2, (2, 513), DataType.DT_FLOAT16))
    for cache in (other_count, larger_slot):
        assert status_of(lambda cache=cache: decoder.pull_cache(request_key(1), cache)) is (
            LLMStatusCode.LLM_PARAM_INVALID
        )
        assert manager.lookup(request_key(1)) is not None
    decoder.pull_cache(request_key(1), larger_slot, size=1)
    assert is_entirely_free(manager)


def test_seed_3b_remove_cache_key_drops_the_key(manager: CacheManager, decoder: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    manager.remove_cache_key(request_key(1))
    manager.remove_cache_key(request_key(1))
    assert manager.lookup(request_key(1)) is None
    ours = decoder.allocate_cache(DESC)
    assert status_of(lambda: decoder.pull_cache(request_key(1), ours)) is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    manager.deallocate_cache(cache)
    manager.remove_cache_key(request_key(2))
    assert is_entirely_free(manager)


# ----------------------------------------------------------------------------------------------------- prototype


def test_seed_4_cache_keys_may_be_a_tuple_a_list_or_left_out(manager: CacheManager) -> None:
    manager.allocate_cache(DESC)
    manager.allocate_cache(DESC, ())
    manager.allocate_cache(DESC, [request_key(1), request_key(2)])
    manager.allocate_cache(cache_desc=DESC, cache_keys=(request_key(3),))
    assert (manager.live_caches, manager.live_keys) == (4, 3)


def test_seed_4_the_example_of_the_page(make_datadist: Any) -> None:
    cache_manager = make_datadist(PROMPT_ID, device_bytes=4 << 20).cache_manager
    cache_desc = CacheDesc(1, [2, 1024 * 1024], DataType.DT_FLOAT16)
    cache_keys = [CacheKey(1, req_id=1), CacheKey(1, req_id=2)]
    cache = cache_manager.allocate_cache(cache_desc, cache_keys)
    assert cache.cache_desc is cache_desc
    assert [cache_manager.lookup(key).batch_index for key in cache_keys] == [0, 1]
    assert cache_manager.pool_usage().free_bytes == 0


# -------------------------------------------------------------------------------------------------------- result


def test_seed_5_a_cache_is_returned(manager: CacheManager) -> None:
    first, second = (manager.allocate_cache(DESC) for _ in range(2))
    assert isinstance(first, Cache)
    assert (first.cache_id, second.cache_id) == (1, 2)
    assert first.cache_desc is DESC
    assert first.is_blocks_cache is False
    assert len(set(first.tensor_addrs + second.tensor_addrs)) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("a description", []),
        (CacheKey(1, 1), []),
        (DESC, CacheKey(1, 1)),
        (DESC, None),
        (DESC, {CacheKey(1, 1)}),
        (DESC, iter([CacheKey(1, 1)])),
        (None, ()),
        (DESC, [1]),
        (DESC, [CacheKey(1, 1), None]),
        (DESC, [CacheKeyByIdAndIndex(1, 1)]),
    ],
    ids=[
        "text as description",
        "key as description",
        "key alone",
        "no keys",
        "set of keys",
        "iterator of keys",
        "no description",
        "number as key",
        "None as key",
        "key by id",
    ],
)
def test_seed_6_arguments_of_a_wrong_type_are_refused(manager: CacheManager, arguments: tuple[Any, Any]) -> None:
    before = state_of(manager)
    with pytest.raises((TypeError, ValueError)):
        manager.allocate_cache(*arguments)
    assert state_of(manager) == before


@pytest.mark.parametrize(
    "build",
    [
        lambda: CacheDesc("1", (1, 8), DataType.DT_FLOAT),
        lambda: CacheDesc(-1, (1, 8), DataType.DT_FLOAT),
        lambda: CacheDesc(1, "18", DataType.DT_FLOAT),
        lambda: CacheDesc(1, (1, 8.0), DataType.DT_FLOAT),
        lambda: CacheDesc(1, (1, 2**63), DataType.DT_FLOAT),
        lambda: CacheDesc(1, (1, 8), 0),
        lambda: CacheKey("1", 1),
        lambda: CacheKey(1, -1),
        lambda: CacheKey(1, 2**64),
    ],
)
def test_seed_6_neither_a_description_nor_a_key_is_made_of_wrong_values(build: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        build()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_seed_7_a_key_that_is_bound_already_is_refused(manager: CacheManager, position: int) -> None:
    desc = CacheDesc(1, (3, 64), DataType.DT_UINT8)
    manager.allocate_cache(desc, [request_key(7)])
    keys = [request_key(1), request_key(2), request_key(3)]
    keys[position] = CacheKey(99, req_id=7)
    before = state_of(manager)
    with pytest.raises(LLMException, match="already bound") as refused:
        manager.allocate_cache(desc, keys)
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert state_of(manager) == before


def test_seed_7_a_key_can_be_bound_again_after_it_was_dropped(manager: CacheManager, decoder: CacheManager) -> None:
    ours = decoder.allocate_cache(DESC)
    manager.allocate_cache(DESC, [request_key(7)])
    decoder.pull_cache(request_key(7), ours)
    second = manager.allocate_cache(DESC, [placeholder(), request_key(7)])
    assert repr(manager.lookup(request_key(7))) == repr(CacheKeyByIdAndIndex(PROMPT_ID, second.cache_id, 1))
    manager.remove_cache_key(request_key(7))
    manager.allocate_cache(DESC, [request_key(7)])
    assert (manager.live_caches, manager.live_keys) == (3, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda manager, cache: manager.allocate_cache(DESC, [request_key(5)]),
        lambda manager, cache: manager.deallocate_cache(cache),
        lambda manager, cache: manager.remove_cache_key(request_key(1)),
    ],
    ids=["allocate_cache", "deallocate_cache", "remove_cache_key"],
)
def test_seed_8_a_call_that_cannot_proceed_in_time_is_refused(
    make_datadist: Any, call: Callable[[CacheManager, Cache], object]
) -> None:
    manager = make_datadist(PROMPT_ID, timeout_ms=200).cache_manager
    cache = manager.allocate_cache(DESC)
    manager.allocate_cache(DESC, [request_key(1)])
    before = state_of(manager)
    with held_still(manager):
        assert status_of(lambda: call(manager, cache)) is LLMStatusCode.LLM_TIMEOUT
    assert state_of(manager) == before
    call(manager, cache)
    assert state_of(manager) != before


def test_seed_8_a_pull_that_takes_too_long_is_refused_and_keeps_the_key(
    make_datadist: Any, link: Any, eventually: Any
) -> None:
    # No machine copies so much in a millisecond.
    size = 128 << 20
    desc = CacheDesc(1, (1, size), DataType.DT_UINT8)
    prompt = make_datadist(PROMPT_ID, device_bytes=size, page_shift=20)
    decoder = make_datadist(DECODER_ID, device_bytes=size, page_shift=20, timeout_ms=1)
    link(decoder, prompt)
    manager = prompt.cache_manager
    manager.deallocate_cache(manager.allocate_cache(desc, [request_key(1)]))
    taken: list[Cache] = []

    def allocate_in_time() -> bool:
        try:
            taken.append(decoder.cache_manager.allocate_cache(desc))
        except LLMException as late:
            assert late.status_code is LLMStatusCode.LLM_TIMEOUT
        return bool(taken)

    eventually(allocate_in_time, "the decoder's memory is taken within a millisecond")
    ours = taken[0]
    refusal = status_of(lambda: decoder.cache_manager.pull_cache(request_key(1), ours))
    assert refusal is LLMStatusCode.LLM_TIMEOUT
    assert manager.lookup(request_key(1)) is not None
    assert manager.live_caches == 1
    manager.remove_cache_key(request_key(1))
    assert is_entirely_free(manager)


# --------------------------------------------------------------------------------------------------- constraints


def test_seed_9_each_key_refers_to_one_group_of_kv_tensors(manager: CacheManager, decoder: CacheManager) -> None:
    desc = CacheDesc(4, (3, 16), DataType.DT_INT32)
    cache = manager.allocate_cache(desc, [request_key(number) for number in (30, 10, 20)])
    for tensor, array in enumerate(cache.tensors):
        for slot in range(3):
            array[slot] = 100 * slot + tensor
    ours = decoder.allocate_cache(CacheDesc(4, (1, 16), DataType.DT_INT32))
    for slot, number in enumerate((30, 10, 20)):
        decoder.pull_cache(request_key(number), ours)
        assert [set(array.ravel()) for array in ours.tensors] == [{100 * slot + tensor} for tensor in range(4)]


def test_seed_9_more_keys_than_batch_slots_are_refused(manager: CacheManager) -> None:
    before = state_of(manager)
    for keys in (
        [request_key(1), request_key(2), request_key(3)],
        [request_key(1), request_key(2), placeholder()],
        [request_key(1)] * 3,
    ):
        refusal = status_of(lambda keys=keys: manager.allocate_cache(DESC, keys))
        assert refusal is LLMStatusCode.LLM_PARAM_INVALID
        assert state_of(manager) == before


def test_seed_9_a_batch_of_one_takes_one_key(manager: CacheManager) -> None:
    manager.allocate_cache(CacheDesc(2, (1, 8), DataType.DT_FLOAT), [request_key(1)])
    assert repr(manager.lookup(request_key(1))) == repr(CacheKeyByIdAndIndex(PROMPT_ID, 1, 0))


def test_seed_10_placeholders_leave_their_slot_unkeyed(manager: CacheManager, decoder: CacheManager) -> None:
    desc = CacheDesc(1, (5, 8), DataType.DT_UINT8)
    keys = [placeholder(), request_key(1), placeholder(), placeholder(), request_key(2)]
    cache = manager.allocate_cache(desc, keys)
    for slot in range(5):
        cache.tensors[0][slot] = slot
    assert [found and found.batch_index for found in map(manager.lookup, keys)] == [None, 1, None, None, 4]
    ours = decoder.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_UINT8))
    for number, slot in ((1, 1), (2, 4)):
        decoder.pull_cache(request_key(number), ours)
        assert (ours.tensors[0] == slot).all()
    with pytest.raises(LLMException, match="one of req id and prefix id should contain valid value"):
        decoder.pull_cache(placeholder(), ours)


def test_seed_10_placeholders_hold_no_reference(manager: CacheManager) -> None:
    desc = CacheDesc(1, (4, 8), DataType.DT_UINT8)
    caches = [
        manager.allocate_cache(desc, [placeholder()] * 4),
        manager.allocate_cache(desc, [placeholder(), placeholder(model_id=1), placeholder(model_id=1)]),
        manager.allocate_cache(desc, [placeholder(), request_key(1), placeholder()]),
    ]
    manager.remove_cache_key(placeholder())
    assert (manager.live_caches, manager.live_keys) == (3, 1)
    for cache in caches:
        manager.deallocate_cache(cache)
    assert (manager.live_caches, manager.live_keys) == (1, 1)
    manager.remove_cache_key(request_key(1))
    assert is_entirely_free(manager)


@pytest.mark.parametrize("given", range(5))
def test_seed_10_placeholders_at_the_end_may_be_left_out(manager: CacheManager, given: int) -> None:
    desc = CacheDesc(1, (4, 8), DataType.DT_UINT8)
    for left_out in (True, False):
        keys = [request_key(number) for number in range(given)]
        cache = manager.allocate_cache(desc, keys if left_out else keys + [placeholder()] * (4 - given))
        assert [manager.lookup(key).batch_index for key in keys] == list(range(given))
        manager.deallocate_cache(cache)
        for key in keys:
            assert manager.live_caches == 1
            manager.remove_cache_key(key)
        assert is_entirely_free(manager)


@pytest.mark.parametrize(
    ("numbers", "bound"),
    [
        ((1, 1), {1: 1}),
        ((1, 2, 1), {1: 2, 2: 1}),
        ((1, 1, 1, 1), {1: 3}),
        ((1, 2, 2, 1), {1: 3, 2: 2}),
        ((1, 2, 1, 2), {1: 2, 2: 3}),
        ((None, 1, None, 1), {1: 3}),
    ],
)
def test_seed_11_the_last_of_equal_keys_takes_effect(
    manager: CacheManager, decoder: CacheManager, numbers: tuple[int | None, ...], bound: dict[int, int]
) -> None:
    cache = manager.allocate_cache(
        CacheDesc(1, (len(numbers), 8), DataType.DT_UINT8),
        [placeholder() if number is None else request_key(number) for number in numbers],
    )
    for slot in range(len(numbers)):
        cache.tensors[0][slot] = slot
    manager.deallocate_cache(cache)
    assert manager.live_keys == len(bound)
    ours = decoder.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_UINT8))
    for number, slot in bound.items():
        assert manager.live_caches == 1
        found = manager.lookup(request_key(number))
        assert found is not None and found.batch_index == slot
        decoder.pull_cache(request_key(number), ours)
        assert (ours.tensors[0] == slot).all()
    assert is_entirely_free(manager)


def test_seed_11_keys_that_differ_in_the_model_are_not_duplicates(manager: CacheManager) -> None:
    cache = manager.allocate_cache(DESC, [request_key(1, model_id=0), request_key(1, model_id=1)])
    assert [manager.lookup(request_key(1, model_id=model)).batch_index for model in (0, 1)] == [0, 1]
    manager.deallocate_cache(cache)
    manager.remove_cache_key(request_key(1, model_id=0))
    assert manager.live_caches == 1
    manager.remove_cache_key(request_key(1, model_id=1))
    assert is_entirely_free(manager)


@pytest.mark.parametrize("placement", list(Placement))
def test_seed_12_the_pool_must_be_configured_before(make_datadist: Any, placement: Placement) -> None:
    only_the_other = {"device_bytes": None, "host_bytes": 1 << 20} if placement is Placement.DEVICE else {}
    manager = make_datadist(PROMPT_ID, **only_the_other).cache_manager
    before = state_of(manager)
    desc = CacheDesc(1, (1, 8), DataType.DT_UINT8, placement)
    with pytest.raises(LLMException, match="you should config memory pool firstly") as refused:
        manager.allocate_cache(desc, [request_key(1)])
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert state_of(manager) == before
    there = next(one for one in Placement if one is not placement)
    manager.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_UINT8, there), [request_key(1)])
    assert manager.live_caches == 1
