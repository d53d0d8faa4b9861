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
* the order in which the transfers over one link are served. Here they may overlap;
* what has arrived of a transfer that failed on the way. Here it is nothing.

A transfer is three steps: *begin* (all checks, both sides pinned), *copy*, *finish* (the key consumed, both sides
unpinned); ``pull_cache`` and its like are the three in a row. Other calls may come between them.

Links by rank table, and switches of role, are in :mod:`.communicators`.

The parts: :mod:`.caches` is what a node does alone, with :mod:`.tenants` in :mod:`.memory`; :mod:`.transfers` says what
may be moved where, :mod:`.layerwise` what moves layer by layer, and :mod:`.bulk` has the calls for many keys at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from .arguments import (
    check_given,
    check_indices,
    check_integer,
    check_pull_range,
    check_push_range,
    check_sequence,
    check_size,
    check_tensor_num_per_layer,
    check_type,
    layer_count,
    require,
)
from .bulk import deallocate_many, lookup_many, pull_many, remove_cache_keys, renew_leases
from .communicators import Communicator, Member, meet
from .layerwise import LayerTask, read_orders
from .links import Link
from .machine import ImpossibleEvent
from .memory import FIRST_OWN_ADDRESS, Pool, PoolUsage, carry_out
from .options import read_options
from .statecharts import Refused, Statecharts
from .tenants import Tenant
from .transfers import (
    EngineId,
    Run,
    Transfer,
    WouldWait,
    addresses_of,
    block_to_block,
    check_blocks_exist,
    check_layers,
    moves_of,
    slot_to_blocks,
    slot_to_slot,
    tensors_of_layers,
)
from .values import (
    INV,
    Address,
    BlocksCacheKey,
    Cache,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
    MemInfo,
    SlotKey,
)

__all__ = ["Cluster", "Node", "Pool", "PoolUsage", "WouldWait"]

MOST_CLUSTERS_PER_CALL = 16
MOST_LINKS = 512
FIRST_FREE_PORT = 49152


class Node(Member):
    """A process with one ``LLMDataDist`` and its cache manager: lives by the ENGINE machine."""

    def _become_empty(self) -> None:
        super()._become_empty()
        self.listen_address: Address | None = None
        self.links: dict[int, Link] = {}
        self.tasks: set[int] = set()  # the numbers of those that run
        self.next_task = 1

    # -- init and finalize (api §2.3, §4.4) -----------------------------------------------------------------------

    def init(self, options: Any) -> None:
        if "acquire_resources" not in self.charts.engine.peek(self, "init").effects:
            return  # already initialised: the options are not looked at
        settings = read_options(options)
        self.listen_address = self.cluster.bind(settings.listen_address)
        self.settings = settings
        self.charts.engine.fire(self, "init")
        self.cluster.meet()

    def acquire_resources(self) -> None:
        assert self.settings is not None
        self.times_initialised += 1
        self.pools = {placement: Pool(settings) for placement, settings in self.settings.pools.items()}

    def finalize(self) -> None:
        if self.cluster.transfers_of(self.engine) or self.tasks:
            raise WouldWait("finalize waits for the calls in progress")
        self.charts.engine.fire(self, "finalize")
        self.cluster.meet()

    def release_everything(self) -> None:
        for link in self.links.values():
            self._drop_link(link, "peer_unlinked")  # in good order: the other end need not unlink by force
        self._drop_communicators()
        for tenant in list(self.tenants.values()):
            for pin in list(tenant.pins):
                tenant.unpin(pin)
            tenant.withdraw()
        assert not self.tenants, f"finalize left the caches {sorted(self.tenants)} behind"
        self._become_empty()

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
        calls = self.cluster.transfers_of(self.engine)
        own = [transfer for transfer in calls if transfer.remote == link.peer and not transfer.over]
        require(not own, "a transfer over the link is in progress", "LLM_TIMEOUT")

    @staticmethod
    def _drop_link(link: Link, told: str = "peer_gone") -> None:
        """Drop this end; the other finds its connection closed, or is told otherwise before."""
        was_attached = "drop_peer_pins" in link.effects_of("force_unlink")
        link.fire("force_unlink")
        if was_attached:
            link.tell(told)

    # -- pulls (api §3.6) -----------------------------------------------------------------------------------------

    def pull_cache(self, *arguments: Any, **keywords: Any) -> None:
        self.run(self.begin_pull(*arguments, **keywords))

    def pull_blocks(self, *arguments: Any, **keywords: Any) -> None:
        self.run(self.begin_pull_blocks(*arguments, **keywords))

    def begin_pull(self, cache_key: Any, cache: Any, batch_index: Any = 0, size: Any = -1, **keywords: Any) -> int:
        """Check a pull and pin both sides; returns the number of the transfer."""
        settings = self._serving()
        by_id = (CacheKeyByIdAndIndex,)
        check_given("cache_key", cache_key, *(by_id if settings.remote_mode else (CacheKey, *by_id)))
        layers, per_layer = self._pull_keywords(keywords)
        check_given("cache", cache, Cache)
        check_integer("batch_index", batch_index, "uint32")
        check_integer("size", size, "int64")
        require(not cache.is_blocks_cache, "cache can not be blocks cache")
        check_size(size)
        check_tensor_num_per_layer(per_layer)
        if isinstance(cache_key, CacheKey):
            self._check_one_id(cache_key)
        for name, value in layers.items():
            check_pull_range(name, value)
        # The numbers are the steps of api §3.6.
        require(cache_key.cluster_id != self.cluster_id, f"{cache_key} names the own cluster")  # 1
        local = self._open(self._tenant_of(cache))  # 2
        require(batch_index < local.row_count, f"batch_index {batch_index} is out of range")  # 3
        require(size <= local.row_bytes, f"size {size} is more than the {local.row_bytes} bytes of a slot")
        length = local.row_bytes if size == -1 else size
        src_layers, dst_layers = layers["src_layer_range"], layers["dst_layer_range"]
        check_layers(local, dst_layers, src_layers, per_layer)  # 4
        local_tensors = tensors_of_layers(local, dst_layers, per_layer)
        owner = self._other_end(cache_key.cluster_id)  # 5
        remote, remote_slot = owner._find_slot(cache_key)  # 7
        require(not remote.is_blocks_cache, "the remote cache is a blocks cache")  # 8
        remote_tensors = tensors_of_layers(remote, src_layers, per_layer)
        require(len(local_tensors) == len(remote_tensors), "the two sides differ in tensors")
        require(length <= remote.row_bytes, f"a remote slot has only {remote.row_bytes} bytes")
        self._check_accessible(local, remote)  # 9
        runs = slot_to_slot(remote, remote_slot, local, batch_index, length)
        return self._begin(True, local, local_tensors, remote, remote_slot, remote_tensors, runs)

    def begin_pull_blocks(
        self, src_cache_key: Any, dst_cache: Any, src_blocks: Any = (), dst_blocks: Any = (), **keywords: Any
    ) -> int:
        """Check a pull into blocks and pin both sides; returns the number of the transfer."""
        self._serving()
        check_given("src_cache_key", src_cache_key, CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey)
        layers, per_layer = self._pull_keywords(keywords)
        check_given("dst_cache", dst_cache, Cache)
        src_blocks = () if src_blocks is None else src_blocks
        check_indices("src_blocks", src_blocks)
        check_indices("dst_blocks", dst_blocks)
        require(dst_cache.is_blocks_cache, "dst_cache should be blocks cache")
        require(len(dst_blocks) > 0, "dst_blocks can not be empty")
        check_tensor_num_per_layer(per_layer)
        from_blocks = isinstance(src_cache_key, BlocksCacheKey)
        if from_blocks:
            require(len(src_blocks) > 0, "src_blocks can not be empty")
        else:
            require(len(src_blocks) == 0, "src_blocks should be empty")
        if isinstance(src_cache_key, CacheKey):
            self._check_one_id(src_cache_key)
        for name, value in layers.items():
            check_pull_range(name, value)
        # The numbers are the steps of api §3.6.
        require(src_cache_key.cluster_id != self.cluster_id, f"{src_cache_key} names the own cluster")  # 1
        local = self._open(self._tenant_of(dst_cache))  # 2
        src_layers, dst_layers = layers["src_layer_range"], layers["dst_layer_range"]
        check_layers(local, dst_layers, src_layers, per_layer)  # 4
        local_tensors = tensors_of_layers(local, dst_layers, per_layer)
        owner = self._other_end(src_cache_key.cluster_id)  # 5
        equal = not from_blocks or len(src_blocks) == len(dst_blocks)
        require(equal, f"{len(src_blocks)} src_blocks, but {len(dst_blocks)} dst_blocks")  # 6
        check_blocks_exist("dst_blocks", dst_blocks, local)
        remote, remote_slot = owner._find_slot(src_cache_key)  # 7
        remote_tensors = tensors_of_layers(remote, src_layers, per_layer)  # 8
        require(len(local_tensors) == len(remote_tensors), "the two sides differ in tensors")
        if from_blocks:
            self._check_block_bytes(local, remote)
            check_blocks_exist("src_blocks", src_blocks, remote)
            runs = block_to_block(local.row_bytes, src_blocks, dst_blocks)
        else:
            require(not remote.is_blocks_cache, "the remote cache is a blocks cache")
            runs = slot_to_blocks(remote, remote_slot, local.row_bytes, dst_blocks)
        self._check_accessible(local, remote)  # 9
        return self._begin(True, local, local_tensors, remote, remote_slot, remote_tensors, runs)

    @staticmethod
    def _pull_keywords(keywords: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        layers = {name: keywords.pop(name, None) for name in ("src_layer_range", "dst_layer_range")}
        per_layer = keywords.pop("tensor_num_per_layer", 2)
        require(not keywords, f"unexpected keyword arguments {sorted(keywords)}", "TypeError")
        return layers, per_layer

    @staticmethod
    def check_cache_key(cache_key: Any) -> None:
        """Refuse a key that has not exactly one of request id and prefix id (api §1.11)."""
        check_given("cache_key", cache_key, CacheKey)
        Node._check_one_id(cache_key)

    @staticmethod
    def _check_one_id(key: CacheKey) -> None:
        given = [number for number in (key.req_id, key.prefix_id) if number != INV]
        require(len(given) > 0, "one of req id and prefix id should contain valid value")
        require(len(given) < 2, "only one of req id and prefix id should contain valid value")

    # -- pushes (api §3.7) ----------------------------------------------------------------------------------------

    def push_cache(self, *arguments: Any, **keywords: Any) -> None:
        self.run(self.begin_push(*arguments, **keywords))

    def push_blocks(self, *arguments: Any, **keywords: Any) -> None:
        self.run(self.begin_push_blocks(*arguments, **keywords))

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
        self._check_remote_mode()
        check_type("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        check_type("src_cache", src_cache, Cache)
        check_integer("src_batch_index", src_batch_index, "uint32")
        require(not src_cache.is_blocks_cache, "cache can not be blocks cache")
        self._check_push_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        check_integer("size", size, "int64")
        require(size == -1, f"size should be = -1. but is {size}")
        local = self._open(self._tenant_of(src_cache))
        owner = self._other_end(dst_cache_key.cluster_id)
        remote, remote_slot = owner._find(dst_cache_key)
        require(not remote.is_blocks_cache, "the remote cache is a blocks cache")
        require(src_batch_index < local.row_count, f"src_batch_index {src_batch_index} is out of range")
        require(remote_slot < remote.row_count, f"{dst_cache_key} is beyond the batch")
        require(local.row_bytes <= remote.row_bytes, f"a remote slot has only {remote.row_bytes} bytes")
        runs = slot_to_slot(local, src_batch_index, remote, remote_slot, local.row_bytes)
        tensors = self._pushed_tensors(local, src_layer_range, remote, dst_layer_range, tensor_num_per_layer)
        return self._begin(False, local, tensors[0], remote, remote_slot, tensors[1], runs)

    def begin_push_blocks(
        self,
        dst_cache_key: Any,
        src_cache: Any,
        src_blocks: Any = (),
        dst_blocks: Any = (),
        src_layer_range: Any = None,
        dst_layer_range: Any = None,
        tensor_num_per_layer: Any = 2,
    ) -> int:
        """Check a push of blocks and pin both sides; returns the number of the transfer."""
        self._check_remote_mode()
        check_given("dst_cache_key", dst_cache_key, BlocksCacheKey)
        check_given("src_cache", src_cache, Cache)
        check_indices("src_blocks", src_blocks)
        check_indices("dst_blocks", dst_blocks)
        require(src_cache.is_blocks_cache, "cache should be blocks cache")
        require(len(dst_blocks) > 0, "dst_blocks can not be empty")
        require(len(src_blocks) > 0, "src_blocks can not be empty")
        equal = len(src_blocks) == len(dst_blocks)
        require(equal, f"{len(src_blocks)} src_blocks, but {len(dst_blocks)} dst_blocks")
        self._check_push_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        local = self._open(self._tenant_of(src_cache))
        owner = self._other_end(dst_cache_key.cluster_id)
        remote, remote_slot = owner._find(dst_cache_key)
        self._check_block_bytes(local, remote)
        check_blocks_exist("src_blocks", src_blocks, local)
        check_blocks_exist("dst_blocks", dst_blocks, remote)
        runs = block_to_block(local.row_bytes, src_blocks, dst_blocks)
        tensors = self._pushed_tensors(local, src_layer_range, remote, dst_layer_range, tensor_num_per_layer)
        return self._begin(False, local, tensors[0], remote, remote_slot, tensors[1], runs)

    def _check_remote_mode(self) -> None:
        settings = self._serving()
        require(settings.remote_mode, "only supported while enable_remote_cache_accessible is True")

    @staticmethod
    def _check_push_layers(src_layer_range: Any, dst_layer_range: Any, per_layer: Any) -> None:
        check_tensor_num_per_layer(per_layer)
        check_push_range("src_layer_range", src_layer_range)
        check_push_range("dst_layer_range", dst_layer_range)
        if src_layer_range is not None and dst_layer_range is not None:
            equal = layer_count(src_layer_range) == layer_count(dst_layer_range)
            require(equal, "src_layer_range size should be equal to dst_layer_range size")

    def _pushed_tensors(
        self, local: Tenant, src_layers: range | None, remote: Tenant, dst_layers: range | None, per_layer: int
    ) -> tuple[range, range]:
        """The tensors of both sides, where neither refuses them."""
        check_layers(local, src_layers, dst_layers, per_layer)
        local_tensors = tensors_of_layers(local, src_layers, per_layer)
        remote_tensors = tensors_of_layers(remote, dst_layers, per_layer)
        require(len(local_tensors) == len(remote_tensors), "the two sides differ in tensors")
        self._check_accessible(local, remote)
        return local_tensors, remote_tensors

    # -- both sides of a transfer ---------------------------------------------------------------------------------

    def _other_end(self, cluster_id: int) -> Node:
        """The node at the other end of a link, or of a communicator, over which a transfer may begin."""
        communicator = self._way_to(cluster_id)
        engine = communicator.connected[cluster_id][0] if communicator else self.link_to(cluster_id).peer
        other = self.cluster.running(engine)
        if other is None:
            raise Refused("LLM_NOT_YET_LINK", f"cluster {cluster_id} has gone")
        return other

    def _way_to(self, cluster_id: int) -> Communicator | None:
        """The communicator over which a transfer to a cluster runs; None: over the one-sided link."""
        link = self.link_to(cluster_id)
        communicator = self.communicator_to(cluster_id) if link.state != "LINKED" else None
        if communicator is None:
            link.fire("transfer")
        return communicator

    def _find(self, key: SlotKey) -> tuple[Tenant, int]:
        """What a key from another cluster stands for here: an open tenant and a batch index, perhaps out of range."""
        if isinstance(key, CacheKeyByIdAndIndex):
            return self._open(self.tenants.get(key.cache_id)), key.batch_index
        slot = self.slot_of(key.identity)
        return self._open(slot.tenant if slot else None), slot.index if slot else 0

    def _find_slot(self, key: SlotKey) -> tuple[Tenant, int]:
        """The same for a pull, which does not know of a slot that is out of range."""
        tenant, index = self._find(key)
        in_range = index < len(tenant.batch_slots)
        require(in_range, f"{key} is beyond the batch", "LLM_KV_CACHE_NOT_EXIST")
        return tenant, index

    @staticmethod
    def _check_block_bytes(local: Tenant, remote: Tenant) -> None:
        require(remote.is_blocks_cache, "the remote cache is not a blocks cache")
        require(local.row_bytes == remote.row_bytes, f"a remote block has {remote.row_bytes} bytes")

    def _check_accessible(self, local: Tenant, remote: Tenant) -> None:
        """In remote mode both sides must be (api §3.6 (9))."""
        accessible = local.remote_accessible and remote.remote_accessible
        require(accessible or not self._serving().remote_mode, "a cache is not remote accessible")

    def _begin(
        self,
        is_pull: bool,
        local: Tenant,
        local_tensors: range,
        remote: Tenant,
        remote_slot: int,
        remote_tensors: range,
        runs: Sequence[Run],
    ) -> int:
        here, there = addresses_of(local, local_tensors), addresses_of(remote, remote_tensors)
        way = self._way_to(remote.node.cluster_id)
        transfer = Transfer(
            self.cluster.next_transfer,
            is_pull,
            self.engine,
            local.cache_id,
            remote.node.engine,
            remote.cache_id,
            remote_slot,
            remote_tensors,
            moves_of(there, here, runs) if is_pull else moves_of(here, there, runs),
            way.number if way else 0,
        )
        self.cluster.next_transfer += 1
        local.pin(transfer.pin)
        remote.pin(transfer.pin)
        self.cluster.transfers[transfer.number] = transfer
        return transfer.number

    def run(self, transfer: int) -> None:
        """What is left of a transfer that has begun."""
        self.copy(transfer)
        self.finish(transfer)

    def copy(self, number: int) -> None:
        """Move the bytes of a transfer that has begun. Where memory was taken away it ends here."""
        transfer = self._continue(number, copied=False)
        local, remote = self._sides(transfer)
        here, there = local.node.memory, remote.node.memory
        try:
            carry_out(transfer.moves, *((there, here) if transfer.is_pull else (here, there)))
        except Refused:
            self._end(transfer)
            raise
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

    def source_of(self, transfer: Transfer) -> Tenant:
        """The cache of another node that a pull in progress is from."""
        return self._sides(transfer)[1]

    def _end(self, transfer: Transfer) -> None:
        del self.cluster.transfers[transfer.number]
        self.tenants[transfer.local_cache].unpin(transfer.pin)
        if not transfer.broken_off:
            other = self.cluster.running(transfer.remote)
            assert other is not None
            other.tenants[transfer.remote_cache].unpin(transfer.pin)

    # -- layer by layer (api §3.7) --------------------------------------------------------------------------------

    def transfer_cache_async(self, *arguments: Any, **keywords: Any) -> LayerTask:
        task = self.begin_transfer_async(*arguments, **keywords)
        task.run()
        return task

    def begin_transfer_async(
        self,
        src_cache: Any,
        layer_synchronizer: Any,
        transfer_configs: Any,
        src_block_indices: Any = None,
        dst_block_indices: Any = None,
        dst_block_memory_size: Any = None,
    ) -> LayerTask:
        """Check the arguments and pin the source; no layer has been looked at yet."""
        settings = self._serving()
        blocks = (src_block_indices, dst_block_indices, dst_block_memory_size)
        orders, lists = read_orders(settings.remote_mode, src_cache, layer_synchronizer, transfer_configs, *blocks)
        source: Tenant | None = None
        with suppress(Refused):  # whoever wants a layer will be told
            source = self._open(self._tenant_of(src_cache))
        number = self.next_task
        self.next_task += 1
        return LayerTask(self, number, source, layer_synchronizer, orders, lists)

    # -- many at once -------------------------------------------------------------------------------------------------

    def lookup_many(self, *arguments: Any, **keywords: Any) -> tuple[list[int], list[int]]:
        return lookup_many(self, *arguments, **keywords)

    def remove_cache_keys(self, *arguments: Any, **keywords: Any) -> list[bool]:
        return remove_cache_keys(self, *arguments, **keywords)

    def deallocate_many(self, *arguments: Any, **keywords: Any) -> list[bool]:
        return deallocate_many(self, *arguments, **keywords)

    def renew_leases(self, *arguments: Any, **keywords: Any) -> list[str]:
        return renew_leases(self, *arguments, **keywords)

    def owner_of(self, key: CacheKey | CacheKeyByIdAndIndex) -> Node:
        """The node that a key names, if it is this one or a transfer from it could begin."""
        return self if key.cluster_id == self.cluster_id else self._other_end(key.cluster_id)

    def renew_lease(self, key: CacheKey | CacheKeyByIdAndIndex, lease: int) -> None:
        """For the node itself, and for a peer: the lease of a key of ours is to end so many milliseconds from now."""
        tenant, index = self._find_slot(key)
        tenant.batch_slots[index].renew(lease)

    def pull_many(self, *arguments: Any, **keywords: Any) -> list[str]:
        return pull_many(self, *arguments, **keywords)

    # -- the rest (api §2.5) --------------------------------------------------------------------------------------

    def remap_registered_memory(self, mem_infos: Any) -> None:
        """Check what is given. There is nothing to do: no device loses its memory here."""
        self._serving()
        check_type("mem_infos", mem_infos, MemInfo, list)
        infos = mem_infos if isinstance(mem_infos, list) else [mem_infos]
        check_sequence("mem_infos", infos, MemInfo)
        for info in infos:
            require(info.mem_type == "MEM_TYPE_DEVICE", "only support Memtype.MEM_TYPE_DEVICE")
            require(info.addr != 0, "addr of mem_infos can not be zero")
            require(info.size > 0, "size of mem_infos should be bigger than zero")
        require(len(infos) > 0, "mem_infos can not be empty")
        require(self._has_links(), "there is no link", "LLM_NOT_YET_LINK")

    def _has_links(self) -> bool:
        links = any(link.state == "LINKED" for link in self.links.values())
        return links or any(each.state == "OK" and each.connected for each in self.communicators.values())

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
            (self.role, self.next_communicator),
            tuple(communicator.observable() for communicator in self.communicators.values()),
            tuple(sorted(self.tasks)),
            tuple(sorted((address, bytes(piece)) for address, piece in self.memory.pieces.items())),
        )

    def check(self) -> None:
        """Every invariant of a node."""
        self.check_communicators()
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
        allocated = {address: tenant.tensor_bytes for tenant in self._allocated() for address in tenant.addresses}
        mapped = {address: len(piece) for address, piece in self.memory.pieces.items() if address < FIRST_OWN_ADDRESS}
        assert mapped == allocated, f"{mapped} is mapped in the pools, but the caches hold {allocated}"
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
        walking = {number for tenant in self.tenants.values() for kind, number in tenant.pins if kind == "task"}
        assert walking <= self.tasks, f"the tasks {walking} pin caches, but only {self.tasks} run"
        for link in self.links.values():
            other = self.cluster.running(link.peer)
            if link.state == "LINKED" and other is not None:
                end = other.link_to(self.cluster_id)
                assert (end.state, end.peer) == ("LINKED", self.engine), f"{self.name} is linked from one end only"

    def _allocated(self) -> list[Tenant]:
        return [tenant for tenant in self.tenants.values() if not tenant.registered]

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
            remaining = slot.state != "REQUEST_KEYED" or tenant.registered or slot.outstanding
            assert remaining, f"slot {slot.index} of {what}: nothing outstanding"


def _observable_tenant(tenant: Tenant) -> tuple[Any, ...]:
    return (
        tenant.cache_id,
        tenant.state,
        tenant.is_blocks_cache,
        tenant.remote_accessible,
        tuple(tenant.addresses),
        tuple((slot.key, tuple(sorted(slot.outstanding)) if slot.key else ()) for slot in tenant.batch_slots),
        tuple(sorted(tenant.pins)),
        tenant.handle_is_spent,
    )


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
        self.clock = 0  # milliseconds

    def let_time_pass(self, milliseconds: int) -> None:
        """Nothing happens but what time brings: every owner drops the keys whose leases are over."""
        self.clock += milliseconds
        for node in list(self.nodes.values()):
            if node.settings is not None:
                node.expire_leases()

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
            for node in list(self.nodes.values()):
                self.notice(node.name, dead.cluster_id)
        self.meet()

    def notice(self, name: str, cluster_id: int) -> None:
        """A node notices that the process at the other end of a link has gone, if it has."""
        link = self.nodes[name].link_to(cluster_id)
        if self.running(link.peer) is None:
            link.fire("peer_gone")
        self.nodes[name].lose_members(cluster_id)
        self.meet()

    def meet(self) -> None:
        """Connect the members of communicators that can be connected now."""
        meet(self)

    def running(self, engine: EngineId | None) -> Node | None:
        """The node that runs an engine, if any does."""
        node = self.nodes.get(engine[0]) if engine else None
        return node if node is not None and node.engine == engine and node.settings is not None else None

    def cluster(self, cluster_id: int) -> Node:
        """The node with a cluster id that is known to be running."""
        return next(node for node in self.nodes.values() if node.cluster_id == cluster_id)

    def listener(self, address: Address) -> Node | None:
        """The node that listens at an address."""
        return next((node for node in self.nodes.values() if address in node.addresses()), None)

    def bind(self, address: Address | None) -> Address | None:
        """The address that a node will listen at; port 0 means any free one."""
        if address is None:
            return None
        taken = {address for node in self.nodes.values() for address in node.addresses()}
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
