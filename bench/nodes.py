"""Nodes of llmdd as the benchmarks use them, made and linked by the public API alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from llmdd import LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole, LLMStatusCode

LOOPBACK = "127.0.0.1"
TIMEOUT_MS = 30_000  # of a call: far beyond what any case takes


@contextmanager
def node(
    role: LLMRole, cluster_id: int, memory_size: int, page_shift: int, remote: bool = False, host: str = LOOPBACK
) -> Iterator[LLMDataDist]:
    """An initialised instance that listens at `host`, with a pool of so many bytes; in remote mode if `remote`."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = f"{host}:0"
    config.open_links = True  # the hosts are namespaces of this machine, which nobody else reaches
    config.sync_kv_timeout = TIMEOUT_MS
    config.enable_remote_cache_accessible = remote
    config.mem_pool_cfg = json.dumps({"memory_size": memory_size, "page_shift": page_shift})
    with LLMDataDist(role, cluster_id) as datadist:
        datadist.init(config.generate_options())
        yield datadist


def link(datadist: LLMDataDist, cluster_id: int, address: tuple[str, int], host: str = LOOPBACK) -> None:
    """Link to the cluster that listens at `address`, from an address of this host."""
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = cluster_id
    cluster.append_local_ip_info(host, 0)
    cluster.append_remote_ip_info(*address)
    status, _ = datadist.link_clusters([cluster], TIMEOUT_MS)
    if status is not LLMStatusCode.LLM_SUCCESS:
        raise RuntimeError(f"linking to cluster {cluster_id} failed: {status}")
