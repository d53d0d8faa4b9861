"""What the examples share: processes that meet, an instance in one line, and memory seen as bytes.

An example names what each of its processes does::

    run({"prompt": prompt, "decoder": decoder})

Without arguments all of them are started on this host. With arguments the program is one of them, so that each can be
started by hand, on a machine of its own: ``--role prompt --address 10.0.0.1:26000`` there, and ``--role decoder`` with
the same address elsewhere. The address is where the first role waits for the others. It is not the one of
``listen_ip_info``, at which clusters link; the processes tell each other those, as everything else that a scheduler
would pass on between them, by :meth:`Meeting.exchange`. On machines of their own llmdd wants keys for the links
(``LLMDD_LINK_KEY``, ``LLMDD_LINK_ALLOWED_KEYS``), or to be told that anybody may link (``LLMDD_OPEN_LINKS=1``).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from llm_datadist import (
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from numpy.typing import NDArray

POOL_BYTES = 4 << 20
PATIENCE_S = 120.0
Role = Callable[["Meeting"], None]


class Meeting:
    """A process among the others of an example; the first of them passes on what all of them say."""

    def __init__(self, name: str, names: Iterable[str], address: str) -> None:
        self.name = name
        first, *others = names
        if name == first:
            with socket.create_server(split(address)) as server:
                server.settimeout(PATIENCE_S)
                connections = [server.accept()[0] for _ in others]
        else:
            connections = [connect_patiently(split(address))]
        self.ip: str = connections[0].getsockname()[0]
        self._passes_on = name == first
        for connection in connections:
            connection.settimeout(PATIENCE_S)
        self._files = [connection.makefile("rw") for connection in connections]

    def exchange(self, value: Any = None) -> dict[str, Any]:
        """Wait until every process has come here too; what each of them had to say, by its name."""
        try:
            return self._exchange({self.name: value})
        except (EOFError, ConnectionError):
            sys.exit(f"[{self.name}] another process has ended")

    def _exchange(self, everything: dict[str, Any]) -> dict[str, Any]:
        if not self._passes_on:
            self._write(everything)
        for file in self._files:
            line = file.readline()
            if not line:
                raise EOFError
            everything.update(json.loads(line))
        if self._passes_on:
            self._write(everything)
        return everything

    def _write(self, value: dict[str, Any]) -> None:
        for file in self._files:
            file.write(json.dumps(value) + "\n")
            file.flush()

    def say(self, text: str) -> None:
        print(f"[{self.name}] {text}\n", end="", flush=True)

    def free_address(self) -> str:
        """An address of this machine at which nobody listens."""
        return free_address(self.ip)


def run(roles: Mapping[str, Role]) -> None:
    """Be the process that the command line asks for, or start all of them and exit 0 if each has done so."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=list(roles))
    parser.add_argument(
        "--address", default="127.0.0.1:26000", help="ip:port, where the first role waits for the others"
    )
    arguments = parser.parse_args()
    if arguments.role:
        return play(roles[arguments.role], arguments.role, list(roles), arguments.address)
    address = free_address("127.0.0.1")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=play, args=(role, name, list(roles), address)) for name, role in roles.items()]
    for process in processes:
        process.start()
    running = processes
    while running and all(process.exitcode in (0, None) for process in processes):
        wait([process.sentinel for process in running])
        running = [process for process in processes if process.exitcode is None]
    for process in running:  # another one has failed
        process.terminate()
        process.join()
    sys.exit(any(process.exitcode != 0 for process in processes))


def play(role: Role, name: str, names: list[str], address: str) -> None:
    role(Meeting(name, names, address))


def free_address(ip: str) -> str:
    """Below the ports that the kernel gives to whoever calls somewhere: such a one might be taken when it is used."""
    for port in random.sample(range(20_000, 32_000), 100):
        try:
            with socket.create_server((ip, port)):
                return f"{ip}:{port}"
        except OSError:
            continue
    raise OSError(f"100 ports of {ip} are taken")


def split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


def connect_patiently(address: tuple[str, int]) -> socket.socket:
    """Connect to a process that may not have come so far yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = socket.create_connection(address, timeout=PATIENCE_S)
            if connection.getsockname() != connection.getpeername():  # TCP can connect a port to itself
                return connection
            connection.close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def start(role: LLMRole, cluster_id: int, **properties: Any) -> LLMDataDist:
    """An initialised instance with a pool of ``POOL_BYTES``, and what else is to be set in its ``LLMConfig``."""
    config = LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.mem_pool_cfg = json.dumps({"memory_size": POOL_BYTES})
    config.sync_kv_timeout = 10000
    for name, value in properties.items():
        setattr(config, name, value)
    datadist = LLMDataDist(role, cluster_id)
    datadist.init(config.generate_options())
    return datadist


def cluster_at(address: str, cluster_id: int, local_ip: str) -> LLMClusterInfo:
    """A cluster that listens at an address, as ``link_clusters`` and ``unlink_clusters`` want it described."""
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = cluster_id
    cluster.append_local_ip_info(local_ip, 0)
    cluster.append_remote_ip_info(*split(address))
    return cluster


def link(datadist: LLMDataDist, *clusters: LLMClusterInfo) -> None:
    overall, each = datadist.link_clusters(clusters, timeout=10000)
    check(overall == LLMStatusCode.LLM_SUCCESS, f"linked: {each}")


def unlink(datadist: LLMDataDist, *clusters: LLMClusterInfo) -> None:
    overall, each = datadist.unlink_clusters(clusters, timeout=10000)
    check(overall == LLMStatusCode.LLM_SUCCESS, f"unlinked: {each}")


def memory(address: int, size: int) -> NDArray[np.uint8]:
    """The bytes at an address, to be read and written; it keeps nothing alive.

    Where the memory of an accelerator cannot be addressed by the host, this is where its runtime's copy belongs.
    """
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def some_bytes(size: int, *seed: int) -> NDArray[np.uint8]:
    """Bytes that look like nothing else, the same in every process for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def check(condition: object, what: str) -> None:
    """End the process, and so the example, unless something is so."""
    if not condition:
        raise AssertionError(f"it is not so: {what}")


def code_of(call: Callable[..., object], *arguments: Any, **named: Any) -> LLMStatusCode:
    """The status code with which a call ends."""
    try:
        call(*arguments, **named)
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


def check_pool_is_free(datadist: LLMDataDist) -> None:
    """See that nothing is left in the pool: one tensor as large as all of it finds room."""
    manager = datadist.cache_manager
    manager.deallocate_cache(manager.allocate_cache(CacheDesc(1, (1, POOL_BYTES), DataType.DT_INT8)))
