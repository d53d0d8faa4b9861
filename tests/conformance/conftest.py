"""The two worlds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for this folder's modules

from conformance.library_world import LibraryWorld
from conformance.reference_world import ReferenceWorld
from conformance.scene import Scene
from conformance.world import World

WORLDS = {world.name: world for world in (ReferenceWorld, LibraryWorld)}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The reference model, then the library."""
    made = WORLDS[request.param]()
    yield made
    made.close()


@pytest.fixture
def library() -> Iterator[LibraryWorld]:
    """The library, for what the model leaves open: types, messages, time."""
    made = LibraryWorld()
    yield made
    made.close()


@pytest.fixture
def two_sided(world: World) -> Scene:
    """A cache of every kind at both ends of a link."""
    return Scene(world, remote=False)


@pytest.fixture
def remote_mode(world: World) -> Scene:
    """The same in remote mode."""
    return Scene(world, remote=True)
