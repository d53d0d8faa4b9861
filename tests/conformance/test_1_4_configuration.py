"""api §1.4: ``LlmConfig``, property by property."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from llmdd import LLMConfig, LlmConfig, LLMException, LLMStatusCode

INT32_MAX, UINT32_MAX = 2**31 - 1, 2**32 - 1


class Property(NamedTuple):
    """One row of the table."""

    name: str
    when_unset: Any
    #: What it may be set to, and the options that this yields.
    accepted: list[tuple[Any, dict[str, str]]]
    #: What it must not be set to.
    wrong_types: list[Any]
    #: What is refused with PARAM_INVALID, and what with a ValueError.
    invalid: list[Any]
    out_of_range: list[Any]
    takes_none: bool


def text(name: str, key: str, emitted_when_empty: bool) -> Property:
    value = '{"memory_size": 1048576}'
    accepted = [(value, {key: value}), ("", {key: ""} if emitted_when_empty else {})]
    return Property(name, "", accepted, [1, b"x", ["x"], {}], [], [], True)


def flag(name: str, key: str, off: dict[str, str]) -> Property:
    return Property(name, False, [(True, {key: "1"}), (False, off)], ["1", 1, 0, []], [], [], True)


PROPERTIES = [
    Property(
        "ge_options",
        {},
        [({"ge.x": "1", "y": "z"}, {"ge.x": "1", "y": "z"}), ({}, {})],
        ["x", [("a", "b")], {1: "x"}, {"x": 1}, {"x": None}],
        [],
        [],
        False,
    ),
    Property(
        "device_id",
        None,
        [
            (0, {"ge.exec.deviceId": "0", "ge.session_device_id": "0"}),
            (3, {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
            ([0, 1], {"ge.exec.deviceId": "0;1", "ge.session_device_id": "0"}),
            ((5, 2), {"ge.exec.deviceId": "5;2", "ge.session_device_id": "5"}),
            (INT32_MAX, {"ge.exec.deviceId": str(INT32_MAX), "ge.session_device_id": str(INT32_MAX)}),
        ],
        ["0", 1.0, {0}, ["0"], np.int64(1)],
        [-1, [0, -1]],
        [2**31, [2**63]],
        False,
    ),
    Property(
        "sync_kv_timeout",
        None,
        [
            (1, {"llm.SyncKvCacheWaitTime": "1"}),
            ("500", {"llm.SyncKvCacheWaitTime": "500"}),
            (INT32_MAX, {"llm.SyncKvCacheWaitTime": str(INT32_MAX)}),
        ],
        [1.5, [1], b"1"],
        [0, -1, "0", "-1", "", "x", "1.5"],
        [2**31, str(2**31), 2**64],
        False,
    ),
    text("deploy_res_path", "llm.deployResPath", False),
    text("buf_pool_cfg", "llm.BufPoolCfg", False),
    text("mem_pool_cfg", "llm.MemPoolConfig", False),
    text("host_mem_pool_cfg", "llm.HostMemPoolConfig", False),
    flag("enable_cache_manager", "llm.EnableCacheManager", {"llm.EnableCacheManager": "0"}),
    flag(
        "enable_remote_cache_accessible",
        "llm.EnableRemoteCacheAccessible",
        {"llm.EnableRemoteCacheAccessible": "0"},
    ),
    text("listen_ip_info", "llm.listenIpInfo", False),
    Property(
        "link_total_time",
        0,
        [
            (0, {"llm.LinkTotalTime": "0"}),
            (30, {"llm.LinkTotalTime": "30"}),
            (UINT32_MAX, {"llm.LinkTotalTime": str(UINT32_MAX)}),
        ],
        ["1", 1.0, [1]],
        [-1, 2**32],
        [],
        False,
    ),
    Property(
        "link_retry_count",
        1,
        [(1, {"llm.LinkRetryCount": "1"}), (100, {"llm.LinkRetryCount": "100"})],
        ["1", 1.0, [1]],
        [0, -1, 101],
        [],
        False,
    ),
    Property(
        "rdma_traffic_class",
        None,
        [(0, {"llm.RdmaTrafficClass": "0"}), (UINT32_MAX, {"llm.RdmaTrafficClass": str(UINT32_MAX)})],
        ["1", 1.0],
        [],
        [-1, 2**32],
        False,
    ),
    Property(
        "rdma_service_level",
        None,
        [(7, {"llm.RdmaServiceLevel": "7"}), (UINT32_MAX, {"llm.RdmaServiceLevel": str(UINT32_MAX)})],
        ["1", 1.0],
        [],
        [-1, 2**32],
        False,
    ),
    text("local_comm_res", "llm.LocalCommRes", True),
    text("transfer_backend", "llm.TransferBackend", True),
    text("global_resource_config", "llm.GlobalResourceConfig", True),
    Property(
        "cluster_info",
        "",
        [("", {})],
        [1, b"x", {}],
        [],
        [],
        True,
    ),
    Property(
        "output_max_size",
        None,
        [(0, {"llm.OutputMaxSize": "0"}), (9, {"llm.OutputMaxSize": "9"})],
        ["1"],
        [],
        [],
        False,
    ),
    flag("enable_switch_role", "llm.EnableSwitchRole", {}),
    Property(
        "mem_utilization",
        0.95,
        [(0.0, {}), (1.0, {}), (0.5, {})],
        [1, 0, "0.5", [0.5]],
        [-0.1, 1.1, float("nan"), float("inf")],
        [],
        False,
    ),
]
BY_NAME = {row.name: row for row in PROPERTIES}
NAMES = list(BY_NAME)


def options_without_utilization(config: LlmConfig) -> dict[str, str]:
    return {key: value for key, value in config.generate_options().items() if key != "llm.MemoryUtilization"}


@pytest.mark.parametrize("name", NAMES)
def test_getter_when_unset(name: str) -> None:
    """api §1.4: what the getter gives when the property was never set."""
    assert getattr(LLMConfig(), name) == BY_NAME[name].when_unset


@pytest.mark.parametrize("name", NAMES)
def test_what_is_accepted_and_emitted(name: str) -> None:
    """api §1.4: what the setter accepts, and the option keys and values that it yields."""
    for value, options in BY_NAME[name].accepted:
        config = LLMConfig()
        setattr(config, name, value)
        assert getattr(config, name) == value
        assert options_without_utilization(config) == options


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_is_a_type_error(name: str) -> None:
    """api §1.4: wrong type: TE with ``only support``; the setting stays."""
    config = LLMConfig()
    for wrong in BY_NAME[name].wrong_types:
        with pytest.raises(TypeError, match="only support"):
            setattr(config, name, wrong)
        assert getattr(config, name) == BY_NAME[name].when_unset


@pytest.mark.parametrize("name", NAMES)
def test_extra_setter_checks(name: str) -> None:
    """api §1.4: the extra checks: LX or VE as the table says; the setting stays."""
    config = LLMConfig()
    for wrong in BY_NAME[name].invalid:
        with pytest.raises(LLMException) as refused:
            setattr(config, name, wrong)
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    for wrong in BY_NAME[name].out_of_range:
        with pytest.raises(ValueError):
            setattr(config, name, wrong)
    assert getattr(config, name) == BY_NAME[name].when_unset


@pytest.mark.parametrize("name", NAMES)
def test_none(name: str) -> None:
    """api §1.4: None is accepted (= unset) for the str and bool properties; TE or AE for the rest."""
    config = LLMConfig()
    if not BY_NAME[name].takes_none:
        with pytest.raises((TypeError, AttributeError)):
            setattr(config, name, None)
        return
    for value, _ in BY_NAME[name].accepted:
        setattr(config, name, value)
    setattr(config, name, None)
    assert getattr(config, name) == BY_NAME[name].when_unset
    assert options_without_utilization(config) == {}


def test_a_fresh_config_yields_one_key() -> None:
    """api §1.4: a property that was never set yields no key, except ``mem_utilization``."""
    assert LLMConfig().generate_options() == {"llm.MemoryUtilization": "0.95"}


@pytest.mark.parametrize(("value", "emitted"), [(0.5, "0.5"), (1.0, "1.0"), (0.0, "0.0")])
def test_mem_utilization_is_always_emitted(value: float, emitted: str) -> None:
    """api §1.4: ``llm.MemoryUtilization``, always."""
    config = LLMConfig()
    config.mem_utilization = value
    assert config.generate_options() == {"llm.MemoryUtilization": emitted}


def test_order_of_emission() -> None:
    """api §1.4: the order of the table is the emission order; all values are str."""
    config = LLMConfig()
    expected: list[str] = []
    for row in PROPERTIES:
        expected += row.accepted[0][1]
        if row.name == "cluster_info":
            expected.append("llm.ClusterInfo")
    expected.append("llm.MemoryUtilization")
    config.cluster_info = '{"cluster_id": 1}'
    for row in reversed(PROPERTIES):  # the order of emission is not that of setting
        if row.name != "cluster_info":
            setattr(config, row.name, row.accepted[0][0])
    options = config.generate_options()
    assert list(options) == expected
    assert {type(part) for pair in options.items() for part in pair} == {str}


def test_ge_options_come_first_and_are_overridden() -> None:
    """api §1.4: ge_options are merged verbatim, first; later keys override."""
    config = LLMConfig()
    config.ge_options = {"llm.LinkRetryCount": "9", "ge.other": "x", "ge.exec.deviceId": "7"}
    config.link_retry_count = 2
    options = config.generate_options()
    assert options["llm.LinkRetryCount"] == "2"
    assert (options["ge.other"], options["ge.exec.deviceId"]) == ("x", "7")
    assert next(iter(options)) == "llm.LinkRetryCount"


def test_cluster_info_turns_addresses_into_integers() -> None:
    """api §1.4: ``json.loads``; ``listen_ip_info[*].ip`` strings become ints; re-dumped under ``llm.ClusterInfo``."""
    config = LLMConfig()
    config.cluster_info = json.dumps({"cluster_id": 3, "listen_ip_info": [{"ip": "1.2.3.4", "port": 5}, {"ip": 7}]})
    expected = {"cluster_id": 3, "listen_ip_info": [{"ip": 67305985, "port": 5}, {"ip": 7}]}
    assert json.loads(config.generate_options()["llm.ClusterInfo"]) == expected
    assert json.loads(config.cluster_info) == expected


def test_gen_options_is_an_alias() -> None:
    """api §1.4: ``gen_options()`` is ``generate_options()``, and ``options`` a read-only property."""
    config = LLMConfig()
    config.link_retry_count = 3
    assert config.gen_options() == config.generate_options() == config.options
    with pytest.raises(AttributeError):
        config.options = {}  # type: ignore[misc]


def test_each_call_gives_a_fresh_dict() -> None:
    """api §1.4, D69: each call returns a fresh dict holding exactly the current settings."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.generate_options()["llm.EnableCacheManager"] = "corrupted"
    assert config.generate_options()["llm.EnableCacheManager"] == "1"
    assert config.generate_options() is not config.generate_options()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deploy_res_path", "/nowhere"),
        ("buf_pool_cfg", "not even JSON"),
        ("rdma_traffic_class", 4),
        ("rdma_service_level", 7),
        ("global_resource_config", "not JSON"),
        ("cluster_info", '{"listen_ip_info": [{"ip": "1.2.3.4"}]}'),
        ("output_max_size", 5),
        ("enable_switch_role", True),
        ("mem_utilization", 0.1),
        ("device_id", 3),
    ],
)
def test_what_only_means_something_to_hardware_is_accepted_and_ignored(library: Any, name: str, value: Any) -> None:
    """api §1.4: the rest is accepted and ignored, by ``init`` too."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.mem_pool_cfg = '{"memory_size": 65536}'
    setattr(config, name, value)
    node = library.start(1)
    node.init(config.generate_options())
    assert node.usage() == (65536, 65536, 65536)
