"""The options of an instance: what each property takes, gives back, and becomes (api §1.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmdd import LLMConfig, LlmConfig, LLMException, LLMStatusCode

# Property, a value, what it becomes; in the order in which the keys are emitted.
EMITTED: list[tuple[str, Any, dict[str, str]]] = [
    ("ge_options", {"ge.someOption": "1", "ge.other": "x"}, {"ge.someOption": "1", "ge.other": "x"}),
    ("device_id", 3, {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
    ("sync_kv_timeout", 500, {"llm.SyncKvCacheWaitTime": "500"}),
    ("cache_key_lease", 30_000, {"llmdd.CacheKeyLease": "30000"}),
    ("deploy_res_path", "/path", {"llm.deployResPath": "/path"}),
    ("buf_pool_cfg", "{}", {"llm.BufPoolCfg": "{}"}),
    ("mem_pool_cfg", '{"memory_size": 1}', {"llm.MemPoolConfig": '{"memory_size": 1}'}),
    ("host_mem_pool_cfg", "x", {"llm.HostMemPoolConfig": "x"}),
    ("enable_cache_manager", True, {"llm.EnableCacheManager": "1"}),
    ("enable_remote_cache_accessible", True, {"llm.EnableRemoteCacheAccessible": "1"}),
    ("listen_ip_info", "127.0.0.1:26000", {"llm.listenIpInfo": "127.0.0.1:26000"}),
    ("link_total_time", 30, {"llm.LinkTotalTime": "30"}),
    ("link_retry_count", 2, {"llm.LinkRetryCount": "2"}),
    ("rdma_traffic_class", 132, {"llm.RdmaTrafficClass": "132"}),
    ("rdma_service_level", 4, {"llm.RdmaServiceLevel": "4"}),
    ("local_comm_res", "{}", {"llm.LocalCommRes": "{}"}),
    ("transfer_backend", "nixl", {"llm.TransferBackend": "nixl"}),
    ("global_resource_config", "{}", {"llm.GlobalResourceConfig": "{}"}),
    ("cluster_info", '{"a": 1}', {"llm.ClusterInfo": '{"a": 1}'}),
    ("output_max_size", 9, {"llm.OutputMaxSize": "9"}),
    ("enable_switch_role", True, {"llm.EnableSwitchRole": "1"}),
    ("wait_for_memory", True, {"llmdd.WaitForMemory": "1"}),
    ("mem_utilization", 0.5, {"llm.MemoryUtilization": "0.5"}),
    ("link_key", "/etc/llmdd/one.key", {"llmdd.LinkKey": "/etc/llmdd/one.key"}),
    ("link_allowed_keys", "/etc/llmdd/allowed.crt", {"llmdd.LinkAllowedKeys": "/etc/llmdd/allowed.crt"}),
    ("open_links", True, {"llmdd.OpenLinks": "1"}),
    ("peer_timeout", 5000, {"llmdd.PeerTimeout": "5000"}),
]
UNSET: dict[str, Any] = {
    **dict.fromkeys((name for name, value, _ in EMITTED if isinstance(value, str)), ""),
    **dict.fromkeys((name for name, value, _ in EMITTED if isinstance(value, bool)), False),
    **dict.fromkeys(("device_id", "sync_kv_timeout", "rdma_traffic_class", "rdma_service_level", "output_max_size")),
    **dict.fromkeys(("cache_key_lease", "peer_timeout")),
    "ge_options": {},
    "link_total_time": 0,
    "link_retry_count": 1,
    "mem_utilization": 0.95,
}
ALWAYS = {"llm.MemoryUtilization": "0.95"}


def properties() -> list[str]:
    return [name for name, member in vars(LlmConfig).items() if isinstance(member, property) and name != "options"]


def test_both_names_are_one_class_and_both_methods_one() -> None:
    assert LLMConfig is LlmConfig
    config = LLMConfig()
    config.device_id = 1
    assert config.generate_options() == config.gen_options() == config.options
    with pytest.raises(AttributeError):
        config.options = {}  # type: ignore[misc]


def test_a_new_config_has_every_property_unset() -> None:
    config = LLMConfig()
    assert {name: getattr(config, name) for name in properties()} == UNSET
    assert config.generate_options() == ALWAYS


@pytest.mark.parametrize(("name", "value", "options"), EMITTED, ids=[name for name, _, _ in EMITTED])
def test_each_property_becomes_its_options(name: str, value: Any, options: dict[str, str]) -> None:
    config = LLMConfig()
    setattr(config, name, value)
    assert getattr(config, name) == value
    assert config.generate_options() == ALWAYS | options


def test_everything_set_is_emitted_in_order() -> None:
    assert sorted(properties()) == sorted(name for name, _, _ in EMITTED)
    config = LLMConfig()
    for name, value, _ in reversed(EMITTED):
        setattr(config, name, value)
    assert list(config.generate_options().items()) == [item for _, _, each in EMITTED for item in each.items()]


@pytest.mark.parametrize(("name", "value", "options"), EMITTED, ids=[name for name, _, _ in EMITTED])
def test_none_unsets_text_and_flags_and_nothing_else(name: str, value: Any, options: dict[str, str]) -> None:
    config = LLMConfig()
    setattr(config, name, value)
    if isinstance(value, str | bool):
        setattr(config, name, None)
        assert getattr(config, name) == UNSET[name]
        assert config.generate_options() == ALWAYS
        return
    with pytest.raises((TypeError, AttributeError)):
        setattr(config, name, None)
    assert config.generate_options() == ALWAYS | options


@pytest.mark.parametrize(("name", "value", "options"), EMITTED, ids=[name for name, _, _ in EMITTED])
def test_another_type_is_a_type_error_that_names_the_right_one(name: str, value: Any, options: dict[str, str]) -> None:
    config = LLMConfig()
    setattr(config, name, value)
    for wrong in (object(), b"1", 1.5j):
        with pytest.raises(TypeError, match="only support"):
            setattr(config, name, wrong)
    assert config.generate_options() == ALWAYS | options


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("device_id", "0"),
        ("device_id", [0, "1"]),
        ("device_id", {0}),
        ("sync_kv_timeout", 1.0),
        ("peer_timeout", 5000.0),
        ("enable_cache_manager", 1),
        ("enable_remote_cache_accessible", "1"),
        ("enable_switch_role", 0),
        ("wait_for_memory", "1"),
        ("mem_pool_cfg", {"memory_size": 1}),
        ("link_total_time", "1"),
        ("link_retry_count", 1.0),
        ("rdma_traffic_class", "1"),
        ("output_max_size", "1"),
        ("mem_utilization", 1),
        ("ge_options", [("a", "b")]),
        ("ge_options", {"a": 1}),
        ("ge_options", {1: "a"}),
    ],
)
def test_types_that_come_near(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="only support"):
        setattr(LLMConfig(), name, wrong)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("device_id", [-1, [0, -1]]),
        ("sync_kv_timeout", [0, -1, "0", "-1", "", "1s", " 1", "1.5", "\u0661"]),
        ("peer_timeout", [1999, "1999", 0, -1, "-5000", "", "5s", " 5000", "5000.0", True]),
        ("link_total_time", [-1, 2**32]),
        ("link_retry_count", [0, -1, 101]),
        ("mem_utilization", [-0.1, 1.1, float("nan"), float("inf")]),
    ],
)
def test_values_that_cannot_be(name: str, values: list[Any]) -> None:
    config = LLMConfig()
    for value in values:
        with pytest.raises(LLMException) as refused:
            setattr(config, name, value)
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert config.generate_options() == ALWAYS


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("device_id", [2**31, [0, 2**31]]),
        ("sync_kv_timeout", [2**31, str(2**31)]),
        ("peer_timeout", [2**31, str(2**31)]),
        ("rdma_traffic_class", [-1, 2**32]),
        ("rdma_service_level", [-1, 2**32]),
        ("cluster_info", ["{", '{"listen_ip_info": [{"ip": "1.2.3"}]}']),
    ],
)
def test_numbers_out_of_range(name: str, values: list[Any]) -> None:
    config = LLMConfig()
    for value in values:
        with pytest.raises(ValueError):
            setattr(config, name, value)
    assert config.generate_options() == ALWAYS


@pytest.mark.parametrize(
    ("name", "value", "key", "text"),
    [
        ("device_id", (0, 1), "ge.exec.deviceId", "0;1"),
        ("device_id", [4, 1], "ge.session_device_id", "4"),
        ("device_id", True, "ge.exec.deviceId", "1"),
        ("sync_kv_timeout", "250", "llm.SyncKvCacheWaitTime", "250"),
        ("sync_kv_timeout", 2**31 - 1, "llm.SyncKvCacheWaitTime", "2147483647"),
        ("sync_kv_timeout", True, "llm.SyncKvCacheWaitTime", "1"),
        ("enable_cache_manager", False, "llm.EnableCacheManager", "0"),
        ("enable_remote_cache_accessible", False, "llm.EnableRemoteCacheAccessible", "0"),
        ("link_total_time", 0, "llm.LinkTotalTime", "0"),
        ("link_total_time", 2**32 - 1, "llm.LinkTotalTime", "4294967295"),
        ("link_retry_count", 100, "llm.LinkRetryCount", "100"),
        ("rdma_traffic_class", 2**32 - 1, "llm.RdmaTrafficClass", "4294967295"),
        ("rdma_service_level", False, "llm.RdmaServiceLevel", "0"),
        ("local_comm_res", "", "llm.LocalCommRes", ""),
        ("transfer_backend", "", "llm.TransferBackend", ""),
        ("global_resource_config", "", "llm.GlobalResourceConfig", ""),
        ("output_max_size", -1, "llm.OutputMaxSize", "-1"),
        ("mem_utilization", 1.0, "llm.MemoryUtilization", "1.0"),
        ("peer_timeout", "2000", "llmdd.PeerTimeout", "2000"),
        ("peer_timeout", 2**31 - 1, "llmdd.PeerTimeout", "2147483647"),
    ],
)
def test_values_at_the_edges(name: str, value: Any, key: str, text: str) -> None:
    config = LLMConfig()
    setattr(config, name, value)
    assert config.generate_options()[key] == text


@pytest.mark.parametrize(
    "name", ["deploy_res_path", "buf_pool_cfg", "mem_pool_cfg", "host_mem_pool_cfg", "listen_ip_info", "cluster_info"]
)
def test_empty_text_is_as_unset(name: str) -> None:
    config = LLMConfig()
    setattr(config, name, "")
    assert config.generate_options() == ALWAYS


def test_a_flag_switched_off_again() -> None:
    config = LLMConfig()
    config.enable_switch_role = config.enable_cache_manager = True
    config.enable_switch_role = config.enable_cache_manager = False
    assert config.generate_options() == ALWAYS | {"llm.EnableCacheManager": "0"}


def test_addresses_in_the_cluster_info_become_integers() -> None:
    config = LLMConfig()
    config.cluster_info = '{"cluster_id": 1, "listen_ip_info": [{"ip": "1.2.3.4", "port": 5}, {"ip": 7}]}'
    expected = {"cluster_id": 1, "listen_ip_info": [{"ip": 67305985, "port": 5}, {"ip": 7}]}
    assert json.loads(config.cluster_info) == json.loads(config.options["llm.ClusterInfo"]) == expected


def test_ge_options_come_first_and_give_way() -> None:
    config = LLMConfig()
    config.ge_options = {"llm.listenIpInfo": "1.1.1.1:1", "llm.MemoryUtilization": "0.1", "other": "kept"}
    config.listen_ip_info = "2.2.2.2:2"
    assert config.generate_options() == {"llm.listenIpInfo": "2.2.2.2:2", "other": "kept"} | ALWAYS


def test_every_dictionary_is_a_new_one() -> None:
    config = LLMConfig()
    given = {"a": "b"}
    config.ge_options = given
    first = config.generate_options()
    first.clear()
    given["c"] = "d"
    assert config.generate_options() == config.options == {"a": "b"} | ALWAYS
    assert config.options is not config.options
