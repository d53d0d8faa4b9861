"""What a program does with its caches (api §1.11)."""

from __future__ import annotations

from llmdd._core.store import CacheStore


class CacheManager(CacheStore):
    """The caches of one initialised instance; :attr:`LLMDataDist.cache_manager` gives it.

    Every method may be called from any thread. A call that is refused changes nothing.

    Besides the calls of LLM-DataDist there are :meth:`lookup`, :meth:`pool_usage`, :attr:`live_caches`,
    :attr:`live_keys`, :meth:`paused` and :meth:`check`.
    """

    __slots__ = ()
