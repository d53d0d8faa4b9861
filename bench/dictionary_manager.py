"""What llmdd is compared with: a cache manager in plain Python, as one would write it who wants it correct and quick.

Dictionaries for caches and keys, counts for references, a free list of pages, one lock, validation of what is given. It
keeps the same lifecycle: a cache lives until its id was dropped, all its keys were pulled or removed, and no transfer
needs it. Peers are other managers of the same process, whose memory it reads directly. It leaves out layer ranges and
everything that needs a second process, which makes it faster, not slower.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

NO_ID = 2**64 - 1

#: The kind of a key, its model and its request or prefix id.
Identity = tuple[str, int, int]


class Refused(RuntimeError):
    """A call that cannot be done; nothing has changed."""


class Key(NamedTuple):
    cluster_id: int
    req_id: int
    model_id: int = 0
    prefix_id: int = NO_ID


def identity_of(key: Key) -> Identity | None:
    """What a key is bound by; None for a placeholder."""
    _, req_id, model_id, prefix_id = key
    if prefix_id != NO_ID:
        return "prefix", model_id, prefix_id
    if req_id != NO_ID:
        return "request", model_id, req_id
    return None


@dataclass(frozen=True)
class Descriptor:
    """`num_tensors` tensors of one shape, whose first dimension counts the batch slots."""

    num_tensors: int
    shape: tuple[int, ...]
    element_bytes: int
    batch_size: int = field(init=False)
    tensor_bytes: int = field(init=False)
    slot_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        if self.num_tensors < 1 or not self.shape or min(self.shape) < 1 or self.element_bytes < 1:
            raise ValueError(f"{self} describes no tensor")
        object.__setattr__(self, "batch_size", self.shape[0])
        object.__setattr__(self, "tensor_bytes", prod(self.shape) * self.element_bytes)
        object.__setattr__(self, "slot_bytes", self.tensor_bytes // self.batch_size)


class DictionaryCache:
    __slots__ = ("cache_id", "descriptor", "held", "keys", "pins", "places", "runs")

    def __init__(
        self,
        cache_id: int,
        descriptor: Descriptor,
        keys: dict[Identity, int],
        runs: list[tuple[int, int]],
        places: Sequence[int],
    ) -> None:
        self.cache_id = cache_id
        self.descriptor = descriptor
        self.keys = keys  # bound keys and their batch slots
        self.runs = runs  # (first page, pages)
        self.places = places  # the first byte of each tensor
        self.held = True
        self.pins = 0


class PagePool:
    """Runs of pages: those given back wait by their length; what is left over is merged when nothing fits."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free_pages = pages
        self._untouched = 0  # every page from here on is free
        self._free: dict[int, list[int]] = {}

    def take(self, count: int) -> int | None:
        """The first page of a run of `count`, or None."""
        if count > self.free_pages:
            return None
        first = self._find(count)
        if first is None:
            self._merge()
            first = self._find(count)
        if first is not None:
            self.free_pages -= count
        return first

    def give_back(self, first: int, count: int) -> None:
        self.free_pages += count
        self._keep(first, count)

    def _keep(self, first: int, count: int) -> None:
        runs = self._free.get(count)
        if runs is None:
            self._free[count] = [first]
        else:
            runs.append(first)

    def _find(self, count: int) -> int | None:
        exact = self._free.get(count)
        if exact:
            return exact.pop()
        if self.pages - self._untouched >= count:
            self._untouched += count
            return self._untouched - count
        longer = min((length for length, runs in self._free.items() if length > count and runs), default=None)
        if longer is None:
            return None
        first = self._free[longer].pop()
        self._keep(first + count, longer - count)
        return first

    def _merge(self) -> None:
        runs = sorted((first, length) for length, firsts in self._free.items() for first in firsts)
        self._free = {}
        merged: list[tuple[int, int]] = []
        for first, length in runs:
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((first, length))
        if merged and sum(merged[-1]) == self._untouched:
            self._untouched = merged.pop()[0]
        for first, length in merged:
            self._keep(first, length)


class DictionaryManager:
    """The caches of one cluster.

    Parameters
    ----------
    cluster_id : int
    memory_size, page_bytes : int
    """

    def __init__(self, cluster_id: int, memory_size: int, page_bytes: int) -> None:
        self.cluster_id = cluster_id
        self.peers: dict[int, DictionaryManager] = {}
        self.memory = memoryview(bytearray(memory_size))
        self.pool = PagePool(memory_size // page_bytes)
        self._page_bytes = page_bytes
        self._caches: dict[int, DictionaryCache] = {}
        self._index: dict[Identity, DictionaryCache] = {}
        self._next_cache_id = 1
        self._lock = threading.RLock()

    @property
    def live_caches(self) -> int:
        return len(self._caches)

    @property
    def live_keys(self) -> int:
        return len(self._index)

    def allocate_cache(self, descriptor: Descriptor, keys: Sequence[Key] = ()) -> DictionaryCache:
        """A new cache with its batch slots bound to keys; of equal keys the last takes effect."""
        if not isinstance(descriptor, Descriptor):
            raise TypeError(f"descriptor is a {type(descriptor)}, no Descriptor")
        if not isinstance(keys, (tuple, list)):
            raise TypeError(f"keys is a {type(keys)}, no tuple or list")
        if len(keys) > descriptor.batch_size:
            raise Refused(f"{len(keys)} keys for {descriptor.batch_size} batch slots")
        with self._lock:
            bound: dict[Identity, int] = {}
            for batch_index, key in enumerate(keys):
                if type(key) is not Key:
                    raise TypeError(f"keys holds a {type(key)}, no Key")
                identity = identity_of(key)
                if identity is None:
                    continue
                if identity in self._index:
                    raise Refused(f"{key} is already bound to another cache")
                bound[identity] = batch_index
            runs, places = self._take_memory(descriptor)
            cache = DictionaryCache(self._next_cache_id, descriptor, bound, runs, places)
            self._next_cache_id += 1
            self._caches[cache.cache_id] = cache
            for identity in bound:
                self._index[identity] = cache
            return cache

    def _take_memory(self, descriptor: Descriptor) -> tuple[list[tuple[int, int]], Sequence[int]]:
        """One run of pages for all tensors if there is one, else one for each."""
        page = self._page_bytes
        pages = -(-descriptor.tensor_bytes // page)
        count = descriptor.num_tensors
        first = self.pool.take(pages * count)
        if first is not None:
            return [(first, pages * count)], range(first * page, (first + pages * count) * page, pages * page)
        runs: list[tuple[int, int]] = []
        for _ in range(count):
            first = self.pool.take(pages)
            if first is None:
                for run in runs:
                    self.pool.give_back(*run)
                raise Refused(f"the pool has no room for {count} tensors of {descriptor.tensor_bytes} bytes")
            runs.append((first, pages))
        return runs, [first * page for first, _ in runs]

    def deallocate_cache(self, cache: DictionaryCache) -> None:
        if not isinstance(cache, DictionaryCache):
            raise TypeError(f"cache is a {type(cache)}, no DictionaryCache")
        with self._lock:
            if cache.held:
                cache.held = False
                self._settle(cache)

    def remove_cache_key(self, key: Key) -> None:
        if type(key) is not Key:
            raise TypeError(f"key is a {type(key)}, no Key")
        identity = identity_of(key)
        if identity is None:
            return
        with self._lock:
            cache = self._index.pop(identity, None)
            if cache is not None:
                del cache.keys[identity]
                self._settle(cache)

    def lookup(self, key: Key) -> tuple[int, int] | None:
        """The id of the cache that a key is bound to, and the batch slot; None if it is not bound."""
        if type(key) is not Key:
            raise TypeError(f"key is a {type(key)}, no Key")
        identity = identity_of(key)
        if identity is None:
            return None
        with self._lock:
            cache = self._index.get(identity)
            return None if cache is None else (cache.cache_id, cache.keys[identity])

    def pull_cache(self, key: Key, cache: DictionaryCache, batch_index: int = 0, size: int = -1) -> None:
        """Copy a batch slot of a peer's cache into one of ours, and release a request key."""
        if type(key) is not Key:
            raise TypeError(f"key is a {type(key)}, no Key")
        if not isinstance(cache, DictionaryCache):
            raise TypeError(f"cache is a {type(cache)}, no DictionaryCache")
        if not isinstance(batch_index, int) or not isinstance(size, int):
            raise TypeError(f"batch_index and size are ints, not {type(batch_index)} and {type(size)}")
        if size != -1 and size <= 0:
            raise Refused(f"size is {size}, it should be -1 or greater than 0")
        if (key.req_id == NO_ID) == (key.prefix_id == NO_ID):
            raise Refused(f"exactly one of request and prefix id names a cache, {key} has another number")
        identity = identity_of(key)
        assert identity is not None
        target = cache.descriptor
        if not 0 <= batch_index < target.batch_size:
            raise Refused(f"batch_index is {batch_index}, the cache has {target.batch_size} batch slots")
        wanted = target.slot_bytes if size == -1 else size
        if wanted > target.slot_bytes:
            raise Refused(f"{wanted} bytes do not fit a batch slot of {target.slot_bytes}")
        owner = self.peers.get(key.cluster_id)
        if owner is None:
            raise Refused(f"cluster {key.cluster_id} is not linked")
        self._pin(cache)
        try:
            source, source_index = owner._pin_key(identity)
            try:
                self._copy(owner, source, source_index, cache, batch_index, wanted)
            except BaseException:
                owner._unpin(source)
                raise
            owner._unpin(source, None if identity[0] == "prefix" else identity)
        finally:
            self._unpin(cache)

    def _copy(
        self,
        owner: DictionaryManager,
        source: DictionaryCache,
        source_index: int,
        target: DictionaryCache,
        target_index: int,
        size: int,
    ) -> None:
        if source.descriptor.num_tensors != target.descriptor.num_tensors:
            raise Refused("the caches have different numbers of tensors")
        if size > source.descriptor.slot_bytes:
            raise Refused(f"{size} bytes are more than a batch slot of the peer's cache has")
        ours, theirs = self.memory, owner.memory
        source_offset = source_index * source.descriptor.slot_bytes
        target_offset = target_index * target.descriptor.slot_bytes
        for source_place, target_place in zip(source.places, target.places, strict=True):
            begin = target_place + target_offset
            source_begin = source_place + source_offset
            ours[begin : begin + size] = theirs[source_begin : source_begin + size]

    def _pin(self, cache: DictionaryCache) -> None:
        with self._lock:
            if cache.cache_id not in self._caches:
                raise Refused(f"cache {cache.cache_id} does not exist")
            cache.pins += 1

    def _pin_key(self, identity: Identity) -> tuple[DictionaryCache, int]:
        with self._lock:
            cache = self._index.get(identity)
            if cache is None:
                raise Refused(f"{identity} is not bound")
            cache.pins += 1
            return cache, cache.keys[identity]

    def _unpin(self, cache: DictionaryCache, consumed: Identity | None = None) -> None:
        with self._lock:
            cache.pins -= 1
            if consumed is not None and consumed in cache.keys:
                del self._index[consumed]
                del cache.keys[consumed]
            self._settle(cache)

    def _settle(self, cache: DictionaryCache) -> None:
        """Give the memory back if nothing refers to the cache any more."""
        if cache.held or cache.keys or cache.pins:
            return
        del self._caches[cache.cache_id]
        for first, count in cache.runs:
            self.pool.give_back(first, count)

    def check(self) -> None:
        """Every invariant of the caches, keys and pages."""
        pages = set[int]()
        keys = 0
        for cache in self._caches.values():
            assert cache.held or cache.keys or cache.pins, f"cache {cache.cache_id} lives without a reference"
            keys += len(cache.keys)
            for identity in cache.keys:
                assert self._index[identity] is cache, f"{identity} is indexed elsewhere"
            for first, count in cache.runs:
                assert pages.isdisjoint(range(first, first + count)), f"cache {cache.cache_id} shares pages"
                pages.update(range(first, first + count))
        assert keys == len(self._index), f"{keys} keys are bound, {len(self._index)} indexed"
        assert len(pages) == self.pool.pages - self.pool.free_pages, "the count of free pages is wrong"
