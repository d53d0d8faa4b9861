"""Linked instances whose slots are filled with what their keys say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from llmdd import Cache, CacheDesc, CacheKey, CacheManager, DataType, LLMDataDist, LLMException, LLMStatusCode

SLOTS = 4
SLOT_BYTES = 8
DESC = CacheDesc(2, (SLOTS, SLOT_BYTES), DataType.DT_UINT8)


@dataclass
class Owner:
    """A linked cluster that others pull from."""

    datadist: LLMDataDist

    @property
    def cluster_id(self) -> int:
        return self.datadist.cluster_id

    @property
    def manager(self) -> CacheManager:
        return self.datadist.cache_manager

    def key(self, number: int) -> CacheKey:
        return CacheKey(self.cluster_id, number)

    def publish(self, *numbers: int, desc: CacheDesc = DESC) -> Cache:
        """A cache that is held by the keys of these requests alone; each slot is full of its request's number."""
        cache = self.manager.allocate_cache(desc, [self.key(number) for number in numbers])
        for tensor in cache.tensors:
            for index, number in enumerate(numbers):
                tensor[index] = number
        self.manager.deallocate_cache(cache)
        return cache

    def bound(self, *numbers: int) -> list[bool]:
        return [place != 0 for place in self.manager.lookup_many(numbers).cache_ids.tolist()]


@dataclass
class Trio:
    """A cluster, and two owners that it is linked to."""

    puller_datadist: LLMDataDist
    one: Owner
    two: Owner

    def __post_init__(self) -> None:
        self.puller: CacheManager = self.puller_datadist.cache_manager


@pytest.fixture
def manager(make_datadist: Any) -> CacheManager:
    found: CacheManager = make_datadist(1).cache_manager
    return found


@pytest.fixture
def make_trio(make_datadist: Any, link: Any) -> Callable[..., Trio]:
    def make(**settings: Any) -> Trio:
        one, two, puller = (make_datadist(cluster, **settings) for cluster in (1, 2, 3))
        link(puller, one)
        link(puller, two)
        return Trio(puller, Owner(one), Owner(two))

    return make


@pytest.fixture
def trio(make_trio: Callable[..., Trio]) -> Iterator[Trio]:
    found = make_trio()
    yield found
    for manager in (found.puller, found.one.manager, found.two.manager):
        if not manager.closed:
            manager.check()


@pytest.fixture
def slots() -> Callable[[Cache], list[int]]:
    """What each slot, or block, is full of; the tensors agree."""

    def read(cache: Cache) -> list[int]:
        tensors = [np.asarray(tensor) for tensor in cache.tensors]
        for tensor in tensors:
            assert (tensor == tensors[0]).all()
            assert (tensor == tensor[:, :1]).all()
        return [int(row[0]) for row in tensors[0]]

    return read


@pytest.fixture
def empty() -> Callable[[CacheManager], Cache]:
    """A new cache of zeros."""

    def make(manager: CacheManager, desc: CacheDesc = DESC) -> Cache:
        cache = manager.allocate_cache(desc)
        for tensor in cache.tensors:
            tensor[:] = 0
        return cache

    return make


@pytest.fixture
def code_of() -> Callable[..., LLMStatusCode]:
    """How a call ended."""

    def made(call: Callable[..., object], *arguments: Any, **named: Any) -> LLMStatusCode:
        try:
            call(*arguments, **named)
        except LLMException as refused:
            return refused.status_code
        return LLMStatusCode.LLM_SUCCESS

    return made
