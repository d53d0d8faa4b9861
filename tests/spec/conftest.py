"""What the tests of the spec share."""

from __future__ import annotations

import pytest
from llmdd.spec.reference import Cluster, Node

from .nodes import options


@pytest.fixture
def node() -> Node:
    node = Cluster().start("only", 1)
    node.init(options())
    return node
