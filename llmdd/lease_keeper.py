"""The heartbeat of who expects keys: renews their leases until they were pulled (lifecycle, rule 17)."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import TypeAlias

from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex
from llmdd._core.lease_calls import LeaseCalls
from llmdd._core.status import LLMException, LLMStatusCode

_logger = logging.getLogger("llmdd")

#: How often a lease is renewed in its length. One renewal that is late, or lost, does not let it lapse.
RENEWALS_IN_A_LEASE = 3

#: Renewals that are nearly due go with those that are.
_TOGETHER_S = 0.005

Key: TypeAlias = CacheKey | CacheKeyByIdAndIndex


class _Kept:
    """A key whose lease is kept."""

    def __init__(self, key: Key, lease_ms: int) -> None:
        self.key = key
        self.lease_ms = lease_ms
        self.due = 0.0  # when it is to be renewed next, on the monotonic clock
        self.was_found = False


class LeaseKeeper:
    """Renews the leases of keys, from a thread of its own, until it is closed.

    A key that does not exist yet is looked for until it does; one that was found and is no more has been pulled, or
    removed, or its lease was over: it is kept no longer.

    Parameters
    ----------
    manager
        By which the leases are renewed.
    """

    def __init__(self, manager: LeaseCalls) -> None:
        self._manager = manager
        self._kept: dict[Hashable, _Kept] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"llmdd leases {manager.cluster_id}", daemon=True)
        self._thread.start()

    def keep(self, keys: Iterable[Key], lease_ms: int) -> None:
        """Renew these too, at once and from now on."""
        with self._changed:
            for key in keys:
                self._kept[_named(key)] = _Kept(key, lease_ms)
            self._changed.notify_all()

    def let_lapse(self, keys: Iterable[Key]) -> None:
        """Renew these no more."""
        with self._changed:
            for key in keys:
                self._kept.pop(_named(key), None)

    def pulled(self, key: object) -> None:
        """A key was found by a pull, after which it may be gone."""
        if isinstance(key, (CacheKey, CacheKeyByIdAndIndex)) and (kept := self._kept.get(_named(key))) is not None:
            kept.was_found = True

    @property
    def kept(self) -> list[Key]:
        """The keys whose leases are kept now."""
        with self._changed:
            return [kept.key for kept in self._kept.values()]

    def close(self) -> None:
        """End, from any thread but its own. Again is nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (due := self._await_due()) is not None:
                self._renew(due)
        except LLMException as error:
            if error.status_code is not LLMStatusCode.LLM_ENGINE_FINALIZED:
                raise

    def _await_due(self) -> list[_Kept] | None:
        """Those that are to be renewed, when there are any; None when the keeper is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due = [kept for kept in self._kept.values() if kept.due <= now + _TOGETHER_S]
                if due:
                    return due
                first = min((kept.due for kept in self._kept.values()), default=None)
                self._changed.wait(None if first is None else first - now)
            return None

    def _renew(self, due: list[_Kept]) -> None:
        by_lease: dict[int, list[_Kept]] = defaultdict(list)
        began = time.monotonic()
        for kept in due:
            by_lease[kept.lease_ms].append(kept)
            # From the begin: what a cluster that does not answer takes of the time is not the others' loss.
            kept.due = began + kept.lease_ms / 1000 / RENEWALS_IN_A_LEASE
        for lease_ms, together in by_lease.items():
            codes = self._manager.renew_leases([kept.key for kept in together], lease_ms)
            with self._changed:
                for kept, code in zip(together, codes.tolist(), strict=True):
                    self._note(kept, code)

    def _note(self, kept: _Kept, code: int) -> None:
        if code == LLMStatusCode.LLM_SUCCESS:
            kept.was_found = True
        elif code == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST and kept.was_found:
            name = _named(kept.key)
            if self._kept.get(name) is kept:
                del self._kept[name]
                _logger.debug("the lease of %s is kept no longer: it was found, and is no more", kept.key)


def _named(key: Key) -> Hashable:
    """What is the same for keys that name the same."""
    if isinstance(key, CacheKey):
        return key.cluster_id, key.req_id, key.model_id, key.prefix_id
    return key.cluster_id, key.cache_id, key.batch_index
