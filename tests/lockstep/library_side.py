"""The library's side: real nodes, called through the public API alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from llmdd.spec import values

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    RegisterMemStatus,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from llmdd._core.bulk_calls import KeyPlaces
from llmdd._core.leases import advance_lease_clock

from .own_memory import OwnMemory
from .terms import (
    DATADIST_METHODS,
    PATIENCE_MS,
    PLACEMENTS,
    Array,
    CacheName,
    Call,
    Memory,
    MemoryName,
    Outcome,
    Picture,
    Raised,
    Returned,
    Script,
    Scripted,
    Sight,
    ViewName,
    pattern,
)

#: By how much the leases of this process are ahead of the kernel's clock.
_ahead_ms = 0


class LibrarySide:
    """The nodes of one process."""

    def __init__(self) -> None:
        self.datadists: dict[str, LLMDataDist] = {}
        self.managers: dict[str, CacheManager] = {}
        self.former_managers: dict[str, CacheManager] = {}
        self.caches: dict[CacheName, Cache] = {}
        self.views: dict[ViewName, list[np.ndarray]] = {}
        self.memories: dict[MemoryName, OwnMemory] = {}

    def start(self, node: str, cluster_id: int, role: str) -> Outcome:
        self.datadists[node] = LLMDataDist(LLMRole[role], cluster_id)
        return Returned()

    def set_clock(self, ahead_ms: int) -> None:
        global _ahead_ms
        advance_lease_clock(ahead_ms - _ahead_ms)
        _ahead_ms = ahead_ms
        for manager in self.managers.values():
            manager.expire_leases()

    def call(self, call: Call) -> Outcome:
        return _outcome(lambda: self._call(call))

    def _call(self, call: Call) -> object:
        datadist = self.datadists[call.node]
        answer = _plain(self._make(self._callee(call), call))
        if call.method in ("pull_many", "renew_leases"):
            answer = [LLMStatusCode(code).name for code in cast(list[int], answer)]
        if call.method == "init":
            self.managers[call.node] = datadist.cache_manager
        elif call.method == "finalize" and call.node in self.managers:
            self.former_managers[call.node] = self.managers.pop(call.node)
        return answer

    def _callee(self, call: Call) -> object:
        datadist = self.datadists[call.node]
        if call.method in DATADIST_METHODS:
            return datadist
        return {"check_cache_key": CacheManager, "create_cpu_cache": Cache}.get(call.method) or datadist.cache_manager

    def _make(self, callee: object, call: Call) -> Any:
        arguments = [self._translated(argument) for argument in call.arguments]
        keywords = {name: self._translated(argument) for name, argument in (call.keywords or {}).items()}
        if call.method == "switch_role" and keywords["role"] in LLMRole.__members__:
            keywords["role"] = LLMRole[keywords["role"]]
        return getattr(callee, call.method)(*arguments, **keywords)

    def call_former_manager(self, call: Call) -> Outcome:
        return _outcome(lambda: self._make(self.former_managers[call.node], call))

    def make_cache(self, cache: CacheName, call: Call, seed: int) -> Outcome:
        return _outcome(lambda: self._make_cache(cache, call, seed))

    def _make_cache(self, name: CacheName, call: Call, seed: int) -> int:
        cache = self.caches[name] = self._make(self._callee(call), call)
        if call.method.startswith("allocate"):
            _fill(cache.tensors, seed)
        return int(cache.cache_id)

    def transfer_layers(self, call: Call) -> Outcome:
        return _outcome(lambda: self._transfer_layers(call))

    def _transfer_layers(self, call: Call) -> object:
        keywords = {name: self._translated(argument) for name, argument in (call.keywords or {}).items()}
        task = self.datadists[call.node].cache_manager.transfer_cache_async(**keywords)
        code, results = task.synchronize(PATIENCE_MS), task.get_results(PATIENCE_MS)
        return _plain(code), _plain(results), keywords["layer_synchronizer"].scripted.asked

    def map_memory(self, memory: MemoryName, size: int) -> int:
        self.memories[memory] = OwnMemory(size)
        return self.memories[memory].address

    def unmap_memory(self, memory: MemoryName) -> None:
        self.memories.pop(memory).unmap()

    def write_memory(self, memory: MemoryName, seed: int) -> None:
        _fill([self.memories[memory].octets()], seed)

    def read_memory(self, node: str) -> Mapping[MemoryName, bytes]:
        return {name: memory.octets().tobytes() for name, memory in self.memories.items() if name.node == node}

    def fill(self, cache: CacheName, seed: int) -> Outcome:
        return _outcome(lambda: _fill(self.caches[cache].tensors, seed))

    def open_view(self, view: ViewName, cache: CacheName) -> Outcome:
        return _outcome(lambda: self.views.update({view: self.caches[cache].tensors}))

    def fill_view(self, view: ViewName, seed: int) -> Outcome:
        _fill(self.views[view], seed)
        return Returned()

    def close_view(self, view: ViewName) -> Outcome:
        del self.views[view]
        return Returned()

    def links(self, node: str, communicators: Sequence[int]) -> Outcome:
        return _outcome(lambda: (self._linked(node), self._statuses(node, communicators)))

    def _linked(self, node: str) -> tuple[int, ...]:
        return tuple(sorted(self.datadists[node].cache_manager.peers))

    def _statuses(self, node: str, communicators: Sequence[int]) -> dict[int, str]:
        datadist = self.datadists[node]
        return {number: datadist.query_register_mem_status(number).name for number in communicators}

    def picture(self, node: str, sight: Sight) -> Outcome:
        return _outcome(lambda: self._picture(node, sight))

    def _picture(self, node: str, sight: Sight) -> Picture:
        datadist = self.datadists[node]
        manager = datadist.cache_manager
        manager.check()
        return Picture(
            listen_address=datadist.listen_address,
            linked=self._linked(node),
            pools={placement: tuple(manager.pool_usage(Placement[placement])) for placement in PLACEMENTS},
            live_caches=manager.live_caches,
            live_keys=manager.live_keys,
            bindings={key: _binding(manager, self._translated(key)) for key in sight.keys},
            blocks_keys={key: _is_bound(manager, self._translated(key)) for key in sight.blocks_keys},
            role=_role(datadist),
            communicators=self._statuses(node, sight.communicators),
            memories={name: _memory(self.caches[name]) for name in sight.caches},
            views={name: _contents(self.views[name]) for name in sight.views},
        )

    def forget(self) -> None:
        """Finalize every node and drop everything."""
        for datadist in self.datadists.values():
            datadist.finalize()
        for kept in (self.datadists, self.managers, self.former_managers, self.caches, self.views):
            kept.clear()
        while self.memories:
            self.memories.popitem()[1].unmap()

    def _translated(self, value: Any) -> Any:
        """What a value of the reference model, or a cache's name, is here. Anything else is itself."""
        if isinstance(value, CacheName):
            return self.caches[value]
        if isinstance(value, Array):
            return _array(value)
        if type(value) in (list, tuple, set):
            return type(value)(self._translated(element) for element in value)
        if type(value) is dict:
            return {key: self._translated(element) for key, element in value.items()}
        if isinstance(value, values.TransferWithCacheKeyConfig):
            key = self._translated(value.cache_key)
            ranges = value.src_layer_range, value.dst_layer_range
            return TransferWithCacheKeyConfig(key, *ranges, value.src_batch_index)
        if isinstance(value, Script):
            return _Synchronizer(Scripted(value, self.call))
        translate = _TRANSLATIONS.get(type(value))
        return value if translate is None else translate(value)


#: The exceptions that the contract knows. One that is several of them counts as the first (api D68).
_CONTRACTED = (LLMException, AttributeError, TypeError, ValueError, RuntimeError)


def _outcome(call: Callable[[], object]) -> Outcome:
    """What a call was answered with. An exception that no contract knows is no answer."""
    try:
        return Returned(call())
    except _CONTRACTED as error:
        known = next(kind for kind in _CONTRACTED if isinstance(error, kind))
        return Raised(known.__name__, error.status_code.name if isinstance(error, LLMException) else None)


def _plain(result: object) -> object:
    """A result without the library's types."""
    if isinstance(result, LLMStatusCode | RegisterMemStatus):
        return result.name
    if isinstance(result, CacheKeyByIdAndIndex):
        return values.CacheKeyByIdAndIndex(result.cluster_id, result.cache_id, result.batch_index)
    if isinstance(result, np.ndarray):
        return result.tolist()
    if isinstance(result, KeyPlaces):
        return tuple(_plain(element) for element in result)
    if isinstance(result, list | tuple):
        return type(result)(_plain(element) for element in result)
    return result


def _role(datadist: LLMDataDist) -> str:
    """The role, of which nothing but the representation tells."""
    found = re.search(r"role=LLMRole\.(\w+)", repr(datadist))
    assert found is not None, f"{datadist!r} says no role"
    return found[1]


def _binding(manager: CacheManager, key: CacheKey) -> tuple[int, int] | None:
    found = manager.lookup(key)
    return None if found is None else (found.cache_id, found.batch_index)


def _is_bound(manager: CacheManager, key: BlocksCacheKey) -> bool:
    """Whether a blocks key is bound, which ``lookup`` does not know: a bound one is refused before a full pool is."""
    placement = next(placement for placement in Placement if manager.pool_usage(placement).total_bytes > 0)
    too_large = CacheDesc(1, (1, 2**50), DataType.DT_INT8, placement)
    try:
        manager.allocate_blocks_cache(too_large, key)
    except LLMException as error:
        if error.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY:
            return False
        if "already bound" in str(error):
            return True
        raise
    raise AssertionError(f"{too_large} was allocated")


def _memory(cache: Cache) -> Memory:
    contents = _outcome(lambda: _contents(cache.tensors))
    return Memory(cache.cache_desc.placement.name, tuple(cache.tensor_addrs), contents)


def _fill(tensors: Sequence[np.ndarray], seed: int) -> None:
    for number, tensor in enumerate(tensors):
        octets = tensor.reshape(-1).view(np.uint8)
        octets[:] = np.frombuffer(pattern(seed, number, octets.size), np.uint8)


def _contents(tensors: Sequence[np.ndarray]) -> tuple[bytes, ...]:
    return tuple(tensor.tobytes() for tensor in tensors)


def _array(array: Array) -> np.ndarray:
    """In memory that is as long as its strides make it, filled with other numbers in between."""
    memory = np.full(len(array.numbers) * abs(array.stride), 7, array.dtype)
    found: np.ndarray = memory[:: array.stride]
    found[:] = array.numbers
    return found


def _cache_desc(desc: values.CacheDesc) -> CacheDesc:
    placement = Placement[desc.placement]
    return CacheDesc(desc.num_tensors, desc.shape, DataType[desc.data_type], placement, desc.batch_dim_index)


def _cluster_info(info: values.ClusterInfo) -> LLMClusterInfo:
    cluster = LLMClusterInfo()
    if isinstance(info.remote_cluster_id, int):
        cluster.remote_cluster_id = info.remote_cluster_id
    for address in info.local_ip_info_list:
        cluster.append_local_ip_info(*address)
    for address in info.remote_ip_info_list:
        cluster.append_remote_ip_info(*address)
    return cluster


class _Synchronizer(LayerSynchronizer):
    """Does what a script says."""

    def __init__(self, scripted: Scripted) -> None:
        self.scripted = scripted

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        assert timeout_in_millis is None, f"the timeout of a layer is {timeout_in_millis}"
        return self.scripted.synchronize(layer_index)


_TRANSLATIONS: dict[type, Callable[[Any], object]] = {
    values.MemInfo: lambda info: MemInfo(Memtype[info.mem_type], info.addr, info.size),
    values.TransferConfig: lambda config: TransferConfig(
        config.dst_cluster_id, config.dst_addrs, config.src_layer_range, config.src_batch_index
    ),
    values.BlocksCacheKey: lambda key: BlocksCacheKey(key.cluster_id, key.model_id),
    values.CacheDesc: _cache_desc,
    values.CacheKey: lambda key: CacheKey(key.cluster_id, key.req_id, key.model_id, key.prefix_id),
    values.CacheKeyByIdAndIndex: lambda key: CacheKeyByIdAndIndex(key.cluster_id, key.cache_id, key.batch_index),
    values.ClusterInfo: _cluster_info,
}
