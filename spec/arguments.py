"""The checks of arguments that do not look at any state (api §2.1).

Each answers a wrong argument with the contract's exception. ``bool`` passes as an integer, as everywhere in Python.
"""

from __future__ import annotations

from typing import Any

from .statecharts import Refused

RANGES = {
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


def require(condition: bool, message: str, error: str = "LLM_PARAM_INVALID") -> None:
    """Refuse with ``error`` unless ``condition`` holds."""
    if not condition:
        raise Refused(error, message)


def check_type(name: str, value: object, *types: type) -> None:
    """A value of another type, None included, is a TypeError."""
    if not isinstance(value, types):
        raise Refused("TypeError", f"{name} only support {[each.__name__ for each in types]}, but got {type(value)}")


def check_given(name: str, value: object, *types: type) -> None:
    """None is an AttributeError (api D68), a value of another type a TypeError."""
    require(value is not None, f"{name} is None", "AttributeError")
    check_type(name, value, *types)


def check_sequence(name: str, value: Any, inner: type) -> None:
    """A list or tuple of ``inner``; anything else, None included, is a TypeError."""
    check_type(name, value, list, tuple)
    for element in value:
        require(isinstance(element, inner), f"{name} inner type only support {inner.__name__}", "TypeError")


def check_list(name: str, value: Any, inner: type) -> None:
    """A list of ``inner`` and nothing else; None is an AttributeError (api D68)."""
    check_given(name, value, list)
    check_sequence(name, value, inner)


def check_dictionary(name: str, value: Any, value_type: type) -> None:
    """A dict from integers to ``value_type``; None is an AttributeError (api D68)."""
    check_given(name, value, dict)
    for key, element in value.items():
        require(isinstance(key, int), f"{name} dict key only support int", "TypeError")
        right = isinstance(element, value_type)
        require(right, f"{name} dict value only support {value_type.__name__}", "TypeError")


def check_integer(name: str, value: Any, kind: str) -> None:
    """Not an integer, or None: TypeError; beyond the range of ``kind``: ValueError."""
    check_type(name, value, int)
    lowest, highest = RANGES[kind]
    in_range = lowest <= value <= highest
    require(in_range, f"{name}'s value is out of range,{value} is not a {kind} value.", "ValueError")


def check_lease(lease: Any) -> None:
    """Milliseconds that a lease is to last; 0 is none."""
    check_type("lease", lease, int)
    require(0 <= lease < 2**31, f"lease is {lease}, it should be from 0 to {2**31 - 1} milliseconds", "ValueError")


def check_indices(name: str, value: Any) -> None:
    """A list or tuple of block indices: integers from 0 on."""
    check_sequence(name, value, int)
    for index in value:
        check_integer(name, index, "uint64")


def check_size(size: Any) -> None:
    """``size`` of a pull or a copy: -1 means the whole slot."""
    require(size == -1 or size > 0, f"size should be = -1 or > 0, but is {size}")


def check_tensor_num_per_layer(tensor_num_per_layer: Any) -> None:
    """``tensor_num_per_layer`` of any transfer, before it is compared with a cache."""
    check_integer("tensor_num_per_layer", tensor_num_per_layer, "uint32")
    require(tensor_num_per_layer > 0, "tensor_num_per_layer should be bigger than zero")


def layer_count(layers: range) -> int:
    """How many layers a range of step 1 has; ``len`` knows no number beyond 2**63."""
    return max(0, layers.stop - layers.start)


def check_pull_range(name: str, layers: Any) -> None:
    """A layer range of a pull (api §2.5)."""
    if layers is None:
        return
    check_type(name, layers, range)
    require(layers.step == 1, f"{name} step must be 1")
    require(layers.start >= 0, f"{name} is invalid, the start value is {layers.start}")
    check_integer(f"{name}.start", layers.start, "uint32")
    check_integer(f"{name}.stop", layers.stop, "uint32")
    require(layers.start < layers.stop, f"{name} is empty")


def check_push_range(name: str, layers: Any) -> None:
    """A layer range of a push: the stricter form (api §2.2)."""
    if layers is None:
        return
    check_type(name, layers, range)
    require(layers.step == 1, f"check {name}.step == 1 failed")
    require(0 <= layers.start < layers.stop, f"check {name} range.start < range.stop failed")
