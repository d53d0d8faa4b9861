"""Every order of the conversation of two hosts keeps its promises, and every mistake is found by a shortest way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from llmdd.spec.conversation import conversation
from llmdd.spec.conversation_page import page
from llmdd.spec.conversations import SITUATIONS, Explorer, main
from llmdd.spec.interleavings import Interleavings
from llmdd.spec.misunderstandings import MISUNDERSTANDINGS
from llmdd.spec.turns import ENGINE, OWNER, Send, Situation, Way

from .thorough import thorough_unless

PAGE = Path(__file__).parents[2] / "docs" / "conversation.md"
COUNTS = {
    name: (int(states.replace(",", "")), int(transitions.replace(",", "")))
    for name, states, transitions in re.findall(
        r"^\| ([\w, ]+) \| (?:pull|push), .* \| ([\d,]+) \| ([\d,]+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}
WRITTEN = {direction: Situation(direction, "written", calls=1) for direction in ("pull", "push")}


@pytest.fixture(scope="module", params=thorough_unless(lambda name: COUNTS[name][0] < 75_000, SITUATIONS))
def explored(request: pytest.FixtureRequest) -> tuple[Explorer, Interleavings]:
    """A situation that has been explored; one at a time, as each takes some hundred megabytes."""
    explorer = Explorer(conversation(SITUATIONS[request.param]), request.param)
    return explorer, explorer.run()


def test_every_promise_holds_and_the_page_tells_the_counts(explored: tuple[Explorer, Interleavings]) -> None:
    explorer, found = explored
    assert found.violation is None, str(found)
    assert COUNTS[explorer.name] == (found.states, found.transitions), "run python -m spec conversation"


def test_nothing_goes_unchecked(explored: tuple[Explorer, Interleavings]) -> None:
    explorer, _ = explored
    situation = SITUATIONS[explorer.name]
    never_taken = {turn.name for turn in conversation(situation).turns} - explorer.taken_turns()
    if (situation.direction, situation.travel) == ("push", "carried"):
        assert never_taken == {"hear_finish", "hear_finished", "miss_serving_session"}, "its beginning is its last word"
    else:
        assert not never_taken
    # Each call has succeeded in some order, and failed in others, before its last word and after it.
    for number in range(1, situation.calls + 1):
        place = explorer.compiled.names.index(f"told_{number}")
        assert {state[place] for state in explorer.parent} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("travel", "stretches"),
    [("carried", 1), ("written", 1), pytest.param("written", 3, marks=pytest.mark.thorough)],
)
@pytest.mark.parametrize("direction", ["pull", "push"])
def test_conversation_ends(direction: str, travel: str, stretches: int) -> None:
    situation = Situation(direction, travel, stretches=stretches, calls=1, rebinding=True, impatience=True)
    explorer = Explorer(conversation(situation))
    assert explorer.run().violation is None
    assert explorer.ends()


def test_conversation_without_an_end_is_told_from_one_with() -> None:
    right = conversation(WRITTEN["pull"])
    failing = right.turn("fail")
    again = replace(failing, ways=(Way(sets={"ahead[n]": "ahead[n] | k"}),))
    explorer = Explorer(right.with_turns(again))
    explorer.run()
    assert not explorer.ends()


@pytest.mark.parametrize("name", MISUNDERSTANDINGS)
def test_mistake_is_found_with_a_shortest_trace(name: str) -> None:
    mistake = MISUNDERSTANDINGS[name]
    found = Explorer(mistake.make(conversation(mistake.situation)), name).run()
    assert found.violation == mistake.promise
    assert "asker: call of 1; says begin 1 for 1" in found.trace
    assert all(line in str(found) for line in found.trace)


@pytest.mark.parametrize("situation", dict.fromkeys(each.situation for each in MISUNDERSTANDINGS.values()))
def test_nothing_is_found_where_there_is_no_mistake(situation: Situation) -> None:
    assert Explorer(conversation(situation)).run().violation is None


def test_writing_into_the_target_is_seen_when_it_lands() -> None:
    mistake = MISUNDERSTANDINGS["written-into-the-target"]
    trace = Explorer(mistake.make(conversation(mistake.situation))).run().trace
    assert trace == (
        "asker: call of 1; says begin 1 for 1",
        "asker: deadline of 1; says abandon 1",
        "owner: hear begin of 1; says begun 1 for 1",
        "owner: start stretch of 1 stretch 1",
        "engine: land of 1 stretch 1",
    )


def test_earlier_stretch_lands_on_one_that_was_said_to_be_there() -> None:
    mistake = MISUNDERSTANDINGS["earlier-not-waited-for"]
    trace = Explorer(mistake.make(conversation(mistake.situation))).run().trace
    landed = [line for line in trace if line.startswith("engine: land")]
    assert landed == ["engine: land of 2 stretch 1", "engine: land of 1 stretch 1"]
    assert trace[-1].startswith("asker: hear written of 2")


def test_staging_memory_that_was_given_back_is_written_to_by_who_had_it_before() -> None:
    mistake = MISUNDERSTANDINGS["area-given-back"]
    trace = Explorer(mistake.make(conversation(mistake.situation))).run().trace
    assert trace[-2:] == ("asker: miss session of 1", "engine: land of 1 stretch 1")


def test_late_answer_is_one_to_a_call_that_has_returned() -> None:
    mistake = MISUNDERSTANDINGS["late-answer-taken"]
    trace = Explorer(mistake.make(conversation(mistake.situation))).run().trace
    deadline, late = trace.index("asker: deadline of 1; says abandon 1"), "asker: hear begun of 1; says finish 2 for 1"
    assert deadline < trace.index("asker: call of 2; says begin 2 for 1") < trace.index(late)


def test_turn_that_goes_by_what_the_other_end_keeps_is_refused() -> None:
    right = conversation(WRITTEN["pull"])
    turn = right.turn("hear_written")
    with pytest.raises(ValueError, match=r"hear_written goes by what it cannot know, or sets it: \['pinned'\]"):
        right.with_turns(replace(turn, when=f"{turn.when} and pinned[n]"))


def test_turn_that_sets_what_the_other_end_keeps_is_refused() -> None:
    right = conversation(WRITTEN["push"])
    turn = right.turn("hear_begin")
    with pytest.raises(ValueError, match="asker"):
        right.with_turns(replace(turn, ways=(Way(sets={"asker": "IDLE"}),)))


def test_turn_that_decides_by_what_only_the_checks_see_is_refused() -> None:
    right = conversation(WRITTEN["pull"])
    turn = right.turn("hear_finished")
    with pytest.raises(ValueError, match="arrived"):
        right.with_turns(replace(turn, ways=(Way("arrived[n]"), *turn.ways)))


def test_turn_that_may_get_stuck_is_refused() -> None:
    right = conversation(WRITTEN["pull"])
    turn = right.turn("hear_finish")
    with pytest.raises(ValueError, match="may get stuck"):
        right.with_turns(replace(turn, ways=turn.ways[:1]))


def test_message_is_taken_by_whom_it_is_for() -> None:
    right = conversation(WRITTEN["pull"])
    with pytest.raises(ValueError, match="takes a begun, which is not for it"):
        right.with_turns(replace(right.turn("hear_begin"), takes="begun"))


@pytest.mark.parametrize("direction", ["pull", "push"])
def test_who_has_the_bytes_writes_and_the_other_end_copies_on(direction: str) -> None:
    situation = WRITTEN[direction]
    right = conversation(situation)
    assert right.turn("start_stretch").party == right.turn("stretch_is_there").party == situation.writer
    assert right.turn("hear_written").party == situation.receiver != situation.writer


@pytest.mark.parametrize("name", SITUATIONS)
def test_engine_touches_nothing_but_staging_memory(name: str) -> None:
    right = conversation(SITUATIONS[name])
    moved = {target for turn in right.turns if turn.party == ENGINE for way in turn.ways for target in way.sets}
    assert moved <= {"ahead[n]", "come[n]", "lost[n]", "holds_first", "holds_second"}


@pytest.mark.parametrize("name", SITUATIONS)
def test_keys_are_dropped_on_the_last_word_alone(name: str) -> None:
    situation = SITUATIONS[name]
    eager = (situation.direction, situation.travel) == ("push", "carried")
    dropping = {
        turn.name
        for turn in conversation(situation).turns
        for way in turn.ways
        if turn.party == OWNER and "bound" in way.sets
    }
    assert dropping - {"hear_finish"} == ({"hear_begin"} if eager else set())


@pytest.mark.parametrize("name", SITUATIONS)
def test_nobody_who_says_finish_has_let_go_before(name: str) -> None:
    for turn in conversation(SITUATIONS[name]).turns:
        for way in turn.ways:
            if any(isinstance(send, Send) and send.kind == "finish" for send in way.sends):
                assert way.sets["asker"] == "TELLS", turn.name


def test_page_is_written_from_the_conversation() -> None:
    assert list(COUNTS) == list(SITUATIONS)
    assert page(COUNTS) == PAGE.read_text(encoding="utf-8"), "run python -m spec conversation"


def test_command_shows_the_way_to_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--mistake", "area-given-back"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "never written to by the former one" in lines[0]
    assert lines[1].endswith("asker: call of 1; says begin 1 for 1")
