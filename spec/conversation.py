"""The conversation of two hosts about a transfer, as data, at the grain of single messages.

Past one host a peer cannot map the owner's arena. It asks, and the owner does for it what a peer on its own host would
do: find, pin, check, drop the key, unpin. Here stands who says what when, what each end does about it, and why in that
order. What the owner does to the slot, operation by operation, stands in ``spec/protocol.py``; what a cache's
references mean in ``spec/lifecycle.py``.

``conversation n`` is a rule of this file; :mod:`.conversations` explores every order in which the turns can go, with
every fault, and reads nothing else.

The rules
---------
 1. Memory is written by its own process alone. Into whosever memory the bytes go, he fetches them: the puller reads
    from the owner, and the owner of the target reads from the pusher. So no fault leaves a write under way into
    memory that meanwhile was given to another.
 2. An engine that reads cannot be made to stop, and may go on long after everybody has lost patience. So it never reads
    into a cache, but into *staging memory*, which belongs to the transfer until the engine has ended. The bytes go on
    to their target by hand, and only while the transfer stands: a byte that arrived in the target of a call that has
    returned could land on those of a later call that has succeeded.
 3. Each transfer has a number that its connection has never had. An answer with another number than that of the call
    in progress is late, and changes nothing; it may be under way still when the next question arrives. What is asked
    about a transfer that is served no more is answered: nothing has succeeded.
 4. One thing is asked at a time. Whoever asks again has had the answer to his last word, or has abandoned the transfer
    before. Abandoning needs no answer, and changes nothing where the transfer has ended.
 5. At the beginning the owner finds the keys, pins, and checks; nothing but pins has changed until the last word.
 6. Keys are dropped on the asker's *last word*, and not before. He says it when every byte is where it belongs, as long
    as his call has not ended otherwise. Dropped is the key of the pinned tenant, whatever its name refers to by then.
 7. What a pusher offers may be anything once his call has ended. So the owner says that it has read everything, and
    then waits for the last word, which says that it was the right thing. Nobody else can tell.
 8. Bytes that fit into a message travel on one. Those of a pull come with the answer to the beginning. Those of a push
    come with the beginning, which is its last word too: the owner drops the key and answers, and that is all.
 9. Success is told when the owner has answered the last word, and for those items alone that the answer names. If the
    call ends between the two, the key may have been dropped, and only the owner knows. Whoever is told of a failure
    before he has said his last word finds the key as it was.
10. What is merely read is held for nobody who has given it up: the owner unpins at once when a transfer is abandoned,
    when the session has ended, and, if it likes, when the time is up for which the asker has said that it will wait.
    A pusher's source is his own again when his call returns. Whoever reads it then reads what may be anything.
11. Staging memory has two halves at each end, so that gathering, reading and moving on go side by side. A half gets its
    next stretch when the one in it has been read, which is for the reader to say: by asking for the next stretch of
    that half, or by answering that it has taken the one that was offered.
12. Each end notices in its own time that the session has ended, and from then on takes no message of it; what is under
    way on one connection says nothing about the other. The asker's call ends then, as at its deadline; so it waits
    for nobody longer than that, and the owner waits for nobody at all.

What is modelled
----------------
One connection, on which one end asks; the other, on which the other end asks, is the same once more, and the two share
nothing but the session. The asker calls several times, for one item or for two at once. Each item is a batch slot with
a key, in a memory of its own that the owner gives to another tenant, with the same key, when the key is gone and no pin
is left. Somebody else may take any key at any moment. Messages arrive in order, at any time, or never where the session
has ended. The engine moves an item's bytes at any one moment of its reading, says that all has arrived at any later
one, fails at any, or never ends. Bytes are *foreign* if their source was not held for the transfer when they were
moved. Either end may die at any time, the session end at any time, the deadline pass at any time.

A reading is one step for each item; in stretches, one for each stretch of one item. An engine may need the other end to
let it proceed; that each end does so for as long as the other may be reading is left out here, and needed for what is
promised where the engine ends. Not modelled is an asker who breaks the rules, whose session the owner ends, and a
message that is sent in part: the rest goes before anything else, or the session ends.
"""

from __future__ import annotations

from dataclasses import replace

from . import stretches
from .steps import Promise
from .turns import (
    ASKER,
    ENGINE,
    OWNER,
    PERHAPS,
    WITH_THE_ENGINE,
    WORLD,
    Conversation,
    Send,
    Situation,
    Turn,
    Variable,
    Way,
)

# ---------------------------------------------------------------- what is kept

#: Where the asker and the owner stand. From ``ASKS`` to ``TELLS`` the asker is in a call.
PLACES = {
    "IDLE": 0,
    "BROKEN": 1,
    "GONE": 2,
    "ASKS": 3,
    "WAITS": 4,
    "READS": 5,
    "TELLS": 6,
    "SERVES": 7,
}

#: What becomes of a reading. One that is under way may never end.
READINGS = {"NONE": 0, "UNDER_WAY": 1, "ARRIVED": 2, "FAILED": 3}

#: What the caller was told: that it failed with the key kept, or with the last word said and not answered.
OUTCOMES = {"UNTOLD": 0, "SUCCEEDED": 1, "KEPT": 2, "UNKNOWN": 3}

BOTH, ALL = (ASKER, OWNER), (ASKER, OWNER, ENGINE, WORLD)


def variables(situation: Situation) -> tuple[Variable, ...]:
    """What each party keeps, and what only the checks see."""
    reader = situation.reader
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
        *(stretches.variables(situation) if situation.travel == "stretches" else ()),
        Variable("staging", (reader, ENGINE), "the transfer that has the reader's staging memory; 0: none"),
        Variable("read", (reader, ENGINE), "its reading", each=True),
        Variable("ahead", (reader, ENGINE), "the items whose bytes have still to be moved", each=True),
        Variable("pinned", (OWNER, WORLD), "the items that the owner has pinned for it", each=True),
        Variable("served", (), "the tenants of what was pinned", each=True, ghost=True),
        Variable("arrived", (), "the items whose bytes are in their target", each=True, ghost=True),
        Variable("foreign", (), "the items whose bytes are not those that were pinned", each=True, ghost=True),
        Variable("took", (), "the items whose key was dropped for it", each=True, ghost=True),
        Variable("told", (), "what the caller was told", each=True, ghost=True),
        Variable("rebound", (), "the items whose key was bound to another cache", ghost=True),
    )


# ---------------------------------------------------------------- promises

IN_A_CALL = "ASKS <= asker <= TELLS"
STILL_BOUND = Promise("not took[n]", "whoever is told of a failure before his last word finds the key as it was")
NAMED = Promise(
    "not items & ~granted and not took[n] & granted & ~items", "no item is told to have failed whose key was dropped"
)
DROPPED = Promise(
    "not items & bound & ~(tenant ^ served[n])", "success is told only of an item whose key has been dropped"
)
WHOLE = Promise(
    "not items & ~(arrived[n] & ~foreign[n])", "success is told only of an item whose bytes are those that were pinned"
)
ARRIVED_RIGHT = Promise(
    "not items & pinned[n] & ~(arrived[n] & ~foreign[n])",
    "a key is dropped only for a transfer whose bytes have all arrived and are those that were pinned",
)
PINNED_TENANT = Promise(
    "not items & pinned[n] & (tenant ^ served[n])", "a key is dropped only of the tenant that was pinned"
)
NOT_GIVEN_UP = Promise(
    "not items or told[n] != KEPT", "no key is dropped for a call that has been told that it is kept"
)
ONE_AT_A_TIME = Promise("owner == IDLE", "one thing is asked at a time")
OWN_STAGING = Promise("staging == n", "an engine writes only into staging memory that is its transfer's")
NOBODY_WAITS = Promise(
    f"not {IN_A_CALL} and owner not in (WAITS, READS, SERVES)", "nobody waits for ever, whatever the engine does"
)
NO_PIN_LEFT = Promise("owner == GONE or not pinned[all]", "every pin is dropped when the engine has ended")
OTHERS_UNTOUCHED = Promise("not rebound & ~elsewhere", "no key of another cache is dropped")


# ---------------------------------------------------------------- the asker


def asker(situation: Situation) -> tuple[Turn, ...]:
    """Who calls. It makes one call after the other, over the link to one owner."""
    listening = "asker not in (BROKEN, GONE)"
    answered = "asker != ASKS or call != n"
    return (
        Turn(
            ASKER,
            "call",
            "asker == IDLE and call == n - 1",
            (Way(sets={"call": "n", "asker": "ASKS"}, sends=(Send("begin", "ASKED"),)),),
            "the number is new; whatever the call before has left behind has another",
            "conversation 3, conversation 4",
            comes=PERHAPS,
        ),
        Turn(
            ASKER,
            "hear_begun",
            listening,
            (
                Way(answered),
                Way("not items", _told("KEPT"), promises=(STILL_BOUND,)),
                *_granted(situation),
            ),
            "late, it changes nothing; in time, it says which items are pinned, or why they are not",
            "conversation 3, conversation 5",
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
            "conversation 9",
            takes="finished",
        ),
        *_gives_up(situation),
    )


def _told(outcome: str, **sets: str) -> dict[str, str]:
    """The call returns."""
    return {"asker": "IDLE", "granted": "0", "told[n]": outcome, **sets}


def _granted(situation: Situation) -> tuple[Way, ...]:
    """What the asker does when items have been pinned for it, or, by an eager push, have been finished with."""
    abandoned = Way("items != ASKED", _told("KEPT"), (Send("abandon"),), (STILL_BOUND,))
    refused = (abandoned,) if situation.all_or_nothing else ()
    says = {"asker": "TELLS", "granted": "items"}
    finish = (Send("finish", "items"),)
    if situation.direction == "push" and situation.travel == "carried":
        return (Way(sets=_told("SUCCEEDED"), promises=(DROPPED, WHOLE)),)
    if situation.travel == "stretches":
        begins = stretches.BEGINS_TO_READ if situation.direction == "pull" else stretches.BEGINS_TO_OFFER
        return (*refused, Way(sets=begins))
    if situation.direction == "push":
        return (*refused, Way(sets=says, sends=finish))
    if situation.travel == "carried":
        return (*refused, Way(sets={**says, "arrived[n]": "items"}, sends=finish))
    return (*refused, Way(sets={"asker": "WAITS", "granted": "items"}))


def _gives_up(situation: Situation) -> tuple[Turn, ...]:
    """At its deadline, and when the session has ended, a call returns, whatever its engine is about."""
    in_this_call = f"call == n and {IN_A_CALL}"
    last_word = "asker == ASKS" if _is_eager(situation) else "asker == TELLS"
    ways = (Way(last_word, _told("UNKNOWN")), Way(sets=_told("KEPT"), promises=(STILL_BOUND,)))
    return (
        Turn(
            ASKER,
            "deadline",
            in_this_call,
            tuple(replace(way, sends=(Send("abandon"),)) for way in ways),
            "the caller gets his answer in time; whoever still pins for him is told that he need not",
            "conversation 4, conversation 9, conversation 12",
        ),
        Turn(
            ASKER,
            "miss_session",
            f"not session and {in_this_call}",
            tuple(replace(way, sets={**way.sets, "asker": "BROKEN"}) for way in ways),
            "no answer can be relied on any more; whoever pins for us notices by himself",
            "conversation 9, conversation 12",
        ),
        Turn(
            ASKER,
            "miss_idle_session",
            "not session and asker == IDLE",
            (Way(sets={"asker": "BROKEN"}),),
            "nothing is asked over a link that is broken",
            "conversation 12",
        ),
    )


def _is_eager(situation: Situation) -> bool:
    return situation.direction == "push" and situation.travel == "carried"


# ---------------------------------------------------------------- the owner


def owner(situation: Situation) -> tuple[Turn, ...]:
    """Who has the caches that are named, and attends to what is asked."""
    attending = "owner not in (BROKEN, GONE)"
    turns = [
        Turn(
            OWNER,
            "hear_begin",
            attending,
            _begins(situation),
            "found, pinned and checked, as a peer on this host would do; nothing else has changed",
            "conversation 5",
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
                        "took[n]": "took[n] | items & pinned[n] & bound",
                    },
                    (Send("finished", "items & pinned[n]"),),
                    (ARRIVED_RIGHT, PINNED_TENANT, NOT_GIVEN_UP),
                ),
                Way(sends=(Send("finished"),)),
            ),
            "every byte is where it belongs, so the keys go, then the pins; what is not served has not succeeded",
            "conversation 3, conversation 6",
            takes="finish",
        ),
        Turn(
            OWNER,
            "hear_abandon",
            attending,
            (_lets_go("serving == n", "IDLE"), Way()),
            "the asker waits for it no more; if it has ended already, there is nothing to do",
            "conversation 4, conversation 10",
            takes="abandon",
        ),
        Turn(
            OWNER,
            "miss_serving_session",
            "not session and owner in (WAITS, READS, SERVES) and serving == n",
            (_lets_go("1", "BROKEN"),),
            "nobody is there to say a last word; what was merely read is held for nobody",
            "conversation 10, conversation 12",
        ),
        Turn(
            OWNER,
            "miss_session_there",
            "not session and owner == IDLE",
            (Way(sets={"owner": "BROKEN"}),),
            "whatever of it is still under way is not taken any more",
            "conversation 12",
        ),
    ]
    if situation.impatience:
        turns.append(
            Turn(
                OWNER,
                "lose_patience",
                "owner in (WAITS, READS, SERVES) and serving == n",
                (_lets_go("1", "IDLE"),),
                "the asker has said how long it will wait; a last word that comes later has no effect",
                "conversation 3, conversation 10",
                comes=PERHAPS,
            )
        )
    return tuple(turns)


def _begins(situation: Situation) -> tuple[Way, ...]:
    """What the owner does when it is asked."""
    refused = Way("not items & bound", sends=(Send("begun"),), promises=(ONE_AT_A_TIME,))
    found = {"pinned[n]": "items & bound", "served[n]": "tenant", "serving": "n"}
    if _is_eager(situation):
        finished = {
            "bound": "bound & ~items",
            "served[n]": "tenant",
            "arrived[n]": "items & bound",
            "took[n]": "items & bound",
        }
        own = (Send("begun", "items & bound"),)
        return (refused, Way(sets=finished, sends=own, promises=(ONE_AT_A_TIME, NOT_GIVEN_UP)))
    if situation.direction == "push" and situation.travel != "stretches":
        return (refused, Way(sets={**found, "owner": "WAITS"}, promises=(ONE_AT_A_TIME,)))
    serves = {**found, "owner": "SERVES"}
    if situation.travel == "stretches":
        serves |= stretches.FIRST_GATHERED if situation.direction == "pull" else {"moved_on": "0"}
    return (refused, Way(sets=serves, sends=(Send("begun", "items & bound"),), promises=(ONE_AT_A_TIME,)))


def _lets_go(when: str, place: str) -> Way:
    """The owner stops serving, and unpins; what its engine may still write is staging memory."""
    return Way(when, {"owner": place, "serving": "0", "pinned[n]": "0"})


# ---------------------------------------------------------------- the reader


def reader(situation: Situation) -> tuple[Turn, ...]:
    """What whoever fetches does with its engine: straight out of the other end's memory, into staging memory."""
    party = situation.reader
    pulls = situation.direction == "pull"
    forgotten = {"read[n]": "NONE", "ahead[n]": "0", "staging": "0"}
    starts = {"read[n]": "UNDER_WAY", "staging": "n"}
    if pulls:
        waiting, mine = "asker == WAITS and call == n", "asker == READS and call == n"
        starts |= {"ahead[n]": "granted", "asker": "READS"}
        whole = Way(sets={**forgotten, "arrived[n]": "granted", "asker": "TELLS"}, sends=(Send("finish", "granted"),))
        failed = Way(sets={**forgotten, **_told("KEPT")}, sends=(Send("abandon"),), promises=(STILL_BOUND,))
    else:
        waiting, mine = "owner == WAITS and serving == n", "owner == READS and serving == n"
        starts |= {"ahead[n]": "pinned[n]", "owner": "READS"}
        whole = Way(
            sets={**forgotten, "arrived[n]": "pinned[n]", "owner": "SERVES"}, sends=(Send("begun", "pinned[n]"),)
        )
        failed = Way(sets={**forgotten, "owner": "IDLE", "serving": "0", "pinned[n]": "0"}, sends=(Send("begun"),))
    said = "the last word" if pulls else "that everything has been read, and the last word is waited for"
    return (
        Turn(
            party,
            "start_reading",
            f"{waiting} and not staging",
            (Way(sets=starts),),
            "into staging memory that is nobody else's; an earlier reading may have it yet",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            party,
            "everything_arrived",
            f"{mine} and read[n] == ARRIVED",
            (whole,),
            f"moved on to its target, by hand; then {said}",
            "conversation 2, conversation 6" if pulls else "conversation 2, conversation 7",
        ),
        Turn(
            party,
            "reading_failed",
            f"{mine} and read[n] == FAILED",
            (failed,),
            "the engine has given up, so nothing has succeeded, and the other end is told so",
            "conversation 4, conversation 9",
        ),
        Turn(
            party,
            "let_go",
            f"{party} != GONE and not ({mine}) and read[n] in (ARRIVED, FAILED)",
            (Way(sets=forgotten),),
            "the transfer has ended before; now nothing of it is written any more",
            "conversation 2",
        ),
    )


# ---------------------------------------------------------------- the engine and the world


def engine(situation: Situation) -> tuple[Turn, ...]:
    """What moves the bytes: some time, or never. It fails whenever it likes."""
    pulls = situation.direction == "pull"
    reading = "asker != GONE" if pulls else "owner != GONE"
    source_there = "owner != GONE" if pulls else "asker != GONE"
    held = "pinned[n] & i" if pulls else f"i if call == n and {IN_A_CALL} else 0"
    moved = {"ahead[n]": "ahead[n] & ~i", "foreign[n]": f"foreign[n] | i & ~({held})"}
    return (
        Turn(
            ENGINE,
            "move",
            f"{reading} and {source_there} and read[n] == UNDER_WAY and ahead[n] & i",
            (Way(sets=moved, promises=(OWN_STAGING,)),),
            "whatever stands in the source by now",
            "conversation 1, conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "arrive",
            f"{reading} and read[n] == UNDER_WAY and not ahead[n]",
            (Way(sets={"read[n]": "ARRIVED"}),),
            "everything has been moved",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "fail",
            f"{reading} and read[n] == UNDER_WAY",
            (Way(sets={"read[n]": "FAILED", "ahead[n]": "0"}),),
            "the other end is gone, or cannot be reached; nothing more is written",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
    )


def world(situation: Situation) -> tuple[Turn, ...]:
    """What happens whether anybody likes it or not."""
    turns = [
        Turn(
            WORLD,
            "end_session",
            "session",
            (Way(sets={"session": "0"}),),
            "a cable, a crash on the way, either end's wish",
            "conversation 12",
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
                "conversation 12",
                comes=PERHAPS,
            )
            for party in BOTH
        ]
    return tuple(turns)


# ---------------------------------------------------------------- the whole


def conversation(situation: Situation) -> Conversation:
    """The conversation, as far as a situation lets it go."""
    by_engine = (*reader(situation), *engine(situation)) if situation.travel == "read" else ()
    in_stretches = stretches.turns(situation) if situation.travel == "stretches" else ()
    staging = "not (into_first or into_second)" if situation.travel == "stretches" else "not staging"
    return Conversation(
        variables(situation),
        {**PLACES, **READINGS, **OUTCOMES, **stretches.CONSTANTS, "ASKED": (1 << situation.items) - 1},
        (
            *asker(situation),
            *owner(situation),
            *by_engine,
            *in_stretches,
            *world(situation),
        ),
        (OTHERS_UNTOUCHED,),
        (NO_PIN_LEFT, Promise(f"{situation.reader} == GONE or {staging}", "staging memory comes back")),
        (NOBODY_WAITS,),
        situation,
    )
