"""Numbers that a call is given, as an array or in a sequence, and the arrays that it answers with."""

from libc.stdint cimport uint64_t


cdef class Integers:
    # As they were when the call began, side by side.
    cdef const uint64_t *values
    cdef uint64_t count
    cdef uint64_t *own             # of a sequence
    cdef object array              # of an array


cdef Integers checked_integers(str name, object numbers, str type_name, uint64_t high, str wanted=*)
cdef tuple sequence_or_none(str name, object items, str wanted)
cdef void *data_of(object array) except NULL
