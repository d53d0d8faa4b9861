"""Calls on a manager whose engine may have been finalized."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ..terms import Call
from . import blocks, caches, layerwise, registered, slots


def calls_on_a_manager() -> SearchStrategy[Call]:
    """Any call on a cache manager."""
    return st.one_of(
        caches.allocations(),
        caches.blocks_allocations(),
        caches.deallocations(),
        caches.deallocations(blocks=True),
        caches.key_calls("remove_cache_key"),
        caches.key_calls("lookup"),
        registered.registrations(),
        registered.blocks_registrations(),
        registered.unregistrations(),
        registered.remaps(),
        slots.copies(),
        slots.pulls(by_key=True),
        slots.pushes(),
        blocks.block_copies(),
        blocks.swaps(),
        blocks.block_pulls(),
        blocks.pulls_into_blocks(by_key=True),
        blocks.block_pushes(),
        layerwise.layer_transfers(),
    )
