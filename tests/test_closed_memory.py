"""Where the kernel keeps one process out of another's memory, registered memory is moved all the same.

For real: in a sandbox that forbids the system calls (seccomp), and to a process that is not dumpable, by one without
privileges.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import closed_memory
import pytest

from llmdd import LLMConfig, LLMStatusCode

PATIENCE_S = 60.0
SUCCESS = LLMStatusCode.LLM_SUCCESS
SLOT = 1_300_000

_processes = multiprocessing.get_context("forkserver")


class Node:
    """A cluster with registered memory, in a process of its own."""

    def __init__(self, close: Callable[[], None], cluster_id: int, remote: bool) -> None:
        config = LLMConfig()
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = remote
        config.listen_ip_info = "127.0.0.1:0"
        config.sync_kv_timeout = 30_000
        config.mem_pool_cfg = '{"memory_size": 16777216}'
        self._connection, theirs = _processes.Pipe()
        arguments = (theirs, close, cluster_id, config.generate_options())
        self._process = _processes.Process(target=closed_memory.run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        assert self._answer() == "ready"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def tell(*arguments: Any) -> Any:
            self._connection.send((name, arguments))
            return self._answer()

        return tell

    def _answer(self) -> Any:
        assert self._connection.poll(PATIENCE_S), "the process does not answer"
        return self._connection.recv()

    def end(self) -> None:
        self._connection.close()
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == 0


@pytest.fixture(params=["sandbox", "not dumpable", "open"])
def make_nodes(request: pytest.FixtureRequest) -> Iterator[Callable[[bool], tuple[Node, Node]]]:
    """An owner (cluster 1) and one who transfers from and to it (cluster 2), linked."""
    nodes: list[Node] = []
    closing = {
        "sandbox": (closed_memory.forbid_process_memory, closed_memory.forbid_process_memory),
        "not dumpable": (closed_memory.close_own_memory, closed_memory.drop_privileges),
        "open": (closed_memory.drop_privileges, closed_memory.drop_privileges),
    }

    def make(remote: bool) -> tuple[Node, Node]:
        nodes.extend(Node(close, number, remote) for number, close in enumerate(closing[request.param], 1))
        assert nodes[1].link(1, nodes[0].listen_address()) == SUCCESS
        return nodes[0], nodes[1]

    yield make
    for node in nodes:
        node.end()


def slot(contents: list[bytes], tensor: int, index: int) -> bytes:
    return contents[tensor][index * SLOT : (index + 1) * SLOT]


def test_pulls(make_nodes: Callable[[bool], tuple[Node, Node]]) -> None:
    owner, puller = make_nodes(False)
    theirs, before = owner.contents(), puller.contents()
    assert puller.pull_into_pool(1, 1) == slot(theirs, 0, 1) + slot(theirs, 1, 1)
    assert puller.pull(1, 1) == SUCCESS
    assert puller.pull_blocks(1, [3, 9, 10, 11], [0, 5, 6, 1]) == SUCCESS
    after = puller.contents()
    assert owner.contents() == theirs
    for tensor in range(2):
        assert slot(after, tensor, 0) == slot(theirs, tensor, 1)
        assert slot(after, tensor, 1) == slot(before, tensor, 1)
    for tensor in (2, 3):
        blocks = [before[tensor][at : at + 100] for at in range(0, 1600, 100)]
        for source, target in ((3, 0), (9, 5), (10, 6), (11, 1)):
            blocks[target] = theirs[tensor][source * 100 : source * 100 + 100]
        assert after[tensor] == b"".join(blocks)


def test_pushes(make_nodes: Callable[[bool], tuple[Node, Node]]) -> None:
    owner, pusher = make_nodes(True)
    before, theirs = owner.contents(), pusher.contents()
    assert pusher.push(1, 1) == SUCCESS
    after = owner.contents()
    for tensor in range(2):
        assert slot(after, tensor, 0) == slot(theirs, tensor, 1)
        assert slot(after, tensor, 1) == slot(before, tensor, 1)


def test_raw_addresses(make_nodes: Callable[[bool], tuple[Node, Node]]) -> None:
    owner, sender = make_nodes(False)
    first, second = owner.addresses()
    assert sender.send(1, [first + SLOT, second]) == SUCCESS
    after, theirs = owner.contents(), sender.contents()
    assert (slot(after, 0, 1), slot(after, 1, 0)) == (slot(theirs, 0, 0), slot(theirs, 1, 0))


def test_memory_that_has_gone(make_nodes: Callable[[bool], tuple[Node, Node]]) -> None:
    owner, puller = make_nodes(False)
    owner.lose_memory()
    assert puller.pull(1, 1) == LLMStatusCode.LLM_PARAM_INVALID
    assert puller.pull_blocks(1, [3], [0]) == SUCCESS


def test_local_copies(make_nodes: Callable[[bool], tuple[Node, Node]]) -> None:
    for node in make_nodes(False):
        assert node.copy_to_host_and_back() == SUCCESS
