"""What is called, and with which arguments.

Each strategy yields a whole :class:`~lockstep.terms.Call`. Most are calls that a correct program would make in the
present state of the cluster, which the strategies look up in the reference model; in the others an argument or two is
odd: of a wrong type, out of range, or naming what does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from llmdd.spec.values import (
    ELEMENT_BYTES,
    INV,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
)

from .terms import PLACEMENTS, CacheName, Call, ViewName

if TYPE_CHECKING:
    from .rules import Lockstep

T = TypeVar("T")

CLUSTER_IDS = {"a": 1, "b": 2, "c": 2**64 - 1}
ROLES = ("PROMPT", "DECODER", "MIX")

#: An address of the loopback network that nobody else is likely to use, so that ports can be fixed.
LOOPBACK = f"127.{1 + (os.getpid() >> 16) % 250}.{os.getpid() >> 8 & 255}.{1 + (os.getpid() & 255) % 254}"
ADDRESSES = {node: (LOOPBACK, 26001 + number) for number, node in enumerate(CLUSTER_IDS)}

#: Longer than anything takes that ends at all, on however busy a machine.
PATIENCE_MS = 60_000

REQUEST_KEYS = [CacheKey(1, number, model) for number in (1, 2, 3, 4, INV - 1) for model in (0, 1)]
PREFIX_KEYS = [CacheKey(1, INV, model, number) for number in (1, 2) for model in (0, INV)]
BOTH_IDS = CacheKey(1, 1, 0, 1)
KEYS = [*REQUEST_KEYS, *PREFIX_KEYS]
PLACEHOLDERS = [CacheKey(1, INV), CacheKey(77, INV, 5)]


# -- odd arguments ---------------------------------------------------------------------------------------------------

ODD_UINT32 = (None, "1", 1.0, -1, 2**32, np.int64(1), True)
ODD_UINT64 = (None, "1", 1.0, -1, 2**64, np.int64(1), True)
ODD_SIZES = (None, "1", 0, -2, 2**63, -(2**63) - 1, 1.5, True)
ODD_TIMEOUTS = (None, "1", 0, -1, 2**31, 1.5)
ODD_CACHES = (None, 1, "cache", CacheKey(1, 1))
ODD_KEYS = (None, 1, "key", (1, 1), BOTH_IDS, *PLACEHOLDERS)
ODD_KEY_LISTS: tuple[Any, ...] = (None, 1, "keys", CacheKey(1, 1), {CacheKey(1, 1)}, [None], (CacheKey(1, 1), 1), {})
ODD_RANGES = (3, "0", (0, 1), range(0), range(2, 1), range(0, 4, 2), range(-1, 1), range(2**33), range(40, 41))
ODD_TENSORS_PER_LAYER = (None, "1", 0, -1, 1.0, 2**32, 5, 1000)
ODD_FLAGS = (None, 1, "yes")
ODD_CLUSTERS: tuple[Any, ...] = (None, 1, {}, (), [None], ClusterInfo(1), [ClusterInfo(None)], [ClusterInfo(2)] * 17)
ODD_DESCS = (
    None,
    1,
    "desc",
    CacheDesc(0, (1, 8), "DT_INT8"),
    CacheDesc(1, (1, 0), "DT_INT8"),
    CacheDesc(1, (-1, 8), "DT_INT8"),
    CacheDesc(1, (2, 2, 8), "DT_INT8", batch_dim_index=1),
    CacheDesc(1, (1,) * 33, "DT_INT8"),
    CacheDesc(1, (1,) * 32, "DT_INT8"),
    CacheDesc(1, (1, 2**60), "DT_DOUBLE"),
    CacheDesc(1, (1, 2**62, 2), "DT_INT8"),
    CacheDesc(2**32 - 1, (1, 2**40), "DT_INT8"),
    CacheDesc(1, (2**40,), "DT_INT8"),
)


def chance(draw: DrawFn, one_in: int) -> bool:
    """True once in so many times, and never in the simplest example."""
    return draw(st.integers(0, one_in - 1)) == one_in - 1


def with_oddities(
    draw: DrawFn, arguments: Mapping[str, Any], odd: Mapping[str, Sequence[Any]], one_in: int = 6
) -> dict[str, Any]:
    """The arguments, now and then with one or two of them replaced."""
    arguments = dict(arguments)
    if chance(draw, one_in):
        for name in draw(st.lists(st.sampled_from(sorted(odd)), min_size=1, max_size=2, unique=True)):
            arguments[name] = draw(st.sampled_from(odd[name]))
    return arguments


# -- what there is in the cluster ------------------------------------------------------------------------------------


def machine_of(draw: DrawFn) -> Lockstep:
    machine: Lockstep = draw(st.runner())
    return machine


@st.composite
def nodes(draw: DrawFn) -> str:
    """A node; mostly one where there are caches."""
    machine = machine_of(draw)
    busy = [node for node in machine.nodes if machine.reference.live_caches(node)]
    return draw(st.sampled_from(machine.nodes if not busy or chance(draw, 10) else busy))


def other_node(draw: DrawFn, node: str) -> str:
    """Another node; now and then, and where there is none, the same."""
    others = [other for other in machine_of(draw).nodes if other != node]
    return draw(st.sampled_from(others)) if others and not chance(draw, 20) else node


def two_nodes(draw: DrawFn, with_keys: bool = False) -> tuple[str, str]:
    """A node that transfers, and another: mostly they are linked, both have caches, and the other has keys if asked."""
    machine = machine_of(draw)
    wanted = machine.bound_keys if with_keys else machine.reference.live_caches
    pairs = [
        (node, other)
        for node, other in permutations(machine.nodes, 2)
        if machine.reference.live_caches(node) and wanted(other) and machine.are_linked(node, other)
    ]
    if pairs and not chance(draw, 12):
        return draw(st.sampled_from(pairs))
    node = draw(nodes())
    return node, other_node(draw, node)


def cache_of(draw: DrawFn, node: str, like: CacheName | None = None) -> CacheName | None:
    """A cache that lives on the node, with as many tensors as another one.

    Now and then any that lives there, or one that once did, or one of another node. None where there is none at all.
    """
    machine = machine_of(draw)
    live = machine.reference.live_caches(node)
    alike = [cache for cache in live if machine.num_tensors(cache) == machine.num_tensors(like)] if like else live
    if alike and not chance(draw, 15):
        return draw(st.sampled_from(alike))
    candidates = live or machine.caches_known_beside(node)
    if chance(draw, 3):
        candidates = machine.caches_known_beside(node)
    return draw(st.sampled_from(candidates)) if candidates else None


def batch_index_of(draw: DrawFn, cache: CacheName | None) -> int:
    """One of the cache's batch slots; now and then the one after the last."""
    batch_size = machine_of(draw).batch_size(cache)
    return batch_size if chance(draw, 25) else draw(st.integers(0, batch_size - 1))


def slot_of(draw: DrawFn, node: str, cache: CacheName | None) -> CacheKeyByIdAndIndex:
    """A batch slot of a cache on the node, by its id; now and then one that never was."""
    if cache is None or chance(draw, 20):
        return CacheKeyByIdAndIndex(CLUSTER_IDS[node], draw(st.sampled_from((0, -1, 1, 99, 2**63 - 1))))
    cache_id = machine_of(draw).reference.caches[cache].cache_id
    return CacheKeyByIdAndIndex(CLUSTER_IDS[node], cache_id, batch_index_of(draw, cache))


def key_on(draw: DrawFn, node: str) -> CacheKey:
    """A key that is bound on the node; now and then any key."""
    bound = machine_of(draw).bound_keys(node)
    key = draw(st.sampled_from(KEYS if not bound or chance(draw, 15) else bound))
    return CacheKey(CLUSTER_IDS[node], key.req_id, key.model_id, key.prefix_id)


@st.composite
def views(draw: DrawFn) -> ViewName:
    return draw(st.sampled_from(machine_of(draw).open_views))


@st.composite
def caches(draw: DrawFn) -> CacheName:
    """A cache that lives on some node, or one that did."""
    machine = machine_of(draw)
    live = [cache for node in machine.nodes for cache in machine.reference.live_caches(node)]
    return draw(st.sampled_from(machine.caches if not live or chance(draw, 10) else live))


# -- init ------------------------------------------------------------------------------------------------------------

ODD_POOLS = (
    "",
    "{",
    "[1024]",
    "{}",
    '{"memory_size": 65536.0}',
    '{"memory_size": "65536"}',
    '{"memory_size": true}',
    '{"memory_size": null}',
    '{"memory_size": -1}',
    '{"memory_size": 0}',
    '{"memory_size": 65535}',
    '{"memory_size": 2047, "page_shift": 10, "unknown": 1}',
    '{"memory_size": 65536, "page_shift": 9}',
    '{"memory_size": 65536, "page_shift": 31}',
    '{"memory_size": 65536, "page_shift": 16.0}',
    f'{{"memory_size": {(2**32 - 1) << 10}, "page_shift": 10}}',
    65536,
    None,
)
ODD_NUMBERS = ("0", "1", "-1", "1.5", "", "x", " 1", "1_0", "+1", "100", "101", str(2**31), str(2**32), 1, None)
ODD_OPTIONS: dict[Any, Sequence[Any]] = {
    "llm.EnableCacheManager": ("0", "2", "", 1, None),
    "llm.EnableRemoteCacheAccessible": ("0", "1", "2", "", True, None),
    "llm.LocalCommRes": ("", "{}", 5, None),
    "llm.TransferBackend": ("hixl", "", "ucx", 5, None),
    "llm.listenIpInfo": (
        f"{LOOPBACK}:0",
        f"{LOOPBACK}:+1",
        f"{LOOPBACK}:1_0",
        LOOPBACK,
        f"{LOOPBACK}:",
        f"{LOOPBACK}:http",
        f"{LOOPBACK}:-1",
        f"{LOOPBACK}:65536",
        f"[{LOOPBACK}]:0",
        "::1:80",
        "[::1:80",
        "[::1]80",
        ":80",
        "127.0.0:80",
        "localhost:0",
        "",
        5,
        None,
        *(f"{ip}:{port}" for ip, port in ADDRESSES.values()),
    ),
    "llm.SyncKvCacheWaitTime": tuple(number for number in ODD_NUMBERS if number not in ("1", "100", "101")),
    "llm.LinkRetryCount": ODD_NUMBERS,
    "llm.LinkTotalTime": ODD_NUMBERS,
    "llm.RdmaTrafficClass": ODD_NUMBERS,
    "llm.RdmaServiceLevel": ODD_NUMBERS,
    "ge.exec.deviceId": (*ODD_NUMBERS, "0;1"),
    "ge.flowGraphMemMaxSize": (*ODD_NUMBERS, "1,2"),
    "llm.MemPoolConfig": ODD_POOLS,
    "llm.HostMemPoolConfig": ODD_POOLS,
    "llm.unheard_of": ("any", 1),
    1: ("any",),
}


@st.composite
def pool_options(draw: DrawFn) -> str:
    """A small pool: it is full, or in pieces, now and then."""
    shift = draw(st.sampled_from((10, 10, 10, 12)))
    pages = draw(st.sampled_from((40, 24, 64, 100, 1) if chance(draw, 4) else (40, 24)))
    odd_bytes = draw(st.sampled_from((0, 0, 1023)))
    return json.dumps({"memory_size": (pages << shift) + odd_bytes, "page_shift": shift})


@st.composite
def good_options(draw: DrawFn, node: str, remote_mode: bool) -> dict[str, str]:
    """Options that a correct program would give."""
    options = {"llm.EnableCacheManager": "1", "llm.SyncKvCacheWaitTime": str(PATIENCE_MS)}
    if remote_mode != chance(draw, 30):
        options["llm.EnableRemoteCacheAccessible"] = "1"
    if not chance(draw, 12):
        options["llm.MemPoolConfig"] = draw(pool_options())
    if draw(st.booleans()):
        options["llm.HostMemPoolConfig"] = draw(pool_options())
    if not chance(draw, 15):
        ip, port = ADDRESSES[node]
        options["llm.listenIpInfo"] = f"{ip}:{0 if chance(draw, 8) else port}"
    if chance(draw, 8):
        options["llm.LocalCommRes"] = draw(st.sampled_from(("", "{}")))
        if not remote_mode:
            options.setdefault("llm.EnableRemoteCacheAccessible", "0")  # on, if nothing is said (api §2.3)
    if options.get("llm.EnableRemoteCacheAccessible") == "1" and "llm.listenIpInfo" in options and chance(draw, 8):
        options["llm.TransferBackend"] = "hixl"
    return options


@st.composite
def inits(draw: DrawFn) -> Call:
    """``init`` of a node that is not initialised, if there is one."""
    machine = machine_of(draw)
    node = draw(st.sampled_from(machine.nodes_not_ready or machine.nodes))
    if chance(draw, 20):
        return Call(node, "init", (draw(st.sampled_from((None, [], "options", 1))),))
    options: dict[Any, Any] = draw(good_options(node, machine.remote_mode))
    if draw(st.booleans()):
        for key in draw(st.lists(st.sampled_from(list(ODD_OPTIONS)), min_size=1, max_size=3, unique=True)):
            options.pop(key, None)
            if not chance(draw, 6):
                options[key] = draw(st.sampled_from(ODD_OPTIONS[key]))
    return Call(node, "init", (options,))


@st.composite
def clusters(draw: DrawFn) -> list[tuple[str, dict[str, str], str]]:
    """Nodes to begin with: their names, options and roles."""
    remote_mode = draw(st.booleans())
    names = list(CLUSTER_IDS)[: draw(st.sampled_from((2, 3, 2, 3, 2, 3, 1)))]
    return [(name, draw(good_options(name, remote_mode)), draw(st.sampled_from(ROLES))) for name in names]


# -- links -----------------------------------------------------------------------------------------------------------


def cluster_info(draw: DrawFn, node: str) -> ClusterInfo:
    """What a program must know of a node in order to link to it; now and then something of it is wrong."""
    machine = machine_of(draw)
    address = machine.reference.nodes[node].listen_address or ADDRESSES[node]
    right = ClusterInfo(CLUSTER_IDS[node], (("127.0.0.1", 0),), (address,))
    return draw(
        st.sampled_from(
            (
                *[right] * 12,
                ClusterInfo(3, right.local_ip_info_list, right.remote_ip_info_list),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, (ADDRESSES["a"],)),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, ((LOOPBACK, 1),)),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, ()),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, (address, address)),
                ClusterInfo(right.remote_cluster_id, (), right.remote_ip_info_list),
                ClusterInfo(right.remote_cluster_id, (("127.0.0.1", 0),) * 2, right.remote_ip_info_list),
                ClusterInfo(None, right.local_ip_info_list, right.remote_ip_info_list),
            )
        )
    )


def clusters_to_name(draw: DrawFn, node: str) -> list[ClusterInfo]:
    count = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
    return [cluster_info(draw, other_node(draw, node)) for _ in range(count)]


@st.composite
def links(draw: DrawFn) -> Call:
    node = draw(nodes())
    arguments = {"clusters": clusters_to_name(draw, node), "timeout": PATIENCE_MS}
    odd = {"clusters": ODD_CLUSTERS, "timeout": ODD_TIMEOUTS}
    return Call(node, "link_clusters", (), with_oddities(draw, arguments, odd))


@st.composite
def unlinks(draw: DrawFn) -> Call:
    node = draw(nodes())
    arguments = {
        "clusters": clusters_to_name(draw, node),
        "timeout": PATIENCE_MS,
        "force": draw(st.booleans()),
    }
    odd = {"clusters": ODD_CLUSTERS, "timeout": ODD_TIMEOUTS, "force": ODD_FLAGS}
    return Call(node, "unlink_clusters", (), with_oddities(draw, arguments, odd))


# -- caches and keys -------------------------------------------------------------------------------------------------


@st.composite
def descs(draw: DrawFn, node: str) -> CacheDesc:
    """A cache, mostly for a pool that the node has."""
    pools = list(machine_of(draw).reference.nodes[node].pools)
    batch_size = draw(st.sampled_from((2, 1, 2, 3, 4)))
    rest = draw(st.sampled_from(((8,), (64,), (4, 2), (8,), (300,), (3, 400))))
    if chance(draw, 15):
        batch_size, rest = draw(st.sampled_from((33, 70))), (4,)
    leading = draw(st.sampled_from(((), (), (), (1,), (1, 1))))
    return CacheDesc(
        num_tensors=draw(st.sampled_from((33, 3) if chance(draw, 12) else (2, 2, 2, 4, 1))),
        shape=(*leading, batch_size, *rest),
        data_type=draw(st.sampled_from(("DT_INT8", "DT_FLOAT16", *ELEMENT_BYTES) if chance(draw, 3) else ("DT_INT8",))),
        placement=draw(st.sampled_from(PLACEMENTS if not pools or chance(draw, 20) else pools)),
        batch_dim_index=len(leading),
    )


@st.composite
def key_lists(draw: DrawFn, node: str, batch_size: int) -> list[CacheKey] | tuple[CacheKey, ...]:
    """Keys for a new cache: mostly free ones, with placeholders anywhere; now and then duplicates, or one too many."""
    if batch_size >= 33 and draw(st.booleans()):
        return [CacheKey(1, 1000 + number) for number in range(draw(st.integers(30, batch_size)))]
    bound = {key.identity for key in machine_of(draw).bound_keys(node)}
    free = [key for key in KEYS if key.identity not in bound] or KEYS
    key = st.sampled_from(free) | st.sampled_from(free) | st.sampled_from(PLACEHOLDERS)
    if chance(draw, 6):
        key = key | st.sampled_from([*KEYS, BOTH_IDS])
    most = batch_size + (1 if chance(draw, 12) else 0)
    keys = draw(st.lists(key, max_size=min(most, 8), unique=not chance(draw, 4)))
    return tuple(keys) if draw(st.booleans()) else keys


@st.composite
def allocations(draw: DrawFn, node: str | None = None) -> tuple[str, Any, Any]:
    """The node, and the arguments of ``allocate_cache``."""
    if node is None:
        node = draw(st.sampled_from(machine_of(draw).nodes))
    desc = draw(descs(node))
    arguments = {"desc": desc, "keys": draw(key_lists(node, desc.batch_size))}
    odd = {"desc": ODD_DESCS, "keys": ODD_KEY_LISTS}
    arguments = with_oddities(draw, arguments, odd, one_in=12)
    return node, arguments["desc"], arguments["keys"]


@st.composite
def deallocations(draw: DrawFn) -> Call:
    node = draw(nodes())
    arguments = with_oddities(draw, {"cache": cache_of(draw, node)}, {"cache": ODD_CACHES}, one_in=12)
    return Call(node, "deallocate_cache", (), arguments)


@st.composite
def key_calls(draw: DrawFn, method: str) -> Call:
    """``remove_cache_key`` or ``lookup``."""
    node = draw(nodes())
    arguments = with_oddities(draw, {"cache_key": key_on(draw, node)}, {"cache_key": ODD_KEYS}, one_in=8)
    return Call(node, method, (), arguments)


# -- copies and transfers --------------------------------------------------------------------------------------------


@st.composite
def copies(draw: DrawFn) -> Call:
    node = draw(nodes())
    src = cache_of(draw, node)
    dst = cache_of(draw, node, like=src)
    arguments = {
        "dst": dst,
        "src": src,
        "dst_batch_index": batch_index_of(draw, dst),
        "src_batch_index": batch_index_of(draw, src),
        "offset": draw(st.sampled_from((0, 0, 0, 1, 5, 16, 1200))),
        "size": size_within(draw, src, dst),
        "req_id": draw(st.sampled_from((None, 1))),
    }
    odd = {
        "dst": ODD_CACHES,
        "src": ODD_CACHES,
        "dst_batch_index": ODD_UINT32,
        "src_batch_index": ODD_UINT32,
        "offset": (*ODD_UINT64, 2**64 - 1),
        "size": (*ODD_SIZES, 2**63 - 1),
        "req_id": ODD_UINT64,
    }
    return Call(node, "copy_cache", (), with_oddities(draw, arguments, odd))


def size_within(draw: DrawFn, cache: CacheName | None, other: CacheName | None) -> int:
    """All of a batch slot of the first cache, or some bytes that both have; now and then one more than there are."""
    machine = machine_of(draw)
    ours, common = machine.slot_bytes(cache), min(machine.slot_bytes(cache), machine.slot_bytes(other))
    if chance(draw, 12):
        return draw(st.sampled_from((-1, ours + 1, common + 1)))
    return draw(st.sampled_from((-1, common, -1, 1, min(common, 7)) if ours == common else (common, 1)))


def layers(draw: DrawFn, source: CacheName | None, target: CacheName | None) -> dict[str, Any]:
    """Some layers of the source, and as many of the target; now and then a range is left out."""
    machine = machine_of(draw)
    fitting = [size for size in (1, 2, 3) if machine.num_tensors(target) % size == 0]
    per_layer = draw(st.sampled_from((1, 2, 3) if chance(draw, 10) else fitting))
    there = max(1, machine.num_tensors(source) // per_layer)
    here = max(1, machine.num_tensors(target) // per_layer)
    length = draw(st.integers(1, min(there, here)))
    begin_there = draw(st.integers(0, there - length))
    begin_here = draw(st.integers(0, here - length))
    ranges = {
        "src_layer_range": range(begin_there, begin_there + length),
        "dst_layer_range": range(begin_here, begin_here + length),
        "tensor_num_per_layer": per_layer,
    }
    if chance(draw, 6):
        del ranges[draw(st.sampled_from(("src_layer_range", "dst_layer_range")))]
    return ranges


@st.composite
def pulls(draw: DrawFn, by_key: bool = False, by_layers: bool = False) -> Call:
    """``pull_cache``, by key where that is allowed, or by id; of some layers, or of all."""
    machine = machine_of(draw)
    by_key = by_key and (not machine.remote_mode or chance(draw, 15))
    node, owner = two_nodes(draw, with_keys=by_key)
    if by_key:
        key: Any = key_on(draw, owner)
        source = machine.cache_of_key(owner, key)
    else:
        source = cache_of(draw, owner)
        key = slot_of(draw, owner, source)
    cache = cache_of(draw, node, like=source)
    arguments = {
        "cache_key": key,
        "cache": cache,
        "batch_index": batch_index_of(draw, cache),
        "size": size_within(draw, cache, source),
        **(layers(draw, source, cache) if by_layers else {}),
    }
    odd: dict[str, Sequence[Any]] = {
        "cache_key": ODD_KEYS,
        "cache": ODD_CACHES,
        "batch_index": ODD_UINT32,
        "size": ODD_SIZES,
        "src_layer_range": ODD_RANGES,
        "dst_layer_range": ODD_RANGES,
        "tensor_num_per_layer": ODD_TENSORS_PER_LAYER,
        "layer_range": (range(1),),
    }
    return Call(node, "pull_cache", (), with_oddities(draw, arguments, odd, one_in=8))


@st.composite
def pushes(draw: DrawFn) -> Call:
    node, owner = two_nodes(draw)
    target = cache_of(draw, owner)
    cache = cache_of(draw, node, like=target)
    arguments = {
        "dst_cache_key": slot_of(draw, owner, target),
        "src_cache": cache,
        "src_batch_index": batch_index_of(draw, cache),
        **(layers(draw, cache, target) if draw(st.booleans()) else {}),
    }
    odd: dict[str, Sequence[Any]] = {
        "dst_cache_key": ODD_KEYS,
        "src_cache": ODD_CACHES,
        "src_batch_index": ODD_UINT32,
        "size": (*ODD_SIZES, 1),
        "src_layer_range": ODD_RANGES,
        "dst_layer_range": ODD_RANGES,
        "tensor_num_per_layer": ODD_TENSORS_PER_LAYER,
    }
    return Call(node, "push_cache", (), with_oddities(draw, arguments, odd, one_in=8))


def calls_on_a_manager() -> SearchStrategy[Call]:
    """Any call on a cache manager, allocation apart."""
    return st.one_of(
        deallocations(), key_calls("remove_cache_key"), key_calls("lookup"), copies(), pulls(by_key=True), pushes()
    )
