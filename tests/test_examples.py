"""Every example in a docstring of llmdd runs as it stands."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import llmdd
from llmdd import BlocksCacheKey, CacheDesc, CacheKey, CacheManager, DataType

# Without what the extras install these cannot be imported.
OPTIONAL = ("llmdd.bench", "llmdd.cli", "llmdd.spec", "llmdd.demo")


def modules() -> Iterator[ModuleType]:
    yield llmdd
    for found in pkgutil.walk_packages(llmdd.__path__, "llmdd."):
        if not found.name.startswith(OPTIONAL) and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def examples_of(module: ModuleType) -> Iterator[doctest.DocTest]:
    """The examples of what the module defines; of a compiled one without their copies in its ``__test__``."""
    for test in doctest.DocTestFinder().find(module):
        if test.examples and ".__test__." not in test.name:
            yield test


def all_examples() -> list[doctest.DocTest]:
    return [test for module in modules() for test in examples_of(module)]


@pytest.fixture
def names(make_datadist: Any, link: Any) -> dict[str, Any]:
    """What examples take for granted: llmdd's names, and the managers of linked clusters.

    ``decoder`` can pull requests 7 and 9 from cluster 1, ``prompt`` can push into cache 1 of cluster 2 and into the
    blocks of its model 1.
    """
    desc = CacheDesc(2, (4, 64), DataType.DT_FLOAT16)

    def linked_pair(remote: bool) -> tuple[CacheManager, CacheManager]:
        prompt, decoder = (make_datadist(cluster, page_shift=16, remote_accessible=remote) for cluster in (1, 2))
        link(decoder, prompt)
        return prompt.cache_manager, decoder.cache_manager

    manager, decoder = linked_pair(remote=False)
    manager.allocate_cache(desc, [CacheKey(1, req_id=7), CacheKey(1, req_id=9)])
    prompt, pushed_to = linked_pair(remote=True)
    pushed_to.allocate_cache(desc)
    pushed_to.allocate_blocks_cache(CacheDesc(2, (8, 64), DataType.DT_FLOAT16), BlocksCacheKey(2, model_id=1))
    return {name: getattr(llmdd, name) for name in llmdd.__all__} | {
        "np": np,
        "CacheManager": CacheManager,
        "manager": manager,
        "decoder": decoder,
        "prompt": prompt,
    }


@pytest.mark.parametrize("example", all_examples(), ids=lambda test: test.name)
def test_examples_run(example: doctest.DocTest, names: dict[str, Any]) -> None:
    example.globs = {**names, **example.globs}
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


@pytest.mark.parametrize(
    "name",
    [
        "llmdd",
        "llmdd.datadist.LLMDataDist",
        "llmdd.cluster_info.LLMClusterInfo",
        "llmdd._core.cache_keys.CacheKey",
        "llmdd._core.cache_desc.CacheDesc",
        "llmdd._core.node_caches.NodeCaches.allocate_cache",
        "llmdd._core.node_caches.NodeCaches.allocate_blocks_cache",
        "llmdd._core.node_caches.NodeCaches.register_cache",
        "llmdd._core.node_caches.NodeCaches.register_blocks_cache",
        "llmdd._core.node_caches.NodeCaches.deallocate_cache",
        "llmdd._core.node_caches.NodeCaches.deallocate_blocks_cache",
        "llmdd._core.node_caches.NodeCaches.unregister_cache",
        "llmdd._core.node_caches.NodeCaches.remove_cache_key",
        "llmdd._core.local_copies.LocalCopies.copy_cache",
        "llmdd._core.local_copies.LocalCopies.copy_blocks",
        "llmdd._core.local_copies.LocalCopies.swap_blocks",
        "llmdd._core.store.CacheStore.pull_cache",
        "llmdd._core.store.CacheStore.pull_blocks",
        "llmdd._core.store.CacheStore.push_cache",
        "llmdd._core.store.CacheStore.push_blocks",
        "llmdd._core.bulk_calls.BulkCalls.lookup_many",
        "llmdd._core.bulk_calls.BulkCalls.remove_cache_keys",
        "llmdd._core.bulk_calls.BulkCalls.deallocate_many",
        "llmdd._core.bulk_calls.BulkCalls.pull_many",
    ],
)
def test_what_a_program_calls_has_an_example(name: str) -> None:
    assert name in {test.name for test in all_examples()}
