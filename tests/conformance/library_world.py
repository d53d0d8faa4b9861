"""The library, through its public API alone."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llmdd.spec import values

import llmdd
from conformance.world import DATADIST_METHODS, Node, Refusal, Task, World, pattern

PATIENCE_S = 60.0

#: From <linux/mman.h>: memory counts when it is touched.
MAP_NORESERVE = 0x4000

CONTRACTED = (llmdd.LLMException, AttributeError, TypeError, ValueError, RuntimeError)


class Synchronizer(llmdd.LayerSynchronizer):
    """Asks a function."""

    def __init__(self, is_ready: Callable[[int, int | None], Any]) -> None:
        self.is_ready = is_ready

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return self.is_ready(layer_index, timeout_in_millis)


class LibraryTask(Task):
    """A task of the library."""

    def __init__(self, task: llmdd.CacheTask) -> None:
        self.task = task

    def synchronize(self, *arguments: Any) -> str:
        return _answer(lambda: _plain(self.task.synchronize(*arguments)))

    def get_results(self, *arguments: Any) -> list[str]:
        return _answer(lambda: _plain(self.task.get_results(*arguments)))


class LibraryNode(Node):
    """An instance of the library."""

    def __init__(self, cluster_id: int, role: str) -> None:
        self.cluster_id = cluster_id
        self.datadist = llmdd.LLMDataDist(llmdd.LLMRole[role], cluster_id)
        self.manager: llmdd.CacheManager | None = None
        self.former_manager: llmdd.CacheManager | None = None
        self.memory: dict[int, mmap.mmap] = {}

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        owner = llmdd.LLMDataDist if method in DATADIST_METHODS else llmdd.CacheManager
        assert hasattr(owner, method), f"{owner.__name__} has no {method}"  # no AttributeError of the contract
        return _answer(lambda: self._call(method, arguments, keywords))

    def _call(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        called_on = self.datadist if method in DATADIST_METHODS else self.datadist.cache_manager
        if method == "switch_role":  # where alone a text means a role
            arguments = tuple(_role(argument) for argument in arguments)
            keywords = {name: _role(value) for name, value in keywords.items()}
        answer = _call_with_plain_values(called_on, method, arguments, keywords)
        if method == "init":
            self.manager = self.datadist.cache_manager
        elif method == "finalize":
            self.manager, self.former_manager = None, self.manager or self.former_manager
        return answer

    def transfer_cache_async(self, src_cache: Any, layer_synchronizer: Any, *arguments: Any, **keywords: Any) -> Task:
        if callable(layer_synchronizer):
            layer_synchronizer = Synchronizer(layer_synchronizer)
        task = self.call("transfer_cache_async", src_cache, layer_synchronizer, *arguments, **keywords)
        return LibraryTask(task)

    def call_former_manager(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return _answer(lambda: _call_with_plain_values(self.former_manager, method, arguments, keywords))

    @property
    def listen_address(self) -> values.Address | None:
        return self.datadist.listen_address

    def linked(self) -> tuple[int, ...]:
        return tuple(sorted(self.datadist.cache_manager.peers))

    def lookup(self, key: Any) -> values.CacheKeyByIdAndIndex | None:
        return self.call("lookup", key)

    def usage(self, placement: str = "DEVICE") -> tuple[int, int, int]:
        return tuple(_answer(lambda: self.datadist.cache_manager.pool_usage(llmdd.Placement[placement])))

    def live_caches(self) -> int:
        return _answer(lambda: self.datadist.cache_manager.live_caches)

    def live_keys(self) -> int:
        return _answer(lambda: self.datadist.cache_manager.live_keys)

    def check(self) -> None:
        self.datadist.cache_manager.check()

    def tensor_addrs(self, cache: llmdd.Cache) -> list[int]:
        return cache.tensor_addrs

    def contents(self, cache: llmdd.Cache) -> list[bytes]:
        return _answer(lambda: [tensor.tobytes() for tensor in cache.tensors])

    def write_tensor(self, cache: llmdd.Cache, tensor: int, content: bytes) -> None:
        octets = cache.tensors[tensor].reshape(-1).view(np.uint8)
        octets[: len(content)] = np.frombuffer(content, np.uint8)

    def fill(self, cache: llmdd.Cache, seed: int) -> llmdd.Cache:
        for number, tensor in enumerate(cache.tensors):
            octets = tensor.reshape(-1).view(np.uint8)
            octets[:] = np.frombuffer(pattern(seed, number, octets.size), np.uint8)
        return cache

    def own_memory(self, size: int) -> int:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.memory[address] = memory
        return address

    def free_memory(self, address: int) -> None:
        self.memory.pop(address).close()

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def write(self, address: int, content: bytes) -> None:
        ctypes.memmove(address, content, len(content))

    def create_cpu_cache(self, desc: Any, addrs: Any) -> Any:
        return _answer(lambda: llmdd.Cache.create_cpu_cache(_translated(desc), addrs))


class LibraryWorld(World):
    """Instances of the library in this process."""

    name = "library"

    def _start(self, cluster_id: int, role: str) -> Node:
        return LibraryNode(cluster_id, role)

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: still not so after {PATIENCE_S} s"
            time.sleep(0.002)

    def close(self) -> None:
        for node in self.nodes:
            node.finalize()


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except CONTRACTED as error:
        kinds = frozenset(kind.__name__ for kind in CONTRACTED if isinstance(error, kind))
        status = error.status_code.name if isinstance(error, llmdd.LLMException) else None
        raise Refusal(kinds, status, str(error)) from error


def _call_with_plain_values(
    called_on: object, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    translated = [_translated(argument) for argument in arguments]
    return _plain(
        getattr(called_on, method)(*translated, **{name: _translated(value) for name, value in keywords.items()})
    )


def _translated(value: Any) -> Any:
    """What a value of the reference model is here. Anything else is itself."""
    if type(value) in (list, tuple, set):
        return type(value)(_translated(element) for element in value)
    translate = _TRANSLATIONS.get(type(value))
    return value if translate is None else translate(value)


def _plain(result: Any) -> Any:
    """A result without the library's types. A cache stays what it is."""
    if isinstance(result, llmdd.LLMStatusCode | llmdd.RegisterMemStatus):
        return result.name
    if isinstance(result, llmdd.CacheKeyByIdAndIndex):
        return values.CacheKeyByIdAndIndex(result.cluster_id, result.cache_id, result.batch_index)
    if isinstance(result, list | tuple):
        return type(result)(_plain(element) for element in result)
    return result


def _cache_desc(desc: values.CacheDesc) -> llmdd.CacheDesc:
    placement = llmdd.Placement[desc.placement]
    data_type = llmdd.DataType[desc.data_type]
    return llmdd.CacheDesc(desc.num_tensors, desc.shape, data_type, placement, desc.batch_dim_index)


def _cluster_info(info: values.ClusterInfo) -> llmdd.LLMClusterInfo:
    cluster = llmdd.LLMClusterInfo()
    if info.remote_cluster_id is not None:
        cluster.remote_cluster_id = info.remote_cluster_id
    for address in info.local_ip_info_list:
        cluster.append_local_ip_info(*address)
    for address in info.remote_ip_info_list:
        cluster.append_remote_ip_info(*address)
    return cluster


def _role(value: Any) -> Any:
    return _ROLES.get(value, value) if isinstance(value, str) else value


_ROLES = {role.name: role for role in llmdd.LLMRole}

_TRANSLATIONS: dict[type, Callable[[Any], object]] = {
    values.CacheDesc: _cache_desc,
    values.CacheKey: lambda key: llmdd.CacheKey(key.cluster_id, key.req_id, key.model_id, key.prefix_id),
    values.CacheKeyByIdAndIndex: lambda key: llmdd.CacheKeyByIdAndIndex(key.cluster_id, key.cache_id, key.batch_index),
    values.BlocksCacheKey: lambda key: llmdd.BlocksCacheKey(key.cluster_id, key.model_id),
    values.ClusterInfo: _cluster_info,
    values.MemInfo: lambda info: llmdd.MemInfo(llmdd.Memtype[info.mem_type], info.addr, info.size),
    values.TransferConfig: lambda config: llmdd.TransferConfig(
        config.dst_cluster_id, config.dst_addrs, config.src_layer_range, config.src_batch_index
    ),
    values.TransferWithCacheKeyConfig: lambda config: llmdd.TransferWithCacheKeyConfig(
        _translated(config.cache_key), config.src_layer_range, config.dst_layer_range, config.src_batch_index
    ),
}
