"""api §1.11: ``CacheManager``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llmdd import CacheKey, CacheManager, LLMException, LLMStatusCode

REQUIRED = inspect.Parameter.empty
INV = 2**64 - 1

#: Parameters of each method, with their defaults.
SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "allocate_cache": [("cache_desc", REQUIRED), ("cache_keys", ())],
    "allocate_blocks_cache": [("cache_desc", REQUIRED), ("blocks_cache_key", None)],
    "deallocate_cache": [("cache", REQUIRED)],
    "deallocate_blocks_cache": [("cache", REQUIRED)],
    "register_cache": [
        ("cache_desc", REQUIRED),
        ("addrs", REQUIRED),
        ("cache_keys", ()),
        ("remote_accessible", None),
    ],
    "register_blocks_cache": [
        ("cache_desc", REQUIRED),
        ("addrs", REQUIRED),
        ("blocks_cache_key", None),
        ("remote_accessible", None),
    ],
    "unregister_cache": [("cache_id", REQUIRED)],
    "remove_cache_key": [("cache_key", REQUIRED)],
    "pull_cache": [
        ("cache_key", REQUIRED),
        ("cache", REQUIRED),
        ("batch_index", 0),
        ("size", -1),
        ("kwargs", REQUIRED),
    ],
    "pull_blocks": [
        ("src_cache_key", REQUIRED),
        ("dst_cache", REQUIRED),
        ("src_blocks", ()),
        ("dst_blocks", ()),
        ("kwargs", REQUIRED),
    ],
    "push_cache": [
        ("dst_cache_key", REQUIRED),
        ("src_cache", REQUIRED),
        ("src_batch_index", 0),
        ("src_layer_range", None),
        ("dst_layer_range", None),
        ("size", -1),
        ("tensor_num_per_layer", 2),
    ],
    "push_blocks": [
        ("dst_cache_key", REQUIRED),
        ("src_cache", REQUIRED),
        ("src_blocks", ()),
        ("dst_blocks", ()),
        ("src_layer_range", None),
        ("dst_layer_range", None),
        ("tensor_num_per_layer", 2),
    ],
    "transfer_cache_async": [
        ("src_cache", REQUIRED),
        ("layer_synchronizer", REQUIRED),
        ("transfer_configs", REQUIRED),
        ("src_block_indices", None),
        ("dst_block_indices", None),
        ("dst_block_memory_size", None),
    ],
    "copy_cache": [
        ("dst", REQUIRED),
        ("src", REQUIRED),
        ("dst_batch_index", 0),
        ("src_batch_index", 0),
        ("offset", 0),
        ("size", -1),
        ("req_id", None),
    ],
    "copy_blocks": [("cache", REQUIRED), ("copy_block_info", REQUIRED)],
    "swap_blocks": [("src_cache", REQUIRED), ("dst_cache", REQUIRED), ("src_to_dst", REQUIRED)],
    "remap_registered_memory": [("mem_infos", REQUIRED)],
}


OURS = {"allocate_cache": ["lease"]}


@pytest.mark.parametrize("method", SIGNATURES)
def test_signatures(method: str) -> None:
    """api §1.11: names, order and defaults of the parameters. Those of llmdd's own are given by keyword alone."""
    parameters = list(inspect.signature(getattr(CacheManager, method)).parameters.values())[1:]
    ours = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [parameter.name for parameter in ours] == OURS.get(method, [])
    assert [(each.name, each.default) for each in parameters if each not in ours] == SIGNATURES[method]


def test_the_keywords_of_both_pulls(library: Any) -> None:
    """api §1.11: the keywords of both pulls have these names and defaults."""
    from llmdd.spec.values import CacheDesc

    from conformance.world import by_id

    prompt, decoder = library.pair()
    desc = CacheDesc(2, (1, 8), "DT_UINT8")
    theirs = prompt.fill(prompt.allocate_cache(desc), 1)
    ours = decoder.allocate_cache(desc)
    layer = {"src_layer_range": range(1), "dst_layer_range": range(1), "tensor_num_per_layer": 2}
    assert decoder.pull_cache(by_id(theirs), ours, **layer) is None
    assert decoder.contents(ours) == prompt.contents(theirs)


def test_check_cache_key_is_static() -> None:
    """api §1.11: ``check_cache_key`` (static) holds exactly one of request id and prefix id to be valid."""
    assert CacheManager.check_cache_key(CacheKey(1, 5)) is None
    assert CacheManager.check_cache_key(CacheKey(1, INV, 0, 5)) is None
    for key, fragment in (
        (CacheKey(1, INV), "one of req id and prefix id should contain valid value"),
        (CacheKey(1, 5, 0, 5), "only one of req id and prefix id"),
    ):
        with pytest.raises(LLMException, match=fragment) as refused:
            CacheManager.check_cache_key(key)
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
