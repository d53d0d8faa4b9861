"""The prefill host's end of a run on two hosts: it has the orchestrator, and everything but the decode process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from . import orchestrator
from .channel import OtherEndGone
from .choices import Choices
from .introduction import Address, CannotMeet, Meeting, Reception
from .messages import Progress, UnexpectedMessage, failure
from .orchestrator import DemoFailed
from .report import Report
from .settings import Settings
from .worker import DistantDecode

LARGEST_PORT = 65535


def run(
    prompts: Sequence[bytes],
    choices: Choices,
    listen_at: Address,
    wait_seconds: float,
    announce: Callable[[Address], None],
    observe: Callable[[Progress], None],
) -> Report:
    """Wait for a decode end, serve ``prompts`` together with it, compare with a single process, and tell both.

    Parameters
    ----------
    prompts
        At least one.
    choices
        What was said here.
    listen_at
        Where the decode end is to call. llmdd itself listens at the next port; at port 0 both take any free one.
    wait_seconds
        How long to wait for it.
    announce
        Called with the address at which this end listens, once it does.
    observe
        Called with the progress whenever there is some.

    Raises
    ------
    DemoFailed
        No decode end came that fits, or the run could not be brought to its end.
    """
    if listen_at.port == LARGEST_PORT:
        raise DemoFailed(f"cannot listen at {listen_at}: llmdd takes the next port, and there is none")
    try:
        with Reception(listen_at) as reception:
            announce(reception.address)
            met = reception.wait_for_decode(prompts, choices, wait_seconds)
    except CannotMeet as reason:
        raise DemoFailed(str(reason)) from None
    links_at = listen_at.with_port(listen_at.port and listen_at.port + 1)
    return _serve(prompts, met, links_at, observe)


def _serve(prompts: Sequence[bytes], met: Meeting, links_at: Address, observe: Callable[[Progress], None]) -> Report:
    distant = DistantDecode(met.channel, met.there)

    def show_both(progress: Progress) -> None:
        observe(progress)
        distant.tell(progress)

    settings = Settings.for_prompts(prompts, met.choices)
    try:
        try:
            report = orchestrator.run(
                prompts,
                settings,
                met.choices.kill_decode,
                show_both,
                listen_at=str(links_at),
                distant_decode=distant,
            )
        except UnexpectedMessage as unexpected:
            raise DemoFailed(f"the decode end, at {met.there}, says what nobody asked for: {unexpected}") from None
        except OtherEndGone:
            raise DemoFailed(distant.fate()) from None
        report = msgspec.structs.replace(report, hosts=(met.here, met.there))
        distant.tell_last(report)
    except DemoFailed as failed:
        distant.tell_last(failure(str(failed)))
        raise
    finally:
        distant.dismiss()
    return report
