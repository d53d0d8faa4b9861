"""The protocol with one thing done wrong, each in its own way: what the explorer and SPIN must find.

A checker that has never found anything proves little. ``python -m spec interleavings --mistake NAME`` shows a shortest
way from each of these to the promise that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .protocol import OWNER_NAME, PEER_NAME
from .steps import IDLE, Configuration, Go, Protocol, Step


def _retarget(step: Step, **targets: str) -> Step:
    """The step with some of its ways leading elsewhere."""
    return replace(step, goes=tuple(replace(go, to=targets.get(go.to, go.to)) for go in step.goes))


def pin_not_validated(right: Protocol) -> Protocol:
    """A peer believes the hint: gate, generation and key bit are not read again after the pin (design step 3)."""
    step = right.role(PEER_NAME).step("set_pin")
    return right.with_steps(PEER_NAME, replace(step, goes=(Go("copy", sets={"confirmed": "confirmed | me"}),)))


def address_not_validated(right: Protocol) -> Protocol:
    """Who pushes to an address looks whether the gate is open before his pin, and not after it."""
    steps = right.role(PEER_NAME)
    generation, pin = steps.step("read_generation"), steps.step("set_writer_pin")
    return right.with_steps(
        PEER_NAME,
        replace(generation, goes=(replace(generation.goes[0], when="found & 1"), Go(IDLE))),
        replace(pin, goes=(Go("write", "not key", {"confirmed": "confirmed | me"}), *pin.goes)),
    )


def generation_not_validated(right: Protocol) -> Protocol:
    """After the pin a peer looks whether the gate is open and the key bit set, and not whether for the same tenant."""
    steps = right.role(PEER_NAME)
    gate, key = steps.step("read_gate"), steps.step("read_key")
    return right.with_steps(
        PEER_NAME,
        replace(gate, goes=(Go("read_key", "found & 1"), Go("clear_pin"))),
        replace(key, goes=(replace(key.goes[0], when="found & key"), Go("clear_pin"))),
    )


def pins_read_before_gate_closes(right: Protocol) -> Protocol:
    """The owner reads the pins, then closes the gate, then frees."""
    steps = right.role(OWNER_NAME)
    return right.with_steps(
        OWNER_NAME,
        *(
            _retarget(steps.step(name), close_gate="read_local_pins")
            for name in ("unindex_1", "unindex_2", "forget_id")
        ),
        _retarget(steps.step("read_pins"), advance="close_gate"),
        _retarget(steps.step("close_gate"), read_local_pins="advance"),
    )


def key_cleared_before_copy_ends(right: Protocol) -> Protocol:
    """A peer takes the key first and copies then: dying in between it takes the data with it."""
    steps = right.role(PEER_NAME)
    swap = steps.step("swap_key")
    return right.with_steps(
        PEER_NAME,
        _retarget(steps.step("read_key"), copy="read_bound"),
        replace(swap, goes=(replace(swap.goes[0], to="copy"), swap.goes[1])),
        _retarget(steps.step("check_generation"), read_bound="clear_pin"),
    )


def marks_set_from_the_top(right: Protocol) -> Protocol:
    """The highest level is marked first, and a mark that is set already is left as it is."""
    top = right.configuration.levels - 1
    changed = []
    for level in range(top + 1):
        following = f"look_before_mark_{level - 1}" if level else IDLE
        for name in (f"look_before_mark_{level}", f"mark_{level}"):
            step = right.role(PEER_NAME).step(name)
            old = f"look_before_mark_{level + 1}" if level < top else IDLE
            changed.append(_retarget(step, **{old: following}))
    for name in ("clear_pin", "read_gate_again"):
        changed.append(_retarget(right.role(PEER_NAME).step(name), look_before_mark_0=f"look_before_mark_{top}"))
    return right.with_steps(PEER_NAME, *changed)


def gate_not_read_after_unpin(right: Protocol) -> Protocol:
    """A peer that has dropped nothing clears its pin and goes: the owner, who saw the pin, waits for ever."""
    step = right.role(PEER_NAME).step("clear_pin")
    return right.with_steps(PEER_NAME, _retarget(step, read_gate_again=IDLE))


def parent_cleared_without_second_look(right: Protocol) -> Protocol:
    """The owner clears a mark above and does not look below again."""
    step = right.role(OWNER_NAME).step("clear_1")
    return right.with_steps(OWNER_NAME, _retarget(step, look_again_0="look_1"))


def dead_not_finished(right: Protocol) -> Protocol:
    """The owner clears a dead peer's pin and leaves the key whose tensors it had all transferred."""
    step = right.role(OWNER_NAME).step("clear_pins")
    return right.with_steps(OWNER_NAME, _retarget(step, finish_bound="notice"))


def writers_evicted(right: Protocol) -> Protocol:
    """The pin of a peer that writes counts no more either."""
    step = right.role(OWNER_NAME).step("read_writer_pins")
    return right.with_steps(OWNER_NAME, replace(step, goes=(Go(IDLE, "found & ~evicted"), *step.goes[1:])))


def copy_not_validated(right: Protocol) -> Protocol:
    """A reader does not look after its copy whether it was evicted meanwhile."""
    step = right.role(PEER_NAME).step("check_generation")
    return right.with_steps(PEER_NAME, replace(step, goes=(replace(step.goes[0], when="1"), *step.goes[1:])))


def evicted_words_reused(right: Protocol) -> Protocol:
    """The slot of an evicted reader, and its reference words, are given to others together with the pages."""
    step = right.role(OWNER_NAME).step("look_for_evicted")
    return right.with_steps(OWNER_NAME, _retarget(step, quarantine="return_memory"))


def quarantine_not_ended(right: Protocol) -> Protocol:
    """When a peer is dismissed, what was kept for it is kept on."""
    step = right.role(OWNER_NAME).step("clear_pins")
    return right.with_steps(OWNER_NAME, _retarget(step, look_for_readers=IDLE))


def shared_pin_cleared(right: Protocol) -> Protocol:
    """Whose second key has gone clears the pin that both share, as if only the second had it, and copies the first."""
    steps = right.role(PEER_NAME)
    second, clear = steps.step("read_second"), steps.step("clear_pin")
    return right.with_steps(
        PEER_NAME,
        replace(second, goes=(second.goes[0], Go("clear_pin", sets={"both": "2"}))),
        replace(clear, goes=(Go("copy", "both == 2", {"both": "1"}), *clear.goes)),
    )


def lease_not_taken(right: Protocol) -> Protocol:
    """The owner sees that a lease has ended and drops the key, without a compare-and-swap of the lease's word."""
    step = right.role(OWNER_NAME).step("load_lease_end")
    return right.with_steps(OWNER_NAME, _retarget(step, take_lease="load_expired"))


def renewal_not_validated(right: Protocol) -> Protocol:
    """Who renews believes the hint: gate, generation and key bit are not read again after the pin."""
    step = right.role(PEER_NAME).step("set_pin")
    return right.with_steps(PEER_NAME, replace(step, goes=(Go("load_lease", "renews"), *step.goes)))


def lease_over_renewed(right: Protocol) -> Protocol:
    """Who renews puts off whatever end he finds, also that of a lease that the owner has left over."""
    steps = right.role(PEER_NAME)
    load = steps.step("load_lease")
    return right.with_steps(
        PEER_NAME, replace(load, goes=(replace(load.goes[0], when="found >> 2 == hint"), load.goes[-1]))
    )


@dataclass(frozen=True)
class Mistake:
    """A mistake, where it shows, and the promise that is broken first."""

    make: Callable[[Protocol], Protocol]
    promise: str
    configuration: Configuration


_ONE_KEY = Configuration(generations=2, requests=(("pull_key_1",), ("pull_key_1",)))
_LAYERS = Configuration(generations=1, requests=(("pull_key_1", "pull_tensor_1"), ("pull_tensor_2",)), removals=False)
_PUSHES = Configuration(generations=2, requests=((), ("push_id",)), evictions=(2,), crashes=False)
_READS = Configuration(generations=2, requests=(("pull_key_1",), ()), evictions=(1,))
_BOTH = Configuration(generations=2, requests=(("pull_both",), ("pull_key_2",)))
_LEASES = Configuration(generations=2, requests=(("renew_key_1",), ()), leases=True)
_KEPT = "nobody touches words that are not the pinned cache's"
_FREED = "memory never goes back under a confirmed pin"
_REAPED = "every released cache is reaped"

#: Mistakes that both checkers must find.
MISTAKES = {
    "pin-not-validated": Mistake(pin_not_validated, "a key reference is dropped once", _ONE_KEY),
    "address-not-validated": Mistake(
        address_not_validated,
        _FREED,
        Configuration(generations=1, requests=(("push_address",), ())),
    ),
    "generation-not-validated": Mistake(
        generation_not_validated, "nobody copies from or to memory that is not the pinned cache's", _ONE_KEY
    ),
    "pins-read-before-gate-closes": Mistake(pins_read_before_gate_closes, _REAPED, _ONE_KEY),
    "key-cleared-before-copy-ends": Mistake(
        key_cleared_before_copy_ends,
        "a key is consumed only when all its tensors were transferred completely",
        _ONE_KEY,
    ),
    "marks-set-from-the-top": Mistake(marks_set_from_the_top, _REAPED, _ONE_KEY),
    "gate-not-read-after-unpin": Mistake(gate_not_read_after_unpin, _REAPED, _ONE_KEY),
    "parent-cleared-without-second-look": Mistake(parent_cleared_without_second_look, _REAPED, _ONE_KEY),
    "dead-not-finished": Mistake(dead_not_finished, "a key that has given all its tensors is consumed", _LAYERS),
    "writers-evicted": Mistake(writers_evicted, _FREED, _PUSHES),
    "copy-not-validated": Mistake(copy_not_validated, "no transfer succeeds with bytes of a successor", _READS),
    "evicted-words-reused": Mistake(evicted_words_reused, _KEPT, _READS),
    "shared-pin-cleared": Mistake(
        shared_pin_cleared, "nobody copies from or to memory that is not the pinned cache's", _BOTH
    ),
    "quarantine-not-ended": Mistake(quarantine_not_ended, "every quarantine ends", _READS),
    "lease-not-taken": Mistake(lease_not_taken, "who has renewed a lease keeps the key until then", _LEASES),
    "renewal-not-validated": Mistake(renewal_not_validated, _KEPT, _LEASES),
    "lease-over-renewed": Mistake(lease_over_renewed, "a lease that is over is never renewed", _LEASES),
}
