"""An instance used as a program uses it, with answers that can be written as JSON.

As a program, one that does what lines of JSON on its standard input say, and answers in kind.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from llmdd import CacheDesc, CacheKey, DataType, LLMClusterInfo, LLMDataDist, LLMException, LLMRole

DESC = CacheDesc(2, (1, 4096), DataType.DT_UINT8)


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
        manager = self.datadist.cache_manager
        cache = manager.allocate_cache(DESC)
        try:
            manager.pull_cache(CacheKey(cluster_id, req_id), cache)
            return int(cache.tensors[1][0, -1])
        except LLMException as error:
            return error.status_code.name
        finally:
            manager.deallocate_cache(cache)

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
    instance = Instance(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        answer: Any = getattr(instance, call)(*arguments)
        print(json.dumps(answer), flush=True)
    instance.finalize()


if __name__ == "__main__":
    main()
