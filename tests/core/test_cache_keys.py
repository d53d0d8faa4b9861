"""The keys: what they take, what they refuse and in which order (api §1.7, §2.2), and that they are values."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmdd import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, LLMException, LLMStatusCode

INV = 2**64 - 1

Key = CacheKey | BlocksCacheKey | CacheKeyByIdAndIndex


def assert_refused(build: Callable[[], object], error: type[Exception], fragment: str) -> None:
    with pytest.raises(error) as refused:
        build()
    assert type(refused.value) is error
    assert fragment in str(refused.value)
    if isinstance(refused.value, LLMException):
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


# ------------------------------------------------------------------------------------------------ what is accepted


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (CacheKey(1, 2), (1, 2, 0, INV)),
        (CacheKey(1, 2, 3), (1, 2, 3, INV)),
        (CacheKey(1, 2, 3, 4), (1, 2, 3, 4)),
        (CacheKey(1, req_id=2), (1, 2, 0, INV)),
        (CacheKey(cluster_id=1, req_id=2), (1, 2, 0, INV)),
        (CacheKey(prompt_cluster_id=1, req_id=2, model_id=3), (1, 2, 3, INV)),
        (CacheKey(prefix_id=4, model_id=3, req_id=INV, cluster_id=1), (1, INV, 3, 4)),
        # `cluster_id` wins over the other spelling, a positional argument over the keyword of its name.
        (CacheKey(cluster_id=1, prompt_cluster_id=9, req_id=2), (1, 2, 0, INV)),
        (CacheKey(1, 2, cluster_id=9, req_id=9), (1, 2, 0, INV)),
        (CacheKey(1, 2, prompt_cluster_id=9), (1, 2, 0, INV)),
        (CacheKey(0, 0, 0, 0), (0, 0, 0, 0)),
        (CacheKey(INV, INV, INV, INV), (INV, INV, INV, INV)),
        (CacheKey(True, req_id=False, model_id=True), (1, 0, 1, INV)),
    ],
)
def test_cache_key_fields(key: CacheKey, fields: tuple[int, int, int, int]) -> None:
    assert (key.cluster_id, key.req_id, key.model_id, key.prefix_id) == fields
    assert key.prompt_cluster_id == key.cluster_id
    assert {type(field) for field in (key.cluster_id, key.req_id, key.model_id, key.prefix_id)} == {int}


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (BlocksCacheKey(1), (1, 0)),
        (BlocksCacheKey(1, 2), (1, 2)),
        (BlocksCacheKey(cluster_id=1, model_id=2), (1, 2)),
        (BlocksCacheKey(prompt_cluster_id=1), (1, 0)),
        (BlocksCacheKey(cluster_id=1, prompt_cluster_id=9), (1, 0)),
        (BlocksCacheKey(1, cluster_id=9, prompt_cluster_id=9), (1, 0)),
        (BlocksCacheKey(INV, INV), (INV, INV)),
        (BlocksCacheKey(True, False), (1, 0)),
    ],
)
def test_blocks_cache_key_fields(key: BlocksCacheKey, fields: tuple[int, int]) -> None:
    assert (key.cluster_id, key.model_id) == fields
    assert key.prompt_cluster_id == key.cluster_id


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (CacheKeyByIdAndIndex(1, 2), (1, 2, 0)),
        (CacheKeyByIdAndIndex(1, 2, 3), (1, 2, 3)),
        (CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3), (1, 2, 3)),
        (CacheKeyByIdAndIndex(INV, 2**63 - 1, 2**32 - 1), (INV, 2**63 - 1, 2**32 - 1)),
        (CacheKeyByIdAndIndex(0, -(2**63), 0), (0, -(2**63), 0)),
        (CacheKeyByIdAndIndex(True, True, True), (1, 1, 1)),
    ],
)
def test_cache_key_by_id_and_index_fields(key: CacheKeyByIdAndIndex, fields: tuple[int, int, int]) -> None:
    assert (key.cluster_id, key.cache_id, key.batch_index) == fields


# ------------------------------------------------------------------------------------------------- what is refused

NOT_INTEGERS: list[Any] = [None, "1", 1.0, np.int64(1), np.uint64(1), np.bool_(True), [1]]
NOT_UINT64 = [-1, 2**64, -(2**70), 2**70]


@pytest.mark.parametrize(
    ("build", "fragment"),
    [
        (lambda: CacheKey(1, 2, 3, 4, 5), "Param num is over limit"),
        (lambda: CacheKey("1", 2, 3, 4, 5), "Param num is over limit"),
        (lambda: CacheKey(), "prompt_cluster_id or cluster_id is required"),
        (lambda: CacheKey(req_id="2", other=3), "prompt_cluster_id or cluster_id is required"),
        (lambda: CacheKey("1"), "Param req_id is required"),
        (lambda: CacheKey(cluster_id=1, other=3), "Param req_id is required"),
        (lambda: CacheKey("1", "2", other=3), "Unsupported param:other"),
        (lambda: CacheKey(1, 2, cluster=3), "Unsupported param:cluster"),
    ],
)
def test_cache_key_arguments_that_do_not_fit(build: Callable[[], object], fragment: str) -> None:
    assert_refused(build, LLMException, fragment)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("wrong", NOT_INTEGERS + NOT_UINT64, ids=repr)
def test_cache_key_checks_each_id_in_turn(position: int, by_keyword: bool, wrong: Any) -> None:
    name = ("cluster_id", "req_id", "model_id", "prefix_id")[position]
    # The one in question is wrong, and so is everything behind it.
    values = [1] * position + [wrong] + ["later"] * (3 - position)
    names = ("cluster_id", "req_id", "model_id", "prefix_id")

    def build() -> CacheKey:
        return CacheKey(**dict(zip(names, values, strict=True))) if by_keyword else CacheKey(*values)

    if isinstance(wrong, int):
        assert_refused(build, ValueError, f"{name}'s value is out of range,{wrong} is not a uint64 value.")
    else:
        assert_refused(build, TypeError, f"{name} only support [int], but got {type(wrong)}")


@pytest.mark.parametrize("wrong", NOT_INTEGERS + NOT_UINT64, ids=repr)
def test_cache_key_of_two_positional_arguments_checks_as_much(wrong: Any) -> None:
    error = ValueError if isinstance(wrong, int) else TypeError
    assert_refused(lambda: CacheKey(wrong, "later"), error, "cluster_id")
    assert_refused(lambda: CacheKey(1, wrong), error, "req_id")


@pytest.mark.parametrize(
    ("build", "error", "fragment"),
    [
        (lambda: BlocksCacheKey("1", 2, 3), LLMException, "Param num is over limit"),
        (lambda: BlocksCacheKey(), LLMException, "cluster_id is required"),
        (lambda: BlocksCacheKey(model_id="2", other=1), LLMException, "cluster_id is required"),
        (lambda: BlocksCacheKey("1", "2", other=1), LLMException, "Unsupported param:other"),
        (lambda: BlocksCacheKey("1", "2"), TypeError, "The first param cluster_id only support"),
        (lambda: BlocksCacheKey(-1, "2"), TypeError, "The second param model_id only support"),
        (lambda: BlocksCacheKey(None), TypeError, "The first param cluster_id only support"),
        (lambda: BlocksCacheKey(1, None), TypeError, "The second param model_id only support"),
        (lambda: BlocksCacheKey(np.int64(1)), TypeError, "The first param cluster_id only support"),
        (lambda: BlocksCacheKey(-1, -1), ValueError, "cluster_id's value is out of range,-1 is not a uint64 value."),
        (lambda: BlocksCacheKey(1, 2**64), ValueError, f"model_id's value is out of range,{2**64} is not a uint64"),
    ],
)
def test_blocks_cache_key_refusals(build: Callable[[], object], error: type[Exception], fragment: str) -> None:
    assert_refused(build, error, fragment)


@pytest.mark.parametrize(
    ("build", "error", "fragment"),
    [
        (
            lambda: CacheKeyByIdAndIndex("1", "2", "3"),
            TypeError,
            "cluster_id only support [int], but got",
        ),
        (lambda: CacheKeyByIdAndIndex(-1, "2", "3"), ValueError, "cluster_id's value is out of range,-1"),
        (lambda: CacheKeyByIdAndIndex(1, "2", "3"), TypeError, "cache_id only support [int]"),
        (lambda: CacheKeyByIdAndIndex(1, None), TypeError, "cache_id only support [int]"),
        (lambda: CacheKeyByIdAndIndex(1, 2**63, "3"), ValueError, f"{2**63} is not a int64 value."),
        (lambda: CacheKeyByIdAndIndex(1, -(2**63) - 1), ValueError, "is not a int64 value."),
        (lambda: CacheKeyByIdAndIndex(1, 2, "3"), TypeError, "batch_index only support [int]"),
        (lambda: CacheKeyByIdAndIndex(1, 2, None), TypeError, "batch_index only support [int]"),
        (lambda: CacheKeyByIdAndIndex(1, 2, np.uint32(3)), TypeError, "batch_index only support [int]"),
        (lambda: CacheKeyByIdAndIndex(1, 2, -1), ValueError, "batch_index's value is out of range,-1 is not a uint32"),
        (lambda: CacheKeyByIdAndIndex(1, 2, 2**32), ValueError, f"{2**32} is not a uint32 value."),
        (lambda: CacheKeyByIdAndIndex(1), TypeError, ""),
        (lambda: CacheKeyByIdAndIndex(1, 2, 3, 4), TypeError, ""),
        (lambda: CacheKeyByIdAndIndex(1, 2, other=3), TypeError, ""),
    ],
)
def test_cache_key_by_id_and_index_refusals(build: Callable[[], object], error: type[Exception], fragment: str) -> None:
    assert_refused(build, error, fragment)


# ------------------------------------------------------------------------------------------------------ as values

KEYS: list[Key] = [
    CacheKey(1, 2),
    CacheKey(1, 3),
    CacheKey(2, 2),
    CacheKey(1, 2, 3),
    CacheKey(1, 2, 3, 4),
    CacheKey(1, 2, 0, 4),
    CacheKey(1, INV),
    BlocksCacheKey(1),
    BlocksCacheKey(1, 2),
    BlocksCacheKey(2, 1),
    CacheKeyByIdAndIndex(1, 2),
    CacheKeyByIdAndIndex(1, 2, 3),
    CacheKeyByIdAndIndex(1, -2, 3),
]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (CacheKey(1, 2, 3, 4), "CacheKey(cluster_id=1, req_id=2, prefix_id=4, model_id=3)"),
        (CacheKey(prompt_cluster_id=1, req_id=2), f"CacheKey(cluster_id=1, req_id=2, prefix_id={INV}, model_id=0)"),
        (BlocksCacheKey(1, 2), "BlocksCacheKey(cluster_id=1, model_id=2)"),
        (BlocksCacheKey(prompt_cluster_id=1), "BlocksCacheKey(prompt_cluster_id=1, model_id=0)"),
        (CacheKeyByIdAndIndex(1, -2, 3), "CacheKeyByIdAndIndex(cluster_id=1, cache_id=-2, batch_index=3)"),
    ],
)
def test_repr_names_every_field(key: Key, text: str) -> None:
    assert repr(key) == str(key) == text


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_repr_is_an_expression_for_the_key(key: Key) -> None:
    assert repr(eval(repr(key))) == repr(key)


def test_a_key_equals_itself_alone() -> None:
    """api §1.7: keys define no ``__eq__``."""
    for key in KEYS:
        assert key == key
        assert key != copy.deepcopy(key)
    assert len({*KEYS, *copy.deepcopy(KEYS)}) == 2 * len(KEYS)
    with pytest.raises(TypeError):
        CacheKey(1, 1) < CacheKey(1, 2)  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_survive_pickling_and_copying(key: Key) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert repr(pickle.loads(pickle.dumps(key, protocol))) == repr(key)
    assert repr(copy.copy(key)) == repr(copy.deepcopy(key)) == repr(key)


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_do_not_change(key: Key) -> None:
    before, number = repr(key), hash(key)
    for name in (
        "cluster_id",
        "prompt_cluster_id",
        "req_id",
        "model_id",
        "prefix_id",
        "cache_id",
        "batch_index",
        "new",
    ):
        with pytest.raises(AttributeError):
            setattr(key, name, 9)
    with pytest.raises(AttributeError):
        del key.cluster_id
    with contextlib.suppress(TypeError):
        key.__init__(9, 9)  # type: ignore[misc]
    assert (repr(key), hash(key)) == (before, number)


@pytest.mark.parametrize("kind", [CacheKey, BlocksCacheKey, CacheKeyByIdAndIndex])
def test_keys_cannot_be_subclassed(kind: type[Key]) -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Mutable", (kind,), {})
