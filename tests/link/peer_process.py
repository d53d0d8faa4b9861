"""A node in a process of its own, which does what lines of JSON on its standard input say, and answers in kind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey
from llmdd._core.enumerations import DataType
from llmdd._core.lease_calls import LeaseCalls
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkService, LinkTarget, handshake
from llmdd.transport import local
from llmdd.transport.engines import ENGINES

sys.path.insert(0, str(Path(__file__).parents[1] / "processes"))

from still_engine import StillEngine

DESC = CacheDesc(1, (1, 4096), DataType.DT_UINT8)


class Node:
    def __init__(
        self, cluster_id: int, remote_accessible: bool, host: str | None, handshake_constants: dict[str, Any]
    ) -> None:
        for name, value in handshake_constants.items():
            setattr(handshake, name, value)
        if host is not None:
            local.host_identity = lambda: host
            ENGINES["nixl"] = StillEngine
        self.store = LeaseCalls(
            cluster_id=cluster_id,
            device_pool=(1 << 20, 16),
            host_pool=None,
            remote_accessible=remote_accessible,
            timeout_ms=1000,
        )
        self.service = LinkService(cluster_id=cluster_id, store=self.store, remote_accessible=remote_accessible)
        self.caches: list[Any] = []

    def listen(self, host: str, port: int) -> tuple[str, int]:
        return self.service.listen(host, port)

    def link(self, cluster_id: int, host: str, port: int, timeout_ms: int) -> str:
        return self.service.link([LinkTarget(cluster_id, host, port)], timeout_ms)[0].name

    def unlink(self, cluster_id: int, host: str | None, port: int | None, timeout_ms: int, force: bool) -> str:
        return self.service.unlink([LinkTarget(cluster_id, host, port)], timeout_ms, force)[0].name

    def linked(self) -> list[int]:
        return self.service.linked_clusters()

    def allocate(self, req_id: int, fill: int) -> None:
        cache = self.store.allocate_cache(DESC, [CacheKey(self.store.cluster_id, req_id)])
        cache.tensors[0][:] = fill
        self.caches.append(cache)

    def pull(self, cluster_id: int, req_id: int) -> int:
        cache = self.store.allocate_cache(DESC)
        self.caches.append(cache)
        self.store.pull_cache(CacheKey(cluster_id, req_id), cache)
        return int(cache.tensors[0][0, -1])

    def fork(self) -> int:
        """A child that holds every descriptor and mapping of this process until it is killed."""
        end, _ = os.pipe()
        child = os.fork()
        if child == 0:
            for standard in (0, 1, 2):
                os.close(standard)
            os.read(end, 1)
            os._exit(0)
        return child

    def fork_and_finish(self) -> int:
        """The exit status of a child that closes what it inherited and ends as programs do, with all clean-up."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.service.close(1000)
        try:
            self.service.link([LinkTarget(1, "127.0.0.1", 1)], 1000)
        except LLMException as refused:
            right = refused.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED
        else:
            right = False
        sys.exit(0 if right and self.service.peers == self.store.peers == {} else 1)

    def close(self) -> None:
        self.service.close(2000)
        self.store.close()


def main() -> None:
    node = Node(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        print(json.dumps(getattr(node, call)(*arguments)), flush=True)
    node.close()


if __name__ == "__main__":
    main()
