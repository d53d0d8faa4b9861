"""The conversation with one thing done wrong, each in its own way: what exploring it must find.

As :mod:`.mistakes` is to :mod:`.protocol`, so this is to :mod:`.conversation`. ``python -m spec conversations --mistake
NAME`` shows a shortest way from each of these to the promise that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .conversation import (
    ARRIVED_RIGHT,
    DROPPED,
    IN_A_CALL,
    NAMED,
    NO_PIN_LEFT,
    NOBODY_WAITS,
    NOT_GIVEN_UP,
    ONE_AT_A_TIME,
    OTHERS_UNTOUCHED,
    OWN_STAGING,
    PINNED_TENANT,
)
from .steps import Promise
from .turns import OWNER, Conversation, Send, Situation, Turn, Variable, Way

#: What reading into a cache itself would have to keep, and does not.
IN_ITS_CALL = Promise(f"call == n and {IN_A_CALL}", "no byte arrives in the target of a call that has returned")
PINNED_TARGET = Promise("pinned[n] & i", "no byte is written to memory that is not pinned for it")
NOT_OVER_LATER = Promise("not arrived[later] & i", "no byte lands on those of a later transfer")


def _first(turn: Turn, **changes: str | Mapping[str, str] | tuple[Send, ...] | tuple[Promise, ...]) -> Turn:
    """The turn with its first way changed."""
    return replace(turn, ways=(replace(turn.ways[0], **changes), *turn.ways[1:]))  # type: ignore[arg-type]


def _last(turn: Turn, **changes: str | Mapping[str, str] | tuple[Send, ...] | tuple[Promise, ...]) -> Turn:
    """The turn with its last way changed."""
    return replace(turn, ways=(*turn.ways[:-1], replace(turn.ways[-1], **changes)))  # type: ignore[arg-type]


def _setting(turn: Turn, **sets: str) -> Turn:
    """The turn with something more, or something else, set in each of its ways."""
    changed = {f"{name}[n]" if name in ("read", "pinned") else name: value for name, value in sets.items()}
    return replace(turn, ways=tuple(replace(way, sets={**way.sets, **changed}) for way in turn.ways))


def _about(promise: Promise, items: str) -> Promise:
    """The promise about other items than those of the message."""
    return replace(promise, condition=promise.condition.replace("items & pinned[n]", items).replace("items", items))


def _knowing(right: Conversation, name: str, party: str) -> Conversation:
    """The conversation where somebody more keeps a variable."""
    changed = (replace(each, kept_by=(*each.kept_by, party)) if each.name == name else each for each in right.variables)
    return replace(right, variables=tuple(changed))


def owner_writes(right: Conversation) -> Conversation:
    """The owner's engine writes into the puller's memory: at his deadline the puller cannot know when that will end."""
    known = _knowing(_knowing(_into_the_target(right), "read", OWNER), "ahead", OWNER)
    begin, begun = known.turn("hear_begin"), known.turn("hear_begun")
    starts = {"read[n]": "UNDER_WAY", "ahead[n]": "items & bound"}
    return known.with_turns(
        _last(begin, sets={**begin.ways[-1].sets, **starts}),
        _last(begun, sets={"asker": "READS", "granted": "items"}),
    )


def _into_the_target(right: Conversation) -> Conversation:
    move = right.turn("move")
    pulls = right.situation.direction == "pull"
    promises = (IN_ITS_CALL,) if pulls else (PINNED_TARGET, NOT_OVER_LATER)
    return right.with_turns(_first(move, sets={**move.ways[0].sets, "arrived[n]": "arrived[n] | i"}, promises=promises))


def read_into_the_target(right: Conversation) -> Conversation:
    """The engine reads straight into the puller's cache, and reads on when the call has returned. No pin helps."""
    return _into_the_target(right)


def staging_freed_at_deadline(right: Conversation) -> Conversation:
    """At his deadline the asker takes his staging memory back though his engine may read into it yet."""
    return right.with_turns(_setting(right.turn("deadline"), staging="0"))


def reading_outlives_its_call(right: Conversation) -> Conversation:
    """A reading straight into the target goes on when the call has returned; the target is pinned meanwhile."""
    deadline = right.turn("deadline")
    return right.with_turns(replace(deadline, ways=deadline.ways[1:]))


def success_before_the_answer(right: Conversation) -> Conversation:
    """The puller returns when he has everything and has said so, without waiting for the owner's answer."""
    arrived = right.turn("everything_arrived")
    told = {"asker": "IDLE", "told[n]": "SUCCEEDED"}
    return right.with_turns(
        _first(arrived, sets={**arrived.ways[0].sets, **told}, promises=(_about(DROPPED, "granted"),))
    )


def key_dropped_at_the_beginning(right: Conversation) -> Conversation:
    """The owner drops the keys when they are asked for, as if the bytes could not fail to arrive."""
    begin = right.turn("hear_begin")
    drops = {"bound": "bound & ~items", "took[n]": "items & bound"}
    return right.with_turns(
        _last(begin, sets={**begin.ways[-1].sets, **drops}, promises=(_about(ARRIVED_RIGHT, "(items & bound)"),))
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
    """Who has read everything of a push drops the keys, without a last word of the pusher."""
    arrived, begun = right.turn("everything_arrived"), right.turn("hear_begun")
    finished = {"owner": "IDLE", "serving": "0", "bound": "bound & ~pinned[n]", "took[n]": "pinned[n] & bound"}
    told = {"asker": "IDLE", "granted": "0", "told[n]": "SUCCEEDED"}
    read = Promise(ARRIVED_RIGHT.condition.replace("arrived[n] & ", ""), ARRIVED_RIGHT.meaning)
    return right.with_turns(
        _first(
            arrived,
            sets={**arrived.ways[0].sets, **finished, "pinned[n]": "0"},
            promises=(_about(read, "pinned[n]"), _about(NOT_GIVEN_UP, "pinned[n]")),
        ),
        _last(begun, sets=told, sends=()),
    )


def last_word_too_early(right: Conversation) -> Conversation:
    """The pusher's last word comes when the owner begins to read; what was read after his call may be anything."""
    promised = Variable("promised", (OWNER,), "the items that the last word was about", each=True)
    begin, finish, arrived = right.turn("hear_begin"), right.turn("hear_finish"), right.turn("everything_arrived")
    early = Way("owner in (WAITS, READS) and serving == n", {"promised[n]": "items"})
    finished = {"owner": "IDLE", "serving": "0", "bound": "bound & ~pinned[n]", "took[n]": "pinned[n] & bound"}
    read = Promise(ARRIVED_RIGHT.condition.replace("arrived[n] & ", ""), ARRIVED_RIGHT.meaning)
    done = Way(
        "promised[n]",
        {**arrived.ways[0].sets, **finished, "pinned[n]": "0"},
        (Send("finished", "pinned[n]"),),
        (_about(read, "pinned[n]"),),
    )
    return replace(right, variables=(*right.variables, promised)).with_turns(
        _last(begin, sends=(Send("begun", "items & bound"),)),
        replace(finish, ways=(early, *finish.ways)),
        replace(arrived, ways=(done, replace(arrived.ways[0], sends=()))),
    )


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
            promises=(_about(ARRIVED_RIGHT, "(items & bound)"),),
        )
    )


def half_asked_for_too_early(right: Conversation) -> Conversation:
    """The puller asks for the next stretch of a half that it still reads."""
    ask = right.turn("ask_for_stretch")
    return right.with_turns(replace(ask, when=ask.when.replace(" and (k < 4 or moved_on & k >> 2)", "")))


def half_filled_too_early(right: Conversation) -> Conversation:
    """The pusher gathers into a half that the owner still reads."""
    gather = right.turn("gather_stretch")
    return right.with_turns(replace(gather, when=gather.when.replace(" and (k < 4 or answered & k >> 2)", "")))


def pushed_into_the_target(right: Conversation) -> Conversation:
    """The engine reads straight into the owner's cache, which is unpinned when the push is abandoned."""
    return _into_the_target(right)


def pushed_over_a_later_push(right: Conversation) -> Conversation:
    """The same, with a pin until the engine has ended. The next push into that cache succeeds before."""
    into = _into_the_target(right)
    start, let_go = into.turn("start_reading"), into.turn("let_go")
    return into.with_turns(
        _keeping_pins_while_it_reads(into.turn("hear_abandon")),
        _keeping_pins_while_it_reads(into.turn("miss_serving_session")),
        replace(start, when="owner == WAITS and serving == n"),
        _first(let_go, sets={**let_go.ways[0].sets, "pinned[n]": "0"}),
    )


def _keeping_pins_while_it_reads(turn: Turn) -> Turn:
    kept = {name: value for name, value in turn.ways[0].sets.items() if name != "pinned[n]"}
    return replace(turn, ways=(Way("serving == n and owner == READS", kept), *turn.ways))


def engine_waited_for(right: Conversation) -> Conversation:
    """While the engine reads nobody looks at the clock."""
    deadline = right.turn("deadline")
    missed = right.turn("miss_session")
    return right.with_turns(
        replace(deadline, when=f"{deadline.when} and asker != READS"),
        replace(missed, when=f"{missed.when} and asker != READS"),
    )


def pin_not_heeded(right: Conversation) -> Conversation:
    """The owner gives memory away when no key refers to it, whatever pins it for a transfer."""
    freed = right.turn("give_away")
    return right.with_turns(replace(freed, when=freed.when.replace("pinned[all] | ", "")))


def success_denied(right: Conversation) -> Conversation:
    """The owner drops the keys, fails at something after that, and answers that nothing has succeeded."""
    return right.with_turns(_first(right.turn("hear_finish"), sends=(Send("finished"),)))


def staging_kept(right: Conversation) -> Conversation:
    """When a reading ends that has outlived its call, nobody takes the staging memory back."""
    let_go = right.turn("let_go")
    kept = {name: value for name, value in let_go.ways[0].sets.items() if name != "staging"}
    return right.with_turns(_first(let_go, sets=kept))


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


_PULL, _PUSH = Situation("pull", "read"), Situation("push", "read")
_STRETCHES = {way: Situation(way, "stretches", rivals=False, deaths=False) for way in ("pull", "push")}
_CARRIED = Situation("pull", "carried", rebinding=True)

#: Mistakes that exploring must find.
MISUNDERSTANDINGS = {
    "owner-writes": Misunderstanding(owner_writes, IN_ITS_CALL.meaning, _PULL),
    "read-into-the-target": Misunderstanding(read_into_the_target, IN_ITS_CALL.meaning, _PULL),
    "pushed-into-the-target": Misunderstanding(pushed_into_the_target, PINNED_TARGET.meaning, _PUSH),
    "pushed-over-a-later-push": Misunderstanding(pushed_over_a_later_push, NOT_OVER_LATER.meaning, _PUSH),
    "staging-freed-at-deadline": Misunderstanding(staging_freed_at_deadline, OWN_STAGING.meaning, _PULL),
    "engine-waited-for": Misunderstanding(engine_waited_for, NOBODY_WAITS.meaning, _PULL),
    "success-before-the-answer": Misunderstanding(success_before_the_answer, DROPPED.meaning, _PULL),
    "key-dropped-at-the-beginning": Misunderstanding(key_dropped_at_the_beginning, ARRIVED_RIGHT.meaning, _PULL),
    "key-dropped-by-its-name": Misunderstanding(key_dropped_by_its_name, OTHERS_UNTOUCHED.meaning, _CARRIED),
    "abandon-not-said": Misunderstanding(abandon_not_said, ONE_AT_A_TIME.meaning, _PULL),
    "late-answer-taken": Misunderstanding(late_answer_taken, ARRIVED_RIGHT.meaning, _CARRIED),
    "stranger-finishes": Misunderstanding(stranger_finishes, ARRIVED_RIGHT.meaning, replace(_PULL, impatience=True)),
    "pins-kept-for-the-lost": Misunderstanding(pins_kept_for_the_lost, NO_PIN_LEFT.meaning, _PULL),
    "pin-not-heeded": Misunderstanding(pin_not_heeded, PINNED_TENANT.meaning, _CARRIED),
    "success-denied": Misunderstanding(success_denied, NAMED.meaning, _PULL),
    "staging-kept": Misunderstanding(staging_kept, "staging memory comes back", _PULL),
    "doubt-told-as-failure": Misunderstanding(doubt_told_as_failure, NOT_GIVEN_UP.meaning, _PULL),
    "last-word-not-waited-for": Misunderstanding(last_word_not_waited_for, ARRIVED_RIGHT.meaning, _PUSH),
    "last-word-too-early": Misunderstanding(last_word_too_early, ARRIVED_RIGHT.meaning, _PUSH),
    "half-asked-for-too-early": Misunderstanding(half_asked_for_too_early, ARRIVED_RIGHT.meaning, _STRETCHES["pull"]),
    "half-filled-too-early": Misunderstanding(half_filled_too_early, ARRIVED_RIGHT.meaning, _STRETCHES["push"]),
}
