"""Lists that change after they were checked, or that lie about their length: no call may trust them twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmdd import CacheDesc, CacheKey, DataType

KEYS = [CacheKey(1, number) for number in range(500)]


class ShorterThanItLooks(list):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 500


class LongerThanItLooks(list):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 1


class TupleLongerThanItLooks(tuple):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 0


class DifferentEachTime(list):  # type: ignore[type-arg]
    looks = 0

    def __iter__(self) -> Iterator[Any]:
        self.looks += 1
        return iter(list.copy(self)[: 2 * self.looks])


@pytest.mark.parametrize("kind", [ShorterThanItLooks, LongerThanItLooks, TupleLongerThanItLooks, DifferentEachTime])
def test_key_lists_are_taken_for_what_they_hold(make_store: Any, kind: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(CacheDesc(1, (500, 1), DataType.DT_INT8), kind(KEYS))
    bound = [store.lookup(key) for key in KEYS]
    store.check()
    assert store.live_keys == sum(found is not None for found in bound) > 0
    assert {(found.cache_id, found.batch_index) for found in bound if found} <= {
        (cache.cache_id, index) for index in range(500)
    }


class LiesAboutItsFirst(list):  # type: ignore[type-arg]
    def __getitem__(self, index: Any) -> Any:
        return 0


def test_a_shape_is_taken_for_what_it_holds(make_store: Any) -> None:
    store = make_store()
    cache = store.allocate_cache(CacheDesc(1, LiesAboutItsFirst([4, 16]), DataType.DT_INT8))
    assert cache.tensors[0].shape == (4, 16)
    store.check()


def test_a_shape_that_the_caller_changes_later_stays_as_it_was_given(make_store: Any) -> None:
    store = make_store()
    shape: list[Any] = [4, 16]
    desc = CacheDesc(1, shape, DataType.DT_INT8)
    shape[0] = 0
    shape.append("x")
    assert (list(desc.shape), desc.batch_size, desc.size) == ([4, 16], 4, 64)
    assert store.allocate_cache(desc).tensors[0].shape == (4, 16)
    store.check()


def test_what_only_says_it_is_a_key_is_refused(make_store: Any) -> None:
    class Pretender:
        __class__ = CacheKey  # type: ignore[assignment]

    store = make_store()
    assert isinstance(Pretender(), CacheKey)
    for call in (store.lookup, store.remove_cache_key):
        with pytest.raises(TypeError, match="cache_key only support"):
            call(Pretender())
