"""The reference model of the spec: the behaviour's definition, slow and obvious, as a contender like any other."""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from itertools import cycle, islice
from typing import TYPE_CHECKING

from ..contender import Contender, Unavailable, require
from ..replay import CachesReplay
from ..trace import PAGE_BYTES, PREFIXES

if TYPE_CHECKING:
    from spec.reference import Cluster, Node
    from spec.values import INV, CacheDesc, CacheKey, CacheKeyByIdAndIndex
else:
    try:
        from llmdd.spec.reference import Cluster, Node
        from llmdd.spec.values import INV, CacheDesc, CacheKey, CacheKeyByIdAndIndex
    except ModuleNotFoundError as missing:
        raise Unavailable(f"the reference model needs {missing.name}: pip install 'llmdd[spec]'") from None

CLUSTER_ID = 1
PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
CYCLES_PER_ROUND = 20
LOOKUPS_PER_ROUND = 1_000
FIRST_LIVE_REQ_ID = 1 << 40  # above the keys of the cycles


def versions() -> dict[str, str]:
    return {"transitions": version("transitions")}


def node(pages: int) -> Node:
    """A node with a pool of so many pages."""
    started = Cluster().start("owner", CLUSTER_ID)
    pool = json.dumps({"memory_size": pages << PAGE_SHIFT, "page_shift": PAGE_SHIFT})
    started.init({"llm.EnableCacheManager": "1", "llm.MemPoolConfig": pool})
    return started


def pages_of(count: int, batch_size: int = 1, num_tensors: int = 1) -> CacheDesc:
    """A cache whose batch slots have `count` pages in each tensor."""
    return CacheDesc(num_tensors, (batch_size, count << PAGE_SHIFT), "DT_INT8")


class Cycles(Contender):
    """Allocate a cache with a key for each batch slot, remove the keys, deallocate it, while `live` others live.

    Parameters
    ----------
    live : int
        Caches of one tensor and one page, each with a key.
    num_tensors, batch_size : int
        Of the cache of the cycle; each batch slot has a page in each tensor.
    """

    operations = CYCLES_PER_ROUND

    def __init__(self, live: int, num_tensors: int, batch_size: int) -> None:
        self.live = live
        self.spare_pages = 2 * num_tensors * batch_size
        self.node = node(live + self.spare_pages)
        self.live_keys = [CacheKey(CLUSTER_ID, FIRST_LIVE_REQ_ID + number) for number in range(live)]
        for key in self.live_keys:
            self.node.allocate_cache(pages_of(1), [key])
        self.desc = pages_of(1, batch_size, num_tensors)
        self.operations = max(1, CYCLES_PER_ROUND // batch_size)
        self.keys: list[list[CacheKey]] = []

    def prepare(self, number: int) -> None:
        count = self.desc.batch_size
        firsts = range(number * self.operations * count, (number + 1) * self.operations * count, count)
        self.keys = [[CacheKey(CLUSTER_ID, req_id) for req_id in range(first, first + count)] for first in firsts]

    def run(self) -> None:
        allocate, remove, deallocate = self.node.allocate_cache, self.node.remove_cache_key, self.node.deallocate_cache
        desc = self.desc
        for keys in self.keys:
            cache = allocate(desc, keys)
            for key in keys:
                remove(key)
            deallocate(cache)

    def inspect(self, number: int) -> None:
        left = self.node.live_caches - self.live
        require(left == 0, f"{left} caches are left over")
        made = self.node.next_cache_id - 1 - self.live
        cycles = (number + 1) * self.operations
        require(made == cycles, f"{cycles} cycles made {made} caches")
        for keys in self.keys:
            for key in keys:
                require(self.node.lookup(key) is None, f"{key} is still bound")

    def verify(self) -> None:
        for cache_id, key in enumerate(self.live_keys, 1):
            expected = CacheKeyByIdAndIndex(CLUSTER_ID, cache_id, 0)
            require(self.node.lookup(key) == expected, f"{key} is bound to {self.node.lookup(key)}")
        free = self.node.pool_usage().free_bytes
        require(free == self.spare_pages << PAGE_SHIFT, f"{free} bytes of the pool are free")
        self.node.check()


class Lookups(Contender):
    """Look ready keys up in random order, one of `live` caches for each.

    Every round goes on where the last one ended, so that among many keys it comes upon ones that no round had.

    Parameters
    ----------
    live : int
        Caches of one page, each with a key.
    seed : int
        Of the order.
    """

    operations = LOOKUPS_PER_ROUND

    def __init__(self, live: int, seed: int) -> None:
        self.node = node(live)
        self.live_keys = [CacheKey(CLUSTER_ID, req_id) for req_id in range(live)]
        for key in self.live_keys:
            self.node.allocate_cache(pages_of(1), [key])
        order = list(range(live))
        random.Random(seed).shuffle(order)
        self.order = cycle(order)
        self.chosen: list[int] = []
        self.keys: list[CacheKey] = []
        self.answers: list[CacheKeyByIdAndIndex | None] = []

    def prepare(self, number: int) -> None:
        self.chosen = list(islice(self.order, self.operations))
        self.keys = [self.live_keys[chosen] for chosen in self.chosen]

    def run(self) -> None:
        lookup = self.node.lookup
        self.answers = [lookup(key) for key in self.keys]

    def inspect(self, number: int) -> None:
        require(len(self.answers) == self.operations, f"{len(self.answers)} lookups of {self.operations} were answered")
        for chosen, answer in zip(self.chosen, self.answers, strict=True):
            self.require_place(chosen, answer)
        self.answers = []

    def require_place(self, req_id: int, answer: CacheKeyByIdAndIndex | None) -> None:
        expected = CacheKeyByIdAndIndex(CLUSTER_ID, req_id + 1, 0)  # caches are numbered from 1 in the order of making
        require(answer == expected, f"request {req_id} is bound to {expected}, the answer was {answer}")

    def verify(self) -> None:
        for req_id, key in enumerate(self.live_keys):
            self.require_place(req_id, self.node.lookup(key))
        require(self.node.lookup(CacheKey(CLUSTER_ID, len(self.live_keys))) is None, "a key that was never bound is")
        require(self.node.live_caches == len(self.live_keys), "there are other caches")
        self.node.check()


class Day(CachesReplay):
    """A day of requests. It sorts all pages in use for each allocation, so it plays a short day of its own."""

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        manager = self.node = node(self.pool_pages)
        self.allocate, self.deallocate = manager.allocate_cache, manager.deallocate_cache
        self.remove, self.look_up = manager.remove_cache_key, manager.lookup
        self.key, self.cluster_id = CacheKey, CLUSTER_ID
        self.prefix_keys = [CacheKey(CLUSTER_ID, INV, 0, prefix) for prefix in range(PREFIXES)]
        self.descs = [None, *(pages_of(pages) for pages in range(1, self.longest + 1))]

    def bytes_in_use(self) -> int:
        usage = self.node.pool_usage()
        return usage.total_bytes - usage.free_bytes

    def verify(self) -> None:
        require(self.node.live_caches == 0, f"{self.node.live_caches} caches are left over")
        self.node.check()
