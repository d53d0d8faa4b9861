"""First steps that go wrong: each is as quick as the right one, or quicker."""

from __future__ import annotations

from llmdd.bench.contenders.first_step import LayerByLayer, PulledWhole, Recomputed

from llmdd.demo.transformer import SequenceCache


class NothingPulled(PulledWhole):
    """The key goes, the bytes do not come."""

    def fetch(self, req_id: int) -> SequenceCache:
        cache = super().fetch(req_id)
        for tensor in self._slot.tensors:
            tensor.fill(0)
        return cache


class AWrongByte(PulledWhole):
    """One byte of the value of the first token in the first layer is another."""

    def fetch(self, req_id: int) -> SequenceCache:
        cache = super().fetch(req_id)
        self._slot.tensors[1].view("uint8").reshape(-1)[3] ^= 0x40
        return cache


class TheCacheIsKept(PulledWhole):
    """Prefill binds each cache to a second key, which nobody pulls."""

    def fetch(self, req_id: int) -> SequenceCache:
        cache = super().fetch(req_id)
        self._prefill.call("compute", self._prompt, req_id + 1000)
        return cache


class TheLastLayerIsMissing(LayerByLayer):
    """Decode does not wait for the end of the transfer."""

    def fetch(self, req_id: int) -> SequenceCache:
        cache = super().fetch(req_id)
        self._slot.tensors[-1].fill(0)
        return cache


class NothingComputed(Recomputed):
    def fetch(self, req_id: int) -> SequenceCache:
        return SequenceCache.of_slot(self._slot.tensors, 0)
