"""A decode worker that has heard of a request, keeps the lease of its key, and lives on without pulling."""

from __future__ import annotations

from multiprocessing.connection import Connection

from cluster_process import cluster_info

from llmdd import CacheKey, LLMDataDist, LLMRole
from llmdd._core.leases import advance_lease_clock


def run(
    connection: Connection, options: dict[str, str], address: tuple[str, int], lease_ms: int, ahead_ms: int
) -> None:
    """Keep the lease of request 1 of a cluster, whose clock is so far ahead; tell what became of the first renewal."""
    advance_lease_clock(ahead_ms)
    with LLMDataDist(LLMRole.DECODER, cluster_id=2) as datadist:
        datadist.init(options)
        datadist.link_clusters([cluster_info(1, address)])
        key = CacheKey(1, req_id=1)
        datadist.cache_manager.keep_leases([key], lease_ms)
        connection.send(datadist.cache_manager.renew_leases([key], lease_ms).tolist())
        connection.recv()
