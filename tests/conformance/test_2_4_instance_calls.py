"""api §2.4: the checks of the other ``LLMDataDist`` methods, in their order."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import CacheDesc, ClusterInfo

from conformance.world import World, info_of, link, options_of, refused

DESC = CacheDesc(1, (1, 8), "DT_UINT8")
LOCAL = (("127.0.0.1", 0),)
SOMEWHERE = ClusterInfo(2, LOCAL, (("127.0.0.1", 1),))
NO_LOCAL = ClusterInfo(2, (), (("127.0.0.1", 1),))
NO_ID = ClusterInfo(None, LOCAL, (("127.0.0.1", 1),))
PAIR = {1: 0, 2: 1}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("link_clusters", ([],)),
        ("unlink_clusters", (None, "x")),
        ("link", (None, None, None)),
        ("unlink", (None,)),
        ("query_register_mem_status", (None,)),
        ("switch_role", (None,)),
        ("allocate_cache", (None,)),
    ],
)
def test_not_initialised(world: World, name: str, arguments: tuple[Any, ...]) -> None:
    """api §2.4: not initialised: RE ``llm datadist is not initialized``, before anything else."""
    node = world.start(1)
    fragment = "" if world.name == "reference" else "llm datadist is not initialized"  # the model's says it otherwise
    with refused("RuntimeError", fragment):
        node.call(name, *arguments)


def test_not_initialised_properties(library: Any) -> None:
    """api §2.4: from every property too, except ``cluster_id``."""
    datadist = library.start(1).datadist
    assert datadist.cluster_id == 1
    with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
        datadist.cache_manager  # noqa: B018
    with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
        datadist.kv_cache_manager  # noqa: B018
    with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
        datadist.check_link_status(1)


@pytest.mark.parametrize("name", ["link_clusters", "unlink_clusters"])
@pytest.mark.parametrize(
    ("clusters", "timeout", "error", "fragment"),
    [
        (None, "1", "TypeError", "timeout only support"),
        (None, None, "TypeError", "timeout only support"),
        (None, 2**31, "ValueError", "is not a int32 value."),
        (None, -(2**31) - 1, "ValueError", "is not a int32 value."),
        (None, 0, "LLM_PARAM_INVALID", "timeout should be greater than 0"),
        (None, -1, "LLM_PARAM_INVALID", "timeout should be greater than 0"),
        (None, 1, "TypeError", "clusters only support"),
        (SOMEWHERE, 1, "TypeError", "clusters only support"),
        ({1}, 1, "TypeError", "clusters only support"),
        ([SOMEWHERE, 5], 1, "TypeError", "clusters inner type only support"),
        ([NO_ID], 1, "TypeError", "remote_cluster_id only support"),
    ],
)
def test_link_and_unlink_clusters(
    world: World, name: str, clusters: Any, timeout: Any, error: str, fragment: str
) -> None:
    """api §2.4: timeout int32, > 0; clusters; per cluster the remote id."""
    node = world.node(1)
    with refused(error, fragment):
        node.call(name, clusters, timeout)
    assert node.linked() == ()


def test_link_clusters_needs_a_local_address(world: World) -> None:
    """api §2.4: without ``llm.LocalCommRes``: local_ip_info_list non-empty, before the remote id; per cluster."""
    node = world.node(1)
    with refused("LLM_PARAM_INVALID", "local_ip_info_list is empty"):
        node.link_clusters([ClusterInfo(None, (), ())])
    with refused("LLM_PARAM_INVALID", "local_ip_info_list is empty"):
        node.link_clusters([SOMEWHERE, NO_LOCAL])
    with refused("TypeError"):
        node.link_clusters([NO_ID, NO_LOCAL])


@pytest.mark.parametrize("value", ["", '{"version": "1.3"}'])
def test_link_clusters_with_local_comm_res(world: World, value: str) -> None:
    """api §2.4: with a non-empty ``llm.LocalCommRes`` no local address is needed; with an empty one it is."""
    node = world.node(1, remote=True, LocalCommRes=value)
    server = world.node(2, remote=True)
    info = ClusterInfo(2, (), (server.listen_address,))
    if value:
        assert node.link_clusters([info]) == ("LLM_SUCCESS", ["LLM_SUCCESS"])
    else:
        with refused("LLM_PARAM_INVALID", "local_ip_info_list is empty"):
            node.link_clusters([info])


def test_results_are_returned_afterwards(world: World) -> None:
    """api §2.4: after the argument checks results are returned, not raised."""
    assert world.node(1).link_clusters([SOMEWHERE]) == ("LLM_LINK_FAILED", ["LLM_LINK_FAILED"])


@pytest.mark.parametrize("force", [None, 1, 0, "True"])
def test_unlink_clusters_force(world: World, force: Any) -> None:
    """api §2.4: clusters, then force bool (TE), then the remote ids."""
    node = world.node(1)
    with refused("TypeError", "force only support"):
        node.unlink_clusters([NO_ID], 1, force)
    with refused("TypeError", "clusters"):
        node.unlink_clusters("x", 1, force)


LINK_ROWS: list[tuple[tuple[Any, Any, Any], str, str]] = [
    ((None, None, None), "TypeError", "comm_name only support"),
    ((5, None, None), "TypeError", "comm_name only support"),
    (("", None, None), "LLM_PARAM_INVALID", "comm_name can not be empty"),
    (("x" * 128, None, None), "LLM_PARAM_INVALID", ""),
    (("x", None, None), "AttributeError", ""),
    (("x", [1, 2], None), "TypeError", "cluster_rank_info only support"),
    (("x", {"1": 0, 2: 1}, None), "TypeError", "cluster_rank_info dict key only support"),
    (("x", {1: "0", 2: 1}, None), "TypeError", "cluster_rank_info dict value only support"),
    (("x", {1: 0, 2: None}, None), "TypeError", "cluster_rank_info dict value only support"),
    (("x", {1: 0, 2: 1, 3: 2, 4: 3, -5: 4}, None), "LLM_PARAM_INVALID", "can not be greater than 4"),
    (("x", {-1: 0, 2: 1}, None), "ValueError", "is not a uint64 value."),
    (("x", {2**64: 0, 2: 1}, None), "ValueError", "is not a uint64 value."),
    (("x", {1: -1, 2: 1}, None), "ValueError", "is not a uint32 value."),
    (("x", {1: 0, 2: 2**32}, None), "ValueError", "is not a uint32 value."),
    (("x", {1: 0}, None), "TypeError", "rank_table only support"),
    (("x", {1: 0}, 5), "TypeError", "rank_table only support"),
    (("x", {1: 0}, ""), "LLM_PARAM_INVALID", "cluster num must be bigger than 1"),
    (("x", {}, ""), "LLM_PARAM_INVALID", "cluster num must be bigger than 1"),
    (("x", {2: 1, 3: 0}, ""), "LLM_PARAM_INVALID", "must be ordered"),
    (("x", {2: 0, 3: 0}, ""), "LLM_PARAM_INVALID", "must be ordered"),
    (("x", {2: 0, 3: 1}, ""), "LLM_PARAM_INVALID", ""),
]


@pytest.mark.parametrize(
    ("arguments", "error", "fragment"),
    [pytest.param(*row, id=str(number)) for number, row in enumerate(LINK_ROWS)],
)
def test_link(world: World, arguments: tuple[Any, Any, Any], error: str, fragment: str) -> None:
    """api §2.4: the checks of ``link`` in their order, up to: own cluster id among the keys."""
    node = world.node(1)
    with refused(error, fragment):
        node.link(*arguments)
    with refused("LLM_NOT_YET_LINK"):
        node.query_register_mem_status(1)


@pytest.mark.parametrize("name", ["unlink", "query_register_mem_status"])
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (None, "TypeError"),
        ("1", "TypeError"),
        (1.0, "TypeError"),
        (-1, "ValueError"),
        (2**64, "ValueError"),
        (0, "LLM_NOT_YET_LINK"),
        (1, "LLM_NOT_YET_LINK"),
        (2**64 - 1, "LLM_NOT_YET_LINK"),
    ],
)
def test_unlink_and_query(world: World, name: str, wrong: Any, error: str) -> None:
    """api §2.4: comm_id int, uint64; unknown id LX(NOT_YET_LINK)."""
    with refused(error):
        world.node(1).call(name, wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "fragment"),
    [
        ((None, 5), "TypeError", "role only support"),
        ((1, 5), "TypeError", "role only support"),
        (("DECODER", 5), "TypeError", "switch_options only support"),
        (("DECODER", [("llm.listenIpInfo", "x")]), "TypeError", "switch_options only support"),
        (("DECODER", {"llm.listenIpInfo": "127.0.0.1"}), "LLM_PARAM_INVALID", 'format should be "ip:port"'),
        (("DECODER", {"llm.listenIpInfo": "127.0.0.1:x"}), "ValueError", ""),
        (("DECODER", {"llm.listenIpInfo": "127.0.0.1:65536"}), "ValueError", ""),
    ],
)
def test_switch_role(world: World, arguments: tuple[Any, ...], error: str, fragment: str) -> None:
    """api §2.4: role, switch_options, the address; all before: links alive."""
    prompt, decoder = world.pair()
    before = prompt.listen_address
    with refused(error, fragment):
        prompt.switch_role(*arguments)
    assert prompt.listen_address == before
    assert prompt.linked() == (decoder.cluster_id,)


def test_switch_role_with_links(world: World) -> None:
    """api §2.4: links alive LX(EXIST_LINK), before: cannot listen LX(FAILED)."""
    prompt, decoder = world.pair()
    taken = f"127.0.0.1:{decoder.listen_address[1]}"
    with refused("LLM_EXIST_LINK"):
        prompt.switch_role("DECODER", {"llm.listenIpInfo": taken})
    decoder.unlink_clusters([info_of(prompt)])
    with refused("LLM_FAILED"):
        prompt.switch_role("DECODER", {"llm.listenIpInfo": taken})
    link(decoder, prompt)


def test_finalize_needs_no_init(world: World) -> None:
    """api §2.4: ``finalize`` and ``init`` may be called at any time."""
    node = world.start(1)
    node.finalize()
    node.init(options_of())
    node.finalize()
    node.finalize()
    node.init(options_of())
    assert node.is_entirely_free()
