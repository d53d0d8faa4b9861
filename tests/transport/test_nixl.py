"""What holds for NIXL alone: between processes that freeze and die, and where it is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from engine_hosts import PATIENCE_S, Host, fresh_name

from llmdd.transport import nixl
from llmdd.transport.engine import Descriptors, EngineFailed, EngineUnavailable, Reading
from llmdd.transport.engines import ENGINES
from llmdd.transport.nixl import UCX_SETTINGS, NixlEngine

SIZE = 32 << 20
PROCESSES = Path(__file__).parents[1] / "processes"

pytestmark = pytest.mark.usefixtures("nixl_over_tcp")


@dataclass
class Owner:
    """A process whose memory is read."""

    process: subprocess.Popen[str]
    metadata: bytes
    address: int

    def rows(self) -> Descriptors:
        return np.array([(self.address, SIZE, 0)], np.uint64)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
def owner() -> Iterator[Owner]:
    command = [sys.executable, str(PROCESSES / "engine_owner.py"), str(SIZE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=PROCESSES, **pipes) as process:
        assert process.stdout is not None
        metadata, address = json.loads(process.stdout.readline())
        yield Owner(process, bytes.fromhex(metadata), address)
        process.kill()


@pytest.fixture
def reader() -> Iterator[Host]:
    host = Host(NixlEngine(fresh_name()), np.zeros(SIZE, np.uint8))
    host.engine.register(*host.region())
    yield host
    host.engine.close()


def begin(reader: Host, owner: Owner) -> Reading:
    """Connect, read a first time in full, and begin to read from the owner, which is frozen now."""
    peer = reader.engine.connect(owner.metadata)
    assert ended(reader.engine.read(peer, reader.rows((0, SIZE)), owner.rows()))
    reader.memory[:] = 0
    owner.signal(signal.SIGSTOP)
    reading = reader.engine.read(peer, reader.rows((0, SIZE)), owner.rows())
    for _ in range(1000):
        assert not reading.poll()
    return reading


def ended(reading: Reading) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not reading.poll():
        assert time.monotonic() < deadline, "the reading has not ended"
    reading.release()
    return True


def expected() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(SIZE).integers(1, 256, SIZE, np.uint8)


def test_a_frozen_peer_is_waited_for(reader: Host, owner: Owner) -> None:
    reading = begin(reader, owner)
    owner.signal(signal.SIGCONT)
    assert ended(reading)
    assert np.array_equal(reader.memory, expected())


def test_what_a_killed_peer_owes_fails_and_is_not_written(reader: Host, owner: Owner) -> None:
    reading = begin(reader, owner)
    owner.signal(signal.SIGKILL)
    with pytest.raises(EngineFailed):
        ended(reading)
    reading.release()
    reader.memory[:] = 0
    for _ in range(1000):
        reader.engine.progress()
    assert not reader.memory.any()


def test_the_death_of_one_peer_leaves_the_others_alone(reader: Host, owner: Owner) -> None:
    reading = begin(reader, owner)
    other = Host(NixlEngine(fresh_name()), np.full(SIZE, 3, np.uint8))
    other.engine.register(*other.region())
    peer = reader.engine.connect(other.engine.metadata())
    owner.signal(signal.SIGKILL)
    with pytest.raises(EngineFailed):
        ended(reading)
    second = reader.engine.read(peer, reader.rows((0, 1000)), other.rows((0, 1000)))
    while not second.poll():
        other.engine.progress()
    assert reader.memory[:1000].tolist() == [3] * 1000
    other.engine.close()


def test_closing_ends_all_writing_even_if_a_peer_wakes_up_later(reader: Host, owner: Owner) -> None:
    reading = begin(reader, owner)
    reader.engine.close()
    reader.memory[:] = 0
    owner.signal(signal.SIGCONT)
    assert owner.process.stdin is not None
    owner.process.stdin.close()
    owner.process.wait(
        PATIENCE_S
    )  # what becomes of it is UCX's: it may abort a process that is late for a reader's end
    assert not reader.memory.any()
    with pytest.raises(EngineFailed):
        reading.poll()


@pytest.mark.parametrize("ending", ["engine.close()", "pass"])
def test_a_process_ends_well_and_says_nothing(ending: str) -> None:
    program = f"from llmdd.transport.nixl import NixlEngine\nengine = NixlEngine('alone')\n{ending}"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROCESSES, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_opening_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TCP_TX_SEG_SIZE", "32k")
    before = dict(os.environ)
    assert not set(UCX_SETTINGS) - {"UCX_TCP_TX_SEG_SIZE"} <= set(before)
    NixlEngine(fresh_name()).close()
    assert dict(os.environ) == before


def test_loading_it_leaves_the_logging_of_the_program_alone() -> None:
    program = (
        "import logging\nlogging.basicConfig()\nbefore = list(logging._handlers)\n"
        "from llmdd.transport.nixl import NixlEngine\nNixlEngine('alone').close()\n"
        "assert list(logging._handlers) == before and logging.raiseExceptions"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROCESSES, check=True)


def test_without_it_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "PACKAGES", ("no_such_nixl",))
    with pytest.raises(EngineUnavailable, match=r"not installed: pip install 'llmdd\[nixl\]'.*--no-deps nixl-cu12"):
        ENGINES["nixl"](fresh_name())


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "broken_nixl"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_bindings.py").write_text("raise ImportError('libsomething.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nixl, "PACKAGES", ("broken_nixl",))
    with pytest.raises(EngineUnavailable, match=r"broken_nixl.*libsomething\.so is missing"):
        ENGINES["nixl"](fresh_name())


def test_where_ucx_has_no_network_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_NET_DEVICES", "no_such_device0")
    with pytest.raises(EngineUnavailable, match="network of this machine"):
        NixlEngine(fresh_name())
