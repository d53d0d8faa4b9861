"""Lets these tests import contenders from beside them, as the processes of a match do, and has those processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llmdd.bench.stable import Stable

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)


@pytest.fixture(scope="session")
def stable() -> Iterator[Stable]:
    """For all files of tests: who lives in one begins anew in each match, and a library takes long to import."""
    with Stable(search_path=HERE) as stable:
        yield stable
