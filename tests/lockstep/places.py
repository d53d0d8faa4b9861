"""Addresses in calls, replaced by what they are on a side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmdd.spec.values import MemInfo, TransferConfig

from .terms import Call, Place

AddressOf = Callable[[Place], int]


def located(call: Call, address_of: AddressOf) -> Call:
    """The call with an address for every :class:`~lockstep.terms.Place` in it."""
    arguments = _located(call.arguments, address_of)
    keywords = {name: _located(value, address_of) for name, value in (call.keywords or {}).items()}
    return replace(call, arguments=arguments, keywords=keywords)


def _located(value: Any, address_of: AddressOf) -> Any:
    if isinstance(value, Place):
        return address_of(value)
    if type(value) in (list, tuple):
        return type(value)(_located(element, address_of) for element in value)
    if isinstance(value, MemInfo):
        return replace(value, addr=_located(value.addr, address_of))
    if isinstance(value, TransferConfig):
        return replace(value, dst_addrs=_located(value.dst_addrs, address_of))
    return value
