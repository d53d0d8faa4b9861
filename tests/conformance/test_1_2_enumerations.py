"""api §1.2: enumerations and their values."""

from __future__ import annotations

from enum import Enum, IntEnum

import pytest

import llmdd
from llmdd import CacheDesc, DataType, LLMRole, LLMStatusCode, Memtype, Placement, RegisterMemStatus
from llmdd._core.enumerations import PushType

BASE = 0x5010B000
ENUMERATIONS: list[tuple[type[Enum], type[Enum], dict[str, int]]] = [
    (LLMRole, IntEnum, {"PROMPT": 1, "DECODER": 2, "MIX": 3}),
    (Placement, IntEnum, {"HOST": 0, "DEVICE": 1}),
    (RegisterMemStatus, Enum, {"OK": 0, "PREPARING": 1, "FAILED": 2}),
    (Memtype, Enum, {"MEM_TYPE_DEVICE": 0, "MEM_TYPE_HOST": 1}),
]
DATA_TYPES = {
    "DT_FLOAT": (0, 4),
    "DT_FLOAT16": (1, 2),
    "DT_INT8": (2, 1),
    "DT_INT32": (3, 4),
    "DT_UINT8": (4, 1),
    "DT_INT16": (6, 2),
    "DT_UINT16": (7, 2),
    "DT_UINT32": (8, 4),
    "DT_INT64": (9, 8),
    "DT_UINT64": (10, 8),
    "DT_DOUBLE": (11, 8),
    "DT_BOOL": (12, 1),
    "DT_STRING": (13, 16),
    "DT_BF16": (27, 2),
}
STATUS_CODES = {
    "LLM_SUCCESS": 0,
    "LLM_FAILED": 4294967295,
    "LLM_WAIT_PROCESS_TIMEOUT": BASE + 1,
    "LLM_KV_CACHE_NOT_EXIST": BASE + 2,
    "LLM_REPEAT_REQUEST": BASE + 3,
    "LLM_REQUEST_ALREADY_COMPLETED": BASE + 4,
    "LLM_PARAM_INVALID": BASE + 5,
    "LLM_ENGINE_FINALIZED": BASE + 6,
    "LLM_NOT_YET_LINK": BASE + 7,
    "LLM_ALREADY_LINK": BASE + 8,
    "LLM_LINK_FAILED": BASE + 9,
    "LLM_UNLINK_FAILED": BASE + 10,
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": BASE + 11,
    "LLM_CLUSTER_NUM_EXCEED_LIMIT": BASE + 12,
    "LLM_PROCESSING_LINK": BASE + 13,
    "LLM_DEVICE_OUT_OF_MEMORY": BASE + 14,
    "LLM_PREFIX_ALREADY_EXIST": BASE + 15,
    "LLM_PREFIX_NOT_EXIST": BASE + 16,
    "LLM_SEQ_LENOVERLIMIT": BASE + 17,
    "LLM_NO_FREE_BLOCK": BASE + 18,
    "LLM_BLOCKS_OUT_OF_MEMORY": BASE + 19,
    "LLM_EXIST_LINK": BASE + 24,
    "LLM_FEATURE_NOT_ENABLED": BASE + 25,
    "LLM_TIMEOUT": BASE + 26,
    "LLM_LINK_BUSY": BASE + 27,
    "LLM_OUT_OF_MEMORY": BASE + 28,
    "LLM_DEVICE_MEM_ERROR": 507053,
    "LLM_SUSPECT_REMOTE_ERROR": 507057,
    "LLM_UNKNOWN_ERROR": -1,
}


@pytest.mark.parametrize(("enumeration", "base", "members"), ENUMERATIONS)
def test_members(enumeration: type[Enum], base: type[Enum], members: dict[str, int]) -> None:
    """api §1.2: base and members of the small enumerations."""
    assert issubclass(enumeration, base)
    assert issubclass(enumeration, IntEnum) == (base is IntEnum)
    assert {member.name: member.value for member in enumeration} == members


def test_data_types() -> None:
    """api §1.2: members and values of DataType."""
    assert issubclass(DataType, Enum) and not issubclass(DataType, IntEnum)
    assert {member.name: member.value for member in DataType} == {name: row[0] for name, row in DATA_TYPES.items()}


@pytest.mark.parametrize("name", DATA_TYPES)
def test_bytes_per_element(name: str) -> None:
    """api §1.2: bytes per element."""
    assert CacheDesc(1, (2, 3), DataType[name]).size == 6 * DATA_TYPES[name][1]


def test_status_codes() -> None:
    """api §1.2: members and values of LLMStatusCode; codes 20 to 23 have none."""
    assert issubclass(LLMStatusCode, IntEnum)
    assert {member.name: member.value for member in LLMStatusCode} == STATUS_CODES


@pytest.mark.parametrize("enumeration", [LLMRole, Placement, LLMStatusCode])
def test_str_names_the_class(enumeration: type[IntEnum]) -> None:
    """api §1.2: ``str()`` of LLMRole, Placement and LLMStatusCode members is ``ClassName.MEMBER``."""
    for member in enumeration:
        assert str(member) == f"{enumeration.__name__}.{member.name}"


@pytest.mark.parametrize("enumeration", [LLMRole, Placement, RegisterMemStatus, Memtype, DataType, LLMStatusCode])
def test_enumerations_are_exported(enumeration: type[Enum]) -> None:
    """api §1.2: each is a name of the package."""
    assert getattr(llmdd, enumeration.__name__) is enumeration


def test_push_type() -> None:
    """api §1.2: PushType, which is internal."""
    members = {member.name: member.value for member in PushType}
    assert members == {"NO_CACHE_KEY": 0, "BLOCKS_CACHE_KEY": 1, "CACHE_KEY_BY_ID": 2}
    assert issubclass(PushType, Enum) and not issubclass(PushType, IntEnum)
