"""Four processes with ten threads each do everything at once; afterwards nothing is wrong, and nothing is left."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from typing import Any

import everything_process
import pytest
from rank_tables import rank_table

from llmdd import LLMConfig

CLUSTERS = everything_process.CLUSTERS
#: A storm's, of which there are at least two, and as many as it takes for everything to have been done often enough.
SECONDS = 3.0
MOST_STORMS = 20
PATIENCE_S = 240.0

_processes = multiprocessing.get_context("forkserver")


class Cluster:
    """A cluster in a process of its own."""

    def __init__(self, cluster_id: int, remote: bool, board: Any) -> None:
        config = LLMConfig()
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = remote
        config.listen_ip_info = "127.0.0.1:0"
        config.sync_kv_timeout = 120_000
        config.link_total_time = 5
        config.mem_pool_cfg = '{"memory_size": 8388608, "page_shift": 12}'
        config.host_mem_pool_cfg = '{"memory_size": 3145728, "page_shift": 12}'
        self._connection, theirs = _processes.Pipe()
        arguments = (theirs, cluster_id, config.generate_options(), board)
        self._process = _processes.Process(target=everything_process.run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        assert self.answer() == "ready"

    def ask(self, name: str, *arguments: Any) -> None:
        self._connection.send((name, arguments))

    def answer(self) -> Any:
        assert self._connection.poll(PATIENCE_S), "the process does not answer"
        return self._connection.recv()

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()


@pytest.fixture(params=[False, True], ids=["two-sided", "remote"])
def clusters(request: pytest.FixtureRequest) -> Iterator[list[Cluster]]:
    """Processes that share a board."""
    board = _processes.Array("Q", everything_process.BOARD_WORDS)
    made: list[Cluster] = []
    for number in range(1, CLUSTERS + 1):
        made.append(Cluster(number, request.param, board))
    yield made
    for cluster in made:
        cluster.end()


def tell_all(clusters: list[Cluster], name: str, *arguments: Any) -> list[Any]:
    """What each answers, all at once."""
    for cluster in clusters:
        cluster.ask(name, *arguments)
    return [cluster.answer() for cluster in clusters]


def seldom_succeeded(seen: Counter[tuple[str, str]]) -> set[str]:
    succeeded = {name for (name, code), times in seen.items() if code == "LLM_SUCCESS" and times >= 5}
    return {name for name, _ in seen} - succeeded


def test_everything_at_once(clusters: list[Cluster]) -> None:
    """Every byte that arrives is the right one, every invariant holds, and both pools end entirely free."""
    peers = tell_all(clusters, "introduce")
    for codes in tell_all(clusters, "meet", peers, rank_table(CLUSTERS)):
        assert set(codes) <= {"LLM_SUCCESS"}
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for storms in range(1, MOST_STORMS + 1):
        for done, failures in tell_all(clusters, "storm", SECONDS):
            seen += done
            wrong += failures
        assert not wrong, "\n".join(wrong)
        if storms > 1 and not seldom_succeeded(seen):
            break
    tell_all(clusters, "leave")
    tell_all(clusters, "part")
    for codes in tell_all(clusters, "meet", peers, ""):
        assert set(codes) <= {"LLM_SUCCESS"}, codes
    assert tell_all(clusters, "pull_from_everybody") == [[]] * CLUSTERS
    assert tell_all(clusters, "drop") == [[]] * CLUSTERS
    nothing = {"caches": 0, "keys": 0, "taken": {"HOST": 0, "DEVICE": 0}}
    assert tell_all(clusters, "inspect") == [nothing] * CLUSTERS
    tell_all(clusters, "finalize")
    # It was a storm of everything.
    assert not seldom_succeeded(seen), seen
