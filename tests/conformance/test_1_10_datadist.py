"""api §1.10: ``LLMDataDist``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llmdd import CacheManager, LLMDataDist, LLMException, LLMRole, RegisterMemStatus

#: Parameters of each method, with their defaults.
SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "init": [("options", inspect.Parameter.empty)],
    "finalize": [],
    "link_clusters": [("clusters", inspect.Parameter.empty), ("timeout", 3000)],
    "unlink_clusters": [("clusters", inspect.Parameter.empty), ("timeout", 3000), ("force", False)],
    "link": [(name, inspect.Parameter.empty) for name in ("comm_name", "cluster_rank_info", "rank_table")],
    "unlink": [("comm_id", inspect.Parameter.empty)],
    "query_register_mem_status": [("comm_id", inspect.Parameter.empty)],
    "switch_role": [("role", inspect.Parameter.empty), ("switch_options", None)],
}


@pytest.mark.parametrize("method", SIGNATURES)
def test_signatures(method: str) -> None:
    """api §1.10: names, order and defaults of the parameters."""
    parameters = list(inspect.signature(getattr(LLMDataDist, method)).parameters.values())[1:]
    assert [(parameter.name, parameter.default) for parameter in parameters] == SIGNATURES[method]


def test_constructor() -> None:
    """api §1.10: ``LLMDataDist(role, cluster_id)``; ``cluster_id`` is a property."""
    assert LLMDataDist(role=LLMRole.PROMPT, cluster_id=5).cluster_id == 5
    assert isinstance(LLMDataDist.cluster_id, property)


def test_cache_manager_is_a_property(make_datadist: Any) -> None:
    """api §1.10: ``cache_manager`` is a property that gives the CacheManager."""
    assert isinstance(LLMDataDist.cache_manager, property)
    assert isinstance(make_datadist(1).cache_manager, CacheManager)


def test_init_and_finalize_return_none(make_datadist: Any) -> None:
    """api §1.10: ``init`` and ``finalize`` return None."""
    datadist = LLMDataDist(LLMRole.MIX, 1)
    assert datadist.init({"llm.EnableCacheManager": "1"}) is None
    assert datadist.finalize() is None


@pytest.mark.parametrize(
    "use",
    [
        lambda datadist: datadist.kv_cache_manager,
        lambda datadist: datadist.check_link_status(1),
        lambda datadist: datadist.check_link_status(remote_cluster_id=1),
    ],
)
def test_v1_only(make_datadist: Any, use: Any) -> None:
    """api §1.10: ``kv_cache_manager`` and ``check_link_status`` are LX in this mode."""
    with pytest.raises(LLMException, match=r"is not supported when llm.EnableCacheManager is configured\.") as refused:
        use(make_datadist(1))
    assert refused.value.status_code.name == "LLM_PARAM_INVALID"


def test_llm_engine_instance() -> None:
    """api §1.10: the class attribute ``llm_engine_instance`` is the live instance or None."""
    datadist = LLMDataDist(LLMRole.MIX, 1)
    before = LLMDataDist.llm_engine_instance
    assert before is not datadist
    datadist.init({"llm.EnableCacheManager": "1"})
    assert LLMDataDist.llm_engine_instance is datadist
    datadist.finalize()
    assert LLMDataDist.llm_engine_instance is None


def test_link_returns_an_int_and_query_a_status(make_datadist: Any) -> None:
    """api §1.10: ``link`` returns an int, ``unlink`` None, ``query_register_mem_status`` a RegisterMemStatus."""
    datadist = make_datadist(1)
    table = (
        '{"server_count": "1", "status": "completed", "version": "1.0", "server_list": [{"server_id": "127.0.0.1", '
        '"device": [{"device_id": "0", "device_ip": "127.0.0.1", "rank_id": "0"}, '
        '{"device_id": "1", "device_ip": "127.0.0.1", "rank_id": "1"}]}]}'
    )
    communicator = datadist.link("pair", {1: 0, 2: 1}, table)
    assert type(communicator) is int
    assert isinstance(datadist.query_register_mem_status(communicator), RegisterMemStatus)
    assert datadist.unlink(communicator) is None
