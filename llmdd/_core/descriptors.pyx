# cython: language_level=3, boundscheck=False, wraparound=False
"""Lists for transfer engines (see ``descriptors.pxd``)."""

from cython cimport final
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import numpy as np

from llmdd._core.integer_arrays cimport data_of

cdef enum:
    COLUMNS = 3                    # address, bytes, device
    FIRST_CAPACITY = 16


@final
cdef class DescriptorLists:
    """Rows of (address, bytes, 0) here and there, in pairs; what lies side by side at both ends is one row."""

    def __dealloc__(self):
        free(self.here)
        free(self.there)

    cdef int add(self, uint64_t here, uint64_t there, uint64_t size) except -1 nogil:
        """`size` bytes at `here` are to be written to `there`."""
        cdef uint64_t *last_here
        cdef uint64_t *last_there
        if self.count:
            last_here = self.here + (self.count - 1) * COLUMNS
            last_there = self.there + (self.count - 1) * COLUMNS
            if last_here[0] + last_here[1] == here and last_there[0] + last_there[1] == there:
                last_here[1] += size
                last_there[1] += size
                return 0
        if self.count == self.capacity:
            self.grow()
        last_here = self.here + self.count * COLUMNS
        last_there = self.there + self.count * COLUMNS
        last_here[0], last_here[1], last_here[2] = here, size, 0
        last_there[0], last_there[1], last_there[2] = there, size, 0
        self.count += 1
        return 0

    cdef int grow(self) except -1 nogil:
        cdef uint64_t wanted = max(FIRST_CAPACITY, 2 * self.capacity)
        cdef uint64_t *grown = <uint64_t *>realloc(self.here, wanted * COLUMNS * sizeof(uint64_t))
        if grown != NULL:
            self.here = grown
            grown = <uint64_t *>realloc(self.there, wanted * COLUMNS * sizeof(uint64_t))
        if grown == NULL:
            with gil:
                raise MemoryError(f"no memory for {wanted} descriptors")
        self.there = grown
        self.capacity = wanted
        return 0

    cdef tuple arrays(self):
        """Both lists, uint64, shape (count, 3)."""
        return as_array(self.here, self.count), as_array(self.there, self.count)


cdef object as_array(const uint64_t *rows, uint64_t count):
    array = np.empty((count, COLUMNS), np.uint64)
    if count:
        memcpy(data_of(array), rows, count * COLUMNS * sizeof(uint64_t))
    return array
