"""Two linked clusters with a cache of every kind, and a picture of all that can be seen of them."""

from __future__ import annotations

from typing import Any

from llmdd.spec.values import BlocksCacheKey, CacheDesc

from conformance.world import Node, Refusal, World, link, prefix, request

TENSORS = 4
SLOTS, SLOT_BYTES = 2, 96
BLOCKS, BLOCK_BYTES = 4, 32
PAGE = 4096

C = CacheDesc(TENSORS, (SLOTS, SLOT_BYTES), "DT_UINT8")
B = CacheDesc(TENSORS, (BLOCKS, BLOCK_BYTES), "DT_UINT8")
HOST_C = CacheDesc(TENSORS, (SLOTS, SLOT_BYTES), "DT_UINT8", "HOST")
HOST_B = CacheDesc(TENSORS, (BLOCKS, BLOCK_BYTES), "DT_UINT8", "HOST")

#: What is left unbound everywhere.
FREE = 90


class Caches:
    """The caches of one cluster: every kind, and some that have gone.

    Parameters
    ----------
    node
        Where they live.
    first
        The number of the first request, prefix and model that a key is bound to here.
    """

    def __init__(self, node: Node, first: int) -> None:
        self.node = node
        self.first = first
        self.c = node.allocate_cache(C, [request(first), request(first + 1)])
        self.prefixed = node.allocate_cache(C, [prefix(first)])
        self.unkeyed = node.allocate_cache(C)
        self.host_c = node.allocate_cache(HOST_C)
        self.b = node.allocate_blocks_cache(B, BlocksCacheKey(1, first))
        self.unkeyed_b = node.allocate_blocks_cache(B)
        self.host_b = node.allocate_blocks_cache(HOST_B)
        self.gone = node.allocate_cache(C)
        node.deallocate_cache(self.gone)
        self.gone_b = node.allocate_blocks_cache(B, BlocksCacheKey(1, first + 1))
        node.deallocate_blocks_cache(self.gone_b)
        self.memory = node.own_memory(8 * PAGE)
        self.addrs = [self.memory + number * PAGE for number in range(8)]
        self.registered = node.register_cache(C, self.addrs[:4], [request(first + 2)], remote_accessible=True)
        self.closed = node.register_cache(C, self.addrs[:4], [request(first + 3)], remote_accessible=False)
        self.registered_b = node.register_blocks_cache(B, self.addrs[4:], BlocksCacheKey(1, first + 2))
        self.closed_b = node.register_blocks_cache(
            B, self.addrs[4:], BlocksCacheKey(1, first + 3), remote_accessible=False
        )
        self.cpu = node.create_cpu_cache(HOST_B, self.addrs[:4])
        self.unregistered = node.register_cache(C, self.addrs[:4], [request(first + 4)])
        node.unregister_cache(self.unregistered.cache_id)
        self.pooled = [self.c, self.prefixed, self.unkeyed, self.host_c, self.b, self.unkeyed_b, self.host_b]
        self.handles = [*self.pooled, self.gone, self.gone_b, self.registered, self.closed, self.registered_b]
        self.handles += [self.closed_b, self.cpu, self.unregistered]
        for seed, cache in enumerate(self.pooled):
            node.fill(cache, first + seed)
        for number, address in enumerate(self.addrs):
            node.write(address, bytes([first + number]) * PAGE)

    def picture(self) -> tuple[object, ...]:
        """Everything that can be seen."""
        node = self.node
        node.check()
        keys = [request(self.first + number) for number in range(6)] + [prefix(self.first), request(FREE)]
        return (
            [node.usage(placement) for placement in ("DEVICE", "HOST")],
            node.live_caches(),
            node.live_keys(),
            [node.lookup(key) for key in keys],
            [node.contents(cache) for cache in self.pooled],
            [node.tensor_addrs(cache) for cache in self.handles],
            node.read(self.memory, 8 * PAGE),
            node.linked(),
            node.listen_address,
        )


class Scene:
    """Cluster 1 is the other end, cluster 2 calls."""

    def __init__(self, world: World, remote: bool) -> None:
        self.world = world
        self.remote = remote
        self.there = world.node(1, "PROMPT", remote=remote)
        self.here = world.node(2, "DECODER", remote=remote)
        link(self.here, self.there)
        self.theirs = Caches(self.there, 10)
        self.ours = Caches(self.here, 30)

    def picture(self) -> tuple[object, ...]:
        """Everything that can be seen of both ends."""
        return self.theirs.picture(), self.ours.picture()

    def outcome(self, method: str, *arguments: Any, **keywords: Any) -> Refusal | None:
        """How a call of the caller's was refused."""
        try:
            getattr(self.here, method)(*arguments, **keywords)
        except Refusal as refusal:
            return refusal
        return None
