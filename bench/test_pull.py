"""A pull between two processes beside a plain copy of the same bytes between two shared mappings (api §3.6)."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import payload
import pytest
from comparison import Comparer, Target
from nodes import link, node
from owner_process import CLUSTER_ID

from llmdd import CacheDesc, CacheKey, DataType, LLMRole

KIB = 1 << 10
MIB = 1 << 20

RATE_TARGET = Target(max_ratio=1.25, remark="80% of the rate")


class OwnerProcess:
    """The other end: see ``owner_process.py``."""

    def __init__(self, plain_fd: int, tensor_bytes: int, count: int) -> None:
        settings = {"plain_fd": plain_fd, "tensor_bytes": tensor_bytes, "count": count}
        script = Path(__file__).with_name("owner_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[plain_fd],
        )
        self.address: tuple[str, int] = tuple(self._answer())

    def call(self, *what: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the owner's process ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> OwnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@contextmanager
def shared_memory(size: int) -> Iterator[tuple[int, mmap.mmap]]:
    """An anonymous shared segment as a node's pool is one: its descriptor, and a mapping of it."""
    fd = os.memfd_create("benchmark")
    try:
        os.posix_fallocate(fd, 0, size)
        yield fd, mmap.mmap(fd, size)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "count", "rounds"),
    [
        pytest.param(4 * KIB, 256, 41, id="4KiB"),
        pytest.param(64 * KIB, 64, 41, id="64KiB"),
        pytest.param(MIB, 16, 41, id="1MiB"),
        pytest.param(16 * MIB, 2, 21, id="16MiB"),
        pytest.param(256 * MIB, 1, 7, id="256MiB"),
    ],
)
def test_pull(compare: Comparer, request: pytest.FixtureRequest, size: int, count: int, rounds: int) -> None:
    with (
        shared_memory(size * count) as (plain_source_fd, plain_source),
        shared_memory(size * count) as (_, plain_target),
        OwnerProcess(plain_source_fd, size, count) as owner,
        node(LLMRole.DECODER, 2, size * count, page_shift=12) as datadist,
    ):
        link(datadist, CLUSTER_ID, owner.address)
        manager = datadist.cache_manager
        cache = manager.allocate_cache(CacheDesc(1, (count, size), DataType.DT_UINT8))
        copied = np.frombuffer(plain_target, np.uint8).reshape(count, size)
        copies = [
            (memoryview(plain_target)[begin : begin + size], memoryview(plain_source)[begin : begin + size])
            for begin in range(0, size * count, size)
        ]
        keys: list[CacheKey] = []
        offers = 0

        def offer() -> None:
            nonlocal keys, offers
            first = offers * count
            keys = [CacheKey(CLUSTER_ID, req_id) for req_id in range(first, first + count)]
            owner.call("offer", first, offers // 2 % 2 == 0)
            offers += 1

        def pull() -> None:
            pull_cache = manager.pull_cache
            for batch_index, key in enumerate(keys):
                pull_cache(key, cache, batch_index)

        def copy() -> None:
            for target, source in copies:
                target[:] = source

        def inspect() -> None:
            pulled = cache.tensors[0]
            for batch_index, key in enumerate(keys):
                payload.require(pulled[batch_index], key.req_id, "pulled")
                payload.require(copied[batch_index], key.req_id, "copied")

        def verify() -> None:
            assert owner.call("live_caches") == 0, "a pull did not release its key"
            manager.check()

        compare(
            f"pull {request.node.callspec.id} between processes",
            pull,
            copy,
            baseline_name="memcpy",
            prepare=offer,
            inspect=inspect,
            verify=verify,
            operations=count,
            rounds=rounds,
            bytes_moved=size,
            target=RATE_TARGET if size == MIB else None,
        )
