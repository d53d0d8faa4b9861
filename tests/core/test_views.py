"""``Cache.tensors``: the cache's own memory as NumPy arrays, each of which keeps it where it is."""

from __future__ import annotations

import gc
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmdd import CacheDesc, CacheKey, DataType, LLMException, LLMStatusCode, Placement

NUMPY_TYPES = {
    DataType.DT_FLOAT: np.float32,
    DataType.DT_FLOAT16: np.float16,
    DataType.DT_INT8: np.int8,
    DataType.DT_INT32: np.int32,
    DataType.DT_UINT8: np.uint8,
    DataType.DT_INT16: np.int16,
    DataType.DT_UINT16: np.uint16,
    DataType.DT_UINT32: np.uint32,
    DataType.DT_INT64: np.int64,
    DataType.DT_UINT64: np.uint64,
    DataType.DT_DOUBLE: np.float64,
    DataType.DT_BOOL: np.bool_,
    DataType.DT_STRING: np.dtype("S16"),
    DataType.DT_BF16: ml_dtypes.bfloat16,
}
DESC = CacheDesc(2, (2, 32), DataType.DT_INT32)


def all_free(store: Any) -> bool:
    store.check()
    usage = store.pool_usage()
    return usage.free_bytes == usage.total_bytes and store.live_caches == 0


def status_of(call: Any) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        call()
    return refused.value.status_code


def test_every_data_type_has_its_numpy_type() -> None:
    assert set(NUMPY_TYPES) == set(DataType)


@pytest.mark.parametrize("data_type", list(DataType))
def test_shape_and_type_are_the_descriptors(make_store: Any, data_type: DataType) -> None:
    store = make_store()
    cache = store.allocate_cache(CacheDesc(3, [2, 3, 5], data_type))
    tensors = cache.tensors
    assert [(tensor.shape, tensor.dtype) for tensor in tensors] == [((2, 3, 5), np.dtype(NUMPY_TYPES[data_type]))] * 3
    assert [tensor.nbytes for tensor in tensors] == [cache.cache_desc.size] * 3
    assert all(tensor.flags.c_contiguous and tensor.flags.writeable for tensor in tensors)
    tensors[1][:] = np.ones((2, 3, 5)).astype(NUMPY_TYPES[data_type])
    assert (cache.tensors[1] == np.ones((2, 3, 5)).astype(NUMPY_TYPES[data_type])).all()


def test_arrays_lie_where_the_cache_does(make_store: Any) -> None:
    store = make_store(host_pool=(1 << 16, 12))
    for placement in Placement:
        cache = store.allocate_cache(CacheDesc(2, (2, 32), DataType.DT_INT32, placement))
        assert [tensor.ctypes.data for tensor in cache.tensors] == cache.tensor_addrs


def test_two_looks_see_the_same_memory(make_store: Any) -> None:
    cache = make_store().allocate_cache(DESC)
    first, second = cache.tensors, cache.tensors
    first[0][1, 3] = 41
    second[0][1, 3] += 1
    assert first[0][1, 3] == 42
    assert np.shares_memory(first[0], second[0])
    assert not np.shares_memory(first[0], first[1])


@pytest.mark.parametrize(
    "derive",
    [
        lambda tensors: tensors,
        lambda tensors: tensors[1],
        lambda tensors: tensors[0][1, 4:9],
        lambda tensors: tensors[0].reshape(-1).view(np.uint8)[::3],
        lambda tensors: memoryview(tensors[0])[1:],
        lambda tensors: tensors[0].flat,
        lambda tensors: [tensors[1][0]],
    ],
    ids=["all", "one", "slice", "reinterpreted", "memoryview", "iterator", "row"],
)
def test_an_array_and_whatever_is_made_of_it_keeps_the_memory(make_store: Any, derive: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC)
    held = derive(cache.tensors)
    in_use = store.pool_usage().free_bytes
    store.deallocate_cache(cache)
    del cache
    gc.collect()
    store.check()
    assert (store.live_caches, store.pool_usage().free_bytes) == (1, in_use)
    del held
    assert all_free(store)


def test_a_kept_array_never_sees_another_cache(make_store: Any) -> None:
    store = make_store(device_pool=(4 * 4096, 12))
    cache = store.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_UINT8))
    array = cache.tensors[0]
    array[:] = 7
    store.deallocate_cache(cache)
    others = [store.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_UINT8)) for _ in range(3)]
    for other in others:
        other.tensors[0][:] = 9
    assert status_of(lambda: store.allocate_cache(CacheDesc(1, (1, 1), DataType.DT_UINT8))) is (
        LLMStatusCode.LLM_OUT_OF_MEMORY
    )
    assert (array == 7).all()
    array[:] = 8
    assert all((other.tensors[0] == 9).all() for other in others)
    del array
    store.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_UINT8))


def test_arrays_do_not_keep_keys(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC, [CacheKey(1, 1)])
    arrays = cache.tensors
    store.deallocate_cache(cache)
    store.remove_cache_key(CacheKey(1, 1))
    assert store.lookup(CacheKey(1, 1)) is None
    store.allocate_cache(DESC, [CacheKey(1, 1)])
    assert (store.live_caches, store.live_keys) == (2, 1)
    del arrays
    assert store.live_caches == 1


def test_arrays_are_made_as_long_as_a_key_holds_the_memory(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC, [CacheKey(1, 1)])
    store.deallocate_cache(cache)
    cache.tensors[0][:] = 3
    assert (cache.tensors[0] == 3).all()
    store.remove_cache_key(CacheKey(1, 1))
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert all_free(store)


def test_no_array_is_made_of_a_cache_that_nothing_refers_to(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC)
    kept = cache.tensors
    store.deallocate_cache(cache)
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    # Nor of the memory's next tenant.
    del kept
    successor = store.allocate_cache(DESC)
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert cache.tensor_addrs == []
    assert len(successor.tensors) == 2


def test_arrays_outlive_the_store(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC)
    array = cache.tensors[1]
    array[:] = 5
    store.close()
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_ENGINE_FINALIZED
    assert cache.tensor_addrs == []
    del store
    gc.collect()
    array[0] = 6
    assert array.sum() == 32 * 11
    del array
    gc.collect()


def test_arrays_outlive_their_instance(make_datadist: Any) -> None:
    datadist = make_datadist(1)
    cache = datadist.cache_manager.allocate_cache(DESC)
    array = cache.tensors[0]
    array[:] = 5
    datadist.finalize()
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_ENGINE_FINALIZED
    assert array.sum() == 320
    config = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": '{"memory_size": 262144}'}
    datadist.init(config)
    again = datadist.cache_manager.allocate_cache(DESC)
    assert (again.cache_id, cache.cache_id) == (1, 1)
    again.tensors[0][:] = 6
    assert array.sum() == 320
    assert status_of(lambda: cache.tensors) is LLMStatusCode.LLM_ENGINE_FINALIZED
    datadist.cache_manager.deallocate_cache(cache)
    assert datadist.cache_manager.live_caches == 1


def test_an_array_may_be_dropped_while_the_caches_are_held_still(make_store: Any) -> None:
    """Python drops arrays wherever it likes: doing so must not wait for the store's lock."""
    store = make_store()
    cache = store.allocate_cache(DESC)
    arrays = [cache.tensors]
    store.deallocate_cache(cache)
    dropper = threading.Thread(target=arrays.clear)
    with store.paused():
        dropper.start()
        dropper.join(30)
        assert not dropper.is_alive()
    assert all_free(store)


def test_arrays_in_a_reference_cycle_go_with_it(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(DESC)
    cycle: dict[str, Any] = {"arrays": cache.tensors, "cache": cache}
    cycle["itself"] = cycle
    store.deallocate_cache(cache)
    del cache, cycle
    gc.collect()
    assert all_free(store)


def test_arrays_of_a_cache_in_pieces(make_store: Any) -> None:
    store = make_store(device_pool=(16 * 4096, 12))
    pages = [store.allocate_cache(CacheDesc(1, (1, 4096), DataType.DT_INT8)) for _ in range(16)]
    for page in pages[::2]:
        store.deallocate_cache(page)
    cache = store.allocate_cache(CacheDesc(8, (2, 512), DataType.DT_INT32))
    tensors = cache.tensors
    for number, tensor in enumerate(tensors):
        tensor[:] = number
    assert [tensor.ctypes.data for tensor in tensors] == cache.tensor_addrs
    assert [int(tensor.sum()) for tensor in cache.tensors] == [1024 * number for number in range(8)]
    for page in pages[1::2]:
        page.tensors[0][:] = -1
    assert [int(tensor.sum()) for tensor in tensors] == [1024 * number for number in range(8)]


def test_batch_slots_follow_each_other(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(CacheDesc(1, (1, 3, 4), DataType.DT_INT32, batch_dim_index=1))
    cache.tensors[0][:] = np.arange(12).reshape(1, 3, 4)
    store.copy_cache(cache, cache, dst_batch_index=0, src_batch_index=2)
    assert cache.tensors[0].tolist() == [[[8, 9, 10, 11], [4, 5, 6, 7], [8, 9, 10, 11]]]


def test_a_cache_is_not_made_by_hand(make_store: Any) -> None:
    cache = make_store().allocate_cache(DESC)
    with pytest.raises(TypeError, match="allocate_cache"):
        type(cache)()
