"""Waiting for memory: the allocations of a node for which its pools have no room.

``waiting n`` is a rule of this file. They hold where the option ``llmdd.WaitForMemory`` is 1.

 1. A call that takes memory of a pool waits if there is no room for what it asks, or if another call waits for the same
    pool: nobody is overtaken, however little he asks for. Pools do not wait for each other.
 2. Only what a release can mend waits. A cache that is larger than the whole pool is ``LLM_OUT_OF_MEMORY`` at once, and
    what is wrong in any other way is refused as ever.
 3. Whatever gives memory back, the first in the queue is tried then, and served if there is room; then the next is
    the first. A first one whose key another call has bound meanwhile is refused with ``LLM_PARAM_INVALID``.
 4. Who has waited for ``sync_kv_timeout``, from the begin of the call, is ``LLM_TIMEOUT``. Nothing has changed. Those
    behind him move up, and the next may have room at once.
 5. ``finalize`` refuses whoever waits with ``LLM_ENGINE_FINALIZED``, before anything is given back.

How those who wait are woken is in :mod:`.wakeups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .statecharts import Refused
from .values import Cache, CacheDesc, KeyIdentity

if TYPE_CHECKING:
    from .caches import CacheOwner


@dataclass
class WaitingAllocation:
    """A call that waits, or has waited.

    ``answer`` is what it has been given: a cache, or the name of an error; None while it waits.
    """

    number: int
    desc: CacheDesc
    is_blocks_cache: bool
    keys: tuple[KeyIdentity | None, ...]
    lease: int
    answer: Cache | str | None = None

    def result(self) -> Cache:
        """What the call returns, or raises."""
        assert self.answer is not None, f"{self} waits still"
        if isinstance(self.answer, str):
            raise Refused(self.answer, f"{self.desc} has waited for memory")
        return self.answer


class AllocationQueues:
    """The calls that wait for memory of one node: a queue for each pool."""

    def __init__(self, node: CacheOwner) -> None:
        self.node = node
        self.queues: dict[str, list[WaitingAllocation]] = {placement: [] for placement in ("DEVICE", "HOST")}
        self.next_number = 1

    def someone_waits_for(self, placement: str) -> bool:
        return bool(self.queues[placement])

    def join(
        self, desc: CacheDesc, is_blocks_cache: bool, keys: Sequence[KeyIdentity | None], lease: int
    ) -> WaitingAllocation:
        """Come last (waiting 1). A lease counts from when there is a key."""
        waiting = WaitingAllocation(self.next_number, desc, is_blocks_cache, tuple(keys), lease)
        self.next_number += 1
        self.queues[desc.placement].append(waiting)
        return waiting

    def serve(self) -> None:
        """Something was released or bound, or the first has left: serve while there is room (waiting 3)."""
        while any(self._serve_first(queue) for queue in self.queues.values() if queue):
            pass

    def _serve_first(self, queue: list[WaitingAllocation]) -> bool:
        """Whether the first has been answered."""
        answer = self._try(queue[0])
        if answer is not None:
            queue.pop(0).answer = answer
        return answer is not None

    def _try(self, waiting: WaitingAllocation) -> Cache | str | None:
        if any(key in self.node.key_index for key in waiting.keys if key is not None):
            return "LLM_PARAM_INVALID"
        return self.node.make_if_there_is_room(waiting.desc, waiting.is_blocks_cache, waiting.keys, waiting.lease)

    def give_up(self, waiting: WaitingAllocation) -> None:
        """The time of a call that waits is over (waiting 4)."""
        assert waiting.answer is None, f"{waiting} does not wait"
        self.queues[waiting.desc.placement].remove(waiting)
        waiting.answer = "LLM_TIMEOUT"
        self.serve()

    def close(self) -> None:
        """Nobody waits any more (waiting 5)."""
        for queue in self.queues.values():
            while queue:
                queue.pop(0).answer = "LLM_ENGINE_FINALIZED"

    def all(self) -> list[WaitingAllocation]:
        """Those that wait, in the order in which they came."""
        return sorted((each for queue in self.queues.values() for each in queue), key=lambda waiting: waiting.number)

    def observable(self) -> tuple[object, ...]:
        return tuple((each.number, each.desc, each.is_blocks_cache, each.keys, each.lease) for each in self.all())

    def check(self) -> None:
        """No first in a queue could be served."""
        for placement, queue in self.queues.items():
            if queue:
                room = self.node.pools[placement].room_for(queue[0].desc.num_tensors, queue[0].desc.size)
                assert room is None, f"{queue[0]} waits, but there is room for it"
