"""llmdd's CacheManager, called as an engine's scheduler calls it, in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from llmdd import Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex, CacheManager, DataType, LLMDataDist, LLMRole

from ..contender import Contender, require
from ..nodes import link, node
from ..payload import fill
from ..turns import Turns

OWNER, PULLER = 1, 2
PAGE_SHIFT = 10
PAGE_BYTES = 1 << PAGE_SHIFT
FIRST_LIVE_REQUEST = 1 << 40
"""Requests of the caches that live all the time stand above those of the rounds."""

ONE_PAGE = CacheDesc(1, (1, PAGE_BYTES), DataType.DT_INT8)


def live_keys(count: int) -> list[CacheKey]:
    return [CacheKey(OWNER, req_id) for req_id in range(FIRST_LIVE_REQUEST, FIRST_LIVE_REQUEST + count)]


def keys_of_round(number: int, caches: int, batch_size: int) -> list[list[CacheKey]]:
    """For each cache that round `number` makes, a key for each batch slot; no other round has the same."""
    begin = number * caches * batch_size
    firsts = range(begin, begin + caches * batch_size, batch_size)
    return [[CacheKey(OWNER, req_id) for req_id in range(first, first + batch_size)] for first in firsts]


class Caches(Contender):
    """An instance of llmdd in which `live` caches of one page live, a key bound to each, and `spare_bytes` are free."""

    def __init__(self, live: int, spare_bytes: int, remote: bool = False) -> None:
        self.live = live
        self.spare_bytes = spare_bytes
        self.stack = ExitStack()
        memory_size = (live << PAGE_SHIFT) + spare_bytes
        self.datadist: LLMDataDist = self.stack.enter_context(
            node(LLMRole.PROMPT, OWNER, memory_size, PAGE_SHIFT, remote)
        )
        self.manager: CacheManager = self.datadist.cache_manager
        self.live_ids = np.array(
            [self.manager.allocate_cache(ONE_PAGE, [key]).cache_id for key in live_keys(live)], np.int64
        )

    def require_nothing_left(self) -> None:
        """Only what lives all the time does, and all else is free."""
        manager = self.manager
        require(manager.live_keys == self.live, f"{manager.live_keys} keys are bound, not {self.live}")
        require(manager.live_caches == self.live, f"{manager.live_caches} caches live, not {self.live}")
        free = manager.pool_usage().free_bytes
        require(free == self.spare_bytes, f"{free} bytes are free, not {self.spare_bytes}")

    def verify(self) -> None:
        self.require_nothing_left()
        self.manager.check()
        found = self.manager.lookup_many(live_keys(self.live)).cache_ids
        require(np.array_equal(found, self.live_ids), "a cache that should live is not found by its key")

    def close(self) -> None:
        self.stack.close()


class Cycles(Caches):
    """A cycle is ``allocate_cache`` with a key for each batch slot, ``remove_cache_key`` of each, ``deallocate_cache``.

    Every cycle has requests of its own, whose keys are ready: the request that comes in brings them.

    Parameters
    ----------
    live : int
        Other caches meanwhile.
    num_tensors, batch_size : int
        Of the cache; each batch slot has a page in each tensor.
    remote : bool
        In remote mode.
    """

    def __init__(self, live: int, num_tensors: int = 1, batch_size: int = 1, remote: bool = False) -> None:
        cache_bytes = num_tensors * batch_size * PAGE_BYTES
        super().__init__(live, 2 * cache_bytes, remote)
        self.operations = max(64, 2048 // batch_size)
        self.desc = CacheDesc(num_tensors, (batch_size, PAGE_BYTES), DataType.DT_INT8)
        self.keys: list[list[CacheKey]] = []
        self.last: Cache | None = None

    def prepare(self, number: int) -> None:
        self.keys = keys_of_round(number, self.operations, self.desc.batch_size)

    def run(self) -> None:
        allocate, remove, deallocate = (
            self.manager.allocate_cache,
            self.manager.remove_cache_key,
            self.manager.deallocate_cache,
        )
        desc = self.desc
        for keys in self.keys:
            cache = allocate(desc, keys)
            for key in keys:
                remove(key)
            deallocate(cache)
        self.last = cache

    def inspect(self, number: int) -> None:
        self.require_nothing_left()
        assert self.last is not None
        made = self.last.cache_id - self.live
        cycles = (number + 1) * self.operations
        require(made == cycles, f"{cycles} cycles made {made} caches")
        for keys in self.keys:
            require(not self.manager.lookup_many(keys).cache_ids.any(), f"a key of {keys} is still bound")


class PullCycles(Caches):
    """A cycle with a pull of every key by a linked instance of the same process in place of its removal.

    The pool has room for one more cache, so what is written to that memory before a round is what its caches hold.
    """

    def __init__(self, live: int, num_tensors: int = 1, batch_size: int = 1) -> None:
        cache_bytes = num_tensors * batch_size * PAGE_BYTES
        super().__init__(live, cache_bytes)
        self.operations = 4 if num_tensors > 1 else 1024
        puller = self.stack.enter_context(node(LLMRole.DECODER, PULLER, cache_bytes, PAGE_SHIFT))
        assert self.datadist.listen_address is not None
        link(puller, OWNER, self.datadist.listen_address)
        self.puller: CacheManager = puller.cache_manager
        self.desc = CacheDesc(num_tensors, (batch_size, PAGE_BYTES), DataType.DT_INT8)
        self.target = self.puller.allocate_cache(self.desc)
        self.keys: list[list[CacheKey]] = []

    def prepare(self, number: int) -> None:
        self.keys = keys_of_round(number, self.operations, self.desc.batch_size)
        source = self.manager.allocate_cache(self.desc)
        for index, tensor in enumerate(source.tensors):
            fill(tensor, number * self.desc.num_tensors + index)
        del tensor  # it pins the cache
        self.manager.deallocate_cache(source)

    def run(self) -> None:
        allocate, pull, deallocate = (
            self.manager.allocate_cache,
            self.puller.pull_cache,
            self.manager.deallocate_cache,
        )
        desc, target = self.desc, self.target
        for keys in self.keys:
            cache = allocate(desc, keys)
            for batch_index, key in enumerate(keys):
                pull(key, target, batch_index)
            deallocate(cache)

    def inspect(self, number: int) -> None:
        self.require_nothing_left()
        for index, tensor in enumerate(self.target.tensors):
            expected = np.empty_like(tensor)
            fill(expected, number * self.desc.num_tensors + index)
            require(np.array_equal(tensor, expected), f"wrong bytes were pulled to tensor {index}")

    def verify(self) -> None:
        super().verify()
        self.puller.check()


class Lookups(Caches):
    """``lookup`` of ready keys, every live one in random order: a round goes on where the one before it ended.

    Answers are not kept while the time runs: so many new objects would be a good part of it. When the round is over,
    the same keys are asked once more, and each answer is looked at.

    Parameters
    ----------
    live : int
        Caches with a key each.
    seed : int
        Of the order.
    """

    operations = 5_000

    def __init__(self, live: int, seed: int) -> None:
        super().__init__(live, PAGE_BYTES)
        self.turns = Turns(live, seed)
        self.all_keys = live_keys(live)
        self.lookup: Callable[[CacheKey], CacheKeyByIdAndIndex | None] = self.manager.lookup
        self.chosen: list[int] = []
        self.keys: list[CacheKey] = []

    def prepare(self, number: int) -> None:
        self.chosen = self.turns.next(self.operations)
        self.keys = [self.all_keys[index] for index in self.chosen]

    def run(self) -> None:
        lookup = self.lookup
        for key in self.keys:
            lookup(key)

    def inspect(self, number: int) -> None:
        for expected, key in zip(self.live_ids[self.chosen].tolist(), self.keys, strict=True):
            answer = self.lookup(key)
            right = answer is not None and (answer.cache_id, answer.batch_index) == (expected, 0)
            require(right, f"the key of cache {expected} was answered by {answer}")

    def verify(self) -> None:
        super().verify()
        stranger = CacheKey(OWNER, FIRST_LIVE_REQUEST + self.live)
        require(self.lookup(stranger) is None, "a key that was never bound was found")


class BulkLookups(Caches):
    """``lookup_many`` of as many keys at once, given as an array of request ids or as a list of keys.

    Parameters
    ----------
    live, seed : int
        As for :class:`Lookups`.
    given : str
        ``array`` or ``keys``.
    """

    operations = 20_000

    def __init__(self, live: int, seed: int, given: str) -> None:
        super().__init__(live, PAGE_BYTES)
        self.turns = Turns(live, seed)
        self.given = given
        self.all_keys = live_keys(live)
        self.chosen: list[int] = []
        self.asked: list[CacheKey] | npt.NDArray[np.uint64] = []
        self.found: npt.NDArray[np.int64] | None = None
        self.batch_indices: npt.NDArray[np.uint32] | None = None

    def prepare(self, number: int) -> None:
        self.chosen = self.turns.next(self.operations)
        if self.given == "array":
            self.asked = np.array(self.chosen, np.uint64) + np.uint64(FIRST_LIVE_REQUEST)
        else:
            self.asked = [self.all_keys[index] for index in self.chosen]
        self.found = self.batch_indices = None

    def run(self) -> None:
        self.found, self.batch_indices = self.manager.lookup_many(self.asked)

    def inspect(self, number: int) -> None:
        assert self.found is not None
        assert self.batch_indices is not None
        require(np.array_equal(self.found, self.live_ids[self.chosen]), "a key was answered by another cache")
        require(not self.batch_indices.any(), "a key was answered by another batch slot")


class Drops(Caches):
    """Caches with a key each are dropped: key and id one after the other, or by ``unregister_cache`` both at once.

    Parameters
    ----------
    live : int
        Other caches meanwhile.
    registered : bool
        Whether they are of registered memory, and unregistered.
    """

    operations = 512

    def __init__(self, live: int, registered: bool) -> None:
        super().__init__(live, self.operations * PAGE_BYTES)
        self.registered = registered
        self.memory = np.zeros(PAGE_BYTES, np.int8)
        self.keys: list[CacheKey] = []
        self.caches: list[Cache] = []

    def prepare(self, number: int) -> None:
        self.keys = [
            CacheKey(OWNER, req_id) for req_id in range(number * self.operations, (number + 1) * self.operations)
        ]
        self.caches = [self._make(key) for key in self.keys]

    def _make(self, key: CacheKey) -> Cache:
        if self.registered:
            return self.manager.register_cache(ONE_PAGE, [self.memory.ctypes.data], [key])
        return self.manager.allocate_cache(ONE_PAGE, [key])

    def run(self) -> None:
        if self.registered:
            unregister = self.manager.unregister_cache
            for cache in self.caches:
                unregister(cache.cache_id)
            return
        remove, deallocate = self.manager.remove_cache_key, self.manager.deallocate_cache
        for cache, key in zip(self.caches, self.keys, strict=True):
            remove(key)
            deallocate(cache)

    def inspect(self, number: int) -> None:
        self.require_nothing_left()
        require(not self.manager.lookup_many(self.keys).cache_ids.any(), "a key of a dropped cache is still bound")


class BulkDrops(Caches):
    """``remove_cache_keys`` and ``deallocate_many`` of a whole step's requests at once.

    Parameters
    ----------
    count : int
        Requests, each with a cache of its own.
    """

    def __init__(self, count: int) -> None:
        super().__init__(0, count * PAGE_BYTES)
        self.operations = count
        self.requests = np.arange(count)
        self.caches: list[Cache] = []
        self.removed: npt.NDArray[np.bool_] | None = None
        self.deallocated: npt.NDArray[np.bool_] | None = None

    def prepare(self, number: int) -> None:
        self.requests = np.arange(number * self.operations, (number + 1) * self.operations)
        self.caches = [
            self.manager.allocate_cache(ONE_PAGE, [CacheKey(OWNER, req_id)]) for req_id in self.requests.tolist()
        ]
        self.removed = self.deallocated = None

    def run(self) -> None:
        self.removed = self.manager.remove_cache_keys(self.requests)
        self.deallocated = self.manager.deallocate_many(self.caches)

    def inspect(self, number: int) -> None:
        assert self.removed is not None
        assert self.deallocated is not None
        require(bool(self.removed.all()), "remove_cache_keys says that it left a key")
        require(bool(self.deallocated.all()), "deallocate_many says that it left a cache")
        self.require_nothing_left()
