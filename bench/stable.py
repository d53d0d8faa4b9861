"""The processes of contenders, as a run talks to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import Any

from .contender import Incorrect, Unavailable

#: Nothing that a contender does takes so long: one that has not answered then hangs.
PATIENCE_S = 300.0

#: So long a process may take to end, and one that was interrupted in something.
CLOSING_PATIENCE_S = 10.0
INTERRUPTED_PATIENCE_S = 2.0

#: So many bytes of what a contender printed stand in the message about its end.
LAST_WORDS = 2000


class Failed(Exception):
    """A contender raised something else, ended or hung: the message says which."""


class Stable:
    """The nurseries of a run, for each module of contenders as many as live at once, and whoever lives in them.

    Parameters
    ----------
    search_path : str, optional
        Further folders from which contenders are imported, as in ``PYTHONPATH``.
    """

    def __init__(self, search_path: str | None = None) -> None:
        self._nurseries: dict[str, list[Nursery]] = {}
        self._search_path = search_path
        self.versions: dict[str, str] = {}

    def nursery(self, module: str) -> Nursery:
        """One in which `module` has been imported and nobody lives.

        Raises
        ------
        Unavailable, Failed
            The same each time.
        """
        nurseries = self._nurseries.setdefault(module, [])
        for lost in [nursery for nursery in nurseries if nursery.lost]:
            lost.end()
            nurseries.remove(lost)
        free = next((nursery for nursery in nurseries if not nursery.occupied), None)
        if free is None:
            free = Nursery(module, self._search_path)
            nurseries.append(free)
        self.versions.update(free.versions())
        return free

    def close(self) -> None:
        """End every process."""
        for nurseries in self._nurseries.values():
            for nursery in nurseries:
                nursery.end()
        self._nurseries.clear()

    def __enter__(self) -> Stable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Nursery:
    """A process that has imported a module of contenders, and the child of it that is one of them at the moment."""

    def __init__(self, module: str, search_path: str | None) -> None:
        ours, theirs = socket.socketpair()
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": gettempdir(),  # where PyTorch, when vLLM imports it, makes no folder of its own
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        if search_path is not None:
            environment["PYTHONPATH"] = search_path
        self._errors = TemporaryFile()  # noqa: SIM115 - closed by end()
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.nursery", str(theirs.fileno()), str(os.getpid()), module],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,  # what libraries print does not belong into the report
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",  # where Python finds nothing to import
                start_new_session=True,
            )
            self._pipe = Connection(ours.detach())
        self.occupied = False
        self._asked = True
        """Whether an answer is still to come: it is, of an exchange that an interrupt has cut short."""
        self._verdict: Exception | None = None
        self._versions: dict[str, str] | None = None

    @property
    def lost(self) -> bool:
        """Whether it ended after it had imported its module: another one may do better."""
        return self._versions is not None and self._verdict is not None

    def versions(self) -> dict[str, str]:
        """What it has imported; the same failure each time if that failed."""
        if self._verdict is not None:
            raise self._verdict
        if self._versions is None:
            try:
                self._versions = self._answer()
            except (Unavailable, Failed) as failure:
                self._verdict = failure
                raise
        return self._versions

    def start(self, class_name: str, parameters: Mapping[str, Any]) -> int:
        """Fork a child and make the contender there; the operations in one of its rounds."""
        self._send((class_name, dict(parameters)))
        operations: int = self._answer()
        self.occupied = True
        return operations

    def play(self, number: int) -> int:
        """Nanoseconds that round `number` took."""
        self._send(("play", number))
        elapsed: int = self._answer()
        return elapsed

    def conclude(self) -> dict[str, Any]:
        self._send(("conclude",))
        found: dict[str, Any] = self._answer()
        return found

    def stop(self) -> None:
        """Close the contender, which ends its process; the nursery stays."""
        if not self.occupied:
            return
        self.occupied = False
        if self._asked:
            self._verdict = self._verdict or Failed("it was interrupted")
            self.end()
            return
        self._send(("close",))
        self._answer()

    def end(self) -> None:
        """End the process, and with it whatever it has started. Ending twice is ending once."""
        self._pipe.close()
        try:
            self._process.wait(INTERRUPTED_PATIENCE_S if self._asked else CLOSING_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()

    def _send(self, message: Any) -> None:
        self._asked = True
        try:
            self._pipe.send(message)
        except OSError:
            raise self._ended() from None

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(PATIENCE_S):
                os.killpg(self._process.pid, signal.SIGKILL)
                raise self._ended(f"it has not answered for {PATIENCE_S:.0f} s")
            outcome, content = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        self._asked = False
        if outcome == "incorrect":
            raise Incorrect(content)
        if outcome == "unavailable":
            raise Unavailable(content)
        if outcome == "ended":
            self.occupied = False
        if outcome != "done":
            raise Failed(content)
        return content

    def _ended(self, why: str = "") -> Failed:
        status = self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS))
        words = self._errors.read().decode(errors="replace").strip()
        message = (why or f"its process ended with status {status}") + (f"; it printed last:\n{words}" if words else "")
        self._verdict = Failed(message)
        return Failed(message)
