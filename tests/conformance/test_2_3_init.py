"""api §2.3: ``init``, step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc

import llmdd
from conformance.world import World, link, options_of, outcome, refused

DESC = CacheDesc(1, (1, 8), "DT_UINT8")
MINIMAL = {"llm.EnableCacheManager": "1"}


def init_outcome(world: World, options: Any) -> Any:
    """How ``init`` ends; after a refusal it can be called again."""
    node = world.start(1)
    answer = outcome(lambda: node.init(options))
    if answer is not None:
        node.init(options_of())
        assert node.is_entirely_free()
    return answer


def test_1_already_initialised(world: World) -> None:
    """api §2.3 (1): already initialised: return None, arguments not looked at."""
    node = world.node(1)
    node.allocate_cache(DESC)
    for options in (None, "nonsense", {}, {1: 2}, options_of(device_bytes=1 << 24)):
        assert node.init(options) is None
    assert node.live_caches() == 1
    assert node.usage()[0] == 1 << 20


def test_2_any_number_of_instances(world: World) -> None:
    """api §2.3 (2): any number of instances may be initialised in one process."""
    nodes = [world.node(number) for number in range(1, 6)]
    for node in nodes:
        node.allocate_cache(DESC)
    assert [node.live_caches() for node in nodes] == [1] * 5


def test_2_the_one_initialised_last(library: Any) -> None:
    """api §2.3 (2): ``LLMDataDist.llm_engine_instance`` names the one initialised last."""
    first, second = library.node(1), library.node(2)
    assert llmdd.LLMDataDist.llm_engine_instance is second.datadist
    first.finalize()
    first.init(options_of())
    assert llmdd.LLMDataDist.llm_engine_instance is first.datadist


@pytest.mark.parametrize("wrong", ["options", 5, [("llm.EnableCacheManager", "1")], {"llm.EnableCacheManager"}])
def test_3_options_is_a_dict(world: World, wrong: Any) -> None:
    """api §2.3 (3): options is a dict: TE."""
    assert init_outcome(world, wrong) == "TypeError"


def test_3_options_none(world: World) -> None:
    """api §2.3 (3): None is an AE."""
    with refused("AttributeError"):
        world.start(1).init(None)


@pytest.mark.parametrize(
    ("value", "error", "fragment"),
    [
        (5, "TypeError", ""),
        (None, "TypeError", ""),
        ("1,2", "LLM_PARAM_INVALID", "only support one mem pool"),
        ("x", "LLM_PARAM_INVALID", "must be digit"),
        ("", "LLM_PARAM_INVALID", "must be digit"),
        ("-1", "LLM_PARAM_INVALID", "must be digit"),
    ],
)
def test_4_flow_graph_memory(world: World, value: Any, error: str, fragment: str) -> None:
    """api §2.3 (4): ``ge.flowGraphMemMaxSize``: str; no comma; digits; before every later step."""
    with refused(error, fragment):
        world.start(1).init({"ge.flowGraphMemMaxSize": value})
    world.start(2).init(MINIMAL | {"ge.flowGraphMemMaxSize": "1024"})


@pytest.mark.parametrize("value", ["", "{}", '{"version": "1.3"}'])
def test_5_defaults_with_local_comm_res(world: World, value: str) -> None:
    """api §2.3 (5): ``llm.LocalCommRes`` present, even empty: cache manager and remote mode default to ``1``."""
    node = world.start(1)
    node.init({"llm.LocalCommRes": value, "llm.MemPoolConfig": '{"memory_size": 65536}'})
    with refused("TypeError"):  # in remote mode a push begins by looking at its arguments
        node.push_cache("key", node.allocate_cache(DESC))


def test_5_an_explicit_flag_counts(world: World) -> None:
    """api §2.3 (5): only what is absent gets a default."""
    node = world.start(1)
    node.init(
        {
            "llm.LocalCommRes": "",
            "llm.EnableRemoteCacheAccessible": "0",
            "llm.MemPoolConfig": '{"memory_size": 65536}',
        }
    )
    with refused("LLM_PARAM_INVALID", "only supported while enable_remote_cache_accessible is True"):
        node.push_cache("key", node.allocate_cache(DESC))


def test_6_local_comm_res_without_the_cache_manager(world: World) -> None:
    """api §2.3 (6): LocalCommRes present but cache manager ``0``: LX."""
    fragment = "llm.LocalCommRes is not supported when llm.EnableCacheManager is not configured."
    with refused("LLM_PARAM_INVALID", fragment):
        world.start(1).init({"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"})


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"llm.listenIpInfo": "127.0.0.1:0"}, ("llm.TransferBackend", "EnableCacheManager")),
        ({"llm.EnableCacheManager": "0"}, ("llm.TransferBackend", "EnableCacheManager")),
        (
            MINIMAL | {"llm.EnableRemoteCacheAccessible": "0", "llm.listenIpInfo": "127.0.0.1:0"},
            ("EnableRemoteCacheAccessible",),
        ),
        (MINIMAL, ("listenIpInfo",)),
        (MINIMAL | {"llm.EnableRemoteCacheAccessible": "1"}, ("listenIpInfo",)),
    ],
)
def test_7_transfer_backend(world: World, options: dict[str, str], fragments: tuple[str, ...]) -> None:
    """api §2.3 (7): TransferBackend needs the cache manager, remote mode and a listener."""
    for fragment in fragments:
        with refused("LLM_PARAM_INVALID", fragment):
            world.start(len(world.nodes) + 1).init(options | {"llm.TransferBackend": "hixl"})


def test_7_transfer_backend_turns_remote_mode_on(world: World) -> None:
    """api §2.3 (7): remote mode absent becomes ``1``."""
    node = world.start(1)
    node.init(
        MINIMAL
        | {
            "llm.TransferBackend": "hixl",
            "llm.listenIpInfo": "127.0.0.1:0",
            "llm.MemPoolConfig": '{"memory_size": 65536}',
        }
    )
    with refused("TypeError"):
        node.push_cache("key", node.allocate_cache(DESC))


@pytest.mark.parametrize("options", [{}, {"llm.EnableCacheManager": "0"}, {"llm.EnableCacheManager": ""}])
def test_8_cache_manager_off(world: World, options: dict[str, str]) -> None:
    """api §2.3 (8), D73: cache manager not ``1``: LX(FEATURE_NOT_ENABLED), naming ``llm.EnableCacheManager``."""
    with refused("LLM_FEATURE_NOT_ENABLED", "llm.EnableCacheManager"):
        world.start(1).init(options | {"llm.listenIpInfo": "nonsense"})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("127.0.0.1", "LLM_PARAM_INVALID"),
        ("127.0.0.1:1:2", "LLM_PARAM_INVALID"),
        ("::1:5000", "LLM_PARAM_INVALID"),
        ("", "LLM_PARAM_INVALID"),
        ("127.0.0.1:x", "ValueError"),
        ("127.0.0.1:", "ValueError"),
        ("127.0.0.1:-1", "ValueError"),
        ("127.0.0.1:65536", "ValueError"),
        ("[::1]:65536", "ValueError"),
        ("127.0.0.1:4294967296", "ValueError"),
    ],
)
def test_9_bad_listen_address(world: World, text: str, error: str) -> None:
    """api §2.3 (9), D62: ``ip:port`` or ``[ipv6]:port``; a port that is no number, or out of range: VE."""
    with refused(error, 'format should be "ip:port"' if error == "LLM_PARAM_INVALID" else ""):
        world.start(1).init(MINIMAL | {"llm.listenIpInfo": text, 5: 5})


@pytest.mark.parametrize(("text", "ip"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_9_port_zero_is_any_free_port(world: World, text: str, ip: str) -> None:
    """api §2.3 (9): port 0 = any free port, to be read back from the instance."""
    addresses = [world.node(number, listen=text).listen_address for number in (1, 2)]
    assert {address[0] for address in addresses} == {ip}
    assert len({address[1] for address in addresses} - {0}) == 2


def test_9_ipv6_can_be_linked_to(world: World) -> None:
    """api §2.3 (9): ``[ipv6]:port`` listens there."""
    server, client = world.node(1, listen="[::1]:0"), world.node(2)
    link(client, server)
    assert (client.linked(), server.linked()) == ((1,), (2,))


def test_9_without_the_option_nothing_listens(world: World) -> None:
    """api §2.3 (9): without ``llm.listenIpInfo`` there is no listener."""
    assert world.node(1, listen=None).listen_address is None


@pytest.mark.parametrize("extra", [{5: "x"}, {"x": 5}, {"x": None}, {None: "x"}, {"llm.LinkRetryCount": 5}])
def test_10_everything_is_a_string(world: World, extra: dict[Any, Any]) -> None:
    """api §2.3 (10): a non-string key or value anywhere: TE."""
    assert init_outcome(world, MINIMAL | {"llm.SyncKvCacheWaitTime": "x"} | extra) == "TypeError"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llm.TransferBackend", "other"),
        ("llm.TransferBackend", ""),
        ("llm.EnableRemoteCacheAccessible", "2"),
        ("llm.EnableRemoteCacheAccessible", ""),
        ("llm.EnableRemoteCacheAccessible", "true"),
        ("ge.exec.deviceId", "0;1"),
        ("ge.exec.deviceId", "x"),
        ("ge.exec.deviceId", ""),
        ("llm.SyncKvCacheWaitTime", "x"),
        ("llm.SyncKvCacheWaitTime", ""),
        ("llm.SyncKvCacheWaitTime", "-1"),
        ("llm.SyncKvCacheWaitTime", "1.5"),
        ("llm.SyncKvCacheWaitTime", "0"),
        ("llm.SyncKvCacheWaitTime", str(2**31)),
        ("llmdd.PeerTimeout", "1999"),
        ("llmdd.PeerTimeout", "x"),
        ("llmdd.PeerTimeout", str(2**31)),
        ("llm.LinkRetryCount", "0"),
        ("llm.LinkRetryCount", "101"),
        ("llm.LinkRetryCount", "x"),
        ("llm.LinkTotalTime", "x"),
        ("llm.LinkTotalTime", "-1"),
        ("llm.RdmaTrafficClass", "x"),
        ("llm.RdmaServiceLevel", ""),
    ],
)
def test_11_values(world: World, key: str, value: str) -> None:
    """api §2.3 (11): values that cannot be: LX, before the pools are looked at."""
    options = MINIMAL | {"llm.listenIpInfo": "127.0.0.1:0", "llm.MemPoolConfig": "nonsense"}
    assert init_outcome(world, options | {key: value}) == "LLM_PARAM_INVALID"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ge.exec.deviceId", "7"),
        ("llm.SyncKvCacheWaitTime", "1"),
        ("llmdd.PeerTimeout", "2000"),
        ("llmdd.PeerTimeout", str(2**31 - 1)),
        ("llm.LinkRetryCount", "100"),
        ("llm.LinkTotalTime", "0"),
        ("llm.LinkTotalTime", str(2**32 - 1)),
        ("llm.RdmaTrafficClass", "132"),
        ("llm.RdmaServiceLevel", "4"),
        ("llm.EnableSwitchRole", "1"),
        ("llm.deployResPath", "/nowhere"),
        ("llm.BufPoolCfg", "nonsense"),
        ("llm.GlobalResourceConfig", "nonsense"),
        ("llm.ClusterInfo", "nonsense"),
        ("ge.unknown", "x"),
    ],
)
def test_11_values_that_can_be(world: World, key: str, value: str) -> None:
    """api §2.3 (11): what the step does not refuse is accepted."""
    world.start(1).init(MINIMAL | {key: value})


@pytest.mark.parametrize(
    "pool", ["", "x", "[]", "{}", '{"memory_size": 0}', '{"memory_size": 65536, "page_shift": 31}', "null"]
)
@pytest.mark.parametrize("key", ["llm.MemPoolConfig", "llm.HostMemPoolConfig"])
def test_12_malformed_pools(world: World, key: str, pool: str) -> None:
    """api §2.3 (12): a malformed pool: LX."""
    assert init_outcome(world, MINIMAL | {key: pool}) == "LLM_PARAM_INVALID"


def test_12_memory_that_cannot_be_obtained(library: Any) -> None:
    """api §2.3 (12): memory cannot be obtained: LX(OUT_OF_MEMORY)."""
    node = library.start(1)
    with refused("LLM_OUT_OF_MEMORY"):
        node.init(MINIMAL | {"llm.MemPoolConfig": json.dumps({"memory_size": 1 << 61, "page_shift": 30})})
    node.init(options_of())
    assert node.is_entirely_free()


def test_13_cannot_bind(world: World) -> None:
    """api §2.3 (13): cannot bind: LX(FAILED); a failed init leaves the process as before."""
    address = world.node(1).listen_address
    node = world.start(2)
    with refused("LLM_FAILED"):
        node.init(options_of(listen=f"{address[0]}:{address[1]}"))
    with refused("RuntimeError"):
        node.allocate_cache(DESC)
    node.init(options_of())
    assert node.is_entirely_free()


def test_engine_errors_carry_the_tag(library: Any) -> None:
    """api §2.3: engine errors carry the tag ``[LLMDataDist.init]``."""
    address = library.node(1).listen_address
    for options in (
        MINIMAL | {"llm.LinkRetryCount": "0"},
        MINIMAL | {"llm.MemPoolConfig": "x"},
        MINIMAL | {"llm.listenIpInfo": f"{address[0]}:{address[1]}"},
    ):
        node = library.start(2)
        with pytest.raises(llmdd.LLMException, match=r"\[LLMDataDist.init\] failed, error code is LLMStatusCode.LLM_"):
            node.datadist.init(options)
