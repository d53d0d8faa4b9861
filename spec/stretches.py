"""How staged bytes travel: stretch by stretch, through two halves of staging memory at each end.

A refinement of the reading in :mod:`.conversation`, whose rules it cites, for one item of three stretches. The first
and the third go through one half, the second through the other. Of a pull the owner gathers a stretch when it is asked
for, the first with the beginning; of a push the pusher gathers it and offers it. Meanwhile the stretch before it is
read, and the one before that moved on by hand.
"""

from __future__ import annotations

from .steps import Promise
from .turns import (
    ASKER,
    ENGINE,
    OWNER,
    PERHAPS,
    WITH_THE_ENGINE,
    Send,
    Situation,
    Turn,
    Variable,
    Way,
)

STRETCHES = 3

#: Stretches are bits too: those that go through the first half, and all.
CONSTANTS = {"FIRST_HALF": 0b101, "ALL_STRETCHES": (1 << STRETCHES) - 1}

#: How one stretch of one transfer is written.
CODE = "n << 3 | k"

OWN_HALF = Promise(
    f"(into_first if k & FIRST_HALF else into_second) == ({CODE})",
    "an engine writes only into staging memory that is its transfer's",
)

_HALVES = ("first", "second")


def variables(situation: Situation) -> tuple[Variable, ...]:
    """What is kept besides."""
    reader = situation.reader
    source = OWNER if reader == ASKER else ASKER
    return (
        Variable("out_of_first", (source,), "the stretch in the first half of the source's staging memory"),
        Variable("out_of_second", (source,), "the stretch in the second"),
        Variable("into_first", (reader, ENGINE), "the stretch that is read into the first half of the reader's"),
        Variable("into_second", (reader, ENGINE), "the stretch that is read into the second"),
        Variable("asked", (ASKER,), "the stretches that it has asked for, or offered"),
        Variable("answered", (ASKER,), "those of which it has had the answer"),
        Variable("prepared", (ASKER,), "those that a pusher has gathered"),
        Variable("taking", (OWNER,), "the stretch that it has been offered"),
        Variable("moved_on", (reader,), "the stretches whose bytes are in their target"),
        Variable("under_way", (reader, ENGINE), "the stretches that are being read", each=True),
        Variable("come", (reader, ENGINE), "the stretches that have been read", each=True),
        Variable("lost", (reader, ENGINE), "the stretches whose reading has failed", each=True),
    )


def _half(variable: str, value: str, of: str) -> dict[str, str]:
    """Set the half that a stretch goes through, and leave the other."""
    first, second = (f"{variable}_{half}" for half in _HALVES)
    return {
        first: f"{value} if {of} & FIRST_HALF else {first}",
        second: f"{second} if {of} & FIRST_HALF else {value}",
    }


def _ended(**sets: str) -> dict[str, str]:
    """The reading of stretch ``k`` is over: its half is free."""
    return {"come[n]": "come[n] & ~k", "lost[n]": "lost[n] & ~k", **_half("into", "0", "k"), **sets}


BEGINS_TO_READ = {"asker": "READS", "granted": "items", "asked": "1", "answered": "1", "moved_on": "0"}
BEGINS_TO_OFFER = {"asker": "READS", "granted": "items", "asked": "0", "answered": "0", "prepared": "0"}
GIVEN_UP = {"asker": "IDLE", "granted": "0", "told[n]": "KEPT"}
FIRST_GATHERED = {"out_of_first": "n << 3 | 1"}


def turns(situation: Situation) -> tuple[Turn, ...]:
    """The turns between the beginning and the last word."""
    return (*(_of_a_pull() if situation.direction == "pull" else _of_a_push()), *_engine(situation), _others(situation))


def _of_a_pull() -> tuple[Turn, ...]:
    reads = "asker == READS and call == n"
    whole = {"asker": "TELLS", "arrived[n]": "1"}
    return (
        Turn(
            ASKER,
            "ask_for_stretch",
            f"{reads} and not asked & k and answered & k >> 1 and (k < 4 or moved_on & k >> 2)",
            (Way(sets={"asked": "asked | k"}, sends=(Send("gather", "k"),)),),
            "one is read while the next is gathered; into a half whose bytes have been moved on, not before",
            "conversation 4, conversation 11",
        ),
        Turn(
            ASKER,
            "hear_gathered",
            "asker not in (BROKEN, GONE)",
            (
                Way(f"not ({reads})"),
                Way("not items", GIVEN_UP, (Send("abandon"),)),
                Way(sets={"answered": "answered | items"}),
            ),
            "late, it changes nothing; in time, the stretch can be read, or the transfer is served no more",
            "conversation 3",
            takes="gathered",
        ),
        Turn(
            ASKER,
            "start_reading",
            f"{reads} and answered & k and not (under_way[n] | come[n] | lost[n] | moved_on) & k"
            " and not (into_first if k & FIRST_HALF else into_second)",
            (Way(sets={"under_way[n]": "under_way[n] | k", "ahead[n]": "ahead[n] | k", **_half("into", CODE, "k")}),),
            "into a half that no reading has, not even one of an earlier transfer",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ASKER,
            "stretch_arrived",
            f"{reads} and come[n] & k",
            (
                Way("(moved_on | k) == ALL_STRETCHES", _ended(**whole), (Send("finish", "granted"),)),
                Way(sets=_ended(moved_on="moved_on | k")),
            ),
            "moved on to its target, while the transfer stands; after the last stretch the last word",
            "conversation 2, conversation 6",
        ),
        Turn(
            ASKER,
            "stretch_lost",
            f"{reads} and lost[n] & k",
            (Way(sets=GIVEN_UP, sends=(Send("abandon"),)),),
            "the engine has given up, so nothing has succeeded, and the owner is told so",
            "conversation 4, conversation 9",
        ),
        _let_go(ASKER, reads),
        Turn(
            OWNER,
            "hear_gather",
            "owner not in (BROKEN, GONE)",
            (
                Way(
                    "owner == SERVES and serving == n",
                    _half("out_of", "n << 3 | items", "items"),
                    (Send("gathered", "items"),),
                ),
                Way(sends=(Send("gathered"),)),
            ),
            "who asks for a stretch has read the one that was in that half",
            "conversation 11",
            takes="gather",
        ),
    )


def _of_a_push() -> tuple[Turn, ...]:
    offers, reads = "asker == READS and call == n", "owner == READS and serving == n"
    every = "(moved_on | k) == ALL_STRETCHES"
    taken = _ended(owner="SERVES", moved_on="moved_on | k", taking="0")
    return (
        Turn(
            ASKER,
            "gather_stretch",
            f"{offers} and not prepared & k and (k == 1 or prepared & k >> 1) and (k < 4 or answered & k >> 2)",
            (Way(sets={"prepared": "prepared | k", **_half("out_of", CODE, "k")}),),
            "one is gathered while the one before is read; into a half that has been taken, not before",
            "conversation 11",
        ),
        Turn(
            ASKER,
            "offer_stretch",
            f"{offers} and prepared & k and not asked & k and asked == answered",
            (Way(sets={"asked": "asked | k"}, sends=(Send("take", "k"),)),),
            "one thing is asked at a time",
            "conversation 4",
        ),
        Turn(
            ASKER,
            "hear_taken",
            "asker not in (BROKEN, GONE)",
            (
                Way(f"not ({offers})"),
                Way("not items", GIVEN_UP, (Send("abandon"),)),
                Way("(answered | items) == ALL_STRETCHES", {"asker": "TELLS"}, (Send("finish", "granted"),)),
                Way(sets={"answered": "answered | items"}),
            ),
            "late, it changes nothing; in time, nobody reads that half any more; after the last stretch the last word",
            "conversation 3, conversation 7",
            takes="taken",
        ),
        Turn(
            OWNER,
            "hear_take",
            "owner not in (BROKEN, GONE)",
            (
                Way("owner == SERVES and serving == n", {"owner": "WAITS", "taking": "items"}),
                Way(sends=(Send("taken"),)),
            ),
            "it waits in the pusher's staging memory until the answer",
            "conversation 11",
            takes="take",
        ),
        Turn(
            OWNER,
            "start_reading",
            "owner == WAITS and serving == n and taking == k and not (into_first if k & FIRST_HALF else into_second)",
            (Way(sets={"owner": "READS", "under_way[n]": "k", "ahead[n]": "k", **_half("into", CODE, "k")}),),
            "into a half that no reading has, not even one of an earlier transfer",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            OWNER,
            "stretch_arrived",
            f"{reads} and come[n] & k",
            (
                Way(every, {**taken, "arrived[n]": "1"}, (Send("taken", "k"),)),
                Way(sets=taken, sends=(Send("taken", "k"),)),
            ),
            "moved on to its target, while the transfer stands; only the last word says that it was the right thing",
            "conversation 2, conversation 7",
        ),
        Turn(
            OWNER,
            "stretch_lost",
            f"{reads} and lost[n] & k",
            (Way(sets=_ended(owner="SERVES", taking="0"), sends=(Send("taken"),)),),
            "the engine has given up, and the pusher is told so",
            "conversation 4, conversation 9",
        ),
        _let_go(OWNER, reads),
    )


def _let_go(party: str, reads: str) -> Turn:
    return Turn(
        party,
        "let_go",
        f"{party} != GONE and not ({reads}) and (come[n] | lost[n]) & k",
        (Way(sets=_ended()),),
        "the transfer has ended before; now nothing of this stretch is written any more",
        "conversation 2",
    )


def _engine(situation: Situation) -> tuple[Turn, ...]:
    reading, source = (ASKER, OWNER) if situation.direction == "pull" else (OWNER, ASKER)
    there = f"{reading} != GONE and under_way[n] & k"
    foreign = f"foreign[n] | ((out_of_first if k & FIRST_HALF else out_of_second) != ({CODE}))"
    return (
        Turn(
            ENGINE,
            "move",
            f"{there} and {source} != GONE and ahead[n] & k",
            (Way(sets={"ahead[n]": "ahead[n] & ~k", "foreign[n]": foreign}, promises=(OWN_HALF,)),),
            "whatever stands in that half by now",
            "conversation 1, conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "arrive",
            f"{there} and not ahead[n] & k",
            (Way(sets={"under_way[n]": "under_way[n] & ~k", "come[n]": "come[n] | k"}),),
            "everything has been moved",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
        Turn(
            ENGINE,
            "fail",
            there,
            (
                Way(
                    sets={
                        "under_way[n]": "under_way[n] & ~k",
                        "ahead[n]": "ahead[n] & ~k",
                        "lost[n]": "lost[n] | k",
                    }
                ),
            ),
            "the other end is gone, or cannot be reached; nothing more is written",
            "conversation 2",
            comes=WITH_THE_ENGINE,
        ),
    )


def _others(situation: Situation) -> Turn:
    """Who has nothing to do for a transfer uses his staging memory for others."""
    source = OWNER if situation.direction == "pull" else ASKER
    return Turn(
        source,
        "use_staging_for_another",
        f"{source} == IDLE and (out_of_first or out_of_second)",
        (Way(sets={"out_of_first": "0", "out_of_second": "0"}),),
        "what is merely read is held for nobody whose transfer has ended",
        "conversation 10",
        comes=PERHAPS,
    )
