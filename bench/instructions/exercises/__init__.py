"""Every path that is counted."""

from __future__ import annotations

from functools import partial

from ..exercise import CountedPath
from .cycles import BatchCycle, Cycle
from .lookups import Lookup, LookupMany
from .own_memory import CopyCache, RegisterCache
from .plain_python import DictionarySubscript, EmptyCall
from .pulls import Pull, PullBlocks, PullMany
from .releases import DeallocateMany, RemoveCacheKeys

LIVE = 10_000

PATHS = (
    # What an interpreter costs here: to measure the others by, and a check on the counting itself.
    CountedPath("empty call", "call", EmptyCall),
    CountedPath("dict subscript", "subscript", DictionarySubscript),
    CountedPath("cycle", "cycle", partial(Cycle, live=0)),
    CountedPath("cycle beside 10,000 live", "cycle", partial(Cycle, live=LIVE)),
    CountedPath("batch cycle 64x80", "cycle", BatchCycle, turns=4),
    CountedPath("register + unregister", "cycle", RegisterCache),
    CountedPath("lookup hit", "lookup", partial(Lookup, live=LIVE, bound=True)),
    CountedPath("lookup miss", "lookup", partial(Lookup, live=LIVE, bound=False)),
    CountedPath("lookup_many", "key", partial(LookupMany, live=LIVE), turns=4),
    CountedPath("remove_cache_keys", "key", RemoveCacheKeys, turns=4),
    CountedPath("deallocate_many", "cache", DeallocateMany, turns=4),
    CountedPath("copy_cache 4KiB", "copy", CopyCache),
    CountedPath("pull 4KiB", "pull", Pull),
    CountedPath("pull_many 4KiB", "key", PullMany, turns=4),
    CountedPath("pull_blocks", "block", PullBlocks, turns=4),
)
