# cython: language_level=3, boundscheck=False, wraparound=False
"""Numbers as arrays (see ``integer_arrays.pxd``)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cython cimport final
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from collections.abc import Sequence
from operator import index

import numpy as np

from llmdd._core.status import MissingArgument
from llmdd._core.validation cimport check_range, wrong_type

cdef object _UINT64 = np.dtype(np.uint64)


@final
cdef class Integers:
    """Numbers side by side."""

    def __dealloc__(self):
        free(self.own)


cdef Integers checked_integers(str name, object numbers, str type_name, uint64_t high, str wanted="int"):
    """An integer array of one dimension, or a sequence of whole numbers, all in [0, high].

    `wanted` names what else the sequence might have been of.

    Another type is TypeError, None a MissingArgument; a negative number, one that is too large, or an array of another
    shape is ValueError.
    """
    cdef tuple items = sequence_or_none(name, numbers, wanted)
    if items is None:
        return from_array(name, numbers, type_name, high)
    return from_items(name, items, type_name, high, wanted)


cdef tuple sequence_or_none(str name, object items, str wanted):
    """The items of a sequence as they are now, so that nobody changes them meanwhile; None for an array."""
    if type(items) is tuple:
        return <tuple>items
    if isinstance(items, (list, tuple)):
        return tuple(items)
    if items is None:
        raise MissingArgument(f"{name} only support [integer array, sequence of {wanted}], but got None")
    if hasattr(items, "__array__"):
        return None
    if isinstance(items, Sequence) and not isinstance(items, (str, bytes, bytearray)):
        return tuple(items)
    raise wrong_type(name, items, f"integer array, sequence of {wanted}")


cdef Integers from_items(str name, tuple items, str type_name, uint64_t high, str wanted):
    cdef Integers found = Integers.__new__(Integers)
    cdef uint64_t i
    cdef object item
    found.count = len(items)
    found.own = <uint64_t *>malloc((found.count + 1) * sizeof(uint64_t))
    if found.own == NULL:
        raise MemoryError(f"{found.count * sizeof(uint64_t)} bytes for {found.count} numbers")
    found.values = found.own
    # Two passes: a wrong type is told before a wrong value.
    for i in range(found.count):
        item = items[i]
        if type(item) is not int:
            items = whole_numbers(name, items, wanted)
            break
    for i in range(found.count):
        item = items[i]
        if not 0 <= item <= high:
            check_range(f"{name}[{i}]", item, type_name, 0, high)
        found.own[i] = item
    return found


cdef tuple whole_numbers(str name, tuple items, str wanted):
    """Every item as an int; TypeError if one stands for no whole number."""
    cdef list found = []
    for item in items:
        try:
            found.append(index(item))
        except TypeError:
            raise TypeError(f"{name} inner type only support [{wanted}], but got {type(item)}") from None
    return tuple(found)


cdef Integers from_array(str name, object numbers, str type_name, uint64_t high):
    """As NumPy sees it: whatever its strides, byte order and integer type."""
    cdef Integers found = Integers.__new__(Integers)
    if type(numbers) is not np.ndarray and isinstance(numbers, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, of which it is not clear what stands for the masked numbers")
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} only support [integer array], but got an array of {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} should have one dimension, but its shape is {array.shape}")
    # Checked after it was copied, lest somebody write to it meanwhile. A negative number is very large in the copy.
    copy = np.array(array, dtype=_UINT64, order="C", copy=True)
    if array.size:
        refuse_out_of_range(name, array, copy, type_name, high)
    found.array = copy
    found.count = copy.shape[0]
    found.values = <const uint64_t *>data_of(copy)
    return found


cdef int refuse_out_of_range(str name, object array, object copy, str type_name, uint64_t high) except -1:
    cdef uint64_t sign = <uint64_t>1 << 63
    signed = array.dtype.kind == "i"
    limit = min(high, sign - 1) if signed else high
    if limit == <uint64_t>-1 or copy.max() <= limit:
        return 0
    position = int(np.argmax(copy > limit))
    value = int(copy[position])
    if signed and value >= sign:
        value -= 1 << 64
    return check_range(f"{name}[{position}]", value, type_name, 0, high)


cdef void *data_of(object array) except NULL:
    """Where a contiguous array's items are, for as long as the array is kept."""
    cdef Py_buffer buffer
    cdef void *data
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    data = buffer.buf
    PyBuffer_Release(&buffer)
    return data
