"""A cluster in a process of its own, which is told through a pipe what to do. Made to be killed at any moment."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)


def cluster_info(cluster_id: int, address: tuple[str, int]) -> LLMClusterInfo:
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = cluster_id
    cluster.append_local_ip_info("127.0.0.1", 0)
    cluster.append_remote_ip_info(*address)
    return cluster


def outcome(call: Callable[..., object], *arguments: Any, **named: Any) -> LLMStatusCode:
    try:
        call(*arguments, **named)
    except LLMException as refused:
        return refused.status_code
    return LLMStatusCode.LLM_SUCCESS


class Cluster:
    """What the process can be told to do. What goes on for ever answers when it has begun."""

    def __init__(self, connection: Connection, cluster_id: int, options: dict[str, str]) -> None:
        self.connection = connection
        self.datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        self.datadist.init(options)
        self.manager = self.datadist.cache_manager
        self.caches: list[Cache] = []

    def listen_address(self) -> tuple[str, int] | None:
        return self.datadist.listen_address

    def link(self, cluster_id: int, address: tuple[str, int]) -> LLMStatusCode:
        return self.datadist.link_clusters([cluster_info(cluster_id, address)])[0]

    def bind(self, desc: CacheDesc, first: int, count: int) -> list[int]:
        """Caches filled with the numbers of their keys, kept by id too."""
        for number in range(first, first + count):
            cache = self.manager.allocate_cache(desc, [CacheKey(self.datadist.cluster_id, number)])
            for tensor in cache.tensors:
                tensor[:] = number
            self.caches.append(cache)
        return [cache.cache_id for cache in self.caches[-count:]]

    def seen(self, index: int, row: int) -> list[int]:
        """The last element of a row of each tensor of a cache bound here."""
        return [int(tensor[row].flat[-1]) for tensor in self.caches[index].tensors]

    def pull(self, desc: CacheDesc, cluster_id: int, number: int) -> LLMStatusCode:
        cache = self.manager.allocate_cache(desc)
        code = outcome(self.manager.pull_cache, CacheKey(cluster_id, number), cache)
        self.manager.deallocate_cache(cache)
        return code

    def pull_for_ever(self, desc: CacheDesc, cluster_id: int, cache_ids: list[int]) -> NoReturn:
        """Pulls that leave the keys, of whole caches."""
        ours = self.manager.allocate_cache(desc)
        self.connection.send("begun")
        while True:
            for cache_id in cache_ids:
                outcome(self.manager.pull_cache, CacheKeyByIdAndIndex(cluster_id, cache_id), ours)

    def consume_to_the_end(
        self, desc: CacheDesc, cluster_id: int, numbers: list[int], fill: int
    ) -> tuple[LLMStatusCode, bool]:
        """Pulls that drop the keys, of whatever is bound to them, to the end of the link: how that was told, and
        whether every pull that succeeded brought nothing but ``fill``.
        """
        ours = self.manager.allocate_cache(desc)
        sound = True
        self.connection.send("begun")
        for number in itertools.cycle(numbers):
            code = outcome(self.manager.pull_cache, CacheKey(cluster_id, number), ours)
            if code is LLMStatusCode.LLM_SUCCESS:
                sound = sound and all((tensor == fill).all() for tensor in ours.tensors)
            elif code is not LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:
                break
        self.manager.deallocate_cache(ours)
        self.manager.check()
        return code, sound

    def consume_for_ever(self, desc: CacheDesc, cluster_id: int, numbers: list[int]) -> NoReturn:
        """Pulls that drop the keys, layer by layer."""
        ours = self.manager.allocate_cache(desc)
        self.connection.send("begun")
        while True:
            for number, layer in itertools.product(numbers, range(desc.num_tensors // 2)):
                only = range(layer, layer + 1)
                outcome(
                    self.manager.pull_cache,
                    CacheKey(cluster_id, number),
                    ours,
                    src_layer_range=only,
                    dst_layer_range=only,
                )

    def push_for_ever(self, desc: CacheDesc, cluster_id: int, cache_ids: list[int]) -> NoReturn:
        ours = self.manager.allocate_cache(desc)
        self.connection.send("begun")
        while True:
            for cache_id in cache_ids:
                outcome(self.manager.push_cache, CacheKeyByIdAndIndex(cluster_id, cache_id), ours)

    def link_and_unlink_for_ever(self, desc: CacheDesc, cluster_id: int, address: tuple[str, int]) -> NoReturn:
        ours = self.manager.allocate_cache(desc)
        self.connection.send("begun")
        for number in itertools.count():
            self.datadist.unlink_clusters([cluster_info(cluster_id, address)], force=number % 2 == 0)
            self.datadist.link_clusters([cluster_info(cluster_id, address)])
            outcome(self.manager.pull_cache, CacheKeyByIdAndIndex(cluster_id, 1), ours)
        raise AssertionError("numbers ended")

    def allocate_and_free_for_ever(self, desc: CacheDesc) -> NoReturn:
        """Keeps the key index, the slots and the pool in motion."""
        self.connection.send("begun")
        for number in itertools.count(1_000_000):
            key = CacheKey(self.datadist.cluster_id, number)
            self.manager.deallocate_cache(self.manager.allocate_cache(desc, [key]))
            self.manager.remove_cache_key(key)
        raise AssertionError("numbers ended")


def run(connection: Connection, cluster_id: int, options: dict[str, str]) -> None:
    """Do what comes through the pipe until it is closed."""
    cluster = Cluster(connection, cluster_id, options)
    connection.send("ready")
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            cluster.datadist.finalize()
            return
        connection.send(getattr(cluster, name)(*arguments))
