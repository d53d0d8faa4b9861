"""Contenders of the cases of pulls that do not do what they claim, each in one way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from llmdd.bench import payload
from llmdd.bench.cases.hosts import SOCKETS
from llmdd.bench.cases.pulls import LLMDD, MEMCPY, MOONCAKE, NIXL, SHARED_MEMORY_PIPE
from llmdd.bench.contenders.pulls import BlockPulls, Owner, Pulls
from llmdd.bench.other_end import OtherEnd

fill = payload.fill

#: What a round of each goes through, item by item.
ITEMS = {
    f"{LLMDD}:CachePulls": "keys",
    f"{MEMCPY}:Copies": "copies",
    f"{SHARED_MEMORY_PIPE}:PipePulls": "targets",
    f"{NIXL}:NixlPulls": "requests",
    f"{NIXL}:NixlWrites": "requests",
    f"{MOONCAKE}:MooncakePulls": "requests",
    f"{SOCKETS}:SocketPulls": "targets",
}


def contender(factory: str) -> Any:
    """The class that `factory` names."""
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)


class WrongByte:
    """One bit in the middle of a cache is not what the owner wrote."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def run(self) -> None:
                super().run()
                self.pulled[-1][self.size // 2] ^= 1

        return Broken(**parameters)


class MissingByte:
    """The last byte of the last cache is not copied."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def run(self) -> None:
                before = self.pulled[-1][-1]
                super().run()
                self.pulled[-1][-1] = before

        return Broken(**parameters)


class OtherOffer:
    """The owner writes something else than what the request is about."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def start(self, make: Callable[..., Owner], *arguments: Any) -> OtherEnd:
                def other(*arguments: Any) -> Owner:
                    payload.fill = lambda memory, seed: fill(memory, seed + 1)
                    return make(*arguments)

                return super().start(other, *arguments)

        return Broken(**parameters)


class KeyLeft:
    """The bytes of the last request arrive, but its key is not released."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        base = contender(factory)
        if factory == f"{NIXL}:NixlWrites":
            return owner_leaves_a_key(base)(**parameters)
        return {LLMDD: llmdd_leaves_a_key, NIXL: nixl_leaves_a_key}.get(factory.partition(":")[0], skips_a_release)(
            base
        )(**parameters)


def llmdd_leaves_a_key(base: Any) -> Any:
    class Broken(base):
        def prepare(self, number: int) -> None:
            super().prepare(number)
            self.keys.pop()

        def run(self) -> None:
            super().run()
            fill(self.pulled[-1], self.requests[-1])

    return Broken


def nixl_leaves_a_key(base: Any) -> Any:
    class Broken(base):
        def __init__(self, **parameters: Any) -> None:
            super().__init__(**parameters)
            connection = self.connection
            connection.begin, connection.read_merged = map(self.forgetful, (connection.begin, connection.read_merged))

        def forgetful(self, transfer: Callable[..., Any]) -> Callable[..., Any]:
            def without_the_last(local: Any, remote: Any, message: bytes) -> Any:
                others = [number for number in message.split() if int(number) != self.requests[-1]]
                return transfer(local, remote, b" ".join(others))

            return without_the_last

    return Broken


def owner_leaves_a_key(base: Any) -> Any:
    def breaks(owner: Any) -> None:
        release = owner.release

        def all_but_the_last(request_id: int) -> None:
            if request_id != max(owner.keys):
                release(request_id)

        owner.release = all_but_the_last

    return with_owner(base, breaks)


def with_owner(base: Any, breaks: Callable[[Any], None]) -> Any:
    """A contender whose owner is broken by `breaks`."""

    class Broken(base):
        def start(self, make: Callable[..., Owner], *arguments: Any) -> OtherEnd:
            def broken(*arguments: Any) -> Owner:
                owner = make(*arguments)
                breaks(owner)
                return owner

            return super().start(broken, *arguments)

    return Broken


class WrongRow:
    """The owner writes each request into the row of another one."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        def breaks(owner: Any) -> None:
            write = owner.write_piece
            owner.write_piece = lambda row, piece, request_id: write(row, piece ^ 1, request_id)

        broken: Pulls = with_owner(contender(factory), breaks)(**parameters)
        return broken


class NothingWritten:
    """The owner only says that it has written what it was asked for."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        def breaks(owner: Any) -> None:
            owner.write_piece = lambda row, piece, request_id: owner._connection.tell(b"%d" % request_id)

        broken: Pulls = with_owner(contender(factory), breaks)(**parameters)
        return broken


class OtherRequestWritten:
    """The owner says of another request that it was written."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        def breaks(owner: Any) -> None:
            write = owner.write_piece
            owner.write_piece = lambda row, piece, request_id: write(row, piece, request_id + 1)

        broken: Pulls = with_owner(contender(factory), breaks)(**parameters)
        return broken


def skips_a_release(base: Any) -> Any:
    class Broken(base):
        def release(self, *request_ids: int) -> None:
            others = [request_id for request_id in request_ids if request_id != self.requests[-1]]
            if others:
                super().release(*others)

    return Broken


class IdleOwner:
    """The owner only says that it computes."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def start(self, make: Callable[..., Owner], *arguments: Any) -> OtherEnd:
                def idle(*arguments: Any) -> Owner:
                    owner = make(*arguments)
                    owner.begin_computing = lambda: owner.computes.__setitem__(0, 1)
                    owner.end_computing = lambda: 0
                    return owner

                return super().start(idle, *arguments)

        return Broken(**parameters)


class BatchLeftOut:
    """One call for many keys fewer."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def run(self) -> None:
                self.batches.pop()
                super().run()

        return Broken(**parameters)


class BlockMixedUp:
    """Two blocks of the last tensor arrive in each other's place."""

    def __new__(cls, factory: str, **parameters: Any) -> BlockPulls:
        class Broken(contender(factory)):
            def run(self) -> None:
                super().run()
                self.pulled[-1][[0, 1]] = self.pulled[-1][[1, 0]]

        return Broken(**parameters)


class NothingPulled:
    """What is there is of the round before."""

    def __new__(cls, factory: str, **parameters: Any) -> Any:
        class Broken(contender(factory)):
            def prepare(self, number: int) -> None:
                super().prepare(number)
                self._number = number

            def run(self) -> None:
                if self._number == 0:
                    super().run()

        return Broken(**parameters)


class TripLeftOut:
    """It goes there and back once less than it says."""

    def __new__(cls, factory: str, **parameters: Any) -> Any:
        class Broken(contender(factory)):
            def run(self) -> None:
                self.operations -= 1
                super().run()
                self.operations += 1

        return Broken(**parameters)


class KilledHalfWay:
    """Its process is killed in the middle of its round."""

    def __new__(cls, factory: str, **parameters: Any) -> Pulls:
        class Broken(contender(factory)):
            def run(self) -> None:
                items = getattr(self, ITEMS[factory])
                setattr(self, ITEMS[factory], half(items, self.operations))
                super().run()

        return Broken(**parameters)


def half(items: Iterable[Any], count: int) -> Iterator[Any]:
    for number, item in enumerate(items):
        if 2 * number >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
