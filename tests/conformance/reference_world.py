"""The reference model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmdd.spec import reference
from llmdd.spec.layerwise import LayerTask
from llmdd.spec.statecharts import Refused, Statecharts
from llmdd.spec.values import Address, CacheKeyByIdAndIndex

from conformance.world import Node, Refusal, Task, World

#: The machines are the same in every test, and remember what they were asked.
CHARTS = Statecharts.of()


class ReferenceTask(Task):
    """A task of the model, which has run to its end."""

    def __init__(self, task: LayerTask) -> None:
        self.task = task

    def synchronize(self, *arguments: Any) -> str:
        return _answer(lambda: self.task.synchronize(*arguments))

    def get_results(self, *arguments: Any) -> list[str]:
        return _answer(lambda: self.task.get_results(*arguments))


class ReferenceNode(Node):
    """A node of the model."""

    def __init__(self, node: reference.Node) -> None:
        self.cluster_id = node.cluster_id
        self.model = node

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        assert hasattr(self.model, method), f"the model has no {method}"
        return _answer(lambda: getattr(self.model, method)(*arguments, **keywords))

    def transfer_cache_async(self, src_cache: Any, layer_synchronizer: Any, *arguments: Any, **keywords: Any) -> Task:
        if callable(layer_synchronizer):
            is_ready, layer_synchronizer = layer_synchronizer, lambda layer: is_ready(layer, None)
        return ReferenceTask(self.call("transfer_cache_async", src_cache, layer_synchronizer, *arguments, **keywords))

    def call_former_manager(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        return _answer(lambda: CHARTS.engine.step("FINALIZED", "call"))

    @property
    def listen_address(self) -> Address | None:
        return self.model.listen_address

    def linked(self) -> tuple[int, ...]:
        return tuple(sorted(link.cluster_id for link in self.model.links.values() if link.state == "LINKED"))

    def lookup(self, key: Any) -> CacheKeyByIdAndIndex | None:
        return _answer(lambda: self.model.lookup(key))

    def usage(self, placement: str = "DEVICE") -> tuple[int, int, int]:
        return tuple(_answer(lambda: self.model.pool_usage(placement)))

    def live_caches(self) -> int:
        return _answer(lambda: self.model.live_caches)

    def live_keys(self) -> int:
        return len(self.model.key_index)

    def check(self) -> None:
        self.model.check()

    def tensor_addrs(self, cache: Any) -> list[int]:
        return self.model.tensor_addrs(cache)

    def contents(self, cache: Any) -> list[bytes]:
        return _answer(lambda: self._contents(cache))

    def _contents(self, cache: Any) -> list[bytes]:
        view = self.model.open_view(cache)
        contents = self.model.contents(view)
        self.model.close_view(view)
        return contents

    def write_tensor(self, cache: Any, tensor: int, content: bytes) -> None:
        self.model.write(cache, tensor, content)

    def own_memory(self, size: int) -> int:
        return self.model.own_memory(size)

    def free_memory(self, address: int) -> None:
        self.model.free_memory(address)

    def read(self, address: int, size: int) -> bytes:
        return self.model.read(address, size)

    def write(self, address: int, content: bytes) -> None:
        self.model.write_memory(address, content)

    def create_cpu_cache(self, desc: Any, addrs: Any) -> Any:
        return _answer(lambda: self.model.create_cpu_cache(desc, addrs))


class ReferenceWorld(World):
    """A cluster of the model."""

    name = "reference"

    def __init__(self) -> None:
        super().__init__()
        self.cluster = reference.Cluster(CHARTS)

    def _start(self, cluster_id: int, role: str) -> Node:
        return ReferenceNode(self.cluster.start(f"node {len(self.nodes)}", cluster_id))

    def until(self, condition: Callable[[], object], what: str) -> None:
        assert condition(), what

    def close(self) -> None:
        self.cluster.check()


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Refused as refused:
        raise Refusal(frozenset((refused.exception,)), refused.status, refused.message) from refused
