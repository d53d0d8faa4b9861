"""The lists that a transfer engine is handed: which bytes here are to be written to where at the other end."""

from libc.stdint cimport uint64_t


cdef class DescriptorLists:
    cdef uint64_t *here
    cdef uint64_t *there
    cdef uint64_t count
    cdef uint64_t capacity
    cdef int add(self, uint64_t here, uint64_t there, uint64_t size) except -1 nogil
    cdef int grow(self) except -1 nogil
    cdef tuple arrays(self)
