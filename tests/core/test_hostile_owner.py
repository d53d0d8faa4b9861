"""An owner that writes what it likes into its segments: whoever transfers is refused, or moves bytes, and is unhurt.

Each test runs in a child process, where a crash or a hang ends the child alone and is seen.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from typing import Any

import numpy as np
import pytest

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType, LLMException, LLMStatusCode
from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore

HEADER_BYTES = 4096
TIME_FOR_A_CHILD_S = 120
SLOTS, KEYS = 64, 1024
REFUSALS = {
    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
    LLMStatusCode.LLM_PARAM_INVALID,
    LLMStatusCode.LLM_FAILED,
    LLMStatusCode.LLM_TIMEOUT,
    LLMStatusCode.LLM_NOT_YET_LINK,  # as if the owner had evicted us
}

# Where arithmetic on sizes and offsets goes wrong if it does.
EDGES = [0, 1, 2, 7, 8, 63, 64, 255, 4095, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40]
EDGES += [(1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 1]

DESCS = [
    CacheDesc(1, (1, 64), DataType.DT_INT8),
    CacheDesc(2, (3, 512), DataType.DT_INT8),
    CacheDesc(24, (40, 16), DataType.DT_INT8),
    CacheDesc(4, (1, 40_000), DataType.DT_INT8),
]
BLOCKS = CacheDesc(2, (4, 32), DataType.DT_INT8)
REGISTERED = np.zeros(64, np.int8)


def in_a_child(work: Callable[[], None]) -> None:
    """Fails if the work fails, crashes or does not end."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            signal.alarm(TIME_FOR_A_CHILD_S)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ended_with = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # whom it has started
    assert ended_with == 0


class Stage:
    """An owner's segments under the tester's hand, and a store that pulls from them."""

    def __init__(self, segments_of: Callable[[CacheStore], Any], seed: int) -> None:
        self.random = random.Random(seed)
        owner = CacheStore(
            cluster_id=1, device_pool=(1 << 20, 12), timeout_ms=5000, slot_capacity=SLOTS, key_capacity=KEYS
        )
        self.keys: list[CacheKey | CacheKeyByIdAndIndex] = []
        their_blocks = owner.allocate_blocks_cache(BLOCKS, BlocksCacheKey(1, 0))
        registered = owner.register_cache(DESCS[0], [REGISTERED.ctypes.data], [CacheKey(1, 6000)])
        self.keys += [CacheKey(1, 6000), CacheKeyByIdAndIndex(1, registered.cache_id)]
        self.addresses = [*their_blocks.tensor_addrs, *registered.tensor_addrs]
        # The pool is left with single free pages first, so that the cache of many tensors lies in pieces.
        gaps = [owner.allocate_cache(DESCS[0]) for _ in range(50)]
        big = owner.allocate_cache(CacheDesc(1, (1, owner.pool_usage().free_bytes), DataType.DT_INT8))
        for gap in gaps[::2]:
            owner.deallocate_cache(gap)
        in_pieces = owner.allocate_cache(DESCS[2], [CacheKey(1, 5000)])
        self.keys += [CacheKey(1, 5000), CacheKeyByIdAndIndex(1, in_pieces.cache_id)]
        owner.deallocate_cache(big)
        for desc in DESCS:
            batch = [CacheKey(1, 100 * len(self.keys) + index) for index in range(desc.batch_size)]
            cache = owner.allocate_cache(desc, batch)
            self.keys += [*batch[:2], CacheKeyByIdAndIndex(1, cache.cache_id)]
        segments = segments_of(owner)
        header = segments.header
        self.index, self.slots = header.index_offset, header.slots_offset
        self.slot_bytes = (header.free_slots_offset - header.slots_offset) // SLOTS
        self.records, self.references = header.records_offset, header.reference_slots_offset - header.control_bytes
        del header
        fds = segments.fds()
        # The owner's process, whose memory a slot may claim to be registered: one that may be written to anywhere.
        self.process = subprocess.Popen(["sleep", "infinity"])
        self.arena = PeerArena(segments.description, fds, 3, self.process.pid)
        self.originals = [bytes(content) for content in segments.contents]
        self.memories = [mmap(fd, 0) for fd in fds]
        self.store = CacheStore(cluster_id=2, device_pool=(1 << 20, 12), timeout_ms=20)
        self.store.peers = {1: self.arena}
        self.pusher = CacheStore(cluster_id=3, device_pool=(1 << 20, 12), timeout_ms=20, remote_accessible=True)
        self.pusher.peers = {1: self.arena}
        self.sources = [self.pusher.allocate_cache(desc) for desc in DESCS]
        self.blocks = self.store.allocate_blocks_cache(BLOCKS)
        self.source_blocks = self.pusher.allocate_blocks_cache(BLOCKS)
        # What is pulled into stands between what must stay as it is.
        self.guards, self.targets = [], []
        for desc in DESCS:
            self.guards.append(self.store.allocate_cache(DESCS[0]))
            self.targets.append(self.store.allocate_cache(desc))
        self.guards.append(self.store.allocate_cache(DESCS[0]))
        for guard in self.guards:
            guard.tensors[0][:] = 77

    def restore(self) -> None:
        for memory, original in zip(self.memories[:2], self.originals, strict=False):
            memory[:] = original

    def write(self, memory: int, offset: int, size: int, value: int) -> None:
        self.memories[memory][offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")

    def edge(self) -> int:
        if self.random.random() < 0.3:
            return self.random.getrandbits(64)
        return self.random.choice(EDGES) + self.random.choice([0, 0, 0, -1, 1])

    def scribble(self) -> None:
        """Make one thing wrong, in a place where something is."""
        size = self.random.choice([1, 2, 4, 8])
        place = self.random.randrange(6)
        if place <= 2:  # a slot
            slot = self.random.randrange(SLOTS)
            offset = self.random.randrange(0, self.slot_bytes, size)
            self.write(0, self.slots + slot * self.slot_bytes + offset, size, self.edge())
        elif place == 3:  # an index entry, but not what it is found by
            entry = self.random.randrange(KEYS + 256)
            self.write(0, self.index + entry * 32 + self.random.choice([20, 24, 28]), 4, self.edge())
        elif place == 4:  # the records of keys and tensors
            self.write(0, self.records + self.random.randrange(0, 4096, size), size, self.edge())
        else:  # pins and reference words
            self.write(1, self.references + self.random.randrange(0, 64 * SLOTS + 4096, size), size, self.edge())

    def transfer_everything(self) -> int:
        """Pull every key into every cache, and push to every cache; how many transfers were carried out."""
        done = 0
        for key in self.keys:
            for target in self.targets:
                done += self.carried_out(self.store.pull_cache, key, target, size=self.random.choice([-1, 1, 16]))
            done += self.carried_out(self.store.pull_blocks, key, self.blocks, dst_blocks=[3, 0])
            if isinstance(key, CacheKeyByIdAndIndex):
                for source in self.sources:
                    done += self.carried_out(self.pusher.push_cache, key, source)
        blocks_key = BlocksCacheKey(1, 0)
        done += self.carried_out(self.store.pull_blocks, blocks_key, self.blocks, [0, 1, 3], [2, 1, 0])
        done += self.carried_out(self.pusher.push_blocks, blocks_key, self.source_blocks, [0, 1, 3], [2, 1, 0])
        send, theirs, registered = self.store.send_to_addresses, self.addresses[:2], self.addresses[-1]
        done += self.carried_out(send, self.targets[1], 1, 0, theirs)
        done += self.carried_out(send, self.blocks, 1, 0, theirs, 0, [1], [2])
        done += self.carried_out(send, self.targets[1], 1, 0, [registered, registered + 8])
        done += self.carried_out(send, self.targets[1], 1, 0, [theirs[1], registered])
        return done

    def carried_out(self, call: Callable[..., object], *arguments: Any, **named: Any) -> int:
        try:
            call(*arguments, **named)
        except LLMException as refused:
            assert refused.status_code in REFUSALS, refused
            return 0
        return 1

    def assert_unhurt(self) -> None:
        assert self.process.poll() is None
        self.store.check()
        self.pusher.check()
        for guard in self.guards:
            assert (guard.tensors[0] == 77).all()


@pytest.fixture
def make_stage(copy_segments: Any) -> Callable[[int], Stage]:
    return lambda seed: Stage(copy_segments, seed)


def test_what_is_pulled_when_nobody_is_hostile(make_stage: Callable[[int], Stage]) -> None:
    def work() -> None:
        stage = make_stage(0)
        assert stage.transfer_everything() > 10
        stage.assert_unhurt()

    in_a_child(work)


@pytest.mark.parametrize("seed", range(4))
def test_slots_index_records_and_words_that_lie(make_stage: Callable[[int], Stage], seed: int) -> None:
    def work() -> None:
        stage = make_stage(seed)
        done = 0
        for _ in range(600):
            stage.restore()
            for _ in range(stage.random.choice([1, 4, 40, 400])):
                stage.scribble()
            done += stage.transfer_everything()
        stage.assert_unhurt()
        assert done > 0

    in_a_child(work)


def test_every_field_of_every_slot_at_every_edge(make_stage: Callable[[int], Stage]) -> None:
    def work() -> None:
        stage = make_stage(0)
        for offset in range(0, stage.slot_bytes, 4):
            for edge in EDGES:
                stage.restore()
                for slot in range(SLOTS):
                    stage.write(0, stage.slots + slot * stage.slot_bytes + offset, 4 if edge < 1 << 32 else 8, edge)
                stage.transfer_everything()
        stage.assert_unhurt()

    in_a_child(work)


def test_random_bytes_all_over_the_control_segment(make_stage: Callable[[int], Stage]) -> None:
    def work() -> None:
        stage = make_stage(1)
        noise = np.random.default_rng(1)
        control = np.frombuffer(stage.memories[0], np.uint8)
        references = np.frombuffer(stage.memories[1], np.uint8)
        for share in (1.0, 0.5, 0.1, 0.01, 0.001):
            for _ in range(4):
                stage.restore()
                for memory, begin in ((control, HEADER_BYTES), (references, 0)):
                    hit = noise.random(len(memory) - begin) < share
                    memory[begin:][hit] = noise.integers(0, 256, hit.sum(), np.uint8)
                stage.transfer_everything()
        # The header too: what matters of it was read when the arena was attached.
        stage.restore()
        for _ in range(4):
            control[:HEADER_BYTES] = noise.integers(0, 256, HEADER_BYTES, np.uint8)
            stage.transfer_everything()
        stage.assert_unhurt()

    in_a_child(work)


def test_an_index_that_lies_about_its_size_or_never_rests(
    make_stage: Callable[[int], Stage], header_offset: Callable[[str], int]
) -> None:
    def work() -> None:
        stage = make_stage(2)
        for bits in [*range(70), 1 << 32, 1 << 63, (1 << 64) - 1]:
            stage.restore()
            stage.write(0, header_offset("index_bits"), 8, bits)
            stage.transfer_everything()
        stage.restore()
        stage.write(0, header_offset("index_version"), 8, 1)
        with pytest.raises(LLMException) as refused:
            stage.store.pull_cache(CacheKey(1, 12345), stage.targets[0])
        assert refused.value.status_code is LLMStatusCode.LLM_TIMEOUT
        stage.assert_unhurt()

    in_a_child(work)


def test_an_owner_that_writes_while_we_read(make_stage: Callable[[int], Stage]) -> None:
    def work() -> None:
        stage = make_stage(3)
        ended = threading.Event()

        def keep_scribbling() -> None:
            while not ended.is_set():
                stage.scribble()
                if stage.random.random() < 0.02:
                    stage.restore()

        writer = threading.Thread(target=keep_scribbling)
        writer.start()
        for _ in range(600):
            stage.transfer_everything()
        ended.set()
        writer.join()
        stage.assert_unhurt()

    in_a_child(work)


def test_a_header_of_random_bytes(copy_segments: Any, make_store: Any) -> None:
    segments = copy_segments(make_store(1, slot_capacity=SLOTS, key_capacity=KEYS))

    def work() -> None:
        original = bytes(segments.contents[0][:HEADER_BYTES])
        source = random.Random(9)
        refused = 0
        for _ in range(1500):
            segments.contents[0][:HEADER_BYTES] = original
            for _ in range(source.choice([1, 1, 2, 5])):
                # Behind the magic, version and checksum, which are compared first of all.
                offset = source.randrange(24, 520, 8)
                value = source.choice(EDGES) if source.random() < 0.7 else source.getrandbits(64)
                segments.contents[0][offset : offset + 8] = value.to_bytes(8, "little")
            try:
                segments.attach()
            except ValueError:
                refused += 1
        assert refused > 500

    in_a_child(work)
