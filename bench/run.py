"""Cases, one after the other, and what came of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from types import FrameType

from .case import Case, Profile
from .machine import this_machine
from .match import Match
from .results import CaseResult, Run
from .stable import Stable

#: So many seconds a case takes beside its rounds: forks, set-up, checks. Only how the time left is guessed.
BESIDE_ROUNDS_S = 0.5

#: What every case depends on, whoever takes part.
ALWAYS = ("llmdd", "numpy")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    case: Case
    number: int
    """Cases that are over."""
    cases: int
    """In all."""
    done_s: float
    """So many seconds of those that were planned are over."""
    planned_s: float


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the run ends as it does after Ctrl-C."""


def play(
    cases: Sequence[Case],
    profile: Profile,
    observe: Callable[[Progress], None] = lambda progress: None,
    search_path: str | None = None,
) -> Run:
    """Play `cases`, each to its end, and end every process that took part.

    An interrupt (Ctrl-C, SIGTERM) ends the case that is being played; what was finished before is in the run, which
    says that it was interrupted. To be called in the main thread, to which signals come.

    Parameters
    ----------
    cases : sequence of Case
    profile : Profile
    observe : callable, optional
        Told how far it is, after each round.
    search_path : str, optional
        Further folders from which contenders are imported.
    """
    begin = time.monotonic()
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = this_machine()
    finished: list[CaseResult] = []
    interrupted = False
    planned_s = [case.seconds + BESIDE_ROUNDS_S for case in cases]
    with Stable(search_path) as stable, termination_interrupts():
        try:
            for number, case in enumerate(cases):

                def tell(share: float, number: int = number, case: Case = case) -> None:
                    done_s = sum(planned_s[:number]) + share * planned_s[number]
                    observe(Progress(case, number, len(cases), done_s, sum(planned_s)))

                tell(0.0)
                with Match(case, stable) as match:
                    finished.append(match.play(tell))
        except KeyboardInterrupt:
            interrupted = True
    return Run(
        profile=profile.value,
        began=began,
        seconds=time.monotonic() - begin,
        interrupted=interrupted,
        machine=machine,
        versions=dict(sorted(({name: version(name) for name in ALWAYS} | stable.versions).items())),
        cases=finished,
    )


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM raise what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
