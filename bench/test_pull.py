"""A pull between two processes beside a plain copy of the same bytes between two shared mappings (api §3.5, §3.6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import payload
import pytest
from comparison import Comparer, Target
from nodes import link, node
from remote_owner import OwnerProcess, shared_memory

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, CacheManager, DataType, LLMRole

KIB = 1 << 10
MIB = 1 << 20

OWNER, HELD_OWNER, PULLER = 1, 2, 3

SMALL_TARGET = Target(max_ns=5_000)
RATE_TARGET = Target(max_ratio=1 / 0.95, remark="95% of the rate")
BLOCKS_TARGET = Target(max_ratio=1 / 0.85, remark="85% of the rate")
HELD_TARGET = Target(max_ratio=1.1, remark="as fast, within noise")

HELD_PULLS = 256


@pytest.mark.parametrize(
    ("size", "count", "rounds"),
    [
        pytest.param(4 * KIB, 256, 41, id="4KiB"),
        pytest.param(64 * KIB, 64, 41, id="64KiB"),
        pytest.param(MIB, 16, 41, id="1MiB"),
        pytest.param(16 * MIB, 2, 21, id="16MiB"),
        pytest.param(256 * MIB, 1, 7, id="256MiB"),
    ],
)
def test_pull(compare: Comparer, request: pytest.FixtureRequest, size: int, count: int, rounds: int) -> None:
    with (
        shared_memory(size * count) as (plain_source_fd, plain_source),
        shared_memory(size * count) as (_, plain_target),
        OwnerProcess(OWNER, plain_source_fd, size, count) as owner,
        node(LLMRole.DECODER, PULLER, size * count, page_shift=12) as datadist,
    ):
        link(datadist, OWNER, owner.address)
        manager = datadist.cache_manager
        cache = manager.allocate_cache(CacheDesc(1, (count, size), DataType.DT_UINT8))
        copied = np.frombuffer(plain_target, np.uint8).reshape(count, size)
        copies = [
            (memoryview(plain_target)[begin : begin + size], memoryview(plain_source)[begin : begin + size])
            for begin in range(0, size * count, size)
        ]
        keys: list[CacheKey] = []
        offers = 0

        def offer() -> None:
            nonlocal keys, offers
            first = offers * count
            keys = [CacheKey(OWNER, req_id) for req_id in range(first, first + count)]
            owner.call("offer", first, offers // 2 % 2 == 0)
            offers += 1

        def pull() -> None:
            pull_cache = manager.pull_cache
            for batch_index, key in enumerate(keys):
                pull_cache(key, cache, batch_index)

        def copy() -> None:
            for target, source in copies:
                target[:] = source

        def inspect() -> None:
            pulled = cache.tensors[0]
            for batch_index, key in enumerate(keys):
                payload.require(pulled[batch_index], key.req_id, "pulled")
                payload.require(copied[batch_index], key.req_id, "copied")

        def verify() -> None:
            assert owner.call("live_caches") == 0, "a pull did not release its key"
            manager.check()

        compare(
            f"pull {request.node.callspec.id} between processes",
            pull,
            copy,
            baseline_name="memcpy",
            prepare=offer,
            inspect=inspect,
            verify=verify,
            operations=count,
            rounds=rounds,
            bytes_moved=size,
            target=SMALL_TARGET if size == 4 * KIB else RATE_TARGET if size >= MIB else None,
        )


def test_pull_of_scattered_blocks(compare: Comparer) -> None:
    size, count = 16 * KIB, 1024
    with (
        shared_memory(size * count) as (plain_source_fd, plain_source),
        shared_memory(size * count) as (_, plain_target),
        OwnerProcess(OWNER, plain_source_fd, size, count) as owner,
        node(LLMRole.DECODER, PULLER, size * count, page_shift=12) as datadist,
    ):
        link(datadist, OWNER, owner.address)
        owner.call("offer_blocks")
        manager = datadist.cache_manager
        cache = manager.allocate_blocks_cache(CacheDesc(1, (count, size), DataType.DT_UINT8))
        key = BlocksCacheKey(OWNER)
        pulled, copied = cache.tensors[0], np.frombuffer(plain_target, np.uint8).reshape(count, size)
        random = np.random.default_rng(0)
        sources, targets = random.permutation(count).tolist(), random.permutation(count).tolist()
        to, origin = memoryview(plain_target), memoryview(plain_source)
        copies = [
            (to[target * size : (target + 1) * size], origin[source * size : (source + 1) * size])
            for source, target in zip(sources, targets, strict=True)
        ]

        def forget() -> None:
            pulled[:] = copied[:] = 0

        def pull() -> None:
            manager.pull_blocks(key, cache, sources, targets)

        def copy() -> None:
            for target, source in copies:
                target[:] = source

        def inspect() -> None:
            for source, target in zip(sources, targets, strict=True):
                payload.require(pulled[target], source, "pulled")
                payload.require(copied[target], source, "copied")

        compare(
            "pull of 1,024 scattered blocks of 16KiB",
            pull,
            copy,
            baseline_name="memcpy",
            prepare=forget,
            inspect=inspect,
            verify=manager.check,
            operations=1,
            rounds=41,
            bytes_moved=size * count,
            target=BLOCKS_TARGET,
        )


@contextmanager
def linked_to_two_owners(size: int, count: int) -> Iterator[tuple[CacheManager, list[OwnerProcess]]]:
    """A manager, and two owners in processes of their own; each offers `count` caches of `size` bytes."""
    with ExitStack() as stack:
        owners = []
        for cluster_id in (OWNER, HELD_OWNER):
            plain_fd, _ = stack.enter_context(shared_memory(size * count))
            owners.append(stack.enter_context(OwnerProcess(cluster_id, plain_fd, size, count)))
        datadist = stack.enter_context(node(LLMRole.DECODER, PULLER, 2 * size * count, page_shift=12))
        for owner in owners:
            link(datadist, owner.cluster_id, owner.address)
        yield datadist.cache_manager, owners


def offer_by_turns(owners: list[OwnerProcess], offers: int, count: int) -> None:
    """Let both offer; the other one first every second time, because who writes last leaves warmer caches."""
    for owner in owners if offers // 2 % 2 else reversed(owners):
        owner.call("offer", offers * count, True)


def require_all_released(manager: CacheManager, owners: list[OwnerProcess]) -> None:
    assert [owner.call("live_caches") for owner in owners] == [0, 0], "a pull did not release its key"
    manager.check()


def test_pull_while_the_owner_holds_its_gil(compare: Comparer) -> None:
    """No message wakes the owner: a pull does not notice whether its Python runs."""
    size, count = 4 * KIB, HELD_PULLS
    with linked_to_two_owners(size, count) as (manager, owners):
        caches = [manager.allocate_cache(CacheDesc(1, (count, size), DataType.DT_UINT8)) for _ in owners]
        held = ExitStack()
        offers = 0

        def offer() -> None:
            nonlocal offers
            offer_by_turns(owners, offers, count)
            held.enter_context(owners[1].holding_its_gil())
            offers += 1

        def pull_from(number: int) -> None:
            pull_cache, cache, cluster_id = manager.pull_cache, caches[number], owners[number].cluster_id
            first = (offers - 1) * count
            for batch_index in range(count):
                pull_cache(CacheKey(cluster_id, first + batch_index), cache, batch_index)

        def inspect() -> None:
            held.close()
            for cache in caches:
                for batch_index, pulled in enumerate(cache.tensors[0]):
                    payload.require(pulled, (offers - 1) * count + batch_index, "pulled")

        compare(
            "pull 4KiB while the owner holds its GIL",
            lambda: pull_from(1),
            lambda: pull_from(0),
            baseline_name="owner idle",
            prepare=offer,
            inspect=inspect,
            verify=lambda: require_all_released(manager, owners),
            operations=count,
            rounds=41,
            bytes_moved=size,
            target=HELD_TARGET,
        )


def test_pull_many(compare: Comparer) -> None:
    """A batch of requests in one call, beside a call for each."""
    size, count, batch = 4 * KIB, 1024, 64
    with linked_to_two_owners(size, count) as (manager, owners):
        desc = CacheDesc(1, (batch, size), DataType.DT_UINT8)
        caches = [[manager.allocate_cache(desc) for _ in range(0, count, batch)] for _ in owners]
        request_ids = np.arange(count)
        keys: list[CacheKey] = []
        failures: list[bool] = []
        offers = 0

        def offer() -> None:
            nonlocal offers, request_ids
            request_ids = np.arange(offers * count, (offers + 1) * count)
            keys[:] = [CacheKey(HELD_OWNER, req_id) for req_id in request_ids.tolist()]
            offer_by_turns(owners, offers, count)
            offers += 1

        def pull_at_once() -> None:
            for number, cache in enumerate(caches[0]):
                ids = request_ids[number * batch : (number + 1) * batch]
                failures.append(manager.pull_many(ids, cache, cluster_id=OWNER).any())

        def pull_singly() -> None:
            pull_cache = manager.pull_cache
            for number, cache in enumerate(caches[1]):
                for batch_index, key in enumerate(keys[number * batch : (number + 1) * batch]):
                    pull_cache(key, cache, batch_index)

        def inspect() -> None:
            assert not any(failures)
            for pulled in caches:
                for number, cache in enumerate(pulled):
                    for batch_index, slot in enumerate(cache.tensors[0]):
                        payload.require(slot, int(request_ids[number * batch + batch_index]), "pulled")

        compare(
            "pull_many of 64 keys of 4KiB",
            pull_at_once,
            pull_singly,
            baseline_name="pull_cache",
            prepare=offer,
            inspect=inspect,
            verify=lambda: require_all_released(manager, owners),
            operations=count,
            rounds=41,
            bytes_moved=size,
        )
