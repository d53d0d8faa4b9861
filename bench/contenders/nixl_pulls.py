"""NIXL, as its documentation and vLLM's connector use it, with the UCX backend on its defaults.

Memory is ordinary memory of each process, registered once; metadata is exchanged in the set-up. The lists of
descriptors are prepared once on the puller's side, and each pull makes a transfer of the entries that it needs: faster
than to describe every transfer anew, which is the other way that NIXL has. The notification that goes with a READ is
the release.

- Where a request's bytes are, the puller is told before the round, untimed, as requests carry it in vLLM: nothing is
  looked up at the owner, which favours NIXL.
- The puller polls its transfers and has no progress thread, which is the faster of the two; the owner has one, which is
  the default, and is asked for notifications after the round only: that favours NIXL too.
- Between two processes of one host UCX then reads by ``process_vm_readv`` (``cma``) where the kernel permits it, and
  sends notifications by TCP over loopback (``UCX_PROTO_INFO=y`` shows what it takes on a machine). With
  ``ucx_error_handling_mode=none`` it would send them through shared memory, at the price that the death of the other
  end is not noticed; that is not the default, and not compared.
"""

from __future__ import annotations

import os
import time
from importlib import import_module, metadata
from typing import Any

import numpy as np

from ..contender import Incorrect, Unavailable
from ..other_end import OtherEnd
from .pulls import BlockPulls, Bytes, Owner, Pulls

PACKAGES = ("nixl_cu12", "nixl_cu13")

#: How long after a round a notification may take that was sent in it.
PATIENCE_S = 3.0


def find() -> tuple[str, Any]:
    """The package that is installed, and its API."""
    for package in PACKAGES:
        try:
            return package, import_module(f"{package}._api")
        except ModuleNotFoundError as missing:
            if missing.name != package:
                raise Unavailable(f"NIXL cannot be imported: {missing}") from missing
        except ImportError as broken:
            raise Unavailable(f"NIXL cannot be imported: {broken}") from broken
    raise Unavailable("NIXL is not installed: pip install --no-deps nixl-cu12")


PACKAGE, NIXL = find()


def versions() -> dict[str, str]:
    distribution = PACKAGE.replace("_", "-")
    return {distribution: metadata.version(distribution)}


def touched(rows: int, size: int) -> Bytes:
    """Ordinary memory, every page of it touched: NIXL takes any, and reads from private memory at least as fast."""
    memory = np.empty((rows, size), np.uint8)
    memory[:] = 0
    return memory


class Agent:
    """A NIXL agent whose one region of memory is registered."""

    def __init__(self, name: str, memory: Bytes, progress_thread: bool) -> None:
        self.api = NIXL.nixl_agent(name, NIXL.nixl_agent_config(enable_prog_thread=progress_thread))
        self.api.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")


class NixlOwner(Owner):
    """Registers its memory, and takes the notifications of transfers that are done."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__(touched(rows, size))
        self._agent = Agent(f"owner {os.getpid()}", self.memory, progress_thread=True)

    def introduce(self) -> tuple[bytes, int]:
        """Its metadata, and where its memory begins."""
        return self._agent.api.get_agent_metadata(), self.memory.ctypes.data

    def left(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.keys and time.monotonic() < deadline:
            for messages in self._agent.api.get_new_notifs().values():
                for message in messages:
                    self.release(int(message))
        return len(self.keys)


class Connection:
    """The puller's agent, and the prepared descriptors of `count` pieces of `size` bytes on both sides."""

    def __init__(self, owner: OtherEnd, memory: Bytes, size: int) -> None:
        self.agent = Agent(f"puller {os.getpid()}", memory, progress_thread=False)
        metadata_of_owner, begin = owner.call("introduce")
        name = self.agent.api.add_remote_agent(metadata_of_owner)
        self.agent.api.make_connection(name)
        self.local = self.agent.api.prep_xfer_dlist("NIXL_INIT_AGENT", pieces(memory.ctypes.data, memory, size), "DRAM")
        self.remote = self.agent.api.prep_xfer_dlist(name, pieces(begin, memory, size), "DRAM")

    def read(self, local: Any, remote: Any, message: bytes) -> None:
        """Transfer the pieces numbered `remote` to those numbered `local`, and tell the owner if there is a message."""
        api = self.agent.api
        handle = api.make_prepped_xfer("READ", self.local, local, self.remote, remote, message)
        state = api.transfer(handle)
        while state == "PROC":
            state = api.check_xfer_state(handle)
        handle.release()
        if state != "DONE":
            raise Incorrect(f"a transfer ended as {state}")


def pieces(begin: int, memory: Bytes, size: int) -> Any:
    """Descriptors (address, length, device) of as many pieces as `memory` has, from an address on."""
    addresses = np.arange(begin, begin + memory.nbytes, size, dtype=np.uint64)
    return np.stack([addresses, np.full_like(addresses, size), np.zeros_like(addresses)], axis=1)


class NixlPulls(Pulls):
    """One transfer, and one notification, for each request."""

    def __init__(self, size: int, count: int, computing: bool = False) -> None:
        super().__init__(size, count, computing)
        self.owner = self.start(NixlOwner, count, size)  # a fork: before the agent has threads
        self.pulled = memory = touched(count, size)
        self.connection = Connection(self.owner, memory, size)

    def run(self) -> None:
        read, places = self.connection.read, self.places
        for row, request_id in enumerate(self.requests):
            read([row], [places[request_id]], b"%d" % request_id)


class NixlBlockPulls(BlockPulls):
    """One transfer of all blocks of all tensors, by indices into the prepared lists; NIXL merges what is adjacent."""

    def __init__(self, blocks: int, tensors: int, size: int) -> None:
        super().__init__(blocks, tensors, size)
        self.owner = OtherEnd(NixlOwner, tensors, blocks * size)
        memory = touched(tensors, blocks * size)
        self.pulled = memory.reshape(tensors, blocks, size)
        self.connection = Connection(self.owner, memory, size)

    def run(self) -> None:
        first_of_tensors = np.arange(0, self.tensors * self.blocks, self.blocks, dtype=np.int32)[:, np.newaxis]
        local = (first_of_tensors + np.array(self.targets, np.int32)).ravel()
        remote = (first_of_tensors + np.array(self.sources, np.int32)).ravel()
        self.connection.read(local, remote, b"")
