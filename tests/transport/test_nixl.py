"""What holds for NIXL alone: between processes that freeze and die, and where it is not installed."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from engine_hosts import PATIENCE_S, Host, fresh_name
from engine_process import content

from llmdd.transport import nixl
from llmdd.transport.engine import Descriptors, EngineFailed, EngineUnavailable, Writing
from llmdd.transport.engines import ENGINES
from llmdd.transport.nixl import UCX_SETTINGS, NixlEngine
from llmdd.transport.peer_timeout import DEFAULT_PEER_TIMEOUT_MS

SIZE = 16 << 20
PROCESSES = Path(__file__).parents[1] / "processes"

pytestmark = pytest.mark.usefixtures("nixl_over_tcp")


@dataclass
class EngineProcess:
    """Another process with an engine."""

    process: subprocess.Popen[str]
    metadata: bytes
    address: int
    size: int

    def rows(self) -> Descriptors:
        return np.array([(self.address, self.size, 0)], np.uint64)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def tell(self, **order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process has ended with {self.process.wait(PATIENCE_S)}"
        return json.loads(line)

    def write_to(self, target: EngineProcess, times: int, offset: int = 0) -> None:
        """Let it write all that it has to another's memory that often; for ever if 0."""
        self.tell(write_to=target.metadata.hex(), address=target.address + offset, times=times)

    def has(self, *seeds: int) -> bool:
        """Whether its memory is what :func:`content` makes of the seeds. Passes by what it has said before."""
        self.tell(matches=seeds)
        while True:
            answer = self.answer()
            if isinstance(answer, bool):
                return answer

    def register_more(self) -> bytes:
        """Let it have more memory registered; its metadata then."""
        self.tell(register=SIZE)
        answer = self.answer()
        assert isinstance(answer, str)
        return bytes.fromhex(answer)

    def end(self) -> int:
        """Let it close its engine and end; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE_S)


class StartProcess(Protocol):
    """Starts a process whose memory is the content of a seed."""

    def __call__(self, seed: int, size: int = SIZE) -> EngineProcess: ...


@pytest.fixture
def start() -> Iterator[StartProcess]:
    """Starts processes, which are killed in the end."""
    with ExitStack() as ending:

        def start(seed: int, size: int = SIZE) -> EngineProcess:
            command = [sys.executable, str(PROCESSES / "engine_process.py"), str(seed), str(size)]
            process = ending.enter_context(
                subprocess.Popen(command, text=True, cwd=PROCESSES, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            ending.callback(process.kill)
            assert process.stdout is not None
            metadata, address = json.loads(process.stdout.readline())
            return EngineProcess(process, bytes.fromhex(metadata), address, size)

        yield start


@pytest.fixture
def writer() -> Iterator[Host]:
    host = Host(NixlEngine(fresh_name()), content(SIZE, 1))
    host.engine.register(*host.region(), writable=False)
    yield host
    host.engine.close()


def begin(writer: Host, target: EngineProcess) -> Writing:
    """Connect, write a first time in full, and begin to write again to the target, which is frozen now."""
    peer = writer.engine.connect(target.metadata)
    assert ended(writer.engine.write(peer, writer.rows((0, SIZE)), target.rows()))
    assert target.has(1)
    target.signal(signal.SIGSTOP)
    writer.memory[:] = content(SIZE, 2)
    writing = writer.engine.write(peer, writer.rows((0, SIZE)), target.rows())
    for _ in range(1000):
        assert not writing.poll()
    return writing


def ended(writing: Writing) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not writing.poll():
        assert time.monotonic() < deadline, "the writing has not ended"
    writing.release()
    return True


def test_what_one_process_has_written_is_in_the_memory_of_the_other(start: StartProcess) -> None:
    writer, target = start(1), start(0)
    writer.write_to(target, times=3)
    assert writer.answer() == "written"
    assert target.has(1)
    assert (writer.end(), target.end()) == (0, 0)


def test_two_processes_write_to_one(start: StartProcess) -> None:
    half = SIZE // 2
    first, second, target = start(1, half), start(2, half), start(0)
    first.write_to(target, times=5)
    second.write_to(target, times=5, offset=half)
    assert (first.answer(), second.answer()) == ("written", "written")
    assert target.has(1, 2)
    assert first.end() == second.end() == target.end() == 0


def test_a_frozen_target_is_waited_for(start: StartProcess, writer: Host) -> None:
    target = start(0)
    writing = begin(writer, target)
    target.signal(signal.SIGCONT)
    assert ended(writing)
    assert target.has(2)


def test_what_a_killed_target_was_to_get_fails(start: StartProcess, writer: Host) -> None:
    target = start(0)
    writing = begin(writer, target)
    target.signal(signal.SIGKILL)
    with pytest.raises(EngineFailed):
        ended(writing)
    writing.release()


def test_a_writing_that_failed_keeps_nothing_of_who_has_polled_it(start: StartProcess, writer: Host) -> None:
    """A pin of a cache, for example, would hold its memory until the garbage collector comes by."""
    target = start(0)
    writing = begin(writer, target)
    target.signal(signal.SIGKILL)

    class Pin:
        pass

    def poll_with_a_pin() -> weakref.ref[Pin]:
        pin = Pin()
        with suppress(EngineFailed):
            ended(writing)
        return weakref.ref(pin)

    gc.disable()
    try:
        assert poll_with_a_pin()() is None
    finally:
        gc.enable()


def test_the_death_of_one_target_leaves_the_others_alone(start: StartProcess, writer: Host) -> None:
    target, other = start(0), start(0)
    writing = begin(writer, target)
    peer = writer.engine.connect(other.metadata)
    target.signal(signal.SIGKILL)
    with pytest.raises(EngineFailed):
        ended(writing)
    assert ended(writer.engine.write(peer, writer.rows((0, SIZE)), other.rows()))
    assert other.has(2)


def cut_connections() -> None:
    """End every TCP connection that leads out of this process, as if the network had."""
    with ExitStack() as closing:
        ours = []
        for descriptor in os.listdir("/proc/self/fd"):
            if not os.path.exists(path := f"/proc/self/fd/{descriptor}") or not os.readlink(path).startswith("socket:"):
                continue
            connection = closing.enter_context(socket.socket(fileno=os.dup(int(descriptor))))
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                ours.append(connection)
        # The engine's connections to itself are no part of the network.
        own_ports = {connection.getsockname()[1] for connection in ours}
        cut = 0
        for connection in ours:
            try:
                if connection.getpeername()[1] not in own_ports:
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
            except OSError:
                continue  # it listens
        assert cut, "there was no connection"


@pytest.mark.parametrize("noticed", ["by a write", "when it is told"])
def test_a_peer_tells_of_more_memory_after_its_connection_was_cut(
    start: StartProcess, writer: Host, noticed: str
) -> None:
    """NIXL takes no metadata over a connection that has failed, nor ever after if it was asked to."""
    target = start(0)
    peer = writer.engine.connect(target.metadata)
    for seed in (2, 3):
        write_persistently(writer, target, peer)
        cut_connections()
        writer.memory[:] = content(SIZE, seed)
        for _ in range(1000):
            writer.engine.progress()
        if noticed == "by a write":
            with pytest.raises(EngineFailed):
                ended(writer.engine.write(peer, writer.rows((0, SIZE)), target.rows()))
        writer.engine.refresh(peer, target.register_more())
        write_persistently(writer, target, peer)
        assert target.has(seed)


def write_persistently(writer: Host, target: EngineProcess, peer: str, attempts: int = 3) -> None:
    """Write all, and reach the peer anew if that fails."""
    for attempt in range(1, attempts + 1):
        try:
            assert writer.engine.reconnect(peer)
            assert ended(writer.engine.write(peer, writer.rows((0, SIZE)), target.rows()))
            return
        except EngineFailed:
            if attempt == attempts:
                raise


def test_a_target_that_wakes_up_after_its_writer_has_closed_goes_on(start: StartProcess, writer: Host) -> None:
    target = start(0)
    writing = begin(writer, target)
    writer.engine.close()
    target.signal(signal.SIGCONT)
    target.has(2)
    with pytest.raises(EngineFailed):
        writing.poll()
    assert target.end() == 0


FATES = {
    "killed": [signal.SIGKILL],
    "frozen, then killed": [signal.SIGSTOP, signal.SIGKILL],
    "frozen, then resumed, then killed": [signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL],
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("end", ["the writer", "the target"])
def test_whatever_happens_to_one_end_the_other_lives_on(start: StartProcess, end: str, fate: str) -> None:
    moments = random.Random(f"{end} {fate}")
    survivor = start(0) if end == "the writer" else start(1)
    for _ in range(2):
        victim = start(1) if end == "the writer" else start(0)
        writer, target = (victim, survivor) if end == "the writer" else (survivor, victim)
        writer.write_to(target, times=0)
        for signal_to_victim in FATES[fate]:
            time.sleep(moments.uniform(0, 0.1))
            victim.signal(signal_to_victim)
        victim.process.wait(PATIENCE_S)
        survivor.has(1)  # It answers.
    last = start(1) if end == "the writer" else start(0)
    writer, target = (last, survivor) if end == "the writer" else (survivor, last)
    writer.write_to(target, times=1)
    while writer.answer() != "written":
        pass  # What it says of those that were killed.
    assert target.has(1)
    assert (writer.end(), target.end()) == (0, 0)


@pytest.mark.parametrize("ending", ["engine.close()", "pass"])
def test_a_process_ends_well_and_says_nothing(ending: str) -> None:
    program = f"from llmdd.transport.nixl import NixlEngine\nengine = NixlEngine('alone')\n{ending}"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROCESSES, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_opening_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TCP_USER_TIMEOUT", "20s")
    before = dict(os.environ)
    assert not set(UCX_SETTINGS) <= set(before)
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
        ENGINES["nixl"](fresh_name(), DEFAULT_PEER_TIMEOUT_MS)


def test_a_broken_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "broken_nixl"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_bindings.py").write_text("raise ImportError('libsomething.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nixl, "PACKAGES", ("broken_nixl",))
    with pytest.raises(EngineUnavailable, match=r"broken_nixl.*libsomething\.so is missing"):
        ENGINES["nixl"](fresh_name(), DEFAULT_PEER_TIMEOUT_MS)


@pytest.mark.parametrize(
    ("drivers", "expected"),
    [([], "^efa"), (["mlx5_core"], "^efa"), (["mlx5_core", "efa"], None)],
)
def test_the_part_of_ucx_that_ends_processes_badly_is_left_out_unless_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drivers: list[str], expected: str | None
) -> None:
    monkeypatch.delenv("UCX_MODULES", raising=False)
    monkeypatch.setattr(nixl, "RDMA_DEVICES", tmp_path / "infiniband")
    for driver in drivers:
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        device = tmp_path / "infiniband" / f"{driver}_0" / "device"
        device.mkdir(parents=True)
        (device / "driver").symlink_to(tmp_path / "drivers" / driver)
    opened_with = []
    monkeypatch.setattr(NixlEngine, "_open", lambda engine: opened_with.append(os.environ.get("UCX_MODULES")))
    NixlEngine(fresh_name())
    assert opened_with == [expected]


@contextmanager
def used_ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, str]]:
    """All ports of a range that UCX is held to: the last of them, and the range."""
    with ExitStack() as ending:
        while True:
            first = ending.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = int(first.getsockname()[1])
            try:
                last = ending.enter_context(socket.create_server(("127.0.0.1", port + 1)))
            except (OSError, OverflowError):
                continue
            monkeypatch.setenv("UCX_NET_DEVICES", "lo")
            monkeypatch.setenv("UCX_TCP_PORT_RANGE", f"{port}-{port + 1}")
            yield last, f"{port}-{port + 1}"
            return


def test_a_range_of_ports_that_is_used_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with used_ports(monkeypatch) as (last, ports):
        with pytest.raises(EngineUnavailable, match=f"UCX_TCP_PORT_RANGE={ports} is in use on lo"):
            NixlEngine(fresh_name())
        last.close()
        NixlEngine(fresh_name()).close()


def test_where_ucx_has_no_network_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_NET_DEVICES", "no_such_device0")
    with pytest.raises(EngineUnavailable, match="network of this machine"):
        NixlEngine(fresh_name())
