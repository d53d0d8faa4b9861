# cython: language_level=3, boundscheck=False, wraparound=False
"""Leases of keys (see ``lease_calls.pxd``)."""

from cpython.object cimport PyObject
from cython cimport final
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

import numpy as np

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.bulk_calls cimport BulkCalls, Pulls, given_pulls
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.distant_peer cimport DistantPeer
from llmdd._core.integer_arrays cimport data_of
from llmdd._core.layout cimport KEY_CACHE_ID, header_of
from llmdd._core.peer cimport Peer, PeerArena, status_of
from llmdd._core.renewals cimport renew_each
from llmdd._core.segments cimport Mapping
from llmdd._core.status import LLMStatusCode, invalid
from llmdd._core.transfer cimport (
    BY_KEY,
    LINK_TAKEN_DOWN,
    LOCALLY_REFUSED,
    NOT_BEGUN,
    REMOTE_MISSING,
    TRANSFERRED,
    Transfer,
    TransferResult,
)
from llmdd._core.validation cimport checked_lease_ms

cdef enum:
    HOST = 0
    DEVICE = 1
    RENEWED_IN_A_TURN = 256


@final
cdef class NamedKeys:
    """The keys of one cluster, as transfers name what they are from."""

    def __cinit__(self, list positions):
        self.positions = positions
        self.count = len(positions)
        self.named = <Transfer *>calloc(self.count + 1, sizeof(Transfer))
        self.results = <TransferResult *>calloc(self.count + 1, sizeof(TransferResult))
        if self.named == NULL or self.results == NULL:
            raise MemoryError(f"{self.count * sizeof(Transfer)} bytes for {self.count} keys")

    def __dealloc__(self):
        free(self.named)
        free(self.results)


cdef class LeaseCalls(BulkCalls):
    def renew_leases(self, cache_keys, lease=None, *, cluster_id=None, model_id=0):
        """Let the leases of keys end so many milliseconds from now, of those that would end sooner.

        For keys of this cluster, and of linked ones: a peer on this host does it itself, the owner on another host is asked.
        A key that was bound without a lease stays so, and that is no error. The keys of a cluster that does not answer are
        not renewed, and hold up no other cluster's.

        Parameters
        ----------
        cache_keys : sequence of CacheKey or CacheKeyByIdAndIndex, or integer array or sequence of int, shape (n,)
            Keys; or request ids of one cluster and model, uint64.
        lease : int, optional
            Milliseconds from now, from 1 to 2**31 - 1. By default ``cache_key_lease`` of this instance.
        cluster_id : int, optional
            The cluster of request ids, uint64; needed with them, and with nothing else.
        model_id : int, default 0
            The model of request ids, uint64.

        Returns
        -------
        numpy.ndarray
            int64, shape (n,): for each key the value of an `LLMStatusCode`. ``LLM_SUCCESS``: the key is bound, and will be for
            so long. ``LLM_KV_CACHE_NOT_EXIST``: it is not bound, or its lease was over. ``LLM_NOT_YET_LINK``: its cluster is
            not linked, or has gone. ``LLM_TIMEOUT``, ``LLM_LINK_BUSY``: no answer within ``sync_kv_timeout``, or transfers
            had the link all that time; it may have been renewed or not.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None. Nothing was renewed.
        LLMException
            ``LLM_PARAM_INVALID``: no `lease`, where there is no ``cache_key_lease`` either; a `cluster_id` or `model_id` for
            keys that have their own.

        Examples
        --------
        >>> desc = CacheDesc(1, (2, 16), DataType.DT_FLOAT)
        >>> cache = manager.allocate_cache(desc, [CacheKey(1, 90), CacheKey(1, 91)], lease=60_000)
        >>> manager.renew_leases([CacheKey(1, 90), CacheKey(1, 92)], 120_000).tolist() == [
        ...     LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST]
        True
        """
        cdef int64_t deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        cdef Pulls pulls
        cdef NamedKeys keys
        cdef uint64_t lease_ms, i
        cdef dict clusters = {}
        self.memory.require_open("renew_leases")
        pulls = given_pulls(cache_keys, cluster_id, model_id, True, False)
        lease_ms = self.checked_lease(lease)
        for i in range(pulls.count):
            if self.name_source(pulls, i) is not None:
                pulls.results[i] = LOCALLY_REFUSED
            elif pulls.transfers[i].kind == KEY_CACHE_ID and <int64_t>pulls.transfers[i].id < 1:
                pulls.results[i] = REMOTE_MISSING
            else:
                clusters.setdefault(pulls.cluster_ids[i], []).append(i)
        groups = {cluster: NamedKeys(positions) for cluster, positions in clusters.items()}
        for cluster, group in groups.items():
            keys = <NamedKeys>group
            for i in range(keys.count):
                keys.named[i] = pulls.transfers[<uint64_t>keys.positions[i]]
                keys.named[i].addressing = BY_KEY
                keys.named[i].deadline = deadline
                keys.results[i] = NOT_BEGUN
            peer = self.linked(cluster)
            # Those on other hosts first: their answers come while the rest is done.
            if type(peer) is DistantPeer:
                keys.asked = (<DistantPeer>peer).renewals.ask(named_items(keys), lease_ms)
        for cluster, group in groups.items():
            keys = <NamedKeys>group
            if keys.asked is not None:
                take_answers(keys, keys.asked.answers(max(0, deadline - monotonic_nanoseconds()) / 1e9))
            elif cluster == self.cluster_id:
                self.renew_own(keys.named, keys.results, keys.count, lease_ms)
            else:
                self.renew_at(cluster, keys.named, keys.results, keys.count, lease_ms, deadline)
            for i in range(keys.count):
                pulls.results[<uint64_t>keys.positions[i]] = keys.results[i]
        return codes_of(pulls)

    def _checked_lease(self, lease):
        """Milliseconds of a lease that is to be renewed; ``LLM_PARAM_INVALID`` if there are none."""
        return self.checked_lease(lease)

    cdef uint64_t checked_lease(self, object lease) except 0:
        cdef uint64_t lease_ms = self.cache_key_lease if lease is None else checked_lease_ms(lease)
        if lease_ms == 0:
            raise invalid(
                "lease should be greater than 0 milliseconds: give it, or set cache_key_lease in the options of init"
            )
        return lease_ms

    cdef int renew_own(self, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms) except -1:
        """Keys of our own caches, as a peer on this host renews them, but for the pin."""
        cdef Mapping arena, host_pool, device_pool
        cdef CriticalSection section
        cdef uint64_t i
        enter_critical_section(&section, <PyObject *>self.memory)
        arena, host_pool, device_pool = self.memory.arena, self.memory.host_pool, self.memory.device_pool
        leave_critical_section(&section)
        if arena is None:
            self.memory.require_open("renew_leases")
        for i in range(count):
            named[i].arena = arena.base
            named[i].known = header_of(arena.base)
            named[i].pools[HOST] = host_pool.base if host_pool is not None else NULL
            named[i].pools[DEVICE] = device_pool.base if device_pool is not None else NULL
            named[i].broken = &self.never
            named[i].served = True
        with nogil:
            renew_each(named, results, count, lease_ms)
        return 0

    cdef int renew_at(
        self, uint64_t cluster_id, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms,
        int64_t deadline
    ) except -1:
        """Keys of a cluster on this host, so many in a turn of its link that nobody's transfer waits for long."""
        cdef uint64_t begin
        for begin in range(0, count, RENEWED_IN_A_TURN):
            self.renew_some_at(
                cluster_id, named + begin, results + begin, min(RENEWED_IN_A_TURN, count - begin), lease_ms, deadline
            )
        return 0

    cdef int renew_some_at(
        self, uint64_t cluster_id, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms,
        int64_t deadline
    ) except -1:
        cdef Peer peer = self.linked(cluster_id)
        cdef Peer following
        cdef uint64_t i
        while peer is not None:
            if type(peer) is not PeerArena:
                break                  # the link was made anew, another way: the next renewal goes there
            if not (<PeerArena>peer).renew_in_turn(named, results, count, lease_ms, deadline):
                return 0
            following = self.linked(cluster_id)
            if following is peer:
                break
            peer = following
        for i in range(count):
            if results[i] == NOT_BEGUN:
                results[i] = LINK_TAKEN_DOWN
        return 0

    def renew_for_peer(self, items, lease_ms):
        """Renew the leases of our keys that a peer on another host names (``link.messages.Renew``).

        Parameters
        ----------
        items : sequence of (kind, id, model_id, batch_index)
        lease_ms : int

        Returns
        -------
        list of bool
            Whether each key is bound, and its lease, if it has one, was renewed.
        """
        cdef NamedKeys keys = NamedKeys(list(range(len(items))))
        cdef uint64_t i
        cdef int64_t deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        for i in range(keys.count):
            keys.named[i].kind, keys.named[i].id, keys.named[i].model_id, keys.named[i].batch_index = items[i]
            keys.named[i].addressing = BY_KEY
            keys.named[i].deadline = deadline
            keys.results[i] = NOT_BEGUN
        self.renew_own(keys.named, keys.results, keys.count, lease_ms)
        return [keys.results[<uint64_t>position] == TRANSFERRED for position in range(keys.count)]


cdef list named_items(NamedKeys keys):
    """What each key names, for a message."""
    cdef uint64_t i
    cdef list items = []
    for i in range(keys.count):
        items.append((keys.named[i].kind, keys.named[i].id, keys.named[i].model_id, keys.named[i].batch_index))
    return items


cdef int take_answers(NamedKeys keys, object answers) except -1:
    """What the owner on another host has said of each key, or why it has not: a ``TransferResult`` by its name."""
    cdef uint64_t i
    for i in range(keys.count):
        keys.results[i] = answers[i]
    return 0


cdef object codes_of(Pulls keys):
    """How each ended."""
    cdef uint64_t i
    answer = np.zeros(keys.count, np.int64)
    cdef int64_t *codes = <int64_t *>data_of(answer)
    for i in range(keys.count):
        if keys.results[i] == LOCALLY_REFUSED:
            codes[i] = LLMStatusCode.LLM_PARAM_INVALID
        else:
            codes[i] = status_of(keys.results[i])
    return answer
