"""The trace of a day: the same for the same seed, and sound for every seed and size."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmdd.bench.trace import (
    ALLOCATES,
    FREES,
    MOST_PREFIX_TOKENS,
    MOST_TOKENS,
    PAGE_TOKENS,
    PREFIX_IDLE_S,
    PREFIXES,
    Action,
    Trace,
    ledger,
    trace,
)

days = st.builds(trace, requests=st.integers(1, 3_000), seed=st.integers(0, 2**64 - 1))
sound_for = settings(deadline=None, max_examples=40)


def arrays_of(day: Any) -> list[Any]:
    nested = [getattr(day, field.name) for field in fields(day)]
    return [one for each in nested for one in (arrays_of(each) if hasattr(each, "subject") else [each])]


def of(day: Trace, *actions: Action) -> Any:
    return np.isin(day.actions, actions)


@sound_for
@given(requests=st.integers(1, 1_000), seed=st.integers(0, 2**64 - 1))
def test_the_same_seed_gives_the_same_trace(requests: int, seed: int) -> None:
    for one, other in zip(arrays_of(trace(requests, seed)), arrays_of(trace(requests, seed)), strict=True):
        assert np.array_equal(one, other)


def test_another_seed_gives_another_trace() -> None:
    assert not np.array_equal(trace(100, 1).seconds[:100], trace(100, 2).seconds[:100])


@sound_for
@given(day=days)
def test_events_are_in_the_order_of_time(day: Trace) -> None:
    assert (np.diff(day.seconds) >= 0).all()


@sound_for
@given(day=days)
def test_every_request_arrives_once_and_leaves_once_after_that(day: Trace) -> None:
    for arrive, leave in ((Action.ARRIVE, Action.LEAVE), (Action.BEGIN, Action.GIVE_UP)):
        arrived, left = day.subjects[of(day, arrive)], day.subjects[of(day, leave)]
        assert np.array_equal(np.sort(arrived), np.sort(left))
        when_arrived = dict(zip(arrived.tolist(), np.flatnonzero(of(day, arrive)).tolist(), strict=True))
        when_left = dict(zip(left.tolist(), np.flatnonzero(of(day, leave)).tolist(), strict=True))
        assert all(when_arrived[request] < when_left[request] for request in when_arrived)
    everybody = day.subjects[of(day, Action.ARRIVE, Action.BEGIN)]
    assert np.array_equal(np.sort(everybody), np.arange(day.request_count))


@sound_for
@given(day=days)
def test_what_is_allocated_is_freed_with_as_many_pages(day: Trace) -> None:
    held: dict[tuple[bool, int], int] = {}
    prefixes = (Action.PREFIX_BEGIN, Action.PREFIX_END)
    for action, subject, pages in zip(day.actions.tolist(), day.subjects.tolist(), day.pages.tolist(), strict=True):
        cache = (action in prefixes, subject)
        if action in ALLOCATES:
            assert cache not in held and pages >= 1
            held[cache] = pages
        elif action in FREES:
            assert held.pop(cache) == pages
        else:
            assert pages == 0
    assert not held


@sound_for
@given(day=days)
def test_a_lookup_finds_what_replaying_the_trace_finds(day: Trace) -> None:
    held: dict[int, int] = {}
    begun, found = 0, []
    for action, prefix in zip(day.actions.tolist(), day.subjects.tolist(), strict=True):
        if action == Action.PREFIX_BEGIN:
            held[prefix] = begun
            begun += 1
        elif action == Action.PREFIX_END:
            del held[prefix]
        elif action == Action.LOOK_UP:
            found.append(held.get(prefix, -1))
    assert day.found.tolist() == found
    assert begun == len(day.prefix_begins) == day.found.tolist().count(-1), "what is not found is allocated"


@sound_for
@given(day=days)
def test_prefixes_are_removed_when_they_were_idle_for_a_while(day: Trace) -> None:
    last_use: dict[int, float] = {}
    for action, prefix, moment in zip(day.actions, day.subjects.tolist(), day.seconds.tolist(), strict=True):
        if action == Action.LOOK_UP:
            last_use[prefix] = moment
        elif action == Action.PREFIX_END:
            assert moment == pytest.approx(last_use[prefix] + PREFIX_IDLE_S)


@sound_for
@given(day=days)
def test_the_ledger_is_the_sum_of_the_events_before(day: Trace) -> None:
    held = np.cumsum(np.where(of(day, *ALLOCATES), 1, -1) * day.pages.astype(np.int64))
    ends = np.append(np.diff(day.seconds) > 0, True)  # of several events at one moment the last counts
    assert np.array_equal(ledger(day, day.seconds[ends]), held[ends])
    assert held.max() == day.peak_pages


@sound_for
@given(day=days)
def test_the_ledger_is_never_negative_and_zero_in_the_end(day: Trace) -> None:
    moments = np.linspace(-1, day.seconds[-1], 101)
    held = ledger(day, moments)
    assert held.min() >= 0
    assert held[0] == held[-1] == 0


@sound_for
@given(day=days)
def test_sizes_are_within_their_bounds(day: Trace) -> None:
    assert day.requests.pages.min() >= 1 and day.requests.pages.max() <= MOST_TOKENS // PAGE_TOKENS
    assert len(day.prefix_pages) == PREFIXES
    assert day.prefix_pages.min() >= 1 and day.prefix_pages.max() <= MOST_PREFIX_TOKENS // PAGE_TOKENS


def test_its_shape_is_that_of_traffic() -> None:
    """Bursts, long tails, a few that go away, some prefixes that very many share."""
    day = trace(100_000, 3)
    a_second = np.bincount(day.requests.begin.astype(int))
    assert a_second.max() > 4 * a_second.mean()
    pages = day.requests.pages
    assert np.percentile(pages, 99) > 5 * np.median(pages)
    assert 0.01 < np.count_nonzero(of(day, Action.BEGIN)) / day.request_count < 0.04
    uses = np.bincount(day.subjects[of(day, Action.LOOK_UP)])
    assert uses.max() > 0.05 * uses.sum()
    assert 0.5 < uses.sum() / day.request_count < 0.7
