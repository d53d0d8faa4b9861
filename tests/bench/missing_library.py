"""A peer that is not installed."""

from __future__ import annotations

from llmdd.bench.contender import Unavailable

raise Unavailable("the abacus library is not installed")
