"""Contenders of the managers' cases and of scale that do not do what they claim, each in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llmdd.bench.contenders import dictionaries, floors, llmdd_caches, llmdd_scale
from llmdd.bench.contenders.floors import empty
from llmdd.bench.other_end import OtherEnd

#: The last pull of a round of cycles of four keys; if one fails before, there is no room for the next cache.
LAST_PULL = 16
#: The last cache that a round deallocates: the first is the one through which the bytes are written.
LAST_PULLED_CACHE = 5


class Forgetful:
    """A manager of which one method does nothing, once: when it is called for the time `when`."""

    def __init__(self, manager: Any, method: str, when: int) -> None:
        self._manager = manager
        self._method = method
        self._when = when
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return self._forgets if name == self._method else getattr(self._manager, name)

    def _forgets(self, *arguments: Any) -> Any:
        self._calls += 1
        return None if self._calls == self._when else getattr(self._manager, self._method)(*arguments)


def forgets(base: type, method: str, manager: str = "manager", when: int = 10) -> type:
    """`base` with a manager that forgets."""

    class Forgets(base):
        def __init__(self, **parameters: Any) -> None:
            super().__init__(**parameters)
            setattr(self, manager, Forgetful(getattr(self, manager), method, when))

    return Forgets


def ends_with(base: type, mistake: Callable[[Any], object]) -> type:
    """`base` that makes `mistake` at the end of every round."""

    class EndsWith(base):
        def run(self) -> None:
            super().run()
            mistake(self)

    return EndsWith


def one_short(base: type, name: str) -> type:
    """`base` that leaves out the last thing that it should do in a round."""

    class OneShort(base):
        def prepare(self, number: int) -> None:
            super().prepare(number)
            setattr(self, name, getattr(self, name)[:-1])

    return OneShort


def flip(memory: Any) -> None:
    """Change one bit of the last byte."""
    memory.reshape(-1).view(np.uint8)[-1] ^= 1


def claim(**attributes: Any) -> Callable[[Any], None]:
    """A mistake: to say that something came about."""

    def make(contender: Any) -> None:
        for name, value in attributes.items():
            setattr(contender, name, value)

    return make


LlmddLeavesAKey = forgets(llmdd_caches.Cycles, "remove_cache_key")
LlmddKeepsACache = forgets(llmdd_caches.Cycles, "deallocate_cache")
LlmddLeavesACycleOut = one_short(llmdd_caches.Cycles, "keys")
LlmddDoesNotPull = forgets(llmdd_caches.PullCycles, "pull_cache", "puller", LAST_PULL)
LlmddKeepsAPulledCache = forgets(llmdd_caches.PullCycles, "deallocate_cache", when=LAST_PULLED_CACHE)
LlmddPullsAWrongByte = ends_with(llmdd_caches.PullCycles, lambda self: flip(self.target.tensors[-1]))
LlmddDropsNoKey = forgets(llmdd_caches.Drops, "remove_cache_key")
LlmddDropsNoCache = forgets(llmdd_caches.Drops, "deallocate_cache")
LlmddDoesNotUnregister = forgets(llmdd_caches.Drops, "unregister_cache")
LlmddFindsTheNextOne = ends_with(llmdd_caches.BulkLookups, lambda self: setattr(self, "found", np.roll(self.found, 1)))
LlmddFindsAnotherSlot = ends_with(llmdd_caches.BulkLookups, lambda self: flip(self.batch_indices))


class LlmddRemovesTooFew(llmdd_caches.BulkDrops):
    """Says that it has removed every key."""

    def run(self) -> None:
        self.manager.remove_cache_keys(self.requests[:-1])
        self.removed = np.ones(self.operations, np.bool_)
        self.deallocated = self.manager.deallocate_many(self.caches)


class LlmddDeallocatesTooFew(llmdd_caches.BulkDrops):
    """Says so."""

    def run(self) -> None:
        self.removed = self.manager.remove_cache_keys(self.requests)
        self.deallocated = self.manager.deallocate_many([*self.caches[:-1], self.caches[0]])


class LlmddAnswersAnotherCache(llmdd_caches.Lookups):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.lookup = lambda key: self.manager.lookup(self.all_keys[0])


class LlmddFindsStrangers(llmdd_caches.Lookups):
    """Answers any key that is not bound by the first cache."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.lookup = lambda key: self.manager.lookup(key) or self.manager.lookup(self.all_keys[0])


DictionariesLeaveAKey = forgets(dictionaries.Cycles, "remove_cache_key")
DictionariesKeepACache = forgets(dictionaries.Cycles, "deallocate_cache")
DictionariesLeaveACycleOut = one_short(dictionaries.Cycles, "keys")
DictionariesDoNotPull = forgets(dictionaries.PullCycles, "pull_cache", "puller", LAST_PULL)
DictionariesPullAWrongByte = ends_with(
    dictionaries.PullCycles, lambda self: flip(np.frombuffer(self.puller.memory, np.uint8))
)
DictionariesDropNoKey = forgets(dictionaries.Drops, "remove_cache_key")
DictionariesDropNoCache = forgets(dictionaries.Drops, "deallocate_cache")


class DictionariesAnswerAnotherCache(dictionaries.Lookups):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.lookup = lambda key: self.manager.lookup(self.all_keys[0])


class DictionaryWithAWrongEntry(floors.DictionaryLookups):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.dictionary[self.identities[3]] = self.dictionary[self.identities[4]]


class TooFewEmptyCalls(floors.EmptyCalls):
    def run(self) -> None:
        for number in range(self.operations - 1):  # noqa: B007
            empty()
        self.calls += number + 1


CopiesAWrongByte = ends_with(floors.Copies, lambda self: flip(self.copied[-1]))


class LeavesACopyOut(floors.Copies):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.copies.pop()


PeersPullAWrongByte = ends_with(llmdd_scale.PullsByPeers, lambda self: flip(self.places[-1][0].tensors[0]))


class PeerDoesNotPull(llmdd_scale.PullsByPeers):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.pulls[9] = lambda key, cache, batch_index: None


PeersLeaveAKey = ends_with(llmdd_scale.PullsByPeers, lambda self: self.owner.call("offer", 1 << 20, 1, self.slot_bytes))
CycleBesidePeersLeavesAKey = forgets(llmdd_scale.CyclesBesidePeers, "remove_cache_key")


class AnotherLastByte:
    """Instances linked to an owner that say they pulled another byte at the end."""

    def __init__(self, instances: OtherEnd) -> None:
        self._instances = instances

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instances, name)

    def call(self, method: str, *arguments: Any) -> Any:
        value = self._instances.call(method, *arguments)
        return value[:-1] + bytes([value[-1] ^ 1]) if method == "pull" else value


class LinkedPeersPullAWrongByte(llmdd_scale.CyclesBesidePeers):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.instances = AnotherLastByte(self.instances)


PullsAWrongByteOfABlock = ends_with(llmdd_scale.BlocksPulls, lambda self: flip(self.cache.tensors[0]))
LeavesABlocksPullOut = one_short(llmdd_scale.BlocksPulls, "lists")
