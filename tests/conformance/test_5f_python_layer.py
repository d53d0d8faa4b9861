"""api §5F: departures from the original, D66 to D78: the Python layer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex, MemInfo

import llmdd
from conformance.scene import Scene
from conformance.world import World, info_of, options_of, refused
from llmdd import LLMException, LLMStatusCode

LX = "LLM_PARAM_INVALID"
C = CacheDesc(2, (2, 16), "DT_UINT8")


def run(program: str, **environment: str) -> None:
    unset = {name: value for name, value in os.environ.items() if name != "AUTO_USE_UC_MEMORY"}
    subprocess.run([sys.executable, "-c", program], check=True, env=unset | environment, timeout=60, cwd="/")


def test_d66_star_import() -> None:
    """api D66: ``from llm_datadist import *`` works and exports v2_list only."""
    run(
        "import llmdd.dropin; llmdd.dropin.install()\n"
        "before = set(globals()) | {'before'}\n"
        "from llm_datadist import *\n"
        "import llm_datadist\n"
        "assert set(globals()) - before - {'llm_datadist'} == set(llm_datadist.v2_list)\n"
    )


def test_d67_the_code_of_a_bad_shape() -> None:
    """api D67: ``CacheDesc.size`` on a bad shape: PARAM_INVALID."""
    with pytest.raises(LLMException) as refusal:
        llmdd.CacheDesc(1, (1, 0), llmdd.DataType.DT_INT8).size  # noqa: B018
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_d68_none_arguments(world: World) -> None:
    """api D68: AE where documented (register_*, swap_blocks, create_cpu_cache); ``src_blocks=None`` is empty."""
    prompt, decoder = world.pair()
    blocks = decoder.allocate_blocks_cache(C)
    for call in (
        lambda: decoder.register_cache(None, [1]),
        lambda: decoder.register_cache(C, None),
        lambda: decoder.register_blocks_cache(None, [1]),
        lambda: decoder.register_blocks_cache(C, None),
        lambda: decoder.swap_blocks(None, blocks, {}),
        lambda: decoder.swap_blocks(blocks, None, {}),
        lambda: decoder.swap_blocks(blocks, blocks, None),
        lambda: decoder.create_cpu_cache(None, [1]),
        lambda: decoder.create_cpu_cache(C, None),
    ):
        with refused("AttributeError"):
            call()
    theirs = prompt.fill(prompt.allocate_cache(C), 1)
    decoder.pull_blocks(CacheKeyByIdAndIndex(1, theirs.cache_id), blocks, None, [1])
    assert [tensor[16:] for tensor in decoder.contents(blocks)] == [tensor[:16] for tensor in prompt.contents(theirs)]


def test_d69_options_do_not_accumulate() -> None:
    """api D69: a fresh dict: switching a flag off again shows, callers cannot corrupt it."""
    config = llmdd.LLMConfig()
    config.enable_switch_role = True
    first = config.generate_options()
    config.enable_switch_role = False
    assert "llm.EnableSwitchRole" in first
    assert "llm.EnableSwitchRole" not in config.generate_options()
    config.generate_options().clear()
    assert config.generate_options()


def test_d70_a_stale_manager(world: World) -> None:
    """api D70: a manager kept across finalize/init: LX(ENGINE_FINALIZED); an old Cache does not free a new one."""
    node = world.node(1)
    old = node.allocate_cache(C)
    node.finalize()
    node.init(options_of())
    new = node.allocate_cache(C)
    assert old.cache_id == new.cache_id == 1
    with refused("LLM_ENGINE_FINALIZED"):
        node.call_former_manager("deallocate_cache", old)
    node.deallocate_cache(old)
    assert node.live_caches() == 1
    assert len(node.tensor_addrs(new)) == 2


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: llmdd.BlocksCacheKey(-1), ValueError),
        (lambda: llmdd.BlocksCacheKey(None), TypeError),
        (lambda: llmdd.BlocksCacheKey(1, None), TypeError),
        (lambda: llmdd.LLMDataDist(None, 1), TypeError),
        (lambda: llmdd.CacheDesc(1, (1, 1), None), TypeError),
        (lambda: llmdd.CacheDesc(1, (1, 1), llmdd.DataType.DT_INT8, None), TypeError),
    ],
)
def test_d71_constructors_are_checked(build: Any, error: type[Exception]) -> None:
    """api D71: wrong types and values raise in every constructor."""
    with pytest.raises(error):
        build()


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "localhost", "1.2.3.4 ", "::g"])
def test_d72_bad_ip_text(text: str) -> None:
    """api D72: bad IP text: VE; None: TE; IPv6 is accepted."""
    info = llmdd.LLMClusterInfo()
    for append in (info.append_local_ip_info, info.append_remote_ip_info):
        with pytest.raises(ValueError, match="Can not parse ip str:"):
            append(text, 1)
        with pytest.raises(TypeError):
            append(None, 1)
        append("::1", 1)
    assert len(info.local_ip_info_list) == len(info.remote_ip_info_list) == 1


def test_d73_cache_manager_mode_off(world: World) -> None:
    """api D73: LX(FEATURE_NOT_ENABLED)."""
    with refused("LLM_FEATURE_NOT_ENABLED", "llm.EnableCacheManager"):
        world.start(1).init({})


@pytest.mark.parametrize("text", ["{}", "{0}", "{x}", "{", "%s"])
def test_d74_braces_in_messages(world: World, text: str) -> None:
    """api D74: messages are formatted once: user text with braces gives the LLMException that is meant."""
    for options in (
        {"llm.TransferBackend": text, "llm.listenIpInfo": "127.0.0.1:0"},
        {"llm.listenIpInfo": text},
        {"llm.LinkRetryCount": text},
        {"llm.MemPoolConfig": text},
        {"ge.exec.deviceId": text},
    ):
        with refused(LX):
            world.start(len(world.nodes) + 1).init({"llm.EnableCacheManager": "1"} | options)


def test_d75_remap_registered_memory(world: World) -> None:
    """api D75, §2.5: remap_registered_memory: wrong type TE; no link alive NOT_YET_LINK; else no effect."""
    prompt, decoder = world.pair()
    good = MemInfo("MEM_TYPE_DEVICE", 4096, 10)
    for wrong in (None, 5, "x", [5], (good,), {}):
        with refused("TypeError"):
            prompt.remap_registered_memory(wrong)
    for one in (good, [good], [good, good]):
        assert prompt.remap_registered_memory(one) is None
    decoder.unlink_clusters([info_of(prompt)])
    for one in (good, [good]):
        with refused("LLM_NOT_YET_LINK"):
            prompt.remap_registered_memory(one)
    with refused(LX):
        prompt.remap_registered_memory([])


def test_d76_none_for_a_role_or_force(world: World) -> None:
    """api D76: switch_role(None), force=None: TE for both."""
    node = world.node(1)
    with refused("TypeError"):
        node.switch_role(None)
    with refused("TypeError"):
        node.unlink_clusters([], 1000, None)


def test_d77_no_hardware_limits(two_sided: Scene) -> None:
    """api D77: HOST→HOST works, HOST C→B too, without staging pools; registered HOST memory is a destination."""
    scene = two_sided
    here = scene.here
    here.pull_cache(CacheKeyByIdAndIndex(1, scene.theirs.host_c.cache_id), scene.ours.host_c)
    here.pull_blocks(CacheKeyByIdAndIndex(1, scene.theirs.host_c.cache_id), scene.ours.host_b, (), [0, 1, 2])
    here.pull_blocks(BlocksCacheKey(1, 10), scene.ours.host_b, [0, 1], [3, 2])
    slot = [tensor[:96] for tensor in scene.there.contents(scene.theirs.host_c)]
    assert [tensor[:96] for tensor in here.contents(scene.ours.host_c)] == slot


@pytest.mark.parametrize("value", [None, "1"])
def test_d78_no_import_side_effect(value: str | None) -> None:
    """api D78: importing does not set ``AUTO_USE_UC_MEMORY``."""
    expected = "None" if value is None else repr(value)
    program = f"import os, llmdd; assert os.environ.get('AUTO_USE_UC_MEMORY') == {expected}"
    run(program, **({} if value is None else {"AUTO_USE_UC_MEMORY": value}))
