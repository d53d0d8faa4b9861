"""Layers sent while later ones are still being computed: ``transfer_cache_async`` (api §3.7).

What is asked for is read once, into one :class:`Order` for each config and the :class:`BlockLists` of all. A
:class:`LayerTask` then walks the layers of the source in ascending order. Here the walk is no thread: each call of
:meth:`LayerTask.step` serves one layer, and other calls may come between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arguments import check_indices, check_integer, check_type, layer_count, require
from .memory import Move, carry_out
from .statecharts import Refused
from .tenants import Pin, Tenant
from .transfers import (
    Run,
    WouldWait,
    addresses_of,
    block_to_block,
    check_blocks_exist,
    moves_of,
    slot_to_blocks,
    slot_to_slot,
    tensors_of_layers,
)
from .values import Cache, SlotKey, TransferConfig, TransferWithCacheKeyConfig

if TYPE_CHECKING:
    from .reference import Node

TENSORS_PER_LAYER = 2

#: Waits until a layer was computed: true if it was. It may raise instead.
Synchronizer = Callable[[int], bool]


@dataclass(frozen=True)
class BlockLists:
    """Which blocks of the source go to which of the target. ``block_bytes`` is 0 if it was not given."""

    source: tuple[int, ...] = ()
    target: tuple[int, ...] = ()
    block_bytes: int = 0


@dataclass(frozen=True)
class Order:
    """What one config wants: these layers of one slot, for layers of a cache (by its key) or for addresses."""

    cluster_id: int
    layers: range
    batch_index: int
    key: SlotKey | None = None
    first_target_layer: int = 0
    addresses: tuple[int, ...] = ()


# -- what is asked for (api §2.5) ------------------------------------------------------------------------------------


def read_orders(
    remote_mode: bool,
    src_cache: Any,
    layer_synchronizer: Any,
    transfer_configs: Any,
    src_block_indices: Any,
    dst_block_indices: Any,
    dst_block_memory_size: Any,
) -> tuple[list[Order], BlockLists]:
    """Check the arguments of ``transfer_cache_async`` in the contract's order."""
    check_type("src_cache", src_cache, Cache)
    desc = src_cache.cache_desc
    require(desc.placement != "HOST", "src cache not support placement HOST")
    lists = _read_lists(src_block_indices, dst_block_indices, dst_block_memory_size)
    require(callable(layer_synchronizer), "layer_synchronizer only support LayerSynchronizer", "TypeError")
    check_type("transfer_configs", transfer_configs, list, tuple)
    wanted = TransferWithCacheKeyConfig if remote_mode else TransferConfig
    for config in transfer_configs:
        right = isinstance(config, wanted)
        mode = f"While enable_remote_cache_accessible is {remote_mode}"
        require(right, f"{mode}, transfer_configs inner type only support {wanted.__name__}", "TypeError")
    only_with_target = lists.block_bytes == 0 or len(lists.target) > 0
    require(only_with_target, "dst_block_memory_size should be set with dst_block_indices only")
    require(desc.num_tensors % TENSORS_PER_LAYER == 0, f"num_tensors {desc.num_tensors} is not even")
    return [_read_order(src_cache, config) for config in transfer_configs], lists


def _read_lists(src_block_indices: Any, dst_block_indices: Any, dst_block_memory_size: Any) -> BlockLists:
    target = () if dst_block_indices is None else dst_block_indices
    check_indices("dst_block_indices", target)
    source = () if src_block_indices is None else src_block_indices
    check_indices("src_block_indices", source)
    block_bytes = 0 if dst_block_memory_size is None else dst_block_memory_size
    check_integer("dst_block_memory_size", block_bytes, "uint64")
    require(not source or len(target) > 0, "transfer from blocks to cache is not supported")
    require(not source or len(source) == len(target), "num_block_indices mismatches")
    known = bool(source) or not target or block_bytes > 0
    require(known, "dst_block_memory_size must be set when a cache is sent to blocks")
    return BlockLists(tuple(source), tuple(target), block_bytes)


def _read_order(src_cache: Cache, config: Any) -> Order:
    desc = src_cache.cache_desc
    slots = 1 if src_cache.is_blocks_cache else desc.batch_size
    require(config.src_batch_index < slots, f"src_batch_index {config.src_batch_index} should be in [0, {slots})")
    count = desc.num_tensors // TENSORS_PER_LAYER
    layers = range(count) if config.src_layer_range is None else config.src_layer_range
    require(0 <= layers.start < layers.stop <= count, f"{layers} is out of range, there are {count} layers")
    if isinstance(config, TransferWithCacheKeyConfig):
        first = config.dst_layer_range.start
        return Order(config.cache_key.cluster_id, layers, config.src_batch_index, config.cache_key, first)
    enough = len(config.dst_addrs) == TENSORS_PER_LAYER * layer_count(layers)
    require(enough, f"there are {len(config.dst_addrs)} dst_addrs for {layer_count(layers)} layers")
    return Order(config.dst_cluster_id, layers, config.src_batch_index, addresses=tuple(config.dst_addrs))


# -- the walk --------------------------------------------------------------------------------------------------------


class LayerTask:
    """A walk over the layers of a cache, which it pins until its end.

    ``results`` has, for each order that has ended, how it ended. ``source`` is None if it could not be pinned.
    """

    def __init__(
        self,
        node: Node,
        number: int,
        source: Tenant | None,
        wait_for: Synchronizer,
        orders: list[Order],
        lists: BlockLists,
    ) -> None:
        self.node = node
        self.number = number
        self.source = source
        self.wait_for = wait_for
        self.orders = orders
        self.lists = lists
        self.results: list[str | None] = [None] * len(orders)
        self.next_layer = self._next_wanted(0)
        node.tasks.add(number)
        if source is not None:
            source.pin(self.pin)
        self._end_if_done()

    @property
    def pin(self) -> Pin:
        return ("task", self.number)

    @property
    def ended(self) -> bool:
        return self.next_layer is None

    def step(self) -> None:
        """Wait for the next layer that somebody wants, and send it to everybody who does, in their order."""
        layer = self.next_layer
        assert layer is not None, "the task has ended"
        failure = self._synchronize(layer)
        for index, order in self._wanting(layer):
            error = failure or self._send(order, layer)
            if error is not None:
                self.results[index] = error
            elif layer + 1 == order.layers.stop:
                self.results[index] = "LLM_SUCCESS"
        self.next_layer = self._next_wanted(layer + 1)
        self._end_if_done()

    def run(self) -> None:
        """Take every step that is left."""
        while not self.ended:
            self.step()

    def synchronize(self, timeout_in_millis: Any = None) -> str:
        """How the whole went: the first code that is no success."""
        if not self._waited(timeout_in_millis):
            return "LLM_TIMEOUT"
        codes = ["LLM_FAILED" if code is None else code for code in self.results]
        return next((code for code in codes if code != "LLM_SUCCESS"), "LLM_SUCCESS")

    def get_results(self, timeout_in_millis: Any = None) -> list[str | None]:
        """How each config went."""
        return list(self.results) if self._waited(timeout_in_millis) else ["LLM_TIMEOUT"] * len(self.results)

    def _waited(self, timeout_in_millis: Any) -> bool:
        if timeout_in_millis is not None:
            check_integer("timeout_in_millis", timeout_in_millis, "uint32")
        if timeout_in_millis is None and not self.ended:
            raise WouldWait("the task has steps left")
        return self.ended

    def _wanting(self, layer: int) -> list[tuple[int, Order]]:
        """The orders for a layer that have not ended."""
        return [
            (index, order)
            for index, order in enumerate(self.orders)
            if self.results[index] is None and layer in order.layers
        ]

    def _next_wanted(self, start: int) -> int | None:
        """The first layer from ``start`` on that somebody wants."""
        last = max((order.layers.stop for order in self.orders), default=0)
        return next((layer for layer in range(start, last) if self._wanting(layer)), None)

    def _end_if_done(self) -> None:
        if not self.ended:
            return
        self.node.tasks.remove(self.number)
        if self.source is not None:
            self.source.unpin(self.pin)

    def _synchronize(self, layer: int) -> str | None:
        try:
            return None if self.wait_for(layer) else "LLM_PARAM_INVALID"
        except Exception:  # whatever the caller's own code raises (api D42)
            return "LLM_FAILED"

    def _send(self, order: Order, layer: int) -> str | None:
        try:
            if self.source is None:
                raise Refused("LLM_KV_CACHE_NOT_EXIST", "the source was deallocated")
            other = self.node._other_end(order.cluster_id)
            carry_out(self._moves(self.source, other, order, layer), self.node.memory, other.memory)
        except Refused as refused:
            return refused.error
        return None

    def _moves(self, source: Tenant, other: Node, order: Order, layer: int) -> Sequence[Move]:
        tensors = range(layer * TENSORS_PER_LAYER, (layer + 1) * TENSORS_PER_LAYER)
        here = addresses_of(source, tensors)
        position = layer - order.layers.start
        if order.key is None:
            first = position * TENSORS_PER_LAYER
            there = order.addresses[first : first + TENSORS_PER_LAYER]
            runs = runs_to_address(source, order.batch_index, self.lists)
            for address in there:
                check_target(other, address, source, self.lists)
            return moves_of(here, there, runs)
        target, slot = other._find(order.key)
        runs = runs_to_cache(source, order.batch_index, target, slot, self.lists)
        target_layer = order.first_target_layer + position
        target_tensors = tensors_of_layers(target, range(target_layer, target_layer + 1), TENSORS_PER_LAYER)
        self.node._check_accessible(source, target)
        return moves_of(here, addresses_of(target, target_tensors), runs)


# -- which bytes of a tensor -----------------------------------------------------------------------------------------


def runs_to_cache(source: Tenant, batch_index: int, target: Tenant, target_slot: int, lists: BlockLists) -> list[Run]:
    """What goes where, in a tensor of a cache."""
    require(target_slot < len(target.batch_slots), f"slot {target_slot} is beyond the batch")
    if not source.is_blocks_cache and not lists.target:
        require(not target.is_blocks_cache, "a slot goes to blocks only where dst_block_indices are given")
        require(source.row_bytes <= target.row_bytes, f"a remote slot has only {target.row_bytes} bytes")
        return slot_to_slot(source, batch_index, target, target_slot, source.row_bytes)
    require(target.is_blocks_cache, "the remote cache is not a blocks cache")
    check_blocks_exist("dst_block_indices", lists.target, target)
    runs = _runs_to_blocks(source, batch_index, lists)
    block_bytes = source.row_bytes if source.is_blocks_cache else lists.block_bytes
    require(target.row_bytes == block_bytes, f"a remote block has {target.row_bytes} bytes")
    all_match = bool(lists.target) or target.row_count == source.row_count
    require(all_match, f"the remote cache has {target.row_count} blocks")
    return runs


def runs_to_address(source: Tenant, batch_index: int, lists: BlockLists) -> list[Run]:
    """What goes where, from an address on: that of a slot, or of the first of the blocks."""
    if not source.is_blocks_cache and not lists.target:
        return [Run(batch_index * source.row_bytes, 0, source.row_bytes)]
    return _runs_to_blocks(source, batch_index, lists)


def _runs_to_blocks(source: Tenant, batch_index: int, lists: BlockLists) -> list[Run]:
    if not lists.target:
        every_block = range(source.row_count)
        return block_to_block(source.row_bytes, every_block, every_block)
    if not lists.source:
        require(not source.is_blocks_cache, "src_block_indices are needed for a blocks cache")
        return slot_to_blocks(source, batch_index, lists.block_bytes, lists.target)
    require(source.is_blocks_cache, "src_block_indices are for a blocks cache")
    require(lists.block_bytes in (0, source.row_bytes), f"a block has {source.row_bytes} bytes")
    check_blocks_exist("src_block_indices", lists.source, source)
    return block_to_block(source.row_bytes, lists.source, lists.target)


def check_target(other: Node, address: int, source: Tenant, lists: BlockLists) -> None:
    """What is written from an address on lies within one tensor of a cache that may be written there (api D46)."""
    if lists.target:
        block_bytes = source.row_bytes if source.is_blocks_cache else lists.block_bytes
        size = (max(lists.target) + 1) * block_bytes
    else:
        size = source.tensor_bytes if source.is_blocks_cache else source.row_bytes
    found = any(
        begin <= address <= address + size <= begin + tenant.tensor_bytes
        and _takes(tenant, address - begin, source, lists)
        for tenant in other.tenants.values()
        for begin in tenant.addresses
    )
    require(found, f"no cache of cluster {other.cluster_id} takes {size} bytes at {address:#x}")


def _takes(tenant: Tenant, offset: int, source: Tenant, lists: BlockLists) -> bool:
    """Whether a cache takes what begins at an offset in one of its tensors."""
    if not (tenant.is_open and tenant.remote_accessible):
        return False
    if lists.target:
        return tenant.is_blocks_cache or not source.is_blocks_cache  # B→C is refused in any form (api §3.5)
    if not source.is_blocks_cache:
        return not tenant.is_blocks_cache
    alike = (tenant.row_count, tenant.row_bytes) == (source.row_count, source.row_bytes)
    return tenant.is_blocks_cache and alike and offset == 0
