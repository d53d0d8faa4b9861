"""``CacheDesc``: what it takes, what it refuses and in which order (api §1.6, §2.2)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmdd import CacheDesc, DataType, LLMException, LLMStatusCode, Placement

GOOD: dict[str, Any] = {
    "num_tensors": 2,
    "shape": (4, 128),
    "data_type": DataType.DT_FLOAT16,
    "placement": Placement.HOST,
    "batch_dim_index": 0,
    "seq_len_dim_index": 1,
    "kv_tensor_format": "BSH",
}

# What each argument is refused for, in the order of the checks.
REFUSALS: list[tuple[str, Any, type[Exception], str]] = [
    ("num_tensors", "2", TypeError, "num_tensors only support [int], but got <class 'str'>"),
    ("num_tensors", None, TypeError, "num_tensors only support [int]"),
    ("num_tensors", np.int64(2), TypeError, "num_tensors only support [int]"),
    ("num_tensors", -1, ValueError, "num_tensors's value is out of range,-1 is not a uint32 value."),
    ("num_tensors", 2**32, ValueError, "is not a uint32 value."),
    ("shape", None, TypeError, "shape only support [list, tuple], but got <class 'NoneType'>"),
    ("shape", "44", TypeError, "shape only support"),
    ("shape", np.array([4, 4]), TypeError, "shape only support"),
    ("shape", (4, "4"), TypeError, "shape inner type only support"),
    ("shape", (4, np.int64(4)), TypeError, "shape inner type only support"),
    ("shape", (4, None), TypeError, "shape inner type only support"),
    ("data_type", None, TypeError, "data_type only support [DataType]"),
    ("data_type", 1, TypeError, "data_type only support [DataType]"),
    ("placement", None, TypeError, "placement only support [Placement]"),
    ("placement", 1, TypeError, "placement only support [Placement]"),
    ("batch_dim_index", None, TypeError, "batch_dim_index only support [int]"),
    ("batch_dim_index", "0", TypeError, "batch_dim_index only support [int]"),
    ("seq_len_dim_index", None, TypeError, "seq_len_dim_index only support [int]"),
    ("seq_len_dim_index", 2**31, ValueError, "is not a int32 value."),
    ("seq_len_dim_index", -(2**31) - 1, ValueError, "is not a int32 value."),
    ("kv_tensor_format", 1, TypeError, "kv_tensor_format only support [str]"),
]
TYPE_ORDER = list(GOOD)

# Checked only when every type is right.
RANGE_REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_dim_index": 2}, LLMException, "batch_dim_index"),
    ({"batch_dim_index": -1}, LLMException, "batch_dim_index"),
    ({"batch_dim_index": 2**70}, LLMException, "batch_dim_index"),
    ({"shape": ()}, LLMException, "batch_dim_index"),
    ({"shape": [], "seq_len_dim_index": -1}, LLMException, "batch_dim_index"),
    ({"batch_dim_index": 2, "seq_len_dim_index": 2}, LLMException, "batch_dim_index"),
    ({"seq_len_dim_index": 2}, LLMException, "seq_len_dim_index"),
    ({"seq_len_dim_index": -2}, LLMException, "seq_len_dim_index"),
    ({"seq_len_dim_index": 2, "shape": (1, 2**63)}, LLMException, "seq_len_dim_index"),
    ({"shape": (1, 2**63)}, ValueError, f"shape's value is out of range,{2**63} is not a int64 value."),
    ({"shape": (-(2**63) - 1, 1)}, ValueError, "is not a int64 value."),
]


def assert_refused(build: Callable[[], object], error: type[Exception], fragment: str) -> None:
    with pytest.raises(error) as refused:
        build()
    assert type(refused.value) is error
    assert fragment in str(refused.value)
    if isinstance(refused.value, LLMException):
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize(("name", "wrong", "error", "fragment"), REFUSALS)
def test_an_argument_is_refused_before_those_behind_it(
    name: str, wrong: Any, error: type[Exception], fragment: str
) -> None:
    assert_refused(lambda: CacheDesc(**{**GOOD, name: wrong}), error, fragment)
    later = {other: object() for other in TYPE_ORDER[TYPE_ORDER.index(name) + 1 :]}
    assert_refused(lambda: CacheDesc(**{**GOOD, name: wrong, **later}), error, fragment)


@pytest.mark.parametrize(("wrong", "error", "fragment"), RANGE_REFUSALS)
def test_indices_and_dimensions_are_checked_last(wrong: dict[str, Any], error: type[Exception], fragment: str) -> None:
    assert_refused(lambda: CacheDesc(**{**GOOD, **wrong}), error, fragment)
    assert_refused(lambda: CacheDesc(**{**GOOD, **wrong, "kv_tensor_format": 1}), TypeError, "kv_tensor_format")


def test_fields_are_as_given() -> None:
    desc = CacheDesc(**GOOD)
    assert {name: getattr(desc, name) for name in GOOD if name != "batch_dim_index"} == {
        name: value for name, value in GOOD.items() if name != "batch_dim_index"
    }
    assert (desc.batch_dim, desc.batch_size, desc.size) == (0, 4, 4 * 128 * 2)


def test_defaults() -> None:
    desc = CacheDesc(1, [8], DataType.DT_INT8)
    assert desc.placement is Placement.DEVICE
    assert (desc.batch_dim, desc.seq_len_dim_index, desc.kv_tensor_format) == (0, -1, None)


def test_bool_passes_as_int() -> None:
    desc = CacheDesc(True, (True, 3), DataType.DT_INT8, batch_dim_index=True)
    assert (desc.num_tensors, desc.batch_size, desc.size) == (1, 3, 3)


@pytest.mark.parametrize("data_type", list(DataType))
def test_size_counts_the_bytes_of_the_type(data_type: DataType) -> None:
    table = {0: 4, 1: 2, 2: 1, 3: 4, 4: 1, 6: 2, 7: 2, 8: 4, 9: 8, 10: 8, 11: 8, 12: 1, 13: 16, 27: 2}
    assert CacheDesc(1, (3, 5), data_type).size == 15 * table[data_type.value]


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 4), (2**32, 2**31), (2**62, 2), (1,) * 33])
def test_a_size_that_cannot_be_is_refused_when_asked_for(shape: tuple[int, ...]) -> None:
    desc = CacheDesc(1, shape, DataType.DT_INT8)
    for _ in range(2):
        assert_refused(lambda: desc.size, LLMException, "shape")


def test_the_largest_size() -> None:
    assert CacheDesc(1, (1, 2**63 - 1), DataType.DT_INT8).size == 2**63 - 1
    assert CacheDesc(1, (1,) * 31 + (7,), DataType.DT_INT8).size == 7
    assert_refused(lambda: CacheDesc(1, (1, 2**62), DataType.DT_INT16).size, LLMException, "int64")


def test_update_dim_forgets_the_size() -> None:
    desc = CacheDesc(1, (4, 128), DataType.DT_FLOAT16)
    assert desc.size == 1024
    desc.update_dim(0, 8)
    assert (list(desc.shape), desc.batch_size, desc.size) == ([8, 128], 8, 2048)


def test_update_dim_leaves_the_callers_list_alone() -> None:
    shape = [4, 128]
    CacheDesc(1, shape, DataType.DT_FLOAT16).update_dim(0, 8)
    assert shape == [4, 128]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("0", 1), TypeError),
        ((None, 1), TypeError),
        ((2, 1), LLMException),
        ((-1, 1), LLMException),
        ((0, "1"), TypeError),
        ((0, None), TypeError),
        ((0, 2**63), ValueError),
        ((0, np.int64(1)), TypeError),
    ],
)
def test_update_dim_refuses_and_changes_nothing(arguments: tuple[Any, Any], error: type[Exception]) -> None:
    desc = CacheDesc(1, (4, 128), DataType.DT_FLOAT16)
    with pytest.raises(error):
        desc.update_dim(*arguments)
    assert (tuple(desc.shape), desc.size) == ((4, 128), 1024)


def test_repr() -> None:
    assert repr(CacheDesc(**GOOD)) == (
        "CacheDesc(num_tensors=2, shape=(4, 128), data_type=DataType.DT_FLOAT16, placement=Placement.HOST, "
        "batch_dim_index=0, seq_len_dim_index=1,kv_tensor_format=BSH)"
    )


def test_descriptions_survive_pickling_and_copying() -> None:
    desc = CacheDesc(**GOOD)
    copies = [pickle.loads(pickle.dumps(desc, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in [*copies, copy.copy(desc), copy.deepcopy(desc)]:
        assert repr(other) == repr(desc)


@pytest.mark.parametrize("name", [*GOOD, "batch_dim", "batch_size", "size"])
def test_fields_are_read_only(name: str) -> None:
    desc = CacheDesc(**GOOD)
    with pytest.raises(AttributeError):
        setattr(desc, name, 1)
    assert repr(desc) == repr(CacheDesc(**GOOD))
