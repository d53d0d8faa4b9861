"""api §3.9: remote mode."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, ClusterInfo

from conformance.scene import Scene
from conformance.world import World, by_id, info_of, prefix, refused, request

LX = "LLM_PARAM_INVALID"
C = CacheDesc(2, (2, 64), "DT_UINT8")


@pytest.mark.parametrize("client_mode", [False, True])
def test_both_ends_must_agree(world: World, client_mode: bool) -> None:
    """api §3.9: both ends must agree, else linking fails with LLM_PARAM_INVALID."""
    server, client = world.node(1, remote=not client_mode), world.node(2, remote=client_mode)
    assert client.link_clusters([info_of(server)]) == (LX, [LX])
    assert (client.linked(), server.linked()) == ((), ())


def test_it_enables_pushes(remote_mode: Scene) -> None:
    """api §3.9: enables push_*."""
    scene = remote_mode
    scene.here.push_cache(by_id(scene.theirs.c), scene.ours.c)
    scene.here.push_blocks(BlocksCacheKey(1, 10), scene.ours.b, [0], [0])


@pytest.mark.parametrize("key", [request(10), prefix(10)])
def test_it_restricts_pull_cache(remote_mode: Scene, key: Any) -> None:
    """api §3.9: restricts ``pull_cache`` to ``CacheKeyByIdAndIndex``; ``pull_blocks`` still takes all key types."""
    scene = remote_mode
    with refused("TypeError"):
        scene.here.pull_cache(key, scene.ours.c)
    scene.here.pull_cache(by_id(scene.theirs.c), scene.ours.c)


def test_pull_blocks_takes_all_key_types(remote_mode: Scene) -> None:
    """api §3.9: ``pull_blocks`` still takes all key types."""
    scene = remote_mode
    for key in (request(10), prefix(10), by_id(scene.theirs.c, 1)):
        scene.here.pull_blocks(key, scene.ours.b, (), [0])
    scene.here.pull_blocks(BlocksCacheKey(1, 10), scene.ours.b, [0], [1])


@pytest.mark.parametrize("options", [{"LocalCommRes": ""}, {"TransferBackend": "hixl"}])
def test_turned_on_by_default(world: World, options: dict[str, str]) -> None:
    """api §3.9: turned on by default when ``llm.LocalCommRes`` or ``llm.TransferBackend`` is given."""
    node = world.start(1)
    node.init(
        {"llm.listenIpInfo": "127.0.0.1:0", "llm.EnableCacheManager": "1"}
        | {f"llm.{name}": value for name, value in options.items()}
    )
    other = world.node(2, remote=True)
    info = ClusterInfo(1, (("127.0.0.1", 0),), (node.listen_address,))
    assert other.link_clusters([info]) == ("LLM_SUCCESS", ["LLM_SUCCESS"])


def test_the_current_state_counts(world: World) -> None:
    """api §3.9, D25: llmdd resolves against the owner's current state, also after the first pull."""
    prompt, decoder = world.pair(remote=True)
    ours = decoder.allocate_cache(C)
    first = prompt.fill(prompt.allocate_cache(C), 1)
    decoder.pull_cache(by_id(first), ours)
    second = prompt.fill(prompt.allocate_cache(C), 2)
    decoder.pull_cache(by_id(second), ours)
    assert [t[:64] for t in decoder.contents(ours)] == [t[:64] for t in prompt.contents(second)]
    prompt.deallocate_cache(first)
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        decoder.pull_cache(by_id(first), ours)
    third = prompt.fill(prompt.allocate_cache(C), 3)
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        decoder.pull_cache(by_id(first), ours)
    decoder.pull_cache(by_id(third), ours)
    assert [t[:64] for t in decoder.contents(ours)] == [t[:64] for t in prompt.contents(third)]


@pytest.mark.parametrize(
    ("placement", "given", "accessible"),
    [
        ("DEVICE", None, True),
        ("HOST", None, False),
        ("DEVICE", True, True),
        ("HOST", True, True),
        ("DEVICE", False, False),
        ("HOST", False, False),
    ],
)
def test_remote_accessible(world: World, placement: str, given: bool | None, accessible: bool) -> None:
    """api §3.9: explicit value; default True for DEVICE, False for HOST."""
    prompt, decoder = world.pair(remote=True)
    address = prompt.own_memory(1 << 13)
    addrs = [address, address + 4096]
    desc = CacheDesc(2, (2, 64), "DT_UINT8", placement)
    cache = prompt.register_cache(desc, addrs, remote_accessible=given)
    prompt.register_blocks_cache(desc, addrs, BlocksCacheKey(1), remote_accessible=given)
    ours, blocks = decoder.allocate_cache(C), decoder.allocate_blocks_cache(C)
    for call in (
        lambda: decoder.pull_cache(by_id(cache), ours),
        lambda: decoder.push_cache(by_id(cache), ours),
        lambda: decoder.pull_blocks(BlocksCacheKey(1), blocks, [0], [0]),
        lambda: decoder.push_blocks(BlocksCacheKey(1), blocks, [0], [0]),
    ):
        if accessible:
            call()
        else:
            with refused(LX, "not remote accessible"):
                call()


def test_allocated_caches_are_always_accessible(remote_mode: Scene) -> None:
    """api §3.9: allocated caches are always accessible."""
    scene = remote_mode
    for cache in (scene.theirs.c, scene.theirs.host_c, scene.theirs.unkeyed):
        scene.here.pull_cache(by_id(cache), scene.ours.c)
        scene.here.push_cache(by_id(cache), scene.ours.c)
