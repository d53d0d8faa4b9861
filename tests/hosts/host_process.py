"""The nodes of one host, in a process that does what lines of JSON on its standard input say, and answers in kind.

The bytes of a batch slot, or of a block, follow from a number: that of its key, or its block's place counted from the
number of its model. So whoever has received something can say whether it is right.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
from cluster_process import cluster_info, outcome
from network import move_to

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

UNTOUCHED = 0xEE
PATIENCE_S = 60.0


def content(number: int, tensor: int, size: int) -> np.ndarray:
    """The bytes of a tensor of the slot or block with that number: nowhere the same at two places for long."""
    places = np.arange(size, dtype=np.uint32) + np.uint32((number * 7919 + tensor * 104729) % 2**32)
    return (places * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)


class Computed(LayerSynchronizer):
    """Every layer has been computed already."""

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


class Node:
    """One instance, and the caches of it that were asked for."""

    def __init__(self, cluster_id: int, settings: dict[str, Any]) -> None:
        self.cluster_id = cluster_id
        self.datadist = LLMDataDist(LLMRole.MIX, cluster_id)
        self.datadist.init(_options(**settings))
        self.manager = self.datadist.cache_manager
        self.caches: dict[int, Cache] = {}
        self.arrays: dict[int, list[np.ndarray]] = {}
        self.numbers: set[int] = set()

    # -- links ------------------------------------------------------------------------------------------------------

    def address(self) -> tuple[str, int] | None:
        return self.datadist.listen_address

    def link(self, cluster_id: int, host: str, port: int, timeout_ms: int = 10_000) -> str:
        return self.datadist.link_clusters([cluster_info(cluster_id, (host, port))], timeout_ms)[0].name

    def link_all(self, targets: list[tuple[int, str, int]]) -> list[str]:
        """At most 16, at the same time."""
        infos = [cluster_info(cluster_id, (host, port)) for cluster_id, host, port in targets]
        return [code.name for code in self.datadist.link_clusters(infos, 30_000)[1]]

    def unlink(self, cluster_id: int, host: str, port: int, force: bool = False) -> str:
        return self.datadist.unlink_clusters([cluster_info(cluster_id, (host, port))], 10_000, force)[0].name

    def join(self, name: str, members: list[int], table: str) -> int:
        """Become a member of a communicator; ``members`` are in the order of their ranks."""
        return self.datadist.link(name, {cluster_id: rank for rank, cluster_id in enumerate(members)}, table)

    def membership(self, communicator: int) -> str:
        """What a communicator has become, when that is decided."""
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.datadist.query_register_mem_status(communicator).name) == "PREPARING":
            assert time.monotonic() < deadline, "still preparing"
            time.sleep(0.01)
        return status

    def leave(self, communicator: int) -> None:
        self.datadist.unlink(communicator)

    # -- caches -----------------------------------------------------------------------------------------------------

    def bind(
        self,
        number: int,
        tensors: int,
        slot_bytes: int,
        batch: int = 1,
        *,
        kept: bool = False,
        registered: bool = False,
    ) -> int:
        """A cache whose slots have consecutive numbers and are bound to request keys of these numbers; its id.

        It is kept by these keys alone, unless it is to be ``kept`` by its id too.
        """
        self.numbers.update(range(number, number + batch))
        keys = [CacheKey(self.cluster_id, number + slot) for slot in range(batch)]
        cache, arrays = self._made(CacheDesc(tensors, (batch, slot_bytes), DataType.DT_UINT8), keys, registered)
        for tensor, array in enumerate(arrays):
            for slot in range(batch):
                array[slot] = content(number + slot, tensor, slot_bytes)
        if kept or registered:
            return self._keep(cache, arrays)
        cache_id = cache.cache_id
        del arrays  # which would keep the memory as a transfer does
        self.manager.deallocate_cache(cache)
        return cache_id

    def allocate(self, tensors: int, slot_bytes: int, batch: int = 1, registered: bool = False) -> int:
        """A cache with nothing in it, to receive something; its id."""
        cache, arrays = self._made(CacheDesc(tensors, (batch, slot_bytes), DataType.DT_UINT8), [], registered)
        for array in arrays:
            array[:] = UNTOUCHED
        return self._keep(cache, arrays)

    def allocate_all_there_is(self, cache_bytes: int) -> list[int]:
        """Caches of one tensor of so many bytes, as many as the pool has room for."""
        ids = []
        while True:
            try:
                ids.append(self.allocate(1, cache_bytes))
            except LLMException:
                return ids

    def blocks(
        self, tensors: int, count: int, block_bytes: int, model: int | None = None, number: int | None = None
    ) -> int:
        """A blocks cache, bound to the key of a model, whose blocks have consecutive numbers, or nothing in them."""
        key = None if model is None else BlocksCacheKey(self.cluster_id, model)
        cache = self.manager.allocate_blocks_cache(CacheDesc(tensors, (count, block_bytes), DataType.DT_UINT8), key)
        for tensor, array in enumerate(cache.tensors):
            array[:] = UNTOUCHED
            if number is not None:
                for block in range(count):
                    array[block] = content(number + block, tensor, block_bytes)
        return self._keep(cache)

    def fill(self, cache_id: int, value: int) -> None:
        for array in self._tensors(cache_id):
            array[:] = value

    def holds(self, cache_id: int, place: int, number: int, size: int | None = None) -> bool:
        """Whether a slot or block is the one with that number, to ``size`` bytes, and untouched after that."""
        for tensor, array in enumerate(self._tensors(cache_id)):
            row = array[place].reshape(-1)
            size = row.size if size is None else size
            if not (row[:size] == content(number, tensor, size)).all() or not (row[size:] == UNTOUCHED).all():
                return False
        return True

    def holds_blocks(self, cache_id: int, numbers: dict[str, int]) -> bool:
        """Whether each block named has the number that it shall have, and every other block is untouched."""
        wanted = {int(block): number for block, number in numbers.items()}
        return all(
            self.holds(cache_id, block, wanted[block]) if block in wanted else self.holds(cache_id, block, 0, 0)
            for block in range(self.caches[cache_id].cache_desc.shape[0])
        )

    def is_filled(self, cache_id: int, value: int) -> bool:
        return all((array == value).all() for array in self._tensors(cache_id))

    def addresses(self, cache_id: int) -> list[int]:
        return self.caches[cache_id].tensor_addrs

    def drop(self, cache_id: int) -> None:
        """Deallocate or unregister a cache."""
        cache = self.caches.pop(cache_id)
        if self.arrays.pop(cache_id, None) is not None:
            self.manager.unregister_cache(cache_id)
        elif cache.is_blocks_cache:
            self.manager.deallocate_blocks_cache(cache)
        else:
            self.manager.deallocate_cache(cache)

    def drop_all(self) -> None:
        """Let go of every cache and every key."""
        for cache_id in list(self.caches):
            self.drop(cache_id)
        for number in list(self.numbers):
            self.remove_key(number)

    def remove_key(self, number: int) -> None:
        self.numbers.discard(number)
        self.manager.remove_cache_key(CacheKey(self.cluster_id, number))

    def is_bound(self, number: int) -> bool:
        return self.manager.lookup(CacheKey(self.cluster_id, number)) is not None

    # -- transfers --------------------------------------------------------------------------------------------------

    def pull(self, cluster_id: int, number: int, cache_id: int, slot: int = 0, size: int = -1) -> str:
        """By request key."""
        return self._code(self.manager.pull_cache, CacheKey(cluster_id, number), self.caches[cache_id], slot, size)

    def pull_by_id(self, cluster_id: int, their_id: int, their_slot: int, cache_id: int, slot: int = 0) -> str:
        key = CacheKeyByIdAndIndex(cluster_id, their_id, their_slot)
        return self._code(self.manager.pull_cache, key, self.caches[cache_id], slot)

    def pull_layer(self, cluster_id: int, number: int, cache_id: int, layer: int) -> str:
        """The two tensors of a layer."""
        only = range(layer, layer + 1)
        key = CacheKey(cluster_id, number)
        return self._code(
            self.manager.pull_cache, key, self.caches[cache_id], src_layer_range=only, dst_layer_range=only
        )

    def fetch(self, cluster_id: int, number: int, tensors: int, slot_bytes: int) -> str:
        """Pull into a cache of its own, look at it, and give it back: ``right``, ``wrong``, or the code of a failure.

        What a failed pull has not written is not looked at.
        """
        cache_id = self.allocate(tensors, slot_bytes)
        code = self.pull(cluster_id, number, cache_id)
        right = code == "LLM_SUCCESS" and self.holds(cache_id, 0, number)
        self.drop(cache_id)
        if code != "LLM_SUCCESS":
            return code
        return "right" if right else "wrong"

    def fetch_persistently(
        self, cluster_id: int, number: int, tensors: int, slot_bytes: int, host: str, port: int
    ) -> tuple[str, list[str]]:
        """As programs do it: retry, or unlink by force and link again; what came at last, and the codes before that."""
        seen: list[str] = []
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = self.fetch(cluster_id, number, tensors, slot_bytes)
            if not answer.startswith("LLM_"):
                return answer, seen
            seen.append(answer)
            if answer != "LLM_TIMEOUT":
                self.unlink(cluster_id, host, port, force=True)
                seen.append(self.link(cluster_id, host, port))
        raise TimeoutError(f"request {number} could not be pulled within {PATIENCE_S} s: {seen[-10:]}")

    def fetch_for_ever(self, cluster_id: int, numbers: list[int], tensors: int, slot_bytes: int) -> None:
        """Until this process is killed."""
        cache_id = self.allocate(tensors, slot_bytes)
        while True:
            for number in numbers:
                self.pull(cluster_id, number, cache_id)

    def pull_to_the_end(self, cluster_id: int, their_id: int, number: int, cache_id: int) -> tuple[str, bool]:
        """Pull by id again and again, until one does not succeed: its code, and whether all before it were right."""
        right = True
        while (code := self.pull_by_id(cluster_id, their_id, 0, cache_id)) == "LLM_SUCCESS":
            right = right and self.holds(cache_id, 0, number)
            self.fill(cache_id, UNTOUCHED)
        return code, right

    def push_for_ever(self, cluster_id: int, their_ids: list[int], tensors: int, slot_bytes: int) -> None:
        """Until this process is killed."""
        cache_id = self.bind(1_000_000, tensors, slot_bytes, kept=True)
        while True:
            for their_id in their_ids:
                self.push(cluster_id, their_id, 0, cache_id)

    def fetch_many(self, cluster_id: int, numbers: list[int], tensors: int, slot_bytes: int) -> tuple[list[int], bool]:
        """What each pull of one call has come to, and whether all that arrived is right."""
        cache_id = self.allocate(tensors, slot_bytes, len(numbers))
        keys = [CacheKey(cluster_id, number) for number in numbers]
        codes = self.manager.pull_many(keys, self.caches[cache_id], list(range(len(numbers))))
        right = all(
            self.holds(cache_id, slot, number)
            for slot, (number, code) in enumerate(zip(numbers, codes, strict=True))
            if code == 0
        )
        self.drop(cache_id)
        return [int(code) for code in codes], right

    def pull_blocks(
        self, cluster_id: int, model: int, src_blocks: Sequence[int], cache_id: int, dst_blocks: Sequence[int]
    ) -> str:
        key = BlocksCacheKey(cluster_id, model)
        return self._code(self.manager.pull_blocks, key, self.caches[cache_id], src_blocks, dst_blocks)

    def pull_slot_into_blocks(self, cluster_id: int, number: int, cache_id: int, dst_blocks: Sequence[int]) -> str:
        key = CacheKey(cluster_id, number)
        return self._code(self.manager.pull_blocks, key, self.caches[cache_id], (), dst_blocks)

    def push(self, cluster_id: int, their_id: int, their_slot: int, cache_id: int, slot: int = 0) -> str:
        key = CacheKeyByIdAndIndex(cluster_id, their_id, their_slot)
        return self._code(self.manager.push_cache, key, self.caches[cache_id], slot)

    def push_blocks(
        self, cluster_id: int, model: int, cache_id: int, src_blocks: Sequence[int], dst_blocks: Sequence[int]
    ) -> str:
        key = BlocksCacheKey(cluster_id, model)
        return self._code(self.manager.push_blocks, key, self.caches[cache_id], src_blocks, dst_blocks)

    def send(self, cache_id: int, cluster_id: int, their_id: int, their_addresses: list[int]) -> list[str]:
        """All layers, asynchronously, in the way of the mode that we are in; what became of it."""
        cache = self.caches[cache_id]
        layers = range(cache.cache_desc.num_tensors // 2)
        config = (
            TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(cluster_id, their_id), layers, layers)
            if self.manager.remote_accessible
            else TransferConfig(cluster_id, their_addresses, layers)
        )
        task = self.manager.transfer_cache_async(cache, Computed(), [config])
        task.synchronize()
        return [code.name for code in task.get_results()]

    # -- what is left -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, int]:
        """What is held here; every invariant has been checked."""
        self.manager.check()
        usage = self.manager.pool_usage()
        return {
            "caches": self.manager.live_caches,
            "keys": self.manager.live_keys,
            "bytes": usage.total_bytes - usage.free_bytes,
        }

    def finalize(self) -> None:
        self.datadist.finalize()

    # ---------------------------------------------------------------------------------------------------------------

    def _made(self, desc: CacheDesc, keys: list[CacheKey], registered: bool) -> tuple[Cache, list[np.ndarray]]:
        if not registered:
            cache = self.manager.allocate_cache(desc, keys)
            return cache, cache.tensors
        arrays = [np.empty(desc.shape, np.uint8) for _ in range(desc.num_tensors)]
        addresses = [int(array.ctypes.data) for array in arrays]
        cache = self.manager.register_cache(desc, addresses, keys, remote_accessible=True)
        self.arrays[cache.cache_id] = arrays
        return cache, arrays

    def _keep(self, cache: Cache, arrays: list[np.ndarray] | None = None) -> int:
        self.caches[cache.cache_id] = cache
        return cache.cache_id

    def _tensors(self, cache_id: int) -> list[np.ndarray]:
        return self.arrays[cache_id] if cache_id in self.arrays else self.caches[cache_id].tensors

    @staticmethod
    def _code(call: Any, *arguments: Any, **named: Any) -> str:
        return outcome(call, *arguments, **named).name


class HostProcess:
    """All the nodes of this process, by their cluster ids."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.logged: list[str] = []
        logging.getLogger("llmdd").addHandler(_Collecting(self.logged))

    def open(self, cluster_id: int, settings: dict[str, Any]) -> tuple[str, int] | str | None:
        """Where the new node listens, or the code and message of why it cannot be."""
        try:
            self.nodes[cluster_id] = Node(cluster_id, settings)
        except LLMException as error:
            return f"{error.status_code.name}: {error}"
        return self.nodes[cluster_id].address()

    def close(self, cluster_id: int) -> None:
        self.nodes.pop(cluster_id).finalize()

    def tell(self, cluster_id: int, method: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        return getattr(self.nodes[cluster_id], method)(*arguments, **named)

    def log(self) -> list[str]:
        """All that was logged since this was asked last."""
        lines = self.logged[:]
        self.logged.clear()
        return lines

    def resources(self) -> dict[str, int]:
        """What a process can run out of, but for the event loops' own threads, of which each loop has a few at most."""
        pooled = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")) - pooled,
        }

    def end(self) -> None:
        for cluster_id in list(self.nodes):
            self.close(cluster_id)


class _Collecting(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def make_missing(packages: list[str]) -> None:
    """Let packages not be found, as if they had not been installed."""

    class FindsOthers(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            if fullname.partition(".")[0] in packages:
                return None
            return super().find_spec(fullname, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = FindsOthers


def _options(
    *,
    listen: str | None = None,
    pool_bytes: int = 64 << 20,
    page_shift: int = 12,
    timeout_ms: int = 20_000,
    remote: bool = False,
    backend: str | None = None,
) -> dict[str, str]:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = remote
    config.sync_kv_timeout = timeout_ms
    config.mem_pool_cfg = json.dumps({"memory_size": pool_bytes, "page_shift": page_shift})
    if listen is not None:
        config.listen_ip_info = listen
    if backend is not None:
        config.transfer_backend = backend
    return config.generate_options()


def main() -> None:
    faulthandler.enable()
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    move_to(settings["namespace"])
    make_missing(settings["missing"])
    host = HostProcess()
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        print(json.dumps(getattr(host, call)(*arguments)), file=answers, flush=True)
    host.end()


if __name__ == "__main__":
    main()
