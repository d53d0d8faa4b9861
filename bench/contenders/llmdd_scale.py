"""llmdd beside many instances that are linked to one owner, and pulls of few and of many blocks."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, CacheManager, DataType, LLMDataDist, LLMRole

from ..contender import Contender, require
from ..nodes import link, node
from ..other_end import OtherEnd
from ..payload import fill
from ..scattered import Scattered, write
from .llmdd_caches import OWNER, PAGE_BYTES, Cycles

FIRST_PEER = 2
PAGE_SHIFT = 12


class Owner:
    """The process whose caches are pulled."""

    def __init__(self, memory_size: int) -> None:
        self._stack = ExitStack()
        self._datadist = self._stack.enter_context(node(LLMRole.PROMPT, OWNER, memory_size, PAGE_SHIFT))
        self._manager: CacheManager = self._datadist.cache_manager

    def address(self) -> tuple[str, int] | None:
        return self._datadist.listen_address

    def offer(self, first_request: int, count: int, slot_bytes: int) -> None:
        """For each request a cache with its payload, which only its key keeps."""
        desc = CacheDesc(1, (1, slot_bytes), DataType.DT_UINT8)
        for req_id in range(first_request, first_request + count):
            cache = self._manager.allocate_cache(desc, [CacheKey(OWNER, req_id)])
            fill(cache.tensors[0], req_id)
            self._manager.deallocate_cache(cache)

    def offer_blocks(self, count: int, block_bytes: int) -> None:
        """Make the blocks cache of model 0."""
        desc = CacheDesc(1, (count, block_bytes), DataType.DT_UINT8)
        self._blocks = self._manager.allocate_blocks_cache(desc, BlocksCacheKey(OWNER))

    def write_blocks(self, number: int) -> None:
        write(self._blocks.tensors[0], number)

    def left_over(self) -> tuple[int, int]:
        """Keys that are bound and caches that live."""
        self._manager.check()
        return self._manager.live_keys, self._manager.live_caches

    def close(self) -> None:
        self._stack.close()


class PullsByPeers(Contender):
    """``pull_cache`` of requests of another process by `peers` instances of this one, each its share.

    Parameters
    ----------
    peers : int
        Instances linked to the owner, each of which pulls into a cache of its own; a divisor of :attr:`operations`.
    slot_bytes : int
        Of a request's cache.
    """

    operations = 1024

    def __init__(self, peers: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.owner = OtherEnd(Owner, self.operations * slot_bytes)
        self.stack = ExitStack()
        slots = self.operations // peers
        desc = CacheDesc(1, (slots, slot_bytes), DataType.DT_UINT8)
        address = self.owner.call("address")
        self.managers: list[CacheManager] = []
        for cluster_id in range(FIRST_PEER, FIRST_PEER + peers):
            datadist: LLMDataDist = self.stack.enter_context(
                node(LLMRole.DECODER, cluster_id, slots * slot_bytes, PAGE_SHIFT)
            )
            link(datadist, OWNER, address)
            self.managers.append(datadist.cache_manager)
        caches = [manager.allocate_cache(desc) for manager in self.managers]
        self.places = [(cache, batch_index) for cache in caches for batch_index in range(slots)]
        self.pulls = [manager.pull_cache for manager in self.managers for _ in range(slots)]
        self.keys: list[CacheKey] = []

    def prepare(self, number: int) -> None:
        first = number * self.operations
        self.owner.call("offer", first, self.operations, self.slot_bytes)
        self.keys = [CacheKey(OWNER, req_id) for req_id in range(first, first + self.operations)]

    def run(self) -> None:
        for pull, key, (cache, batch_index) in zip(self.pulls, self.keys, self.places, strict=True):
            pull(key, cache, batch_index)

    def inspect(self, number: int) -> None:
        expected = np.empty(self.slot_bytes, np.uint8)
        for key, (cache, batch_index) in zip(self.keys, self.places, strict=True):
            fill(expected, key.req_id)
            require(np.array_equal(cache.tensors[0][batch_index], expected), f"request {key.req_id}: wrong bytes")
        keys, caches = self.owner.call("left_over")
        require((keys, caches) == (0, 0), f"the owner has {keys} keys and {caches} caches left")

    def verify(self) -> None:
        for manager in self.managers:
            manager.check()

    def other_processes(self) -> list[int]:
        return [self.owner.pid]

    def close(self) -> None:
        self.stack.close()
        self.owner.close()


class LinkedInstances:
    """A process with instances that are linked to an owner."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._managers: list[CacheManager] = []
        self._desc = CacheDesc(1, (1, PAGE_BYTES), DataType.DT_INT8)

    def link(self, count: int, address: tuple[str, int]) -> None:
        for cluster_id in range(FIRST_PEER, FIRST_PEER + count):
            datadist = self._stack.enter_context(node(LLMRole.DECODER, cluster_id, PAGE_BYTES, 10))
            link(datadist, OWNER, address)
            self._managers.append(datadist.cache_manager)

    def pull(self, number: int) -> bytes:
        """What instance `number` pulls of the request of the same number."""
        manager = self._managers[number]
        cache = manager.allocate_cache(self._desc)
        manager.pull_cache(CacheKey(OWNER, number), cache)
        pulled = cache.tensors[0].tobytes()
        manager.deallocate_cache(cache)
        manager.check()
        return pulled

    def close(self) -> None:
        self._stack.close()


class CyclesBesidePeers(Cycles):
    """A cycle of the owner, while `peers` instances of another process are linked to it.

    Parameters
    ----------
    peers : int
    """

    def __init__(self, peers: int) -> None:
        self.peers = peers
        self.instances = OtherEnd(LinkedInstances)
        super().__init__(live=0)
        self.instances.call("link", peers, self.datadist.listen_address)

    def verify(self) -> None:
        """Nothing is left; and every instance is still linked, for it pulls what is offered to it."""
        super().verify()
        for peer in range(self.peers):
            cache = self.manager.allocate_cache(self.desc, [CacheKey(OWNER, peer)])
            fill(cache.tensors[0], peer)
            written = cache.tensors[0].tobytes()
            self.manager.deallocate_cache(cache)
            require(self.instances.call("pull", peer) == written, f"instance {peer} pulled wrong bytes")
        super().verify()

    def other_processes(self) -> list[int]:
        return [self.instances.pid]

    def close(self) -> None:
        self.instances.close()
        super().close()


class BlocksPulls(Contender):
    """``pull_blocks`` of scattered blocks of another process, both block lists in random order.

    Parameters
    ----------
    blocks : int
        In one pull.
    block_bytes : int
        Of each.
    total : int
        Of the owner's blocks cache: those that a round pulls, each once.
    seed : int
        Of the orders.
    """

    def __init__(self, blocks: int, block_bytes: int, total: int, seed: int) -> None:
        self.operations = total // blocks
        self.owner = OtherEnd(Owner, total * block_bytes)
        self.owner.call("offer_blocks", total, block_bytes)
        self.stack = ExitStack()
        datadist: LLMDataDist = self.stack.enter_context(
            node(LLMRole.DECODER, FIRST_PEER, total * block_bytes, PAGE_SHIFT)
        )
        link(datadist, OWNER, self.owner.call("address"))
        self.manager: CacheManager = datadist.cache_manager
        self.cache = self.manager.allocate_blocks_cache(CacheDesc(1, (total, block_bytes), DataType.DT_UINT8))
        self.scattered = Scattered(total, seed)
        sources, targets = self.scattered.sources, self.scattered.targets
        self.lists = [
            (sources[first : first + blocks], targets[first : first + blocks]) for first in range(0, total, blocks)
        ]
        self.key = BlocksCacheKey(OWNER)

    def prepare(self, number: int) -> None:
        self.owner.call("write_blocks", number)

    def run(self) -> None:
        pull, key, cache = self.manager.pull_blocks, self.key, self.cache
        for sources, targets in self.lists:
            pull(key, cache, sources, targets)

    def inspect(self, number: int) -> None:
        self.scattered.require_arrived(self.cache.tensors[0], number)

    def verify(self) -> None:
        keys, caches = self.owner.call("left_over")
        require((keys, caches) == (1, 1), f"the owner has {keys} keys and {caches} caches, not its blocks cache alone")
        self.manager.check()

    def other_processes(self) -> list[int]:
        return [self.owner.pid]

    def close(self) -> None:
        self.stack.close()
        self.owner.close()
