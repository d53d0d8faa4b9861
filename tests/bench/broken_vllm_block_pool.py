"""Contenders with vLLM's block pool that each do one thing wrong; and the right ones, so that it is imported once."""

from __future__ import annotations

from typing import Any

from faults import every_third_time_not, the_first_time_not
from llmdd.bench.contenders import vllm_block_pool
from llmdd.bench.contenders.vllm_block_pool import Cycles, Day, Lookups, versions

__all__ = ["Cycles", "Day", "Lookups", "versions"]


def another_block(pool: Any, answer: Any) -> Any:
    return answer and [pool.blocks[block.block_id - 1] for block in answer]


class CyclesKeepHashes(Cycles):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pool.evict_blocks = the_first_time_not(self.pool.evict_blocks)


class CyclesKeepBlocks(Cycles):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pool.free_blocks = the_first_time_not(self.pool.free_blocks)


class CyclesBindNothing(Cycles):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pool.cache_full_blocks = lambda *arguments: None


class LookupsFindOthers(Lookups):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        right = self.pool.get_cached_block
        self.pool.get_cached_block = lambda *arguments: another_block(self.pool, right(*arguments))


class DayKeepsBlocks(Day):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pool = vllm_block_pool.pool_of(4 * self.pool_pages)
        self.pool_pages *= 4
        self.pool.free_blocks = every_third_time_not(self.pool.free_blocks)


class DayKeepsHashes(Day):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pool.evict_blocks = every_third_time_not(self.pool.evict_blocks)


class DayFindsOthers(Day):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        right = self.pool.get_cached_block
        self.pool.get_cached_block = lambda *arguments: another_block(self.pool, right(*arguments))
