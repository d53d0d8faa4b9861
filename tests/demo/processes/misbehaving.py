"""What goes wrong in the processes of a demo, on purpose."""

from __future__ import annotations

import dataclasses
import os
import signal

from llmdd.demo import reference
from llmdd.demo.channel import Channel
from llmdd.demo.messages import Generated
from llmdd.demo.settings import Settings


def fail_when_told(channel: Channel) -> None:
    channel.receive()
    raise LookupError("failed on purpose")


def fail_at_once(channel: Channel, *_: object) -> None:
    raise LookupError("failed on purpose")


def vanish(channel: Channel, *_: object) -> None:
    os._exit(7)


def greet_and_wait(channel: Channel) -> None:
    channel.send(Generated({}, running=0))
    channel.receive()


def stay_silent(channel: Channel, *_: object) -> None:
    channel.receive()


def tell_surroundings(channel: Channel) -> None:
    """The number of BLAS threads, and whether an interrupt is ignored."""
    threads = int(os.environ["OPENBLAS_NUM_THREADS"])
    channel.send(Generated({threads: int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)}, running=0))
    channel.receive()


def verify_with_another_model(channel: Channel, settings: Settings) -> None:
    reference.run(channel, dataclasses.replace(settings, seed=settings.seed + 1))


def print_own_number(channel: Channel, *_: object) -> None:
    """Tell the process's number on standard output, then say nothing."""
    print(os.getpid(), flush=True)
    while True:
        channel.receive()
