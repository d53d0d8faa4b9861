"""Any message of a kind: hypothesis strategies made from the message types themselves."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

LARGEST = 2**64 - 1
_LONGEST_BYTES = 64
_LONGEST_LIST = 4


def any_of(kind: type) -> st.SearchStrategy[Any]:
    """Every value that the type admits, small and extreme ones above all; bytes and lists are kept short."""
    return _any(inspect.type_info(kind))


def replaced(message: msgspec.Struct) -> st.SearchStrategy[Any]:
    """A message with one or two of its fields changed."""
    fields = {field.name: field.type for field in inspect.type_info(type(message)).fields}  # type: ignore[attr-defined]

    def with_others(names: list[str]) -> st.SearchStrategy[Any]:
        others = st.fixed_dictionaries({name: _any(fields[name]) for name in names})
        return others.map(lambda changes: msgspec.structs.replace(message, **changes))

    return st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True).flatmap(with_others)


def _any(info: Any) -> st.SearchStrategy[Any]:
    match info:
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            least = 0 if info.ge is None else info.ge
            most = LARGEST if info.le is None else info.le
            edges = [least, most, (least + most) // 2, *(2**power for power in range(64) if least <= 2**power <= most)]
            return st.sampled_from(edges) | st.integers(least, min(most, least + 4)) | st.integers(least, most)
        case inspect.BytesType():
            most = _LONGEST_BYTES if info.max_length is None else min(info.max_length, _LONGEST_BYTES)
            words = st.lists(st.integers(0, 4) | st.integers(0, LARGEST), max_size=most // 8)
            return words.map(lambda numbers: b"".join(n.to_bytes(8, "little") for n in numbers)) | st.binary(
                max_size=most
            )
        case inspect.ListType():
            least = info.min_length or 0
            return st.lists(_any(info.item_type), min_size=least, max_size=max(least, _LONGEST_LIST))
        case inspect.TupleType():
            return st.tuples(*(_any(item) for item in info.item_types))
        case inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case inspect.StructType():
            return st.builds(info.cls, **{field.name: _any(field.type) for field in info.fields})
    raise NotImplementedError(f"no values of {info} are known")
