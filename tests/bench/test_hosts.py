"""The cases between two hosts: these share a network alone, and whoever does something wrong has no time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llmdd.bench import hosts
from llmdd.bench.case import Case, Profile
from llmdd.bench.cases import hosts as cases_of_hosts
from llmdd.bench.cases.hosts import SOCKETS
from llmdd.bench.cases.pulls import LLMDD, MOONCAKE, NIXL
from llmdd.bench.contender import Unavailable
from llmdd.bench.contenders.descriptors import merged
from llmdd.bench.hosts import TwoHosts
from llmdd.bench.other_end import OtherEnd, OtherEndFailed
from llmdd.bench.stable import Stable
from playing import children_of_nurseries, eventually, named, play, play_broken, play_if_possible

PARAMETERS = {"size": 4096, "count": 4, "apart": True}
MANY = {"size": 4096, "count": 64, "shuffled": True, "apart": True}
BLOCKS = {"blocks": 8, "tensors": 3, "size": 4096, "run": 2, "apart": True}

#: By what a process may be refused a network of its own, and NIXL and Mooncake be missing.
MAY_BE_MISSING = (
    "may have no network",
    "cannot be seen",
    "iproute2",
    "no virtual",
    "is not installed",
    "be imported",
    "libibverbs",
)

WRITES = f"{NIXL}:NixlWrites"
PULLS = [f"{LLMDD}:CachePulls", f"{NIXL}:NixlPulls", WRITES, f"{MOONCAKE}:MooncakePulls", f"{SOCKETS}:SocketPulls"]
AT_ONCE = [
    f"{LLMDD}:CallsForMany",
    f"{NIXL}:NixlPullsAtOnce",
    f"{NIXL}:NixlMergedPulls",
    f"{MOONCAKE}:MooncakePullsAtOnce",
]
OF_BLOCKS = [
    f"{LLMDD}:BlocksCachePulls",
    f"{NIXL}:NixlBlockPulls",
    f"{NIXL}:NixlMergedBlockPulls",
    f"{MOONCAKE}:MooncakeBlockPulls",
]
#: What the contenders do on one host too is broken in test_pulls.py.
BROKEN = [
    *(("WrongByte", factory, PARAMETERS, "wrong bytes of payload") for factory in (PULLS[0], WRITES, PULLS[-1])),
    *(("KeyLeft", factory, PARAMETERS, "the owner has 1 keys left") for factory in (WRITES, PULLS[-1])),
    *((name, WRITES, PARAMETERS, "wrong bytes of payload") for name in ("NothingPulled", "OtherOffer", "WrongRow")),
    ("NothingWritten", WRITES, PARAMETERS, "wrong bytes of payload"),
    ("OtherRequestWritten", WRITES, PARAMETERS, "was heard instead of"),
    ("NothingPulled", AT_ONCE[1], MANY, "wrong bytes of payload"),
    *(("KeyLeft", factory, MANY, "the owner has 1 keys left") for factory in AT_ONCE[1:]),
    ("BatchLeftOut", AT_ONCE[0], {**MANY, "count": 128}, "64 pulls of 128 succeeded"),
    *(("BlockMixedUp", factory, BLOCKS, "tensor 2: a block does not have the bytes") for factory in OF_BLOCKS),
    ("TripLeftOut", f"{SOCKETS}:RoundTrips", {"count": 8, "apart": True}, "7 round trips of 8 were made"),
]


@pytest.mark.parametrize(("name", "factory", "parameters", "what"), BROKEN, ids=named)
def test_who_does_something_wrong_has_no_time(
    name: str, factory: str, parameters: dict[str, Any], what: str, stable: Stable
) -> None:
    standing = play_broken(name, factory, parameters, stable)
    assert standing.incorrect is not None
    assert what in standing.incorrect
    assert standing.median_ns is None
    assert not standing.times_ns


#: The sizes that take longer are played by ``pytest bench/``, and blocks by themselves below.
SMALLEST = [case for case in cases_of_hosts.cases(Profile.QUICK) if case.name.endswith("/4KiB")]


@pytest.mark.parametrize("case", SMALLEST, ids=lambda case: case.name)
def test_every_case_is_correct(case: Case, stable: Stable) -> None:
    for standing in play(case, stable):
        assert standing.incorrect is None, f"{standing.name}: {standing.incorrect}"
        reason = standing.skipped
        assert len(standing.times_ns) == 1 or any(words in (reason or "") for words in MAY_BE_MISSING), reason


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [*((factory, MANY) for factory in AT_ONCE), *((factory, BLOCKS) for factory in OF_BLOCKS)],
    ids=named,
)
def test_each_by_itself_is_correct(factory: str, parameters: dict[str, Any], stable: Stable) -> None:
    standing = play_if_possible(factory, parameters, stable)
    assert standing.correct, standing.incorrect


def test_the_full_profile_has_what_the_quick_one_has() -> None:
    full = cases_of_hosts.cases(Profile.FULL)
    assert len({case.name for case in full}) == len(full)
    assert {case.group for case in cases_of_hosts.cases(Profile.QUICK)} <= {case.group for case in full}


@pytest.mark.parametrize("profile", Profile)
def test_who_is_needed_to_judge_takes_part(profile: Profile) -> None:
    for case in cases_of_hosts.cases(profile):
        assert case.target is not None
        target = case.target
        needed = {case.baseline, *target.ahead_of, *target.best_of, target.one_more or case.baseline}
        assert needed <= {one.name for one in case.entrants}
        assert [one.name for one in case.entrants if not one.moves_bytes] == [case.target.one_more] * (
            case.target.one_more is not None
        )


@pytest.mark.parametrize("factory", PULLS, ids=named)
def test_nothing_is_left_of_a_killed_puller(factory: str, stable: Stable) -> None:
    standing = play_broken("KilledHalfWay", factory, PARAMETERS, stable)
    assert standing.incorrect == "its process ended with -9"
    eventually(lambda: not children_of_nurseries(), "a process of the killed puller is left")


class Traveller:
    """On one host, with a companion on the other."""

    def __init__(self) -> None:
        self.hosts = TwoHosts()
        self.ours, theirs = self.hosts.connection()
        self.companion = OtherEnd(self.hosts.other(Companion), theirs)

    def travel(self) -> dict[str, Any]:
        self.ours.sendall(b"hello")
        return {
            "networks": [network(), self.companion.call("network")],
            "devices": [devices(), self.companion.call("devices")],
            "addresses": [self.ours.getsockname()[0], self.ours.getpeername()[0]],
            "heard": self.companion.call("hear"),
        }

    def close(self) -> None:
        self.companion.close()


class Companion:
    """What is there of the other host."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def network(self) -> str:
        return network()

    def devices(self) -> set[str]:
        return devices()

    def hear(self) -> bytes:
        return self._connection.recv(5, socket.MSG_WAITALL)


def network() -> str:
    return os.readlink("/proc/self/ns/net")


def devices() -> set[str]:
    """Those that libraries find, and that send what they are given."""
    folder = Path("/sys/class/net")
    return {path.name for path in folder.iterdir() if (folder / path.name / "operstate").read_text() == "up\n"}


def test_two_hosts_have_nothing_but_a_network_in_common() -> None:
    here, here_before = network(), devices()
    try:
        traveller = OtherEnd(Traveller)
    except OtherEndFailed as failed:
        if "Unavailable" in str(failed):
            pytest.skip(str(failed).strip().rpartition("\n")[2])
        raise
    with traveller:
        found = traveller.call("travel")
    assert len({here, *found["networks"]}) == 3
    assert found["devices"] == [{hosts.NEAR_DEVICE}, {hosts.FAR_DEVICE}]
    assert found["addresses"] == [hosts.NEAR_ADDRESS, hosts.FAR_ADDRESS]
    assert found["heard"] == b"hello"
    assert (network(), devices()) == (here, here_before)


def refuse(function: str, *arguments: Any) -> None:
    raise PermissionError(f"{function}: Operation not permitted")


def test_where_no_network_may_be_made_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_call", refuse)
    with pytest.raises(Unavailable, match=r"no network of its own here \(unshare: .*\): run it as root"):
        hosts.leave_network()
    with pytest.raises(Unavailable, match=r"cannot be seen here \(mount: .*\): run it as root"):
        hosts.see_network()


def test_what_ip_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="install Debian's iproute2"):
        hosts.ip("link show")


def test_pieces_that_are_adjacent_at_both_ends_are_merged() -> None:
    ours = np.array([[0, 8, 0], [8, 8, 0], [16, 8, 0], [24, 8, 0], [40, 8, 0]], np.uint64)
    theirs = np.array([[100, 8, 0], [108, 8, 0], [200, 8, 0], [208, 8, 0], [216, 8, 0]], np.uint64)
    our_lists, their_lists = merged(ours, theirs)
    assert our_lists.tolist() == [[0, 16, 0], [16, 16, 0], [40, 8, 0]]
    assert their_lists.tolist() == [[100, 16, 0], [200, 16, 0], [216, 8, 0]]
