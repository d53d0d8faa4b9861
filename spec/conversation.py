"""The conversation of two hosts about a transfer, as data, at the grain of single messages.

Past one host a peer cannot map the owner's arena. It asks, and the owner does for it what a peer on its own host would
do: find, pin, check, drop the key, unpin. Here stands who says what when, what each end does about it, and why in that
order. What the owner does to the slot, operation by operation, stands in ``spec/protocol.py``; what a cache's
references mean in ``spec/lifecycle.py``.

``conversation n`` is a rule of this file; :mod:`.conversations` explores every order in which the turns can go, with
every fault, and reads nothing else.

The rules
---------
 1. Whoever has the bytes writes them: the owner of what is pulled, the pusher of what is pushed. His engine writes into
    *staging memory* of the other end, and never into a cache. For a write cannot be called back, and what is under way
    may land long after everybody has lost patience.
 2. From his staging memory the receiver copies the bytes on to their target by hand, and only while the transfer
    stands. A byte that arrived in the target of a call that has returned could land on those of a later call that has
    succeeded.
 3. The receiver believes a stretch of bytes only when he is told that it has been written, and of the transfer that he
    has open. The writer says so when his engine has ended it, and not before.
 4. A writer starts the stretches of a transfer when his engine has ended whatever he has started for earlier ones of
    the same conversation, also of those that were given up. So what the receiver is told of is there, and nothing older
    lands on it.
 5. Each transfer has a number that its connection has never had. A message with another number than that of the
    transfer that is open is late, and changes nothing; it may be under way still when the next question arrives. A last
    word about a transfer that is served no more is answered: nothing has succeeded.
 6. One thing is asked at a time. Whoever asks again has had the answer to his last word, or has abandoned the transfer
    before. Abandoning needs no answer, and changes nothing where the transfer has ended.
 7. At the beginning the owner finds the keys, pins, and checks; nothing but pins has changed until the last word.
 8. Keys are dropped on the asker's *last word*, and not before. He says it when every byte has been copied on, or, of a
    push, when he has said that every stretch is there, as long as his call has not ended otherwise. Dropped is the key
    of the pinned tenant, whatever its name refers to by then.
 9. Bytes that fit into a message travel on one. Those of a pull come with the answer to the beginning. Those of a push
    come with the beginning, which is its last word too: the owner drops the key and answers, and that is all.
10. Success is told when the owner has answered the last word, and for those items alone that the answer names. If the
    call ends between the two, the key may have been dropped, and only the owner knows. Whoever is told of a failure
    before he has said his last word finds the key as it was.
11. Nothing is held for who has given up, also where an engine writes from it: what it writes by then may be anything,
    and is copied on by nobody. The owner unpins at once when a transfer is abandoned, when the session has ended, and
    when the time is up for which the asker has said that it will wait. A pusher's source is his own again when his call
    returns.
12. Staging memory has a few parts, which the stretches go through by turns, so that writing and copying on go side by
    side. A part gets its next stretch when the receiver has said that the one in it has been copied on. Bytes that the
    writer gathers first go through as many parts of his own, likewise.
13. A receiver's staging memory belongs to one conversation, so to one writer, until the session has ended. Another
    conversation gets it then, but only if nothing may be under way: if no transfer has been opened for writing since
    the last one of which every stretch was said to be there. Otherwise it is given up, and nobody uses it again.
14. Each end notices in its own time that the session has ended, and from then on takes no message of it; what is under
    way on one connection says nothing about the other. The asker's call ends then, as at its deadline; so it waits
    for nobody longer than that, and the owner waits for nobody at all.

What is modelled
----------------
One connection, on which one end asks; the other, on which the other end asks, is the same once more, and the two share
nothing but the session. The asker calls several times, for one item or for two at once. Each item is a batch slot with
a key, in a memory of its own that the owner gives to another tenant, with the same key, when the key is gone and no pin
is left. Somebody else may take any key at any moment. Messages arrive in order, at any time, or never where the session
has ended. A stretch lands at any one moment after it was started, also when its writer has died. The writer's engine
says that it has arrived at any later one, says before that it has failed, after which nothing lands, or says nothing
for ever. What lands is right if its source was held for the transfer at that moment, or, if it was gathered, if the
part still had it. Either end may die at any time, the session end at any time, the deadline pass at any time.

A transfer is one stretch, or three that go through two parts of staging memory. An engine may need the other end to
let it proceed; that each end does so for as long as it may be written to is left out here, and needed for what is
promised where the engine ends. Where much is asked for, the owner finds and pins it in portions and serves others in
between; it hears nothing of this conversation before it has answered, so that is one turn here, between two items of
which anybody else's may come. Not modelled is an asker who breaks the rules, whose session the owner ends, and a
message that is sent in part: the rest goes before anything else, or the session ends.
"""

from __future__ import annotations

from dataclasses import replace

from . import stretches
from .steps import Promise
from .stretches import STILL_BOUND
from .turns import ASKER, ENGINE, OWNER, PERHAPS, WORLD, Conversation, Send, Situation, Turn, Variable, Way

# ---------------------------------------------------------------- what is kept

#: Where the asker and the owner stand. From ``ASKS`` to ``TELLS`` the asker is in a call.
PLACES = {"IDLE": 0, "BROKEN": 1, "GONE": 2, "ASKS": 3, "CARRIES": 4, "TELLS": 5, "SERVES": 6}

#: What the caller was told: that it failed with the key kept, or with the last word said and not answered.
OUTCOMES = {"UNTOLD": 0, "SUCCEEDED": 1, "KEPT": 2, "UNKNOWN": 3}

BOTH, ALL = (ASKER, OWNER), (ASKER, OWNER, ENGINE, WORLD)

#: What becomes of staging memory when its session has ended.
LETS_GO = "GIVEN_UP if expected else GIVEN_BACK"


def variables(situation: Situation) -> tuple[Variable, ...]:
    """What each party keeps, and what only the checks see."""
    return (
        Variable("asker", (ASKER, ENGINE, WORLD), "where the asker stands"),
        Variable("call", (ASKER,), "the number of its last transfer"),
        Variable("granted", (ASKER,), "the items that it may still succeed with"),
        Variable("owner", (OWNER, ENGINE, WORLD), "where the owner stands"),
        Variable("serving", (OWNER,), "the number of the transfer that it serves; 0: none"),
        Variable("bound", (OWNER, WORLD), "the items whose key is bound", initial="ASKED"),
        Variable("tenant", (OWNER, WORLD), "the items whose memory has its second tenant"),
        Variable("elsewhere", (OWNER, WORLD), "the items whose key is bound to another cache"),
        Variable("session", ALL, "whether the session stands", initial="1"),
        Variable("pinned", (OWNER, WORLD), "the items that the owner has pinned for it", each=True),
        *(stretches.variables(situation) if _is_written(situation) else ()),
        Variable("served", (), "the tenants of what was pinned", each=True, ghost=True),
        Variable("arrived", (), "the items whose bytes are in their target", each=True, ghost=True),
        Variable("took", (), "the items whose key was dropped for it", each=True, ghost=True),
        Variable("told", (), "what the caller was told", each=True, ghost=True),
        Variable("rebound", (), "the items whose key was bound to another cache", ghost=True),
    )


def _is_written(situation: Situation) -> bool:
    return situation.travel == "written"


def _is_eager(situation: Situation) -> bool:
    """Whether the beginning is the last word, too."""
    return situation.direction == "push" and not _is_written(situation)


def _receives(situation: Situation, party: str) -> bool:
    """Whether the party has staging memory in which bytes arrive."""
    return _is_written(situation) and situation.receiver == party


# ---------------------------------------------------------------- promises

IN_A_CALL = "ASKS <= asker <= TELLS"
NAMED = Promise(
    "not items & ~granted and not took[n] & granted & ~items", "no item is told to have failed whose key was dropped"
)
DROPPED = Promise(
    "not items & bound & ~(tenant ^ served[n])", "success is told only of an item whose key has been dropped"
)
WHOLE = Promise("not items & ~arrived[n]", "success is told only of an item whose bytes have all arrived")
ALL_ARRIVED = Promise(
    "not items & pinned[n] & ~arrived[n]", "a key is dropped only for a transfer whose bytes have all arrived"
)
PINNED_TENANT = Promise(
    "not items & pinned[n] & (tenant ^ served[n])", "a key is dropped only of the tenant that was pinned"
)
NOT_GIVEN_UP = Promise(
    "not items or told[n] != KEPT", "no key is dropped for a call that has been told that it is kept"
)
ONE_AT_A_TIME = Promise("owner == IDLE", "one thing is asked at a time")
NOBODY_WAITS = Promise(f"not {IN_A_CALL} and owner != SERVES", "nobody waits for ever, whatever the engine does")
NO_PIN_LEFT = Promise("owner == GONE or not pinned[all]", "every pin is dropped, whatever the engine does")
OTHERS_UNTOUCHED = Promise("not rebound & ~elsewhere", "no key of another cache is dropped")


# ---------------------------------------------------------------- the asker


def asker(situation: Situation) -> tuple[Turn, ...]:
    """Who calls. It makes one call after the other, over the link to one owner."""
    listening = "asker not in (BROKEN, GONE)"
    answered = "asker != ASKS or call != n"
    receives = _receives(situation, ASKER)
    expects, no_more = ({"expected": "1"}, {"expected": "late"}) if receives else ({}, {})
    return (
        Turn(
            ASKER,
            "call",
            "asker == IDLE and call == n - 1",
            (Way(sets={"call": "n", "asker": "ASKS", **expects}, sends=(Send("begin", "ASKED"),)),),
            "the number is new; whatever the call before has left behind has another",
            "conversation 5, conversation 6",
            comes=PERHAPS,
        ),
        Turn(
            ASKER,
            "hear_begun",
            listening,
            (
                Way(answered),
                Way("not items", _told("KEPT", **no_more), promises=(STILL_BOUND,)),
                _granted(situation),
            ),
            "late, it changes nothing; in time, it says which items are pinned, or why they are not",
            "conversation 5, conversation 7",
            takes="begun",
        ),
        Turn(
            ASKER,
            "hear_finished",
            listening,
            (
                Way("asker != TELLS or call != n"),
                Way("not items", _told("KEPT"), promises=(NAMED, STILL_BOUND)),
                Way(sets=_told("SUCCEEDED"), promises=(NAMED, DROPPED, WHOLE)),
            ),
            "the owner has dropped the keys of the items that it names; the others have kept theirs",
            "conversation 10",
            takes="finished",
        ),
        *_gives_up(situation),
    )


def _told(outcome: str, **sets: str) -> dict[str, str]:
    """The call returns."""
    return {"asker": "IDLE", "granted": "0", "told[n]": outcome, **sets}


def _granted(situation: Situation) -> Way:
    """What the asker does when items have been pinned for it, or, by an eager push, have been finished with."""
    if _is_eager(situation):
        return Way(sets=_told("SUCCEEDED"), promises=(DROPPED, WHOLE))
    if _is_written(situation):
        begins = {"moved_on": "0"} if situation.direction == "pull" else stretches.NOTHING_STARTED
        return Way(sets={"asker": "CARRIES", "granted": "items", **begins})
    arrived = {"asker": "TELLS", "granted": "items", "arrived[n]": "items"}
    return Way(sets=arrived, sends=(Send("finish", "items"),))


def _gives_up(situation: Situation) -> tuple[Turn, ...]:
    """At its deadline, and when the session has ended, a call returns, whatever its engine is about."""
    in_this_call = f"call == n and {IN_A_CALL}"
    last_word = "asker == ASKS" if _is_eager(situation) else "asker == TELLS"
    receives = _receives(situation, ASKER)
    late = {"late": "1"} if receives else {}
    ways = (Way(last_word, _told("UNKNOWN")), Way(sets=_told("KEPT", **late), promises=(STILL_BOUND,)))
    lets_go = {"area": LETS_GO} if receives else {}
    return (
        Turn(
            ASKER,
            "deadline",
            in_this_call,
            tuple(replace(way, sends=(Send("abandon"),)) for way in ways),
            "the caller gets his answer in time; whoever still pins for him is told that he need not",
            "conversation 6, conversation 10, conversation 14",
        ),
        Turn(
            ASKER,
            "miss_session",
            f"not session and {in_this_call}",
            tuple(replace(way, sets={**way.sets, "asker": "BROKEN", **lets_go}) for way in ways),
            "no answer can be relied on any more; whoever pins for us notices by himself",
            "conversation 10, conversation 13, conversation 14",
        ),
        Turn(
            ASKER,
            "miss_idle_session",
            "not session and asker == IDLE",
            (Way(sets={"asker": "BROKEN", **lets_go}),),
            "nothing is asked over a link that is broken",
            "conversation 13, conversation 14",
        ),
    )


# ---------------------------------------------------------------- the owner


def owner(situation: Situation) -> tuple[Turn, ...]:
    """Who has the caches that are named, and attends to what is asked."""
    attending = "owner not in (BROKEN, GONE)"
    receives = _receives(situation, OWNER)
    lets_go = {"area": LETS_GO} if receives else {}
    turns = [
        Turn(
            OWNER,
            "hear_begin",
            attending,
            _begins(situation),
            "found, pinned and checked, as a peer on this host would do; nothing else has changed",
            "conversation 7",
            takes="begin",
        ),
        Turn(
            OWNER,
            "hear_finish",
            attending,
            (
                Way(
                    "owner == SERVES and serving == n",
                    {
                        "owner": "IDLE",
                        "serving": "0",
                        "bound": "bound & ~(items & pinned[n])",
                        "pinned[n]": "0",
                        **({"expected": "0"} if receives else {}),
                        "took[n]": "took[n] | items & pinned[n] & bound",
                    },
                    (Send("finished", "items & pinned[n]"),),
                    (ALL_ARRIVED, PINNED_TENANT, NOT_GIVEN_UP),
                ),
                Way(sends=(Send("finished"),)),
            ),
            "every byte is where it belongs, so the keys go, then the pins; what is not served has not succeeded",
            "conversation 5, conversation 8" + (", conversation 13" if receives else ""),
            takes="finish",
        ),
        Turn(
            OWNER,
            "hear_abandon",
            attending,
            (_unpins("serving == n", "IDLE"), Way()),
            "the asker waits for it no more; if it has ended already, there is nothing to do",
            "conversation 6, conversation 11",
            takes="abandon",
        ),
        Turn(
            OWNER,
            "miss_serving_session",
            "not session and owner == SERVES and serving == n",
            (_unpins("1", "BROKEN", **lets_go),),
            "nobody is there to say a last word; nothing is held for who is gone",
            "conversation 11, conversation 13, conversation 14",
        ),
        Turn(
            OWNER,
            "miss_session_there",
            "not session and owner == IDLE",
            (Way(sets={"owner": "BROKEN", **lets_go}),),
            "whatever of it is still under way is not taken any more",
            "conversation 13, conversation 14",
        ),
    ]
    if situation.impatience:
        turns.append(
            Turn(
                OWNER,
                "lose_patience",
                "owner == SERVES and serving == n",
                (_unpins("1", "IDLE"),),
                "the asker has said how long it will wait; a last word that comes later has no effect",
                "conversation 5, conversation 11",
                comes=PERHAPS,
            )
        )
    return tuple(turns)


def _begins(situation: Situation) -> tuple[Way, ...]:
    """What the owner does when it is asked."""
    refusal = "bound & items != items" if situation.together else "not items & bound"
    refused = Way(refusal, sends=(Send("begun"),), promises=(ONE_AT_A_TIME,))
    answer = (Send("begun", "items & bound"),)
    if _is_eager(situation):
        finished = {
            "bound": "bound & ~items",
            "served[n]": "tenant",
            "arrived[n]": "items & bound",
            "took[n]": "items & bound",
        }
        return (refused, Way(sets=finished, sends=answer, promises=(ONE_AT_A_TIME, NOT_GIVEN_UP)))
    serves = {"pinned[n]": "items & bound", "served[n]": "tenant", "serving": "n", "owner": "SERVES"}
    if _is_written(situation):
        pulled, pushed = stretches.NOTHING_STARTED, {"moved_on": "0", "expected": "1"}
        serves |= pulled if situation.direction == "pull" else pushed
    return (refused, Way(sets=serves, sends=answer, promises=(ONE_AT_A_TIME,)))


def _unpins(when: str, place: str, **sets: str) -> Way:
    """The owner stops serving; what may still be written goes into staging memory, and comes from wherever it likes."""
    return Way(when, {"owner": place, "serving": "0", "pinned[n]": "0", **sets})


# ---------------------------------------------------------------- the world


def world(situation: Situation) -> tuple[Turn, ...]:
    """What happens whether anybody likes it or not."""
    turns = [
        Turn(
            WORLD,
            "end_session",
            "session",
            (Way(sets={"session": "0"}),),
            "a cable, a crash on the way, either end's wish",
            "conversation 14",
            comes=PERHAPS,
        ),
        Turn(
            WORLD,
            "give_away",
            "owner != GONE and not (bound | pinned[all] | tenant) & i",
            (Way(sets={"tenant": "tenant | i", "bound": "bound | i & ~elsewhere"}),),
            "nothing refers to the cache, so its memory goes to another, which may have the same key",
            "seed §1",
            comes=PERHAPS,
        ),
    ]
    if situation.rivals:
        turns.append(
            Turn(
                WORLD,
                "take_key",
                "owner != GONE and bound & i",
                (Way(sets={"bound": "bound & ~i"}),),
                "another peer has pulled it, or the owner removes it",
                "seed §3",
                comes=PERHAPS,
            )
        )
    if situation.rebinding:
        turns.append(
            Turn(
                WORLD,
                "bind_elsewhere",
                "owner != GONE and not (bound | elsewhere) & i",
                (Way(sets={"elsewhere": "elsewhere | i", "rebound": "rebound | i"}),),
                "a key that has been dropped can be bound to another cache at once",
                "seed §7",
                comes=PERHAPS,
            )
        )
    if situation.deaths:
        turns += [
            Turn(
                WORLD,
                f"{party}_dies",
                f"{party} != GONE",
                (Way(sets={party: "GONE", "session": "0"}),),
                "the other end's kernel tells it, sooner or later",
                "conversation 14",
                comes=PERHAPS,
            )
            for party in BOTH
        ]
    return tuple(turns)


# ---------------------------------------------------------------- the whole


def conversation(situation: Situation) -> Conversation:
    """The conversation, as far as a situation lets it go."""
    written = _is_written(situation)
    let_go = Promise(
        f"session or {situation.receiver} == GONE or area != OURS",
        "when the session has ended, staging memory is given back, or up",
    )
    looked_after = Promise(
        f"{situation.writer} in (BROKEN, GONE) or not under_way[all]",
        "when the engine has ended all that was started, the next transfer can start",
    )
    return Conversation(
        variables(situation),
        {**PLACES, **OUTCOMES, **stretches.constants(situation), "ASKED": (1 << situation.items) - 1},
        (
            *asker(situation),
            *owner(situation),
            *(stretches.turns(situation) if written else ()),
            *world(situation),
        ),
        (OTHERS_UNTOUCHED,),
        (looked_after,) if written else (),
        (NOBODY_WAITS, NO_PIN_LEFT, *((let_go,) if written else ())),
        situation,
    )
