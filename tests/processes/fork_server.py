"""A Python that has imported llmdd, and forks a process for each program that it is to run.

A program runs in its process as if Python had just been started with it, and ends as Python ends; only the imports,
half a second of a processor's time, are made once. Nothing of llmdd has been used in the server.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 17
_STANDARD_STREAMS = 3


class ForkedProcess:
    """A program's process. It stays a zombie until :meth:`wait`, so until then nobody else has its number.

    Attributes
    ----------
    stdin, stdout
        Our ends of pipes, without buffers: what has come can be seen to have come.
    """

    def __init__(
        self, server: ForkServer, program: str | Path, arguments: Sequence[str], environment: Mapping[str, str]
    ):
        their_stdin, our_stdin = os.pipe()
        our_stdout, their_stdout = os.pipe()
        self.stdin, self.stdout = os.fdopen(our_stdin, "wb", 0), os.fdopen(our_stdout, "rb", 0)
        self._server = server
        try:
            descriptors = [their_stdin, their_stdout, 2]
            self.pid = server.ask("fork", str(program), list(arguments), dict(environment), descriptors=descriptors)
        finally:
            os.close(their_stdin)
            os.close(their_stdout)
        self._ending = os.pidfd_open(self.pid)
        self._exit_code: int | None = None

    def freeze(self) -> None:
        """Send SIGSTOP, and wait until every thread stands."""
        self._server.ask("freeze", self.pid)

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has been waited for."""
        if self._exit_code is None:
            os.kill(self.pid, number)

    def has_ended(self, patience_s: float = 0.0) -> bool:
        """Whether it has, or has so within the time."""
        return self._exit_code is not None or bool(select.select([self._ending], [], [], patience_s)[0])

    def wait(self) -> int:
        """Its exit status when it has ended, or the number of the signal that ended it, negative."""
        if self._exit_code is None:
            self.has_ended(threading.TIMEOUT_MAX)
            self._exit_code = self._server.ask("reap", self.pid)
            os.close(self._ending)
        return self._exit_code

    def close(self) -> None:
        """Close the pipes."""
        self.stdin.close()
        self.stdout.close()


class ForkServer:
    """Our end of the server, which ends with us."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # who has one thread can be forked at any moment
            )

    def ask(self, call: str, *arguments: Any, descriptors: Sequence[int] = ()) -> int:
        """What the server answers."""
        with self._asking:
            socket.send_fds(self._socket, [json.dumps([call, *arguments]).encode()], descriptors)
            answer = self._socket.recv(_MOST_BYTES)
        assert answer, f"the fork server has ended with {self._process.wait()}"
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def fork_server() -> ForkServer:
    """The one of this session."""
    server = ForkServer()
    atexit.register(server.close)
    return server


class _Program:
    """What a child becomes."""

    def __init__(self, streams: list[int], program: str, arguments: list[str], environment: dict[str, str]) -> None:
        self._streams, self._program, self._arguments, self._environment = streams, program, arguments, environment

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for standard, stream in enumerate(self._streams):
            os.dup2(stream, standard)
            os.close(stream)
        os.environ.clear()
        os.environ.update(self._environment)
        sys.argv = [self._program, *self._arguments]
        sys.path.insert(0, str(Path(self._program).parent))
        runpy.run_path(self._program, run_name="__main__")


def _serve(client: socket.socket) -> _Program | None:
    """Do as told until nobody tells; in a child that comes of it, what it shall become."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(client, _MOST_BYTES, _STANDARD_STREAMS)
        if not request:
            return None
        call, *arguments = json.loads(request)
        if call == "fork":
            answer = os.fork()
            if answer == 0:
                return _Program(descriptors, *arguments)
            for descriptor in descriptors:
                os.close(descriptor)
        elif call == "freeze":
            (answer,) = arguments
            os.kill(answer, signal.SIGSTOP)
            os.waitid(os.P_PID, answer, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        else:
            assert call == "reap", call
            (child,) = arguments
            answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.send(str(answer).encode())


def _main(descriptor: int) -> None:
    import llmdd  # noqa: F401 - what it is all for

    gc.freeze()  # or each child would have to copy, at its end, all that it was born with
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests and their processes
    with socket.socket(fileno=descriptor) as client:
        program = _serve(client)
    if program is not None:
        program.run()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
