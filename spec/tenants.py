"""A cache as its owner knows it, and its batch slots: what lives by the machines CACHE and BATCH_SLOT.

A tensor consists of *rows*: the batch slots of a continuous cache (C), the blocks of a blocks cache (B). A continuous
cache has a :class:`BatchSlot`, which may be keyed, for each row; a blocks cache has one, the whole of it.

Where the memory comes from makes the other difference: an allocated cache takes pages of a pool, and what it holds goes
back there; a registered one has been given addresses of the caller's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .values import CacheDesc, KeyIdentity

if TYPE_CHECKING:
    from .caches import CacheOwner

#: What holds a pin: ("view", "transfer" or "task", number).
Pin = tuple[str, int]


class BatchSlot:
    """One batch slot of a cache: lives by the BATCH_SLOT machine."""

    def __init__(self, tenant: Tenant, index: int) -> None:
        self.state = tenant.node.charts.batch_slot.machine.initial
        self.tenant = tenant
        self.index = index
        self.key: KeyIdentity | None = None
        self.outstanding = set(range(tenant.num_tensors))
        self.lease_end: int | None = None

    def bind(self, key: KeyIdentity | None, lease_end: int | None = None) -> None:
        """Give the slot its key, which supersedes the same key in an earlier slot (seed §10, §11)."""
        charts = self.tenant.node.charts
        if key is None:
            charts.batch_slot.fire(self, "bind_placeholder")
            return
        earlier = self.tenant.node.slot_of(key)
        if earlier is not None:
            charts.batch_slot.fire(earlier, "supersede")
        self.key = key
        self.lease_end = lease_end
        charts.batch_slot.fire(self, f"bind_{key[0]}")

    def transferred(self, tensors: Iterable[int]) -> None:
        """These tensors have arrived where they should."""
        self.outstanding.difference_update(tensors)
        self.tenant.node.charts.batch_slot.fire(self, "transfer")

    def renew(self, lease: int) -> None:
        """The lease is to end so many milliseconds from now, or later."""
        renewed = self.tenant.node.charts.batch_slot.fire(self, "renew").effects
        if "renew_lease" in renewed and self.lease_end is not None:
            self.lease_end = max(self.lease_end, self.tenant.node.cluster.clock + lease)

    @property
    def tensors_remain(self) -> bool:
        return bool(self.outstanding)

    @property
    def lease_over(self) -> bool:
        return self.lease_end is not None and self.lease_end <= self.tenant.node.cluster.clock

    @property
    def registered(self) -> bool:
        return self.tenant.registered

    def index_key(self) -> None:
        assert self.key is not None
        self.tenant.node.key_index[self.key] = (self.tenant.cache_id, self.index)

    def unindex_key(self) -> None:
        assert self.key is not None
        del self.tenant.node.key_index[self.key]
        self.key = None
        self.lease_end = None

    def drop_key(self) -> None:
        self.tenant.node.charts.cache.fire(self.tenant, "drop_key")
        self.tenant.settle()


class Tenant:
    """A cache as its owner knows it: lives by the CACHE machine, from its making to the return of its memory.

    Parameters
    ----------
    addresses
        Where each tensor begins.
    pages
        The pages of the pool that each tensor takes; None for a registered cache.
    remote_accessible
        Whether other clusters may transfer from and to it in remote mode, and to its addresses in two-sided mode.
    """

    def __init__(
        self,
        node: CacheOwner,
        cache_id: int,
        desc: CacheDesc,
        is_blocks_cache: bool,
        addresses: Sequence[int],
        pages: Sequence[range] | None = None,
        remote_accessible: bool = True,
    ) -> None:
        self.state = node.charts.cache.machine.initial
        self.node = node
        self.cache_id = cache_id
        self.is_blocks_cache = is_blocks_cache
        self.placement = desc.placement
        self.num_tensors = desc.num_tensors
        self.tensor_bytes = desc.size
        self.row_count = desc.shape[0] if is_blocks_cache else desc.batch_size
        self.row_bytes = desc.size // self.row_count
        self.addresses = list(addresses)
        self.registered = pages is None
        self.pages = list(pages or ())
        self.remote_accessible = remote_accessible
        self.is_open = False
        self.id_held = True
        self.handle_is_spent = False
        self.pins: list[Pin] = []
        self.batch_slots = [BatchSlot(self, index) for index in range(1 if is_blocks_cache else self.row_count)]

    @property
    def keys_remain(self) -> bool:
        return any(slot.key is not None for slot in self.batch_slots)

    @property
    def pinned(self) -> bool:
        return bool(self.pins)

    def tensor(self, index: int) -> memoryview:
        """The bytes of a tensor; refuses one whose memory the program has taken away."""
        return self.node.memory.reach(self.addresses[index], self.tensor_bytes)

    def drop_id(self) -> None:
        self.id_held = False
        self.node.charts.cache.fire(self, "drop_id")
        self.settle()

    def withdraw(self) -> None:
        """Drop the id and all keys at once (api §3.3)."""
        for slot in self.batch_slots:
            self.node.charts.batch_slot.fire(slot, "withdraw")
        self.drop_id()

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
        if self.registered:
            return
        self.node.pools[self.placement].take(self.pages, self.cache_id)
        for address in self.addresses:
            self.node.memory.map(address, self.tensor_bytes)

    def open_slot(self) -> None:
        self.is_open = True

    def close_slot(self) -> None:
        self.is_open = False

    def return_memory(self) -> None:
        if self.registered:
            return
        for address in self.addresses:
            self.node.memory.unmap(address)
        self.node.pools[self.placement].give_back(self.pages, self.cache_id)

    def advance_generation(self) -> None:
        del self.node.tenants[self.cache_id]
