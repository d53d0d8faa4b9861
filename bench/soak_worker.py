"""A prefill or decode process of the soak.

It has two instances of llmdd, a plain one and one in remote mode, and does with them what it is told, several things
at a time. Every call of llmdd is reported with its code, its begin and its end; what arrives is looked at byte by byte.
It is made to be killed, or stopped, at any moment.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

from . import hosts, workload
from .lifeline import end_with_parent
from .soak_messages import LENGTH, Answer, Call, Question, Settings, framed
from .stamped_rows import UNTOUCHED, Bytes, Stamp, Stamper, flaw, touched
from .switched_hosts import DEVICE
from .workload import Request, Way

SUCCESS = LLMStatusCode.LLM_SUCCESS.name
FINALIZED = LLMStatusCode.LLM_ENGINE_FINALIZED.name
TIMED_OUT = LLMStatusCode.LLM_TIMEOUT.name
NO_ID = 2**64 - 1

#: Things done at a time; more are waiting than a link has turns.
THREADS = 12

#: How long memory is looked after in which nothing may arrive any more, once its pull has failed.
SUSPICION_S = 0.5

#: Blocks that a slot is cut into, if its bytes allow it.
BLOCKS_OF_A_SLOT = 4

LAYER = 2


class Refused(Exception):
    """A call of llmdd that did not succeed: its code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Recorder:
    """Makes calls of llmdd, and keeps how each of them ended, and when."""

    def __init__(self, here: int, deadline_ms: int) -> None:
        self.calls: list[Call] = []
        self._here, self._deadline_ms = here, deadline_ms

    def make(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        there: int = 0,
        deadline_ms: int | None = None,
        **named: Any,
    ) -> Any:
        """What the call returns.

        Raises
        ------
        Refused
            With its code. Anything else that it raises is none of what it may.
        """
        began = time.monotonic_ns()
        code = SUCCESS
        try:
            return function(*arguments, **named)
        except LLMException as refusal:
            code = refusal.status_code.name
            raise Refused(code) from None
        finally:
            ended = time.monotonic_ns()
            limit = self._deadline_ms if deadline_ms is None else deadline_ms
            self.calls.append(Call(name, began, ended, code, limit, self._here, there))

    def make_sure(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """The same of a call that gives something up, again as long as it runs out of time."""
        while True:
            try:
                self.make(name, function, *arguments)
                return
            except Refused as refused:
                if refused.code != TIMED_OUT:
                    raise

    def correct(self, code: str) -> None:
        """Say how the last call ended, where it told so by what it returned."""
        self.calls[-1] = msgspec.structs.replace(self.calls[-1], code=code)


class Offer(NamedTuple):
    """What the prefill side has of a request."""

    cache: Cache
    arrays: list[Bytes]
    """Of memory of its own; empty where that is the pool's."""


class Room(NamedTuple):
    """What the decode side has for a request that is pushed."""

    cache: Cache


class Instance:
    """One instance of llmdd, from its beginning to its end, and all that it has in hand."""

    def __init__(self, settings: Settings, remote: bool) -> None:
        self.cluster = settings.clusters[remote]
        self.timeout_ms = settings.timeout_ms
        self.incarnation = secrets.randbits(63)
        self.stamper = Stamper(self.incarnation)
        self.offers: dict[int, Offer] = {}
        self.rooms: dict[int, Room] = {}
        self.suspected: deque[tuple[float, Cache, str]] = deque()
        config = LLMConfig()
        config.enable_cache_manager = True
        config.enable_remote_cache_accessible = remote
        config.listen_ip_info = f"{settings.address}:{settings.ports[remote]}"
        config.link_key, config.link_allowed_keys = settings.link_key, settings.link_allowed_keys
        config.sync_kv_timeout = settings.timeout_ms
        config.mem_pool_cfg = json.dumps({"memory_size": settings.pool_bytes, "page_shift": 12})
        self.datadist = LLMDataDist(LLMRole.MIX, self.cluster)
        self.datadist.init(config.generate_options())
        self.manager = self.datadist.cache_manager

    def recorder(self) -> Recorder:
        return Recorder(self.cluster, self.timeout_ms)

    def key(self, request: Request, row: int, cluster: int) -> CacheKey:
        """What that row of a request is found by."""
        if row in request.unused:
            return CacheKey(cluster, NO_ID)
        if request.way is Way.PULL_PREFIX:
            return CacheKey(cluster, NO_ID, 0, request.request_id(row))
        return CacheKey(cluster, request.request_id(row))


class Computed(LayerSynchronizer):
    """Writes a layer when it is waited for."""

    def __init__(self, instance: Instance, request: Request, tensors: list[Bytes], row: int) -> None:
        self._instance, self._request, self._tensors, self._row = instance, request, tensors, row

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        for tensor in range(LAYER * layer_index, LAYER * (layer_index + 1)):
            row = self._tensors[tensor][self._row]
            self._instance.stamper.write(row, self._request.number, tensor, self._row)
        return True


class Worker:
    """What the process can be told to do: each method is one thing, and returns what msgspec can write.

    A request is told by its number: what it is follows from that, and from the seed of the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._instances = {remote: Instance(settings, remote) for remote in (False, True)}
        self._reporting = threading.local()

    # -- how it is told --------------------------------------------------------------------------------------------

    def answer(self, question: Question) -> Answer:
        self._reporting.recorders = []
        value: Any = None
        failure = None
        try:
            value = getattr(self, question.method)(**question.arguments)
        except Refused as refused:
            value = {"code": refused.code}
        except BaseException:
            failure = traceback.format_exc()
        calls = [call for recorder in self._reporting.recorders for call in recorder.calls]
        return Answer(question.number, value, failure, calls)

    def recorder(self, instance: Instance) -> Recorder:
        made = instance.recorder()
        self._reporting.recorders.append(made)
        return made

    def _drawn(self, number: int) -> Request:
        return workload.draw(self._settings.seed, number, self._settings.prefill, self._settings.decode)

    # -- prefill ---------------------------------------------------------------------------------------------------

    def offer(self, request: int) -> dict[str, Any]:
        """Make the cache of a request, write its rows, and bind them to its keys."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        cache, arrays = self._made_offer(instance, wanted)
        if wanted.way not in (Way.SEND_LAYERS, Way.SEND_LAYERS_BY_KEY):
            self._write(instance, wanted, arrays or self._tensors(cache))
        if arrays or wanted.kept:
            instance.offers[wanted.number] = Offer(cache, arrays)
        else:
            self.recorder(instance).make_sure("deallocate_cache", instance.manager.deallocate_cache, cache)
        return {"code": SUCCESS, "incarnation": instance.incarnation, "cache_id": cache.cache_id}

    def _write(self, instance: Instance, request: Request, tensors: list[Bytes]) -> None:
        for tensor, rows in enumerate(tensors):
            for row in request.used:
                instance.stamper.write(rows[row], request.number, tensor, row)

    def _made_offer(self, instance: Instance, request: Request) -> tuple[Cache, list[Bytes]]:
        manager, recorder = instance.manager, self.recorder(instance)
        desc = CacheDesc(request.tensors, (request.rows, request.row_bytes), DataType.DT_UINT8)
        keys: Any = (
            BlocksCacheKey(instance.cluster, request.number)
            if request.way.of_blocks
            else [instance.key(request, row, instance.cluster) for row in range(request.rows)]
        )
        if request.registered:
            arrays = [np.empty((request.rows, request.row_bytes), np.uint8) for _ in range(request.tensors)]
            register = manager.register_blocks_cache if request.way.of_blocks else manager.register_cache
            addresses = [array.ctypes.data for array in arrays]
            return recorder.make(register.__name__, register, desc, addresses, keys), arrays
        if request.way.of_blocks:
            return recorder.make("allocate_blocks_cache", manager.allocate_blocks_cache, desc, keys), []
        lease_ms = self._settings.lease_ms if request.leased else 0
        allocate = partial(manager.allocate_cache, lease=lease_ms)
        return recorder.make("allocate_cache", allocate, desc, keys), []

    def withdraw(self, request: int) -> dict[str, Any]:
        """Let go of whatever the prefill side has of a request; its keys too."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        manager, recorder = instance.manager, self.recorder(instance)
        if not wanted.way.of_blocks:
            keys = [instance.key(wanted, row, instance.cluster) for row in wanted.used]
            if wanted.number % 2:
                recorder.make_sure("remove_cache_keys", manager.remove_cache_keys, keys)
            else:
                for key in keys:
                    recorder.make_sure("remove_cache_key", manager.remove_cache_key, key)
        offer = instance.offers.get(wanted.number)
        if offer is None:
            return {"code": SUCCESS}
        if offer.arrays:
            recorder.make_sure("unregister_cache", manager.unregister_cache, offer.cache.cache_id)
        elif wanted.way.of_blocks:
            recorder.make_sure("deallocate_blocks_cache", manager.deallocate_blocks_cache, offer.cache)
        else:
            recorder.make_sure("deallocate_cache", manager.deallocate_cache, offer.cache)
        instance.offers.pop(wanted.number, None)
        return {"code": SUCCESS}

    def give(self, request: int, cluster: int, cache_id: int, addresses: list[int], rows: list[int]) -> dict[str, Any]:
        """Push rows into the room that the decode side has made; which were, and the code of the first failure."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        offer = instance.offers.get(wanted.number)
        if offer is None:  # the instance was opened anew
            return {"code": FINALIZED, "done": []}
        recorder = self.recorder(instance)
        done: list[int] = []
        try:
            if wanted.way is Way.PUSH_BLOCKS:
                key = BlocksCacheKey(cluster, wanted.number)
                targets = [wanted.targets[row] for row in rows]
                push = instance.manager.push_blocks
                recorder.make("push_blocks", push, key, offer.cache, rows, targets, there=cluster)
                done += rows
            for row in rows if wanted.way is not Way.PUSH_BLOCKS else ():
                if wanted.way is Way.PUSH:
                    place = CacheKeyByIdAndIndex(cluster, cache_id, wanted.targets[row])
                    recorder.make("push_cache", instance.manager.push_cache, place, offer.cache, row, there=cluster)
                else:
                    self._send(instance, recorder, wanted, offer, row, cluster, cache_id, addresses)
                done.append(row)
        except Refused as refused:
            return {"code": refused.code, "done": done}
        return {"code": SUCCESS, "done": done}

    def _send(
        self,
        instance: Instance,
        recorder: Recorder,
        request: Request,
        offer: Offer,
        row: int,
        cluster: int,
        cache_id: int,
        addresses: list[int],
    ) -> None:
        """Layer by layer, each when it has been computed."""
        layers = range(request.tensors // LAYER)
        target = request.targets[row]
        config: TransferConfig | TransferWithCacheKeyConfig
        if request.way.remote:
            place = CacheKeyByIdAndIndex(cluster, cache_id, target)
            config = TransferWithCacheKeyConfig(place, layers, layers, row)
        else:
            begins = [address + target * request.row_bytes for address in addresses]
            config = TransferConfig(cluster, begins, layers, row)
        computed = Computed(instance, request, offer.arrays or self._tensors(offer.cache), row)
        send = instance.manager.transfer_cache_async
        task = recorder.make("transfer_cache_async", send, offer.cache, computed, [config])
        limit = instance.timeout_ms * len(layers)
        code = recorder.make("CacheTask.synchronize", task.synchronize, limit, there=cluster, deadline_ms=limit)
        recorder.correct(code.name)
        if code is LLMStatusCode.LLM_TIMEOUT:
            task.synchronize()  # what it sends from is written anew in the next attempt
        if code is not LLMStatusCode.LLM_SUCCESS:
            raise Refused(code.name)

    # -- decode ----------------------------------------------------------------------------------------------------

    def expect(self, request: int, cluster: int, cache_id: int) -> dict[str, Any]:
        """Keep the leases of a request's keys from now on."""
        instance, keys = self._leased_keys(request, cluster, cache_id)
        keep = instance.manager.keep_leases
        self.recorder(instance).make("keep_leases", keep, keys, self._settings.lease_ms)
        return {"code": SUCCESS}

    def forget(self, request: int, cluster: int, cache_id: int) -> dict[str, Any]:
        """Keep them no more."""
        instance, keys = self._leased_keys(request, cluster, cache_id)
        self.recorder(instance).make("let_leases_lapse", instance.manager.let_leases_lapse, keys)
        return {"code": SUCCESS}

    def _leased_keys(
        self, request: int, cluster: int, cache_id: int
    ) -> tuple[Instance, list[CacheKey | CacheKeyByIdAndIndex]]:
        drawn = self._drawn(request)
        instance = self._instances[drawn.way.remote]
        if drawn.way is Way.PULL_BY_ID:
            return instance, [CacheKeyByIdAndIndex(cluster, cache_id, row) for row in drawn.used]
        return instance, [instance.key(drawn, row, cluster) for row in drawn.used]

    def fetch(self, request: int, cluster: int, incarnation: int, cache_id: int, rows: list[int]) -> dict[str, Any]:
        """Pull rows of a request and look at every byte; which came, the first failure's code, and what is wrong."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        flaws = self._released(instance, before=time.monotonic() - SUSPICION_S)
        done: list[int] = []
        code = SUCCESS
        try:
            cache = self._made_target(instance, wanted)
            try:
                self._pull(instance, wanted, cache, cluster, cache_id, rows, done)
            except Refused as refused:
                code = refused.code
            flaws += self._flaws(wanted, cache, incarnation, done, complete=code == SUCCESS)
            if code == SUCCESS:
                self._deallocate(instance, cache)
            else:
                self._suspect(instance, cache, f"{wanted.way.value} of request {request} that ended with {code}")
        except Refused as refused:
            return {"code": refused.code, "done": [], "flaws": flaws, "verified": 0}
        return {"code": code, "done": done, "flaws": flaws, "verified": len(done) * wanted.tensors * wanted.row_bytes}

    def _made_target(self, instance: Instance, request: Request) -> Cache:
        """Room for all rows and one more, in which nothing is written yet."""
        manager, recorder = instance.manager, self.recorder(instance)
        rows, row_bytes = request.rows + 1, request.row_bytes
        if request.way is Way.PULL_INTO_BLOCKS:
            row_bytes = -(-row_bytes // BLOCKS_OF_A_SLOT)
            rows *= BLOCKS_OF_A_SLOT
        desc = CacheDesc(request.tensors, (rows, row_bytes), DataType.DT_UINT8)
        cache: Cache
        if request.way is Way.PUSH_BLOCKS:
            key = BlocksCacheKey(instance.cluster, request.number)
            cache = recorder.make("allocate_blocks_cache", manager.allocate_blocks_cache, desc, key)
        elif request.way in (Way.PULL_BLOCKS, Way.PULL_INTO_BLOCKS):
            cache = recorder.make("allocate_blocks_cache", manager.allocate_blocks_cache, desc)
        else:
            cache = recorder.make("allocate_cache", manager.allocate_cache, desc)
        for tensor in self._tensors(cache):
            tensor[:] = UNTOUCHED
        return cache

    def _pull(
        self,
        instance: Instance,
        request: Request,
        cache: Cache,
        cluster: int,
        cache_id: int,
        rows: Sequence[int],
        done: list[int],
    ) -> None:
        manager, recorder, way = instance.manager, self.recorder(instance), request.way
        targets = [request.targets[row] for row in rows]
        if way is Way.PULL_BLOCKS:
            key = BlocksCacheKey(cluster, request.number)
            recorder.make("pull_blocks", manager.pull_blocks, key, cache, list(rows), targets, there=cluster)
            done += rows
            return
        if way is Way.PULL_MANY:
            keys = [instance.key(request, row, cluster) for row in rows]
            codes = recorder.make("pull_many", manager.pull_many, keys, cache, targets, there=cluster)
            done += [row for row, code in zip(rows, codes, strict=True) if code == 0]
            failed = [LLMStatusCode(int(code)).name for code in codes if code != 0]
            if failed:
                recorder.correct(failed[0])
                raise Refused(failed[0])
            return
        for row, target in zip(rows, targets, strict=True):
            place: CacheKey | CacheKeyByIdAndIndex = instance.key(request, row, cluster)
            if way is Way.PULL_BY_ID:
                place = CacheKeyByIdAndIndex(cluster, cache_id, row)
            if way is Way.PULL_INTO_BLOCKS:
                blocks = list(range(target * BLOCKS_OF_A_SLOT, (target + 1) * BLOCKS_OF_A_SLOT))
                recorder.make("pull_blocks", manager.pull_blocks, place, cache, (), blocks, there=cluster)
            elif way is Way.PULL_LAYERS:
                for layer in range(request.tensors // LAYER):
                    only = range(layer, layer + 1)
                    pull = partial(manager.pull_cache, src_layer_range=only, dst_layer_range=only)
                    recorder.make("pull_cache", pull, place, cache, target, there=cluster)
            else:
                recorder.make("pull_cache", manager.pull_cache, place, cache, target, there=cluster)
            done.append(row)

    def make_room(self, request: int) -> dict[str, Any]:
        """Room for a request that is pushed; where it is."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        flaws = self._released(instance, before=time.monotonic() - SUSPICION_S)
        try:
            cache = self._made_target(instance, wanted)
        except Refused as refused:
            return {"code": refused.code, "flaws": flaws, "verified": 0}
        addresses = cache.tensor_addrs
        if not addresses:
            return {"code": FINALIZED, "flaws": flaws, "verified": 0}
        instance.rooms[wanted.number] = Room(cache)
        return {
            "code": SUCCESS,
            "incarnation": instance.incarnation,
            "cache_id": cache.cache_id,
            "addresses": addresses,
            "flaws": flaws,
            "verified": 0,
        }

    def clear_room(self, request: int, incarnation: int, complete: bool) -> dict[str, Any]:
        """Look at what was pushed, if all of it was, and give the room back."""
        wanted = self._drawn(request)
        instance = self._instances[wanted.way.remote]
        room = instance.rooms.pop(wanted.number, None)
        if room is None:  # the instance was opened anew
            return {"code": FINALIZED, "flaws": [], "verified": 0}
        flaws: list[str] = []
        verified = 0
        try:
            if complete:
                flaws = self._flaws(wanted, room.cache, incarnation, wanted.used, complete=True)
                verified = len(wanted.used) * wanted.tensors * wanted.row_bytes
            self._deallocate(instance, room.cache)
        except Refused as refused:
            return {"code": refused.code, "flaws": flaws, "verified": verified}
        return {"code": SUCCESS, "flaws": flaws, "verified": verified}

    def _flaws(
        self, request: Request, cache: Cache, incarnation: int, done: Iterable[int], complete: bool
    ) -> list[str]:
        """What is wrong with the rows that came; if all did, also whether anything was written beside them."""
        flaws = []
        for tensor, rows in enumerate(self._tensors(cache)):
            slots = rows.reshape(request.rows + 1, -1)
            for row in done:
                found = flaw(
                    slots[request.targets[row], : request.row_bytes],
                    Stamp(incarnation, request.number, tensor, row),
                )
                if found is not None:
                    flaws.append(f"{request.way.value}: {found}")
            if complete:
                others = set(range(request.rows + 1)) - {request.targets[row] for row in request.used}
                flaws += [
                    f"{request.way.value} of request {request.number} wrote into tensor {tensor}, row {other}"
                    for other in others
                    if touched(slots[other])
                ]
        return flaws

    @staticmethod
    def _tensors(cache: Cache) -> list[Bytes]:
        """Of a cache of ours; refused if its instance was finalized."""
        try:
            return cache.tensors
        except LLMException as refusal:
            if refusal.status_code is not LLMStatusCode.LLM_ENGINE_FINALIZED:
                raise
            raise Refused(FINALIZED) from None

    def _deallocate(self, instance: Instance, cache: Cache) -> None:
        if cache.is_blocks_cache:
            deallocate = instance.manager.deallocate_blocks_cache
        else:
            deallocate = instance.manager.deallocate_cache
        self.recorder(instance).make_sure(deallocate.__name__, deallocate, cache)

    def _suspect(self, instance: Instance, cache: Cache, words: str) -> None:
        """Keep the target of a pull that has failed for a while: nothing may arrive in it any more."""
        for tensor in self._tensors(cache):
            tensor[:] = UNTOUCHED
        instance.suspected.append((time.monotonic(), cache, words))

    def _released(self, instance: Instance, before: float = float("inf")) -> list[str]:
        """Give back the targets that have been suspected since then; what has arrived in them nevertheless."""
        flaws = []
        while instance.suspected:
            try:
                since, cache, words = instance.suspected.popleft()
            except IndexError:
                break
            if since >= before:
                instance.suspected.appendleft((since, cache, words))
                break
            with suppress(Refused):
                if any(touched(tensor) for tensor in self._tensors(cache)):
                    flaws.append(f"{words}: bytes arrived afterwards")
                self._deallocate(instance, cache)
        return flaws

    # -- links -----------------------------------------------------------------------------------------------------

    def link(self, remote: bool, cluster: int, address: str, port: int) -> dict[str, Any]:
        instance = self._instances[remote]
        return self._each(instance, instance.datadist.link_clusters, cluster, address, port)

    def unlink(self, remote: bool, cluster: int, address: str, port: int, force: bool) -> dict[str, Any]:
        instance = self._instances[remote]
        return self._each(instance, instance.datadist.unlink_clusters, cluster, address, port, force=force)

    def _each(
        self, instance: Instance, call: Callable[..., Any], cluster: int, address: str, port: int, **named: Any
    ) -> dict[str, Any]:
        info = LLMClusterInfo()
        info.remote_cluster_id = cluster
        info.append_local_ip_info(self._settings.address, 0)
        info.append_remote_ip_info(address, port)
        limit = self._settings.link_timeout_ms
        recorder = self.recorder(instance)
        code, _ = recorder.make(call.__name__, call, [info], limit, there=cluster, deadline_ms=limit, **named)
        recorder.correct(code.name)
        return {"code": code.name}

    # -- the process itself ----------------------------------------------------------------------------------------

    def reopen(self) -> dict[str, Any]:
        """End both instances in good order, and begin them anew at the same addresses."""
        for remote in (False, True):
            self._instances[remote].datadist.finalize()
            self._instances[remote] = Instance(self._settings, remote)
        return {"code": SUCCESS}

    def release(self) -> list[str]:
        """Give back all that is still suspected; what has arrived there nevertheless."""
        return [text for instance in self._instances.values() for text in self._released(instance)]

    def state(self) -> list[dict[str, int]]:
        """What each instance holds; every invariant has been checked."""
        return [self._state(instance) for instance in self._instances.values()]

    @staticmethod
    def _state(instance: Instance) -> dict[str, int]:
        manager = instance.manager
        manager.check()
        with manager.paused():
            usage = manager.pool_usage()
            return {
                "caches": manager.live_caches,
                "keys": manager.live_keys,
                "bytes": usage.total_bytes - usage.free_bytes,
                "offers": len(instance.offers),
                "rooms": len(instance.rooms),
                "kept leases": len(manager.kept_leases),
            }

    def incarnation(self, remote: bool) -> int:
        """Of an instance as it is now."""
        return self._instances[remote].incarnation

    def expired(self) -> dict[str, int]:
        """For each instance's incarnation, how many keys went because their lease was over."""
        return {str(instance.incarnation): instance.manager.key_counts.expired for instance in self._instances.values()}

    @staticmethod
    def descriptors() -> list[str]:
        """What each open descriptor is of; of a connection over TCP its ends and its state."""
        found = []
        for entry in os.scandir("/proc/self/fd"):
            with suppress(OSError):
                found.append(os.readlink(entry.path))
        connections = {}
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/self/net", table).read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                connections[f"socket:[{words[9]}]"] = f"{table} {words[1]} to {words[2]}, state {words[3]}"
        return sorted(connections.get(one, one) for one in found)

    def resources(self) -> dict[str, int]:
        """What a process can run out of."""
        descriptors = self.descriptors()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return {
            "descriptors": len(descriptors),
            "memory files": sum("memfd:" in link for link in descriptors),
            "mappings of llmdd": sum("llmdd" in line and ".so" not in line for line in maps),
            "resident KiB": int(resident.split()[1]),
        }

    def finalize(self) -> dict[str, Any]:
        for instance in self._instances.values():
            instance.datadist.finalize()
        return {"code": SUCCESS}


def main(text: str, worker_class: type[Worker] = Worker) -> None:
    """Answer what comes by the socket until the other end closes it."""
    settings = msgspec.json.decode(text, type=Settings)
    end_with_parent(settings.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if settings.network is not None:
        hosts.move_to(settings.network, DEVICE)
        os.close(settings.network)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    worker = worker_class(settings)
    channel = socket.socket(fileno=settings.socket)
    writing = threading.Lock()

    def answer(question: Question) -> None:
        told = framed(worker.answer(question))
        with writing:
            channel.sendall(told)

    with ThreadPoolExecutor(THREADS) as threads, channel.makefile("rb") as incoming:
        answer(Question(0, "state", {}))
        while head := incoming.read(LENGTH.size):
            content = incoming.read(*LENGTH.unpack(head))
            threads.submit(answer, msgspec.msgpack.decode(content, type=Question))


if __name__ == "__main__":
    main(sys.argv[1])
