"""The page pool against a bytearray in which the lowest run is looked for by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmdd._core.page_pool import PagePool

SIZES = [1, 2, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 8193]
FREE, TAKEN = b"\0", b"\1"


class PagePoolAgainstABytearray(RuleBasedStateMachine):
    @initialize(pages=st.sampled_from(SIZES))
    def make(self, pages: int) -> None:
        self.pages = pages
        self.pool = PagePool(pages)
        self.model = bytearray(pages)
        self.runs: list[tuple[int, int]] = []

    def take_both(self, count: int) -> None:
        first = self.model.find(FREE * count)
        assert self.pool.take(count) == (None if first < 0 else first)
        if first >= 0:
            self.model[first : first + count] = TAKEN * count
            self.runs.append((first, count))

    def give_both(self, first: int, count: int) -> None:
        self.pool.give_back(first, count)
        self.model[first : first + count] = FREE * count

    @rule(count=st.integers(1, 70))
    def take_a_few(self, count: int) -> None:
        self.take_both(count)

    @rule(around=st.sampled_from(SIZES), more=st.integers(-1, 1))
    def take_about_a_boundary(self, around: int, more: int) -> None:
        self.take_both(max(1, around + more))

    @rule()
    def take_the_longest(self) -> None:
        longest = max((len(run) for run in bytes(self.model).split(TAKEN)), default=0)
        assert self.pool.take(longest + 1) is None
        if longest:
            self.take_both(longest)

    @rule()
    def take_none(self) -> None:
        assert self.pool.take(0) is None

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def give_a_run_back(self, data: st.DataObject) -> None:
        self.give_both(*self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1))))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def give_a_part_of_a_run_back(self, data: st.DataObject) -> None:
        first, count = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
        begin = data.draw(st.integers(first, first + count - 1))
        end = data.draw(st.integers(begin + 1, first + count))
        self.give_both(begin, end - begin)
        self.runs += [(at, size) for at, size in ((first, begin - first), (end, first + count - end)) if size]

    @rule(data=st.data())
    def give_back_what_is_not_all_taken(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.pages + 1))
        count = data.draw(st.integers(0, self.pages + 1))
        if count and first + count <= self.pages and FREE not in self.model[first : first + count]:
            return
        with pytest.raises(ValueError, match="pages"):
            self.pool.give_back(first, count)

    @invariant()
    def agree(self) -> None:
        self.pool.check()
        assert self.pool.free_pages == self.model.count(FREE)


PagePoolAgainstABytearray.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPagePoolAgainstABytearray = PagePoolAgainstABytearray.TestCase


@pytest.mark.parametrize("pages", SIZES)
def test_every_page_is_handed_out_once_and_in_order(pages: int) -> None:
    pool = PagePool(pages)
    assert [pool.take(1) for _ in range(pages)] == list(range(pages))
    assert pool.take(1) is None
    pool.check()


@pytest.mark.parametrize("pages", SIZES)
def test_the_whole_pool_is_one_run(pages: int) -> None:
    pool = PagePool(pages)
    assert pool.take(pages + 1) is None
    assert pool.take(pages) == 0
    assert pool.free_pages == 0
    pool.give_back(0, pages)
    assert pool.take(pages) == 0
    pool.check()


@pytest.mark.parametrize("pages", SIZES)
def test_freed_neighbours_merge_whatever_the_order(pages: int) -> None:
    order = random.Random(pages)
    pool = PagePool(pages)
    taken = [pool.take(1) for _ in range(pages)]
    order.shuffle(taken)
    for page in taken:
        pool.give_back(page, 1)
    pool.check()
    assert pool.take(pages) == 0


@pytest.mark.parametrize("pages", SIZES)
def test_every_other_page_makes_no_run_of_two(pages: int) -> None:
    pool = PagePool(pages)
    for _ in range(pages):
        pool.take(1)
    for page in range(0, pages, 2):
        pool.give_back(page, 1)
    assert pool.take(2) is None
    assert pool.take(1) == 0
    if pages > 4:
        pool.give_back(1, 1)
        pool.check()
        assert pool.take(2) == 1


def test_a_run_across_every_boundary_of_words() -> None:
    for middle in (64, 128, 192, 256, 2048, 4096):
        pool = PagePool(8192)
        pool.take(8192)
        pool.give_back(middle - 3, 7)
        assert pool.take(8) is None
        assert pool.take(7) == middle - 3


def test_a_pool_of_no_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)


@pytest.mark.parametrize("run", [(2**64 - 1, 2), (1, 2**64 - 1), (2**63, 2**63), (0, 0), (11, 1)])
def test_a_run_outside_the_pool_is_refused(run: tuple[int, int]) -> None:
    pool = PagePool(10)
    pool.take(10)
    with pytest.raises(ValueError, match="are not in a pool"):
        pool.give_back(*run)
    assert pool.free_pages == 0
    pool.check()


def test_a_run_given_back_twice_is_refused() -> None:
    pool = PagePool(10)
    pool.take(4)
    pool.give_back(0, 4)
    with pytest.raises(ValueError, match="not all taken"):
        pool.give_back(0, 4)
    assert pool.free_pages == 10
    pool.check()
