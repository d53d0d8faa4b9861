"""The cache manager that one would write in plain Python, called like llmdd's, in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..contender import Contender, require
from ..dictionary_manager import Descriptor, DictionaryCache, DictionaryManager, Key
from ..payload import fill
from ..turns import Turns

OWNER, PULLER = 1, 2
PAGE_BYTES = 1 << 10
FIRST_LIVE_REQUEST = 1 << 40

ONE_PAGE = Descriptor(1, (1, PAGE_BYTES), 1)


def live_keys(count: int) -> list[Key]:
    return [Key(OWNER, req_id) for req_id in range(FIRST_LIVE_REQUEST, FIRST_LIVE_REQUEST + count)]


def keys_of_round(number: int, caches: int, batch_size: int) -> list[list[Key]]:
    """For each cache that round `number` makes, a key for each batch slot; no other round has the same."""
    begin = number * caches * batch_size
    firsts = range(begin, begin + caches * batch_size, batch_size)
    return [[Key(OWNER, req_id) for req_id in range(first, first + batch_size)] for first in firsts]


class Caches(Contender):
    """A manager in which `live` caches of one page live, a key bound to each, and `spare_bytes` are free."""

    def __init__(self, live: int, spare_bytes: int) -> None:
        gc.disable()  # as from the first round on: a million caches would be walked over and over while they are made
        self.live = live
        self.spare_pages = spare_bytes // PAGE_BYTES
        self.manager = DictionaryManager(OWNER, live * PAGE_BYTES + spare_bytes, PAGE_BYTES)
        self.live_ids = [self.manager.allocate_cache(ONE_PAGE, [key]).cache_id for key in live_keys(live)]

    def require_nothing_left(self) -> None:
        """Only what lives all the time does, and all else is free."""
        manager = self.manager
        require(manager.live_keys == self.live, f"{manager.live_keys} keys are bound, not {self.live}")
        require(manager.live_caches == self.live, f"{manager.live_caches} caches live, not {self.live}")
        free = manager.pool.free_pages
        require(free == self.spare_pages, f"{free} pages are free, not {self.spare_pages}")

    def verify(self) -> None:
        self.require_nothing_left()
        self.manager.check()
        found = [self.manager.lookup(key) for key in live_keys(self.live)]
        require(found == [(cache_id, 0) for cache_id in self.live_ids], "a cache that should live is not found")


class Cycles(Caches):
    """A cycle is ``allocate_cache`` with a key for each batch slot, ``remove_cache_key`` of each, ``deallocate_cache``.

    Parameters
    ----------
    live : int
        Other caches meanwhile.
    num_tensors, batch_size : int
        Of the cache; each batch slot has a page in each tensor.
    """

    def __init__(self, live: int, num_tensors: int = 1, batch_size: int = 1) -> None:
        super().__init__(live, 2 * num_tensors * batch_size * PAGE_BYTES)
        self.operations = max(16, 1024 // batch_size)
        self.descriptor = Descriptor(num_tensors, (batch_size, PAGE_BYTES), 1)
        self.keys: list[list[Key]] = []
        self.last: DictionaryCache | None = None

    def prepare(self, number: int) -> None:
        self.keys = keys_of_round(number, self.operations, self.descriptor.batch_size)

    def run(self) -> None:
        allocate, remove, deallocate = (
            self.manager.allocate_cache,
            self.manager.remove_cache_key,
            self.manager.deallocate_cache,
        )
        descriptor = self.descriptor
        for keys in self.keys:
            cache = allocate(descriptor, keys)
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
            require(not any(map(self.manager.lookup, keys)), f"a key of {keys} is still bound")


class PullCycles(Caches):
    """A cycle with a pull of every key by a manager that is a peer, in place of its removal.

    The pool has room for one more cache, so what is written to that memory before a round is what its caches hold.
    """

    def __init__(self, live: int, num_tensors: int = 1, batch_size: int = 1) -> None:
        cache_bytes = num_tensors * batch_size * PAGE_BYTES
        super().__init__(live, cache_bytes)
        self.operations = 4 if num_tensors > 1 else 1024
        self.puller = DictionaryManager(PULLER, cache_bytes, PAGE_BYTES)
        self.puller.peers[OWNER] = self.manager
        self.descriptor = Descriptor(num_tensors, (batch_size, PAGE_BYTES), 1)
        self.target = self.puller.allocate_cache(self.descriptor)
        self.keys: list[list[Key]] = []

    def prepare(self, number: int) -> None:
        self.keys = keys_of_round(number, self.operations, self.descriptor.batch_size)
        source = self.manager.allocate_cache(self.descriptor)
        for index in range(self.descriptor.num_tensors):
            fill(self._tensor(self.manager, source, index), number * self.descriptor.num_tensors + index)
        self.manager.deallocate_cache(source)

    def run(self) -> None:
        allocate, pull, deallocate = (
            self.manager.allocate_cache,
            self.puller.pull_cache,
            self.manager.deallocate_cache,
        )
        descriptor, target = self.descriptor, self.target
        for keys in self.keys:
            cache = allocate(descriptor, keys)
            for batch_index, key in enumerate(keys):
                pull(key, target, batch_index)
            deallocate(cache)

    def inspect(self, number: int) -> None:
        self.require_nothing_left()
        for index in range(self.descriptor.num_tensors):
            tensor = self._tensor(self.puller, self.target, index)
            expected = np.empty_like(tensor)
            fill(expected, number * self.descriptor.num_tensors + index)
            require(np.array_equal(tensor, expected), f"wrong bytes were pulled to tensor {index}")

    def verify(self) -> None:
        super().verify()
        self.puller.check()

    def _tensor(self, manager: DictionaryManager, cache: DictionaryCache, index: int) -> npt.NDArray[np.uint8]:
        begin = cache.places[index]
        return np.frombuffer(manager.memory[begin : begin + cache.descriptor.tensor_bytes], np.uint8)


class Lookups(Caches):
    """``lookup`` of ready keys, every live one in random order: a round goes on where the one before it ended.

    Answers are looked at when the round is over, as those of llmdd are.

    Parameters
    ----------
    live : int
        Caches with a key each.
    seed : int
        Of the order.
    """

    operations = 2_000

    def __init__(self, live: int, seed: int) -> None:
        super().__init__(live, PAGE_BYTES)
        self.turns = Turns(live, seed)
        self.all_keys = live_keys(live)
        self.lookup: Callable[[Key], tuple[int, int] | None] = self.manager.lookup
        self.chosen: list[int] = []
        self.keys: list[Key] = []

    def prepare(self, number: int) -> None:
        self.chosen = self.turns.next(self.operations)
        self.keys = [self.all_keys[index] for index in self.chosen]

    def run(self) -> None:
        lookup = self.lookup
        for key in self.keys:
            lookup(key)

    def inspect(self, number: int) -> None:
        for index, key in zip(self.chosen, self.keys, strict=True):
            answer = self.lookup(key)
            require(
                answer == (self.live_ids[index], 0), f"the key of cache {self.live_ids[index]} was answered {answer}"
            )

    def verify(self) -> None:
        super().verify()
        stranger = Key(OWNER, FIRST_LIVE_REQUEST + self.live)
        require(self.lookup(stranger) is None, "a key that was never bound was found")


class Drops(Caches):
    """Caches with a key each are dropped, one after the other: the key, then the id.

    Parameters
    ----------
    count : int
        Caches in a round.
    """

    def __init__(self, count: int) -> None:
        super().__init__(0, count * PAGE_BYTES)
        self.operations = count
        self.keys: list[Key] = []
        self.caches: list[DictionaryCache] = []

    def prepare(self, number: int) -> None:
        self.keys = [keys[0] for keys in keys_of_round(number, self.operations, 1)]
        self.caches = [self.manager.allocate_cache(ONE_PAGE, [key]) for key in self.keys]

    def run(self) -> None:
        remove, deallocate = self.manager.remove_cache_key, self.manager.deallocate_cache
        for key in self.keys:
            remove(key)
        for cache in self.caches:
            deallocate(cache)

    def inspect(self, number: int) -> None:
        self.require_nothing_left()
        require(not any(map(self.manager.lookup, self.keys)), "a key of a dropped cache is still bound")
