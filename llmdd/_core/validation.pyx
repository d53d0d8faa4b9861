# cython: language_level=3
"""Checks of arguments (see ``validation.pxd``)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.leases cimport LONGEST_LEASE_MS
from llmdd._core.status import MissingArgument

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef int64_t LARGEST_INT64 = 0x7FFFFFFFFFFFFFFF


cdef object wrong_type(str name, object value, str wanted):
    return TypeError(f"{name} only support [{wanted}], but got {type(value)}")


cdef int require_type(str name, object value, object wanted) except -1:
    """A value of another type is TypeError."""
    if not isinstance(value, wanted):
        raise wrong_type(name, value, wanted.__name__)
    return 0


cdef int require_present(str name, object value, object wanted) except -1:
    """As require_type, but None is a MissingArgument."""
    if value is None:
        raise MissingArgument(f"{name} only support [{wanted.__name__}], but got None")
    return require_type(name, value, wanted)


cdef int check_range(str name, object value, str type_name, object low, object high) except -1:
    if not isinstance(value, int):
        raise wrong_type(name, value, "int")
    if not low <= value <= high:
        raise ValueError(f"{name}'s value is out of range,{value} is not a {type_name} value.")
    return 0


cdef inline bint is_plain(object value, int64_t low, int64_t high, int64_t *number) except -1:
    """Whether the value is an int, and no subclass, in [low, high]: the usual case, told without an object of Python's."""
    cdef int overflow
    if type(value) is not int:
        return False
    number[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    return overflow == 0 and low <= number[0] <= high


cdef uint64_t checked_uint64(str name, object value) except? 0:
    cdef int64_t number
    if is_plain(value, 0, LARGEST_INT64, &number):
        return <uint64_t>number
    check_range(name, value, "uint64", 0, 0xFFFFFFFFFFFFFFFF)
    return value


cdef int64_t checked_int64(str name, object value) except? 0:
    cdef int64_t number
    if is_plain(value, -LARGEST_INT64, LARGEST_INT64, &number):
        return number
    check_range(name, value, "int64", -0x8000000000000000, 0x7FFFFFFFFFFFFFFF)
    return value


cdef uint32_t checked_uint32(str name, object value) except? 0:
    cdef int64_t number
    if is_plain(value, 0, 0xFFFFFFFF, &number):
        return <uint32_t>number
    check_range(name, value, "uint32", 0, 0xFFFFFFFF)
    return value


cdef int64_t checked_int32(str name, object value) except? 0:
    check_range(name, value, "int32", -0x80000000, 0x7FFFFFFF)
    return value


cdef uint64_t checked_lease_ms(object lease) except? 0:
    """How long a lease is to last, in milliseconds; 0: there is to be none."""
    if not isinstance(lease, int):
        raise wrong_type("lease", lease, "int")
    if not 0 <= lease <= LONGEST_LEASE_MS:
        raise ValueError(f"lease is {lease}, it should be from 0 to {LONGEST_LEASE_MS} milliseconds")
    return lease


def check_uint16(name, value):
    """`value` as a uint16; TypeError or ValueError otherwise."""
    check_range(name, value, "uint16", 0, 0xFFFF)
    return value


def check_uint32(name, value):
    """`value` as a uint32; TypeError or ValueError otherwise."""
    return checked_uint32(name, value)


def check_uint64(name, value):
    """`value` as a uint64; TypeError or ValueError otherwise."""
    return checked_uint64(name, value)


def check_int32(name, value):
    """`value` as an int32; TypeError or ValueError otherwise."""
    return checked_int32(name, value)


def check_int64(name, value):
    """`value` as an int64; TypeError or ValueError otherwise."""
    return checked_int64(name, value)


def check_type(name, value, *wanted):
    """`value`, if it is an instance of one of `wanted`; TypeError otherwise."""
    if not isinstance(value, wanted):
        raise wrong_type(name, value, ", ".join([one.__name__ for one in wanted]))
    return value


def check_elements(name, value, *wanted):
    """`value`, a list or tuple whose elements are instances of `wanted`; TypeError otherwise."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "list, tuple")
    for element in value:
        if not isinstance(element, wanted):
            names = ", ".join([one.__name__ for one in wanted])
            raise TypeError(f"{name} inner type only support [{names}], but got {type(element)}")
    return value
