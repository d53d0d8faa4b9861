"""What llmdd relies upon in every engine: the same tests for NIXL and for the engine in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from engine_hosts import Host, Hosts, complete, connect

from llmdd.transport.engine import MAX_METADATA, EngineFailed, Reading, TransferEngine, wait

LARGE = 16 << 20


def large_reading(reader: Host, owner: Host, peer: str) -> Reading:
    """A reading that is under way until the owner lets it proceed."""
    rows = (0, reader.memory.nbytes // 2), (reader.memory.nbytes // 2, reader.memory.nbytes // 2)
    reading = reader.engine.read(peer, reader.rows(*rows), owner.rows(*rows))
    assert not reading.poll()
    return reading


def test_bytes_arrive_where_they_are_wanted_and_nowhere_else(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    here, there = [(0, 5), (100, 4096), (60000, 1)], [(7, 5), (9000, 4096), (65535, 1)]
    complete(reader.engine.read(peer, reader.rows(*here), owner.rows(*there)), owner)
    expected = np.zeros_like(reader.memory)
    for (to, size), (source, _) in zip(here, there, strict=True):
        expected[to : to + size] = owner.memory[source : source + size]
    assert np.array_equal(reader.memory, expected)


def test_many_pieces(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(1 << 20)
    order = np.random.default_rng(1).permutation(1024)
    here = reader.rows(*((1024 * i, 1024) for i in range(1024)))
    there = owner.rows(*((1024 * int(i), 1024) for i in order))
    complete(reader.engine.read(peer, here, there), owner)
    assert np.array_equal(reader.memory.reshape(1024, -1), owner.memory.reshape(1024, -1)[order])


def test_the_descriptors_are_not_kept(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    here, there = reader.rows((0, 4096)), owner.rows((0, 4096))
    reading = reader.engine.read(peer, here, there)
    here[:], there[:] = 0, 0
    complete(reading, owner)
    assert np.array_equal(reader.memory[:4096], owner.memory[:4096])


def test_either_end_reads_and_both_at_once(hosts: Hosts) -> None:
    left, right = hosts.host(fill=1), hosts.host(fill=2)
    name_of_left = right.engine.connect(left.engine.metadata())
    name_of_right = left.engine.connect(right.engine.metadata())
    to_left = left.engine.read(name_of_right, left.rows((0, 10)), right.rows((0, 10)))
    to_right = right.engine.read(name_of_left, right.rows((20, 10)), left.rows((20, 10)))
    complete(to_left, right, left)
    complete(to_right, right, left)
    assert left.memory[:10].tolist() == [2] * 10 and right.memory[20:30].tolist() == [1] * 10


def test_several_readings_under_way_end_each_by_itself(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    readings = [
        reader.engine.read(peer, reader.rows((1000 * i, 1000)), owner.rows((1000 * i, 1000))) for i in range(60)
    ]
    for reading in reversed(readings):
        complete(reading, owner)
    assert np.array_equal(reader.memory[:60000], owner.memory[:60000])


@pytest.mark.parametrize("at", ["here", "at the peer"])
def test_memory_that_is_not_registered_is_neither_read_nor_written(hosts: Hosts, at: str) -> None:
    reader, owner, peer = hosts.pair()
    inside, outside = (0, 100), (reader.memory.nbytes - 50, 100)
    here = reader.rows(outside if at == "here" else inside)
    there = owner.rows(inside if at == "here" else outside)
    with pytest.raises(EngineFailed):
        reader.engine.read(peer, here, there)
    assert not reader.memory.any()
    complete(reader.engine.read(peer, reader.rows(inside), owner.rows(inside)), owner)


def test_what_is_registered_later_is_read_after_a_refresh(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    later = Host(owner.engine, np.full(100, 9, np.uint8))
    owner.engine.register(*later.region())
    with pytest.raises(EngineFailed):
        reader.engine.read(peer, reader.rows((0, 100)), later.rows((0, 100)))
    reader.engine.refresh(peer, owner.engine.metadata())
    complete(reader.engine.read(peer, reader.rows((0, 100)), later.rows((0, 100))), owner)
    assert reader.memory[:100].tolist() == [9] * 100


def test_a_refresh_does_not_disturb_what_is_under_way(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    later = Host(owner.engine, np.full(100, 9, np.uint8))
    owner.engine.register(*later.region())
    reader.engine.refresh(peer, owner.engine.metadata())
    complete(reading, owner)
    assert np.array_equal(reader.memory, owner.memory)


def test_a_region_is_registered_as_often_as_it_is_asked_for(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    owner.engine.register(*owner.region())
    owner.engine.deregister(*owner.region())
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)
    owner.engine.deregister(*owner.region())
    with pytest.raises(KeyError):
        owner.engine.deregister(*owner.region())


def test_overlapping_regions(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    address, size = reader.region()
    reader.engine.register(address + 100, 200)
    complete(reader.engine.read(peer, reader.rows((50, 300)), owner.rows((50, 300))), owner)
    reader.engine.deregister(address + 100, 200)
    complete(reader.engine.read(peer, reader.rows((0, size)), owner.rows((0, size))), owner)
    assert np.array_equal(reader.memory, owner.memory)


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
    reader, owner = hosts.host(), hosts.host(fill=1)
    metadata = owner.engine.metadata()
    with pytest.raises(EngineFailed):
        reader.engine.connect(damage(metadata))
    peer = connect(reader, owner)
    with pytest.raises(EngineFailed):
        reader.engine.refresh(peer, damage(metadata))
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)


def test_no_engine_is_connected_to_itself_or_to_one_twice(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    for metadata in reader.engine.metadata(), owner.engine.metadata():
        with pytest.raises(EngineFailed):
            reader.engine.connect(metadata)
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)


def test_a_peer_is_not_refreshed_with_the_metadata_of_another(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    with pytest.raises(EngineFailed):
        reader.engine.refresh(peer, hosts.host().engine.metadata())
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)


def test_a_peer_that_is_left_is_not_read_from_and_may_be_connected_again(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    reader.engine.disconnect(peer)
    reader.engine.disconnect(peer)
    for refused in (
        lambda: reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))),
        lambda: reader.engine.refresh(peer, owner.engine.metadata()),
        lambda: reader.engine.reconnect(peer),
    ):
        with pytest.raises(EngineFailed):
            refused()
    assert reader.engine.connect(owner.engine.metadata()) == peer
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)


def test_what_is_under_way_outlives_the_leaving(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    reader.engine.disconnect(peer)
    with pytest.raises(EngineFailed):
        reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10)))
    with pytest.raises(EngineFailed):
        reader.engine.connect(owner.engine.metadata())
    complete(reading, owner)
    assert np.array_equal(reader.memory, owner.memory)
    reader.engine.connect(owner.engine.metadata())


def test_nothing_is_released_while_it_is_under_way(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    with pytest.raises(RuntimeError, match="under way"):
        reading.release()
    complete(reading, owner)
    reading.release()
    assert reading.poll()


def test_a_peer_is_reached_anew(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    with pytest.raises(EngineFailed):
        reader.engine.reconnect(peer)
    complete(reading, owner)
    reader.memory[:] = 0
    reader.engine.reconnect(peer)
    complete(large_reading(reader, owner, peer), owner)
    assert np.array_equal(reader.memory, owner.memory)


def test_nothing_is_written_after_the_end_of_the_engine(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    reader.engine.close()
    reader.memory[:] = 0
    for _ in range(100):
        owner.engine.progress()
        with pytest.raises(EngineFailed):
            reading.poll()
    reading.release()
    assert not reader.memory.any()


def test_a_closed_engine_does_nothing_any_more(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    metadata = owner.engine.metadata()
    reader.engine.close()
    reader.engine.close()
    for refused in (
        reader.engine.metadata,
        reader.engine.progress,
        lambda: reader.engine.register(*reader.region()),
        lambda: reader.engine.connect(metadata),
        lambda: reader.engine.refresh(peer, metadata),
        lambda: reader.engine.reconnect(peer),
        lambda: reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))),
    ):
        with pytest.raises(EngineFailed):
            refused()
    reader.engine.disconnect(peer)


def test_what_a_closed_peer_owes_fails(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    owner.engine.close()
    with pytest.raises(EngineFailed):
        complete(reading)
    with pytest.raises(EngineFailed):
        reading.poll()
    reading.release()
    reader.memory[:] = 0
    for _ in range(100):
        reader.engine.progress()
    assert not reader.memory.any()


@pytest.mark.parametrize(
    ("here", "there"),
    [([(0, 10)], [(0, 11)]), ([(0, 10)], [(0, 10), (10, 10)]), ([], [])],
)
def test_descriptors_that_do_not_pair_are_refused(
    hosts: Hosts, here: list[tuple[int, int]], there: list[tuple[int, int]]
) -> None:
    reader, owner, peer = hosts.pair()
    with pytest.raises(ValueError):
        reader.engine.read(peer, reader.rows(*here), owner.rows(*there))


def test_threads_read_at_once(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(1 << 20)
    failures: list[BaseException] = []
    done = threading.Event()

    def read(part: int) -> None:
        try:
            for step in range(50):
                piece = [((1 << 18) * part + 4096 * step, 4096)]
                complete(reader.engine.read(peer, reader.rows(*piece), owner.rows(*piece)))
        except BaseException as failure:
            failures.append(failure)

    def attend() -> None:
        while not done.is_set():
            owner.engine.progress()
            time.sleep(0)

    attendant = threading.Thread(target=attend)
    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in (attendant, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    attendant.join()
    assert not failures
    for part in range(4):
        begin = (1 << 18) * part
        assert np.array_equal(reader.memory[begin : begin + 50 * 4096], owner.memory[begin : begin + 50 * 4096])


def test_a_hundred_peers(hosts: Hosts) -> None:
    count = 10 if type(hosts.engine()).__name__ == "NixlEngine" else 100
    reader = hosts.host()
    owners = [hosts.host(4096, fill=1 + number) for number in range(count)]
    for number, owner in enumerate(owners):
        peer = connect(reader, owner)
        complete(reader.engine.read(peer, reader.rows((number, 1)), owner.rows((0, 1))), owner)
    assert reader.memory[:count].tolist() == list(range(1, count + 1))


def test_waiting_ends_when_all_has_arrived(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    reading = reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10)))

    def attend() -> bool:
        owner.engine.progress()
        return False

    assert wait(reading, time.monotonic() + 30, attend)
    reading.release()


def test_waiting_ends_with_the_deadline_and_with_a_break(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair(LARGE)
    reading = large_reading(reader, owner, peer)
    assert not wait(reading, time.monotonic(), lambda: False)
    assert not wait(reading, float("inf"), lambda: True)
    complete(reading, owner)


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


def test_a_forked_child_does_not_touch_its_parents_engine(hosts: Hosts) -> None:
    reader, owner, peer = hosts.pair()
    assert in_a_child(lambda: close_and_find_it_closed(reader.engine)) == 0
    complete(reader.engine.read(peer, reader.rows((0, 10)), owner.rows((0, 10))), owner)
    assert np.array_equal(reader.memory[:10], owner.memory[:10])
