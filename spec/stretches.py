"""How bytes are written: stretch by stretch, through the parts of the receiver's staging memory by turns.

What of :mod:`.conversation`, whose rules it cites, comes between the beginning and the last word. A stretch holds
something of every item. Here there are two parts: of three stretches the first and the third go through one, the second
through the other; while one is under way, the one before it is copied on.
"""

from __future__ import annotations

from collections.abc import Mapping

from .steps import Promise
from .turns import (
    ASKER,
    ENGINE,
    OWNER,
    WITH_THE_ENGINE,
    Send,
    Situation,
    Turn,
    Variable,
    Way,
)

PARTS = 2

#: The stretches, which are bits too, that go through the first part.
FIRST_PART = 0b101

#: Whose the receiver's staging memory is: that of the conversation, of another, or nobody's for good.
AREAS = {"OURS": 0, "GIVEN_BACK": 1, "GIVEN_UP": 2}

#: How one stretch of one transfer is written.
CODE = "n << 3 | k"

STILL_BOUND = Promise("not took[n]", "whoever is told of a failure before his last word finds the key as it was")
OWN_AREA = Promise(
    "area != GIVEN_BACK", "staging memory that was given to another conversation is never written to by the former one"
)
RIGHT_BYTES = Promise(
    "(holds_first if items & FIRST_PART else holds_second) == (n << 3 | items) << 1",
    "what is copied on into a cache are the bytes that were pinned",
)
IN_ITS_CALL = Promise(
    "call == n and ASKS <= asker <= TELLS", "no byte arrives in the target of a call that has returned"
)
PINNED_TARGET = Promise("pinned[n]", "no byte is written to memory that is not pinned for it")

#: What the writer goes by, of a transfer that stands.
WRITER_STANDS = {"pull": "owner == SERVES and serving == n", "push": "asker == CARRIES and call == n"}
RECEIVER_STANDS = {"pull": "asker == CARRIES and call == n", "push": "owner == SERVES and serving == n"}

NOTHING_STARTED = {"started": "0", "said": "0", "copied": "0"}


def constants(situation: Situation) -> Mapping[str, int]:
    """What the turns call by name."""
    return {**AREAS, "PARTS": PARTS, "FIRST_PART": FIRST_PART, "ALL_STRETCHES": (1 << situation.stretches) - 1}


def variables(situation: Situation) -> tuple[Variable, ...]:
    """What is kept besides."""
    writer, receiver = situation.writer, situation.receiver
    gathered = (
        Variable("out_of_first", (writer, ENGINE), "the stretch that was gathered into the writer's first part"),
        Variable("out_of_second", (writer, ENGINE), "the one in its second part"),
    )
    late = (Variable("late", (ASKER,), "whether a pull was given up for which something may be written yet"),)
    return (
        Variable("started", (writer,), "the stretches that its engine has been given"),
        Variable("said", (writer,), "those of which it has said that they are there"),
        Variable("copied", (writer,), "those of which it has heard that they have been copied on"),
        *(gathered if situation.gathered else ()),
        Variable("moved_on", (receiver,), "the stretches that it has copied on"),
        Variable("expected", (receiver,), "whether something may be under way into its staging memory"),
        *(late if situation.direction == "pull" else ()),
        Variable("area", (receiver,), "whose its staging memory is"),
        Variable("under_way", (writer, ENGINE), "the stretches that the engine has not been seen to end", each=True),
        Variable("come", (writer, ENGINE), "those of which it says that all has arrived", each=True),
        Variable("lost", (writer, ENGINE), "those of which it says that it has failed", each=True),
        Variable("ahead", (writer, ENGINE), "the stretches whose bytes may land yet", each=True),
        Variable("holds_first", (), "what is in the receiver's first part", ghost=True),
        Variable("holds_second", (), "what is in the second", ghost=True),
    )


def _part(variable: str, value: str) -> dict[str, str]:
    """Set the part that stretch ``k`` goes through, and leave the other."""
    first, second = f"{variable}_first", f"{variable}_second"
    return {first: f"{value} if k & FIRST_PART else {first}", second: f"{second} if k & FIRST_PART else {value}"}


#: What the writer notes when it sees that the engine has ended a stretch.
_ENDED = {"under_way[n]": "under_way[n] & ~k", "come[n]": "come[n] & ~k", "lost[n]": "lost[n] & ~k"}


def turns(situation: Situation) -> tuple[Turn, ...]:
    """The turns between the beginning and the last word."""
    pulls = situation.direction == "pull"
    return (*_writer(situation), _copying() if pulls else _copying_there(), *_engine(situation))


def _writer(situation: Situation) -> tuple[Turn, ...]:
    party, stands = situation.writer, WRITER_STANDS[situation.direction]
    pulls = situation.direction == "pull"
    gathers = _part("out_of", CODE) if situation.gathered else {}
    gives_up = (
        Way(sets={**_ENDED, "started": "ALL_STRETCHES", "said": "ALL_STRETCHES"}, sends=(Send("written"),))
        if pulls
        else Way(
            sets={**_ENDED, "asker": "IDLE", "granted": "0", "told[n]": "KEPT"},
            sends=(Send("abandon"),),
            promises=(STILL_BOUND,),
        )
    )
    hears = Turn(
        party,
        "hear_copied",
        f"{party} not in (BROKEN, GONE)",
        (Way(f"not ({stands})"), Way(sets={"copied": "copied | items"})),
        "late, it changes nothing; in time, its part can have another stretch",
        "conversation 5, conversation 12",
        takes="copied",
    )
    last_word = Turn(
        ASKER,
        "say_last_word",
        f"{stands} and said == ALL_STRETCHES",
        (Way(sets={"asker": "TELLS"}, sends=(Send("finish", "granted"),)),),
        "every stretch is said to be there, which the last word cannot overtake",
        "conversation 8",
    )
    return (
        Turn(
            party,
            "start_stretch",
            f"{stands} and not started & k and (k == 1 or started & k >> 1) and (k < 1 << PARTS or copied & k >> PARTS)"
            " and not under_way[others]",
            (
                Way(
                    sets={
                        "started": "started | k",
                        "under_way[n]": "under_way[n] | k",
                        "ahead[n]": "ahead[n] | k",
                        **gathers,
                    }
                ),
            ),
            "into a part that has been copied on, and when the engine has ended whatever was started for others before",
            "conversation 4, conversation 12",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            party,
            "stretch_is_there",
            f"{stands} and come[n] & k and not said & k and (k == 1 or said & k >> 1)",
            (Way(sets={**_ENDED, "said": "said | k"}, sends=(Send("written", "k"),)),),
            "the engine has ended it, and not before",
            "conversation 3",
        ),
        Turn(
            party,
            "stretch_failed",
            f"{stands} and lost[n] & k and not said & k",
            (gives_up,),
            "the engine has given up, so nothing has succeeded, and the other end is told so",
            "conversation 6, conversation 10",
        ),
        Turn(
            party,
            "look_after",
            f"{party} not in (BROKEN, GONE) and (come[n] | lost[n]) & k and (not ({stands}) or said & k)",
            (Way(sets=_ENDED),),
            "nobody waits for it any more, but what comes next waits for its end",
            "conversation 4",
        ),
        *(() if pulls else (last_word,)),
        *((hears,) if _says_copied(situation) else ()),
    )


def _says_copied(situation: Situation) -> bool:
    """Of a pull, nobody says so of the last stretch in each part: nothing is to follow it there."""
    return situation.direction == "push" or situation.stretches > PARTS


def _copying() -> Turn:
    kept = (RIGHT_BYTES, IN_ITS_CALL)
    return Turn(
        ASKER,
        "hear_written",
        "asker not in (BROKEN, GONE)",
        (
            Way(f"not ({RECEIVER_STANDS['pull']})"),
            Way(
                "not items",
                {"asker": "IDLE", "granted": "0", "told[n]": "KEPT", "late": "1"},
                (Send("abandon"),),
                (STILL_BOUND,),
            ),
            Way(
                "(moved_on | items) == ALL_STRETCHES",
                {
                    "asker": "TELLS",
                    "moved_on": "moved_on | items",
                    "expected": "0",
                    "late": "0",
                    "arrived[n]": "granted",
                },
                (Send("finish", "granted"),),
                kept,
            ),
            Way("items << PARTS & ALL_STRETCHES", {"moved_on": "moved_on | items"}, (Send("copied", "items"),), kept),
            Way(sets={"moved_on": "moved_on | items"}, promises=kept),
        ),
        "late, it changes nothing; in time, it is copied on to its target; after the last stretch the last word",
        "conversation 2, conversation 3, conversation 8",
        takes="written",
    )


def _copying_there() -> Turn:
    kept = (RIGHT_BYTES, PINNED_TARGET)
    moved, copied = {"moved_on": "moved_on | items"}, (Send("copied", "items"),)
    return Turn(
        OWNER,
        "hear_written",
        "owner not in (BROKEN, GONE)",
        (
            Way(f"not ({RECEIVER_STANDS['push']})"),
            Way("(moved_on | items) == ALL_STRETCHES", {**moved, "arrived[n]": "pinned[n]"}, copied, kept),
            Way(sets=moved, sends=copied, promises=kept),
        ),
        "late, it changes nothing; in time, it is copied on to its target",
        "conversation 2, conversation 3",
        takes="written",
    )


def _engine(situation: Situation) -> tuple[Turn, ...]:
    writes = f"{situation.writer} != GONE and under_way[n] & k and not (come[n] | lost[n]) & k"
    held = "pinned[n]" if situation.direction == "pull" else "(call == n and ASKS <= asker <= TELLS)"
    straight = f"(({CODE}) << 1 | (not {held}))"
    gathered = "((out_of_first if k & FIRST_PART else out_of_second) << 1)"
    return (
        Turn(
            ENGINE,
            "land",
            f"{situation.receiver} != GONE and ahead[n] & k",
            (
                Way(
                    sets={"ahead[n]": "ahead[n] & ~k", **_part("holds", gathered if situation.gathered else straight)},
                    promises=(OWN_AREA,),
                ),
            ),
            "whatever stands in the source by now; what is on the way lands also where the writer is gone",
            "conversation 1, conversation 4",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "arrive",
            f"{writes} and not ahead[n] & k",
            (Way(sets={"come[n]": "come[n] | k"}),),
            "everything is in the receiver's memory",
            "conversation 3",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "fail",
            writes,
            (Way(sets={"lost[n]": "lost[n] | k", "ahead[n]": "ahead[n] & ~k"}),),
            "the other end is gone, or cannot be reached; nothing more of it is written",
            "conversation 4",
            comes=WITH_THE_ENGINE,
        ),
    )
