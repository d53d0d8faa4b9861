"""Every interleaving of the transfer protocol keeps its promises, and every mistake is found by a shortest way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from llmdd.spec.interleavings import SMALL, Explorer, main
from llmdd.spec.lifecycle import CACHE
from llmdd.spec.mistakes import MISTAKES
from llmdd.spec.protocol import OWNER_NAME, PEER_NAME, decision, everything, protocol
from llmdd.spec.protocol_page import page
from llmdd.spec.steps import GONE, IDLE, Go, Load, names_in, result_of

from .thorough import thorough_unless

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
COUNTS = {
    name: (int(states.replace(",", "")), int(transitions.replace(",", "")))
    for name, states, transitions in re.findall(
        r"^\| (\w+) \| \d generations?;.* \| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
}


@pytest.fixture(scope="module")
def explored() -> dict[str, Explorer]:
    return {name: Explorer(protocol(configuration), name) for name, configuration in SMALL.items()}


@pytest.mark.parametrize("name", thorough_unless(lambda name: name == "views", SMALL))
def test_every_promise_holds_and_the_page_tells_the_counts(explored: dict[str, Explorer], name: str) -> None:
    found = explored[name].run()
    assert found.violation is None, str(found)
    assert COUNTS[name] == (found.states, found.transitions), "run python -m spec protocol"


@pytest.mark.thorough
def test_nothing_goes_unchecked(explored: dict[str, Explorer]) -> None:
    reached: set[tuple[str, str]] = set()
    standing: set[tuple[str, str]] = set()
    for name, explorer in explored.items():
        if not explorer.parent:
            explorer.run()
        reached |= explorer.reached()
        standing |= {(role, place) for role, places in explorer.layout.positions.items() for place in places}
        generations = SMALL[name].generations
        # Every generation is lived through, in the arms of peers that copy, and some peer is dismissed meanwhile.
        assert {generation << 1 for generation in range(2, generations + 2)} <= explorer.values("gate")
        assert {0, 1} <= explorer.values("crashed") & {0, 1}
    everywhere = {
        (role.name, step.name)
        for role in protocol(everything()).roles
        for step in role.steps
        if step.name not in {call.first for call in role.calls}
    }
    assert everywhere <= standing
    assert standing - reached == {(OWNER_NAME, GONE), ("view", GONE)}, "only peers die"


def test_renewal_writes_to_pins_lease_and_marks_alone(explored: dict[str, Explorer]) -> None:
    explorer = explored["renewals"]
    explorer.run()
    steps = [
        explorer.layout.protocol.role(role).step(name)
        for role, name in explorer.reached()
        if role == PEER_NAME and name not in (IDLE, GONE)
    ]
    written = {step.operation.word for step in steps if result_of(step.operation) is not None}
    assert written == {"pins", "lease", "released_0", "released_1"}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found_with_a_shortest_trace(name: str) -> None:
    mistake = MISTAKES[name]
    found = Explorer(mistake.make(protocol(mistake.configuration)), name).run()
    assert found.violation == mistake.promise
    assert found.trace[0] == "owner: (allocate) take_memory: stores to memory, finds 0, leaves 1"
    assert all(line in str(found) for line in found.trace)


def test_key_taken_before_the_copy_is_seen_at_once() -> None:
    mistake = MISTAKES["key-cleared-before-copy-ends"]
    trace = Explorer(mistake.make(protocol(mistake.configuration))).run().trace
    assert "swap_key" in trace[-1]
    assert not any("copy" in line for line in trace)


def test_step_that_reads_two_words_is_refused() -> None:
    right = protocol()
    step = right.role(PEER_NAME).step("read_gate")
    with pytest.raises(ValueError, match=r"read_gate is not one operation of its own, for \['keys'\]"):
        right.with_steps(PEER_NAME, replace(step, goes=(Go("read_key", "found and keys & 1"), Go("clear_pin"))))


def test_step_that_decides_by_what_only_the_checks_see_is_refused() -> None:
    right = protocol()
    step = right.role(OWNER_NAME).step("read_pins")
    with pytest.raises(ValueError, match="confirmed"):
        right.with_steps(OWNER_NAME, replace(step, goes=(Go(IDLE, "confirmed"), Go("unindex_id"))))


def test_peer_that_writes_the_owners_word_is_refused() -> None:
    right = protocol()
    step = right.role(PEER_NAME).step("set_pin")
    with pytest.raises(ValueError, match="gate"):
        right.with_steps(PEER_NAME, replace(step, operation=replace(step.operation, word="gate")))


def test_step_that_may_get_stuck_is_refused() -> None:
    right = protocol()
    step = right.role(PEER_NAME).step("read_gate")
    with pytest.raises(ValueError, match="may get stuck"):
        right.with_steps(PEER_NAME, replace(step, goes=step.goes[:1]))


def test_owner_decides_as_the_cache_machine_says() -> None:
    closes = decision("drop_key", "close_slot", id="held", keys_remain="keyed")
    frees = decision("settle", "return_memory", id="held", keys="keyed", pinned="pinned")
    begins = decision("pin", id="held", keys="keyed")
    for state in CACHE.states:
        if not state.signature["tenant"]:
            continue
        held = state.signature["id"]
        for keyed in (False, True):
            for pinned in (False, True):
                names = {"held": held, "keyed": keyed, "pinned": pinned}
                facts = {"keys_remain": keyed, "pinned": pinned}
                if state.signature["keys"]:
                    outcome = CACHE.outcome(state.name, "drop_key", facts)
                    assert eval(closes, names) == ("close_slot" in getattr(outcome, "effects", ()))
                if state.signature["keys"] == keyed:
                    outcome = CACHE.outcome(state.name, "settle", facts)
                    assert eval(frees, names) == ("return_memory" in getattr(outcome, "effects", ()))
                    assert eval(begins, names) == hasattr(CACHE.outcome(state.name, "pin", facts), "target")


def test_pairs_are_steps_that_touch_a_word_in_common_or_order_two() -> None:
    whole = protocol(everything())
    steps = {step.name: step for role in whole.roles for step in role.steps}
    for step in steps.values():
        assert set(step.pairs_with) <= set(steps), step.name
        assert step.pairs_with or not isinstance(step.operation, Load), step.name


def test_assignments_of_a_way_do_not_depend_on_each_other() -> None:
    """The explorer makes them all at once, the Promela model one by one."""
    for role in protocol(everything()).roles:
        for step in role.steps:
            for go in step.goes:
                for name, value in go.sets.items():
                    assert not names_in(value) & (set(go.sets) - {name}), step.name


def test_page_is_written_from_the_protocol() -> None:
    assert list(COUNTS) == list(SMALL)
    assert page(COUNTS) == PAGE.read_text(encoding="utf-8"), "run python -m spec protocol"


def test_command_shows_the_way_to_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--mistake", "gate-not-read-after-unpin"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "every released cache is reaped" in lines[0]
    assert lines[1].endswith("owner: (allocate) take_memory: stores to memory, finds 0, leaves 1")
