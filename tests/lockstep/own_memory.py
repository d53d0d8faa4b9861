"""Memory of a program's own, which it can take away again."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_MAP_FIXED_NOREPLACE = 0x100000
_MAP_FAILED = ctypes.c_void_p(-1).value

#: Far from where the kernel puts anything by itself, so that what was unmapped stays so.
_FIRST_ADDRESS = 1 << 45


class OwnMemory:
    """Zero bytes, whole pages of them, at an address that nothing else ever had or will have.

    Nothing is mapped around them.
    """

    _next_address = _FIRST_ADDRESS

    def __init__(self, size: int) -> None:
        assert size % mmap.PAGESIZE == 0, f"{size} bytes are no whole pages"
        self.address = OwnMemory._next_address
        self.size = size
        OwnMemory._next_address += size + mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        found = _LIBC.mmap(self.address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        assert found == self.address, f"{size} bytes came at {found:#x}, not {self.address:#x}"

    def octets(self) -> np.ndarray:
        """All of the memory, which must not be unmapped as long as the array lives."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def unmap(self) -> None:
        if _LIBC.munmap(self.address, self.size) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
