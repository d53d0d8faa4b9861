"""Checks of arguments: TypeError for a wrong type, ValueError for a number out of its range (api §2.1)."""

from __future__ import annotations

from typing import Any

from llmdd._core.validation import check_int32 as check_int32
from llmdd._core.validation import check_int64 as check_int64
from llmdd._core.validation import check_type
from llmdd._core.validation import check_uint16 as check_uint16
from llmdd._core.validation import check_uint32 as check_uint32
from llmdd._core.validation import check_uint64 as check_uint64

Types = type[Any] | tuple[type[Any], ...] | list[type[Any]]


def check_isinstance(name: str, value: Any, types: Types) -> Any:
    """`value`, if it is an instance of one of `types`."""
    return check_type(name, value, *_listed(types))


def check_dict(name: str, value: Any, key_types: Types, value_types: Types) -> Any:
    """`value`, if it is a dictionary from such keys to such values."""
    check_type(name, value, dict)
    for key, item in value.items():
        check_type(f"{name} dict key", key, *_listed(key_types))
        check_type(f"{name} dict value", item, *_listed(value_types))
    return value


def _listed(types: Types) -> tuple[type[Any], ...]:
    return (types,) if isinstance(types, type) else tuple(types)
