"""A changed transition, built, is a changed core: nothing else was touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

SAFE = """        Transition("settle", "RELEASING", "RELEASING", "api §3.3 (never under a transfer)", when=("pinned",)),
        Transition(
            "settle",
            "RELEASING",
            "FREE",
            "seed §1",
            when=("not pinned",),
"""
FREES_WHILE_PINNED = """        Transition(
            "settle",
            "RELEASING",
            "FREE",
            "seed §1",
"""

# What becomes of memory that an array still shows when its cache is deallocated; then, linking to a core of another
# spec.
PROGRAM = """
from llmdd._core.store import CacheStore
from llmdd import CacheDesc, DataType

store = CacheStore(cluster_id=1, device_pool=(1 << 16, 16))
cache = store.allocate_cache(CacheDesc(1, (1, 16), DataType.DT_INT8))
array = cache.tensors[0]
store.deallocate_cache(cache)
print(store.pool_usage().free_bytes)
"""

EXPORTING = """
import os, sys
from llmdd._core.store import CacheStore

store = CacheStore(cluster_id=2)
description, fds = store.export()
print(os.getpid(), description["control_bytes"], description["references_bytes"], *fds, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def changed_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with llmdd built from a spec in which memory goes back although it is pinned."""
    source = tmp_path_factory.mktemp("source") / "llmdd"
    tracked = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "build")
    shutil.copytree(REPOSITORY, source, ignore=tracked)
    lifecycle = source / "spec" / "lifecycle.py"
    text = lifecycle.read_text()
    assert text.count(SAFE) == 1, "the transition to be changed is not in spec/lifecycle.py as this test knows it"
    lifecycle.write_text(text.replace(SAFE, FREES_WHILE_PINNED))
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--target", str(target), str(source)],
        check=True,
        timeout=300,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    return target


def printed_by(program: str, path: Path | None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_core_keeps_pinned_memory_because_the_spec_says_so(changed_core: Path) -> None:
    assert printed_by(PROGRAM, None) == "0"
    assert printed_by(PROGRAM, changed_core) == "65536"


def test_cores_of_different_specs_refuse_each_other(changed_core: Path) -> None:
    from llmdd._core.peer import PeerArena
    from llmdd._core.tables import SPEC_CHECKSUM

    exporter = subprocess.Popen(
        [sys.executable, "-c", EXPORTING],
        env={**os.environ, "PYTHONPATH": str(changed_core)},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert exporter.stdout is not None
        pid, control, references, *theirs = map(int, exporter.stdout.readline().split())
        fds = [os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY if i == 0 else os.O_RDWR) for i, fd in enumerate(theirs)]
        try:
            with pytest.raises(ValueError, match=f"its spec has checksum [0-9a-f]+, this process has {SPEC_CHECKSUM}"):
                PeerArena({"control_bytes": control, "references_bytes": references}, fds, 0, os.getpid())
        finally:
            for fd in fds:
                os.close(fd)
    finally:
        exporter.communicate()
