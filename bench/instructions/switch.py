"""Turns callgrind's counting on and off, by a few lines of C that are compiled for it."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_name("switch.c")


class NotCompiled(Exception):
    """The switch cannot be compiled; the message is the compiler's."""


def compile_switch(folder: Path) -> Path:
    """The library, in `folder`.

    Raises
    ------
    NotCompiled
    """
    library = folder / "switch.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [*compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise NotCompiled(str(error)) from error
    except subprocess.CalledProcessError as error:
        raise NotCompiled(error.stderr) from error
    return library


class Switch:
    """The library that :func:`compile_switch` made. Where no valgrind runs the process, it does nothing."""

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self.on = functions.switch_on
        """Count from now on."""
        self._off = functions.switch_off

    def off(self, label: str) -> None:
        """Count no more, and write down what was counted."""
        self._off(label.encode())
