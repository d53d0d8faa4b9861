"""The explorer finds nothing wrong with the spec, and finds what is wrong with a spec that is not right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llmdd.spec.explorer import SMALL, Exploration, Explorer, explore, main
from llmdd.spec.lifecycle import BATCH_SLOT, CACHE, LINK, MACHINES
from llmdd.spec.machine import Machine, Transition
from llmdd.spec.statecharts import Statecharts

from .thorough import thorough_unless

SCENARIOS = {scenario.name: scenario for scenario in SMALL}


@pytest.mark.parametrize("name", thorough_unless(lambda name: name in ("links", "registered"), SCENARIOS))
def test_every_promise_holds(name: str) -> None:
    found = Explorer(SCENARIOS[name]).run()
    assert found.violation is None, str(found)
    assert found.states > 500
    assert found.transitions > 5 * found.states


def rule(machine: Machine, event: str, source: str, target: str, when: str = "") -> Transition:
    """The one transition of the machine between two states by an event; ``when`` is a guard that it names."""
    (found,) = (
        each
        for each in machine.transitions
        if (each.event, each.source, each.target) == (event, source, target) and (not when or when in each.when)
    )
    return found


def change(machine: Machine, old: Transition, **changes: Any) -> Machine:
    """The machine with one transition changed: a bug."""
    changed = replace(old, **changes)
    return replace(machine, transitions=tuple(changed if each is old else each for each in machine.transitions))


def without(machine: Machine, old: Transition) -> Machine:
    """The machine without one transition: a bug."""
    return replace(machine, transitions=tuple(each for each in machine.transitions if each is not old))


def find(bug: Machine, scenario: str = "") -> Exploration:
    """What exploring the spec with the bug shows."""
    charts = Statecharts.of([bug if machine.name == bug.name else machine for machine in MACHINES])
    return explore([SCENARIOS[scenario]] if scenario else SMALL, charts)[-1]


TRANSFER_CONSUMES_THE_KEY_OF_A_REGISTERED_CACHE = change(
    BATCH_SLOT,
    rule(BATCH_SLOT, "transfer", "REQUEST_KEYED", "REQUEST_KEYED", "registered"),
    target="UNKEYED",
    effects=("unindex_key", "drop_key"),
)

TRANSFER_CONSUMES_THE_BLOCKS_KEY = change(
    BATCH_SLOT,
    rule(BATCH_SLOT, "transfer", "BLOCKS_KEYED", "BLOCKS_KEYED"),
    target="UNKEYED",
    effects=("unindex_key", "drop_key"),
)

WITHDRAWING_LEAVES_PREFIX_KEYS = change(
    BATCH_SLOT, rule(BATCH_SLOT, "withdraw", "PREFIX_KEYED", "UNKEYED"), target="PREFIX_KEYED", effects=()
)

PIN_WHILE_RELEASING = replace(
    CACHE,
    transitions=(*CACHE.transitions, Transition("pin", "RELEASING", "RELEASING", "none: a bug")),
    refusals=tuple(rule for rule in CACHE.refusals if rule.source != "RELEASING"),
)

FREE_WHILE_PINNED = change(
    without(CACHE, rule(CACHE, "settle", "RELEASING", "RELEASING")), rule(CACHE, "settle", "RELEASING", "FREE"), when=()
)

TRANSFER_OF_SOME_TENSORS_DROPS_THE_KEY = change(
    BATCH_SLOT,
    rule(BATCH_SLOT, "transfer", "REQUEST_KEYED", "REQUEST_KEYED", "tensors_remain"),
    target="UNKEYED",
    effects=("unindex_key", "drop_key"),
)

DROPPING_THE_ID_FORGETS_THE_KEYS = change(
    CACHE, rule(CACHE, "drop_id", "INDEXED", "DRAINING"), target="RELEASING", effects=("close_slot",)
)

TRANSFER_CONSUMES_PREFIX_KEY = change(
    BATCH_SLOT,
    rule(BATCH_SLOT, "transfer", "PREFIX_KEYED", "PREFIX_KEYED"),
    target="UNKEYED",
    effects=("unindex_key", "drop_key"),
)


A_LEASE_ENDS_AT_THE_FIRST_LOOK = change(
    BATCH_SLOT,
    rule(BATCH_SLOT, "expire", "REQUEST_KEYED", "REQUEST_KEYED"),
    target="UNKEYED",
    effects=("unindex_key", "drop_key"),
)

PREFIX_KEYS_OUTLIVE_THEIR_LEASE = change(
    BATCH_SLOT, rule(BATCH_SLOT, "expire", "PREFIX_KEYED", "UNKEYED"), target="PREFIX_KEYED", effects=()
)


@pytest.mark.parametrize(
    ("bug", "scenario", "violation", "calls"),
    [
        (FREE_WHILE_PINNED, "keys", "went back, but is held", ["allocate", "opens a view", "deallocate"]),
        (
            TRANSFER_OF_SOME_TENSORS_DROPS_THE_KEY,
            "layers",
            "the keys bound",
            ["allocate", "pull_cache", "copies", "finishes"],
        ),
        (DROPPING_THE_ID_FORGETS_THE_KEYS, "keys", "went back, but is held", ["allocate", "deallocate"]),
        (TRANSFER_CONSUMES_PREFIX_KEY, "keys", "the keys bound", ["allocate", "pull_cache", "copies", "finishes"]),
        (
            PIN_WHILE_RELEASING,
            "keys",
            "should be LLM_KV_CACHE_NOT_EXIST",
            ["allocate", "opens a view", "deallocate", "pull_cache"],
        ),
        (
            TRANSFER_CONSUMES_THE_KEY_OF_A_REGISTERED_CACHE,
            "registered",
            "the keys bound",
            ["register_cache", "pull_cache", "copies", "finishes"],
        ),
        (
            TRANSFER_CONSUMES_THE_BLOCKS_KEY,
            "blocks",
            "the keys bound",
            ["allocate_blocks_cache", "pull", "copies", "finishes"],
        ),
        (
            WITHDRAWING_LEAVES_PREFIX_KEYS,
            "registered",
            "is LLM_TIMEOUT, but should be success",
            ["register_cache", "unregister_cache"],
        ),
        (A_LEASE_ENDS_AT_THE_FIRST_LOOK, "leases", "the keys bound", ["allocate_cache", "tick"]),
        (PREFIX_KEYS_OUTLIVE_THEIR_LEASE, "leases", "the keys bound", ["leased for 1 ticks", "tick"]),
    ],
    ids=[
        "memory goes back while pinned",
        "a transfer of some tensors drops the key",
        "dropping the id forgets the keys",
        "a transfer consumes a prefix key",
        "pinned while releasing",
        "a transfer consumes the key of a registered cache",
        "a transfer consumes a blocks key",
        "unregistering leaves a prefix key",
        "a lease ends at the first look",
        "prefix keys outlive their lease",
    ],
)
def test_seeded_bug_is_found_with_a_shortest_trace(
    bug: Machine, scenario: str, violation: str, calls: list[str]
) -> None:
    found = find(bug, scenario)
    assert found.violation is not None
    assert violation in found.violation
    assert len(found.trace) == 1 + len(calls)
    assert all(call in line for call, line in zip(calls, found.trace[1:], strict=True))
    assert all(line in str(found) for line in found.trace)


#: What asks nothing of the model: to wait for a transfer in progress (detach_peer), to tell an engine that has gone, to
#: drop pins at an unlink that has waited for the transfers of both ends.
IDLE_EFFECTS = {("unlink", "BROKEN", "tell_peer"), ("peer_unlinked", "LINKED", "drop_peer_pins")}

EFFECTS = [
    (machine, old, effect)
    for machine in (CACHE, BATCH_SLOT, LINK)
    for old in machine.transitions
    for effect in old.effects
    if effect != "detach_peer" and (old.event, old.source, effect) not in IDLE_EFFECTS
]


def scenario_of(machine: Machine, old: Transition) -> str:
    """The one scenario in which the rule is at work; empty if there are several."""
    if machine is LINK:
        return "links"
    if old.event in ("renew", "expire"):
        return "leases"
    if "BLOCKS_KEYED" in (old.source, old.target):
        return "blocks"
    return "registered" if old.event == "withdraw" else ""


@pytest.mark.parametrize(
    ("machine", "old", "effect"),
    EFFECTS,
    ids=[f"{machine.name}-{old.event}-{old.source}-{effect}" for machine, old, effect in EFFECTS],
)
def test_every_forgotten_effect_is_found(machine: Machine, old: Transition, effect: str) -> None:
    bug = change(machine, old, effects=tuple(each for each in old.effects if each != effect))
    assert find(bug, scenario_of(machine, old)).violation is not None


def test_command_prints_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    main(["small", "--scenario", "links"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("links: ")
    assert lines[1].startswith("in all: ")
    assert all("states" in line and "transitions" in line for line in lines)


def test_command_knows_its_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["small", "--scenario", "no such"])
    assert "keys, layers, pushes, deaths, links, blocks, registered, leases" in capsys.readouterr().err
