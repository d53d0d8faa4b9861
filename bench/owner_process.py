"""The owner of the caches that the pull benchmark pulls: a process of its own, told what to do by lines of JSON.

Beside its pool it writes a segment of plain shared memory, inherited as a descriptor: the source of the plain copies.
So both sources hold the same bytes, written a moment ago by the same core.
"""

from __future__ import annotations

import json
import mmap
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
from nodes import node
from payload import fill

from llmdd import CacheDesc, CacheKey, DataType, LLMDataDist, LLMRole

CLUSTER_ID = 1


class Owner:
    def __init__(self, datadist: LLMDataDist, plain_fd: int, tensor_bytes: int, count: int) -> None:
        self._manager = datadist.cache_manager
        self._desc = CacheDesc(1, (1, tensor_bytes), DataType.DT_UINT8)
        self._plain = np.frombuffer(mmap.mmap(plain_fd, tensor_bytes * count), np.uint8).reshape(count, tensor_bytes)

    def offer(self, first_req_id: int, plain_first: bool) -> None:
        """Write the payloads of the next requests into the plain segment and into caches, one bound to each request."""
        if plain_first:
            self._fill_plain(first_req_id)
        for req_id in range(first_req_id, first_req_id + len(self._plain)):
            cache = self._manager.allocate_cache(self._desc, [CacheKey(CLUSTER_ID, req_id)])
            fill(cache.tensors[0], req_id)
            self._manager.deallocate_cache(cache)
        if not plain_first:
            self._fill_plain(first_req_id)

    def _fill_plain(self, first_req_id: int) -> None:
        for number, memory in enumerate(self._plain):
            fill(memory, first_req_id + number)

    def live_caches(self) -> int:
        self._manager.check()
        return self._manager.live_caches


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    with ExitStack() as stack:
        datadist = stack.enter_context(
            node(LLMRole.PROMPT, CLUSTER_ID, settings["tensor_bytes"] * settings["count"], page_shift=12)
        )
        owner = Owner(datadist, **settings)
        print(json.dumps(datadist.listen_address), flush=True)
        for line in sys.stdin:
            call, *arguments = json.loads(line)
            print(json.dumps(getattr(owner, call)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
