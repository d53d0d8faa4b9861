"""Memory that may be shared: memfds, sealed, mapped, and unmapped when nobody uses them any more."""

from libc.stdint cimport uint64_t


cdef class Mapping:
    """A mapped region. The memory stays mapped as long as this object lives."""

    cdef char *base
    cdef uint64_t size
    cdef int unmap(self) noexcept

cdef int create_segment(str name, uint64_t size) except -1
cdef int seal_segment(int fd, bint writable_by_peers) except -1
cdef int require_size(int fd, uint64_t size, str what) except -1
cdef Mapping map_private(uint64_t size)
cdef Mapping map_segment(int fd, uint64_t size, bint writable)
cdef Mapping map_arena(int control_fd, uint64_t control_bytes, int references_fd, uint64_t references_bytes, bint owner)
