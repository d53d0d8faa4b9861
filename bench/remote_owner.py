"""The owner of the caches that are pulled, in a process of its own, as the benchmarks talk to it."""

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


class OwnerProcess:
    """The other end: see ``owner_process.py``.

    Parameters
    ----------
    cluster_id : int
    plain_fd : int
        Shared memory for the plain copies, of `tensor_bytes` times `count`.
    tensor_bytes, count : int
        The owner offers `count` caches of one tensor, or one blocks cache of `count` blocks, of so many bytes each.
    """

    def __init__(self, cluster_id: int, plain_fd: int, tensor_bytes: int, count: int) -> None:
        gate, self._gate = os.pipe()
        settings = {
            "cluster_id": cluster_id,
            "plain_fd": plain_fd,
            "tensor_bytes": tensor_bytes,
            "count": count,
            "gate_fd": gate,
        }
        self.cluster_id = cluster_id
        script = Path(__file__).with_name("owner_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[plain_fd, gate],
        )
        os.close(gate)
        self.address: tuple[str, int] = tuple(self._answer())

    def call(self, *what: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    @contextmanager
    def holding_its_gil(self) -> Iterator[None]:
        """Meanwhile not a line of Python runs in the owner's process."""
        self.call("hold_gil")
        yield
        os.write(self._gate, b".")
        assert self._answer() == "resumed"

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the owner's process ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> OwnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._gate)
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
