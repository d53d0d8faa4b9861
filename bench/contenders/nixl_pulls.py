"""NIXL, as its documentation and vLLM's connector use it, with the UCX backend on its defaults.

Memory is ordinary memory of each process, registered once; metadata is exchanged in the set-up. The lists of
descriptors are prepared once on the puller's side, and each pull makes a transfer of the entries that it needs: faster
than to describe every transfer anew, which is the other way that NIXL has. The notification that goes with a READ is
the release.

- Where a request's bytes are, the puller is told before the round, untimed, as requests carry it in vLLM: nothing is
  looked up at the owner, which favours NIXL.
- The puller polls its transfers and has no progress thread, which is the faster of the two. On one host the owner has
  one, which is the default, and is asked for notifications after the round only: that favours NIXL too.
- On another host the owner has none either: it polls for notifications itself for as long as a round lasts, as if it
  had nothing else to do. That is faster, by up to a seventh, and an owner's thread that polls all the time would take a
  core of this machine from whoever's turn it is.
- That owner may also be asked, by a notification, to WRITE what a request is about to the puller, who is told by the
  notification that goes with it: no READ is imitated where the network has none, at the price of one message more. It
  does nothing else until a WRITE is done, which is the fastest for a puller who asks for one after the other.
- Between two processes of one host UCX then reads by ``process_vm_readv`` (``cma``) where the kernel permits it, and
  sends notifications by TCP over loopback (``UCX_PROTO_INFO=y`` shows what it takes on a machine). With
  ``ucx_error_handling_mode=none`` it would send them through shared memory, at the price that the death of the other
  end is not noticed; that is not the default, and not compared.
"""

from __future__ import annotations

import mmap
import os
import time
from importlib import import_module, metadata
from typing import Any

import numpy as np

from ..contender import Incorrect, Unavailable, require
from ..other_end import OtherEnd
from .descriptors import merged
from .pulls import BetweenProcesses, BlockPulls, Bytes, Owner, Pulls

PACKAGES = ("nixl_cu12", "nixl_cu13")

#: How long after a round a notification may take that was sent in it.
PATIENCE_S = 3.0
#: How long an owner may take until it attends to transfers.
ATTENTION_PATIENCE_S = 30.0
#: How long an owner may take to write what it was asked for.
HEARING_PATIENCE_S = 30.0

#: What an owner is told by one byte, and what it makes of it.
LEAVE, ATTEND, ATTENDS = range(3)


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


#: What an agent tells another one in the set-up: its metadata, and where its memory begins.
Introduction = tuple[bytes, int]


class Agent:
    """A NIXL agent whose one region of memory is registered."""

    def __init__(self, name: str, memory: Bytes, progress_thread: bool = False) -> None:
        self.memory = memory
        self.api = NIXL.nixl_agent(name, NIXL.nixl_agent_config(enable_prog_thread=progress_thread))
        self.api.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")

    def introduce(self) -> Introduction:
        return self.api.get_agent_metadata(), self.memory.ctypes.data

    def new_messages(self) -> list[bytes]:
        """The notifications that have come from anybody since it was asked before."""
        return [message for messages in self.api.get_new_notifs().values() for message in messages]


class NixlOwner(Owner):
    """Registers its memory, and takes the notifications of transfers that are done.

    Parameters
    ----------
    rows, size : int
        Of the memory.
    orders : mmap, optional
        Its first byte says for how long to attend to transfers. Without it, a thread of NIXL does so.
    """

    def __init__(self, rows: int, size: int, orders: mmap.mmap | None) -> None:
        super().__init__(touched(rows, size))
        self._orders = orders
        self._agent = Agent(f"owner {os.getpid()}", self.memory, progress_thread=orders is None)

    def introduce(self) -> Introduction:
        return self._agent.introduce()

    def attend(self) -> None:
        """Let transfers proceed until told to leave."""
        assert self._orders is not None
        self._orders[0] = ATTENDS
        while self._orders[0] != LEAVE:
            self._take_notifications()

    def left(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.keys and time.monotonic() < deadline:
            self._take_notifications()
        return len(self.keys)

    def _take_notifications(self) -> None:
        for message in self._agent.new_messages():
            self._take(message)

    def _take(self, message: bytes) -> None:
        """Of the requests that are done."""
        for request_id in message.split():
            self.release(int(request_id))


class WritingNixlOwner(NixlOwner):
    """Writes what it is asked for, and releases the key when that is done."""

    def meet(self, puller: Introduction) -> None:
        """Prepare to write into the memory of a puller, whose pieces are as large as this one's rows."""
        self._connection = Connection(self._agent, self.memory.shape[1], puller)

    def _take(self, message: bytes) -> None:
        """The row to write, the piece of the puller's memory that it goes to, and the request."""
        row, piece, request_id = map(int, message.split())
        self.write_piece(row, piece, request_id)
        self.release(request_id)

    def write_piece(self, row: int, piece: int, request_id: int) -> None:
        self._connection.write([row], [piece], b"%d" % request_id)


class Attention:
    """What an owner that has no progress thread gives to transfers: everything, while a round is played."""

    def __init__(self) -> None:
        self.orders = mmap.mmap(-1, 1)
        self._owner: OtherEnd | None = None

    def begin(self, owner: OtherEnd) -> None:
        self._owner = owner
        self.orders[0] = ATTEND
        owner.tell("attend")
        deadline = time.monotonic() + ATTENTION_PATIENCE_S
        while self.orders[0] != ATTENDS:
            require(time.monotonic() < deadline, "the owner does not attend to transfers")
            time.sleep(0.001)

    def end(self) -> None:
        """Ending it again is nothing."""
        if self._owner is not None:
            owner, self._owner = self._owner, None
            self.orders[0] = LEAVE
            owner.answer()


class Connection:
    """An agent and another one that it knows by its introduction.

    The descriptors of the pieces of `size` bytes are prepared for both; both have as much memory.
    """

    def __init__(self, agent: Agent, size: int, other: Introduction) -> None:
        self.agent = agent
        metadata_of_other, begin = other
        self.name = agent.api.add_remote_agent(metadata_of_other)
        agent.api.make_connection(self.name)
        memory = agent.memory
        self.pieces = pieces(memory.ctypes.data, memory, size)
        self.remote_pieces = pieces(begin, memory, size)
        self.local = self.agent.api.prep_xfer_dlist("NIXL_INIT_AGENT", self.pieces, "DRAM")
        self.remote = self.agent.api.prep_xfer_dlist(self.name, self.remote_pieces, "DRAM")

    def read(self, local: Any, remote: Any, message: bytes) -> None:
        """Transfer the pieces numbered `remote` to those numbered `local`, and tell the other if there is a message."""
        self.finish(self.begin(local, remote, message))

    def write(self, local: Any, remote: Any, message: bytes) -> None:
        """Transfer the pieces numbered `local` to those numbered `remote`, and tell the other."""
        self.finish(self.begin(local, remote, message, "WRITE"))

    def begin(self, local: Any, remote: Any, message: bytes, operation: str = "READ") -> tuple[Any, str]:
        """Have the transfer begun; the handle and state that :meth:`finish` needs."""
        handle = self.agent.api.make_prepped_xfer(operation, self.local, local, self.remote, remote, message)
        return handle, self.agent.api.transfer(handle)

    def read_merged(self, local: Any, remote: Any, message: bytes) -> None:
        """As :meth:`read`, with one descriptor for all pieces that lie one after the other at both ends."""
        api = self.agent.api
        ours, theirs = merged(self.pieces[local], self.remote_pieces[remote])
        lists = api.get_xfer_descs(ours, "DRAM"), api.get_xfer_descs(theirs, "DRAM")
        handle = api.initialize_xfer("READ", *lists, self.name, message)
        self.finish((handle, api.transfer(handle)))

    def tell(self, message: bytes) -> None:
        self.agent.api.send_notif(self.name, message)

    def hear(self, message: bytes) -> None:
        """Wait for this message, which is the next."""
        deadline = time.monotonic() + HEARING_PATIENCE_S
        while not (messages := self.agent.new_messages()):
            require(time.monotonic() < deadline, "nothing is heard of what was asked for")
        if messages != [message]:
            raise Incorrect(f"{messages} was heard instead of {message!r}")

    def finish(self, begun: tuple[Any, str]) -> None:
        """Wait for the end of a transfer."""
        handle, state = begun
        while state == "PROC":
            state = self.agent.api.check_xfer_state(handle)
        handle.release()
        if state != "DONE":
            raise Incorrect(f"a transfer ended as {state}")


def pieces(begin: int, memory: Bytes, size: int) -> Any:
    """Descriptors (address, length, device) of as many pieces as `memory` has, from an address on."""
    addresses = np.arange(begin, begin + memory.nbytes, size, dtype=np.uint64)
    return np.stack([addresses, np.full_like(addresses, size), np.zeros_like(addresses)], axis=1)


class NixlTransfers(BetweenProcesses):
    """An owner on another host attends to its transfers while a round is played."""

    make_owner: type[NixlOwner] = NixlOwner

    def start_owner(self, rows: int, size: int) -> None:
        """Start the owner of so much memory: a fork, so before the agent has threads."""
        self._attention = Attention() if self.apart else None
        self.owner = self.start(self.make_owner, rows, size, self._attention and self._attention.orders)

    def connect(self, memory: Bytes, size: int) -> Connection:
        """Make the agent whose memory this is, and have it know the owner."""
        agent = Agent(f"puller {os.getpid()}", memory)
        return Connection(agent, size, self.owner.call("introduce"))

    def prepare(self, number: int) -> None:
        super().prepare(number)
        if self._attention is not None:
            self._attention.begin(self.owner)

    def inspect(self, number: int) -> None:
        if self._attention is not None:
            self._attention.end()
        super().inspect(number)

    def close(self) -> None:
        if self._attention is not None:
            self._attention.end()
        super().close()


class NixlPulls(NixlTransfers, Pulls):
    """One transfer, and one notification, for each request."""

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.start_owner(count, size)
        self.pulled = memory = touched(count, size)
        self.connection = self.connect(memory, size)

    def run(self) -> None:
        read, places = self.connection.read, self.places
        for row, request_id in enumerate(self.requests):
            read([row], [places[request_id]], b"%d" % request_id)


class NixlWrites(NixlPulls):
    """The owner is asked for each request, and writes it. It must be on another host: nobody else attends."""

    make_owner = WritingNixlOwner

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.owner.call("meet", self.connection.agent.introduce())

    def run(self) -> None:
        connection, places = self.connection, self.places
        for row, request_id in enumerate(self.requests):
            connection.tell(b"%d %d %d" % (places[request_id], row, request_id))
            connection.hear(b"%d" % request_id)


class NixlPullsAtOnce(NixlPulls):
    """The same for all requests at once, which is one operation: each transfer is begun before any is waited for."""

    operations = 1

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.operations = 1

    def run(self) -> None:
        connection, places = self.connection, self.places
        begun = [
            connection.begin([row], [places[request_id]], b"%d" % request_id)
            for row, request_id in enumerate(self.requests)
        ]
        for transfer in begun:
            connection.finish(transfer)


class NixlMergedPulls(NixlPullsAtOnce):
    """One transfer of all requests by one list, and one notification that names them all."""

    def run(self) -> None:
        requests = self.requests
        rows = np.fromiter(map(self.places.__getitem__, requests), np.int64, len(requests))
        self.connection.read_merged(slice(None), rows, b" ".join(b"%d" % request_id for request_id in requests))


class NixlBlockPulls(NixlTransfers, BlockPulls):
    """One transfer of all blocks of all tensors, by indices into the prepared lists; NIXL merges what is adjacent."""

    def __init__(self, blocks: int, tensors: int, size: int, run: int = 1, apart: bool = False) -> None:
        super().__init__(blocks, tensors, size, run, apart)
        self.start_owner(tensors, blocks * size)
        memory = touched(tensors, blocks * size)
        self.pulled = memory.reshape(tensors, blocks, size)
        self.connection = self.connect(memory, size)

    def numbers(self) -> tuple[Any, Any]:
        """The numbers of all pieces: where they go, and where they come from."""
        first_of_tensors = np.arange(0, self.tensors * self.blocks, self.blocks, dtype=np.int32)[:, np.newaxis]
        local = (first_of_tensors + np.array(self.targets, np.int32)).ravel()
        remote = (first_of_tensors + np.array(self.sources, np.int32)).ravel()
        return local, remote

    def run(self) -> None:
        self.connection.read(*self.numbers(), b"")


class NixlMergedBlockPulls(NixlBlockPulls):
    """The same with a list that was merged before NIXL gets it."""

    def run(self) -> None:
        self.connection.read_merged(*self.numbers(), b"")
