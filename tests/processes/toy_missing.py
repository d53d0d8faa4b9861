"""Contenders of a package that nobody has."""

from __future__ import annotations

from llmdd.bench.contender import Unavailable

raise Unavailable("toys are not installed: pip install toys")
