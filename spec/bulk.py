"""Calls for many keys or caches at once: ``lookup_many``, ``remove_cache_keys``, ``deallocate_many``, ``renew_leases``,
``pull_many``.

They are ours, not LLM-DataDist's. Each is defined by what it does to one item:

1. What is given is checked whole before anything is done: a value of a wrong type or out of its range is raised, and so
   is what is wrong with the call rather than with one item of it.
2. Then it does that, item by item and in order. What an item would have been refused with stands
   in the result at its place; the others go on.
3. With ``all_or_nothing`` every item is looked at before any is carried out. If one would be refused, the call is
   refused as the first such item, and nothing has changed. The same reference cannot be dropped twice: who names it
   again is refused as if it were gone.

Numbers may stand for keys (request ids of one model) and for caches (their ids). An array of numbers is a list of them
here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

from .arguments import check_given, check_integer, check_lease, check_size, check_type, require
from .statecharts import Refused
from .transfers import Transfer
from .values import INV, Cache, CacheKey, CacheKeyByIdAndIndex

if TYPE_CHECKING:
    from .reference import Node
    from .tenants import Tenant

NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"


# -- what is given -----------------------------------------------------------------------------------------------------


def read_numbers(name: str, numbers: Any, kind: str) -> list[int]:
    """A sequence of whole numbers, as it is now. NumPy's count too: these calls take its arrays."""
    check_given(name, numbers, list, tuple)
    found: list[int] = []
    for number in numbers:
        check_type(f"{name} inner", number, SupportsIndex)
        found.append(index(number))
    for number in found:
        check_integer(name, number, kind)
    return found


def read_objects(name: str, items: Any, *types: type) -> list[Any] | None:
    """A sequence of objects of these types, as it is now; None if it is one of something else, numbers perhaps."""
    check_given(name, items, list, tuple)
    found: list[Any] = list(items)
    if found and not isinstance(found[0], types):
        return None
    for item in found:
        check_type(f"{name} inner", item, *types)
    return found


def read_keys(cache_keys: Any, model_id: Any) -> list[CacheKey]:
    """Keys, or request ids of a model."""
    keys = read_objects("cache_keys", cache_keys, CacheKey)
    numbers = read_numbers("cache_keys", cache_keys, "uint64") if keys is None else []
    check_integer("model_id", model_id, "uint64")
    if keys is None:
        return [CacheKey(0, number, model_id) for number in numbers]
    require(model_id == 0 or not keys, "model_id is for request ids, a CacheKey has its own")
    return keys


# -- keys and caches of one's own --------------------------------------------------------------------------------------


def lookup_many(node: Node, cache_keys: Any, *, model_id: Any = 0) -> tuple[list[int], list[int]]:
    """The cache id and the batch slot of every key; cache id 0, which no cache has, where it is not bound."""
    node.require_serving()
    places = [node.lookup(key) for key in read_keys(cache_keys, model_id)]
    return [place.cache_id if place else 0 for place in places], [place.batch_index if place else 0 for place in places]


def remove_cache_keys(node: Node, cache_keys: Any, *, model_id: Any = 0, all_or_nothing: Any = False) -> list[bool]:
    """Whether each key was bound, and its reference was dropped."""
    node.require_serving()
    keys = read_keys(cache_keys, model_id)
    check_type("all_or_nothing", all_or_nothing, bool)
    if all_or_nothing:
        for position, key in enumerate(keys):
            again = any(key.identity == other.identity for other in keys[:position])
            require(key.identity in node.key_index and not again, f"{key} is not bound", NOT_EXIST)
    return [_remove(node, key) for key in keys]


def _remove(node: Node, key: CacheKey) -> bool:
    was_bound = key.identity in node.key_index
    node.remove_cache_key(key)
    return was_bound


def deallocate_many(node: Node, caches: Any, *, all_or_nothing: Any = False) -> list[bool]:
    """Whether the id reference of each cache was held, and was dropped."""
    node.require_serving()
    handles = read_objects("caches", caches, Cache)
    items: list[Cache] | list[int] = read_numbers("caches", caches, "uint64") if handles is None else handles
    check_type("all_or_nothing", all_or_nothing, bool)
    if all_or_nothing:
        seen: set[tuple[Hashable, int]] = set()
        for item in items:
            reference = (item.engine, item.cache_id) if isinstance(item, Cache) else (node.engine, item)
            error = _refusal_of(node, item) or (NOT_EXIST if reference in seen else None)
            require(error is None, f"{item} cannot be deallocated", error or "")
            seen.add(reference)
    return [_deallocate(node, item) for item in items]


def _tenant_of(node: Node, item: Cache | int) -> Tenant | None:
    if isinstance(item, Cache) and item.engine != node.engine:
        return None
    return node.tenants.get(item.cache_id if isinstance(item, Cache) else item)


def _refusal_of(node: Node, item: Cache | int) -> str | None:
    """What keeps a cache from being deallocated: another call takes those of its kind, or it has been, or never was."""
    if isinstance(item, Cache) and item.is_blocks_cache:
        return "LLM_PARAM_INVALID"
    tenant = _tenant_of(node, item)
    if tenant is None:
        return NOT_EXIST
    if tenant.is_blocks_cache or tenant.registered:
        return "LLM_PARAM_INVALID"
    return None if tenant.id_held else NOT_EXIST


def _deallocate(node: Node, item: Cache | int) -> bool:
    accepted = _refusal_of(node, item) is None
    if isinstance(item, Cache) and not item.is_blocks_cache:
        node.deallocate_cache(item)
    elif accepted:
        tenant = _tenant_of(node, item)
        assert tenant is not None
        tenant.handle_is_spent = True
        tenant.drop_id()
    return accepted


# -- leases ------------------------------------------------------------------------------------------------------------


def renew_leases(
    node: Node, cache_keys: Any, lease: Any = None, *, cluster_id: Any = None, model_id: Any = 0
) -> list[str]:
    """Renew the leases of keys of this node, or of nodes that it is linked to, and how each ended.

    A key that is bound without a lease is renewed without an effect.
    """
    node.require_serving()
    keys = _named_slots(cache_keys, True, cluster_id, model_id)
    if lease is not None:
        check_lease(lease)
    lease = node.require_serving().cache_key_lease if lease is None else lease
    require(lease > 0, "no lease was given, and there is no cache_key_lease")
    return [_renew(node, key, lease) for key in keys]


def _renew(node: Node, key: CacheKey | CacheKeyByIdAndIndex, lease: int) -> str:
    try:
        if isinstance(key, CacheKey):
            node.check_cache_key(key)
        node.owner_of(key).renew_lease(key, lease)
    except Refused as refused:
        return refused.error
    return "LLM_SUCCESS"


# -- pulls -------------------------------------------------------------------------------------------------------------


def pull_many(
    node: Node,
    cache_keys: Any,
    cache: Any,
    batch_indices: Any = None,
    *,
    block_tables: Any = None,
    cluster_id: Any = None,
    model_id: Any = 0,
    size: Any = -1,
    all_or_nothing: Any = False,
) -> list[str]:
    """Pull many batch slots, each into a slot or into blocks; how each pull ended, as the name of a status code.

    The call has one deadline, ``sync_kv_timeout`` after it began. What has not begun by then is ``LLM_TIMEOUT``.
    """
    node.require_serving()
    into_blocks = block_tables is not None
    keys = _named_slots(cache_keys, into_blocks or not node.in_remote_mode, cluster_id, model_id)  # api §3.9
    caches = _targets(cache, len(keys))
    require(batch_indices is None or not into_blocks, "batch_indices or block_tables, not both")
    if into_blocks:
        places = _tables(block_tables, len(keys))
    elif batch_indices is not None:
        numbers = read_numbers("batch_indices", batch_indices, "uint32")
        require(len(numbers) == len(keys), f"{len(numbers)} batch_indices for {len(keys)} keys")
        places = [[number] for number in numbers]
    else:
        places = [[position if isinstance(cache, Cache) else 0] for position in range(len(keys))]
    check_integer("size", size, "int64")
    check_type("all_or_nothing", all_or_nothing, bool)
    for target in [cache] if isinstance(cache, Cache) else caches:
        require(target.is_blocks_cache == into_blocks, "block_tables are for blocks caches, and for no others")
    check_size(size)
    require(size == -1 or not into_blocks, "size is for batch slots, block_tables say how much is pulled")
    _check_targets_differ(caches, places)
    pulls: list[Callable[[], int]] = [
        partial(node.begin_pull_blocks, key, target, (), place)
        if into_blocks
        else partial(node.begin_pull, key, target, place[0], size)
        for key, target, place in zip(keys, caches, places, strict=True)
    ]
    if all_or_nothing:
        _pull_all(node, keys, pulls)
        return ["LLM_SUCCESS"] * len(pulls)
    return [_pull(node, begin) for begin in pulls]


def _named_slots(
    cache_keys: Any, by_key: bool, cluster_id: Any, model_id: Any
) -> list[CacheKey | CacheKeyByIdAndIndex]:
    """What names batch slots: keys, or, if ``by_key`` does not hold, only id and index; or request ids of a cluster."""
    types = (CacheKey, CacheKeyByIdAndIndex) if by_key else (CacheKeyByIdAndIndex,)
    keys = read_objects("cache_keys", cache_keys, *types)
    numbers: list[int] = []
    if keys is None:
        require(by_key, "in remote mode a slot is pulled by its cache's id and its index", "TypeError")
        numbers = read_numbers("cache_keys", cache_keys, "uint64")
    check_integer("model_id", model_id, "uint64")
    if keys is None:
        require(cluster_id is not None, "cluster_id is needed with request ids", "AttributeError")
    if cluster_id is not None:
        check_integer("cluster_id", cluster_id, "uint64")
    if keys is None:
        return [CacheKey(cluster_id, number, model_id) for number in numbers]
    own_ids = model_id == 0 and cluster_id is None
    require(own_ids or not keys, "cluster_id and model_id are for request ids, a key has its own")
    return keys


def _targets(cache: Any, count: int) -> list[Cache]:
    """The cache that each item goes to: one for all, or one for each."""
    check_given("cache", cache, Cache, list, tuple)
    if isinstance(cache, Cache):
        return [cache] * count
    caches = list(cache)
    for target in caches:
        check_type("cache inner", target, Cache)
    require(len(caches) == count, f"{len(caches)} caches for {count} keys")
    return caches


def _tables(block_tables: Any, count: int) -> list[list[int]]:
    check_type("block_tables", block_tables, list, tuple)
    tables = [read_numbers(f"block_tables[{i}]", table, "uint64") for i, table in enumerate(block_tables)]
    require(len(tables) == count, f"{len(tables)} block_tables for {count} keys")
    return tables


def _check_targets_differ(caches: Sequence[Cache], places: Sequence[Sequence[int]]) -> None:
    """No slot and no block is a target twice: which of the two should it hold?"""
    seen: set[tuple[int, int]] = set()
    for target, rows in zip(caches, places, strict=True):
        for row in rows:
            place = (id(target), row)
            require(place not in seen, f"{row} of {target} is a target twice")
            seen.add(place)


def _pull(node: Node, begin: Callable[[], int]) -> str:
    try:
        node.run(begin())
    except Refused as refused:
        return refused.error
    return "LLM_SUCCESS"


def _pull_all(node: Node, keys: Sequence[CacheKey | CacheKeyByIdAndIndex], pulls: Sequence[Callable[[], int]]) -> None:
    """Begin every pull, then copy for all, then finish all: keys go when everything has arrived, or not at all.

    Where a copy fails, earlier ones have been made; no key is released.
    """
    begun: list[Transfer] = []
    try:
        for key, begin in zip(keys, pulls, strict=True):
            transfer = node.cluster.transfers[begin()]
            again = any(_same_source(transfer, other) for other in begun)
            begun.append(transfer)
            released = isinstance(key, CacheKey) and key.prefix_id == INV and not node.source_of(transfer).registered
            require(not (again and released), f"an item before pulls what {key} names", NOT_EXIST)
        for transfer in begun:
            node.copy(transfer.number)
    except Refused:
        for transfer in begun:
            if transfer.number in node.cluster.transfers:
                node.abandon(transfer.number)
        raise
    for transfer in begun:
        node.finish(transfer.number)


def _same_source(transfer: Transfer, other: Transfer) -> bool:
    places = [(each.remote, each.remote_cache, each.remote_slot) for each in (transfer, other)]
    return places[0] == places[1]
