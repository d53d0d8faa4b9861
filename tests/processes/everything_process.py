"""A cluster in a process of its own, where ten threads do everything that a program can do, as fast as they can.

What is moved is known from its name: a batch slot by the number of its key, a block by its model. So whoever pulls
checks every byte, and whoever pushes or sends writes what stands there already. Names are published on a board that all
processes share, after what they name was filled, and are never used twice.
"""

from __future__ import annotations

import gc
import itertools
import logging
import random
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from cluster_process import cluster_info, outcome

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LayerSynchronizer,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

SUCCESS = LLMStatusCode.LLM_SUCCESS
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
INVALID = LLMStatusCode.LLM_PARAM_INVALID
FULL = LLMStatusCode.LLM_OUT_OF_MEMORY
ALREADY = LLMStatusCode.LLM_ALREADY_LINK

THREADS = 10
CLUSTERS = 4
INV = 2**64 - 1

#: Every thread keeps so many caches, and so many of each other kind.
CACHES_KEPT, OTHERS_KEPT = 8, 3

SINKS, SINK_TENSORS, SINK_SLOTS, SINK_BYTES = 3, 4, 2, 4096
BLOCKS, BLOCK_BYTES = 8, 512
UNTOUCHED = 0xEE

#: So many names of each cluster can be read at a time.
SLOT_NAMES, BLOCKS_NAMES, WORDS = 96, 32, 6
BOARD_WORDS = CLUSTERS * (SLOT_NAMES + BLOCKS_NAMES) * WORDS

#: A long stretch of bytes; what is moved is parts of it, from different places.
RAMP = (np.arange(1 << 17) % 251).astype(np.uint8)


def content(number: int, tensor: int, size: int) -> np.ndarray:
    """The bytes of tensor ``tensor`` in the batch slot, or the block, with a number."""
    start = (number * 53 + tensor * 17) % 251
    return RAMP[start : start + size]


@dataclass(frozen=True)
class SlotName:
    """A batch slot that was filled."""

    number: int
    cache_id: int
    batch_index: int
    tensors: int
    slot_bytes: int
    #: 0: request key, 1: prefix key, 2: no key; and 4 more if the memory is its owner's own.
    kind: int

    @property
    def registered(self) -> bool:
        return self.kind >= 4


@dataclass(frozen=True)
class BlocksName:
    """A blocks cache that was filled."""

    model_id: int
    tensors: int
    registered: int = 0
    unused: tuple[int, ...] = (0, 0, 0)


class Board:
    """The names that were published last, by cluster."""

    def __init__(self, words: Any) -> None:
        self.words = words

    def publish(self, cluster: int, place: int, name: SlotName | BlocksName) -> None:
        if isinstance(name, SlotName):
            self._write(self._slots(cluster) + place % SLOT_NAMES, tuple(vars(name).values()))
        else:
            record = (name.model_id, name.tensors, name.registered, 0, 0, 0)
            self._write(self._blocks(cluster) + place % BLOCKS_NAMES, record)

    def some_slot(self, source: random.Random, cluster: int) -> SlotName | None:
        record = self._read(self._slots(cluster) + source.randrange(SLOT_NAMES))
        return SlotName(*record) if record[0] else None

    def some_blocks(self, source: random.Random, cluster: int) -> BlocksName | None:
        record = self._read(self._blocks(cluster) + source.randrange(BLOCKS_NAMES))
        return BlocksName(*record[:3]) if record[0] else None

    @staticmethod
    def _slots(cluster: int) -> int:
        return (cluster - 1) * (SLOT_NAMES + BLOCKS_NAMES)

    def _blocks(self, cluster: int) -> int:
        return self._slots(cluster) + SLOT_NAMES

    def _write(self, place: int, record: tuple[int, ...]) -> None:
        with self.words.get_lock():
            self.words[place * WORDS : (place + 1) * WORDS] = record

    def _read(self, place: int) -> list[int]:
        with self.words.get_lock():
            return self.words[place * WORDS : (place + 1) * WORDS]


@dataclass(frozen=True)
class Peer:
    """Another cluster: where it listens, and its caches that live as long as it does, by id and by addresses."""

    cluster_id: int
    address: tuple[str, int]
    sinks: list[tuple[int, list[int]]]


class Layers(LayerSynchronizer):
    """Layers that are ready, or not, or whose computation fails."""

    def __init__(self, ends: dict[int, str]) -> None:
        self.ends = ends

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        if self.ends.get(layer_index) == "raises":
            raise ArithmeticError(f"layer {layer_index}")
        return layer_index not in self.ends


class Everything:
    """What the process can be told to do."""

    def __init__(self, connection: Connection, cluster_id: int, options: dict[str, str], board: Any) -> None:
        self.connection = connection
        self.cluster_id = cluster_id
        self.remote = options["llm.EnableRemoteCacheAccessible"] == "1"
        self.datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        self.datadist.init(options)
        self.manager: CacheManager = self.datadist.cache_manager
        self.board = Board(board)
        # Each cluster's numbers are its own; 0 is no name.
        self.numbers = itertools.count(cluster_id << 40)
        self.slot_places, self.blocks_places = itertools.count(), itertools.count()
        self.peers: dict[int, Peer] = {}
        self.rank_table = ""
        self.communicators: deque[int] = deque()
        self.joining = threading.Lock()
        desc = CacheDesc(SINK_TENSORS, (SINK_SLOTS, SINK_BYTES), DataType.DT_UINT8)
        self.sinks = [self.manager.allocate_cache(desc) for _ in range(SINKS)]
        for number, sink in enumerate(self.sinks):
            for tensor, array in enumerate(sink.tensors):
                for slot in range(SINK_SLOTS):
                    array[slot] = sink_content(cluster_id, number, slot, tensor)

    # -- told by the test -----------------------------------------------------------------------------------------

    def introduce(self) -> Peer:
        address = self.datadist.listen_address
        assert address is not None
        return Peer(self.cluster_id, address, [(sink.cache_id, sink.tensor_addrs) for sink in self.sinks])

    def meet(self, peers: list[Peer], rank_table: str) -> list[str]:
        """Link to those with a lower id."""
        self.peers = {peer.cluster_id: peer for peer in peers if peer.cluster_id != self.cluster_id}
        self.rank_table = rank_table
        lower = [peer for peer in self.peers.values() if peer.cluster_id < self.cluster_id]
        if not lower:
            return []
        infos = [cluster_info(peer.cluster_id, peer.address) for peer in lower]
        return [code.name for code in self.datadist.link_clusters(infos)[1]]

    def storm(self, seconds: float) -> tuple[Counter[tuple[str, str]], list[str]]:
        """How often each call ended how, and what went wrong."""
        seen: Counter[tuple[str, str]] = Counter()
        wrong: list[str] = []
        sys.setswitchinterval(1e-5)
        until = time.monotonic() + seconds
        start = threading.Barrier(THREADS)

        def run(number: int) -> None:
            actor = Actor(self, number)
            try:
                start.wait()
                while time.monotonic() < until and not wrong:
                    actor.act()
            except BaseException:
                wrong.append(traceback.format_exc())
            finally:
                try:
                    actor.drop_everything()
                except BaseException:
                    wrong.append(traceback.format_exc())
                seen.update(actor.seen)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen, wrong

    def leave(self) -> None:
        """Drop the communicators."""
        while self.communicators:
            self.datadist.unlink(self.communicators.popleft())

    def part(self) -> None:
        """Drop this end of every link."""
        for peer in self.peers.values():
            self.datadist.unlink_clusters([cluster_info(peer.cluster_id, peer.address)], timeout=30_000, force=True)

    def pull_from_everybody(self) -> list[str]:
        """Pull from every other cluster what never changes."""
        wrong = []
        desc = CacheDesc(SINK_TENSORS, (1, SINK_BYTES), DataType.DT_UINT8)
        for peer in self.peers.values():
            cache = self.manager.allocate_cache(desc)
            number, slot = 1, 1
            cache_id = peer.sinks[number][0]
            code = outcome(self.manager.pull_cache, CacheKeyByIdAndIndex(peer.cluster_id, cache_id, slot), cache)
            if code is not SUCCESS:
                wrong.append(f"cluster {self.cluster_id} pulled from {peer.cluster_id}: {code}")
            elif not is_sink(cache, peer.cluster_id, number, slot):
                wrong.append(f"cluster {self.cluster_id} pulled other bytes from {peer.cluster_id}")
            self.manager.deallocate_cache(cache)
        return wrong

    def drop(self) -> list[str]:
        """Drop the caches that lived as long as the process; what was written into them was what stood there."""
        wrong = []
        for number, sink in enumerate(self.sinks):
            for tensor, array in enumerate(sink.tensors):
                for slot in range(SINK_SLOTS):
                    if not (array[slot] == sink_content(self.cluster_id, number, slot, tensor)).all():
                        wrong.append(f"sink {number} of cluster {self.cluster_id}: tensor {tensor} of slot {slot}")
            del array
            self.manager.deallocate_cache(sink)
        self.sinks = []
        return wrong

    def inspect(self) -> dict[str, Any]:
        """What is left. Every invariant holds."""
        gc.collect()
        self.manager.check()
        usages = {placement.name: self.manager.pool_usage(placement) for placement in Placement}
        return {
            "caches": self.manager.live_caches,
            "keys": self.manager.live_keys,
            "taken": {name: usage.total_bytes - usage.free_bytes for name, usage in usages.items()},
        }

    def finalize(self) -> None:
        self.datadist.finalize()


def sink_content(cluster: int, sink: int, slot: int, tensor: int) -> np.ndarray:
    return content(cluster * 1000 + sink * 10 + slot, tensor, SINK_BYTES)


def is_sink(cache: Cache, cluster: int, sink: int, slot: int) -> bool:
    return all(
        (array[0] == sink_content(cluster, sink, slot, tensor)).all() for tensor, array in enumerate(cache.tensors)
    )


class Refused(Exception):
    """The thread could not get the memory it wanted; it does something else."""


class Actor:
    """One thread: does one thing after another, and keeps what it has made until it has too much."""

    def __init__(self, everything: Everything, thread: int) -> None:
        self.everything = everything
        self.manager = everything.manager
        self.cluster = everything.cluster_id
        self.remote = everything.remote
        self.source = random.Random(everything.cluster_id * 100 + thread)
        self.seen: Counter[tuple[str, str]] = Counter()
        self.caches: deque[tuple[Cache, list[CacheKey]]] = deque()
        self.blocks: deque[Cache] = deque()
        self.registered: deque[tuple[Cache, list[np.ndarray]]] = deque()
        weights: dict[Callable[[], LLMStatusCode], float] = {
            self.allocate: 12,
            self.remove: 4,
            self.look: 2,
            self.allocate_blocks: 4,
            self.register: 4,
            self.collide: 2,
            self.copy_slots: 4,
            self.copy_blocks: 3,
            self.swap_blocks: 3,
            self.pull: 16,
            self.pull_by_layers: 6,
            self.pull_blocks: 6,
            self.pull_slot_into_blocks: 6,
            self.send_layers: 4,
            self.relink: 0.5,
            self.rejoin: 0.1,
        }
        if self.remote:
            weights |= {self.push: 6, self.push_blocks: 6}
        self.acts, self.weights = list(weights), list(weights.values())

    def act(self) -> None:
        act = self.source.choices(self.acts, self.weights)[0]
        try:
            code = act()
        except Refused:
            code = FULL
        self.seen[act.__name__, code.name] += 1

    def drop_everything(self) -> None:
        while self.caches:
            self.drop_oldest()
        while self.blocks:
            self.manager.deallocate_blocks_cache(self.blocks.popleft())
        while self.registered:
            self.unregister_oldest()

    # -- making ---------------------------------------------------------------------------------------------------

    def made(self, call: Callable[..., Cache], *arguments: Any) -> Cache:
        try:
            return call(*arguments)
        except LLMException as refusal:
            assert refusal.status_code is FULL, refusal
            raise Refused from None

    def placement(self) -> Placement:
        return self.source.choice([Placement.DEVICE, Placement.DEVICE, Placement.HOST])

    def key_of(self, number: int, kind: int) -> CacheKey:
        if kind % 4 == 0:
            return CacheKey(self.cluster, number)
        return CacheKey(self.cluster, INV, 0, number if kind % 4 == 1 else INV)

    def publish(self, cache_id: int, numbers: list[int], kinds: list[int], desc: CacheDesc, registered: bool) -> None:
        slot_bytes = desc.size // desc.batch_size
        for slot, (number, kind) in enumerate(zip(numbers, kinds, strict=True)):
            name = SlotName(number, cache_id, slot, desc.num_tensors, slot_bytes, kind + 4 * registered)
            self.everything.board.publish(self.cluster, next(self.everything.slot_places), name)

    def names(self, batch: int) -> tuple[list[int], list[int], list[CacheKey]]:
        numbers = [next(self.everything.numbers) for _ in range(batch)]
        kinds = [self.source.choice([0, 0, 0, 1, 2]) for _ in numbers]
        return numbers, kinds, [self.key_of(*name) for name in zip(numbers, kinds, strict=True)]

    def allocate(self) -> LLMStatusCode:
        # Small transfers keep the interpreter's lock, large ones give it up.
        batch, tensors = self.source.randint(1, 4), self.source.choice([2, 4, 8])
        slot_bytes = self.source.choice([64, 1000, 4096, 20_000])
        desc = CacheDesc(tensors, (batch, slot_bytes), DataType.DT_UINT8, self.placement())
        numbers, kinds, keys = self.names(batch)
        cache = self.made(self.manager.allocate_cache, desc, keys)
        for tensor, array in enumerate(cache.tensors):
            for slot, number in enumerate(numbers):
                array[slot] = content(number, tensor, slot_bytes)
        self.publish(cache.cache_id, numbers, kinds, desc, registered=False)
        self.caches.append((cache, keys))
        if len(self.caches) > CACHES_KEPT:
            self.drop_oldest()
        return SUCCESS

    def drop_oldest(self) -> None:
        """All references to a cache that nobody has dropped yet, in any order."""
        cache, keys = self.caches.popleft()
        drops: list[Callable[[], None]] = [lambda key=key: self.manager.remove_cache_key(key) for key in keys]
        drops += [lambda: self.manager.deallocate_cache(cache)] * self.source.choice([1, 1, 2])
        self.source.shuffle(drops)
        for drop in drops:
            drop()

    def remove(self) -> LLMStatusCode:
        name = self.everything.board.some_slot(self.source, self.cluster)
        if name is None:
            return NOT_EXIST
        self.manager.remove_cache_key(self.key_of(name.number, name.kind))
        return SUCCESS

    def look(self) -> LLMStatusCode:
        name = self.everything.board.some_slot(self.source, self.cluster)
        if name is None:
            return NOT_EXIST
        found = self.manager.lookup(self.key_of(name.number, name.kind))
        assert found is None or (found.cache_id, found.batch_index) == (name.cache_id, name.batch_index)
        return NOT_EXIST if found is None else SUCCESS

    def collide(self) -> LLMStatusCode:
        """All threads of the cluster want the same few keys."""
        keys = [CacheKey(self.cluster, self.source.randrange(1, 6)) for _ in range(2)]
        try:
            cache = self.manager.allocate_cache(CacheDesc(1, (2, 64), DataType.DT_UINT8), keys)
        except LLMException as refusal:
            assert refusal.status_code in (INVALID, FULL), refusal
            return refusal.status_code
        self.manager.deallocate_cache(cache)
        for key in keys:
            self.manager.remove_cache_key(key)
        return SUCCESS

    def allocate_blocks(self) -> LLMStatusCode:
        tensors = self.source.choice([2, 4])
        desc = CacheDesc(tensors, (BLOCKS, BLOCK_BYTES), DataType.DT_UINT8, self.placement())
        model = next(self.everything.numbers)
        cache = self.made(self.manager.allocate_blocks_cache, desc, BlocksCacheKey(self.cluster, model))
        for tensor, array in enumerate(cache.tensors):
            for block in range(BLOCKS):
                array[block] = content(model + block, tensor, BLOCK_BYTES)
        self.everything.board.publish(self.cluster, next(self.everything.blocks_places), BlocksName(model, tensors))
        self.blocks.append(cache)
        if len(self.blocks) > OTHERS_KEPT:
            self.manager.deallocate_blocks_cache(self.blocks.popleft())
        return SUCCESS

    def register(self) -> LLMStatusCode:
        """Memory of the program's own, with keys, as a cache or as blocks."""
        tensors, batch, slot_bytes = self.source.choice([2, 4]), self.source.randint(1, 3), 1000
        as_blocks = self.source.random() < 0.3
        shape = (BLOCKS, BLOCK_BYTES) if as_blocks else (batch, slot_bytes)
        desc = CacheDesc(tensors, shape, DataType.DT_UINT8)
        arrays = [np.empty(shape, np.uint8) for _ in range(tensors)]
        addrs = [array.ctypes.data for array in arrays]
        if as_blocks:
            model = next(self.everything.numbers)
            for tensor, array in enumerate(arrays):
                for block in range(BLOCKS):
                    array[block] = content(model + block, tensor, BLOCK_BYTES)
            cache = self.manager.register_blocks_cache(desc, addrs, BlocksCacheKey(self.cluster, model))
            name = BlocksName(model, tensors, 1)
            self.everything.board.publish(self.cluster, next(self.everything.blocks_places), name)
        else:
            numbers, kinds, keys = self.names(batch)
            for tensor, array in enumerate(arrays):
                for slot, number in enumerate(numbers):
                    array[slot] = content(number, tensor, slot_bytes)
            cache = self.manager.register_cache(desc, addrs, keys)
            self.publish(cache.cache_id, numbers, kinds, desc, registered=True)
        self.registered.append((cache, arrays))
        if len(self.registered) > OTHERS_KEPT:
            self.unregister_oldest()
        return SUCCESS

    def unregister_oldest(self) -> None:
        """Afterwards the memory is the program's again: whatever is written there stays."""
        cache, arrays = self.registered.popleft()
        self.manager.unregister_cache(cache.cache_id)
        for array in arrays:
            array[:] = UNTOUCHED
        self.look()
        assert all((array == UNTOUCHED).all() for array in arrays), "written to after it was unregistered"

    # -- local copies ---------------------------------------------------------------------------------------------

    def copy_slots(self) -> LLMStatusCode:
        desc = CacheDesc(2, (2, 1000), DataType.DT_UINT8, self.placement())
        source = self.made(self.manager.allocate_cache, desc)
        try:
            target = self.made(self.manager.allocate_cache, desc)
            number = next(self.everything.numbers)
            for tensor, array in enumerate(source.tensors):
                array[1] = content(number, tensor, 1000)
            for array in target.tensors:
                array[:] = UNTOUCHED
            self.manager.copy_cache(target, source, 0, 1, offset=100, size=500)
            for tensor, array in enumerate(target.tensors):
                assert (array[0, 100:600] == content(number, tensor, 1000)[100:600]).all()
                assert (array[0, :100] == UNTOUCHED).all() and (array[0, 600:] == UNTOUCHED).all()
                assert (array[1] == UNTOUCHED).all()
            self.manager.deallocate_cache(target)
        finally:
            self.manager.deallocate_cache(source)
        return SUCCESS

    def private_blocks(self) -> tuple[Cache, int]:
        """Blocks that nobody else knows, with the contents of a number of their own."""
        desc = CacheDesc(2, (BLOCKS, BLOCK_BYTES), DataType.DT_UINT8)
        cache, number = self.made(self.manager.allocate_blocks_cache, desc), next(self.everything.numbers)
        for tensor, array in enumerate(cache.tensors):
            for block in range(BLOCKS):
                array[block] = content(number + block, tensor, BLOCK_BYTES)
        return cache, number

    def copy_blocks(self) -> LLMStatusCode:
        cache, number = self.private_blocks()
        first, second, third = self.source.sample(range(BLOCKS), 3)
        self.manager.copy_blocks(cache, {first: [second, third]})
        for tensor, array in enumerate(cache.tensors):
            for block in (first, second, third):
                assert (array[block] == content(number + first, tensor, BLOCK_BYTES)).all()
        self.manager.deallocate_blocks_cache(cache)
        return SUCCESS

    def swap_blocks(self) -> LLMStatusCode:
        cache, number = self.private_blocks()
        arrays = [np.full((3, BLOCK_BYTES), UNTOUCHED, np.uint8) for _ in range(2)]
        desc = CacheDesc(2, (3, BLOCK_BYTES), DataType.DT_UINT8, Placement.HOST)
        ours = Cache.create_cpu_cache(desc, [array.ctypes.data for array in arrays])
        origin, target = self.source.sample(range(BLOCKS), 2)
        self.manager.swap_blocks(cache, ours, {origin: 2})
        self.manager.swap_blocks(ours, cache, {2: target, 0: origin})
        for tensor, array in enumerate(cache.tensors):
            assert (arrays[tensor][2] == content(number + origin, tensor, BLOCK_BYTES)).all()
            assert (array[target] == content(number + origin, tensor, BLOCK_BYTES)).all()
            assert (array[origin] == UNTOUCHED).all()
        self.manager.deallocate_blocks_cache(cache)
        return SUCCESS

    # -- transfers ------------------------------------------------------------------------------------------------

    def peer(self) -> Peer:
        return self.source.choice(list(self.everything.peers.values()))

    def expected(self, code: LLMStatusCode, registered: bool) -> LLMStatusCode:
        """The code, if it is one that may be. In remote mode a communicator closes what is registered meanwhile."""
        closed = self.remote and registered and code is INVALID
        assert code in (SUCCESS, NOT_EXIST, NOT_LINKED) or closed, code
        return code

    def slot_key(self, name: SlotName, cluster: int) -> CacheKey | CacheKeyByIdAndIndex:
        """A key of the slot; in remote mode, and where the slot has none, by id and index."""
        if name.kind % 4 == 2 or self.remote or self.source.random() < 0.3:
            return CacheKeyByIdAndIndex(cluster, name.cache_id, name.batch_index)
        number = name.number
        return CacheKey(cluster, number) if name.kind % 4 == 0 else CacheKey(cluster, INV, 0, number)

    def pull(self) -> LLMStatusCode:
        peer = self.peer()
        name = self.everything.board.some_slot(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        desc = CacheDesc(name.tensors, (2, name.slot_bytes), DataType.DT_UINT8, self.placement())
        cache = self.made(self.manager.allocate_cache, desc)
        for array in cache.tensors:
            array[:] = UNTOUCHED
        size = self.source.choice([-1, name.slot_bytes, name.slot_bytes // 2])
        code = outcome(self.manager.pull_cache, self.slot_key(name, peer.cluster_id), cache, 1, size)
        for tensor, array in enumerate(cache.tensors):
            assert (array[0] == UNTOUCHED).all(), "a pull wrote beside its slot"
            if code is SUCCESS:
                arrived = name.slot_bytes if size == -1 else size
                assert (array[1, :arrived] == content(name.number, tensor, arrived)).all(), name
                assert (array[1, arrived:] == UNTOUCHED).all(), "a pull wrote more than was asked for"
        self.manager.deallocate_cache(cache)
        return self.expected(code, name.registered)

    def pull_by_layers(self) -> LLMStatusCode:
        peer = self.peer()
        name = self.everything.board.some_slot(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        desc = CacheDesc(name.tensors, (1, name.slot_bytes), DataType.DT_UINT8)
        cache = self.made(self.manager.allocate_cache, desc)
        key = self.slot_key(name, peer.cluster_id)
        layers = list(range(name.tensors // 2))
        self.source.shuffle(layers)
        code = SUCCESS
        for layer in layers:
            only = range(layer, layer + 1)
            code = outcome(self.manager.pull_cache, key, cache, src_layer_range=only, dst_layer_range=only)
            if code is not SUCCESS:
                break
            for tensor in (2 * layer, 2 * layer + 1):
                assert (cache.tensors[tensor][0] == content(name.number, tensor, name.slot_bytes)).all(), name
        self.manager.deallocate_cache(cache)
        return self.expected(code, name.registered)

    def pull_blocks(self) -> LLMStatusCode:
        peer = self.peer()
        name = self.everything.board.some_blocks(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        desc = CacheDesc(name.tensors, (BLOCKS, BLOCK_BYTES), DataType.DT_UINT8, self.placement())
        cache = self.made(self.manager.allocate_blocks_cache, desc)
        count = self.source.randint(1, BLOCKS)
        origins, targets = (self.source.sample(range(BLOCKS), count) for _ in range(2))
        key = BlocksCacheKey(peer.cluster_id, name.model_id)
        code = outcome(self.manager.pull_blocks, key, cache, origins, targets)
        if code is SUCCESS:
            for tensor, array in enumerate(cache.tensors):
                for origin, target in zip(origins, targets, strict=True):
                    assert (array[target] == content(name.model_id + origin, tensor, BLOCK_BYTES)).all(), name
        self.manager.deallocate_blocks_cache(cache)
        return self.expected(code, bool(name.registered))

    def pull_slot_into_blocks(self) -> LLMStatusCode:
        peer = self.peer()
        name = self.everything.board.some_slot(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        needed = -(-name.slot_bytes // BLOCK_BYTES)
        desc = CacheDesc(name.tensors, (needed + 1, BLOCK_BYTES), DataType.DT_UINT8)
        cache = self.made(self.manager.allocate_blocks_cache, desc)
        targets = self.source.sample(range(needed + 1), needed)
        code = outcome(self.manager.pull_blocks, self.slot_key(name, peer.cluster_id), cache, (), targets)
        if code is SUCCESS:
            for tensor, array in enumerate(cache.tensors):
                slot = content(name.number, tensor, name.slot_bytes)
                for number, target in enumerate(targets):
                    part = slot[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
                    assert (array[target, : part.size] == part).all(), name
        self.manager.deallocate_blocks_cache(cache)
        return self.expected(code, name.registered)

    def push(self) -> LLMStatusCode:
        """What stands in the slot already."""
        peer = self.peer()
        name = self.everything.board.some_slot(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        desc = CacheDesc(name.tensors, (2, name.slot_bytes), DataType.DT_UINT8, self.placement())
        cache = self.made(self.manager.allocate_cache, desc)
        for tensor, array in enumerate(cache.tensors):
            array[1] = content(name.number, tensor, name.slot_bytes)
        key = CacheKeyByIdAndIndex(peer.cluster_id, name.cache_id, name.batch_index)
        code = outcome(self.manager.push_cache, key, cache, 1)
        self.manager.deallocate_cache(cache)
        return self.expected(code, name.registered)

    def push_blocks(self) -> LLMStatusCode:
        peer = self.peer()
        name = self.everything.board.some_blocks(self.source, peer.cluster_id)
        if name is None:
            return NOT_EXIST
        desc = CacheDesc(name.tensors, (BLOCKS, BLOCK_BYTES), DataType.DT_UINT8)
        cache = self.made(self.manager.allocate_blocks_cache, desc)
        targets = self.source.sample(range(BLOCKS), self.source.randint(1, BLOCKS))
        for tensor, array in enumerate(cache.tensors):
            for block, target in enumerate(targets):
                array[block] = content(name.model_id + target, tensor, BLOCK_BYTES)
        key = BlocksCacheKey(peer.cluster_id, name.model_id)
        code = outcome(self.manager.push_blocks, key, cache, list(range(len(targets))), targets)
        self.manager.deallocate_blocks_cache(cache)
        return self.expected(code, bool(name.registered))

    def send_layers(self) -> LLMStatusCode:
        """Layer by layer into caches of several clusters; a layer may fail, or never be ready."""
        desc = CacheDesc(SINK_TENSORS, (SINK_SLOTS, SINK_BYTES), DataType.DT_UINT8)
        cache = self.made(self.manager.allocate_cache, desc)
        sink, slot, peer = self.source.randrange(SINKS), self.source.randrange(SINK_SLOTS), self.peer()
        for tensor, array in enumerate(cache.tensors):
            array[1] = sink_content(peer.cluster_id, sink, slot, tensor)
        ends = self.source.choice([{}, {}, {}, {1: "false"}, {0: "raises"}])
        cache_id, addrs = peer.sinks[sink]
        config: TransferConfig | TransferWithCacheKeyConfig
        if self.remote:
            key = CacheKeyByIdAndIndex(peer.cluster_id, cache_id, slot)
            config = TransferWithCacheKeyConfig(key, range(2), range(2), 1)
        else:
            config = TransferConfig(peer.cluster_id, [address + slot * SINK_BYTES for address in addrs], range(2), 1)
        task = self.manager.transfer_cache_async(cache, Layers(ends), [config, config])
        code = task.synchronize()
        assert task.get_results() == [code, code] or NOT_LINKED in task.get_results()
        self.manager.deallocate_cache(cache)
        wanted = {"false": INVALID, "raises": LLMStatusCode.LLM_FAILED}.get(next(iter(ends.values()), ""), SUCCESS)
        assert code in (wanted, NOT_LINKED), (code, ends)
        return code

    # -- links ----------------------------------------------------------------------------------------------------

    def relink(self) -> LLMStatusCode:
        peer = self.peer()
        infos = [cluster_info(peer.cluster_id, peer.address)]
        code, _ = self.everything.datadist.unlink_clusters(infos, timeout=30_000, force=self.source.random() < 0.5)
        assert code is SUCCESS, code
        code, _ = self.everything.datadist.link_clusters(infos, timeout=30_000)
        if code is ALREADY:  # the other end was faster, or still holds what this one has dropped
            return code
        assert code is SUCCESS, code
        return code

    def rejoin(self) -> LLMStatusCode:
        """Leave the communicator of all clusters, or become a member of it."""
        everything = self.everything
        with everything.joining:
            if everything.communicators:
                everything.datadist.unlink(everything.communicators.popleft())
                return SUCCESS
            ranks = {cluster: cluster - 1 for cluster in range(1, CLUSTERS + 1)}
            number = everything.datadist.link("everything", ranks, everything.rank_table)
            everything.communicators.append(number)
            everything.datadist.query_register_mem_status(number)
            return SUCCESS


def run(connection: Connection, cluster_id: int, options: dict[str, str], board: Any) -> None:
    """Do what comes through the pipe until it is closed."""
    logging.getLogger("llmdd").setLevel(logging.CRITICAL)  # what fails here is meant to
    everything = Everything(connection, cluster_id, options, board)
    connection.send("ready")
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        connection.send(getattr(everything, name)(*arguments))
