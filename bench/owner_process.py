"""The owner of the caches that the pull benchmark pulls: a process of its own, told what to do by lines of JSON.

Beside its pool it writes a segment of plain shared memory, inherited as a descriptor: the source of the plain copies.
So both sources hold the same bytes, written a moment ago by the same core.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
from nodes import node
from payload import fill

from llmdd import BlocksCacheKey, CacheDesc, CacheKey, DataType, LLMDataDist, LLMRole


class Owner:
    def __init__(self, datadist: LLMDataDist, settings: dict[str, Any]) -> None:
        self._manager = datadist.cache_manager
        self._cluster_id, self._gate_fd = settings["cluster_id"], settings["gate_fd"]
        tensor_bytes, count = settings["tensor_bytes"], settings["count"]
        self._desc = CacheDesc(1, (1, tensor_bytes), DataType.DT_UINT8)
        self._blocks_desc = CacheDesc(1, (count, tensor_bytes), DataType.DT_UINT8)
        plain = mmap.mmap(settings["plain_fd"], tensor_bytes * count)
        self._plain = np.frombuffer(plain, np.uint8).reshape(count, tensor_bytes)

    def offer(self, first_req_id: int, plain_first: bool) -> None:
        """Write the payloads of the next requests into the plain segment and into caches, one bound to each request."""
        if plain_first:
            self._fill_plain(first_req_id)
        for req_id in range(first_req_id, first_req_id + len(self._plain)):
            cache = self._manager.allocate_cache(self._desc, [CacheKey(self._cluster_id, req_id)])
            fill(cache.tensors[0], req_id)
            self._manager.deallocate_cache(cache)
        if not plain_first:
            self._fill_plain(first_req_id)

    def offer_blocks(self) -> None:
        """Make the blocks cache of model 0; block `i` holds payload `i`, in the plain segment too."""
        cache = self._manager.allocate_blocks_cache(self._blocks_desc, BlocksCacheKey(self._cluster_id))
        blocks = cache.tensors[0]
        for number, block in enumerate(blocks):
            fill(block, number)
        self._fill_plain(0)

    def _fill_plain(self, first_req_id: int) -> None:
        for number, memory in enumerate(self._plain):
            fill(memory, first_req_id + number)

    def live_caches(self) -> int:
        self._manager.check()
        return self._manager.live_caches

    def hold_gil(self) -> str:
        """Say so, then keep the GIL in one call of C until a byte comes through the gate."""
        print(json.dumps("holding"), flush=True)
        byte = ctypes.create_string_buffer(1)
        if ctypes.PyDLL(None).read(self._gate_fd, byte, 1) != 1:
            raise RuntimeError("the gate was closed while the GIL was held")
        return "resumed"


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    memory_size = settings["tensor_bytes"] * settings["count"]
    with ExitStack() as stack:
        datadist = stack.enter_context(node(LLMRole.PROMPT, settings["cluster_id"], memory_size, page_shift=12))
        owner = Owner(datadist, settings)
        print(json.dumps(datadist.listen_address), flush=True)
        for line in sys.stdin:
            call, *arguments = json.loads(line)
            print(json.dumps(getattr(owner, call)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
