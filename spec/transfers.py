"""What a transfer moves, and whether it may: layers, slots and blocks of one cache onto those of another (api §3.5).

Everything here is a question of numbers. Which caches, and whether there is a way between them, :mod:`.reference` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .arguments import layer_count, require
from .memory import Move
from .tenants import Pin, Tenant

#: Which engine: name of its node, how often that was started, how often it was initialised.
EngineId = tuple[str, int, int]


class WouldWait(Exception):
    """The call would wait, without a deadline, for a transfer that is in progress."""


@dataclass
class Transfer:
    """A pull or push between begin and finish. Its caller is the local side; the remote side's key is consumed."""

    number: int
    is_pull: bool
    local: EngineId
    local_cache: int
    remote: EngineId
    remote_cache: int
    remote_slot: int
    remote_tensors: range
    moves: tuple[Move, ...]
    over: int = 0  # the caller's number of the communicator over which it runs; 0: over a one-sided link
    copied: bool = False
    broken_off: bool = False

    @property
    def pin(self) -> Pin:
        return ("transfer", self.number)


class Run(NamedTuple):
    """A run of bytes, alike in every tensor: offsets in a tensor of the source and in one of the target."""

    source: int
    target: int
    size: int


# -- which tensors ---------------------------------------------------------------------------------------------------


def check_layers(local: Tenant, local_layers: range | None, remote_layers: range | None, per_layer: int) -> None:
    """The rules for layer ranges that the local side can check."""
    require(per_layer == 2 or per_layer <= local.num_tensors, f"tensor_num_per_layer {per_layer} is out of range")
    if local_layers is None and remote_layers is None:
        return
    require(local.num_tensors % per_layer == 0, f"{local.num_tensors} tensors are not whole layers of {per_layer}")
    selected = len(tensors_of_layers(local, local_layers, per_layer))
    if remote_layers is not None:
        require(selected == layer_count(remote_layers) * per_layer, "the layer ranges differ in length")


def tensors_of_layers(tenant: Tenant, layers: range | None, per_layer: int) -> range:
    """The tensors of a layer range; all of them without one."""
    if layers is None:
        return range(tenant.num_tensors)
    selected = range(layers.start * per_layer, layers.stop * per_layer)
    require(selected.stop <= tenant.num_tensors, f"{layers} is beyond the {tenant.num_tensors} tensors")
    return selected


# -- which bytes of a tensor -----------------------------------------------------------------------------------------


def slot_to_slot(source: Tenant, source_slot: int, target: Tenant, target_slot: int, size: int) -> list[Run]:
    """C→C: the first ``size`` bytes of a slot to the beginning of another."""
    return [Run(source_slot * source.row_bytes, target_slot * target.row_bytes, size)]


def slot_to_blocks(source: Tenant, source_slot: int, block_bytes: int, blocks: Sequence[int]) -> list[Run]:
    """C→B: the slot is cut into blocks, of which the i-th goes to the i-th listed block; the last may be short."""
    slot_bytes = source.row_bytes
    blocks_of_slot = -(-slot_bytes // block_bytes)
    require(len(blocks) <= blocks_of_slot, f"{len(blocks)} blocks are listed, but a slot fills only {blocks_of_slot}")
    start = source_slot * slot_bytes
    runs = []
    for position, block in enumerate(blocks):
        offset = position * block_bytes
        runs.append(Run(start + offset, block * block_bytes, min(block_bytes, slot_bytes - offset)))
    return runs


def block_to_block(block_bytes: int, source_blocks: Sequence[int], target_blocks: Sequence[int]) -> list[Run]:
    """B→B: the i-th listed block of the source to the i-th of the target."""
    pairs = zip(source_blocks, target_blocks, strict=True)
    return [Run(source * block_bytes, target * block_bytes, block_bytes) for source, target in pairs]


def check_blocks_exist(name: str, blocks: Sequence[int], tenant: Tenant) -> None:
    """Every listed block is one of the cache's."""
    beyond = [block for block in blocks if not 0 <= block < tenant.row_count]
    require(not beyond, f"{name} {beyond} should be in [0, {tenant.row_count})")


# -- from which address to which -------------------------------------------------------------------------------------


def moves_of(sources: Sequence[int], targets: Sequence[int], runs: Sequence[Run]) -> tuple[Move, ...]:
    """The runs, for every tensor of the source and the tensor of the target it goes to."""
    return tuple(
        Move(source + run.source, target + run.target, run.size)
        for source, target in zip(sources, targets, strict=True)
        for run in runs
    )


def addresses_of(tenant: Tenant, tensors: range) -> list[int]:
    """Where these tensors begin."""
    return [tenant.addresses[index] for index in tensors]
