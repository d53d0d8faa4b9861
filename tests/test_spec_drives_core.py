"""A changed transition, built, is a changed core: nothing else was touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmdd

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
    installed = Path(llmdd.__file__).parent
    shutil.copytree(installed, target / "llmdd", ignore=shutil.ignore_patterns("__pycache__"))
    for module in built_anew(source):
        shutil.copy(module, target / "llmdd" / "_core")
    return target


def built_anew(source: Path) -> list[Path]:
    """The modules that the tables are compiled into, built from this source; the others would be what they are."""
    build = source / "build"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command, cwd=source, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True
        ).stdout

    run("meson", "setup", "-Doptimization=0", build)
    with_tables = {
        path.stem for path in source.glob("llmdd/_core/*.p[xy][dx]") if "_core.tables cimport" in path.read_text()
    }
    modules = [
        Path(target["filename"][0])
        for target in json.loads(run("meson", "introspect", "--targets", build))
        if target["name"].partition(".")[0] in {"tables", *with_tables}
    ]
    assert len(modules) == 1 + len(with_tables) > 1
    run("ninja", "-C", build, *(module.relative_to(build) for module in modules))
    return modules


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
