"""llmdd pulls: the caches of a linked owner in another process, by the keys of requests."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module

import numpy as np
import numpy.typing as npt

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, DataType, LLMRole

from .. import payload
from ..contender import require
from ..hosts import OneHost, TwoHosts
from ..nodes import link, node
from .pulls import BlockPulls, Owner, Pulls

OWNER, PULLER = 1, 2
PAGE_SHIFT = 12

#: Keys that one call of ``pull_many`` gets.
BATCH = 64


def require_engine(hosts: OneHost | TwoHosts) -> None:
    """:class:`~..contender.Unavailable` if a link between `hosts` takes NIXL, and there is none."""
    if isinstance(hosts, TwoHosts):
        import_module(f"{__package__}.nixl_pulls")


class Node(Owner):
    """An owner that is an instance of llmdd, listening at `host`, with a pool for `rows` caches of `size` bytes."""

    def __init__(self, size: int, rows: int, host: str) -> None:
        super().__init__(np.empty((0, 0), np.uint8))
        self.rows = rows
        self._open = ExitStack()
        datadist = self._open.enter_context(node(LLMRole.PROMPT, OWNER, size * rows, PAGE_SHIFT, host=host))
        self.manager = datadist.cache_manager
        self.address = datadist.listen_address

    def listen_address(self) -> tuple[str, int]:
        assert self.address is not None
        return self.address

    def left(self) -> int:
        self.manager.check()
        return max(self.manager.live_keys, self.manager.live_caches)

    def close(self) -> None:
        self._open.close()


class PoolOwner(Node):
    """Offers a cache of its pool for each request; nothing but the request's key keeps it."""

    def __init__(self, size: int, rows: int, host: str) -> None:
        super().__init__(size, rows, host)
        self._desc = CacheDesc(1, (1, size), DataType.DT_UINT8)

    def offer(self, first_request_id: int) -> dict[int, int]:
        for request_id in range(first_request_id, first_request_id + self.rows):
            cache = self.manager.allocate_cache(self._desc, [CacheKey(OWNER, request_id)])
            payload.fill(cache.tensors[0], request_id)
            self.manager.deallocate_cache(cache)
        return {}


class RegisteredOwner(PoolOwner):
    """Offers memory of its own, registered for each request anew.

    A transfer leaves the keys of registered memory bound, and the owner drops them.
    """

    def __init__(self, size: int, rows: int, host: str) -> None:
        super().__init__(size, rows, host)
        self.memory = np.zeros((rows, size), np.uint8)
        self._registered: list[int] = []

    def offer(self, first_request_id: int) -> dict[int, int]:
        self.write(first_request_id)
        for row, memory in enumerate(self.memory):
            key = CacheKey(OWNER, first_request_id + row)
            cache = self.manager.register_cache(self._desc, [memory.ctypes.data], [key], remote_accessible=True)
            self._registered.append(cache.cache_id)
        return {}

    def left(self) -> int:
        for cache_id in self._registered:
            self.manager.unregister_cache(cache_id)
        self._registered.clear()
        return super().left()


class CachePulls(Pulls):
    """``pull_cache`` for each request.

    Parameters
    ----------
    registered : bool
        The owner's caches are in registered memory and not in its pool.
    """

    def __init__(self, size: int, count: int, registered: bool = False, **how: bool) -> None:
        super().__init__(size, count, **how)
        require_engine(self.hosts)
        self.owner = self.start(RegisteredOwner if registered else PoolOwner, size, count, self.hosts.far)
        self._open = ExitStack()
        datadist = self._open.enter_context(
            node(LLMRole.DECODER, PULLER, size * count, PAGE_SHIFT, host=self.hosts.near)
        )
        link(datadist, OWNER, self.owner.call("listen_address"), self.hosts.near)
        self.manager = datadist.cache_manager
        slots = self.slots_of_a_cache()
        desc = CacheDesc(1, (slots, size), DataType.DT_UINT8)
        self.caches = [self.manager.allocate_cache(desc) for _ in range(0, count, slots)]
        self.pulled = [slot for cache in self.caches for slot in cache.tensors[0]]
        self.keys: list[CacheKey] = []

    def slots_of_a_cache(self) -> int:
        """Of those that requests are pulled into: here one has room for all."""
        return self.count

    def prepare(self, number: int) -> None:
        super().prepare(number)
        self.keys = [CacheKey(OWNER, request_id) for request_id in self.requests]

    def run(self) -> None:
        pull_cache, (cache,) = self.manager.pull_cache, self.caches
        for batch_index, key in enumerate(self.keys):
            pull_cache(key, cache, batch_index)

    def verify(self) -> None:
        super().verify()
        self.manager.check()

    def close(self) -> None:
        self._open.close()
        super().close()


class BatchesOfPulls(CachePulls):
    """``pull_cache`` for each request, into caches of :data:`BATCH` slots."""

    def slots_of_a_cache(self) -> int:
        return BATCH

    def run(self) -> None:
        pull_cache = self.manager.pull_cache
        for number, cache in enumerate(self.caches):
            for batch_index, key in enumerate(self.keys[number * BATCH : (number + 1) * BATCH]):
                pull_cache(key, cache, batch_index)


class PullsAtOnce(BatchesOfPulls):
    """``pull_many`` for all requests of a cache, given as an array of their ids."""

    def prepare(self, number: int) -> None:
        super().prepare(number)
        request_ids = np.array(self.requests)
        self.batches = [request_ids[begin : begin + BATCH] for begin in range(0, self.count, BATCH)]
        self.statuses: list[npt.NDArray[np.int64]] = []

    def run(self) -> None:
        pull_many, keep = self.manager.pull_many, self.statuses.append
        for request_ids, cache in zip(self.batches, self.caches, strict=False):
            keep(pull_many(request_ids, cache, cluster_id=OWNER))

    def inspect(self, number: int) -> None:
        succeeded = sum(np.count_nonzero(statuses == 0) for statuses in self.statuses)
        require(succeeded == self.count, f"{succeeded} pulls of {self.count} succeeded")
        super().inspect(number)


class CallsForMany(PullsAtOnce):
    """The same, where the call is the operation and not the pull."""

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.operations = len(self.caches)


class BlocksOwner(Node):
    """Offers one blocks cache, whose blocks it writes anew before each round."""

    def __init__(self, blocks: int, tensors: int, size: int, host: str) -> None:
        super().__init__(blocks * size, tensors, host)
        desc = CacheDesc(tensors, (blocks, size), DataType.DT_UINT8)
        self.cache = self.manager.allocate_blocks_cache(desc, BlocksCacheKey(OWNER))

    def write(self, first_seed: int) -> None:
        for number, tensor in enumerate(self.cache.tensors):
            payload.fill(tensor, first_seed + number)


class BlocksCachePulls(BlockPulls):
    """One ``pull_blocks`` for all blocks of all tensors."""

    def __init__(self, blocks: int, tensors: int, size: int, run: int = 1, apart: bool = False) -> None:
        super().__init__(blocks, tensors, size, run, apart)
        require_engine(self.hosts)
        self.owner = self.start(BlocksOwner, blocks, tensors, size, self.hosts.far)
        self._open = ExitStack()
        datadist = self._open.enter_context(
            node(LLMRole.DECODER, PULLER, blocks * tensors * size, PAGE_SHIFT, host=self.hosts.near)
        )
        link(datadist, OWNER, self.owner.call("listen_address"), self.hosts.near)
        self.manager = datadist.cache_manager
        self.cache = self.manager.allocate_blocks_cache(CacheDesc(tensors, (blocks, size), DataType.DT_UINT8))
        self.pulled = self.cache.tensors
        self.key = BlocksCacheKey(OWNER)

    def run(self) -> None:
        self.manager.pull_blocks(self.key, self.cache, self.sources, self.targets)

    def verify(self) -> None:
        super().verify()
        self.manager.check()
        require(self.owner.call("left") == 1, "the owner's blocks cache is not the only cache that it has")

    def close(self) -> None:
        self._open.close()
        super().close()
