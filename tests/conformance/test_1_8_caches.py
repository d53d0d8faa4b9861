"""api §1.8: ``Cache``, ``MemInfo``, ``KvCache``."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from llmdd import BlocksCacheKey, Cache, CacheDesc, CacheKey, DataType, KvCache, MemInfo, Memtype, Placement

DESC = CacheDesc(2, (3, 8), DataType.DT_INT32)
HOST_DESC = CacheDesc(2, (3, 8), DataType.DT_INT32, Placement.HOST)


def arrays(count: int = 2) -> list[np.ndarray]:
    return [np.zeros((3, 8), np.int32) for _ in range(count)]


def addresses(memory: list[np.ndarray]) -> list[int]:
    return [array.ctypes.data for array in memory]


def test_properties(make_datadist: Any) -> None:
    """api §1.8: ``cache_id``, ``cache_desc``, ``tensor_addrs``, ``is_blocks_cache``."""
    manager = make_datadist(1).cache_manager
    cache = manager.allocate_cache(DESC)
    assert (cache.cache_id, cache.is_blocks_cache) == (1, False)
    assert repr(cache.cache_desc) == repr(DESC)
    assert len(cache.tensor_addrs) == 2 and {type(address) for address in cache.tensor_addrs} == {int}
    blocks = manager.allocate_blocks_cache(DESC, BlocksCacheKey(1))
    assert (blocks.cache_id, blocks.is_blocks_cache, len(blocks.tensor_addrs)) == (2, True, 2)


def test_tensor_addrs_are_where_the_memory_is(make_datadist: Any) -> None:
    """api §1.8: ``tensor_addrs`` are the addresses of the tensors."""
    cache = make_datadist(1).cache_manager.allocate_cache(DESC)
    assert [tensor.ctypes.data for tensor in cache.tensors] == cache.tensor_addrs


@pytest.mark.parametrize("name", ["cache_id", "cache_desc", "tensor_addrs", "is_blocks_cache"])
def test_properties_are_read_only(make_datadist: Any, name: str) -> None:
    """api §1.8: they are properties."""
    cache = make_datadist(1).cache_manager.allocate_cache(DESC)
    with pytest.raises(AttributeError):
        setattr(cache, name, 1)


def test_repr(make_datadist: Any) -> None:
    """api §1.8: the text of ``repr``."""
    manager = make_datadist(1).cache_manager
    assert repr(manager.allocate_cache(DESC)) == "Cache(cache_id = 1, device_tensor_addrs = 2, is_blocks_cache = False)"
    blocks = manager.allocate_blocks_cache(DESC)
    assert repr(blocks) == "Cache(cache_id = 2, device_tensor_addrs = 2, is_blocks_cache = True)"


def test_create_cpu_cache() -> None:
    """api §1.8: ``create_cpu_cache`` wraps caller memory, id -1, counted as B."""
    memory = arrays()
    cache = Cache.create_cpu_cache(cache_desc=HOST_DESC, addrs=addresses(memory))
    assert (cache.cache_id, cache.is_blocks_cache) == (-1, True)
    assert cache.tensor_addrs == addresses(memory)
    assert repr(cache.cache_desc) == repr(HOST_DESC)


def test_no_finaliser(make_datadist: Any) -> None:
    """api §1.8: dropping the Python object releases nothing."""
    manager = make_datadist(1).cache_manager
    cache = manager.allocate_cache(DESC, [CacheKey(1, 1)])
    before = manager.pool_usage()
    del cache
    gc.collect()
    assert manager.pool_usage() == before
    assert (manager.live_caches, manager.live_keys) == (1, 1)


def test_mem_info() -> None:
    """api §1.8: ``MemInfo(mem_type, addr, size)``: properties and ``str``."""
    info = MemInfo(mem_type=Memtype.MEM_TYPE_DEVICE, addr=4096, size=10)
    assert (info.mem_type, info.addr, info.size) == (Memtype.MEM_TYPE_DEVICE, 4096, 10)
    assert str(info) == "MemInfo(mem_type=Memtype.MEM_TYPE_DEVICE, addr=4096, size=10)"
    for name in ("mem_type", "addr", "size"):
        with pytest.raises(AttributeError):
            setattr(info, name, getattr(info, name))


def test_kv_cache() -> None:
    """api §1.8: ``KvCache.create_cpu_cache`` takes flat or nested addresses; its properties."""
    memory = arrays()
    for addrs in (addresses(memory), [addresses(memory)]):
        cache = KvCache.create_cpu_cache(HOST_DESC, addrs)
        assert isinstance(cache, KvCache) and isinstance(cache.cache_id, int)
        assert repr(cache.cache_desc) == repr(HOST_DESC)
        assert np.ravel(cache.per_device_tensor_addrs).tolist() == addresses(memory)
