"""The enumerations of the API (api §1.2)."""

from __future__ import annotations

from enum import Enum, IntEnum


class LLMRole(IntEnum):
    """What a cluster does. A label: transfers run in both directions whatever the roles (api §4.1)."""

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class Placement(IntEnum):
    """Which pool a cache lives in. Without an accelerator both are host memory, in pools of their own."""

    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class RegisterMemStatus(Enum):
    """How far a communicator of ``link`` has come."""

    OK = 0
    PREPARING = 1
    FAILED = 2


class Memtype(Enum):
    """The kind of memory that a :class:`MemInfo` describes."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class PushType(Enum):
    """How a push names its destination. No call takes or gives one; existing programs import it."""

    NO_CACHE_KEY = 0
    BLOCKS_CACHE_KEY = 1
    CACHE_KEY_BY_ID = 2


class DataType(Enum):
    """The type of a tensor's elements. The values are those of LLM-DataDist."""

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27


#: Bytes of one element of each data type.
ELEMENT_BYTES: dict[DataType, int] = {
    DataType.DT_FLOAT: 4,
    DataType.DT_FLOAT16: 2,
    DataType.DT_INT8: 1,
    DataType.DT_INT32: 4,
    DataType.DT_UINT8: 1,
    DataType.DT_INT16: 2,
    DataType.DT_UINT16: 2,
    DataType.DT_UINT32: 4,
    DataType.DT_INT64: 8,
    DataType.DT_UINT64: 8,
    DataType.DT_DOUBLE: 8,
    DataType.DT_BOOL: 1,
    DataType.DT_STRING: 16,
    DataType.DT_BF16: 2,
}
