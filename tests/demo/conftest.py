"""Lets spawned processes import ``misbehaving``: they inherit the search path, but cannot import test modules."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "processes"))
