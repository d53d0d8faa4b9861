"""Decisions drawn from bytes: the same bytes are the same decisions, and a few bytes changed are a few changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

_T = TypeVar("_T")

LARGEST = 2**64 - 1
_LONGEST = 48


class Draw:
    """Takes decisions from ``data`` until there is no more of it; then every decision is the first that there is."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left to be decided."""
        return self._place >= len(self._data)

    def raw(self, size: int) -> bytes:
        """At most so many bytes."""
        taken = self._data[self._place : self._place + size]
        self._place += size
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.raw(max(0, len(self._data) - self._place))

    def below(self, count: int) -> int:
        """0 to ``count`` - 1."""
        size = 1 if count <= 256 else 2
        return int.from_bytes(self.raw(size), "big") % count

    def one_in(self, count: int) -> bool:
        """Seldom."""
        return self.below(count) == count - 1

    def pick(self, values: Sequence[_T]) -> _T:
        return values[self.below(len(values))]

    def integer(self, least: int = 0, most: int = LARGEST) -> int:
        """Small numbers and those at an edge more often than others."""
        kind = self.below(4)
        if kind == 0:
            return min(most, least + self.below(8))
        if kind == 1:
            powers = [2**power for power in (7, 8, 15, 16, 31, 32, 53, 62, 63)]
            return self.pick([least, most, *(power for power in powers if least <= power <= most)])
        if kind == 2:
            return max(least, most - self.below(64))
        return least + int.from_bytes(self.raw(8), "big") % (most - least + 1)


class Forge:
    """Makes messages of any type. ``known``: by the name of a field, values that mean something to the receiver."""

    def __init__(self, draw: Draw, known: dict[str, list[Any]]) -> None:
        self._draw = draw
        self._known = known

    def message(self, kind: type) -> Any:
        """A message that its type admits."""
        return self._value(inspect.type_info(kind), "")

    def altered(self, message: msgspec.Struct) -> Any:
        """A message with some fields changed."""
        fields = inspect.type_info(type(message)).fields  # type: ignore[attr-defined]
        if not fields:
            return message
        changed = [self._draw.pick(fields) for _ in range(1 + self._draw.below(2))]
        return msgspec.structs.replace(message, **{each.name: self._value(each.type, each.name) for each in changed})

    def _value(self, info: Any, name: str) -> Any:
        draw = self._draw
        known = self._known.get(name)
        if known and not draw.one_in(3):
            return draw.pick(known)
        match info:
            case inspect.StructType():
                return info.cls(**{field.name: self._value(field.type, field.name) for field in info.fields})
            case inspect.UnionType():
                return self._value(draw.pick(info.types), name)
            case inspect.IntType():
                return draw.integer(0 if info.ge is None else info.ge, info.le if info.le is not None else LARGEST)
            case inspect.BoolType():
                return bool(draw.below(2))
            case inspect.BytesType():
                least = info.min_length or 0
                return draw.raw(least + draw.below(_LONGEST)).ljust(least, b"\0")[: info.max_length or _LONGEST]
            case inspect.StrType():
                return draw.raw(draw.below(16)).decode("latin-1")
            case inspect.DictType():
                return {self._value(info.key_type, name): draw.integer() for _ in range(draw.below(4))}
            case inspect.ListType():
                count = (info.min_length or 0) + draw.below(4)
                return [self._value(info.item_type, name) for _ in range(count)]
            case inspect.VarTupleType():
                return tuple(self._value(info.item_type, name) for _ in range((info.min_length or 0) + draw.below(4)))
            case inspect.TupleType():
                return tuple(self._value(item, name) for item in info.item_types)
            case inspect.EnumType():
                return draw.pick(list(info.cls))
            case inspect.LiteralType():
                return draw.pick(list(info.values))
            case inspect.FloatType():
                return float(draw.integer())
            case inspect.NoneType():
                return None
        raise NotImplementedError(f"no values of {info} are known")


def damaged(draw: Draw, payload: bytes) -> bytes:
    """Some bytes of it changed, left out or added."""
    altered = bytearray(payload)
    for _ in range(1 + draw.below(3)):
        place = draw.below(max(1, len(altered)))
        kind = draw.below(5)
        if kind == 0 and altered:
            altered[place] = draw.below(256)
        elif kind == 1:
            del altered[place : place + 1 + draw.below(8)]
        elif kind == 2:
            altered[place:place] = draw.raw(1 + draw.below(8))
        elif kind == 3:
            del altered[place:]
        else:
            # What announces more than there is, or stands deeper than anybody digs.
            altered[place:place] = draw.pick(
                [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 9000, b"\xd9\xff"]
            )
    return bytes(altered)
