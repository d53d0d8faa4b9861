"""The machines that are run: all nodes in one process, each on a host of its own, and each in a process of its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack

from hypothesis import strategies as st
from hypothesis.stateful import rule
from llmdd.spec.values import CacheKeyByIdAndIndex
from programmable_engine import Course, Network
from separate_hosts import Favoured, separate_hosts

from llmdd.transport.engine import TransferEngine

from .child_process import ChildProcess, Children
from .library_side import LibrarySide
from .machine import now_and_then
from .rules import AllRules
from .strategies.engines import ROLES, good_options
from .strategies.present import CLUSTER_IDS, nodes
from .strategies.registered import PAGE_BYTES
from .tally import Tally
from .terms import Call, Side


class LockstepInOneProcess(AllRules):
    """All nodes are instances in this process."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self._side = LibrarySide()

    def library(self, node: str) -> Side:
        return self._side

    def live_together(self, node: str, other: str) -> bool:
        return True

    def leave(self, failing: bool) -> None:
        self._side.forget()


class LockstepBetweenHosts(LockstepInOneProcess):
    """The same, but they take each other for nodes of other hosts: an engine is between them.

    Each search takes another way for the bytes, and if no engine is given one that delivers pieces late and in another
    order.
    """

    _numbers = itertools.count()

    def __init__(self, tally: Tally, open_engine: Callable[[str, int], TransferEngine] | None = None) -> None:
        super().__init__(tally)
        number = next(self._numbers)
        if open_engine is None:
            open_engine = Network(usual=Course(polls=number % 5, order=random.Random(number))).open
        favoured = list(Favoured)[number % len(Favoured)]
        self._hosts = ExitStack()
        self._hosts.enter_context(separate_hosts(open_engine, favoured))

    def leave(self, failing: bool) -> None:
        super().leave(failing)
        self._hosts.close()


class LockstepAcrossProcesses(AllRules):
    """Each node is a process, which may be killed."""

    def __init__(self, tally: Tally, children: Children) -> None:
        super().__init__(tally)
        self._children = children
        self._processes: dict[str, ChildProcess] = {}

    def library(self, node: str) -> Side:
        if node not in self._processes:
            self._processes[node] = self._children.take()
        return self._processes[node].side

    def live_together(self, node: str, other: str) -> bool:
        return node == other

    def leave(self, failing: bool) -> None:
        for process in self._processes.values():
            if failing:
                process.kill()
            else:
                self._children.give_back(process)

    @now_and_then(4)
    @rule(data=st.data(), node=nodes(), role=st.sampled_from(ROLES))
    def kill_and_start_again(self, data: st.DataObject, node: str, role: str) -> None:
        """A process dies; when the others have noticed, another takes its place, with the same cluster id."""
        options = data.draw(good_options(node, self.remote_mode))
        self._processes.pop(node).kill()
        self.reference.kill(node)
        self.forget_node(node)
        self.await_links()
        for survivor in self.nodes:
            for cache in self.live_slots_caches(survivor)[:1]:
                arguments = {"cache_key": CacheKeyByIdAndIndex(CLUSTER_IDS[node], 1), "cache": cache}
                self.make(Call(survivor, "pull_cache", (), arguments))
        self.begin_node(node, options, role)
        self.map_memory(node, 3 * PAGE_BYTES)
