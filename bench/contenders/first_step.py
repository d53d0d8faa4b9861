"""The demo's model in two processes: how its first decode step comes by the prompt's KV cache.

The prefill process computes a prompt's KV cache and the first token; the decode process takes that token's step. In
between the cache is pulled whole under its request's key, or arrives layer by layer while later layers are still being
computed, or is not moved at all: then decode gets the token only, and computes the prompt again. Every contender's
logits must equal, to the last bit, those that one process computes alone.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from llmdd import (
    CacheKey,
    LayerSynchronizer,
    LLMRole,
    LLMStatusCode,
    TransferConfig,
)
from llmdd.demo.settings import Settings
from llmdd.demo.transformer import Array, SequenceCache, greedy

from ..contender import Contender, require
from ..nodes import link, node
from ..other_end import OtherEnd

PREFILL, DECODE = 1, 2
PAGE_SHIFT = 12


def settings_for(length: int) -> Settings:
    """One sequence of `length` tokens and its first two answers."""
    return Settings(tokens=2, seed=0, batch=1, slots=1, context=length + 2)


def memory_for(settings: Settings, caches: int) -> int:
    """Bytes of a pool with room for so many caches, whose tensors begin on pages of their own."""
    page = 1 << PAGE_SHIFT
    return caches * settings.shape.kv_tensors * -(-settings.cache_desc(1).size // page) * page


def prompt_number(number: int, length: int) -> list[int]:
    """The prompt of round `number`: `length` tokens."""
    return [int(token) for token in np.random.default_rng(number).integers(0, 256, length)]


class WrittenLayers(LayerSynchronizer):
    """Layers that are ready once they were written."""

    def __init__(self, layers: int) -> None:
        self._written = [threading.Event() for _ in range(layers)]

    def written(self, layer: int) -> None:
        self._written[layer].set()

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return self._written[layer_index].wait(None if timeout_in_millis is None else timeout_in_millis / 1000)


class Prefill:
    """The prefill process: computes one prompt after the other."""

    def __init__(self, length: int) -> None:
        self._settings = settings_for(length)
        self._transformer = self._settings.transformer()
        self._desc = self._settings.cache_desc(1)
        self._node = node(LLMRole.PROMPT, PREFILL, memory_for(self._settings, 2), PAGE_SHIFT)
        self._datadist = self._node.__enter__()
        self._manager = self._datadist.cache_manager
        self._transferred = LLMStatusCode.LLM_SUCCESS

    def address(self) -> tuple[str, int] | None:
        return self._datadist.listen_address

    def compute(self, prompt: list[int], req_id: int) -> int:
        """Bind the prompt's KV cache to the request; its first token."""
        cache = self._manager.allocate_cache(self._desc, [CacheKey(PREFILL, req_id)])
        logits = self._transformer.forward(prompt, 0, SequenceCache.of_slot(cache.tensors, 0))
        self._manager.deallocate_cache(cache)
        return greedy(logits)

    def compute_and_send(self, prompt: list[int], addresses: list[int]) -> int:
        """Send the prompt's KV cache to `addresses` of decode, each layer once it is written; its first token."""
        cache = self._manager.allocate_cache(self._desc)
        layers = WrittenLayers(self._settings.shape.layers)
        self._task = self._manager.transfer_cache_async(cache, layers, [TransferConfig(DECODE, addresses)])
        logits = self._transformer.forward(prompt, 0, SequenceCache.of_slot(cache.tensors, 0), layers.written)
        self._manager.deallocate_cache(cache)
        return greedy(logits)

    def compute_first_token(self, prompt: list[int]) -> int:
        """The prompt's first token; its KV cache stays here and goes."""
        return greedy(self._transformer.forward(prompt, 0, self._transformer.empty_cache()))

    def wait_until_sent(self) -> str:
        """What became of the last transfer."""
        return self._task.synchronize().name

    def live_caches(self) -> int:
        self._manager.check()
        return self._manager.live_caches

    def close(self) -> None:
        self._node.__exit__(None, None, None)


class FirstStep(Contender):
    """Decode, up to its first step.

    Parameters
    ----------
    since : str
        ``"prompt"`` to time everything, ``"handover"`` to begin when prefill has computed the prompt.
    length : int
        Tokens of a prompt.
    """

    def __init__(self, since: str, length: int) -> None:
        self._since = since
        self._length = length
        self._settings = settings_for(length)
        self._transformer = self._settings.transformer()
        self._prompt: list[int] = []
        self._token = 0
        self._logits: Array | None = None
        self._steps = 0

    def prepare(self, number: int) -> None:
        self._prompt = prompt_number(number, self._length)
        self._logits = None
        self._forget_last_round()
        if self._since == "handover":
            self._token = self.prefill(number)

    def run(self) -> None:
        if self._since == "prompt":
            self._token = self.prefill(self._steps)
        cache = self.fetch(self._steps)
        self._logits = self._transformer.forward([self._token], self._length, cache)
        self._steps += 1

    def inspect(self, number: int) -> None:
        alone = self._transformer.empty_cache()
        token = greedy(self._transformer.forward(self._prompt, 0, alone))
        logits = self._transformer.forward([token], self._length, alone)
        require(self._logits is not None and np.array_equal(self._logits, logits), f"step {number}: other logits")

    def verify(self) -> None:
        require(self._steps > 0, "no step was taken")

    def _forget_last_round(self) -> None:
        """Let nothing of the prompt before be found in place of this one's."""

    @abstractmethod
    def prefill(self, req_id: int) -> int:
        """Have the prompt computed: its first token."""

    @abstractmethod
    def fetch(self, req_id: int) -> SequenceCache:
        """Come by the prompt's keys and values."""


class Disaggregated(FirstStep):
    """Decode is linked to a prefill process, and has a slot for one sequence."""

    def __init__(self, since: str, length: int) -> None:
        super().__init__(since, length)
        self._prefill = OtherEnd(Prefill, length)
        self._node = node(LLMRole.DECODER, DECODE, memory_for(self._settings, 1), PAGE_SHIFT)
        datadist = self._node.__enter__()
        link(datadist, PREFILL, self._prefill.call("address"))
        self._manager = datadist.cache_manager
        self._slot = self._manager.allocate_cache(self._settings.cache_desc(1))

    def _forget_last_round(self) -> None:
        for tensor in self._slot.tensors:
            tensor.fill(0)

    def inspect(self, number: int) -> None:
        super().inspect(number)
        left = self._prefill.call("live_caches")
        require(left == 0, f"step {number}: {left} caches are left with prefill")

    def other_processes(self) -> Sequence[int]:
        return (self._prefill.pid,)

    def close(self) -> None:
        self._node.__exit__(None, None, None)
        self._prefill.close()


class PulledWhole(Disaggregated):
    """Decode pulls the cache by the request's key when prefill has computed it."""

    def prefill(self, req_id: int) -> int:
        token: int = self._prefill.call("compute", self._prompt, req_id)
        return token

    def fetch(self, req_id: int) -> SequenceCache:
        self._manager.pull_cache(CacheKey(PREFILL, req_id), self._slot)
        return SequenceCache.of_slot(self._slot.tensors, 0)


class LayerByLayer(Disaggregated):
    """Prefill sends each layer into decode's slot while it computes the next."""

    def prefill(self, req_id: int) -> int:
        self._prefill.tell("compute_and_send", self._prompt, self._slot.tensor_addrs)
        self._prefill.tell("wait_until_sent")
        token: int = self._prefill.answer()
        return token

    def fetch(self, req_id: int) -> SequenceCache:
        became = self._prefill.answer()
        require(became == LLMStatusCode.LLM_SUCCESS.name, f"the layers of request {req_id} did not arrive: {became}")
        return SequenceCache.of_slot(self._slot.tensors, 0)


class Recomputed(Disaggregated):
    """Only the first token comes from prefill; decode computes the prompt's KV cache again, into its own slot."""

    def prefill(self, req_id: int) -> int:
        token: int = self._prefill.call("compute_first_token", self._prompt)
        return token

    def fetch(self, req_id: int) -> SequenceCache:
        cache = SequenceCache.of_slot(self._slot.tensors, 0)
        self._transformer.forward(self._prompt, 0, cache)
        return cache
