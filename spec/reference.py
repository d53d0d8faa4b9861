"""The definition of the behaviour: a whole cluster in plain Python, slow and obvious.

A :class:`Cluster` is a number of processes, each a :class:`Node` (an ``LLMDataDist`` with its ``CacheManager``). Every
call of the contract that a node serves is a method of the same name; it returns the call's result or raises
:class:`Refused` with the exact exception and status code, after the checks of api §2.4, §2.5 and §3.6-3.8 in their
order. Every state of an engine, a link, a cache and a batch slot is changed by the machines of :mod:`.lifecycle` and by
nothing else.

What this model leaves open, because the contract does:

* the contents of freshly allocated memory. Here it is zero; compare only what was written;
* time. A call that has to wait for a transfer in progress meets its deadline, if it has one (``LLM_TIMEOUT``), and
  raises :class:`WouldWait` if it has none: nothing else happens while it waits;
* the order in which the transfers over one link are served. Here they may overlap.

A transfer is three steps: *begin* (all checks, both sides pinned), *copy*, *finish* (the key consumed, both sides
unpinned); ``pull_cache`` and ``push_cache`` are the three in a row. Other calls may come between them.

Caches so far are continuous and live in a pool. Registered caches and those with blocks will be tenants of other kinds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .arguments import (
    check_given,
    check_integer,
    check_pull_range,
    check_push_range,
    check_sequence,
    check_size,
    check_tensor_num_per_layer,
    check_type,
    require,
)
from .machine import ImpossibleEvent
from .options import PoolSettings, Settings, read_options
from .statecharts import Refused, Statecharts
from .values import (
    INV,
    Address,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
    KeyIdentity,
    SlotKey,
    View,
)

MOST_CLUSTERS_PER_CALL = 16
MOST_LINKS = 512
MOST_DIMENSIONS = 32
FIRST_FREE_PORT = 49152

#: Which engine: name of its node, how often that was started, how often it was initialised.
EngineId = tuple[str, int, int]

#: What holds a pin: ("view" or "transfer", number).
Pin = tuple[str, int]


class WouldWait(Exception):
    """The call would wait, without a deadline, for a transfer that is in progress."""


class PoolUsage(NamedTuple):
    """How full a pool is, in bytes of whole pages."""

    total_bytes: int
    free_bytes: int
    page_bytes: int


class Pool:
    """The pages of one placement, and the cache that holds each (api §3.10)."""

    def __init__(self, settings: PoolSettings) -> None:
        self.page_bytes = 1 << settings.page_shift
        self.pages = settings.memory_size >> settings.page_shift
        self.holder: dict[int, int] = {}

    def room_for(self, tensors: int, tensor_bytes: int) -> list[range] | None:
        """The pages that the tensors of a new cache would get; None if they do not all fit.

        One run for all of them at the lowest address where a free run is long enough. If there is none, tensor by
        tensor, each at the lowest address where it fits.
        """
        each = max(1, -(-tensor_bytes // self.page_bytes))
        start = self._lowest_run(tensors * each, self.holder)
        if start is not None:
            return [range(start + index * each, start + (index + 1) * each) for index in range(tensors)]
        if tensors * each > self.pages - len(self.holder):
            return None
        found: list[range] = []
        taken = set(self.holder)
        for _ in range(tensors):
            start = self._lowest_run(each, taken)
            if start is None:
                return None
            found.append(range(start, start + each))
            taken.update(found[-1])
        return found

    def _lowest_run(self, length: int, taken: Iterable[int]) -> int | None:
        start = 0
        for page in sorted(taken):
            if page - start >= length:
                break
            start = page + 1
        return start if start + length <= self.pages else None

    def take(self, pages: Sequence[range], cache_id: int) -> None:
        for page in (page for run in pages for page in run):
            assert page not in self.holder, f"page {page} is taken twice"
            self.holder[page] = cache_id

    def give_back(self, pages: Sequence[range], cache_id: int) -> None:
        for page in (page for run in pages for page in run):
            assert self.holder.get(page) == cache_id, f"page {page} is not held by cache {cache_id}"
            del self.holder[page]

    def usage(self) -> PoolUsage:
        free = self.pages - len(self.holder)
        return PoolUsage(self.pages * self.page_bytes, free * self.page_bytes, self.page_bytes)


class BatchSlot:
    """One batch slot of a cache: lives by the BATCH_SLOT machine."""

    def __init__(self, tenant: Tenant, index: int) -> None:
        self.state = tenant.node.charts.batch_slot.machine.initial
        self.tenant = tenant
        self.index = index
        self.key: KeyIdentity | None = None
        self.outstanding = set(range(tenant.num_tensors))

    def bind(self, key: CacheKey) -> None:
        """Give the slot its key, which supersedes the same key in an earlier slot (seed §10, §11)."""
        charts = self.tenant.node.charts
        if key.identity is None:
            charts.batch_slot.fire(self, "bind_placeholder")
            return
        earlier = self.tenant.node.slot_of(key.identity)
        if earlier is not None:
            charts.batch_slot.fire(earlier, "supersede")
        self.key = key.identity
        charts.batch_slot.fire(self, f"bind_{self.key[0]}")

    def transferred(self, tensors: Iterable[int]) -> None:
        """These tensors have arrived where they should."""
        self.outstanding.difference_update(tensors)
        self.tenant.node.charts.batch_slot.fire(self, "transfer")

    @property
    def tensors_remain(self) -> bool:
        return bool(self.outstanding)

    def index_key(self) -> None:
        assert self.key is not None
        self.tenant.node.key_index[self.key] = (self.tenant.cache_id, self.index)

    def unindex_key(self) -> None:
        assert self.key is not None
        del self.tenant.node.key_index[self.key]
        self.key = None

    def drop_key(self) -> None:
        self.tenant.node.charts.cache.fire(self.tenant, "drop_key")
        self.tenant.settle()


class Tenant:
    """A cache as its owner knows it: lives by the CACHE machine, from allocation to the return of its memory."""

    def __init__(self, node: Node, cache_id: int, desc: CacheDesc, pages: list[range]) -> None:
        self.state = node.charts.cache.machine.initial
        self.node = node
        self.cache_id = cache_id
        self.placement = desc.placement
        self.num_tensors = desc.num_tensors
        self.tensor_bytes = desc.size
        self.slot_bytes = desc.size // desc.batch_size
        self.pages = pages
        self.tensors: list[bytearray] = []
        self.is_open = False
        self.id_held = True
        self.handle_is_spent = False
        self.pins: list[Pin] = []
        self.batch_slots = [BatchSlot(self, index) for index in range(desc.batch_size)]

    @property
    def keys_remain(self) -> bool:
        return any(slot.key is not None for slot in self.batch_slots)

    @property
    def pinned(self) -> bool:
        return bool(self.pins)

    def drop_id(self) -> None:
        self.id_held = False
        self.node.charts.cache.fire(self, "drop_id")
        self.settle()

    def pin(self, pin: Pin) -> None:
        self.node.charts.cache.fire(self, "pin")
        self.pins.append(pin)

    def unpin(self, pin: Pin) -> None:
        self.pins.remove(pin)
        self.node.charts.cache.fire(self, "unpin")
        self.settle()

    def settle(self) -> None:
        self.node.charts.cache.fire(self, "settle")
        is_gone = self.cache_id not in self.node.tenants
        assert is_gone == (self.state == "FREE"), f"cache {self.cache_id} is {self.state} and gone: {is_gone}"

    def take_memory(self) -> None:
        self.node.pools[self.placement].take(self.pages, self.cache_id)
        self.tensors = [bytearray(self.tensor_bytes) for _ in range(self.num_tensors)]

    def open_slot(self) -> None:
        self.is_open = True

    def close_slot(self) -> None:
        self.is_open = False

    def return_memory(self) -> None:
        self.node.pools[self.placement].give_back(self.pages, self.cache_id)
        self.tensors = []

    def advance_generation(self) -> None:
        del self.node.tenants[self.cache_id]

    def slot_range(self, index: int, offset: int, size: int) -> slice:
        start = index * self.slot_bytes + offset
        return slice(start, start + size)


class Link:
    """One node's end of its link to another cluster: lives by the LINK machine."""

    def __init__(self, node: Node, cluster_id: int) -> None:
        self.state = node.charts.link.machine.initial
        self.node = node
        self.cluster_id = cluster_id
        self.peer: EngineId | None = None
        self.joining: EngineId | None = None

    def fire(self, event: str, **stated: bool) -> None:
        self.node.charts.link.fire(self, event, **stated)

    def effects_of(self, event: str, **stated: bool) -> tuple[str, ...]:
        """What the event would have to do; refuses as the event would."""
        return self.node.charts.link.peek(self, event, **stated).effects

    def attach_peer(self) -> None:
        self.peer, self.joining = self.joining, None

    def drop_peer_pins(self) -> None:
        """Every transfer that the other end has in progress here is broken off."""
        for transfer in self.node.cluster.transfers_of(self.peer):
            if transfer.remote == self.node.engine and not transfer.broken_off:
                self.node.cluster.break_off(transfer)
                self.node.tenants[transfer.remote_cache].unpin(transfer.pin)

    def tell_peer(self) -> None:
        """The cluster that was reached drops its end, also what it still holds of a link that this end had dropped."""
        end = self.node.cluster.cluster(self.cluster_id).link_to(self.node.cluster_id)
        if end.heeds(self.node.engine):
            end.fire("peer_unlinked")

    def heeds(self, engine: EngineId) -> bool:
        """Whether this end is dropped when ``engine`` unlinks: a sound link to another one is not."""
        return self.peer == engine or self.state == "BROKEN"

    def tell(self, event: str) -> None:
        """The other end learns of ``event``, if it still holds a link to this engine."""
        other = self.node.cluster.running(self.peer)
        if other is None:
            return
        end = other.link_to(self.node.cluster_id)
        if end.peer == self.node.engine:
            end.fire(event)


@dataclass
class Transfer:
    """A pull or push between begin and finish. Its caller is the local side; the remote side's key is consumed."""

    number: int
    is_pull: bool
    local: EngineId
    local_cache: int
    local_slot: int
    local_tensors: range
    remote: EngineId
    remote_cache: int
    remote_slot: int
    remote_tensors: range
    size: int
    copied: bool = False
    broken_off: bool = False

    @property
    def pin(self) -> Pin:
        return ("transfer", self.number)


class Node:
    """A process with one ``LLMDataDist`` and its cache manager: lives by the ENGINE machine."""

    def __init__(self, cluster: Cluster, name: str, cluster_id: int, incarnation: int) -> None:
        self.state = cluster.charts.engine.machine.initial
        self.cluster = cluster
        self.name = name
        self.cluster_id = cluster_id
        self.incarnation = incarnation
        self.times_initialised = 0
        self._become_empty()

    def _become_empty(self) -> None:
        self.settings: Settings | None = None
        self.listen_address: Address | None = None
        self.pools: dict[str, Pool] = {}
        self.tenants: dict[int, Tenant] = {}
        self.key_index: dict[KeyIdentity, tuple[int, int]] = {}
        self.links: dict[int, Link] = {}
        self.next_cache_id = 1
        self.next_view = 1

    @property
    def charts(self) -> Statecharts:
        return self.cluster.charts

    @property
    def engine(self) -> EngineId:
        return (self.name, self.incarnation, self.times_initialised)

    # -- init and finalize (api §2.3, §4.4) -----------------------------------------------------------------------

    def init(self, options: Any) -> None:
        if "acquire_resources" not in self.charts.engine.peek(self, "init").effects:
            return  # already initialised: the options are not looked at
        settings = read_options(options)
        self.listen_address = self.cluster.bind(settings.listen_address)
        self.settings = settings
        self.charts.engine.fire(self, "init")

    def acquire_resources(self) -> None:
        assert self.settings is not None
        self.times_initialised += 1
        self.pools = {placement: Pool(settings) for placement, settings in self.settings.pools.items()}

    def finalize(self) -> None:
        if self.cluster.transfers_of(self.engine):
            raise WouldWait("finalize waits for the calls in progress")
        self.charts.engine.fire(self, "finalize")

    def release_everything(self) -> None:
        for link in self.links.values():
            self._drop_link(link, "peer_unlinked")  # in good order: the other end need not unlink by force
        for tenant in list(self.tenants.values()):
            for pin in list(tenant.pins):
                tenant.unpin(pin)
            for slot in [slot for slot in tenant.batch_slots if slot.key is not None]:
                self.charts.batch_slot.fire(slot, "remove")
            tenant.drop_id()
        assert not self.tenants, f"finalize left the caches {sorted(self.tenants)} behind"
        self._become_empty()

    def _serving(self) -> Settings:
        self.charts.engine.fire(self, "call")
        assert self.settings is not None
        return self.settings

    # -- links (api §2.4, §4.1) -----------------------------------------------------------------------------------

    def link_clusters(self, clusters: Any, timeout: Any = 3000) -> tuple[str, list[str]]:
        settings = self._serving()
        self._check_timeout(timeout)
        check_sequence("clusters", clusters, ClusterInfo)
        for info in clusters:
            require(not settings.needs_local_address or info.local_ip_info_list, "local_ip_info_list is empty")
            check_integer("remote_cluster_id", info.remote_cluster_id, "uint64")
        return self._entries(self._link, clusters)

    def unlink_clusters(self, clusters: Any, timeout: Any = 3000, force: Any = False) -> tuple[str, list[str]]:
        settings = self._serving()
        self._check_timeout(timeout)
        check_sequence("clusters", clusters, ClusterInfo)
        check_type("force", force, bool)
        for info in clusters:
            check_integer("remote_cluster_id", info.remote_cluster_id, "uint64")
        return self._entries(self._force_unlink if force or settings.unlinks_by_force else self._unlink, clusters)

    @staticmethod
    def _check_timeout(timeout: Any) -> None:
        check_integer("timeout", timeout, "int32")
        require(timeout > 0, f"timeout should be greater than 0, but is {timeout}")

    @staticmethod
    def _entries(handle: Callable[[Any], None], clusters: Sequence[ClusterInfo]) -> tuple[str, list[str]]:
        if not clusters:
            return "LLM_PARAM_INVALID", []
        if len(clusters) > MOST_CLUSTERS_PER_CALL:
            return "LLM_CLUSTER_NUM_EXCEED_LIMIT", []
        codes = []
        for info in clusters:
            try:
                handle(info)
                codes.append("LLM_SUCCESS")
            except Refused as refused:
                codes.append(refused.error)
        failures = [code for code in codes if code != "LLM_SUCCESS"]
        return failures[-1] if failures else "LLM_SUCCESS", codes

    def _link(self, info: Any) -> None:
        settings = self._serving()
        require(len(info.remote_ip_info_list) == 1, "there should be one remote ip info")
        local_addresses = len(info.local_ip_info_list)
        require(not settings.needs_local_address or local_addresses == 1, "there should be one local ip info")
        server = self.cluster.listener(info.remote_ip_info_list[0])
        link = self.link_to(info.remote_cluster_id)
        link.effects_of("link", peer_reachable=server is not None)
        assert server is not None and server.settings is not None
        require(server.settings.remote_mode == settings.remote_mode, "the two ends differ in remote mode")
        require(server.cluster_id == info.remote_cluster_id, f"the cluster id of the server is {server.cluster_id}")
        require(server is not self, "a cluster cannot be linked to itself")
        for end in (self, server):
            links = sum(other.state != "UNLINKED" for other in end.links.values())
            require(settings.remote_mode or links < MOST_LINKS, "too many links", "LLM_FAILED")
        accepting = server.link_to(self.cluster_id)
        if "detach_peer" in accepting.effects_of("accept"):
            server._wait_for_transfers_over(accepting)
        self.links[link.cluster_id], server.links[accepting.cluster_id] = link, accepting
        link.joining, accepting.joining = server.engine, self.engine
        link.fire("link", peer_reachable=True)
        accepting.fire("accept")

    def _unlink(self, info: Any) -> None:
        require(len(info.remote_ip_info_list) == 1, "there should be one remote ip info")
        link = self.link_to(info.remote_cluster_id)
        server = self.cluster.listener(info.remote_ip_info_list[0])
        reachable = server is not None and server.cluster_id == info.remote_cluster_id
        effects = link.effects_of("unlink", peer_reachable=reachable)
        assert server is not None
        if "detach_peer" in effects:
            self._wait_for_transfers_over(link)
        if server.link_to(self.cluster_id).heeds(self.engine):
            server._wait_for_transfers_over(server.link_to(self.cluster_id))
        link.fire("unlink", peer_reachable=reachable)

    def _force_unlink(self, info: Any) -> None:
        link = self.link_to(info.remote_cluster_id)
        self._wait_for_transfers_over(link)
        self._drop_link(link)

    def link_to(self, cluster_id: int) -> Link:
        """This node's end of its link to a cluster; one that it never had is unlinked."""
        return self.links.get(cluster_id) or Link(self, cluster_id)

    def _wait_for_transfers_over(self, link: Link) -> None:
        own = [transfer for transfer in self.cluster.transfers_of(self.engine) if transfer.remote == link.peer]
        require(not own, "a transfer over the link is in progress", "LLM_TIMEOUT")

    @staticmethod
    def _drop_link(link: Link, told: str = "peer_gone") -> None:
        """Drop this end; the other finds its connection closed, or is told otherwise before."""
        was_attached = "drop_peer_pins" in link.effects_of("force_unlink")
        link.fire("force_unlink")
        if was_attached:
            link.tell(told)

    # -- caches (seed, api §3.1-3.4) ------------------------------------------------------------------------------

    def allocate_cache(self, cache_desc: Any, cache_keys: Any = ()) -> Cache:
        self._serving()
        check_given("cache_desc", cache_desc, CacheDesc)
        check_sequence("cache_keys", cache_keys, CacheKey)
        require(cache_desc.num_tensors > 0, "num_tensors should be bigger than zero")
        require(cache_desc.placement in self.pools, "you should config memory pool firstly")
        self._check_dimensions(cache_desc)
        self._check_keys(cache_desc, cache_keys)
        pages = self.pools[cache_desc.placement].room_for(cache_desc.num_tensors, cache_desc.size)
        if pages is None:
            raise Refused("LLM_OUT_OF_MEMORY", f"no room for {cache_desc}")
        tenant = self.tenants[self.next_cache_id] = Tenant(self, self.next_cache_id, cache_desc, pages)
        self.next_cache_id += 1
        for slot, key in zip(tenant.batch_slots, cache_keys, strict=False):
            slot.bind(key)
        self.charts.cache.fire(tenant, "allocate")
        return Cache(tenant.cache_id, cache_desc, self.engine)

    @staticmethod
    def _check_dimensions(desc: CacheDesc) -> None:
        require(1 <= len(desc.shape) <= MOST_DIMENSIONS, f"a shape has 1 to {MOST_DIMENSIONS} dimensions")
        require(all(dimension > 0 for dimension in desc.shape), f"a dimension of {desc.shape} is not positive")
        require(desc.size < 2**63, f"a tensor of {desc.size} bytes is too large")
        before_batch = desc.shape[: desc.batch_dim_index]
        require(all(dimension == 1 for dimension in before_batch), "the batch slots should be contiguous")

    def _check_keys(self, desc: CacheDesc, keys: Sequence[CacheKey]) -> None:
        require(len(keys) <= desc.batch_size, f"{len(keys)} cache_keys for a batch of {desc.batch_size}")
        for key in keys:
            require(key.identity not in self.key_index, f"{key} is already bound")

    def deallocate_cache(self, cache: Any) -> None:
        self._serving()
        check_given("cache", cache, Cache)
        given_by = self.cluster.running(cache.engine)
        tenant = given_by.tenants.get(cache.cache_id) if given_by else None
        if tenant is not None:
            tenant.handle_is_spent = True  # whoever is asked to deallocate it (api §3.3)
        if tenant is None or given_by is not self:
            self.charts.cache.step("FREE", "drop_id")  # unknown, or gone already
        else:
            tenant.drop_id()

    def remove_cache_key(self, cache_key: Any) -> None:
        self._serving()
        check_given("cache_key", cache_key, CacheKey)
        slot = self.slot_of(cache_key.identity)
        if slot is not None:
            self.charts.batch_slot.fire(slot, "remove")

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

    def tensor_places(self, cache: Cache) -> list[int]:
        """Where each tensor begins, in bytes from the beginning of its pool; empty once deallocated (api §3.3)."""
        tenant = self._tenant_of(cache)
        if tenant is None or tenant.handle_is_spent:
            return []
        return [run.start * self.pools[tenant.placement].page_bytes for run in tenant.pages]

    def open_view(self, cache: Cache) -> View:
        """Look at the memory of a cache: pins it until the view is closed.

        Of a cache that was deallocated too, as long as keys hold its memory.
        """
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
        memory = self._memory_of(cache)[tensor_index]
        assert offset + len(content) <= len(memory), "beyond the end of the tensor"
        memory[offset : offset + len(content)] = content

    def contents(self, cache: Cache | View) -> list[bytes]:
        """The bytes of every tensor, while the memory is held."""
        return [bytes(tensor) for tensor in self._memory_of(cache)]

    def _memory_of(self, handle: Cache | View) -> list[bytearray]:
        tenant = self._tenant_of(handle)
        if tenant is None:
            raise Refused("LLM_KV_CACHE_NOT_EXIST", f"the memory of {handle} went back to the pool")
        return tenant.tensors

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
        check_size(size)
        if req_id is not None:
            check_integer("req_id", req_id, "uint64")
        target, source = self._open(self._tenant_of(dst)), self._open(self._tenant_of(src))  # api §3.8
        require(target.num_tensors == source.num_tensors, "the caches differ in num_tensors")
        require(dst_batch_index < len(target.batch_slots), f"dst_batch_index {dst_batch_index} is out of range")
        require(src_batch_index < len(source.batch_slots), f"src_batch_index {src_batch_index} is out of range")
        shorter = min(target.slot_bytes, source.slot_bytes)
        require(offset == 0 or offset < shorter, f"offset {offset} is beyond the slot")
        length = source.slot_bytes - offset if size == -1 else size
        require(offset + length <= shorter, f"{length} bytes at {offset} do not fit in the slot")
        for to, origin in zip(target.tensors, source.tensors, strict=True):
            to[target.slot_range(dst_batch_index, offset, length)] = origin[
                source.slot_range(src_batch_index, offset, length)
            ]

    # -- transfers (api §2.5, §3.5-3.7) ---------------------------------------------------------------------------

    def pull_cache(self, *arguments: Any, **keywords: Any) -> None:
        self._run(self.begin_pull(*arguments, **keywords))

    def push_cache(self, *arguments: Any, **keywords: Any) -> None:
        self._run(self.begin_push(*arguments, **keywords))

    def _run(self, transfer: int) -> None:
        self.copy(transfer)
        self.finish(transfer)

    def begin_pull(self, cache_key: Any, cache: Any, batch_index: Any = 0, size: Any = -1, **keywords: Any) -> int:
        """Check a pull and pin both sides; returns the number of the transfer."""
        settings = self._serving()
        by_id = (CacheKeyByIdAndIndex,)
        check_given("cache_key", cache_key, *(by_id if settings.remote_mode else (CacheKey, *by_id)))
        layers, per_layer = self._pull_keywords(keywords)
        check_given("cache", cache, Cache)
        check_integer("batch_index", batch_index, "uint32")
        check_integer("size", size, "int64")
        check_size(size)
        check_tensor_num_per_layer(per_layer)
        if isinstance(cache_key, CacheKey):
            self._check_one_id(cache_key)
        for name, value in layers.items():
            check_pull_range(name, value)
        # The numbers are the steps of api §3.6.
        require(cache_key.cluster_id != self.cluster_id, f"{cache_key} names the own cluster")  # 1
        local = self._open(self._tenant_of(cache))  # 2
        require(batch_index < len(local.batch_slots), f"batch_index {batch_index} is out of range")  # 3
        require(size <= local.slot_bytes, f"size {size} is more than the {local.slot_bytes} bytes of a slot")
        length = local.slot_bytes if size == -1 else size
        src_layers, dst_layers = layers["src_layer_range"], layers["dst_layer_range"]
        self._check_layers(local, dst_layers, src_layers, per_layer)  # 4
        local_tensors = tensors_of_layers(local, dst_layers, per_layer)
        owner = self._other_end(cache_key.cluster_id)  # 5
        remote, remote_slot = owner._find(cache_key)  # 7
        in_range = remote_slot < len(remote.batch_slots)
        require(in_range, f"{cache_key} is beyond the batch", "LLM_KV_CACHE_NOT_EXIST")
        remote_tensors = tensors_of_layers(remote, src_layers, per_layer)  # 8
        require(len(local_tensors) == len(remote_tensors), "the two sides differ in tensors")
        require(length <= remote.slot_bytes, f"a remote slot has only {remote.slot_bytes} bytes")
        return self._begin(True, local, batch_index, local_tensors, remote, remote_slot, remote_tensors, length)

    def begin_push(
        self,
        dst_cache_key: Any,
        src_cache: Any,
        src_batch_index: Any = 0,
        src_layer_range: Any = None,
        dst_layer_range: Any = None,
        size: Any = -1,
        tensor_num_per_layer: Any = 2,
    ) -> int:
        """Check a push and pin both sides; returns the number of the transfer."""
        settings = self._serving()
        require(settings.remote_mode, "only supported while enable_remote_cache_accessible is True")
        check_type("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        check_type("src_cache", src_cache, Cache)
        check_integer("src_batch_index", src_batch_index, "uint32")
        check_tensor_num_per_layer(tensor_num_per_layer)
        check_push_range("src_layer_range", src_layer_range)
        check_push_range("dst_layer_range", dst_layer_range)
        if src_layer_range is not None and dst_layer_range is not None:
            equal = len(src_layer_range) == len(dst_layer_range)
            require(equal, "src_layer_range size should be equal to dst_layer_range size")
        check_integer("size", size, "int64")
        require(size == -1, f"size should be = -1. but is {size}")
        local = self._open(self._tenant_of(src_cache))  # api §3.7
        owner = self._other_end(dst_cache_key.cluster_id)
        remote, remote_slot = owner._find(dst_cache_key)
        require(src_batch_index < len(local.batch_slots), f"src_batch_index {src_batch_index} is out of range")
        require(remote_slot < len(remote.batch_slots), f"{dst_cache_key} is beyond the batch")
        self._check_layers(local, src_layer_range, dst_layer_range, tensor_num_per_layer)
        local_tensors = tensors_of_layers(local, src_layer_range, tensor_num_per_layer)
        remote_tensors = tensors_of_layers(remote, dst_layer_range, tensor_num_per_layer)
        require(len(local_tensors) == len(remote_tensors), "the two sides differ in tensors")
        require(local.slot_bytes <= remote.slot_bytes, f"a remote slot has only {remote.slot_bytes} bytes")
        return self._begin(
            False, local, src_batch_index, local_tensors, remote, remote_slot, remote_tensors, local.slot_bytes
        )

    @staticmethod
    def _pull_keywords(keywords: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        layers = {name: keywords.pop(name, None) for name in ("src_layer_range", "dst_layer_range")}
        per_layer = keywords.pop("tensor_num_per_layer", 2)
        require(not keywords, f"unexpected keyword arguments {sorted(keywords)}", "TypeError")
        return layers, per_layer

    @staticmethod
    def _check_one_id(key: CacheKey) -> None:
        """``check_cache_key`` (api §1.11): exactly one of request id and prefix id."""
        given = [number for number in (key.req_id, key.prefix_id) if number != INV]
        require(len(given) > 0, "one of req id and prefix id should contain valid value")
        require(len(given) < 2, "only one of req id and prefix id should contain valid value")

    @staticmethod
    def _check_layers(local: Tenant, local_layers: range | None, remote_layers: range | None, per_layer: int) -> None:
        """The rules for layer ranges that the local side can check (api §3.5)."""
        require(per_layer == 2 or per_layer <= local.num_tensors, f"tensor_num_per_layer {per_layer} is out of range")
        if local_layers is None and remote_layers is None:
            return
        require(local.num_tensors % per_layer == 0, f"{local.num_tensors} tensors are not whole layers of {per_layer}")
        selected = len(tensors_of_layers(local, local_layers, per_layer))
        if remote_layers is not None:
            require(selected == len(remote_layers) * per_layer, "the layer ranges differ in length")

    def _other_end(self, cluster_id: int) -> Node:
        """The node at the other end of a link over which a transfer may begin."""
        link = self.link_to(cluster_id)
        link.fire("transfer")
        other = self.cluster.running(link.peer)
        if other is None:
            raise Refused("LLM_NOT_YET_LINK", f"cluster {cluster_id} has gone")
        return other

    def _find(self, key: SlotKey) -> tuple[Tenant, int]:
        """What a key from another cluster stands for here: an open tenant and a batch index, perhaps out of range."""
        if isinstance(key, CacheKeyByIdAndIndex):
            return self._open(self.tenants.get(key.cache_id)), key.batch_index
        slot = self.slot_of(key.identity)
        return self._open(slot.tenant if slot else None), slot.index if slot else 0

    def _begin(
        self,
        is_pull: bool,
        local: Tenant,
        local_slot: int,
        local_tensors: range,
        remote: Tenant,
        remote_slot: int,
        remote_tensors: range,
        size: int,
    ) -> int:
        transfer = Transfer(
            self.cluster.next_transfer,
            is_pull,
            self.engine,
            local.cache_id,
            local_slot,
            local_tensors,
            remote.node.engine,
            remote.cache_id,
            remote_slot,
            remote_tensors,
            size,
        )
        self.cluster.next_transfer += 1
        local.pin(transfer.pin)
        remote.pin(transfer.pin)
        self.cluster.transfers[transfer.number] = transfer
        return transfer.number

    def copy(self, number: int) -> None:
        """Move the bytes of a transfer that has begun."""
        transfer = self._continue(number, copied=False)
        local, remote = self._sides(transfer)
        for mine, yours in zip(transfer.local_tensors, transfer.remote_tensors, strict=True):
            here = memoryview(local.tensors[mine])[local.slot_range(transfer.local_slot, 0, transfer.size)]
            there = memoryview(remote.tensors[yours])[remote.slot_range(transfer.remote_slot, 0, transfer.size)]
            if transfer.is_pull:
                here[:] = there
            else:
                there[:] = here
        transfer.copied = True

    def finish(self, number: int) -> None:
        """Complete a transfer whose bytes have arrived: the key is consumed, then both sides are let go."""
        transfer = self._continue(number, copied=True)
        _, remote = self._sides(transfer)
        remote.batch_slots[transfer.remote_slot].transferred(transfer.remote_tensors)
        self._end(transfer)

    def abandon(self, number: int) -> None:
        """End a transfer that did not complete: no key is consumed (api §3.4)."""
        self._end(self.cluster.transfers[number])

    def _continue(self, number: int, copied: bool) -> Transfer:
        """The transfer, if it may take its next step. One that was broken off ends here, with NOT_YET_LINK."""
        transfer = self.cluster.transfers[number]
        if transfer.local != self.engine or transfer.copied is not copied:
            raise ImpossibleEvent(f"{transfer} is not at this step")
        if transfer.broken_off:
            self._end(transfer)
            raise Refused("LLM_NOT_YET_LINK", "the link was dropped during the transfer")
        return transfer

    def _sides(self, transfer: Transfer) -> tuple[Tenant, Tenant]:
        other = self.cluster.running(transfer.remote)
        assert other is not None, "a transfer goes on although its other end has gone"
        return self.tenants[transfer.local_cache], other.tenants[transfer.remote_cache]

    def _end(self, transfer: Transfer) -> None:
        del self.cluster.transfers[transfer.number]
        self.tenants[transfer.local_cache].unpin(transfer.pin)
        if not transfer.broken_off:
            other = self.cluster.running(transfer.remote)
            assert other is not None
            other.tenants[transfer.remote_cache].unpin(transfer.pin)

    # -- what can be seen -----------------------------------------------------------------------------------------

    def observable(self) -> tuple[Any, ...]:
        """Everything that a caller can tell of this node, itself or by what later calls will do."""
        return (
            self.engine,
            self.cluster_id,
            self.state,
            self.listen_address,
            tuple(sorted((placement, pool.usage()) for placement, pool in self.pools.items())),
            tuple(sorted(self.key_index.items())),
            tuple(_observable_tenant(tenant) for _, tenant in sorted(self.tenants.items())),
            tuple(sorted((link.cluster_id, link.state) for link in self.links.values() if link.state != "UNLINKED")),
            self.next_cache_id,
        )

    def check(self) -> None:
        """Every invariant of a node."""
        assert (self.state == "READY") == (self.settings is not None), f"{self.name} is {self.state}"
        for tenant in self.tenants.values():
            self._check_tenant(tenant)
        indexed = {
            slot.key: (tenant.cache_id, slot.index)
            for tenant in self.tenants.values()
            for slot in tenant.batch_slots
            if slot.key is not None
        }
        assert indexed == self.key_index, f"the key index has {self.key_index}, the slots have {indexed}"
        for placement, pool in self.pools.items():
            held = {
                page: tenant.cache_id
                for tenant in self.tenants.values()
                if tenant.placement == placement
                for run in tenant.pages
                for page in run
            }
            assert held == pool.holder, f"the {placement} pool has {pool.holder}, the caches hold {held}"
            assert all(0 <= page < pool.pages for page in held), f"{held} is beyond the pool"
        for link in self.links.values():
            other = self.cluster.running(link.peer)
            if link.state == "LINKED" and other is not None:
                end = other.link_to(self.cluster_id)
                assert (end.state, end.peer) == ("LINKED", self.engine), f"{self.name} is linked from one end only"

    def _check_tenant(self, tenant: Tenant) -> None:
        facts = {"tenant": True, "id": tenant.id_held, "keys": tenant.keys_remain}
        states = {state.name: state for state in self.charts.cache.machine.states}
        signature = states[tenant.state].signature
        what = f"cache {tenant.cache_id} of {self.name} is {tenant.state}"
        assert all(facts[fact] == value for fact, value in signature.items()), f"{what}, but {facts}"
        assert tenant.is_open == (tenant.id_held or tenant.keys_remain), f"{what} and open: {tenant.is_open}"
        assert tenant.is_open or tenant.pins, f"{what}, but nothing keeps it"
        assert len(set(tenant.pins)) == len(tenant.pins), f"{what} and pinned twice by one holder: {tenant.pins}"
        for slot in tenant.batch_slots:
            expected = "UNKEYED" if slot.key is None else f"{slot.key[0].upper()}_KEYED"
            assert slot.state == expected, f"slot {slot.index} of {what}: {slot.state} by {slot.key}"
            assert slot.state != "REQUEST_KEYED" or slot.outstanding, (
                f"slot {slot.index} of {what}: nothing outstanding"
            )


def _observable_tenant(tenant: Tenant) -> tuple[Any, ...]:
    return (
        tenant.cache_id,
        tenant.state,
        tuple((run.start, run.stop) for run in tenant.pages),
        tuple((slot.key, tuple(sorted(slot.outstanding)) if slot.key else ()) for slot in tenant.batch_slots),
        tuple(sorted(tenant.pins)),
        tuple(bytes(tensor) for tensor in tenant.tensors),
    )


def tensors_of_layers(tenant: Tenant, layers: range | None, per_layer: int) -> range:
    """The tensors of a layer range; all of them without one."""
    if layers is None:
        return range(tenant.num_tensors)
    selected = range(layers.start * per_layer, layers.stop * per_layer)
    require(selected.stop <= tenant.num_tensors, f"{layers} is beyond the {tenant.num_tensors} tensors")
    return selected


class Cluster:
    """All nodes, and the transfers between them.

    Parameters
    ----------
    charts
        The machines that everything lives by: those of the lifecycle, unless a test gives others.
    """

    def __init__(self, charts: Statecharts | None = None) -> None:
        self.charts = charts or Statecharts.of()
        self.nodes: dict[str, Node] = {}
        self.incarnations: dict[str, int] = {}
        self.transfers: dict[int, Transfer] = {}
        self.next_transfer = 1

    def start(self, name: str, cluster_id: int) -> Node:
        """A process starts, perhaps in place of one that died; the cluster ids of the living are different."""
        taken = {node.cluster_id for node in self.nodes.values()}
        if name in self.nodes or cluster_id in taken:
            raise ValueError(f"{name} or cluster {cluster_id} is running already")
        self.incarnations[name] = self.incarnations.get(name, 0) + 1
        self.nodes[name] = Node(self, name, cluster_id, self.incarnations[name])
        return self.nodes[name]

    def kill(self, name: str, noticed: bool = True) -> None:
        """A process dies: its memory is gone, and what it had not completed it has not done.

        The others notice, or, with ``noticed=False``, have still to (:meth:`notice`).
        """
        dead = self.nodes.pop(name)
        for transfer in list(self.transfers.values()):
            if transfer.remote == dead.engine or (transfer.local == dead.engine and transfer.broken_off):
                self.break_off(transfer)
        if noticed:
            for node in self.nodes.values():
                self.notice(node.name, dead.cluster_id)

    def notice(self, name: str, cluster_id: int) -> None:
        """A node notices that the process at the other end of a link has gone, if it has."""
        link = self.nodes[name].link_to(cluster_id)
        if self.running(link.peer) is None:
            link.fire("peer_gone")

    def running(self, engine: EngineId | None) -> Node | None:
        """The node that runs an engine, if any does."""
        node = self.nodes.get(engine[0]) if engine else None
        return node if node is not None and node.engine == engine and node.settings is not None else None

    def cluster(self, cluster_id: int) -> Node:
        """The node with a cluster id that is known to be running."""
        return next(node for node in self.nodes.values() if node.cluster_id == cluster_id)

    def listener(self, address: Address) -> Node | None:
        """The node that listens at an address."""
        return next((node for node in self.nodes.values() if node.listen_address == address), None)

    def bind(self, address: Address | None) -> Address | None:
        """The address that a node will listen at; port 0 means any free one."""
        if address is None:
            return None
        taken = {node.listen_address for node in self.nodes.values()}
        ip, port = address
        if port == 0:
            port = FIRST_FREE_PORT
            while (ip, port) in taken:
                port += 1
        require((ip, port) not in taken, f"{ip}:{port} is in use", "LLM_FAILED")
        return (ip, port)

    def break_off(self, transfer: Transfer) -> None:
        """The remote side's pin is gone; the caller will find out, unless it has died."""
        transfer.broken_off = True
        if self.running(transfer.local) is None:
            del self.transfers[transfer.number]

    def transfers_of(self, engine: EngineId | None) -> list[Transfer]:
        """The transfers that an engine has called for, in progress."""
        return [transfer for transfer in self.transfers.values() if transfer.local == engine]

    def observable(self) -> tuple[Any, ...]:
        """A canonical, hashable image of everything that callers can tell."""
        return (
            tuple(self.nodes[name].observable() for name in sorted(self.nodes)),
            tuple(tuple(vars(transfer).values()) for _, transfer in sorted(self.transfers.items())),
        )

    def check(self) -> None:
        """Every invariant of the cluster.

        Raises
        ------
        AssertionError
            One of them does not hold.
        """
        for node in self.nodes.values():
            node.check()
        pins = {(node.engine, tenant.cache_id, pin) for node, tenant in self._tenants() for pin in tenant.pins}
        expected = set()
        for transfer in self.transfers.values():
            if self.running(transfer.local) is not None:
                expected.add((transfer.local, transfer.local_cache, transfer.pin))
            if not transfer.broken_off:
                expected.add((transfer.remote, transfer.remote_cache, transfer.pin))
        by_transfers = {pin for pin in pins if pin[2][0] == "transfer"}
        assert by_transfers == expected, f"pinned by {by_transfers}, but {expected} are in flight"

    def _tenants(self) -> Iterator[tuple[Node, Tenant]]:
        for node in self.nodes.values():
            for tenant in node.tenants.values():
                yield node, tenant

    def snapshot(self) -> bytes:
        """The whole cluster, apart from its machines, as bytes."""
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def restore(snapshot: bytes, charts: Statecharts) -> Cluster:
        """The cluster that :meth:`snapshot` was taken of, on the same machines."""
        cluster: Cluster = pickle.loads(snapshot)
        cluster.charts = charts
        return cluster

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "charts"}
