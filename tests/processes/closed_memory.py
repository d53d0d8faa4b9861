"""Clusters with registered memory in processes between which, or to which, the kernel closes memory."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  nobody may be unable to read it later
import ctypes
import encodings.idna  # noqa: F401
import errno
import os
import platform
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
from cluster_process import cluster_info, outcome

from llmdd import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
    Placement,
)

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
NOBODY = 65534

#: process_vm_readv and process_vm_writev.
SYSTEM_CALLS = {"x86_64": (310, 311), "aarch64": (270, 271)}

#: Large enough that it takes several messages.
DESC = CacheDesc(2, (2, 1_300_000), DataType.DT_UINT8)
BLOCKS = CacheDesc(2, (16, 100), DataType.DT_UINT8)

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: object) -> None:
    if _libc.prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")


def forbid_process_memory() -> None:
    """A sandbox in which this process may touch no process's memory by name, not even its own."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    first, second = SYSTEM_CALLS[platform.machine()]
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 0),
            (equal, 2, 0, first),
            (equal, 1, 0, second),
            (answer, 0, 0, allow),
            (answer, 0, 0, refuse),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    filters = Program(len(program) // 8, ctypes.addressof(instructions))
    _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _prctl(PR_SET_SECCOMP, 2, ctypes.byref(filters), 0, 0)


def close_own_memory() -> None:
    """Let nobody but the kernel, and who is privileged, into this process's memory."""
    drop_privileges()
    _prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_privileges() -> None:
    """Be nobody, if this is root: root may look everywhere."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # the kernel takes it away when the user changes


class Memory:
    """A node, and arrays that it has registered."""

    def __init__(self, cluster_id: int, options: dict[str, str]) -> None:
        self.datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        self.datadist.init(options)
        self.manager = self.datadist.cache_manager
        random = np.random.default_rng(cluster_id)
        self.arrays = [random.integers(0, 256, (2, 1_300_000), np.uint8) for _ in range(2)]
        self.blocks = [random.integers(0, 256, (16, 100), np.uint8) for _ in range(2)]
        keys = [CacheKey(cluster_id, 5), CacheKey(cluster_id, 6)]
        addresses = [array.ctypes.data for array in self.arrays]
        self.cache = self.manager.register_cache(DESC, addresses, keys)
        block_addresses = [array.ctypes.data for array in self.blocks]
        self.blocks_cache = self.manager.register_blocks_cache(BLOCKS, block_addresses, BlocksCacheKey(cluster_id, 3))

    def listen_address(self) -> tuple[str, int] | None:
        return self.datadist.listen_address

    def contents(self) -> list[bytes]:
        return [array.tobytes() for array in (*self.arrays, *self.blocks)]

    def addresses(self) -> list[int]:
        return self.cache.tensor_addrs

    def link(self, cluster_id: int, address: tuple[str, int]) -> LLMStatusCode:
        return self.datadist.link_clusters([cluster_info(cluster_id, address)])[0]

    def pull(self, cluster_id: int, cache_id: int) -> LLMStatusCode:
        """Theirs, registered, to ours, registered."""
        return outcome(self.manager.pull_cache, CacheKeyByIdAndIndex(cluster_id, cache_id, 1), self.cache)

    def pull_into_pool(self, cluster_id: int, cache_id: int) -> bytes:
        cache = self.manager.allocate_cache(DESC)
        self.manager.pull_cache(CacheKeyByIdAndIndex(cluster_id, cache_id, 1), cache)
        copied = b"".join(tensor[0].tobytes() for tensor in cache.tensors)
        self.manager.deallocate_cache(cache)
        return copied

    def pull_blocks(self, cluster_id: int, sources: list[int], targets: list[int]) -> LLMStatusCode:
        key = BlocksCacheKey(cluster_id, 3)
        return outcome(self.manager.pull_blocks, key, self.blocks_cache, sources, targets)

    def push(self, cluster_id: int, cache_id: int) -> LLMStatusCode:
        return outcome(self.manager.push_cache, CacheKeyByIdAndIndex(cluster_id, cache_id), self.cache, 1)

    def send(self, cluster_id: int, addresses: list[int]) -> LLMStatusCode:
        return outcome(self.manager.send_to_addresses, self.cache, cluster_id, 0, addresses)

    def lose_memory(self) -> None:
        """The program unmaps a page in the midst of its registered memory."""
        page = 4096
        within = (self.arrays[0].ctypes.data + 1_900_000) // page * page
        if _libc.munmap(ctypes.c_void_p(within), ctypes.c_size_t(page)) != 0:
            raise OSError(ctypes.get_errno(), "munmap was refused")

    def copy_to_host_and_back(self) -> LLMStatusCode:
        """Through ``swap_blocks`` and ``copy_cache``, between registered memory and a create_cpu_cache."""
        on_host = [np.zeros_like(array) for array in self.blocks]
        desc = CacheDesc(2, (16, 100), DataType.DT_UINT8, Placement.HOST)
        host = type(self.cache).create_cpu_cache(desc, [array.ctypes.data for array in on_host])
        code = outcome(self.manager.swap_blocks, self.blocks_cache, host, {block: 15 - block for block in range(16)})
        assert all((there == here[::-1]).all() for there, here in zip(on_host, self.blocks, strict=True))
        return code


def run(connection: Connection, close: Callable[[], None], cluster_id: int, options: dict[str, str]) -> None:
    """Do what comes through the pipe until it is closed, in a process that was closed first of all."""
    close()
    memory = Memory(cluster_id, options)
    connection.send("ready")
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            memory.datadist.finalize()
            return
        connection.send(getattr(memory, name)(*arguments))
