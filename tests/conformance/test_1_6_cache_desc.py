"""api §1.6: ``CacheDesc``."""

from __future__ import annotations

import inspect

import pytest

from llmdd import CacheDesc, DataType, LLMException, LLMStatusCode, Placement


def make(shape: tuple[int, ...] | list[int] = (4, 6), batch_dim_index: int = 0) -> CacheDesc:
    return CacheDesc(2, shape, DataType.DT_FLOAT16, Placement.HOST, batch_dim_index, 1, "BSH")


def test_constructor() -> None:
    """api §1.6: parameter names, order and defaults."""
    desc = CacheDesc(num_tensors=3, shape=[1, 2], data_type=DataType.DT_INT8)
    assert (desc.placement, desc.batch_dim, desc.seq_len_dim_index) == (Placement.DEVICE, 0, -1)
    assert desc.kv_tensor_format is None
    by_name = CacheDesc(
        num_tensors=2,
        shape=(4, 6),
        data_type=DataType.DT_FLOAT16,
        placement=Placement.HOST,
        batch_dim_index=0,
        seq_len_dim_index=1,
        kv_tensor_format="BSH",
    )
    assert repr(by_name) == repr(make())


@pytest.mark.parametrize(
    "name", ["num_tensors", "shape", "data_type", "placement", "seq_len_dim_index", "kv_tensor_format"]
)
def test_members_are_read_only_and_as_given(name: str) -> None:
    """api §1.6: the fields are read-only, as given."""
    given = {
        "num_tensors": 2,
        "shape": (4, 6),
        "data_type": DataType.DT_FLOAT16,
        "placement": Placement.HOST,
        "seq_len_dim_index": 1,
        "kv_tensor_format": "BSH",
    }
    assert getattr(make(), name) == given[name]
    with pytest.raises(AttributeError):
        setattr(make(), name, given[name])


def test_batch_dim_and_batch_size() -> None:
    """api §1.6: ``batch_dim`` is batch_dim_index, ``batch_size`` is ``shape[batch_dim_index]``."""
    desc = make((4, 6), batch_dim_index=1)
    assert (desc.batch_dim, desc.batch_size) == (1, 6)


def test_size() -> None:
    """api §1.6: ``size`` is product(shape) times element bytes."""
    assert make((4, 6)).size == 48


@pytest.mark.parametrize("shape", [(0, 1), (-1, 2), (1, -4), (2**62, 4)])
def test_size_of_a_bad_shape(shape: tuple[int, ...]) -> None:
    """api §1.6: ``size`` is LX if a dimension is ≤ 0 or on int64 overflow."""
    desc = make(shape)
    with pytest.raises(LLMException) as refused:
        desc.size  # noqa: B018
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_update_dim() -> None:
    """api §1.6: ``update_dim`` replaces one dimension and forgets the cached size; returns None."""
    desc = make((4, 6))
    assert desc.size == 48
    assert desc.update_dim(dim_index=1, dim_value=7) is None
    assert (list(desc.shape), desc.size) == ([4, 7], 56)


def test_repr() -> None:
    """api §1.6: the text of ``repr``."""
    assert repr(make()) == (
        "CacheDesc(num_tensors=2, shape=(4, 6), data_type=DataType.DT_FLOAT16, placement=Placement.HOST, "
        "batch_dim_index=0, seq_len_dim_index=1,kv_tensor_format=BSH)"
    )


def test_it_is_a_class() -> None:
    """api §1.6: programs ask ``isinstance``."""
    assert inspect.isclass(CacheDesc) and isinstance(make(), CacheDesc)
