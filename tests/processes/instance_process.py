"""An instance used as a program uses it, with answers that can be written as JSON.

As a program, one that does what lines of JSON on its standard input say, and answers in kind.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rank_tables import rank_table

from llmdd import (
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
)

PATIENCE_S = 60.0
RETRIED = {"LLM_TIMEOUT", "LLM_LINK_BUSY", "LLM_PROCESSING_LINK", "LLM_REPEAT_REQUEST"}
DESC = CacheDesc(2, (1, 4096), DataType.DT_UINT8)

_PR_SET_DUMPABLE = 4
_CAP_SYS_PTRACE = 19
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{arguments}")


def renounce_ptrace() -> None:
    """Give up, in this thread and those it starts, the right to read any process's memory, if it has it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for the higher capabilities
    _call(_libc.capget, header, sets)
    for place in range(3):
        sets[place] &= ~(1 << _CAP_SYS_PTRACE)
    _call(_libc.capset, header, sets)


def code_of(call: Callable[[], object]) -> str:
    """What became of a call: ``LLM_SUCCESS``, or the code of its exception."""
    try:
        call()
    except LLMException as error:
        return error.status_code.name
    return "LLM_SUCCESS"


class Instance:
    def __init__(self, cluster_id: int, options: dict[str, str]) -> None:
        self.cluster_id = cluster_id
        self.datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        self.datadist.init(options)
        self.options = options
        self.arrays: dict[int, list[np.ndarray]] = {}

    def address(self) -> tuple[str, int] | None:
        return self.datadist.listen_address

    # -- communicators ----------------------------------------------------------------------------------------------

    def link(self, name: str, ranks: list[int], table: str) -> int:
        """``ranks`` are the cluster ids, in the order of their ranks 0, 1, and so on."""
        return self.datadist.link(name, {cluster_id: rank for rank, cluster_id in enumerate(ranks)}, table)

    def status(self, communicator: int) -> str:
        return self.datadist.query_register_mem_status(communicator).name

    def unlink(self, communicator: int) -> str:
        return code_of(lambda: self.datadist.unlink(communicator))

    def rank_table(self, ranks: int) -> str:
        return rank_table(ranks)

    def link_persistently(self, name: str, ranks: list[int], table: str) -> int:
        """Link, poll, and after a failure unlink and link again, until it is OK; the id of the communicator."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            communicator = self.link(name, ranks, table)
            while (status := self.status(communicator)) == "PREPARING":
                time.sleep(0.005)
            if status == "OK":
                return communicator
            self.unlink(communicator)
        raise TimeoutError(f"{name} has not come about within {PATIENCE_S} s")

    # -- one-sided links --------------------------------------------------------------------------------------------

    def link_cluster(self, cluster_id: int, host: str, port: int, timeout: int = 5000) -> str:
        return self.datadist.link_clusters([cluster(cluster_id, host, port)], timeout)[0].name

    def unlink_cluster(self, cluster_id: int, host: str, port: int, force: bool, timeout: int = 5000) -> str:
        return self.datadist.unlink_clusters([cluster(cluster_id, host, port)], timeout, force)[0].name

    # -- caches -----------------------------------------------------------------------------------------------------

    def bind(self, req_id: int, fill: int) -> None:
        """A cache filled with one number, to be pulled by its key."""
        cache = self.datadist.cache_manager.allocate_cache(DESC, [CacheKey(self.cluster_id, req_id)])
        for tensor in cache.tensors:
            tensor[:] = fill
        self.datadist.cache_manager.deallocate_cache(cache)

    def pull(self, cluster_id: int, req_id: int) -> int | str:
        """The number a peer's cache is filled with, or the code of what went wrong."""
        return self._pull(CacheKey(cluster_id, req_id))

    def pull_persistently(self, cluster_id: int, req_id: int, host: str, port: int) -> tuple[int, list[str]]:
        """As programs pull: retry on some codes, and on others unlink by force and link again; the number, at last.

        Also every code that was seen on the way.
        """
        seen: list[str] = []
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = self.pull(cluster_id, req_id)
            if not isinstance(answer, str):
                return answer, seen
            seen.append(answer)
            if answer not in RETRIED:
                seen.append(self.unlink_cluster(cluster_id, host, port, True))
                seen.append(self.link_cluster(cluster_id, host, port))
        raise TimeoutError(f"request {req_id} could not be pulled within {PATIENCE_S} s: {seen[-10:]}")

    def _pull(self, key: CacheKey | CacheKeyByIdAndIndex) -> int | str:
        manager = self.datadist.cache_manager
        cache = manager.allocate_cache(DESC)
        try:
            manager.pull_cache(key, cache)
            return int(cache.tensors[1][0, -1])
        except LLMException as error:
            return error.status_code.name
        finally:
            manager.deallocate_cache(cache)

    # -- registered memory, and what the kernel thinks of it ----------------------------------------------------------

    def register(self, req_id: int, fill: int) -> list[int]:
        """A cache over memory of this program, filled with one number: its id and the addresses of its tensors."""
        arrays = [np.full(DESC.size, fill, np.uint8) for _ in range(DESC.num_tensors)]
        addresses = [int(array.ctypes.data) for array in arrays]
        cache = self.datadist.cache_manager.register_cache(
            DESC, addresses, [CacheKey(self.cluster_id, req_id)], remote_accessible=True
        )
        self.arrays[cache.cache_id] = arrays
        return [cache.cache_id, *addresses]

    def registered(self, cache_id: int) -> list[int]:
        """The first and the last byte of each tensor."""
        return [int(array[place]) for array in self.arrays[cache_id] for place in (0, -1)]

    def push(self, cluster_id: int, cache_id: int, fill: int) -> str:
        """Push a cache filled with one number into a cache of a peer's."""
        manager = self.datadist.cache_manager
        cache = manager.allocate_cache(DESC)
        for tensor in cache.tensors:
            tensor[:] = fill
        try:
            return code_of(lambda: manager.push_cache(CacheKeyByIdAndIndex(cluster_id, cache_id), cache))
        finally:
            manager.deallocate_cache(cache)

    def pull_by_id(self, cluster_id: int, cache_id: int) -> int | str:
        """As :meth:`pull`, by id."""
        return self._pull(CacheKeyByIdAndIndex(cluster_id, cache_id))

    def keep_memory_to_itself(self) -> None:
        """Forbid every process without special rights to read this one's memory."""
        _call(_libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)

    def read_memory(self, pid: int, address: int) -> str:
        """What the kernel says to reading another process's memory."""
        byte = ctypes.c_char()
        local = (ctypes.c_void_p * 2)(ctypes.addressof(byte), 1)
        remote = (ctypes.c_void_p * 2)(address, 1)
        read = _libc.process_vm_readv(pid, local, 1, remote, 1, 0)
        return "read" if read == 1 else errno.errorcode[ctypes.get_errno()]

    def finalize(self) -> None:
        self.datadist.finalize()

    def pid(self) -> int:
        return os.getpid()


def cluster(cluster_id: int, host: str, port: int) -> LLMClusterInfo:
    info = LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info(host, 0)
    info.append_remote_ip_info(host, port)
    return info


def main() -> None:
    logging.basicConfig(level=os.environ.get("LLMDD_TEST_LOG_LEVEL", "ERROR"))
    settings = json.loads(sys.argv[1])
    if settings.pop("without_ptrace", False):
        renounce_ptrace()
    instance = Instance(**settings)
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        answer: Any = getattr(instance, call)(*arguments)
        print(json.dumps(answer), flush=True)
    instance.finalize()


if __name__ == "__main__":
    main()
