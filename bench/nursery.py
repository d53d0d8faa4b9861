"""The process that a contender's processes are forked from, one for each case.

It imports what the contender needs once (some libraries take ten seconds) and stays small, so that each case begins
with the same empty heap, and the memory that a child takes is what its case took. While a child serves, it talks over
the nursery's own pipe; the nursery waits for its end.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from .contender import Contender, Incorrect, Unavailable
from .lifeline import end_with_parent
from .other_end import INHERITED
from .resident import resident


def main(descriptor: int, parent: int, module_name: str) -> None:
    """Serve whoever has the other end of the pipe `descriptor`, for as long as he has it.

    Every answer is a pair of what came about (``"done"``, ``"incorrect"``, ``"unavailable"``, ``"failed"``) and its
    content; ``"ended"`` comes from the nursery itself, in place of an answer that its child did not live to give.
    """
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    pipe = Connection(descriptor)
    outcome, module = attempt(lambda: import_module(module_name))
    if outcome != "done":
        pipe.send((outcome, module))
        return
    pipe.send(attempt(getattr(module, "versions", dict)))
    while True:
        try:
            class_name, parameters = pipe.recv()
        except EOFError:
            return
        nursery = os.getpid()
        child = os.fork()
        if child == 0:
            end_with_parent(nursery)
            serve(pipe, partial(make, module, class_name, parameters))
            os._exit(0)  # the contender has closed what it had; what libraries do at exit is not ours to wait for
        _, status = os.waitpid(child, 0)
        if status:
            pipe.send(("ended", f"its process ended with {os.waitstatus_to_exitcode(status)}"))


def make(module: ModuleType, class_name: str, parameters: dict[str, Any]) -> Contender:
    contender: Contender = getattr(module, class_name)(**parameters)
    return contender


def attempt(action: Callable[[], Any]) -> tuple[str, Any]:
    """The pair that answers for `action`."""
    try:
        return "done", action()
    except Incorrect as incorrect:
        return "incorrect", str(incorrect)
    except Unavailable as unavailable:
        return "unavailable", str(unavailable)
    except Exception:
        return "failed", traceback.format_exc()


def serve(pipe: Connection, set_up: Callable[[], Contender]) -> None:
    """Make the contender, then do as told until it is closed or the other end is gone."""
    empty = resident([os.getpid()]).now
    outcome, made = attempt(set_up)
    pipe.send((outcome, made.operations if outcome == "done" else made))
    if outcome != "done":
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    orders: dict[str, Callable[..., object]] = {"play": partial(play, made), "conclude": partial(conclude, made, empty)}
    try:
        while True:
            order, *arguments = pipe.recv()
            if order == "close":
                break
            pipe.send(attempt(partial(orders[order], *arguments)))
    except (EOFError, ConnectionError):
        made.close()
        return
    pipe.send(attempt(made.close))


def play(contender: Contender, number: int) -> int:
    """Nanoseconds of one round."""
    contender.prepare(number)
    begin = time.perf_counter_ns()
    contender.run()
    elapsed = time.perf_counter_ns() - begin
    contender.inspect(number)
    return elapsed


def conclude(contender: Contender, empty: int) -> dict[str, Any]:
    """What it took and measured, once it is clear that it did everything."""
    processes = [os.getpid(), *contender.other_processes()]
    memory = resident(processes)
    begun = empty + sum(map(INHERITED.__getitem__, contender.other_processes()))
    contender.verify()
    return {
        "resident_bytes": max(memory.now - begun, 0),
        "peak_bytes": max(memory.peak - begun, 0),
        "measured": contender.measured(),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
