"""The conversation with one thing done wrong, each in its own way: what exploring it must find.

As :mod:`.mistakes` is to :mod:`.protocol`, so this is to :mod:`.conversation`. ``python -m spec conversations --mistake
NAME`` shows a shortest way from each of these to the promise that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .conversation import (
    ALL_ARRIVED,
    DROPPED,
    NAMED,
    NO_PIN_LEFT,
    NOBODY_WAITS,
    NOT_GIVEN_UP,
    ONE_AT_A_TIME,
    OTHERS_UNTOUCHED,
    PINNED_TENANT,
)
from .steps import Promise
from .stretches import IN_ITS_CALL, OWN_AREA, PINNED_TARGET, RIGHT_BYTES
from .turns import Conversation, Send, Situation, Turn, Way


def _first(turn: Turn, **changes: str | Mapping[str, str] | tuple[Send, ...] | tuple[Promise, ...]) -> Turn:
    """The turn with its first way changed."""
    return replace(turn, ways=(replace(turn.ways[0], **changes), *turn.ways[1:]))  # type: ignore[arg-type]


def _last(turn: Turn, **changes: str | Mapping[str, str] | tuple[Send, ...] | tuple[Promise, ...]) -> Turn:
    """The turn with its last way changed."""
    return replace(turn, ways=(*turn.ways[:-1], replace(turn.ways[-1], **changes)))  # type: ignore[arg-type]


def _without(turn: Turn, condition: str) -> Turn:
    """The turn that is taken whether that holds or not."""
    return replace(turn, when=turn.when.replace(f" and {condition}", ""))


def _keeping(turn: Turn, name: str) -> Turn:
    """The turn that leaves something as it is."""
    ways = (replace(way, sets={key: value for key, value in way.sets.items() if key != name}) for way in turn.ways)
    return replace(turn, ways=tuple(ways))


def _about(promise: Promise, items: str) -> Promise:
    """The promise about other items than those of the message."""
    return replace(promise, condition=promise.condition.replace("items & pinned[n]", items).replace("items", items))


def written_into_the_target(right: Conversation) -> Conversation:
    """The owner's engine writes straight into the puller's cache, and writes on when his call has returned."""
    return right.with_turns(_first(right.turn("land"), promises=(IN_ITS_CALL,)))


def pushed_into_the_target(right: Conversation) -> Conversation:
    """The pusher's engine writes straight into the owner's cache, which is unpinned when the push is abandoned."""
    return right.with_turns(_first(right.turn("land"), promises=(PINNED_TARGET,)))


def earlier_not_waited_for(right: Conversation) -> Conversation:
    """The owner starts to write for a pull while its engine may be writing for one that was given up."""
    return right.with_turns(_without(right.turn("start_stretch"), "not under_way[others]"))


def earlier_push_not_waited_for(right: Conversation) -> Conversation:
    """The pusher starts to write for a push while his engine may be writing for one that was given up."""
    return earlier_not_waited_for(right)


def area_given_back(right: Conversation) -> Conversation:
    """When the session has ended, the puller's staging memory goes to another conversation, whatever is under way."""
    turns = map(right.turn, ("miss_session", "miss_idle_session"))
    return right.with_turns(*(_giving_back(turn) for turn in turns))


def area_of_a_push_given_back(right: Conversation) -> Conversation:
    """When the session has ended, the owner's staging memory goes to another conversation, whatever is under way."""
    turns = map(right.turn, ("miss_serving_session", "miss_session_there"))
    return right.with_turns(*(_giving_back(turn) for turn in turns))


def _giving_back(turn: Turn) -> Turn:
    return replace(turn, ways=tuple(replace(way, sets={**way.sets, "area": "GIVEN_BACK"}) for way in turn.ways))


def late_writing_forgotten(right: Conversation) -> Conversation:
    """A pull that is refused makes the puller forget that something may be under way for an earlier one."""
    begun = right.turn("hear_begun")
    refused = replace(begun.ways[1], sets={**begun.ways[1].sets, "expected": "0"})
    return right.with_turns(replace(begun, ways=(begun.ways[0], refused, *begun.ways[2:])))


def said_before_its_end(right: Conversation) -> Conversation:
    """The owner says that a stretch has been written when it has given it to its engine."""
    start, there = right.turn("start_stretch"), right.turn("stretch_is_there")
    sets = {**start.ways[0].sets, "said": "said | k"}
    return right.with_turns(
        _first(start, sets=sets, sends=(Send("written", "k"),)),
        replace(there, when="0"),
    )


def copied_not_waited_for(right: Conversation) -> Conversation:
    """The owner writes over a part that the puller may not have copied on yet."""
    return right.with_turns(_without(right.turn("start_stretch"), "(k < 1 << PARTS or copied & k >> PARTS)"))


def push_not_copied_on(right: Conversation) -> Conversation:
    """The pusher writes over a part that the owner may not have copied on yet."""
    return copied_not_waited_for(right)


def copied_said_at_once(right: Conversation) -> Conversation:
    """The pusher takes it that a stretch has been copied on when he has said that it is there."""
    there = right.turn("stretch_is_there")
    return right.with_turns(
        replace(there, ways=tuple(replace(way, sets={**way.sets, "copied": "copied | k"}) for way in there.ways))
    )


def late_stretch_copied_on(right: Conversation) -> Conversation:
    """The puller copies on what he is told of, though his call has returned."""
    return right.with_turns(_first(right.turn("hear_written"), when="0"))


def copied_on_unpinned(right: Conversation) -> Conversation:
    """The owner copies on what it is told of, though it has lost patience and unpinned."""
    written = right.turn("hear_written")
    return right.with_turns(_first(written, when="owner == SERVES and serving != n"))


def success_before_the_answer(right: Conversation) -> Conversation:
    """The puller returns when he has everything and has said so, without waiting for the owner's answer."""
    written = right.turn("hear_written")
    whole = written.ways[2]
    told = {**whole.sets, "asker": "IDLE", "told[n]": "SUCCEEDED"}
    returns = replace(whole, sets=told, promises=(*whole.promises, _about(DROPPED, "granted")))
    return right.with_turns(replace(written, ways=(*written.ways[:2], returns, *written.ways[3:])))


def key_dropped_at_the_beginning(right: Conversation) -> Conversation:
    """The owner drops the keys when they are asked for, as if the bytes could not fail to arrive."""
    begin = right.turn("hear_begin")
    drops = {"bound": "bound & ~items", "took[n]": "items & bound"}
    return right.with_turns(
        _last(begin, sets={**begin.ways[-1].sets, **drops}, promises=(_about(ALL_ARRIVED, "(items & bound)"),))
    )


def abandon_not_said(right: Conversation) -> Conversation:
    """The asker returns at his deadline and tells nobody."""
    deadline = right.turn("deadline")
    return right.with_turns(replace(deadline, ways=tuple(replace(way, sends=()) for way in deadline.ways)))


def late_answer_taken(right: Conversation) -> Conversation:
    """An answer to an earlier question is taken for that to the last one."""
    begun = right.turn("hear_begun")
    own = Way("asker != ASKS")
    late = Way("call != n", {"asker": "TELLS", "granted": "items"}, (Send("finish", "items", "call"),))
    return right.with_turns(replace(begun, ways=(own, late, *begun.ways[1:])))


def last_word_not_waited_for(right: Conversation) -> Conversation:
    """Who has copied on everything of a push drops the keys, without a last word of the pusher."""
    written = right.turn("hear_written")
    whole = written.ways[1]
    finished = {
        **whole.sets,
        "owner": "IDLE",
        "serving": "0",
        "bound": "bound & ~pinned[n]",
        "pinned[n]": "0",
        "took[n]": "pinned[n] & bound",
    }
    drops = replace(whole, sets=finished, promises=(*whole.promises, _about(NOT_GIVEN_UP, "pinned[n]")))
    answered = _last(right.turn("hear_finish"), sends=(Send("finished", "items"),))
    return right.with_turns(replace(written, ways=(written.ways[0], drops, *written.ways[2:])), answered)


def last_word_too_early(right: Conversation) -> Conversation:
    """The pusher says his last word when he has given the last stretch to his engine."""
    start = right.turn("start_stretch")
    last = {**start.ways[0].sets, "asker": "TELLS"}
    says = Way("(started | k) == ALL_STRETCHES", last, (Send("finish", "granted"),))
    return right.with_turns(replace(start, ways=(says, *start.ways)))


def key_dropped_by_its_name(right: Conversation) -> Conversation:
    """At the last word the owner looks the key up again, and drops whatever it is bound to by then."""
    finish = right.turn("hear_finish")
    return right.with_turns(_first(finish, sets={**finish.ways[0].sets, "elsewhere": "elsewhere & ~items"}))


def pins_kept_for_the_lost(right: Conversation) -> Conversation:
    """The owner notices that the session has ended and waits for the last word all the same."""
    missed = right.turn("miss_serving_session")
    kept = {name: value for name, value in missed.ways[0].sets.items() if name != "pinned[n]"}
    return right.with_turns(_first(missed, sets=kept))


def stranger_finishes(right: Conversation) -> Conversation:
    """A last word about what the owner serves no more drops the keys that it names."""
    finish = right.turn("hear_finish")
    drops = {"bound": "bound & ~items", "took[n]": "items & bound"}
    return right.with_turns(
        _last(
            finish,
            sets=drops,
            sends=(Send("finished", "items"),),
            promises=(_about(PINNED_TENANT, "(items & bound)"),),
        )
    )


def pins_kept_for_the_engine(right: Conversation) -> Conversation:
    """The owner unpins what its engine may be writing from only when that has ended, which it may never."""
    abandoned, after = right.turn("hear_abandon"), right.turn("look_after")
    keeps = replace(_keeping(abandoned, "pinned[n]").ways[0], when="serving == n and under_way[n]")
    return right.with_turns(
        replace(abandoned, ways=(keeps, *abandoned.ways)),
        _first(after, sets={**after.ways[0].sets, "pinned[n]": "0"}),
    )


def engine_waited_for(right: Conversation) -> Conversation:
    """While the bytes are on their way nobody looks at the clock."""
    deadline = right.turn("deadline")
    missed = right.turn("miss_session")
    return right.with_turns(
        replace(deadline, when=f"{deadline.when} and asker != CARRIES"),
        replace(missed, when=f"{missed.when} and asker != CARRIES"),
    )


def pin_not_heeded(right: Conversation) -> Conversation:
    """The owner gives memory away when no key refers to it, whatever pins it for a transfer."""
    freed = right.turn("give_away")
    return right.with_turns(replace(freed, when=freed.when.replace("pinned[all] | ", "")))


def success_denied(right: Conversation) -> Conversation:
    """The owner drops the keys, fails at something after that, and answers that nothing has succeeded."""
    return right.with_turns(_first(right.turn("hear_finish"), sends=(Send("finished"),)))


def end_not_seen(right: Conversation) -> Conversation:
    """Nobody looks whether the engine has ended what was given up: nothing can be written to that peer any more."""
    return right.with_turns(replace(right.turn("look_after"), when="0"))


def doubt_told_as_failure(right: Conversation) -> Conversation:
    """Whose last word was not answered in time is told that the key has been kept."""
    deadline = right.turn("deadline")
    return right.with_turns(replace(deadline, ways=deadline.ways[1:]))


@dataclass(frozen=True)
class Misunderstanding:
    """A mistake, where it shows, and the promise that is broken first."""

    make: Callable[[Conversation], Conversation]
    promise: str
    situation: Situation


_PULL, _PUSH = Situation("pull", "written"), Situation("push", "written")
_STRETCHES = {way: Situation(way, "written", stretches=3, rivals=False, deaths=False) for way in ("pull", "push")}
_CARRIED = Situation("pull", "carried", rebinding=True)
_IMPATIENT = {way: Situation(way, "written", impatience=True) for way in ("pull", "push")}
_NEXT = "when the engine has ended all that was started, the next transfer can start"

#: Mistakes that exploring must find.
MISUNDERSTANDINGS = {
    "written-into-the-target": Misunderstanding(written_into_the_target, IN_ITS_CALL.meaning, _PULL),
    "pushed-into-the-target": Misunderstanding(pushed_into_the_target, PINNED_TARGET.meaning, _PUSH),
    "earlier-not-waited-for": Misunderstanding(earlier_not_waited_for, RIGHT_BYTES.meaning, _PULL),
    "earlier-push-not-waited-for": Misunderstanding(earlier_push_not_waited_for, RIGHT_BYTES.meaning, _PUSH),
    "area-given-back": Misunderstanding(area_given_back, OWN_AREA.meaning, _PULL),
    "area-of-a-push-given-back": Misunderstanding(area_of_a_push_given_back, OWN_AREA.meaning, _PUSH),
    "late-writing-forgotten": Misunderstanding(late_writing_forgotten, OWN_AREA.meaning, _PULL),
    "said-before-its-end": Misunderstanding(said_before_its_end, RIGHT_BYTES.meaning, _PULL),
    "copied-not-waited-for": Misunderstanding(copied_not_waited_for, RIGHT_BYTES.meaning, _STRETCHES["pull"]),
    "push-not-copied-on": Misunderstanding(
        push_not_copied_on, RIGHT_BYTES.meaning, replace(_STRETCHES["push"], gathered=True)
    ),
    "copied-said-at-once": Misunderstanding(copied_said_at_once, RIGHT_BYTES.meaning, _STRETCHES["push"]),
    "late-stretch-copied-on": Misunderstanding(late_stretch_copied_on, IN_ITS_CALL.meaning, _PULL),
    "copied-on-unpinned": Misunderstanding(copied_on_unpinned, PINNED_TARGET.meaning, _IMPATIENT["push"]),
    "engine-waited-for": Misunderstanding(engine_waited_for, NOBODY_WAITS.meaning, _PULL),
    "pins-kept-for-the-engine": Misunderstanding(pins_kept_for_the_engine, NO_PIN_LEFT.meaning, _PULL),
    "end-not-seen": Misunderstanding(end_not_seen, _NEXT, _PULL),
    "success-before-the-answer": Misunderstanding(success_before_the_answer, DROPPED.meaning, _PULL),
    "key-dropped-at-the-beginning": Misunderstanding(key_dropped_at_the_beginning, ALL_ARRIVED.meaning, _PULL),
    "key-dropped-by-its-name": Misunderstanding(key_dropped_by_its_name, OTHERS_UNTOUCHED.meaning, _CARRIED),
    "abandon-not-said": Misunderstanding(abandon_not_said, ONE_AT_A_TIME.meaning, _PULL),
    "late-answer-taken": Misunderstanding(late_answer_taken, ALL_ARRIVED.meaning, _CARRIED),
    "stranger-finishes": Misunderstanding(stranger_finishes, PINNED_TENANT.meaning, _IMPATIENT["pull"]),
    "pins-kept-for-the-lost": Misunderstanding(pins_kept_for_the_lost, NO_PIN_LEFT.meaning, _PULL),
    "pin-not-heeded": Misunderstanding(pin_not_heeded, PINNED_TENANT.meaning, _CARRIED),
    "success-denied": Misunderstanding(success_denied, NAMED.meaning, _PULL),
    "doubt-told-as-failure": Misunderstanding(doubt_told_as_failure, NOT_GIVEN_UP.meaning, _PULL),
    "last-word-not-waited-for": Misunderstanding(last_word_not_waited_for, NOT_GIVEN_UP.meaning, _PUSH),
    "last-word-too-early": Misunderstanding(last_word_too_early, ALL_ARRIVED.meaning, _PUSH),
}
