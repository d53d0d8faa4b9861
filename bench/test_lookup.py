"""Looking a bound key up from Python, beside a dictionary with tuple keys (api §3.1)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt
import pytest
from comparison import Comparer, Target
from nodes import node

from llmdd import CacheDesc, CacheKey, CacheKeyByIdAndIndex, CacheManager, DataType, LLMRole

CLUSTER_ID = 1
PAGE_SHIFT = 10
LOOKUPS_PER_ROUND = 20_000
ROUNDS = 41
TARGET = Target(max_ratio=1.5)
MANY_TARGETS = {1_000: Target(max_ns=15), 1_000_000: Target(max_ns=80)}

Place = tuple[str, int, int]


@dataclass
class Population:
    """Live caches with one key each, and a dictionary of the same keys."""

    size: int
    manager: CacheManager
    keys: list[CacheKey]
    tuples: list[Place]
    dictionary: dict[Place, CacheKeyByIdAndIndex]


@pytest.fixture(scope="module", params=[1_000, 1_000_000], ids=lambda size: f"{size:,}".replace(",", "_"))
def population(request: pytest.FixtureRequest) -> Iterator[Population]:
    size = request.param
    desc = CacheDesc(1, (1, 1 << PAGE_SHIFT), DataType.DT_INT8)
    with node(LLMRole.PROMPT, CLUSTER_ID, size << PAGE_SHIFT, PAGE_SHIFT) as datadist:
        manager = datadist.cache_manager
        keys = [CacheKey(CLUSTER_ID, req_id) for req_id in range(size)]
        tuples = [("request", 0, req_id) for req_id in range(size)]
        dictionary = {}
        for key, place in zip(keys, tuples, strict=True):
            cache = manager.allocate_cache(desc, [key])
            dictionary[place] = CacheKeyByIdAndIndex(CLUSTER_ID, cache.cache_id, 0)
        yield Population(size, manager, keys, tuples, dictionary)


@pytest.mark.parametrize("access", ["random", "repeated"])
def test_lookup(compare: Comparer, population: Population, access: str) -> None:
    lookup, dictionary = population.manager.lookup, population.dictionary
    order = list(range(population.size))
    random.Random(0).shuffle(order)
    # Every round goes on where the last one ended, so that at a million keys it comes upon cold ones.
    numbers = cycle(order) if access == "random" else cycle(order[:1])
    keys: list[CacheKey] = []
    tuples: list[Place] = []

    def choose_keys() -> None:
        chosen = list(islice(numbers, LOOKUPS_PER_ROUND))
        keys[:] = [population.keys[number] for number in chosen]
        tuples[:] = [population.tuples[number] for number in chosen]

    def look_up() -> None:
        for key in keys:
            lookup(key)

    def subscript() -> None:
        for key in tuples:
            dictionary[key]

    def verify() -> None:
        assert population.manager.live_keys == len(dictionary) == population.size
        for key, place in zip(population.keys, population.tuples, strict=True):
            found, expected = lookup(key), dictionary[place]
            assert (found.cache_id, found.batch_index) == (expected.cache_id, expected.batch_index)
        assert lookup(CacheKey(CLUSTER_ID, population.size)) is None

    compare(
        f"lookup, {access}, {population.size:,} keys",
        look_up,
        subscript,
        baseline_name="dict[tuple]",
        prepare=choose_keys,
        verify=verify,
        operations=LOOKUPS_PER_ROUND,
        rounds=ROUNDS,
        target=TARGET,
    )


@pytest.mark.parametrize("given", ["array", "keys"])
def test_lookup_many(compare: Comparer, population: Population, given: str) -> None:
    manager, dictionary = population.manager, population.dictionary
    order = list(range(population.size))
    random.Random(1).shuffle(order)
    numbers = cycle(order)
    request_ids: npt.NDArray[np.uint64] = np.empty(LOOKUPS_PER_ROUND, np.uint64)
    keys: list[CacheKey] = []
    tuples: list[Place] = []

    def choose_keys() -> None:
        chosen = list(islice(numbers, LOOKUPS_PER_ROUND))
        request_ids[:] = chosen
        keys[:] = [population.keys[number] for number in chosen]
        tuples[:] = [population.tuples[number] for number in chosen]

    def look_up() -> None:
        manager.lookup_many(request_ids if given == "array" else keys)

    def subscript() -> None:
        for key in tuples:
            dictionary[key]

    def verify() -> None:
        places = manager.lookup_many(np.arange(population.size + 1))
        assert places.cache_ids[-1] == 0
        expected = [dictionary[place].cache_id for place in population.tuples]
        assert np.array_equal(places.cache_ids[:-1], expected) and not places.batch_indices.any()
        assert np.array_equal(manager.lookup_many(population.keys).cache_ids, expected)

    compare(
        f"lookup_many, {'array of request ids' if given == 'array' else 'list of CacheKey'}, {population.size:,} keys",
        look_up,
        subscript,
        baseline_name="dict[tuple]",
        prepare=choose_keys,
        verify=verify,
        operations=LOOKUPS_PER_ROUND,
        rounds=ROUNDS,
        target=MANY_TARGETS[population.size] if given == "array" else None,
    )
