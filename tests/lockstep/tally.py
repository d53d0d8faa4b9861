"""How many steps were made, and how many calls of each kind were made and succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llmdd.spec.values import (
    BlocksCacheKey,
    CacheKey,
    CacheKeyByIdAndIndex,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

from .terms import Call, Outcome, Returned

#: Calls that are counted apart by the class of the key that they are given.
KEY_ARGUMENTS = {"pull_cache": "cache_key", "pull_blocks": "src_cache_key"}

#: What every search has to make succeed.
KINDS = (
    "init",
    "finalize",
    "link_clusters",
    "unlink_clusters",
    "link",
    "unlink",
    "query_register_mem_status",
    "switch_role",
    "allocate_cache",
    "allocate_blocks_cache",
    "deallocate_cache",
    "deallocate_blocks_cache",
    "register_cache",
    "register_blocks_cache",
    "unregister_cache",
    "create_cpu_cache",
    "remove_cache_key",
    "check_cache_key",
    "lookup",
    "pull_cache by CacheKey",
    "pull_cache by CacheKeyByIdAndIndex",
    "pull_blocks by CacheKey",
    "pull_blocks by CacheKeyByIdAndIndex",
    "pull_blocks by BlocksCacheKey",
    "push_cache",
    "push_blocks",
    "copy_cache",
    "copy_blocks",
    "swap_blocks",
    "transfer_cache_async to addresses",
    "transfer_cache_async to caches",
    "remap_registered_memory",
    "lookup_many",
    "remove_cache_keys",
    "remove_cache_keys, all or nothing",
    "deallocate_many",
    "deallocate_many, all or nothing",
    "pull_many",
    "pull_many, all or nothing",
    "pull_many into blocks",
    "pull_many into blocks, all or nothing",
)


def kind_of(call: Call) -> str:
    """The method, and the class of its key where several are good."""
    configs = (call.keywords or {}).get("transfer_configs")
    if isinstance(configs, list | tuple) and configs:
        if isinstance(configs[0], TransferConfig):
            return f"{call.method} to addresses"
        if isinstance(configs[0], TransferWithCacheKeyConfig):
            return f"{call.method} to caches"
    key = (call.keywords or {}).get(KEY_ARGUMENTS.get(call.method, ""))
    if isinstance(key, CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey):
        return f"{call.method} by {type(key).__name__}"
    into_blocks = " into blocks" if (call.keywords or {}).get("block_tables") is not None else ""
    all_or_nothing = ", all or nothing" if (call.keywords or {}).get("all_or_nothing") is True else ""
    return f"{call.method}{into_blocks}{all_or_nothing}"


def has_succeeded(outcome: Outcome) -> bool:
    """Whether a call did what it was to do: some tell by a code that they did not."""
    if not isinstance(outcome, Returned):
        return False
    value = outcome.value
    if isinstance(value, list):  # of many items
        return bool(value) and all(each is True or each == "LLM_SUCCESS" for each in value)
    return not (isinstance(value, tuple) and value and isinstance(value[0], str) and value[0] != "LLM_SUCCESS")


class Tally:
    """What the examples of a test have done."""

    def __init__(self) -> None:
        self.steps = 0
        self.made: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()

    def count(self, call: Call, outcome: Outcome) -> None:
        self.made[kind_of(call)] += 1
        self.succeeded[kind_of(call)] += has_succeeded(outcome)

    def add(self, other: Tally) -> None:
        self.steps += other.steps
        self.made += other.made
        self.succeeded += other.succeeded

    @property
    def never_succeeded(self) -> list[str]:
        return [kind for kind in KINDS if not self.succeeded[kind]]

    def table(self) -> Iterable[str]:
        """A line for each kind of call."""
        width = max(map(len, [*self.made, ""]))
        yield f"{'call':{width}}  {'made':>7}  {'succeeded':>9}"
        for kind in sorted(self.made):
            yield f"{kind:{width}}  {self.made[kind]:7,}  {self.succeeded[kind]:9,}"
