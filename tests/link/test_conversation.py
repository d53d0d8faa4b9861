"""Transfers between nodes that share no memory: what arrives, in how many messages, by what memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
from conversing_nodes import ConversingNode, Line, contents
from programmable_engine import Course, Network

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import DataType
from llmdd.transport.staging import PARTS, STRETCH_BYTES

SIZES = [1, 7, 64 << 10, (64 << 10) + 1, STRETCH_BYTES - 1, STRETCH_BYTES, 2 * STRETCH_BYTES + 1, 9 << 20]


@pytest.fixture
def remote_line(make_conversing: Callable[..., ConversingNode]) -> Line:
    """A line between nodes in remote mode, where pushes are."""
    return Line(make_conversing(1, remote_accessible=True), make_conversing(2, remote_accessible=True))


# -- what arrives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_bytes", SIZES)
def test_a_pull_of_any_size_arrives_and_drops_its_key(line: Line, row_bytes: int) -> None:
    source = line.owner.cache(row_bytes, 7, tensors=2, seed=1)
    target = line.asker.cache(row_bytes, tensors=2)
    line.asker.store.pull_cache(CacheKey(2, 7), target)
    assert contents(target) == contents(source)
    assert line.owner.store.live_keys == 0


@pytest.mark.parametrize("row_bytes", SIZES)
def test_a_push_of_any_size_arrives(remote_line: Line, row_bytes: int) -> None:
    target = remote_line.owner.cache(row_bytes, tensors=2, rows=2)
    source = remote_line.asker.cache(row_bytes, tensors=2, rows=2, seed=1)
    remote_line.asker.store.push_cache(CacheKeyByIdAndIndex(2, target.cache_id, 1), source, 1)
    for there, here in zip(target.tensors, source.tensors, strict=True):
        assert not np.asarray(there)[0].any()
        assert np.array_equal(np.asarray(there)[1], np.asarray(here)[1])


@pytest.mark.parametrize(("count", "block_bytes"), [(3, 16), (700, 512), (40, 64 << 10), (9000, 512)])
def test_blocks_in_any_order_arrive(line: Line, count: int, block_bytes: int) -> None:
    source = line.owner.blocks(count + 5, block_bytes, tensors=2, seed=1, key=BlocksCacheKey(2, 3))
    target = line.asker.blocks(count + 5, block_bytes, tensors=2)
    theirs, ours = (random.Random(number).sample(range(count + 5), count) for number in (1, 2))
    line.asker.store.pull_blocks(BlocksCacheKey(2, 3), target, theirs, ours)
    for there, here in zip(source.tensors, target.tensors, strict=True):
        expected = np.zeros_like(there)
        expected[ours] = np.asarray(there)[theirs]
        assert np.array_equal(here, expected)


@pytest.mark.parametrize(("count", "block_bytes"), [(3, 16), (700, 512), (40, 64 << 10), (9000, 512)])
def test_pushed_blocks_in_any_order_arrive(remote_line: Line, count: int, block_bytes: int) -> None:
    target = remote_line.owner.blocks(count + 5, block_bytes, tensors=2, key=BlocksCacheKey(2, 3))
    source = remote_line.asker.blocks(count + 5, block_bytes, tensors=2, seed=1)
    ours, theirs = (random.Random(number).sample(range(count + 5), count) for number in (1, 2))
    remote_line.asker.store.push_blocks(BlocksCacheKey(2, 3), source, ours, theirs)
    for there, here in zip(target.tensors, source.tensors, strict=True):
        expected = np.zeros_like(here)
        expected[theirs] = np.asarray(here)[ours]
        assert np.array_equal(there, expected)


@pytest.mark.parametrize("registered_end", ["here", "there", "both"])
def test_memory_that_the_program_registered(line: Line, registered_end: str) -> None:
    size = 5 << 20
    there, here = np.random.default_rng(3).integers(0, 256, size, np.uint8), np.zeros(size, np.uint8)
    desc = CacheDesc(1, (1, size), DataType.DT_UINT8)
    if registered_end == "here":
        there = line.owner.cache(size, 7, seed=3).tensors[0]
    else:
        line.owner.store.register_cache(desc, [there.ctypes.data], [CacheKey(2, 7)])
    if registered_end == "there":
        target = line.asker.cache(size)
        here = target.tensors[0]
    else:
        target = line.asker.store.register_cache(desc, [here.ctypes.data])
    line.asker.store.pull_cache(CacheKey(2, 7), target)
    assert bytes(here) == bytes(there)


def test_pieces_that_come_out_of_order(line: Line, network: Network) -> None:
    network.usual = Course(polls=7, order=random.Random(5))
    source = line.owner.cache(7 << 20, 7, tensors=3, seed=1)
    target = line.asker.cache(7 << 20, tensors=3)
    line.asker.store.pull_cache(CacheKey(2, 7), target)
    assert contents(target) == contents(source)


def test_transfers_of_both_ends_at_once(make_conversing: Callable[..., ConversingNode]) -> None:
    one, two = make_conversing(1), make_conversing(2)
    Line(one, two), Line(two, one)
    failures: list[BaseException] = []

    def pull(node: ConversingNode, other: ConversingNode) -> None:
        try:
            for number in range(10):
                source = other.cache(3 << 20, number, seed=number + 1)
                target = node.cache(3 << 20)
                node.store.pull_cache(CacheKey(other.cluster_id, number), target)
                assert contents(target) == contents(source)
                other.store.deallocate_cache(source)
                node.store.deallocate_cache(target)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=pull, args=pair) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_many_peers_of_one_owner_at_once(make_conversing: Callable[..., ConversingNode]) -> None:
    owner, askers = make_conversing(1), [make_conversing(number) for number in range(2, 7)]
    lines = [Line(asker, owner) for asker in askers]
    arrived: list[int] = []

    def pull(line: Line) -> None:
        number = line.asker.cluster_id
        source, target = owner.cache(3 << 20, number, seed=number), line.asker.cache(3 << 20)
        line.asker.store.pull_cache(CacheKey(1, number), target)
        arrived.extend([number] if contents(target) == contents(source) else [])

    threads = [threading.Thread(target=pull, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(arrived) == [2, 3, 4, 5, 6]


# -- how many messages ----------------------------------------------------------------------------------------------


def test_a_small_pull_takes_two_requests(line: Line) -> None:
    line.owner.cache(1000, 7, seed=1)
    line.asker.store.pull_cache(CacheKey(2, 7), line.asker.cache(1000))
    assert line.said == ["Begin", "Finish"]
    assert len(line.answers) == 2


def test_sixty_four_small_keys_take_two_requests(line: Line) -> None:
    source = line.owner.cache(500, *range(64), tensors=2, seed=1)
    target = line.asker.cache(500, tensors=2, rows=64)
    assert not line.asker.store.pull_many(np.arange(64), target, cluster_id=2).any()
    assert contents(target) == contents(source)
    assert line.said == ["Begin", "Finish"]
    assert len(line.answers) == 2


def test_a_small_push_takes_one_request(remote_line: Line) -> None:
    target = remote_line.owner.cache(1000)
    remote_line.asker.store.push_cache(
        CacheKeyByIdAndIndex(2, target.cache_id, 0), remote_line.asker.cache(1000, seed=1)
    )
    assert remote_line.said == ["Begin"]
    assert len(remote_line.answers) == 1


def test_a_large_transfer_takes_a_request_for_each_stretch_at_most(line: Line) -> None:
    line.owner.cache(9 << 20, 7, seed=1)
    line.asker.store.pull_cache(CacheKey(2, 7), line.asker.cache(9 << 20))
    stretches = -(-(9 << 20) // STRETCH_BYTES)
    assert len(line.requests) <= 2 + stretches
    assert len(line.answers) <= 2 + 2 * stretches


def test_a_key_that_is_not_there_takes_one_request(line: Line) -> None:
    with pytest.raises(Exception, match="no such key"):
        line.asker.store.pull_cache(CacheKey(2, 7), line.asker.cache(9 << 20))
    assert line.said == ["Begin"]


# -- staging memory -------------------------------------------------------------------------------------------------


def test_one_transfer_after_the_other_shares_an_area(line: Line, eventually: Callable) -> None:
    target = line.asker.cache(5 << 20)
    for number in range(8):
        source = line.owner.cache(5 << 20, number, seed=number + 1)
        line.asker.store.pull_cache(CacheKey(2, number), target)
        assert contents(target) == contents(source)
        line.owner.store.deallocate_cache(source)
    assert line.asker.areas <= 1
    assert line.owner.areas <= 1


def test_an_area_belongs_to_one_line_and_one_direction(make_conversing: Callable[..., ConversingNode]) -> None:
    asker, owners = make_conversing(1), [make_conversing(number) for number in (2, 3, 4)]
    lines = [Line(asker, owner) for owner in owners]

    def pull(line: Line) -> None:
        for number in range(3):
            source, target = line.owner.cache(5 << 20, number, seed=number + 1), asker.cache(5 << 20)
            asker.store.pull_cache(CacheKey(line.owner.cluster_id, number), target)
            assert contents(target) == contents(source)
            line.owner.store.deallocate_cache(source)
            asker.store.deallocate_cache(target)

    threads = [threading.Thread(target=pull, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asker.areas == len(lines)
    for line in lines:
        line.close()
    assert asker.free_areas == len(lines), "nothing is under way: they may be used again"


def test_no_more_is_under_way_at_a_time_than_an_area_has_parts(line: Line, network: Network) -> None:
    most = 0
    begin = type(network.engines["node 1"]).progress

    def progress(engine: object) -> None:
        nonlocal most
        most = max(most, len(network.under_way))
        begin(engine)

    for node in (line.asker, line.owner):
        node.engine.progress = progress.__get__(node.engine)
    network.usual = Course(polls=9)
    line.owner.cache(15 << 20, 7, seed=1)
    line.asker.store.pull_cache(CacheKey(2, 7), line.asker.cache(15 << 20))
    assert 1 <= most <= PARTS
