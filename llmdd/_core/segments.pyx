# cython: language_level=3
"""Memory that may be shared (see ``segments.pxd``)."""

import os

from libc.stdint cimport uint64_t
from posix.fcntl cimport fcntl
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #ifndef F_SEAL_FUTURE_WRITE
    #define F_SEAL_FUTURE_WRITE 0x0010
    #endif
    """
    int F_ADD_SEALS
    int F_GET_SEALS
    int F_SEAL_SEAL
    int F_SEAL_SHRINK
    int F_SEAL_GROW
    int F_SEAL_FUTURE_WRITE


cdef class Mapping:
    def __dealloc__(self):
        self.unmap()

    cdef int unmap(self) noexcept:
        cdef char *base = self.base
        self.base = NULL
        if base != NULL:
            # Unmapping a large pool takes long enough for others to want the GIL.
            with nogil:
                munmap(base, self.size)
        return 0


cdef int create_segment(str name, uint64_t size) except -1:
    """An anonymous segment of `size` zero bytes: no name in the file system, gone with its last user."""
    cdef int fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef int seal_segment(int fd, bint writable_by_peers) except -1:
    """Fix the size for ever and, unless peers may write, let nobody map it writable who has not done so already.

    A kernel before 5.1 does not know the second seal; there peers are held to reading by the mapping they choose alone.
    """
    if not writable_by_peers:
        fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    if fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0:
        raise OSError("the kernel refused to seal a memory segment")
    return 0


cdef int require_size(int fd, uint64_t size, str what) except -1:
    """ValueError unless the segment is as large as its description says, and cannot shrink under a reader."""
    cdef int seals
    if <uint64_t>os.fstat(fd).st_size != size:
        raise ValueError(f"the {what} segment has {os.fstat(fd).st_size} bytes, its description says {size}")
    seals = fcntl(fd, F_GET_SEALS)
    if seals < 0 or not seals & F_SEAL_SHRINK:
        raise ValueError(f"the {what} segment is not sealed against shrinking")
    return 0


cdef Mapping wrapped(void *base, uint64_t size):
    if base == MAP_FAILED:
        raise MemoryError(f"the kernel refused to map {size} bytes")
    cdef Mapping mapping = Mapping.__new__(Mapping)
    mapping.base = <char *>base
    mapping.size = size
    return mapping


cdef Mapping map_private(uint64_t size):
    """Zeroed memory of this process alone; untouched pages cost nothing."""
    return wrapped(
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), size
    )


cdef Mapping map_segment(int fd, uint64_t size, bint writable):
    return wrapped(mmap(NULL, size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, 0), size)


cdef Mapping map_arena(int control_fd, uint64_t control_bytes, int references_fd, uint64_t references_bytes, bint owner):
    """Both segments of an arena at one base address; only the owner maps the control segment writable."""
    cdef uint64_t size = control_bytes + references_bytes
    cdef Mapping mapping = wrapped(mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), size)
    cdef int protection = PROT_READ | PROT_WRITE if owner else PROT_READ
    cdef void *control = mmap(mapping.base, control_bytes, protection, MAP_SHARED | MAP_FIXED, control_fd, 0)
    cdef void *references
    if control == MAP_FAILED:
        raise MemoryError(f"the kernel refused to map the control segment of {control_bytes} bytes")
    references = mmap(
        mapping.base + control_bytes,
        references_bytes,
        PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_FIXED,
        references_fd,
        0,
    )
    if references == MAP_FAILED:
        raise MemoryError(f"the kernel refused to map the references segment of {references_bytes} bytes")
    return mapping
