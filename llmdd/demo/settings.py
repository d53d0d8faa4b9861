"""What every process of a run must agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmdd import CacheDesc, DataType, LLMConfig

from .choices import DEFAULT_BATCH, DEFAULT_SEED, DEFAULT_SLOTS, DEFAULT_TOKENS, Choices, Transport
from .transformer import Transformer, TransformerShape

PREFILL_CLUSTER_ID = 1
DECODE_CLUSTER_ID = 2

CONTEXT_STEP = 64
PAGE_SHIFT = 16
PREFILL_CACHES = 2
"""Prefill's pool holds this many caches, so that it must soon wait for decode to pull what it has offered."""

ANY_FREE_PORT = "127.0.0.1:0"

TRANSFER_TIMEOUT_MS = 20_000
"""How long a pull may take: hosts may be far apart, and a machine busy."""


@dataclass(frozen=True)
class Settings:
    """The model and the sizes of a run.

    Parameters
    ----------
    tokens
        How many tokens each request is answered with.
    seed
        Of the model's weights.
    batch
        Requests in one prefill batch, and so batch slots in each cache that prefill allocates.
    slots
        Batch slots of decode's running batch.
    context
        Tokens for which every batch slot has room.
    transport
        What KV caches must travel by, though the two processes may share memory.
    """

    tokens: int
    seed: int
    batch: int
    slots: int
    context: int
    transport: Transport | None = None
    shape: TransformerShape = field(default_factory=TransformerShape)

    @classmethod
    def for_prompts(cls, prompts: Sequence[bytes], choices: Choices) -> Settings:
        """As chosen, with just enough context for the longest of ``prompts`` and its answer."""
        longest = max(map(len, prompts)) + _or_default(choices.tokens, DEFAULT_TOKENS)
        return cls.chosen(choices, context=-(-longest // CONTEXT_STEP) * CONTEXT_STEP)

    @classmethod
    def chosen(cls, choices: Choices, context: int) -> Settings:
        """As chosen, with the defaults where nothing was."""
        return cls(
            tokens=_or_default(choices.tokens, DEFAULT_TOKENS),
            seed=_or_default(choices.seed, DEFAULT_SEED),
            batch=_or_default(choices.batch, DEFAULT_BATCH),
            slots=_or_default(choices.slots, DEFAULT_SLOTS),
            context=context,
            transport=choices.transport,
        )

    def transformer(self) -> Transformer:
        """The model, the same in every process."""
        return Transformer(self.shape, self.seed, self.context)

    def cache_desc(self, batch_size: int) -> CacheDesc:
        """A KV cache of ``batch_size`` sequences."""
        return CacheDesc(
            self.shape.kv_tensors, list(self.shape.kv_cache_shape(batch_size, self.context)), DataType.DT_FLOAT
        )

    @property
    def slot_bytes(self) -> int:
        """Bytes of one sequence's keys and values: what one pull moves."""
        return self.shape.kv_tensors * self.cache_desc(1).size

    def prefill_config(self, listen_at: str) -> LLMConfig:
        """Prefill listens at an address, ``host:port``, and has room for a few batches."""
        config = self._config(caches=PREFILL_CACHES, batch_size=self.batch)
        config.listen_ip_info = listen_at
        return config

    def decode_config(self) -> LLMConfig:
        """Decode links to prefill and has room for its running batch."""
        return self._config(caches=1, batch_size=self.slots)

    def _config(self, caches: int, batch_size: int) -> LLMConfig:
        page = 1 << PAGE_SHIFT
        pages = -(-self.cache_desc(batch_size).size // page)
        memory_size = caches * self.shape.kv_tensors * pages * page
        config = LLMConfig()
        config.enable_cache_manager = True
        config.mem_pool_cfg = json.dumps({"memory_size": memory_size, "page_shift": PAGE_SHIFT})
        config.sync_kv_timeout = TRANSFER_TIMEOUT_MS
        if self.transport is not None:
            config.transfer_backend = self.transport
        return config


def _or_default(choice: int | None, default: int) -> int:
    return default if choice is None else choice
