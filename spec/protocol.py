"""The protocol of one-sided transfers, as data, at the grain of single atomic operations.

A linked peer transfers through the owner's mapped arena, without the owner's CPU. This file says by which operations,
on which words, in which order, and why in that order. :mod:`.interleavings` explores every interleaving of it,
:mod:`.promela` writes it as a model for SPIN; both read nothing else. What a cache's references *mean* stands in
:mod:`.lifecycle`; the owner's decisions below are taken from there (:func:`decision`).

``protocol n`` is a rule of this file, ``rule n`` one of :mod:`.lifecycle`, ``design n`` a step of "A pull" in
``docs/architecture.md``.

The rules
---------
 1. References are bits that are only ever cleared while the tenant lives, in words that carry its generation. Whoever
    clears a bit has taken that reference, everyone else did nothing.
 2. A peer sets its pin, *then* reads the gate. The owner closes the gate, *then* reads the pins. One sees the other.
 3. A peer believes nothing that it found before its pin: gate, generation and key bit are read again after it.
 4. A key's bit is cleared after the copy has ended, a tensor's bit before the key's: a crash in between loses no data.
 5. Whoever clears the last tensor bit looks *afterwards* whether any is left; so of two the later one sees none.
 6. Whoever clears a pin reads the gate *afterwards*: if it is closed the owner may be waiting, and is told.
 7. The owner is told by a mark in each level of a bitmap, the lowest level first. It clears a mark above when it has
    seen nothing below, and looks below once more *afterwards*.
 8. Whoever dies leaves at most his pin, keys that want finishing and a mark half made: dismissing him clears the one,
    finishes the others, and looks at every slot whether it was marked or not.
 9. Memory goes back after the gate was closed and both kinds of pin were then read as none. The generation advances
    before anybody can be given that memory.
10. Everything a peer may read of a tenant is written before the gate opens.
11. A peer reads the generation once more after its copy, and discards what it copied if it has advanced. So one that
    stands still in a *read* may be evicted though it lives: its pins as a reader count no more, and memory goes back
    under them. Never one that writes: who writes sets his pin in a word of its own, which counts as long as he lives.
12. Whose link was lost, or dropped by force, is evicted, and nobody else: a reader who is only slow keeps what he pins,
    and where a link is dropped in good order the transfers finish. He stays evicted until he has died, or has promised
    to transfer no more; only then is his bit given to another. To transfer again he must link again, with another bit.
13. An evicted reader finds nothing changed but the pages when he goes on. Slot, record and reference words of the
    tenant stay as they are, in *quarantine*, until he clears his pin, which he tells by a mark as anybody does, or is
    dismissed.
14. Transfers of one call that go together share the one pin of their peer on a slot: the first sets it, whoever comes
    later finds it set and looks at the gate and at his own key again, and it is cleared when the last has dropped its
    key. No key is dropped before everything has been copied; who is refused before leaves every key as it was.
15. The owner takes a key whose lease has ended only after a compare-and-swap of the lease's word has found there the
    end that it saw, and has left the lease *over*. So an end that was put off before is seen, and who comes later is
    told.
16. A peer renews a lease under a pin, confirmed as for a transfer, by a compare-and-swap that only ever puts an end
    off, and never that of a lease that is over. It writes nothing else, so it never brings a key back. It reads the
    generation once more before it says that it has renewed.

What is modelled
----------------
One slot, whose tenant has two keys. Key 1 is pulled whole; key 2 has two tensors, pulled one by one or both at once;
or both keys are pulled by one call, all or nothing. Key 1 may have a lease.
A push differs from a pull in its copy's direction and in the word of its pin; one to an address drops no key. Every
operation is sequentially consistent in the core, so interleavings are all there is. Three things are left out, since
nobody can tell: loads by the owner of words that only it writes; a load that is repeated with nothing in between; the
tensor bits of key 1, which nobody clears. Links are not modelled: a peer may be evicted whenever it has a pin, and
goes on to transfer as if it knew of nothing. What lies outside the slot (key records, words of references and
leases) is touched by nobody unless it is the tenant's or in quarantine, as the steps promise; so it may be another
slot's later. A search of the index yields an entry's generation, which may be stale at once; a torn entry is one more
wrong hint, which rule 3 discards. An address leads to a slot, and its gate yields the generation; whether the tenant
has the address is seen in its record, after the pin. No clock is modelled: a lease has two ends, the later one once it
was renewed, and whenever the owner looks at leases either may have come. Threads of the owner's process that renew are
left out: they do what a peer does, with a pin among the local ones.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from .lifecycle import CACHE
from .machine import guard_name
from .steps import (
    IDLE,
    Call,
    CompareAndSwap,
    Configuration,
    FetchAdd,
    FetchClear,
    FetchOr,
    Go,
    Load,
    Promise,
    Protocol,
    Role,
    Step,
    Store,
    Word,
)

PEER_BITS = (1, 2)
VIEW_BIT = 4
RENEWED, OVER = 2, 3


def decision(event: str, effect: str | None = None, **facts: str) -> str:
    """When the cache's machine takes a transition by ``event`` (with ``effect``), as an expression.

    ``facts`` gives an expression for each fact that is open here; the others are settled by where the question is
    asked.
    """
    ways = []
    for rule in CACHE.transitions:
        if rule.event != event or (effect is not None and effect not in rule.effects):
            continue
        source = next(state for state in CACHE.states if state.name == rule.source)
        terms = dict(source.signature) | {guard_name(term): not term.startswith("not ") for term in rule.when}
        chosen = [facts[fact] if holds else f"not ({facts[fact]})" for fact, holds in terms.items() if fact in facts]
        ways.append(" and ".join(f"({term})" for term in chosen))
    return ast.unparse(ast.parse(" or ".join(f"({way})" for way in dict.fromkeys(ways)), mode="eval"))


# ---------------------------------------------------------------- words

OWNER_NAME, PEER_NAME, VIEW_NAME = "owner", "peer", "view"


def words(levels: int) -> tuple[Word, ...]:
    """The words of the slot. A peer may read all of them, and maps writable only those that it writes."""
    return (
        Word("gate", "owner", "generation << 1 | open", 2),
        Word("held", "owner", "the id reference"),
        Word("entry_1", "owner", "generation in the index entry of key 1; 0: it has none"),
        Word("entry_2", "owner", "generation in the index entry of key 2; 0: it has none"),
        Word("entry_id", "owner", "generation in the index entry of the cache's id; 0: it has none"),
        Word("memory", "owner", "generation whose tenant has the pages; 0: they are in the pool"),
        Word("evicted", "owner", "a bit for each peer whose pins as a reader count no more"),
        Word("quarantined", "owner", "the pages went back under an evicted reader's pin; the rest stays the tenant's"),
        Word("keys", "", "generation << 2 | a bit for each bound key"),
        Word("tensors", "", "generation << 2 | a bit for each tensor that key 2 has still to give"),
        Word("lease", "", "generation << 2 | when the lease of key 1 ends: 1 first, 2 renewed; 3: it is over"),
        Word("pins", "", "a bit for each peer that reads"),
        Word("writer_pins", "", "a bit for each peer that writes"),
        Word("local_pins", "", "how many views and transfers of its own the owner's process has"),
        *(Word(f"released_{level}", "", f"mark of level {level}: the owner has to look") for level in range(levels)),
        Word("crashed", "", "the peers whose death the kernel can tell the owner", ghost=True),
        Word("confirmed", "", "the readers, and the view (4), between a confirmed pin and its end", ghost=True),
        Word("writing", "", "the writers between a confirmed pin and its end", ghost=True),
        Word("delivered", "", "tensors 1, 2 of key 2, and key 1 (4), that were transferred completely", ghost=True),
        Word("dropped", "", "keys that this tenant has lost", ghost=True),
        Word("relied", "", "the end until which somebody was told that key 1 stays", ghost=True),
    )


# ---------------------------------------------------------------- the owner

KEYS_REMAIN = "entry_1 or entry_2"
ALL_DELIVERED = "(delivered & 4) == 4 if key == 1 else (delivered & 3) == 3"
DROPPED_ONCE = Promise("(dropped & key) == 0", "a key reference is dropped once")
COMPLETED = Promise(ALL_DELIVERED, "a key is consumed only when all its tensors were transferred completely")


def owner(configuration: Configuration) -> Role:
    """The one who allocates, closes and frees. It does one call at a time."""
    top = configuration.levels - 1
    calls = [
        Call("allocate", "take_memory", f"not memory and not quarantined and gate >> 1 <= {configuration.generations}"),
        Call("deallocate", "notice", "held", {"dropping": "1"}),
        Call("reap", f"look_{top}", f"released_{top}", timed=True),
    ]
    if configuration.repeats:
        calls.append(Call("deallocate_again", "notice", "memory and not held"))
    if configuration.removals:
        calls += [Call(f"remove_key_{key}", "find_bound", f"entry_{key}", {"key": str(key)}) for key in (1, 2)]
    if configuration.leases:
        calls += [Call(f"expire_{now}", "look_for_leased", "entry_1", {"now": str(now)}) for now in (1, RENEWED)]
    if configuration.crashes:
        first = "forget_eviction" if configuration.evictions else "clear_pins"
        calls += [
            Call(f"dismiss_{bit}", first, f"crashed & {bit}", {"leaver": str(bit)}, timed=True) for bit in PEER_BITS
        ]
    if configuration.evictions:
        calls += [
            Call(f"evict_{bit}", "evict", f"(pins | writer_pins) & ~evicted & {bit}", {"leaver": str(bit)})
            for bit in configuration.evictions
        ]
    pushes, evictions = _pushes(configuration), bool(configuration.evictions)
    steps = (
        *_allocate(configuration.leases),
        *_settle(pushes, evictions),
        *_evict(),
        *_remove_key(),
        *_expire(),
        *_dismiss(pushes, evictions),
        *_take_released(configuration.levels, evictions),
    )
    registers = ("seen", "key", "leaver", "dropping", *(("now",) if configuration.leases else ()))
    return Role(OWNER_NAME, registers, tuple(calls), _reachable(calls, steps))


def _allocate(leases: bool) -> tuple[Step, ...]:
    """A tenant is written while the gate is closed; late peers may still set and clear a pin meanwhile."""
    written = "written before the gate opens"
    late = ("swap_key", "swap_tensors")
    generation = "gate >> 1"

    def store(name: str, word: str, value: str, to: str, reason: str, clause: str, *pairs: str, **sets: str) -> Step:
        return Step(name, Store(word, value), (Go(to, sets=sets),), reason, clause, pairs)

    return (
        store("take_memory", "memory", generation, "write_keys", written, "seed §1", delivered="0", dropped="0",
              relied="0"),
        store("write_keys", "keys", f"({generation}) << 2", "write_tensors",
              "the new generation makes every late compare-and-swap fail", "protocol 1", *late),
        store("write_tensors", "tensors", f"({generation}) << 2 | 3", "write_lease" if leases else "index_key_1",
              written, "api §3.4", *late),
        store("write_lease", "lease", f"({generation}) << 2 | 1", "index_key_1", written, "rule 15", "swap_renewed"),
        store("index_key_1", "entry_1", generation, "bind_key_1", written, "seed §9", "find_key_1"),
        store("bind_key_1", "keys", f"({generation}) << 2 | 1", "index_key_2", written, "seed §9", *late),
        store("index_key_2", "entry_2", generation, "bind_key_2", written, "seed §9", "find_key_2"),
        store("bind_key_2", "keys", f"({generation}) << 2 | 3", "index_id", written, "seed §9", *late),
        store("index_id", "entry_id", generation, "hold", written, "seed §1", "find_id"),
        store("hold", "held", "1", "open_gate", written, "seed §1", "read_held"),
        store("open_gate", "gate", "gate | 1", IDLE, "from here on a pin can be confirmed", "protocol 10",
              "read_gate"),
    )  # fmt: skip


def _settle(pushes: bool, evictions: bool) -> tuple[Step, ...]:
    """Notice what peers have dropped, close the slot when nothing refers to it, free it when nothing pins it."""
    closes = decision("drop_key", "close_slot", id="held", keys_remain=KEYS_REMAIN)
    closes_with_id = decision("drop_id", "close_slot", keys=KEYS_REMAIN)
    frees = decision("settle", "return_memory", id="held", keys=KEYS_REMAIN)
    noticed = (Go("forget_id", "dropping"), Go("close_gate", closes), Go(IDLE))
    return (
        Step(
            "notice",
            Load("keys"),
            (
                Go("unindex_1", "entry_1 and not found & 1", {"seen": "found"}),
                Go("unindex_2", "entry_2 and not found & 2", {"seen": "found"}),
                Go("forget_id", "dropping"),
                Go("read_local_pins", frees),
                Go(IDLE),
            ),
            "what a peer drops later than this it marks later than this",
            "rule 4",
            ("swap_key",),
        ),
        Step(
            "unindex_1",
            Store("entry_1", "0"),
            (Go("unindex_2", "entry_2 and not seen & 2"), *noticed),
            "a key that has gone is found no more",
            "seed §3",
            ("find_key_1",),
        ),
        Step(
            "unindex_2",
            Store("entry_2", "0"),
            noticed,
            "a key that has gone is found no more",
            "seed §3",
            ("find_key_2",),
        ),
        Step(
            "forget_id",
            Store("held", "0"),
            (Go("close_gate", closes_with_id, {"dropping": "0"}), Go("notice", sets={"dropping": "0"})),
            "only the owner drops the id reference",
            "seed §2",
            ("read_held",),
        ),
        Step(
            "close_gate",
            Store("gate", "gate & ~1"),
            (Go("read_local_pins"),),
            "before the pins are read: a peer sets its pin before it reads the gate",
            "rule 9, design 3",
            ("set_pin", "read_gate", "read_gate_again", "pin_locally", "read_gate_for_view", "read_gate_after_view"),
        ),
        Step(
            "read_local_pins",
            Load("local_pins"),
            (Go(IDLE, "found"), Go("read_pins")),
            "after the gate was closed, as with the pins of peers",
            "rule 10",
            ("pin_locally", "drop_view"),
        ),
        Step(
            "read_pins",
            Load("pins"),
            (Go(IDLE, "found & ~evicted" if evictions else "found"), Go("read_writer_pins" if pushes else "advance")),
            "after the gate was closed: whom we do not see now will see the closed gate",
            "rule 10, design 3, protocol 11",
            ("set_pin", "clear_pin"),
        ),
        Step(
            "read_writer_pins",
            Load("writer_pins"),
            (Go(IDLE, "found"), Go("advance")),
            "as with those who read; whoever writes counts, evicted or not",
            "rule 10, design 3",
            ("set_writer_pin", "clear_writer_pin"),
        ),
        Step(
            "advance",
            Store("gate", "(gate >> 1) + 1 << 1"),
            (Go("unindex_id"),),
            "everything that names this tenant is stale from here on; before the pages can be anybody else's",
            "protocol 1, protocol 11",
            ("read_gate", "check_generation"),
        ),
        Step(
            "unindex_id",
            Store("entry_id", "0"),
            (Go("look_for_evicted" if evictions else "return_memory"),),
            "its id is found no more",
            "seed §1",
            ("find_id",),
        ),
        Step(
            "look_for_evicted",
            Load("pins"),
            (Go("quarantine", "found & evicted"), Go("return_memory")),
            "after the gate was closed: of whom we do not see now, nobody will read the record",
            "protocol 13",
            ("set_pin", "clear_pin"),
        ),
        Step(
            "quarantine",
            Store("quarantined", "1"),
            (Go("return_memory"),),
            "he may go on any time, and finds slot, record and words as they were",
            "protocol 13",
        ),
        Step(
            "return_memory",
            Store("memory", "0"),
            (
                Go(
                    IDLE,
                    promises=(
                        Promise("found + 1 == gate >> 1", "memory goes back once"),
                        Promise("not held and not keys & 3", "memory goes back with its last reference"),
                        Promise(
                            "not confirmed & ~evicted and not writing", "memory never goes back under a confirmed pin"
                        ),
                    ),
                ),
            ),
            "nothing refers to it, nothing can come to pin it",
            "seed §1, rule 10",
            ("copy", "write"),
        ),
        Step(
            "look_for_readers",
            Load("pins"),
            (Go(IDLE, "found & evicted"), Go("end_quarantine")),
            "whoever clears his pin after this marks the slot after this",
            "protocol 13",
            ("clear_pin",),
        ),
        Step(
            "end_quarantine",
            Store("quarantined", "0"),
            (Go(IDLE),),
            "nobody reads the record any more, or touches the words: the slot can have another tenant",
            "protocol 13",
        ),
    )


def _evict() -> tuple[Step, ...]:
    """The link of a reader is down, and his process lives: his pins are ignored from here on, in every slot."""
    return (
        Step(
            "evict",
            Store("evicted", "evicted | leaver"),
            (Go("look_for_pin"),),
            "a reader that stands still finds out after its copy; a writer's pin counts all the same",
            "protocol 11, protocol 12",
        ),
        Step(
            "look_for_pin",
            Load("pins"),
            (Go("finish_bound", "found & leaver and memory"), Go(IDLE)),
            "what only he has held goes back now; a pin that he sets later holds nothing",
            "protocol 12",
            ("set_pin",),
        ),
    )


def _remove_key() -> tuple[Step, ...]:
    bound = "found & key"
    dropped = {"dropped": "dropped | key"}
    return (
        Step(
            "find_bound",
            Load("keys"),
            (Go("load_removed", bound), Go("notice")),
            "an entry whose key a peer has dropped meanwhile is cleared away",
            "seed §3b",
            ("swap_key",),
        ),
        Step(
            "load_removed",
            Load("keys"),
            (Go("swap_removed", bound, {"seen": "found"}), Go("notice")),
            "the value that the compare-and-swap expects",
            "protocol 1",
            ("swap_key",),
        ),
        Step(
            "swap_removed",
            CompareAndSwap("keys", "seen", "seen & ~key"),
            (Go("notice", "swapped", dropped, (DROPPED_ONCE,)), Go("load_removed")),
            "whoever clears the bit has taken the reference",
            "seed §3b, rule 4",
            ("swap_key",),
        ),
    )


def _expire() -> tuple[Step, ...]:
    """The clock stands at ``now``: take the key if its lease has ended, and leave it if the lease was renewed."""
    return (
        Step(
            "look_for_leased",
            Load("keys"),
            (Go("load_lease_end", "found & 1"), Go(IDLE)),
            "a key that has gone has no lease",
            "rule 15",
            ("swap_key",),
        ),
        Step(
            "load_lease_end",
            Load("lease"),
            (
                Go("take_lease", "(found & 3) <= now", {"seen": "found"}),
                Go("load_expired", f"(found & 3) == {OVER}"),
                Go(IDLE),
            ),
            "the value that the compare-and-swap expects",
            "protocol 15",
            ("swap_renewed",),
        ),
        Step(
            "take_lease",
            CompareAndSwap("lease", "seen", f"seen | {OVER}"),
            (Go("load_expired", "swapped"), Go("load_lease_end")),
            "before the key: who renewed before this makes it fail, who comes later is told",
            "protocol 15",
            ("load_lease", "swap_renewed"),
        ),
        Step(
            "load_expired",
            Load("keys"),
            (Go("swap_expired", "found & 1", {"seen": "found"}), Go(IDLE)),
            "the value that the compare-and-swap expects; a transfer that ends now may have been quicker",
            "protocol 1",
            ("swap_key",),
        ),
        Step(
            "swap_expired",
            CompareAndSwap("keys", "seen", "seen & ~1"),
            (
                Go(
                    "notice",
                    "swapped",
                    {"dropped": "dropped | 1"},
                    (
                        Promise("(dropped & 1) == 0", DROPPED_ONCE.meaning),
                        Promise("relied <= now", "who has renewed a lease keeps the key until then"),
                    ),
                ),
                Go("load_expired"),
            ),
            "whoever clears the bit has taken the reference",
            "rule 4, rule 15",
            ("swap_key",),
        ),
    )


def _dismiss(pushes: bool, evictions: bool) -> tuple[Step, ...]:
    """A peer's process has gone: its pin is cleared in every slot, marked or not, and what it left half done is
    finished."""
    gone = {"crashed": "crashed & ~leaver"}
    dismissed = (
        Go("finish_bound", "memory", gone),
        *((Go("look_for_readers", "quarantined", gone),) if evictions else ()),
        Go(IDLE, sets=gone),
    )
    return (
        Step(
            "forget_eviction",
            Store("evicted", "evicted & ~leaver"),
            (Go("clear_pins"),),
            "the bit can be another's when this is done",
            "protocol 12",
        ),
        Step(
            "clear_pins",
            FetchClear("pins", "leaver"),
            (Go("clear_writer_pins"),) if pushes else dismissed,
            "exact and idempotent: the bit belongs to nobody else before this is done",
            "rule 11",
            ("set_pin",),
        ),
        Step(
            "clear_writer_pins",
            FetchClear("writer_pins", "leaver"),
            dismissed,
            "as with those who read",
            "rule 11",
            ("set_writer_pin",),
        ),
        Step(
            "finish_bound",
            Load("keys"),
            (Go("finish_tensors", "found & 2"), Go("notice")),
            "only a bound key can be half done",
            "rule 11",
            ("swap_key",),
        ),
        Step(
            "finish_tensors",
            Load("tensors"),
            (Go("load_finished", "not found & 3", {"key": "2"}), Go("notice")),
            "whoever cleared the last tensor died before it cleared the key, or is about to clear it",
            "rule 5",
            ("swap_tensors", "swap_key"),
        ),
        Step(
            "load_finished",
            Load("keys"),
            (Go("swap_finished", "found & key", {"seen": "found"}), Go("notice")),
            "the value that the compare-and-swap expects",
            "protocol 1",
            ("swap_key",),
        ),
        Step(
            "swap_finished",
            CompareAndSwap("keys", "seen", "seen & ~key"),
            (Go("notice", "swapped", {"dropped": "dropped | key"}, (DROPPED_ONCE, COMPLETED)), Go("load_finished")),
            "every tensor has been transferred, so the key is consumed",
            "rule 4, rule 5",
            ("swap_key",),
        ),
    )


def _take_released(levels: int, evictions: bool) -> tuple[Step, ...]:
    """Walk down the marks to a slot and take it. A parent is cleared when nothing was seen below it."""
    steps = []
    for level in reversed(range(levels)):
        below = f"look_{level - 1}" if level else "take"
        empty = IDLE if level == levels - 1 else f"clear_{level + 1}"
        marks = (f"mark_{level}",)
        steps.append(
            Step(
                f"look_{level}",
                Load(f"released_{level}"),
                (Go(below, "found"), Go(empty)),
                "go down where there is a mark, up where there is none",
                "protocol 7",
                marks,
            )
        )
        if level:
            steps += [
                Step(
                    f"clear_{level}",
                    FetchClear(f"released_{level}", "1"),
                    (Go(f"look_again_{level - 1}"),),
                    "nothing was seen below",
                    "protocol 7",
                    (f"look_before_mark_{level}",),
                ),
                Step(
                    f"look_again_{level - 1}",
                    Load(f"released_{level - 1}"),
                    (Go(f"restore_{level}", "found"), Go(f"look_{level}")),
                    "after the mark above was cleared: who marked below before saw it still set, and left it",
                    "protocol 7",
                    (f"mark_{level - 1}", f"look_before_mark_{level}"),
                ),
                Step(
                    f"restore_{level}",
                    FetchOr(f"released_{level}", "1"),
                    (Go(f"look_{level}"),),
                    "something was marked below meanwhile",
                    "protocol 7",
                    (f"mark_{level - 1}",),
                ),
            ]
    steps.append(
        Step(
            "take",
            FetchClear("released_0", "1"),
            (
                Go("notice", "memory"),
                *((Go("look_for_readers", "quarantined"),) if evictions else ()),
                Go(IDLE),
            ),
            "before the slot is looked at: who marks later finds the bit clear and sets it again",
            "protocol 7",
            ("look_before_mark_0", "mark_0"),
        )
    )
    return tuple(steps)


# ---------------------------------------------------------------- a peer

BOUND = "found >> 2 == hint and found & key"
KEPT = Promise("memory == hint or quarantined", "nobody touches words that are not the pinned cache's")


def peer(configuration: Configuration) -> Role:
    """One who transfers through the owner's arena. It may die before any of its steps."""
    requests = (
        Call("pull_key_1", "find_key_1", sets={"key": "1", "want": "0"}),
        Call("pull_tensor_1", "find_key_2", sets={"key": "2", "want": "1"}),
        Call("pull_tensor_2", "find_key_2", sets={"key": "2", "want": "2"}),
        Call("pull_key_2", "find_key_2", sets={"key": "2", "want": "0"}),
        Call("pull_both", "find_key_1", sets={"key": "1", "want": "0", "both": "1"}),
        Call("renew_key_1", "find_key_1", sets={"key": "1", "want": "0", "renews": "1"}),
        Call("pull_id", "find_id", _asking_by_id(configuration), {"key": "1", "want": "0"}),
        Call("push_id", "find_id_to_write", _asking_by_id(configuration), {"key": "1", "want": "0"}),
        Call("push_address", "read_generation", _asking_by_id(configuration), {"key": "0", "want": "0"}),
    )
    askers = {
        call.name: tuple(
            bit for bit, asked in zip(PEER_BITS, configuration.requests, strict=True) if call.name in asked
        )
        for call in requests
    }
    calls = [replace(call, bits=askers[call.name]) for call in requests if askers[call.name]]
    pushes = _pushes(configuration)
    shares = any("pull_both" in asked for asked in configuration.requests)
    renews = any("renew_key_1" in asked for asked in configuration.requests)
    pinned = map(_on_kept_words, (*_transfer(pushes, shares), *_renew()))
    steps = (*_pin(pushes, shares, renews), *pinned, *_unpin(), *_mark(configuration.levels))
    registers = ("hint", "key", "want", "by_id", "writes", "seen", "told", "astray")
    registers += (*(("both",) if shares else ()), *(("renews",) if renews else ()))
    return Role(PEER_NAME, registers, tuple(calls), _reachable(calls, steps), PEER_BITS, configuration.crashes)


def _on_kept_words(step: Step) -> Step:
    """The step, with what it promises if it touches words that may lie outside the slot.

    What is read there to confirm a pin is believed for the copy at most, and judged again after it (rule 11).
    """
    if step.operation.word not in ("keys", "tensors", "lease"):
        return step
    return replace(step, goes=tuple(replace(go, promises=(KEPT, *go.promises)) for go in step.goes))


def _pushes(configuration: Configuration) -> bool:
    return any(request in asked for asked in configuration.requests for request in ("push_id", "push_address"))


def _unpinned(pushes: bool) -> tuple[Go, ...]:
    """To the end of a transfer: by the word in which its pin stands."""
    return (Go("clear_writer_pin", "writes"), Go("clear_pin")) if pushes else (Go("clear_pin"),)


def _asking_by_id(configuration: Configuration) -> str:
    return "1" if configuration.repeats else "gate & 1"


def _pin(pushes: bool, shares: bool, renews: bool) -> tuple[Step, ...]:
    """Design steps 1 to 3."""
    unpinned = _unpinned(pushes)
    renewal = (Go("load_lease", f"{BOUND} and renews", {"confirmed": "confirmed | me"}),) if renews else ()

    def find(name: str, by_id: str, writes: str = "0") -> Step:
        pin = "set_writer_pin" if writes == "1" else "set_pin"
        sets = {"hint": "found", "by_id": by_id} | ({"writes": writes} if pushes else {})
        entry = name.removeprefix("key_").removesuffix("_to_write")
        return Step(
            f"find_{name}",
            Load(f"entry_{entry}"),
            (Go(pin, "found", sets), Go(IDLE)),
            "a hint: the owner may be moving entries, and reuse the slot before we pin it",
            "design 1",
            (f"index_{name.removesuffix('_to_write')}", "advance"),
        )

    def begin(when: str) -> tuple[Go, ...]:
        copy = Go("copy", when, {"confirmed": "confirmed | me"})
        return (Go("write", f"({when}) and writes", {"writing": "writing | me"}), copy) if pushes else (copy,)

    return (
        find("key_1", "0"),
        find("key_2", "0"),
        find("id", "1"),
        find("id_to_write", "1", "1"),
        Step(
            "read_generation",
            Load("gate"),
            (Go("set_writer_pin", sets={"hint": "found >> 1", "by_id": "1", "writes": "1"}),),
            "a hint: an address leads to a slot, whoever its tenant is by now",
            "design 1, api D46",
            ("open_gate", "advance"),
        ),
        Step(
            "set_writer_pin",
            FetchOr("writer_pins", "me"),
            (Go("read_gate"),),
            "before the gate is read, as with a reader's; nobody takes this one away while we live",
            "design 2, protocol 11",
            ("close_gate", "read_writer_pins"),
        ),
        Step(
            "set_pin",
            FetchOr("pins", "me"),
            (Go("read_gate"),),
            "before the gate is read. On a slot that was reused it only delays a release",
            "design 2",
            ("close_gate", "read_pins"),
        ),
        Step(
            "read_gate",
            Load("gate"),
            (
                Go("read_held", "found == (hint << 1 | 1) and by_id"),
                Go("read_key", "found == (hint << 1 | 1)"),
                *unpinned,
            ),
            "open and of that generation after our pin was set: the owner will see the pin",
            "design 3, rule 9",
            ("close_gate", "advance", "open_gate"),
        ),
        Step(
            "read_key",
            Load("keys"),
            (
                *renewal,
                *((Go("find_second", f"{BOUND} and both"),) if shares else ()),
                *begin(BOUND),
                *unpinned,
            ),
            "whoever cleared the bit before has taken the key",
            "design 3, api §3.6",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired"),
        ),
        Step(
            "find_second",
            Load("entry_2"),
            (Go("read_gate_for_second", "found == hint"), *unpinned),
            "a hint, as for the first; the slot is pinned already, by a bit that it has once",
            "design 1, protocol 14",
            ("index_key_2", "advance"),
        ),
        Step(
            "read_gate_for_second",
            Load("gate"),
            (Go("read_second", "found == (hint << 1 | 1)"), *unpinned),
            "as for the first: open, and of the generation that the entry named",
            "design 3, protocol 14",
            ("close_gate", "advance", "open_gate"),
        ),
        Step(
            "read_second",
            Load("keys"),
            (*begin("found >> 2 == hint and found & 2"), *unpinned),
            "whoever cleared the bit before has taken the key, and the call is refused",
            "design 3, protocol 14",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired"),
        ),
        Step(
            "read_held",
            Load("held"),
            (Go("read_keys", sets={"seen": "found"}),),
            "a transfer by id begins if anything refers to the cache",
            "api §3.6",
            ("forget_id",),
        ),
        Step(
            "read_keys",
            Load("keys"),
            (*begin(decision("pin", id="seen", keys="found >> 2 == hint and found & 3")), *unpinned),
            "a transfer by id begins if anything refers to the cache",
            "api §3.6",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired"),
        ),
    )


def _each_when(
    goes: tuple[Go, ...], when: str, sets: Mapping[str, str], promises: tuple[Promise, ...]
) -> tuple[Go, ...]:
    """The same ways, each under one more condition and with what it sets and promises."""
    return tuple(
        replace(go, when=when if go.when == "1" else f"{when} and {go.when}", sets=sets, promises=promises)
        for go in goes
    )


def _transfer(pushes: bool, shares: bool) -> tuple[Step, ...]:
    """Design steps 4 and 5. Of two that go together the second key follows when the first is done with."""
    unpinned = _unpinned(pushes)
    next_key = (Go("read_second_bound", "both and key == 1"),) if shares else ()
    still_outstanding = (Go("clear_pin", "found >> 2 == hint and found & 3"),)
    dropped = _each_when(unpinned, "swapped", {"told": "1", "dropped": "dropped | key"}, (DROPPED_ONCE, COMPLETED))
    if shares:
        consumed = {"told": "1", "dropped": "dropped | key"}
        first = Go("read_second_bound", "swapped and both and key == 1", consumed, (DROPPED_ONCE, COMPLETED))
        dropped = (first, *dropped)
    delivered = "4 if key == 1 else want if want else 3"
    complete = Promise("not astray", "no transfer succeeds with bytes of a successor")
    by_address = Go("clear_writer_pin", "found >> 1 == hint and not key", promises=(complete,))
    return (
        Step(
            "copy",
            Load("memory"),
            (
                Go(
                    "check_generation",
                    sets={"astray": "found != hint"},
                    promises=(
                        Promise(
                            "found == hint or evicted & me",
                            "nobody copies from or to memory that is not the pinned cache's",
                        ),
                    ),
                ),
            ),
            "the tensors stay the tenant's while our pin counts",
            "design 4, rule 10",
            ("return_memory",),
            may_end_at="clear_pin",
        ),
        Step(
            "write",
            Load("memory"),
            (
                Go(
                    "check_generation",
                    sets={"astray": "found != hint"},
                    promises=(Promise("found == hint", "nobody writes to memory that is not the pinned cache's"),),
                ),
            ),
            "the tensors stay the tenant's while our pin is set: it counts as long as we live",
            "design 4, rule 10, protocol 11",
            ("return_memory",),
            may_end_at="clear_writer_pin",
        ),
        Step(
            "check_generation",
            Load("gate"),
            (
                *((by_address,) if pushes else ()),
                Go(
                    "read_bound",
                    "found >> 1 == hint",
                    {"delivered": f"delivered | ({f'7 if both else {delivered}' if shares else delivered})"},
                    (complete,),
                ),
                *unpinned,
            ),
            "after the copy: if our pin counted no more, what we copied may be somebody else's",
            "protocol 11",
            ("advance",),
        ),
        Step(
            "read_bound",
            Load("keys"),
            (Go("load_tensors", f"{BOUND} and want"), Go("load_key", BOUND), *next_key, *unpinned),
            "another transfer may have consumed the key meanwhile; then there is nothing to drop",
            "rule 4",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired"),
        ),
        Step(
            "read_second_bound",
            Load("keys"),
            (Go("load_key", "found >> 2 == hint and found & 2", {"key": "2"}), *unpinned),
            "everything has been copied, so the second key goes too; the pin that both share is still set",
            "rule 4, protocol 14",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired"),
        ),
        Step(
            "load_tensors",
            Load("tensors"),
            (Go("swap_tensors", "found >> 2 == hint and found & want", {"seen": "found"}), Go("look_for_tensors")),
            "the value that the compare-and-swap expects",
            "protocol 1",
            ("swap_tensors",),
        ),
        Step(
            "swap_tensors",
            CompareAndSwap("tensors", "seen", "seen & ~want"),
            (Go("look_for_tensors", "swapped"), Go("load_tensors")),
            "this tensor has been transferred for the key; the generation in the word guards a successor's",
            "rule 5",
            ("swap_tensors", "write_tensors", "finish_tensors"),
        ),
        Step(
            "look_for_tensors",
            Load("tensors"),
            (*still_outstanding, Go("load_key")),
            "after our own bit was cleared: of two who transfer the last tensors the later look sees none left",
            "rule 5",
            ("swap_tensors",),
        ),
        Step(
            "load_key",
            Load("keys"),
            (Go("swap_key", BOUND, {"seen": "found"}), *next_key, *unpinned),
            "the value that the compare-and-swap expects",
            "protocol 1",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired", "write_keys"),
        ),
        Step(
            "swap_key",
            CompareAndSwap("keys", "seen", "seen & ~key"),
            (
                *dropped,
                Go("load_key"),
            ),
            "after the copy and the tensors: a crash before it leaves the key to others",
            "design 5, rule 4",
            ("swap_key", "swap_removed", "swap_finished", "swap_expired", "notice", "write_keys"),
        ),
    )


def _renew() -> tuple[Step, ...]:
    """Put the end of key 1's lease off to the second one. Two that renew at once want the same."""
    may_be_renewed = f"found >> 2 == hint and (found & 3) < {RENEWED}"
    ends_then = f"found >> 2 == hint and (found & 3) == {RENEWED}"
    return (
        Step(
            "load_lease",
            Load("lease"),
            (
                Go("swap_renewed", may_be_renewed, {"seen": "found"}),
                Go("check_renewed", ends_then),
                Go("clear_pin"),
            ),
            "one that is over stays over; one that ends then, or later, needs nothing",
            "rule 16, protocol 16",
            ("take_lease", "swap_renewed"),
        ),
        Step(
            "swap_renewed",
            CompareAndSwap("lease", "seen", f"seen & ~3 | {RENEWED}"),
            (
                Go(
                    "check_renewed",
                    "swapped",
                    promises=(Promise(f"(seen & 3) < {RENEWED}", "a lease that is over is never renewed"),),
                ),
                Go("load_lease"),
            ),
            "of an owner that takes the lease now one of the two fails; the generation in it guards a successor's",
            "protocol 16",
            ("take_lease", "write_lease"),
        ),
        Step(
            "check_renewed",
            Load("gate"),
            (Go("clear_pin", "found >> 1 == hint", {"relied": str(RENEWED)}), Go("clear_pin")),
            "an evicted reader may have renewed what has gone",
            "protocol 11, protocol 16",
            ("advance",),
        ),
    )


def _unpin() -> tuple[Step, ...]:
    """Design step 6."""
    return (
        Step(
            "clear_pin",
            FetchClear("pins", "me"),
            (
                Go("look_before_mark_0", "told", {"confirmed": "confirmed & ~me"}),
                Go("read_gate_again", sets={"confirmed": "confirmed & ~me"}),
            ),
            "the last that we do to the cache; before the gate is read again",
            "design 6",
            ("read_pins", "close_gate"),
        ),
        Step(
            "clear_writer_pin",
            FetchClear("writer_pins", "me"),
            (
                Go("look_before_mark_0", "told", {"writing": "writing & ~me"}),
                Go("read_gate_again", sets={"writing": "writing & ~me"}),
            ),
            "the last that we do to the cache; before the gate is read again",
            "design 6",
            ("read_writer_pins", "close_gate"),
        ),
        Step(
            "read_gate_again",
            Load("gate"),
            (Go("look_before_mark_0", "not found & 1"), Go(IDLE)),
            "after our pin was cleared: if it is open still, the owner reads the pins after it closes it",
            "protocol 6",
            ("close_gate",),
        ),
    )


def _mark(levels: int) -> tuple[Step, ...]:
    """Tell the owner, the lowest level first; a mark that is set already is left as it is."""
    steps = []
    for level in range(levels):
        above = f"look_before_mark_{level + 1}" if level + 1 < levels else IDLE
        take = "take" if level == 0 else f"clear_{level}"
        steps += [
            Step(
                f"look_before_mark_{level}",
                Load(f"released_{level}"),
                (Go(above, "found"), Go(f"mark_{level}")),
                "set already: whoever clears it looks below afterwards",
                "protocol 7",
                (take,),
            ),
            Step(
                f"mark_{level}",
                FetchOr(f"released_{level}", "1"),
                (Go(above),),
                "before the level above is marked, so that whoever sees a mark above finds one below",
                "protocol 7",
                (take, f"look_{level}") if level == levels - 1 else (take, f"look_{level}", f"look_again_{level}"),
            ),
        ]
    return tuple(steps)


def view(configuration: Configuration) -> Role:
    """A thread of the owner's process that views or copies the memory. It takes no lock, so it is as much a stranger as
    a peer; but it dies only with the owner."""
    ended = {"confirmed": "confirmed & ~me"}
    steps = (
        Step(
            "find_cache",
            Load("entry_id"),
            (Go("pin_locally", "found", {"hint": "found"}), Go(IDLE)),
            "the generation in the caller's handle of the cache, which may be stale",
            "rule 1",
            ("index_id", "advance"),
        ),
        Step(
            "pin_locally",
            FetchAdd("local_pins", 1),
            (Go("read_gate_for_view"),),
            "before the gate is read",
            "rule 1, rule 10",
            ("close_gate", "read_local_pins"),
        ),
        Step(
            "read_gate_for_view",
            Load("gate"),
            (Go("use_view", "found == (hint << 1 | 1)", {"confirmed": "confirmed | me"}), Go("drop_view")),
            "open and of that generation after our pin was set: the owner will see the pin",
            "rule 9",
            ("close_gate", "advance", "open_gate"),
        ),
        Step(
            "use_view",
            Load("memory"),
            (
                Go(
                    "drop_view",
                    promises=(Promise("found == hint", "nobody views memory that is not the pinned cache's"),),
                ),
            ),
            "the memory stays the cache's while the view lives",
            "rule 10",
            ("return_memory",),
        ),
        Step(
            "drop_view",
            FetchAdd("local_pins", -1),
            (Go("read_gate_after_view", sets=ended),),
            "before the gate is read again",
            "rule 10",
            ("read_local_pins",),
        ),
        Step(
            "read_gate_after_view",
            Load("gate"),
            (Go("look_before_mark_0", "not found & 1"), Go(IDLE)),
            "after the view was dropped: a closed gate means that the owner may be waiting",
            "protocol 6",
            ("close_gate",),
        ),
        *_mark(configuration.levels),
    )
    calls = (Call("view", "find_cache", _asking_by_id(configuration)),)
    return Role(VIEW_NAME, ("hint",), calls, steps, (VIEW_BIT,))


def _reachable(calls: list[Call], steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps that some call leads to, in their order."""
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    ahead = [call.first for call in calls]
    while ahead:
        name = ahead.pop()
        if name in found or name == IDLE:
            continue
        found.add(name)
        ahead += [go.to for go in by_name[name].goes] + [by_name[name].may_end_at or IDLE]
    return tuple(step for step in steps if step.name in found)


# ---------------------------------------------------------------- the whole


def protocol(configuration: Configuration | None = None) -> Protocol:
    """The protocol, with the roles and calls that a configuration lets take part."""
    configuration = configuration or Configuration()
    roles = (owner(configuration), peer(configuration), *((view(configuration),) if configuration.views else ()))
    return Protocol(
        words(configuration.levels),
        roles,
        (
            Promise("not memory or held or keys & 3", "every released cache is reaped"),
            Promise("not memory or tensors & 3 or not keys & 2", "a key that has given all its tensors is consumed"),
            Promise("not pins and not writer_pins and not local_pins", "nobody's pin stays behind"),
            Promise("not quarantined", "every quarantine ends"),
        ),
        configuration,
    )


def everything() -> Configuration:
    """A configuration in which every step can be taken."""
    pulls = ("pull_key_1", "pull_tensor_1", "pull_tensor_2", "pull_key_2", "pull_both", "pull_id")
    asked = (*pulls, "push_id", "push_address", "renew_key_1")
    return Configuration(requests=(asked, asked), views=True, evictions=PEER_BITS, leases=True)
