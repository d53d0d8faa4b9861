"""Pulls from another cluster, which is in the same process here: its Python takes no part either way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, DataType

from ..exercise import Exercise, require
from ..instances import ONE_PAGE, OWNER, PAGE_BYTES, PULLER, attach, make_manager, require_live


def pattern(request_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The byte that fills the cache of each request; neighbours differ."""
    return (request_ids % 251).astype(np.uint8)


class PullOfPages(Exercise):
    """Caches of one page with one key each, whose owner has deallocated them: a pull is the end of each."""

    most_pages = 1024

    def __init__(self) -> None:
        self._owner = make_manager(OWNER, self.most_pages)
        self._puller = make_manager(PULLER, self.most_pages)
        attach(self._puller, self._owner)
        self._offers = 0

    def _offer(self, count: int) -> npt.NDArray[np.int64]:
        """Bind so many keys that never were before; their request ids."""
        request_ids = np.arange(self._offers, self._offers + count)
        self._offers += count
        for req_id, byte in zip(request_ids.tolist(), pattern(request_ids).tolist(), strict=True):
            cache = self._owner.allocate_cache(ONE_PAGE, [CacheKey(OWNER, req_id)])
            cache.tensors[0][:] = byte
            self._owner.deallocate_cache(cache)
        return request_ids

    def _require_pulled(self, pulled: npt.NDArray[np.uint8], request_ids: npt.NDArray[np.int64]) -> None:
        """The bytes of each request in the slot of each, and nothing left with the owner."""
        require((pulled == pattern(request_ids)[:, None]).all(), "other bytes were pulled")
        self._owner.reap()
        require_live(self._owner, 0, 0)
        self._puller.check()

    def close(self) -> None:
        self._puller.close()
        self._owner.close()


class Pull(PullOfPages):
    """``pull_cache`` by a request's key."""

    def __init__(self) -> None:
        super().__init__()
        self._cache = self._puller.allocate_cache(CacheDesc(1, (self.most_pages, PAGE_BYTES), DataType.DT_UINT8))
        self._request_ids: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._keys: list[CacheKey] = []

    def prepare(self, turns: int) -> None:
        self._request_ids = self._offer(turns)
        self._keys = [CacheKey(OWNER, req_id) for req_id in self._request_ids.tolist()]
        self._cache.tensors[0][:turns] = 255

    def run(self, turns: int) -> None:
        pull_cache, cache = self._puller.pull_cache, self._cache
        for batch_index, key in enumerate(self._keys):
            pull_cache(key, cache, batch_index)

    def inspect(self, turns: int) -> None:
        self._require_pulled(self._cache.tensors[0][:turns], self._request_ids)


class PullMany(PullOfPages):
    """``pull_many`` of 64 requests, an array of their ids, into a batch of as many."""

    operations = 64

    def __init__(self) -> None:
        super().__init__()
        desc = CacheDesc(1, (self.operations, PAGE_BYTES), DataType.DT_UINT8)
        self._caches = [self._puller.allocate_cache(desc) for _ in range(self.most_pages // self.operations)]
        self._batches: list[npt.NDArray[np.int64]] = []
        self._failed: list[npt.NDArray[np.int64]] = []

    def prepare(self, turns: int) -> None:
        self._batches = np.split(self._offer(turns * self.operations), turns)
        self._failed = []
        for cache in self._caches:
            cache.tensors[0][:] = 255

    def run(self, turns: int) -> None:
        pull_many, failed = self._puller.pull_many, self._failed
        for request_ids, cache in zip(self._batches, self._caches, strict=False):
            failed.append(pull_many(request_ids, cache, cluster_id=OWNER))

    def inspect(self, turns: int) -> None:
        require(len(self._failed) == turns, f"{len(self._failed)} turns instead of {turns}")
        require(not any(failed.any() for failed in self._failed), "a pull failed")
        pulled = np.concatenate([cache.tensors[0] for cache in self._caches[:turns]])
        self._require_pulled(pulled, np.concatenate(self._batches))


class PullBlocks(Exercise):
    """``pull_blocks`` of 1,024 blocks in random order, so small that what is planned outweighs what is copied."""

    operations = 1024
    block_bytes = 8

    def __init__(self) -> None:
        pages = self.operations * self.block_bytes // PAGE_BYTES
        self._owner = make_manager(OWNER, pages)
        self._puller = make_manager(PULLER, pages)
        attach(self._puller, self._owner)
        desc = CacheDesc(1, (self.operations, self.block_bytes), DataType.DT_UINT8)
        self._key = BlocksCacheKey(OWNER)
        self._source = self._owner.allocate_blocks_cache(desc, self._key)
        self._target = self._puller.allocate_blocks_cache(desc)
        random = np.random.default_rng(0)
        self._content = random.integers(0, 255, (self.operations, self.block_bytes), np.uint8)
        self._source.tensors[0][:] = self._content
        self._sources: list[int] = random.permutation(self.operations).tolist()
        self._targets: list[int] = random.permutation(self.operations).tolist()

    def prepare(self, turns: int) -> None:
        self._target.tensors[0][:] = 255

    def run(self, turns: int) -> None:
        pull_blocks, key, target = self._puller.pull_blocks, self._key, self._target
        sources, targets = self._sources, self._targets
        for _ in range(turns):
            pull_blocks(key, target, sources, targets)

    def inspect(self, turns: int) -> None:
        pulled = self._target.tensors[0][self._targets]
        require((pulled == self._content[self._sources]).all(), "other bytes were pulled")
        self._puller.check()
        self._owner.check()

    def close(self) -> None:
        self._puller.close()
        self._owner.close()
