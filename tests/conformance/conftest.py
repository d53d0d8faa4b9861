"""The worlds: the model, the library on one host, and the library between hosts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from programmable_engine import Course, Network
from separate_hosts import Favoured, separate_hosts

from llmdd.transport.engine import TransferEngine

sys.path.insert(0, str(Path(__file__).parent.parent))  # for this folder's modules

from conformance.library_world import LibraryWorld
from conformance.reference_world import ReferenceWorld
from conformance.scene import Scene
from conformance.world import World

#: The sections of the contract that say something of transfers and links: there it matters which hosts nodes are on.
BETWEEN_HOSTS = ("test_3_", "test_4_1_", "test_4_2_", "test_5")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" not in metafunc.fixturenames:
        return
    worlds = ["reference", "library"]
    if metafunc.module.__name__.rpartition(".")[2].startswith(BETWEEN_HOSTS):
        worlds.append("between hosts")
        if metafunc.config.getoption("--nixl"):
            worlds.append("nixl")
    metafunc.parametrize("world", worlds, indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The reference model; the library with all nodes on one host; and with each on its own, over an engine."""
    if request.param == "reference":
        made: World = ReferenceWorld()
        yield made
        made.close()
        return
    if request.param == "library":
        made = LibraryWorld()
        yield made
        made.close()
        return
    # Which way the bytes travel depends on the test alone, and each is taken by a third of them.
    favoured = list(Favoured)[crc32(request.node.nodeid.encode()) % len(Favoured)]
    if request.param == "nixl":
        open_engine: Callable[[str, int], TransferEngine] = request.getfixturevalue("nixl_engine")
    else:
        open_engine = Network(usual=Course(polls=3)).open
    with separate_hosts(open_engine, favoured):
        made = LibraryWorld()
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
