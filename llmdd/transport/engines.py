"""Which transfer engines there are."""

from __future__ import annotations

from collections.abc import Callable

from .engine import TransferEngine

ENGINES: dict[str, Callable[[str], TransferEngine]] = {}
