"""Initialised instances and links between them, for the tests that use llmdd as a program does.

Also lets tests, and the processes they start, import what stands in ``processes`` and ``transport``: test modules they
cannot.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Protocol

import pytest

from llmdd import LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole, LLMStatusCode
from llmdd.transport.engine import EngineUnavailable, TransferEngine
from llmdd.transport.engines import ENGINES
from llmdd.transport.peer_timeout import DEFAULT_PEER_TIMEOUT_MS

TESTS = Path(__file__).parent
PROCESSES = TESTS / "processes"
TRANSPORT = TESTS / "transport"
sys.path[:0] = [str(PROCESSES), str(TRANSPORT)]

# Of the hundreds of processes that are started, each that imports NumPy would begin with a thread for every core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def start_forkserver() -> None:
    """Child processes are forked from one that has imported all they need.

    It imports from the folder that it is started in too, which must not be one where llmdd's source is.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["llmdd.spec.values", "cluster_process", "closed_memory", "lockstep.child_process"]
    )
    folder, path = os.getcwd(), os.environ.get("PYTHONPATH")
    os.chdir(PROCESSES)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TRANSPORT), str(TESTS), *([path] if path else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path


start_forkserver()

PATIENCE_S = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nixl", action="store_true", help="also hold the library to the contract and the model over NIXL (minutes)"
    )


@pytest.fixture
def nixl_engine(request: pytest.FixtureRequest) -> Callable[[str, int], TransferEngine]:
    """Opens engines of NIXL; skips where they are not asked for, or cannot be had."""
    if not request.config.getoption("--nixl"):
        pytest.skip("only with --nixl")
    try:
        ENGINES["nixl"]("trial", DEFAULT_PEER_TIMEOUT_MS).close()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    return ENGINES["nixl"]


#: They are begun first: a worker that had one of them last would keep the others waiting.
LONGEST = (
    "tests/lockstep/test_lockstep.py",
    "tests/hosts/test_frozen_and_killed.py",
    "tests/link/test_hostile_owners.py",
    "tests/hosts/test_control_messages.py",
    "tests/hosts/test_many_clusters.py",
    "tests/hosts/test_slow_network.py",
    "tests/bench/test_hosts.py",
    "tests/bench/test_instructions.py",
    "tests/bench/test_command.py",
    "tests/bench/test_soak.py",
    "tests/demo/test_command.py",
    "tests/test_examples_folder.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would begin with the files that have the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


class MakeDatadist(Protocol):
    def __call__(
        self,
        cluster_id: int,
        *,
        device_bytes: int | None = 1 << 20,
        host_bytes: int | None = None,
        page_shift: int = 12,
        timeout_ms: int = 5000,
        remote_accessible: bool = False,
        wait_for_memory: bool | None = None,
    ) -> LLMDataDist: ...


class Eventually(Protocol):
    def __call__(self, condition: Callable[[], object], what: str) -> None: ...


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits for what happens on another thread or in another process, of which the API gives no notice."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: still not so after {PATIENCE_S} s"
            time.sleep(0.002)

    return wait


@pytest.fixture
def make_datadist() -> Iterator[MakeDatadist]:
    """Makes initialised instances that listen, and finalizes them at the end."""
    made: list[LLMDataDist] = []

    def make(
        cluster_id: int,
        *,
        device_bytes: int | None = 1 << 20,
        host_bytes: int | None = None,
        page_shift: int = 12,
        timeout_ms: int = 5000,
        remote_accessible: bool = False,
        wait_for_memory: bool | None = None,
    ) -> LLMDataDist:
        config = LLMConfig()
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = remote_accessible
        config.listen_ip_info = "127.0.0.1:0"
        config.sync_kv_timeout = timeout_ms
        config.wait_for_memory = wait_for_memory
        if device_bytes is not None:
            config.mem_pool_cfg = json.dumps({"memory_size": device_bytes, "page_shift": page_shift})
        if host_bytes is not None:
            config.host_mem_pool_cfg = json.dumps({"memory_size": host_bytes, "page_shift": page_shift})
        datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        datadist.init(config.generate_options())
        made.append(datadist)
        return datadist

    yield make
    for datadist in made:
        datadist.finalize()


@pytest.fixture
def link() -> Callable[[LLMDataDist, LLMDataDist], None]:
    """Links one instance to another that listens."""

    def link(client: LLMDataDist, server: LLMDataDist) -> None:
        address = server.listen_address
        assert address is not None
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = server.cluster_id
        cluster.append_local_ip_info("127.0.0.1", 0)
        cluster.append_remote_ip_info(*address)
        assert client.link_clusters([cluster]) == (LLMStatusCode.LLM_SUCCESS, [LLMStatusCode.LLM_SUCCESS])

    return link
