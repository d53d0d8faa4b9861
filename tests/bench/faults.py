"""What contenders are broken with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any


def every_third_time_not(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, but for every third time, when nothing is done."""
    calls = count(1)
    return lambda *arguments: call(*arguments) if next(calls) % 3 else None


def the_first_time_not(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, but for the first time, when nothing is done."""
    calls = count()
    return lambda *arguments: call(*arguments) if next(calls) else None
