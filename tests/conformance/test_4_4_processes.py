"""api §4.4: process rules."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc

from conformance.world import World, by_id, link, options_of, refused, request

C = CacheDesc(2, (1, 64), "DT_UINT8")


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    prelude = """
        import os
        from llmdd import *
        def instance(cluster_id=1):
            config = LLMConfig()
            config.enable_cache_manager = True
            config.mem_pool_cfg = '{"memory_size": 1048576}'
            config.listen_ip_info = "127.0.0.1:0"
            datadist = LLMDataDist(LLMRole.MIX, cluster_id)
            datadist.init(config.generate_options())
            return datadist
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


def test_instances_are_apart(world: World) -> None:
    """api §4.4: any number of initialised instances, each with its own pools, caches, links and numbering."""
    one, two, three = world.node(1), world.node(2), world.node(3)
    link(two, one)
    caches = [node.allocate_cache(C, [request(1)]) for node in (one, two, three)]
    assert [cache.cache_id for cache in caches] == [1, 1, 1]
    assert [node.linked() for node in (one, two, three)] == [(2,), (1,), ()]
    one.remove_cache_key(request(1))
    assert [node.live_keys() for node in (one, two, three)] == [0, 1, 1]


def test_two_instances_of_one_process_transfer_to_each_other(world: World) -> None:
    """api §4.4: instances of one process link and transfer like those of two."""
    one, two = world.pair()
    theirs, ours = one.fill(one.allocate_cache(C), 1), two.allocate_cache(C)
    two.pull_cache(by_id(theirs), ours)
    assert two.contents(ours) == one.contents(theirs)


def test_init_again(world: World) -> None:
    """api §4.4: after ``finalize`` any instance, also the same one, may ``init`` again."""
    node = world.node(1)
    for number in range(3):
        node.allocate_cache(C, [request(1)])
        node.finalize()
        node.init(options_of(device_bytes=(number + 1) << 20))
        assert node.is_entirely_free()
        assert node.usage()[0] == (number + 1) << 20
    link(world.node(2), node)


def test_finalize_is_a_no_op(world: World) -> None:
    """api §4.4: ``finalize`` before init or twice: no-op."""
    node = world.start(1)
    assert node.finalize() is None
    with refused("RuntimeError"):
        node.allocate_cache(C)
    node.init(options_of())
    assert node.finalize() is None
    assert node.finalize() is None
    with refused("LLM_ENGINE_FINALIZED"):
        node.allocate_cache(C)


def test_finalize_drops_the_listener(world: World) -> None:
    """api §4.4: it drops links, caches, pools, listeners: the address is free again."""
    node, other = world.pair()
    address = node.listen_address
    node.finalize()
    third = world.start(3)
    third.init(options_of(listen=f"{address[0]}:{address[1]}"))
    assert third.listen_address == address
    world.until(lambda: other.linked() == (), "the other end has lost its link")
    link(other, third)


def test_an_atexit_hook_finalizes() -> None:
    """api §4.4: an atexit hook finalizes the live instance."""
    done = run(
        """
        import atexit
        datadist = instance()
        datadist.cache_manager.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8), [CacheKey(1, 1)])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_child_has_no_usable_instance() -> None:
    """api §4.4: forked children do not inherit a usable instance; the parent's goes on."""
    done = run(
        """
        datadist = instance()
        manager = datadist.cache_manager
        cache = manager.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8), [CacheKey(1, 1)])
        child = os.fork()
        if child == 0:
            try:
                manager.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8))
            except LLMException as error:
                os._exit(0 if error.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        manager.check()
        assert manager.live_caches == manager.live_keys == 1
        datadist.finalize()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_end_before_the_hook() -> None:
    """api §4.4: worker threads of ``transfer_cache_async`` are joined before the atexit hook runs."""
    done = run(
        """
        import threading
        one, two = instance(1), instance(2)
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = 2
        cluster.append_local_ip_info("127.0.0.1", 0)
        cluster.append_remote_ip_info(*two.listen_address)
        assert one.link_clusters([cluster])[0] is LLMStatusCode.LLM_SUCCESS
        desc = CacheDesc(2, (1, 8), DataType.DT_INT8)
        source, destination = one.cache_manager.allocate_cache(desc), two.cache_manager.allocate_cache(desc)
        main_has_ended = threading.main_thread().join
        class Wait(LayerSynchronizer):
            def synchronize_layer(self, layer_index, timeout_in_millis):
                main_has_ended()
                return True
        config = TransferConfig(2, destination.tensor_addrs)
        task = one.cache_manager.transfer_cache_async(source, Wait(), [config])
        import atexit
        atexit.register(lambda: print(task.get_results(0)[0].name))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "LLM_SUCCESS\n", "")


@pytest.mark.parametrize("level", ["0", "nonsense"])
def test_the_log_level_of_the_environment(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """api §4.4: ``ASCEND_GLOBAL_LOG_LEVEL`` may be set; llmdd may use its own logger, and works with any value."""
    monkeypatch.setenv("ASCEND_GLOBAL_LOG_LEVEL", level)
    done = run("instance().finalize()")
    assert done.returncode == 0


def test_finalize_waits_for_calls_in_progress(library: Any) -> None:
    """api §4.4: ``finalize`` waits for calls in progress."""
    import threading

    size = 64 << 20
    prompt, decoder = library.pair(device_bytes=size, host_bytes=None)
    desc = CacheDesc(1, (1, size), "DT_UINT8")
    theirs, ours = prompt.allocate_cache(desc), decoder.allocate_cache(desc)
    begun = threading.Event()
    answers: list[Any] = []

    def pull() -> None:
        begun.set()
        try:
            answers.append(decoder.pull_cache(by_id(theirs), ours))
        except Exception as refusal:
            answers.append(getattr(refusal, "status", repr(refusal)))

    puller = threading.Thread(target=pull)
    puller.start()
    begun.wait()
    prompt.finalize()
    decoder.finalize()
    puller.join()
    assert answers[0] in (None, "LLM_NOT_YET_LINK", "LLM_ENGINE_FINALIZED")
