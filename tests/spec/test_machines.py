"""The machines: their data, and the running machines built from them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace

import pytest
from llmdd.spec.lifecycle import BATCH_SLOT, CACHE, ENGINE, LINK, MACHINES
from llmdd.spec.machine import ImpossibleEvent, Machine, MalformedMachine, Refusal, Transition
from llmdd.spec.statecharts import Refused, Statechart, Statecharts, Step

named = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)


@named
def test_running_machine_agrees_with_the_data_in_every_cell(machine: Machine) -> None:
    chart = Statechart(machine)
    for state, event, facts in machine.cells():
        expected = machine.outcome(state, event, facts)
        if isinstance(expected, Transition):
            assert chart.step(state, event, **facts) == Step(expected.target, expected.effects)
        elif isinstance(expected, Refusal):
            with pytest.raises(Refused) as refused:
                chart.step(state, event, **facts)
            assert refused.value.error == expected.error
        else:
            with pytest.raises(ImpossibleEvent):
                chart.step(state, event, **facts)


@named
def test_every_state_can_be_reached_and_every_name_is_used(machine: Machine) -> None:
    reached = {machine.initial}
    while True:
        found = {rule.target for rule in machine.transitions if rule.source in reached} - reached
        if not found:
            break
        reached |= found
    assert reached == {state.name for state in machine.states}
    rules = [*machine.transitions, *machine.refusals]
    assert {rule.event for rule in rules} == {event.name for event in machine.events}
    assert {term.removeprefix("not ") for rule in rules for term in rule.when} == {each.name for each in machine.guards}
    assert {name for rule in machine.transitions for name in rule.effects} == {each.name for each in machine.effects}


@named
def test_every_rule_cites_a_clause(machine: Machine) -> None:
    for item in (*machine.states, *machine.transitions, *machine.refusals):
        assert item.clause.startswith(("seed §", "api §", "api D", "design")), item


def test_no_two_states_of_a_cache_have_the_same_facts() -> None:
    facts = ("tenant", "id", "keys")
    signatures = [tuple(state.signature.get(fact) for fact in facts) for state in CACHE.states]
    assert len(set(signatures)) == len(CACHE.states)


def test_an_undecided_guard_is_found() -> None:
    also = Transition("settle", "RELEASING", "RELEASING", "seed §1")
    with pytest.raises(MalformedMachine, match="decided 2 times"):
        replace(CACHE, transitions=(*CACHE.transitions, also))


def test_an_unknown_name_is_found() -> None:
    for field_name in ("event", "source", "target"):
        astray = replace(CACHE.transitions[0], **{field_name: "nowhere"})
        with pytest.raises(MalformedMachine, match="nowhere"):
            replace(CACHE, transitions=(astray, *CACHE.transitions[1:]))


@dataclass
class Slot:
    """A batch slot that notes what the machine asks of it."""

    state: str = BATCH_SLOT.initial
    registered: bool = False
    tensors_remain: bool = True
    done: list[str] = field(default_factory=list)

    def index_key(self) -> None:
        self.done.append(f"index_key in {self.state}")

    def unindex_key(self) -> None:
        self.done.append(f"unindex_key in {self.state}")


def test_fire_changes_the_state_and_then_carries_out_the_effects() -> None:
    chart, slot = Statechart(BATCH_SLOT), Slot()
    assert chart.fire(slot, "bind_request") == Step("REQUEST_KEYED", ("index_key",))
    assert chart.fire(slot, "transfer") == Step("REQUEST_KEYED", ())
    slot.tensors_remain = False
    assert chart.fire(slot, "transfer").effects == ("unindex_key", "drop_key")  # Slot has no drop_key: nothing asked
    assert slot.state == "UNKEYED"
    assert slot.done == ["index_key in REQUEST_KEYED", "unindex_key in UNKEYED"]


def test_peek_does_nothing() -> None:
    chart, slot = Statechart(BATCH_SLOT), Slot("PREFIX_KEYED")
    assert chart.peek(slot, "remove").target == "UNKEYED"
    assert slot == Slot("PREFIX_KEYED")


def test_subjects_of_one_chart_do_not_disturb_each_other() -> None:
    chart, first, second = Statechart(BATCH_SLOT), Slot(), Slot("PREFIX_KEYED")
    chart.fire(first, "bind_request")
    assert (first.state, second.state) == ("REQUEST_KEYED", "PREFIX_KEYED")
    assert pickle.loads(pickle.dumps(first)) == first


def test_refused_and_impossible_events_change_nothing() -> None:
    charts = Statecharts.of()
    closed, unkeyed = Slot("RELEASING"), Slot("UNKEYED")
    with pytest.raises(Refused):
        charts.cache.fire(closed, "pin")
    with pytest.raises(ImpossibleEvent):
        charts.batch_slot.fire(unkeyed, "remove")
    assert (closed, unkeyed) == (Slot("RELEASING"), Slot("UNKEYED"))


def test_a_stated_guard_goes_before_the_subject() -> None:
    chart, slot = Statechart(BATCH_SLOT), Slot("REQUEST_KEYED", tensors_remain=True)
    assert chart.peek(slot, "transfer", tensors_remain=False).target == "UNKEYED"
    assert chart.peek(slot, "transfer", tensors_remain=False, registered=True).target == "REQUEST_KEYED"


@pytest.mark.parametrize(
    ("machine", "state", "event", "facts", "exception", "status"),
    [
        (CACHE, "FREE", "pin", {}, "LLMException", "LLM_KV_CACHE_NOT_EXIST"),
        (LINK, "BROKEN", "transfer", {}, "LLMException", "LLM_NOT_YET_LINK"),
        (LINK, "UNLINKED", "link", {"peer_reachable": False}, "LLMException", "LLM_LINK_FAILED"),
        (ENGINE, "UNINITIALIZED", "call", {}, "RuntimeError", None),
        (ENGINE, "FINALIZED", "call", {}, "LLMException", "LLM_ENGINE_FINALIZED"),
    ],
)
def test_a_refusal_names_what_the_caller_sees(
    machine: Machine, state: str, event: str, facts: dict[str, bool], exception: str, status: str | None
) -> None:
    with pytest.raises(Refused) as refused:
        Statechart(machine).step(state, event, **facts)
    assert (refused.value.exception, refused.value.status) == (exception, status)
