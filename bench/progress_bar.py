"""How far a run is, while it lasts."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from .run import Progress

#: So many seconds the guess of the time left believes in the plan more than in what was seen.
TRUST_S = 10.0


class ProgressBar:
    """A bar on `console` while the context lasts, with the case that is played and the time left.

    There is none if `quiet`, or if `console` is no terminal.
    """

    def __init__(self, console: Console, quiet: bool) -> None:
        self._bars = Bars(
            TextColumn("{task.fields[cases]}", style="dim"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            TextColumn("{task.description}", style="bold"),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, cases="", left="")
        self._began = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bars.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Bring it up to date."""
        elapsed_s = time.monotonic() - self._began
        self._bars.update(
            self._task,
            description=progress.case.name,
            completed=progress.done_s,
            total=progress.planned_s,
            cases=f"{progress.number + 1}/{progress.cases}",
            left=clock(seconds_left(progress, elapsed_s)) + " left",
        )


def seconds_left(progress: Progress, elapsed_s: float) -> float:
    """What is planned still, at the pace that was seen so far."""
    pace = (elapsed_s + TRUST_S) / (progress.done_s + TRUST_S)
    return (progress.planned_s - progress.done_s) * pace


def clock(seconds: float) -> str:
    """Minutes and seconds: ``1:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
