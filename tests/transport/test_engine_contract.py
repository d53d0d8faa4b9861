"""What llmdd relies upon in every engine: the same tests for NIXL and for the engine in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from engine_hosts import Host, Hosts, complete, connect

from llmdd.transport.engine import MAX_METADATA, EngineFailed, TransferEngine, Writing

LARGE = 16 << 20


def large_writing(writer: Host, target: Host, peer: str) -> Writing:
    """A writing that is under way until the target lets it proceed."""
    rows = (0, writer.memory.nbytes // 2), (writer.memory.nbytes // 2, writer.memory.nbytes // 2)
    writing = writer.engine.write(peer, writer.rows(*rows), target.rows(*rows))
    assert not writing.poll()
    return writing


def test_bytes_arrive_where_they_are_wanted_and_nowhere_else(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    here, there = [(0, 5), (100, 4096), (60000, 1)], [(7, 5), (9000, 4096), (65535, 1)]
    complete(writer.engine.write(peer, writer.rows(*here), target.rows(*there)), target)
    expected = np.zeros_like(target.memory)
    for (source, size), (to, _) in zip(here, there, strict=True):
        expected[to : to + size] = writer.memory[source : source + size]
    assert np.array_equal(target.memory, expected)


def test_many_pieces(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(1 << 20)
    order = np.random.default_rng(1).permutation(1024)
    here = writer.rows(*((1024 * int(i), 1024) for i in order))
    there = target.rows(*((1024 * i, 1024) for i in range(1024)))
    complete(writer.engine.write(peer, here, there), target)
    assert np.array_equal(target.memory.reshape(1024, -1), writer.memory.reshape(1024, -1)[order])


def test_the_descriptors_are_not_kept(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    here, there = writer.rows((0, 4096)), target.rows((0, 4096))
    writing = writer.engine.write(peer, here, there)
    here[:], there[:] = 0, 0
    complete(writing, target)
    assert np.array_equal(target.memory[:4096], writer.memory[:4096])


def test_all_is_there_as_soon_as_the_engine_says_so(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    for value in range(1, 6):
        writer.memory[:] = value
        writing = large_writing(writer, target, peer)
        while not writing.poll():
            target.engine.progress()
        assert (target.memory == value).all()
        writing.release()


def test_a_target_that_does_not_proceed_is_waited_for(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    for _ in range(1000):
        assert not writing.poll()
    complete(writing, target)
    assert np.array_equal(target.memory, writer.memory)


def test_either_end_writes_and_both_at_once(hosts: Hosts) -> None:
    left, right = hosts.host(fill=1), hosts.host(fill=2)
    name_of_left = right.engine.connect(left.engine.metadata())
    name_of_right = left.engine.connect(right.engine.metadata())
    to_right = left.engine.write(name_of_right, left.rows((0, 10)), right.rows((0, 10)))
    to_left = right.engine.write(name_of_left, right.rows((20, 10)), left.rows((20, 10)))
    complete(to_right, right, left)
    complete(to_left, right, left)
    assert right.memory[:10].tolist() == [1] * 10 and left.memory[20:30].tolist() == [2] * 10


def test_two_writers_to_one_target(hosts: Hosts) -> None:
    half = LARGE // 2
    target, writers = hosts.host(LARGE), [hosts.host(half, fill=1), hosts.host(half, fill=2)]
    writings = [
        writer.engine.write(connect(writer, target), writer.rows((0, half)), target.rows((number * half, half)))
        for number, writer in enumerate(writers)
    ]
    for writing in reversed(writings):
        complete(writing, target)
    assert (target.memory[:half] == 1).all() and (target.memory[half:] == 2).all()


def test_several_writings_under_way_end_each_by_itself(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    writings = [
        writer.engine.write(peer, writer.rows((1000 * i, 1000)), target.rows((1000 * i, 1000))) for i in range(60)
    ]
    for writing in reversed(writings):
        complete(writing, target)
    assert np.array_equal(target.memory[:60000], writer.memory[:60000])


def test_what_is_changed_while_it_is_written_arrives_as_it_was_or_as_it_is(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writer.memory[:] = 1
    writing = large_writing(writer, target, peer)
    writer.memory[:] = 2
    complete(writing, target)
    assert np.isin(target.memory, (1, 2)).all()
    complete(large_writing(writer, target, peer), target)
    assert (target.memory == 2).all()


@pytest.mark.parametrize("at", ["here", "at the peer"])
def test_memory_that_is_not_registered_is_neither_read_nor_written(hosts: Hosts, at: str) -> None:
    writer, target, peer = hosts.pair()
    inside, outside = (0, 100), (writer.memory.nbytes - 50, 100)
    here = writer.rows(outside if at == "here" else inside)
    there = target.rows(inside if at == "here" else outside)
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, here, there)
    assert not target.memory.any()
    complete(writer.engine.write(peer, writer.rows(inside), target.rows(inside)), target)


def test_memory_that_is_only_written_from_is_not_written_to(hosts: Hosts) -> None:
    writer, target = hosts.host(fill=1), Host(hosts.engine(), np.zeros(100, np.uint8))
    target.engine.register(*target.region(), writable=False)
    peer = connect(writer, target)
    for _ in range(2):
        with pytest.raises(EngineFailed):
            writer.engine.write(peer, writer.rows((0, 100)), target.rows((0, 100)))
        writer.engine.refresh(peer, target.engine.metadata())
    assert not target.memory.any()


def test_a_region_that_is_registered_both_ways_is_writable(hosts: Hosts) -> None:
    writer, target = hosts.host(fill=1), Host(hosts.engine(), np.zeros(100, np.uint8))
    target.engine.register(*target.region(), writable=False)
    target.engine.register(*target.region(), writable=True)
    peer = connect(writer, target)
    complete(writer.engine.write(peer, writer.rows((0, 100)), target.rows((0, 100))), target)
    assert target.memory.all()


def test_what_is_registered_later_is_written_to_after_a_refresh(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    later = Host(target.engine, np.zeros(100, np.uint8))
    later.engine.register(*later.region(), writable=True)
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, writer.rows((0, 100)), later.rows((0, 100)))
    writer.engine.refresh(peer, target.engine.metadata())
    complete(writer.engine.write(peer, writer.rows((0, 100)), later.rows((0, 100))), target)
    complete(writer.engine.write(peer, writer.rows((0, 100)), target.rows((0, 100))), target)
    assert np.array_equal(later.memory, writer.memory[:100])
    assert np.array_equal(target.memory[:100], writer.memory[:100])


def test_a_peer_may_be_known_before_anything_of_it_is_writable(hosts: Hosts) -> None:
    writer, target = hosts.host(fill=1), Host(hosts.engine(), np.zeros(100, np.uint8))
    peer = connect(writer, target)
    target.engine.register(*target.region(), writable=True)
    writer.engine.refresh(peer, target.engine.metadata())
    complete(writer.engine.write(peer, writer.rows((0, 100)), target.rows((0, 100))), target)
    assert target.memory.all()


def test_a_refresh_does_not_disturb_what_is_under_way(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    later = Host(target.engine, np.zeros(100, np.uint8))
    later.engine.register(*later.region(), writable=True)
    writer.engine.refresh(peer, target.engine.metadata())
    complete(writing, target)
    assert np.array_equal(target.memory, writer.memory)


def test_a_region_is_registered_as_often_as_it_is_asked_for(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    target.engine.register(*target.region(), writable=True)
    target.engine.deregister(*target.region())
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)
    target.engine.deregister(*target.region())
    with pytest.raises(KeyError):
        target.engine.deregister(*target.region())


def test_a_region_that_was_writable_is_not_so_when_it_is_registered_anew(hosts: Hosts) -> None:
    writer, target = hosts.host(fill=1), hosts.host()
    target.engine.deregister(*target.region())
    target.engine.register(*target.region(), writable=False)
    peer = connect(writer, target)
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, writer.rows((0, 100)), target.rows((0, 100)))


@pytest.mark.parametrize("at", ["here", "at the peer"])
def test_overlapping_regions(hosts: Hosts, at: str) -> None:
    writer, target, peer = hosts.pair()
    overlapped = writer if at == "here" else target
    address, size = overlapped.region()
    overlapped.engine.register(address + 100, 200, writable=True)
    writer.engine.refresh(peer, target.engine.metadata())
    complete(writer.engine.write(peer, writer.rows((50, 300)), target.rows((50, 300))), target)
    overlapped.engine.deregister(address + 100, 200)
    writer.engine.refresh(peer, target.engine.metadata())
    complete(writer.engine.write(peer, writer.rows((0, size)), target.rows((0, size))), target)
    assert np.array_equal(target.memory, writer.memory)


def test_only_what_was_registered_is_deregistered(hosts: Hosts) -> None:
    address, size = (host := hosts.host()).region()
    with pytest.raises(KeyError):
        host.engine.deregister(address, size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda metadata: b"",
        lambda metadata: metadata[: len(metadata) // 2],
        lambda metadata: metadata + b"\0",
        lambda metadata: metadata[:-1],
        lambda metadata: bytes(len(metadata)),
        lambda metadata: bytes(MAX_METADATA + 1),
        lambda metadata: metadata.replace(b"e", b"\xff"),
        lambda metadata: b"\x81\xa1a\x01",
        lambda metadata: b"[1, 2]",
    ],
)
def test_metadata_that_is_of_no_use_is_refused(hosts: Hosts, damage: Callable[[bytes], bytes]) -> None:
    writer, target = hosts.host(fill=1), hosts.host()
    metadata = target.engine.metadata()
    with pytest.raises(EngineFailed):
        writer.engine.connect(damage(metadata))
    peer = connect(writer, target)
    with pytest.raises(EngineFailed):
        writer.engine.refresh(peer, damage(metadata))
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)


def test_no_engine_is_connected_to_itself_or_to_one_twice(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    for metadata in writer.engine.metadata(), target.engine.metadata():
        with pytest.raises(EngineFailed):
            writer.engine.connect(metadata)
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)


def test_a_peer_is_not_refreshed_with_the_metadata_of_another(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    with pytest.raises(EngineFailed):
        writer.engine.refresh(peer, hosts.host().engine.metadata())
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)


def test_a_peer_that_is_left_is_not_written_to_and_may_be_connected_again(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    writer.engine.disconnect(peer)
    writer.engine.disconnect(peer)
    for refused in (
        lambda: writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))),
        lambda: writer.engine.refresh(peer, target.engine.metadata()),
        lambda: writer.engine.reconnect(peer),
    ):
        with pytest.raises(EngineFailed):
            refused()
    assert writer.engine.connect(target.engine.metadata()) == peer
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)


def test_what_is_under_way_outlives_the_leaving(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    writer.engine.disconnect(peer)
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10)))
    complete(writing, target)
    assert np.array_equal(target.memory, writer.memory)
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10)))
    assert writer.engine.connect(target.engine.metadata()) == peer


def test_a_peer_comes_back_while_it_is_being_written_to(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    writer.engine.disconnect(peer)
    later = Host(target.engine, np.zeros(100, np.uint8))
    later.engine.register(*later.region(), writable=True)
    assert writer.engine.connect(target.engine.metadata()) == peer
    second = writer.engine.write(peer, writer.rows((0, 100)), later.rows((0, 100)))
    complete(writing, target)
    complete(second, target)
    assert np.array_equal(target.memory, writer.memory) and np.array_equal(later.memory, writer.memory[:100])
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)


def test_a_target_may_leave_its_writer_while_it_is_written_to(hosts: Hosts) -> None:
    writer, target = hosts.host(LARGE, fill=1), hosts.host(LARGE)
    name_of_writer = target.engine.connect(writer.engine.metadata())
    writing = large_writing(writer, target, writer.engine.connect(target.engine.metadata()))
    target.engine.disconnect(name_of_writer)
    complete(writing, target)
    assert target.memory.all()


def test_nothing_is_released_while_it_is_under_way(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    with pytest.raises(RuntimeError, match="under way"):
        writing.release()
    complete(writing, target)
    writing.release()
    assert writing.poll()


def test_a_peer_is_reached_anew(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    assert writer.engine.reconnect(peer), "nothing has failed"
    with pytest.raises(EngineFailed):
        writer.engine.write(peer, writer.rows((0, 10)), target.rows((LARGE, 10)))
    assert not writer.engine.reconnect(peer), "the other writing is under way"
    complete(writing, target)
    target.memory[:] = 0
    assert writer.engine.reconnect(peer)
    for _ in range(2):
        complete(large_writing(writer, target, peer), target)
        assert writer.engine.reconnect(peer)
    assert np.array_equal(target.memory, writer.memory)


def test_who_asks_later_does_not_reach_anew_what_was_reached(hosts: Hosts) -> None:
    """Two transfers have failed with the connection: the one that begins again first is not disturbed by the other."""
    writer, target, peer = hosts.pair(LARGE)
    for _ in range(2):
        with pytest.raises(EngineFailed):
            writer.engine.write(peer, writer.rows((0, 10)), target.rows((LARGE, 10)))
    assert writer.engine.reconnect(peer)
    writing = large_writing(writer, target, peer)
    assert writer.engine.reconnect(peer)
    complete(writing, target)


def test_a_peer_that_is_gone_is_not_reached_anew(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    target.engine.close()
    with pytest.raises(EngineFailed):
        complete(writing)
    with pytest.raises(EngineFailed):
        if writer.engine.reconnect(peer):
            complete(large_writing(writer, target, peer))


def test_nothing_is_written_after_the_end_of_the_target(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    target.engine.close()
    target.memory[:] = 0
    with pytest.raises(EngineFailed):
        complete(writing)
    with pytest.raises(EngineFailed):
        writing.poll()
    writing.release()
    for _ in range(100):
        writer.engine.progress()
    assert not target.memory.any()


def test_what_a_closed_writer_had_under_way_fails_and_its_target_goes_on(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(LARGE)
    writing = large_writing(writer, target, peer)
    writer.engine.close()
    for _ in range(100):
        target.engine.progress()
        with pytest.raises(EngineFailed):
            writing.poll()
    writing.release()
    other = hosts.host(100, fill=9)
    complete(other.engine.write(connect(other, target), other.rows((0, 100)), target.rows((0, 100))), target)
    assert target.memory[:100].tolist() == [9] * 100


def test_a_closed_engine_does_nothing_any_more(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair()
    metadata = target.engine.metadata()
    writer.engine.close()
    writer.engine.close()
    for refused in (
        writer.engine.metadata,
        writer.engine.progress,
        lambda: writer.engine.register(*writer.region(), writable=True),
        lambda: writer.engine.connect(metadata),
        lambda: writer.engine.refresh(peer, metadata),
        lambda: writer.engine.reconnect(peer),
        lambda: writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))),
    ):
        with pytest.raises(EngineFailed):
            refused()
    writer.engine.disconnect(peer)


@pytest.mark.parametrize(
    ("here", "there"),
    [([(0, 10)], [(0, 11)]), ([(0, 10)], [(0, 10), (10, 10)]), ([], [])],
)
def test_descriptors_that_do_not_pair_are_refused(
    hosts: Hosts, here: list[tuple[int, int]], there: list[tuple[int, int]]
) -> None:
    writer, target, peer = hosts.pair()
    with pytest.raises(ValueError):
        writer.engine.write(peer, writer.rows(*here), target.rows(*there))


def test_threads_write_at_once(hosts: Hosts) -> None:
    writer, target, peer = hosts.pair(1 << 20)
    failures: list[BaseException] = []
    done = threading.Event()

    def write(part: int) -> None:
        try:
            for step in range(50):
                piece = [((1 << 18) * part + 4096 * step, 4096)]
                complete(writer.engine.write(peer, writer.rows(*piece), target.rows(*piece)))
        except BaseException as failure:
            failures.append(failure)

    def attend() -> None:
        while not done.is_set():
            target.engine.progress()
            time.sleep(0)

    attendant = threading.Thread(target=attend)
    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in (attendant, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    attendant.join()
    assert not failures
    for part in range(4):
        begin = (1 << 18) * part
        assert np.array_equal(target.memory[begin : begin + 50 * 4096], writer.memory[begin : begin + 50 * 4096])


def test_a_hundred_peers(hosts: Hosts) -> None:
    count = 10 if type(hosts.engine()).__name__ == "NixlEngine" else 100
    writer = hosts.host()
    writer.memory[:count] = range(1, count + 1)
    targets = [hosts.host(4096) for _ in range(count)]
    for number, target in enumerate(targets):
        peer = connect(writer, target)
        complete(writer.engine.write(peer, writer.rows((number, 1)), target.rows((0, 1))), target)
    assert [int(target.memory[0]) for target in targets] == list(range(1, count + 1))


def in_a_child(do: Callable[[], None]) -> int:
    """The exit code of a forked child that does something."""
    child = os.fork()
    if not child:
        try:
            do()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def close_and_find_it_closed(engine: TransferEngine) -> None:
    engine.close()
    with pytest.raises(EngineFailed):
        engine.metadata()


@pytest.mark.parametrize("end", ["the writer", "the target"])
def test_a_forked_child_does_not_touch_its_parents_engine(hosts: Hosts, end: str) -> None:
    writer, target, peer = hosts.pair()
    forked = writer if end == "the writer" else target
    assert in_a_child(lambda: close_and_find_it_closed(forked.engine)) == 0
    complete(writer.engine.write(peer, writer.rows((0, 10)), target.rows((0, 10))), target)
    assert np.array_equal(target.memory[:10], writer.memory[:10])
