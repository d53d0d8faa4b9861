"""The local half of a node: its caches, their keys, and the memory of both pools and of its program.

Every call of the ``CacheManager`` that concerns no other cluster stands here. Each first makes the checks of api §2.5
in their order, then those that need to know the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .arguments import (
    check_dictionary,
    check_given,
    check_indices,
    check_integer,
    check_lease,
    check_list,
    check_sequence,
    check_size,
    check_type,
    require,
)
from .machine import ImpossibleEvent
from .memory import POOL_ADDRESSES, AddressSpace, Pool, PoolUsage, carry_out
from .options import Settings
from .statecharts import Refused, Statecharts
from .tenants import BatchSlot, Tenant
from .transfers import EngineId, Run, block_to_block, check_blocks_exist, moves_of
from .values import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    KeyIdentity,
    View,
)

if TYPE_CHECKING:
    from .communicators import Communicator
    from .reference import Cluster

MOST_DIMENSIONS = 32


class CacheOwner:
    """What a process has of its own: an engine that lives by the ENGINE machine, caches, and memory."""

    def __init__(self, cluster: Cluster, name: str, cluster_id: int, incarnation: int) -> None:
        self.state = cluster.charts.engine.machine.initial
        self.cluster = cluster
        self.name = name
        self.cluster_id = cluster_id
        self.incarnation = incarnation
        self.times_initialised = 0
        self.memory = AddressSpace()
        self._become_empty()

    def _become_empty(self) -> None:
        self.settings: Settings | None = None
        self.pools: dict[str, Pool] = {}
        self.tenants: dict[int, Tenant] = {}
        self.key_index: dict[KeyIdentity, tuple[int, int]] = {}
        self.communicators: dict[int, Communicator] = {}  # those that live, by their ids
        self.next_cache_id = 1
        self.next_view = 1

    @property
    def charts(self) -> Statecharts:
        return self.cluster.charts

    @property
    def engine(self) -> EngineId:
        return (self.name, self.incarnation, self.times_initialised)

    def _serving(self) -> Settings:
        self.charts.engine.fire(self, "call")
        assert self.settings is not None
        return self.settings

    def require_serving(self) -> Settings:
        """Refuse as every call does while the engine is not initialised; else what it was initialised with."""
        return self._serving()

    @property
    def in_remote_mode(self) -> bool:
        return self._serving().remote_mode

    # -- making caches (seed, api §3.1, §3.2) ---------------------------------------------------------------------

    def allocate_cache(self, cache_desc: Any, cache_keys: Any = (), *, lease: Any = None) -> Cache:
        settings = self._serving()
        check_given("cache_desc", cache_desc, CacheDesc)
        check_sequence("cache_keys", cache_keys, CacheKey)
        if lease is not None:
            check_lease(lease)
        self._check_pool(cache_desc)
        self._check_dimensions(cache_desc)
        self._check_slots_are_contiguous(cache_desc)
        self._check_keys(cache_desc, cache_keys)
        lease = settings.cache_key_lease if lease is None else lease
        return self._allocate(cache_desc, False, [key.identity for key in cache_keys], lease)

    def allocate_blocks_cache(self, cache_desc: Any, blocks_cache_key: Any = None) -> Cache:
        self._serving()
        check_given("cache_desc", cache_desc, CacheDesc)
        keys = self._blocks_keys(blocks_cache_key)
        self._check_pool(cache_desc)
        self._check_dimensions(cache_desc)
        self._check_not_bound(keys)
        return self._allocate(cache_desc, True, [key.identity for key in keys])

    def register_cache(self, cache_desc: Any, addrs: Any, cache_keys: Any = (), remote_accessible: Any = None) -> Cache:
        """Make a cache of the program's own memory."""
        self._serving()
        check_given("cache_desc", cache_desc, CacheDesc)
        check_list("addrs", addrs, int)
        check_sequence("cache_keys", cache_keys, CacheKey)
        self._check_remote_accessible(remote_accessible)
        self._check_addresses(cache_desc, addrs)
        self._check_dimensions(cache_desc)
        self._check_slots_are_contiguous(cache_desc)
        self._check_keys(cache_desc, cache_keys)
        return self._register(cache_desc, False, addrs, [key.identity for key in cache_keys], remote_accessible)

    def register_blocks_cache(
        self, cache_desc: Any, addrs: Any, blocks_cache_key: Any = None, remote_accessible: Any = None
    ) -> Cache:
        """Make a blocks cache of the program's own memory."""
        self._serving()
        check_given("cache_desc", cache_desc, CacheDesc)
        check_list("addrs", addrs, int)
        keys = self._blocks_keys(blocks_cache_key)
        self._check_remote_accessible(remote_accessible)
        self._check_addresses(cache_desc, addrs)
        self._check_dimensions(cache_desc)
        self._check_not_bound(keys)
        return self._register(cache_desc, True, addrs, [key.identity for key in keys], remote_accessible)

    @staticmethod
    def create_cpu_cache(cache_desc: Any, addrs: Any) -> Cache:
        """``Cache.create_cpu_cache``: a handle on the program's own memory, good for ``swap_blocks`` alone."""
        check_given("cache_desc", cache_desc, CacheDesc)
        check_list("addrs", addrs, int)
        require(cache_desc.placement == "HOST", "cache_desc placement must be HOST")
        require(len(addrs) == cache_desc.num_tensors, f"{cache_desc.num_tensors} not equal addrs num {len(addrs)}")
        return Cache(-1, cache_desc, None, True, True, list(addrs))

    def _check_pool(self, desc: CacheDesc) -> None:
        require(desc.num_tensors > 0, "num_tensors should be bigger than zero")
        require(desc.placement in self.pools, "you should config memory pool firstly")

    def _check_remote_accessible(self, remote_accessible: Any) -> None:
        if remote_accessible is not None:
            check_type("remote_accessible", remote_accessible, bool)
        refused = remote_accessible and self.communicators
        require(not refused, "can not register remote accessible cache after link")

    @staticmethod
    def _check_addresses(desc: CacheDesc, addrs: list[int]) -> None:
        require(len(addrs) > 0, "addrs can not be empty")
        require(len(addrs) == desc.num_tensors, "addrs length should be equal to num_tensors")
        require(all(address != 0 for address in addrs), "addr can not be zero")
        for address in addrs:
            check_integer("addr", address, "uint64")

    @staticmethod
    def _check_dimensions(desc: CacheDesc) -> None:
        require(1 <= len(desc.shape) <= MOST_DIMENSIONS, f"a shape has 1 to {MOST_DIMENSIONS} dimensions")
        require(all(dimension > 0 for dimension in desc.shape), f"a dimension of {desc.shape} is not positive")
        require(desc.size < 2**63, f"a tensor of {desc.size} bytes is too large")

    @staticmethod
    def _check_slots_are_contiguous(desc: CacheDesc) -> None:
        before_batch = desc.shape[: desc.batch_dim_index]
        require(all(dimension == 1 for dimension in before_batch), "the batch slots should be contiguous")

    def _check_keys(self, desc: CacheDesc, keys: Sequence[CacheKey]) -> None:
        require(len(keys) <= desc.batch_size, f"{len(keys)} cache_keys for a batch of {desc.batch_size}")
        self._check_not_bound(keys)

    @staticmethod
    def _blocks_keys(blocks_cache_key: Any) -> list[BlocksCacheKey]:
        """The key of a blocks cache, as the list of its keys."""
        if blocks_cache_key is None:
            return []
        check_type("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        return [blocks_cache_key]

    def _check_not_bound(self, keys: Sequence[CacheKey | BlocksCacheKey]) -> None:
        for key in keys:
            require(key.identity not in self.key_index, f"{key} is already bound")

    def _allocate(
        self, desc: CacheDesc, is_blocks_cache: bool, keys: Sequence[KeyIdentity | None], lease: int = 0
    ) -> Cache:
        pool = self.pools[desc.placement]
        pages = pool.room_for(desc.num_tensors, desc.size)
        if pages is None:
            raise Refused("LLM_OUT_OF_MEMORY", f"no room for {desc}")
        addresses = [POOL_ADDRESSES[desc.placement] + run.start * pool.page_bytes for run in pages]
        return self._make(Tenant(self, self.next_cache_id, desc, is_blocks_cache, addresses, pages), desc, keys, lease)

    def _register(
        self,
        desc: CacheDesc,
        is_blocks_cache: bool,
        addrs: list[int],
        keys: Sequence[KeyIdentity | None],
        remote_accessible: bool | None,
    ) -> Cache:
        mapped = all(self.memory.is_mapped(address, desc.size) for address in addrs)
        require(mapped, "there is memory in addrs that the process does not have")
        if remote_accessible is None:
            remote_accessible = desc.placement == "DEVICE" and not self.communicators
        tenant = Tenant(self, self.next_cache_id, desc, is_blocks_cache, addrs, remote_accessible=remote_accessible)
        return self._make(tenant, desc, keys)

    def _make(self, tenant: Tenant, desc: CacheDesc, keys: Sequence[KeyIdentity | None], lease: int = 0) -> Cache:
        self.tenants[tenant.cache_id] = tenant
        self.next_cache_id += 1
        for slot, key in zip(tenant.batch_slots, keys, strict=False):
            slot.bind(key, self.cluster.clock + lease if lease else None)
        self.charts.cache.fire(tenant, "allocate")
        return Cache(tenant.cache_id, desc, self.engine, tenant.is_blocks_cache, tenant.registered)

    # -- dropping references (api §3.3) ---------------------------------------------------------------------------

    def deallocate_cache(self, cache: Any) -> None:
        self._serving()
        check_given("cache", cache, Cache)
        require(not cache.is_blocks_cache, "cache can not be blocks cache")
        tenant = self._spend(cache)
        if tenant is not None:
            tenant.drop_id()

    def deallocate_blocks_cache(self, cache: Any) -> None:
        self._serving()
        check_given("cache", cache, Cache)
        require(cache.is_blocks_cache, "cache should be blocks cache")
        tenant = self._spend(cache)
        if tenant is not None:
            tenant.withdraw()

    def _spend(self, cache: Any) -> Tenant | None:
        """Let a handle have no addresses any more; the allocated cache that it stands for here, if it does."""
        cache.addrs.clear()
        given_by = self.cluster.running(cache.engine)
        tenant = given_by.tenants.get(cache.cache_id) if given_by else None
        if tenant is not None:
            tenant.handle_is_spent = True  # whoever is asked to deallocate it
        if tenant is None or given_by is not self:
            self.charts.cache.step("FREE", "drop_id")  # unknown, or gone already
            return None
        return None if tenant.registered else tenant

    def unregister_cache(self, cache_id: Any) -> None:
        """Drop id and keys of a registered cache, then wait for the transfers in flight (api §3.11).

        The one call that has done its work although it is refused: with ``LLM_TIMEOUT`` the registration is gone, and
        transfers still use the memory. To call it again is to wait on.
        """
        self._serving()
        check_integer("cache_id", cache_id, "int64")
        tenant = self.tenants.get(cache_id)
        if tenant is None:
            self.charts.cache.step("FREE", "drop_id")
            return
        require(tenant.registered, f"cache {cache_id} was not registered")
        tenant.withdraw()
        require(cache_id not in self.tenants, f"a transfer still uses cache {cache_id}", "LLM_TIMEOUT")

    def remove_cache_key(self, cache_key: Any) -> None:
        self._serving()
        check_given("cache_key", cache_key, CacheKey)
        slot = self.slot_of(cache_key.identity)
        if slot is not None:
            self.charts.batch_slot.fire(slot, "remove")

    def expire_leases(self) -> int:
        """Look at every key whether its lease is over; how many have gone for that.

        The owner does this by itself, presently, whatever else happens or does not (lifecycle, rule 15).
        """
        self._serving()
        slots = [slot for tenant in self.tenants.values() for slot in tenant.batch_slots]
        return sum("drop_key" in self.charts.batch_slot.fire(slot, "expire").effects for slot in slots if slot.key)

    # -- looking caches up ----------------------------------------------------------------------------------------

    def lookup(self, cache_key: Any) -> CacheKeyByIdAndIndex | None:
        """Where a key is bound here."""
        self._serving()
        check_given("cache_key", cache_key, CacheKey)
        slot = self.slot_of(cache_key.identity)
        return CacheKeyByIdAndIndex(self.cluster_id, slot.tenant.cache_id, slot.index) if slot else None

    def slot_of(self, identity: KeyIdentity | None) -> BatchSlot | None:
        """The batch slot that a key is bound to."""
        if identity not in self.key_index:
            return None
        cache_id, index = self.key_index[identity]
        return self.tenants[cache_id].batch_slots[index]

    def pool_usage(self, placement: str = "DEVICE") -> PoolUsage:
        """How full the pool of a placement is; one that is not configured has nothing."""
        self._serving()
        return self.pools[placement].usage() if placement in self.pools else PoolUsage(0, 0, 0)

    @property
    def live_caches(self) -> int:
        """The caches whose memory has not gone back."""
        self._serving()
        return len(self.tenants)

    def _tenant_of(self, handle: Cache | View) -> Tenant | None:
        """What a handle stands for here; a handle that another engine gave stands for nothing."""
        return self.tenants.get(handle.cache_id) if handle.engine == self.engine else None

    def _open(self, tenant: Tenant | None) -> Tenant:
        """The tenant, if it could be pinned now; refuses as pinning it would."""
        if tenant is None:
            self.charts.cache.step("FREE", "pin")
        else:
            self.charts.cache.peek(tenant, "pin")
        assert tenant is not None
        return tenant

    # -- memory ---------------------------------------------------------------------------------------------------

    def own_memory(self, size: int) -> int:
        """The program makes ``size`` zero bytes of its own; their address."""
        return self.memory.map_own(size)

    def free_memory(self, address: int) -> None:
        """The program frees the memory that begins at an address, whether it is registered or not."""
        self.memory.unmap(address)

    def read(self, address: int, size: int) -> bytes:
        """The program reads its memory."""
        return bytes(self.memory.reach(address, size))

    def write_memory(self, address: int, content: bytes) -> None:
        """The program writes its memory."""
        self.memory.reach(address, len(content))[:] = content

    def tensor_addrs(self, cache: Cache) -> list[int]:
        """``Cache.tensor_addrs``: where each tensor begins; empty once deallocated (api §3.3)."""
        if cache.engine is None:
            return list(cache.addrs)
        tenant = self._tenant_of(cache)
        return list(tenant.addresses) if tenant is not None and not tenant.handle_is_spent else []

    def tensor_places(self, cache: Cache) -> list[int]:
        """The same, in bytes from the beginning of the pool; empty also where there is no pool."""
        tenant = self._tenant_of(cache)
        if tenant is None or tenant.registered:
            return []
        return [address - POOL_ADDRESSES[tenant.placement] for address in self.tensor_addrs(cache)]

    def open_view(self, cache: Cache) -> View:
        """Look at the memory of a cache: pins it until the view is closed.

        Of a cache that was deallocated too, as long as keys hold its memory. Not of the program's own memory, which it
        can look at without.
        """
        require(not cache.has_own_memory, f"the memory of {cache} is the caller's")
        self._serving()
        require(cache.engine == self.engine, f"the engine of {cache} was finalized", "LLM_ENGINE_FINALIZED")
        tenant = self._open(self._tenant_of(cache))
        view = View(cache.cache_id, self.next_view, self.engine)
        self.next_view += 1
        tenant.pin(("view", view.number))
        return view

    def close_view(self, view: View) -> None:
        """Drop a view. Those that ``finalize`` dropped are gone already."""
        if view.engine != self.engine or self.settings is None:
            return
        tenant = self._tenant_of(view)
        if tenant is None or ("view", view.number) not in tenant.pins:
            raise ImpossibleEvent(f"{view} is not open")
        tenant.unpin(("view", view.number))

    def write(self, cache: Cache | View, tensor_index: int, content: bytes, offset: int = 0) -> None:
        """Fill memory that is still held."""
        memory = self._held(cache).tensor(tensor_index)
        assert offset + len(content) <= len(memory), "beyond the end of the tensor"
        memory[offset : offset + len(content)] = content

    def contents(self, cache: Cache | View) -> list[bytes]:
        """The bytes of every tensor, while the memory is held."""
        tenant = self._held(cache)
        return [bytes(tenant.tensor(index)) for index in range(tenant.num_tensors)]

    def _held(self, handle: Cache | View) -> Tenant:
        tenant = self._tenant_of(handle)
        if tenant is None:
            raise Refused("LLM_KV_CACHE_NOT_EXIST", f"the memory of {handle} went back to the pool")
        return tenant

    # -- local copies (api §3.8) ----------------------------------------------------------------------------------

    def copy_cache(
        self,
        dst: Any,
        src: Any,
        dst_batch_index: Any = 0,
        src_batch_index: Any = 0,
        offset: Any = 0,
        size: Any = -1,
        req_id: Any = None,
    ) -> None:
        self._serving()
        check_given("dst", dst, Cache)
        check_given("src", src, Cache)
        check_integer("dst_batch_index", dst_batch_index, "uint32")
        check_integer("src_batch_index", src_batch_index, "uint32")
        check_integer("offset", offset, "uint64")
        check_integer("size", size, "int64")
        require(not dst.is_blocks_cache, "dst can not be blocks cache")
        require(not src.is_blocks_cache, "src can not be blocks cache")
        check_size(size)
        if req_id is not None:
            check_integer("req_id", req_id, "uint64")
        target, source = self._open(self._tenant_of(dst)), self._open(self._tenant_of(src))
        require(target.num_tensors == source.num_tensors, "the caches differ in num_tensors")
        require(dst_batch_index < target.row_count, f"dst_batch_index {dst_batch_index} is out of range")
        require(src_batch_index < source.row_count, f"src_batch_index {src_batch_index} is out of range")
        shorter = min(target.row_bytes, source.row_bytes)
        require(offset == 0 or offset < shorter, f"offset {offset} is beyond the slot")
        length = source.row_bytes - offset if size == -1 else size
        require(offset + length <= shorter, f"{length} bytes at {offset} do not fit in the slot")
        if target is source and dst_batch_index == src_batch_index:
            return  # nothing moves, so that nothing need be there
        run = Run(src_batch_index * source.row_bytes + offset, dst_batch_index * target.row_bytes + offset, length)
        carry_out(moves_of(source.addresses, target.addresses, [run]), self.memory, self.memory)

    def copy_blocks(self, cache: Any, copy_block_info: Any) -> None:
        self._serving()
        check_given("cache", cache, Cache)
        check_dictionary("copy_block_info", copy_block_info, list)
        for block, targets in copy_block_info.items():
            check_indices("copy_block_info", [block])
            check_indices("copy_block_info", targets)
        require(cache.is_blocks_cache, "cache should be blocks cache")
        tenant = self._open(self._tenant_of(cache))
        pairs = [(block, target) for block, targets in copy_block_info.items() for target in targets]
        check_blocks_exist("copy_block_info", [*copy_block_info, *(target for _, target in pairs)], tenant)
        moving = [(block, target) for block, target in pairs if block != target]
        runs = block_to_block(tenant.row_bytes, [block for block, _ in moving], [target for _, target in moving])
        carry_out(moves_of(tenant.addresses, tenant.addresses, runs), self.memory, self.memory)

    def swap_blocks(self, src_cache: Any, dst_cache: Any, src_to_dst: Any) -> None:
        """A copy of blocks, in spite of its name, by the addresses that the handles have."""
        self._serving()
        check_given("src_cache", src_cache, Cache)
        check_given("dst_cache", dst_cache, Cache)
        require(src_cache.is_blocks_cache, "src_cache should be blocks cache")
        require(dst_cache.is_blocks_cache, "dst_cache should be blocks cache")
        check_dictionary("src_to_dst", src_to_dst, int)
        source, target = src_cache.cache_desc, dst_cache.cache_desc
        self._check_dimensions(source)  # nothing has checked those of a create_cpu_cache object
        self._check_dimensions(target)
        block_bytes = source.size // source.shape[0]
        require(block_bytes == target.size // target.shape[0], "the block sizes of both caches must be equal")
        require(source.num_tensors == target.num_tensors, "num_tensors of both caches must be equal")
        for name, blocks, desc in (("src", src_to_dst.keys(), source), ("dst", src_to_dst.values(), target)):
            in_range = all(0 <= block < desc.shape[0] for block in blocks)
            require(in_range, f"{name} block indices must be in [0, {desc.shape[0]})")
        placements = {source.placement, target.placement}
        require(len(placements) == 2, f"swap from {source.placement} to {target.placement} is not support")
        sources, targets = self.tensor_addrs(src_cache), self.tensor_addrs(dst_cache)
        require(bool(sources) and bool(targets), "a cache that was deallocated has no addresses")
        runs = block_to_block(block_bytes, list(src_to_dst.keys()), list(src_to_dst.values()))
        carry_out(moves_of(sources, targets, runs), self.memory, self.memory)
