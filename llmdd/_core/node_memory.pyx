# cython: language_level=3
"""The memory of one node (see ``node_memory.pxd``)."""

import os

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from llmdd._core.arena cimport Capacities, PoolSize, init_arena, plan_arena
from llmdd._core.atomic cimport atomic_store_release, monotonic_nanoseconds
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.host_memory import available_bytes
from llmdd._core.layout cimport POOL_COUNT, ArenaHeader, header_of
from llmdd._core.segments cimport create_segment, map_arena, map_private, map_segment, seal_segment
from llmdd._core.status import LLMStatusCode, failure

cdef enum:
    HOST = 0
    DEVICE = 1


cdef class NodeMemory:
    """An arena and its pools, as memfds that peers may be given, or as private memory.

    Parameters
    ----------
    cluster_id : int
    pools : sequence of (memory_size, page_shift) or None
        The HOST and the DEVICE pool.
    remote_accessible : bool
        Whether remote mode is on (api §3.9). Linked peers may write into the pools all the same: what either mode lets
        them do (push, transfer_cache_async) they do without the owner.
    timeout_ms : int
        How long a call waits for the lock.
    slot_capacity, key_capacity : int
        How many caches, and how many keys and caches together, can live at once.
    shared : bool
        False for private memory, which no peer can be given.
    """

    def __cinit__(
        self, *, cluster_id, pools, remote_accessible, timeout_ms, uint64_t slot_capacity, uint64_t key_capacity, shared
    ):
        cdef ArenaHeader plan
        cdef Capacities capacities
        cdef PoolSize[POOL_COUNT] sizes
        cdef int i
        self.fds = []
        self.lock = TimedLock()
        self.timeout_ns = timeout_ms * 1000000
        capacities.slots = slot_capacity
        capacities.keys = 1024
        while capacities.keys < key_capacity:
            capacities.keys *= 2
        capacities.records = 4 * slot_capacity
        capacities.words = 4 * slot_capacity
        for i in range(POOL_COUNT):
            sizes[i].memory_size, sizes[i].page_shift = pools[i] or (0, 0)
            self.configured[i] = sizes[i].memory_size != 0
        plan_arena(&plan, &capacities, sizes)
        plan.cluster_id = cluster_id
        plan.remote_accessible = bool(remote_accessible)
        plan.incarnation = int.from_bytes(os.urandom(8), "little")
        plan.hash_seed[0] = int.from_bytes(os.urandom(8), "little")
        plan.hash_seed[1] = int.from_bytes(os.urandom(8), "little")
        try:
            self.map_all(&plan, shared)
        except BaseException:
            self.close_segments()
            raise
        self.base = self.arena.base
        for i in range(POOL_COUNT):
            plan.pools[i].address = <uint64_t>self.pools[i]
        init_arena(self.base, &plan)

    cdef int map_all(self, const ArenaHeader *plan, bint shared) except -1:
        if not shared:
            self.arena = map_private(plan.control_bytes + plan.references_bytes)
        else:
            self.fds = [create_segment("llmdd control", plan.control_bytes)]
            self.fds.append(create_segment("llmdd references", plan.references_bytes))
            self.arena = map_arena(self.fds[0], plan.control_bytes, self.fds[1], plan.references_bytes, True)
            seal_segment(self.fds[0], False)
            seal_segment(self.fds[1], True)
        self.host_pool = self.obtain_pool(plan.pools[HOST].bytes, shared)
        self.device_pool = self.obtain_pool(plan.pools[DEVICE].bytes, shared)
        self.pools[HOST] = self.host_pool.base if self.host_pool is not None else NULL
        self.pools[DEVICE] = self.device_pool.base if self.device_pool is not None else NULL
        return 0

    cdef Mapping obtain_pool(self, uint64_t size, bint shared):
        """The memory of one pool, obtained now rather than when it is first touched: then it would be too late to say no."""
        cdef Mapping mapping
        if size == 0:
            return None
        left = available_bytes()
        if size > left:
            raise failure(
                "LLMDataDist.init",
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                f"a memory pool of {size} bytes was asked for and the machine has {left} left",
            )
        if not shared:
            return map_private(size)
        fd = create_segment("llmdd pool", size)
        self.fds.append(fd)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            raise failure(
                "LLMDataDist.init", LLMStatusCode.LLM_OUT_OF_MEMORY, f"a memory pool of {size} bytes: {error}"
            ) from error
        mapping = map_segment(fd, size, True)
        seal_segment(fd, True)
        return mapping

    cdef int enter(self, str tag) except -1:
        """Take the lock for the call named `tag`."""
        self.require_open(tag)
        if not self.lock.acquire(self.timeout_ns):
            raise lock_was_held(self, tag)
        if is_closed(self):
            self.lock.release()
            self.require_open(tag)
        return 0

    cdef void leave(self) noexcept:
        self.lock.release()

    cdef int require_open(self, str tag) except -1:
        if is_closed(self):
            raise failure(tag, LLMStatusCode.LLM_ENGINE_FINALIZED, "llm datadist is not initialized any more")
        return 0

    cdef Mapping pool_mapping(self, uint64_t placement):
        return self.device_pool if placement == DEVICE else self.host_pool

    cdef int close_segments(self) except -1:
        cdef CriticalSection section
        cdef list fds
        cdef list none = []
        enter_critical_section(&section, <PyObject *>self)
        fds, self.fds = self.fds, none
        leave_critical_section(&section)
        for fd in fds:
            os.close(fd)
        return 0

    def close(self):
        """Give everything up once the call in progress has ended. What transfers and views still use stays mapped for them."""
        if is_closed(self):
            return
        if not self.lock.acquire(1 << 60):
            raise AssertionError("the lock was not free within 36 years")
        atomic_store_release(&self.closed, 1)
        self.lock.release()
        self.abandon()

    def abandon(self):
        """Give everything up at once, without a look at the lock: in a forked child, whose parent's threads are not there."""
        cdef CriticalSection section
        cdef Mapping arena, host_pool, device_pool
        atomic_store_release(&self.closed, 1)
        self.close_segments()
        enter_critical_section(&section, <PyObject *>self)
        arena, host_pool, device_pool = self.arena, self.host_pool, self.device_pool
        self.base = NULL
        self.arena = self.host_pool = self.device_pool = None
        leave_critical_section(&section)
        # What nobody uses any more is unmapped here, in no critical section: that takes its time, and others wait.


cdef int enter_before(NodeMemory memory, str tag, int64_t deadline) except -1:
    """As NodeMemory.enter, for a call whose time began before."""
    memory.require_open(tag)
    if not memory.lock.acquire(deadline - monotonic_nanoseconds()):
        raise lock_was_held(memory, tag)
    if is_closed(memory):
        memory.lock.release()
        memory.require_open(tag)
    return 0


cdef object lock_was_held(NodeMemory memory, str tag):
    return failure(
        tag,
        LLMStatusCode.LLM_TIMEOUT,
        f"another call held the caches for longer than sync_kv_timeout, {memory.timeout_ns // 1000000} ms",
    )
