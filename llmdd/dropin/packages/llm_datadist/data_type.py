"""Data types, and NumPy's for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmdd import DataType as DataType


class _ByElementType(dict[Any, DataType]):
    """Keyed by scalar types such as ``numpy.float32``; found by whatever names the same, as an array's ``dtype``."""

    def __missing__(self, key: Any) -> DataType:
        for scalar_type, data_type in self.items():
            if key is not None and _is_same(scalar_type, key):
                return data_type
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


def _is_same(scalar_type: type[np.generic], key: Any) -> bool:
    try:
        return bool(np.dtype(key).type is scalar_type)
    except TypeError:
        return False


dtype_to_np_dtype: dict[DataType, type[np.generic]] = {
    DataType.DT_FLOAT: np.float32,
    DataType.DT_FLOAT16: np.float16,
    DataType.DT_INT8: np.int8,
    DataType.DT_INT32: np.int32,
    DataType.DT_UINT8: np.uint8,
    DataType.DT_INT16: np.int16,
    DataType.DT_UINT16: np.uint16,
    DataType.DT_UINT32: np.uint32,
    DataType.DT_INT64: np.int64,
    DataType.DT_UINT64: np.uint64,
    DataType.DT_DOUBLE: np.float64,
    DataType.DT_BOOL: np.bool_,
    DataType.DT_STRING: np.bytes_,
    DataType.DT_BF16: np.float16,  # of the same size: NumPy has no bfloat16
}

valid_np_dtypes = list(dtype_to_np_dtype.values())

np_dtype_to_dtype = _ByElementType(
    {numpy_type: data_type for data_type, numpy_type in dtype_to_np_dtype.items() if data_type is not DataType.DT_BF16}
)
