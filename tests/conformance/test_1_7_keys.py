"""api §1.7: the keys."""

from __future__ import annotations

from typing import Any

import pytest

from llmdd import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

INV = 2**64 - 1


def fields(key: CacheKey) -> tuple[int, int, int, int]:
    return key.cluster_id, key.req_id, key.model_id, key.prefix_id


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((1, 2, 3, 4), {}, (1, 2, 3, 4)),
        ((1, 2), {}, (1, 2, 0, INV)),
        ((), {"cluster_id": 1, "req_id": 2}, (1, 2, 0, INV)),
        ((), {"prompt_cluster_id": 1, "req_id": 2, "model_id": 3, "prefix_id": 4}, (1, 2, 3, 4)),
    ],
)
def test_cache_key(arguments: tuple[int, ...], keywords: dict[str, int], expected: tuple[int, ...]) -> None:
    """api §1.7: positional order, keywords and defaults of CacheKey; ``prompt_cluster_id`` is ``cluster_id``."""
    key = CacheKey(*arguments, **keywords)
    assert fields(key) == expected
    assert key.prompt_cluster_id == expected[0]


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((1, 2), {}, (1, 2)),
        ((1,), {}, (1, 0)),
        ((), {"cluster_id": 1, "model_id": 2}, (1, 2)),
        ((), {"prompt_cluster_id": 1}, (1, 0)),
    ],
)
def test_blocks_cache_key(arguments: tuple[int, ...], keywords: dict[str, int], expected: tuple[int, int]) -> None:
    """api §1.7: positional order, keywords and defaults of BlocksCacheKey."""
    key = BlocksCacheKey(*arguments, **keywords)
    assert (key.cluster_id, key.model_id) == expected
    assert key.prompt_cluster_id == expected[0]


def test_cache_key_by_id_and_index() -> None:
    """api §1.7: ``(cluster_id, cache_id, batch_index=0)``."""
    key = CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)
    assert (key.cluster_id, key.cache_id, key.batch_index) == (1, 2, 3)
    assert CacheKeyByIdAndIndex(1, 2).batch_index == 0


@pytest.mark.parametrize(
    ("build", "cluster_id"),
    [
        (lambda: CacheKey(cluster_id=1, prompt_cluster_id=9, req_id=2), 1),
        (lambda: CacheKey(prompt_cluster_id=9, cluster_id=1, req_id=2), 1),
        (lambda: BlocksCacheKey(cluster_id=1, prompt_cluster_id=9), 1),
        (lambda: CacheKey(1, 2, cluster_id=9), 1),
        (lambda: CacheKey(1, 2, prompt_cluster_id=9), 1),
        (lambda: BlocksCacheKey(1, cluster_id=9), 1),
    ],
)
def test_which_spelling_wins(build: Any, cluster_id: int) -> None:
    """api §1.7: ``cluster_id`` wins over the other spelling; a positional argument over the keyword of its name."""
    assert build().cluster_id == cluster_id


def test_a_positional_req_id_wins() -> None:
    """api §1.7: a positional argument silently overrides the keyword of the same name."""
    assert fields(CacheKey(1, 2, req_id=9)) == (1, 2, 0, INV)
    assert fields(CacheKey(1, 2, 3, model_id=9)) == (1, 2, 3, INV)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (CacheKey(1, 2), "cluster_id"),
        (CacheKey(1, 2), "req_id"),
        (BlocksCacheKey(1), "model_id"),
        (CacheKeyByIdAndIndex(1, 2), "batch_index"),
    ],
)
def test_fields_are_properties(key: Any, name: str) -> None:
    """api §1.7: the fields are read-only properties."""
    with pytest.raises(AttributeError):
        setattr(key, name, 7)


def test_repr_names_every_field() -> None:
    """api §1.7: ``repr`` names every field; BlocksCacheKey repeats whichever spelling was used."""
    assert repr(CacheKey(1, 2, 3, 4)) == "CacheKey(cluster_id=1, req_id=2, prefix_id=4, model_id=3)"
    by_id = repr(CacheKeyByIdAndIndex(1, 2, 3))
    assert all(part in by_id for part in ("cluster_id=1", "cache_id=2", "batch_index=3"))
    assert "cluster_id=1" in repr(BlocksCacheKey(1, 2)) and "model_id=2" in repr(BlocksCacheKey(1, 2))
    other = repr(BlocksCacheKey(prompt_cluster_id=1, model_id=2))
    assert "prompt_cluster_id=1" in other and "model_id=2" in other


@pytest.mark.parametrize(
    "make", [lambda: CacheKey(1, 2), lambda: BlocksCacheKey(1), lambda: CacheKeyByIdAndIndex(1, 2)]
)
def test_keys_define_no_eq(make: Any) -> None:
    """api §1.7: keys define no ``__eq__``: each equals itself alone, and can be put in a set."""
    one, other = make(), make()
    assert one == one
    assert one != other
    assert len({one, other}) == 2
