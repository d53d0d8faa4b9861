"""Which parameters of a test are for ``-m thorough`` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thorough_unless(quick: Callable[[str], bool], names: Iterable[str]) -> list[Any]:
    """The names, of which those that are not ``quick`` are passed by without ``-m thorough``."""
    return [name if quick(name) else pytest.param(name, marks=pytest.mark.thorough) for name in names]
