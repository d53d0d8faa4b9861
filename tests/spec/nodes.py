"""Nodes of the reference model for its tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llmdd.spec.reference import Cluster, Node
from llmdd.spec.statecharts import Refused
from llmdd.spec.values import INV, BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex, ClusterInfo

PAGE = 1024
DESC = CacheDesc(2, (2, 8), "DT_FLOAT16")
SLOT_BYTES = 16
PLACEHOLDER = CacheKey(1, INV)
OWNER_ADDRESS = ("127.0.0.1", 5001)
TO_OWNER = ClusterInfo(1, (("127.0.0.1", 0),), (OWNER_ADDRESS,))


def key(number: int, model: int = 0) -> CacheKey:
    return CacheKey(1, number, model)


def prefix(number: int, model: int = 0) -> CacheKey:
    return CacheKey(1, INV, model, number)


def blocks_key(model: int = 0, cluster: int = 1) -> BlocksCacheKey:
    return BlocksCacheKey(cluster, model)


def by_id(cache: Cache, index: int = 0, cluster: int = 1) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(cluster, cache.cache_id, index)


def options(pages: int = 16, **others: str) -> dict[str, str]:
    pool = json.dumps({"memory_size": pages * PAGE, "page_shift": 10})
    return {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": pool, **{f"llm.{k}": v for k, v in others.items()}}


def two_nodes(pages: int = 16, **others: str) -> tuple[Node, Node]:
    """An owner that listens and a puller that has linked to it."""
    cluster = Cluster()
    owner, puller = cluster.start("owner", 1), cluster.start("puller", 2)
    owner.init(options(pages, listenIpInfo="127.0.0.1:5001", **others))
    puller.init(options(pages, **others))
    assert puller.link_clusters([TO_OWNER]) == ("LLM_SUCCESS", ["LLM_SUCCESS"])
    return owner, puller


def fill(node: Node, cache: Cache, seed: int) -> None:
    size = cache.cache_desc.size
    for tensor in range(cache.cache_desc.num_tensors):
        node.write(cache, tensor, bytes((seed + 31 * tensor + place) % 256 for place in range(size)))


def slot(node: Node, cache: Cache, index: int, tensor: int = 0) -> bytes:
    size = cache.cache_desc.size // cache.cache_desc.batch_size
    return node.contents(cache)[tensor][index * size : (index + 1) * size]


def refused(error: str, call: Callable[[], Any], cluster: Cluster, text: str = "") -> None:
    """The call is refused with the error, and changes nothing."""
    before = cluster.observable()
    with pytest.raises(Refused) as refusal:
        call()
    assert refusal.value.error == error
    assert text in refusal.value.message
    assert cluster.observable() == before
    cluster.check()


def with_host_pool(node: Node, **others: str) -> Node:
    """The node, initialised with pools of both placements."""
    node.init(options(HostMemPoolConfig='{"memory_size": 16384, "page_shift": 10}', **others))
    return node


def own_tensors(node: Node, desc: CacheDesc) -> list[int]:
    """Memory of the node's program for the tensors of a cache, each in a piece of its own."""
    return [node.own_memory(desc.size) for _ in range(desc.num_tensors)]


def bytes_at(node: Node, addresses: list[int], size: int) -> list[bytes]:
    return [node.read(address, size) for address in addresses]


def block(node: Node, cache: Cache, index: int, tensor: int = 0) -> bytes:
    size = cache.cache_desc.size // cache.cache_desc.shape[0]
    return node.contents(cache)[tensor][index * size : (index + 1) * size]


def rank_table(ranks: int, **device: str) -> str:
    """A rank table of so many devices of one server, with what else is said of each."""
    devices = [
        {"device_id": str(rank), "device_ip": "127.0.0.1", "rank_id": str(rank), **device} for rank in range(ranks)
    ]
    return json.dumps({"server_list": [{"server_id": "server", "device": devices}]})
