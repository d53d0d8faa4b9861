"""What the bulk calls are given: every kind of array and sequence is read right, or refused before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMDataDist,
    LLMException,
    LLMStatusCode,
)

DESC = CacheDesc(1, (4, 8), DataType.DT_UINT8)
INTEGER_TYPES = [np.dtype(name) for name in ("i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8")]


class Subclass(np.ndarray):
    """One that answers wrongly whatever it is asked."""

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        raise AssertionError("a subclass was asked for its type")

    def __getitem__(self, item: Any) -> Any:
        raise AssertionError("a subclass was asked for an item")


class Numbers(Sequence[int]):
    """A sequence of a program's own."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.numbers[index]


class Whole:
    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


class AsArray:
    """As torch's tensors offer it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([1, 3])


def strided(numbers: Sequence[int]) -> np.ndarray:
    memory = np.full(2 * len(numbers), 99)
    memory[::2] = numbers
    return memory[::2]


def read_only(numbers: Sequence[int]) -> np.ndarray:
    array = np.array(numbers)
    array.flags.writeable = False
    return array


def unaligned(numbers: Sequence[int]) -> np.ndarray:
    memory = np.zeros(8 * len(numbers) + 1, np.uint8)
    array = memory[1:].view(np.int64)
    array[:] = numbers
    return array


READ_RIGHT: dict[str, Any] = {
    **{f"{dtype.byteorder}{dtype.name}": np.array([1, 3], dtype) for dtype in INTEGER_TYPES},
    "strided": strided([1, 3]),
    "reversed": np.array([3, 1])[::-1],
    "read-only": read_only([1, 3]),
    "unaligned": unaligned([1, 3]),
    "subclass": np.array([1, 3]).view(Subclass),
    "column": np.array([[1, 9], [3, 9]])[:, 0],
    "list": [1, 3],
    "tuple": (1, 3),
    "range": range(1, 4, 2),
    "sequence": Numbers(1, 3),
    "NumPy's numbers": [np.int8(1), np.uint64(3)],
    "__index__": [Whole(1), 3],
    "bool": [True, 3],
    "memoryview": memoryview(bytes([1, 3])),
    "__array__": AsArray(),
}

REFUSED: dict[str, tuple[Any, type[Exception]]] = {
    "None": (None, AttributeError),
    "number": (1, TypeError),
    "text": ("12", TypeError),
    "bytes": (b"12", TypeError),
    "set": ({1, 3}, TypeError),
    "dict": ({1: 3}, TypeError),
    "iterator": (iter([1, 3]), TypeError),
    "float array": (np.array([1.0, np.nan]), TypeError),
    "empty float array": (np.array([]), TypeError),
    "bool array": (np.array([True, False]), TypeError),
    "object array": (np.array([1, None], dtype=object), TypeError),
    "record array": (np.zeros(2, [("id", "i8")]), TypeError),
    "text array": (np.array(["1", "3"]), TypeError),
    "time array": (np.zeros(2, "M8[s]"), TypeError),
    "masked array": (np.ma.array([1, 3], mask=[0, 1]), TypeError),
    "two dimensions": (np.array([[1, 3]]), ValueError),
    "no dimension": (np.array(1), ValueError),
    "negative": (np.array([1, -1]), ValueError),
    "negative int8": (np.array([-128], np.int8), ValueError),
    "float": ([1, 3.0], TypeError),
    "NaN": ([float("nan")], TypeError),
    "None inside": ([1, None], TypeError),
    "text inside": ([1, "3"], TypeError),
    "list inside": ([[1], [3]], TypeError),
    "negative inside": ([1, -3], ValueError),
    "too large": ([1, 2**64], ValueError),
    "much too large": ([10**40], ValueError),
}


def named(cases: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("given", cases.values(), ids=cases.keys())


@named(READ_RIGHT)
def test_request_ids_are_read(manager: CacheManager, given: Any) -> None:
    manager.allocate_cache(DESC, [CacheKey(1, number) for number in (1, 2, 3)])
    assert manager.lookup_many(given).batch_indices.tolist() == [0, 2]
    assert manager.remove_cache_keys(given).tolist() == [True, True]
    assert manager.lookup_many([1, 2, 3]).cache_ids.tolist() == [0, 1, 0]


@named(READ_RIGHT)
def test_cache_ids_are_read(manager: CacheManager, given: Any) -> None:
    caches = [manager.allocate_cache(DESC) for _ in range(3)]
    assert manager.deallocate_many(given).tolist() == [True, True]
    assert [bool(cache.tensor_addrs) for cache in caches] == [False, True, False]


@named(READ_RIGHT)
def test_batch_indices_and_blocks_are_read(trio: Any, empty: Any, slots: Any, given: Any) -> None:
    trio.one.publish(1, 2, 3)
    cache = empty(trio.puller)
    assert trio.puller.pull_many(np.array([1, 2]), cache, given, cluster_id=1).tolist() == [0, 0]
    assert slots(cache) == [0, 1, 0, 2]
    blocks = trio.puller.allocate_blocks_cache(CacheDesc(2, (4, 4), DataType.DT_UINT8))
    assert trio.puller.pull_many([3], blocks, block_tables=[given], cluster_id=1).tolist() == [0]
    assert [slots(blocks)[block] for block in (1, 3)] == [3, 3]


@named(REFUSED)
def test_other_things_are_refused(trio: Any, empty: Any, given: tuple[Any, type[Exception]]) -> None:
    argument, error = given
    manager, puller = trio.one.manager, trio.puller
    trio.one.publish(1, 3)
    target = empty(puller)
    blocks = puller.allocate_blocks_cache(CacheDesc(2, (4, 4), DataType.DT_UINT8))
    calls: dict[str, Callable[[], object]] = {
        "cache_keys": lambda: manager.lookup_many(argument),
        " cache_keys": lambda: manager.remove_cache_keys(argument),
        "caches": lambda: manager.deallocate_many(argument),
        "  cache_keys": lambda: puller.pull_many(argument, target, cluster_id=1),
        "batch_indices": lambda: puller.pull_many([1, 3], target, argument, cluster_id=1),
        "block_tables[1]": lambda: puller.pull_many([1, 3], blocks, block_tables=[[0], argument], cluster_id=1),
    }
    for name, call in calls.items():
        if name == "batch_indices" and argument is None:
            continue  # not given
        with pytest.raises(error) as refused:
            call()
        assert type(refused.value) is error or error is AttributeError
        assert name.strip() in str(refused.value)
    assert trio.one.bound(1, 3) == [True, True]
    assert not target.tensors[0].any()


def test_keys_of_other_kinds_are_refused(manager: CacheManager) -> None:
    for given in ([CacheKey(1, 1), 1], [1, CacheKey(1, 1)], [BlocksCacheKey(1)], [CacheKeyByIdAndIndex(1, 1)]):
        for call in (manager.lookup_many, manager.remove_cache_keys):
            with pytest.raises(TypeError, match="cache_keys inner type only support"):
                call(given)
    cache = manager.allocate_cache(DESC)
    for wrong in ([cache, 1], [1, cache], [CacheKey(1, 1)], [cache, None]):
        with pytest.raises(TypeError, match="caches inner type only support"):
            manager.deallocate_many(wrong)
    assert manager.live_caches == 1


def test_a_model_is_for_request_ids(manager: CacheManager) -> None:
    for call in (manager.lookup_many, manager.remove_cache_keys):
        with pytest.raises(LLMException, match="model_id is 1"):
            call([CacheKey(1, 1)], model_id=1)
        with pytest.raises(TypeError, match="model_id"):
            call([1], model_id=None)
        with pytest.raises(ValueError, match="model_id"):
            call([1], model_id=-1)


@pytest.mark.parametrize("flag", [None, 1, "yes", np.True_])
def test_all_or_nothing_is_a_bool(manager: CacheManager, flag: Any) -> None:
    calls = (
        lambda: manager.remove_cache_keys([1], all_or_nothing=flag),
        lambda: manager.deallocate_many([1], all_or_nothing=flag),
        lambda: manager.pull_many([], manager.allocate_cache(DESC), all_or_nothing=flag),
    )
    for call in calls:
        with pytest.raises(TypeError, match="all_or_nothing only support"):
            call()


@pytest.mark.parametrize(
    "nothing",
    [[], (), range(0), np.array([], int), np.zeros(0, ">u2"), Numbers()],
    ids=["list", "tuple", "range", "array", "array of another byte order", "sequence of a class of its own"],
)
def test_nothing_is_fine(manager: CacheManager, nothing: Any) -> None:
    cache = manager.allocate_cache(DESC)
    blocks = manager.allocate_blocks_cache(DESC)
    for all_or_nothing in (False, True):
        answers = (
            *manager.lookup_many(nothing),
            manager.remove_cache_keys(nothing, all_or_nothing=all_or_nothing),
            manager.deallocate_many(nothing, all_or_nothing=all_or_nothing),
            manager.pull_many(nothing, cache, cluster_id=9, all_or_nothing=all_or_nothing),
            manager.pull_many(nothing, [], nothing, cluster_id=9, all_or_nothing=all_or_nothing),
            manager.pull_many(nothing, blocks, block_tables=[], cluster_id=9, all_or_nothing=all_or_nothing),
            manager.pull_many(nothing, blocks, block_tables=np.zeros((0, 3), int), cluster_id=9),
        )
        assert [(answer.shape, answer.dtype) for answer in answers] == [
            ((0,), np.dtype(name)) for name in ("i8", "u4", "?", "?", "i8", "i8", "i8", "i8")
        ]


PULLS_REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no cluster": ({"cache_keys": [1]}, AttributeError, "cluster_id is needed"),
    "cluster type": ({"cache_keys": [1], "cluster_id": "1"}, TypeError, "cluster_id"),
    "cluster range": ({"cache_keys": [1], "cluster_id": -1}, ValueError, "cluster_id"),
    "cluster of keys": ({"cluster_id": 1}, LLMException, "cluster_id and model_id are for request ids"),
    "model of keys": ({"model_id": 1}, LLMException, "cluster_id and model_id are for request ids"),
    "blocks key": ({"cache_keys": [BlocksCacheKey(1)]}, TypeError, "cache_keys inner type"),
    "mixed": ({"cache_keys": [CacheKey(1, 1), 3]}, TypeError, "cache_keys inner type"),
    "no cache": ({"cache": None}, AttributeError, "cache only support"),
    "cache type": ({"cache": 1}, TypeError, "cache only support"),
    "cache types": ({"cache": [1, None]}, TypeError, "cache inner type"),
    "caches": ({"cache": []}, LLMException, "0 caches were given for 2 cache_keys"),
    "indices": ({"batch_indices": [0]}, LLMException, "1 batch_indices were given for 2 cache_keys"),
    "index range": ({"batch_indices": np.array([0, 2**32])}, ValueError, "batch_indices[1]"),
    "index list range": ({"batch_indices": [0, 2**32]}, ValueError, "batch_indices[1]"),
    "same slot": ({"batch_indices": [2, 2]}, LLMException, "batch slot 2 of cache 1 is the target of items 0 and 1"),
    "size type": ({"size": 1.0}, TypeError, "size"),
    "size range": ({"size": 2**63}, ValueError, "size"),
    "size 0": ({"size": 0}, LLMException, "size is 0"),
    "tables too": ({"block_tables": [[0], [1]], "batch_indices": [0, 1]}, LLMException, "both were given"),
    "tables": ({"block_tables": [[0], [1]]}, LLMException, "cache should be blocks cache"),
    "few tables": ({"block_tables": [[0]]}, LLMException, "1 block_tables were given for 2 cache_keys"),
    "flat tables": ({"block_tables": np.array([0, 1])}, ValueError, "block_tables should have two dimensions"),
    "float tables": ({"block_tables": np.zeros((2, 2))}, TypeError, "block_tables"),
    "table type": ({"block_tables": [0, 1]}, TypeError, "block_tables[0]"),
    "tables type": ({"block_tables": 1}, TypeError, "block_tables"),
}


@pytest.mark.parametrize("case", PULLS_REFUSED.values(), ids=PULLS_REFUSED.keys())
@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_pulls_that_contradict_themselves(
    trio: Any, empty: Any, case: tuple[dict[str, Any], type[Exception], str], all_or_nothing: bool
) -> None:
    arguments, error, fragment = case
    trio.one.publish(1, 3)
    target = empty(trio.puller)
    call = {"cache_keys": [CacheKey(1, 1), CacheKey(1, 3)], "cache": target, "all_or_nothing": all_or_nothing}
    with pytest.raises(error) as refused:
        trio.puller.pull_many(**(call | arguments))
    assert fragment in str(refused.value)
    if error is LLMException:
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID  # type: ignore[attr-defined]
    assert trio.one.bound(1, 3) == [True, True]
    assert not target.tensors[0].any()


def test_blocks_caches_take_tables(trio: Any) -> None:
    blocks = trio.puller.allocate_blocks_cache(DESC)
    slots = trio.puller.allocate_cache(DESC)
    keys = [CacheKey(1, 1), CacheKey(1, 3)]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cache": blocks}, "cache can not be blocks cache"),
        ({"cache": [slots, blocks]}, "cache can not be blocks cache"),
        ({"cache": [blocks, slots], "block_tables": [[0], [1]]}, "cache should be blocks cache"),
        ({"cache": blocks, "block_tables": [[0], [1]], "size": 4}, "size is 4"),
        ({"cache": blocks, "block_tables": [[0, 1], [2, 1]]}, "block 1 of cache 1 is the target of items 0 and 1"),
        ({"cache": blocks, "block_tables": [[0], [2, 3, 2]]}, "block 2 of cache 1 is the target of items 1 and 1"),
        ({"cache": [blocks] * 2, "block_tables": [[3], [3]]}, "block 3 of cache 1 is the target of items 0 and 1"),
    ]
    for arguments, fragment in wrong:
        with pytest.raises(LLMException, match=fragment) as refused:
            trio.puller.pull_many(keys, **arguments)
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_remote_mode_names_slots_by_id(make_trio: Any, slots: Any, empty: Any) -> None:
    trio = make_trio(remote_accessible=True)
    published = trio.one.manager.allocate_cache(CacheDesc(2, (2, 8), DataType.DT_UINT8), [CacheKey(1, 1)])
    for tensor in published.tensors:
        tensor[:] = [[5] * 8, [6] * 8]
    target = empty(trio.puller)
    for wrong in ([1], np.array([1]), [CacheKey(1, 1)], (CacheKeyByIdAndIndex(1, 1), CacheKey(1, 1))):
        with pytest.raises(TypeError, match="CacheKeyByIdAndIndex"):
            trio.puller.pull_many(wrong, target, **({"cluster_id": 1} if isinstance(wrong, np.ndarray) else {}))
    keys = [CacheKeyByIdAndIndex(1, published.cache_id, index) for index in (1, 0)]
    assert trio.puller.pull_many(keys, target).tolist() == [0, 0]
    assert slots(target) == [6, 5, 0, 0]
    assert trio.one.bound(1) == [False]
    trio.one.publish(7)
    blocks = trio.puller.allocate_blocks_cache(CacheDesc(2, (4, 8), DataType.DT_UINT8))
    assert trio.puller.pull_many(np.array([7]), blocks, block_tables=[[2]], cluster_id=1).tolist() == [0]
    assert slots(blocks)[2] == 7


def test_a_list_that_changes_meanwhile(manager: CacheManager) -> None:
    """What was given is taken as it was when the call began."""
    given: list[Any] = []

    class Clears:
        def __index__(self) -> int:
            given.clear()
            return 2

    manager.allocate_cache(DESC, [CacheKey(1, number) for number in (1, 2, 3)])
    given[:] = [1, Clears(), 3]
    assert manager.lookup_many(given).batch_indices.tolist() == [0, 1, 2]
    given[:] = [1, Clears(), 3]
    assert manager.remove_cache_keys(given).tolist() == [True, True, True]


def test_an_argument_that_finalizes(make_datadist: Any) -> None:
    calls: list[Callable[[CacheManager, Cache, Any], object]] = [
        lambda manager, _, number: manager.lookup_many([number]),
        lambda manager, _, number: manager.remove_cache_keys([number]),
        lambda manager, _, number: manager.deallocate_many([number]),
        lambda manager, cache, number: manager.pull_many([1], cache, [number], cluster_id=2),
    ]
    for call in calls:
        datadist: LLMDataDist = make_datadist(1)

        class Finalizes:
            def __init__(self, datadist: LLMDataDist) -> None:
                self.datadist = datadist

            def __index__(self) -> int:
                self.datadist.finalize()
                return 1

        cache = datadist.cache_manager.allocate_cache(DESC, [CacheKey(1, 1)])
        with pytest.raises(LLMException) as refused:
            call(datadist.cache_manager, cache, Finalizes(datadist))
        assert refused.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED


def test_a_manager_that_was_finalized(make_datadist: Any) -> None:
    datadist = make_datadist(1)
    manager = datadist.cache_manager
    cache = manager.allocate_cache(DESC)
    datadist.finalize()
    for call in (
        lambda: manager.lookup_many(None),
        lambda: manager.remove_cache_keys(None),
        lambda: manager.deallocate_many(None),
        lambda: manager.pull_many(None, cache),
    ):
        with pytest.raises(LLMException) as refused:
            call()
        assert refused.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED
