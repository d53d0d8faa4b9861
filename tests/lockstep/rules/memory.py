"""Memory of the programs' own, and what is made of it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import registered
from ..strategies.present import memories
from ..terms import Call, MemoryName

#: A program that has more has enough.
MOST_MEMORIES = 8


class MemoryRules(Lockstep):
    """Programs get, write, register and take away memory of their own."""

    @precondition(lambda self: len(self.mapped_memories()) < MOST_MEMORIES)
    @now_and_then(6)
    @rule(wanted=registered.memory_sizes())
    def get_memory(self, wanted: tuple[str, int]) -> None:
        self.map_memory(*wanted)

    @precondition(lambda self: self.mapped_memories())
    @now_and_then(10)
    @rule(memory=memories())
    def take_memory_away(self, memory: MemoryName) -> None:
        for side in (self.reference, self.library(memory.node)):
            side.unmap_memory(memory)

    @precondition(lambda self: self.mapped_memories())
    @now_and_then(2)
    @rule(memory=memories(), seed=st.integers(0, 2**32))
    def write_memory(self, memory: MemoryName, seed: int) -> None:
        for side in (self.reference, self.library(memory.node)):
            side.write_memory(memory, seed)

    @now_and_then(2)
    @rule(call=registered.registrations())
    def register(self, call: Call) -> None:
        self.make_cache(call, seed=0)

    @now_and_then(2)
    @rule(call=registered.blocks_registrations())
    def register_blocks(self, call: Call) -> None:
        self.make_cache(call, seed=0)

    @now_and_then(4)
    @rule(call=registered.wraps())
    def create_cpu_cache(self, call: Call) -> None:
        self.make_cache(call, seed=0)

    @now_and_then(3)
    @rule(call=registered.unregistrations())
    def unregister(self, call: Call) -> None:
        self.make(call)

    @now_and_then(5)
    @rule(call=registered.remaps())
    def remap(self, call: Call) -> None:
        self.make(call)
