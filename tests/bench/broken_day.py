"""Contenders of the day, and of the reference model's cases, that each do one thing wrong."""

from __future__ import annotations

from typing import Any

from faults import every_third_time_not, the_first_time_not
from llmdd.bench.contenders import dictionaries_day, llmdd_day, reference_model
from llmdd.bench.replay import CachesReplay
from llmdd.spec.values import CacheKeyByIdAndIndex


class KeepsKeys(CachesReplay):
    """Some keys are not removed: their caches live on, and a prefix is found that should be gone."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.remove = every_third_time_not(self.remove)


class KeepsCaches(CachesReplay):
    """Some caches are not deallocated: their keys go, their memory stays."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.deallocate = every_third_time_not(self.deallocate)


class FindsOthers(CachesReplay):
    """A lookup is answered by another cache than the key's."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        right = self.cache_id
        self.cache_id = lambda found: right(found) + 1


class GoesHomeEarly(CachesReplay):
    """The end of the trace is not played."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.day.ends[-1] = self.day.ends[len(self.day.ends) // 2]


class LlmddKeepsKeys(KeepsKeys, llmdd_day.Day):
    pass


class LlmddKeepsCaches(KeepsCaches, llmdd_day.Day):
    pass


class LlmddFindsOthers(FindsOthers, llmdd_day.Day):
    pass


class LlmddGoesHomeEarly(GoesHomeEarly, llmdd_day.Day):
    pass


class DictionariesKeepKeys(KeepsKeys, dictionaries_day.Day):
    pass


class DictionariesKeepCaches(KeepsCaches, dictionaries_day.Day):
    pass


class DictionariesFindOthers(FindsOthers, dictionaries_day.Day):
    pass


class DictionariesGoHomeEarly(GoesHomeEarly, dictionaries_day.Day):
    pass


class ReferenceKeepsKeys(KeepsKeys, reference_model.Day):
    pass


class ReferenceKeepsCaches(KeepsCaches, reference_model.Day):
    pass


class ReferenceFindsOthers(FindsOthers, reference_model.Day):
    pass


class CyclesKeepKeys(reference_model.Cycles):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.node.remove_cache_key = the_first_time_not(self.node.remove_cache_key)


class CyclesKeepCaches(reference_model.Cycles):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.node.deallocate_cache = the_first_time_not(self.node.deallocate_cache)


class CyclesAreLeftOut(reference_model.Cycles):
    def run(self) -> None:
        self.keys = self.keys[1:]
        super().run()


class LookupsFindOthers(reference_model.Lookups):
    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        right = self.node.lookup
        self.node.lookup = lambda key: CacheKeyByIdAndIndex(1, right(key).cache_id + 1, 0)


class LookupsAreLeftOut(reference_model.Lookups):
    def run(self) -> None:
        self.keys = self.keys[1:]
        super().run()
