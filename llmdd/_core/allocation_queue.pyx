# cython: language_level=3
"""Who waits for memory (see ``allocation_queue.pxd``)."""

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cython cimport final
from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.key_index cimport most_entries
from llmdd._core.layout cimport (
    CACHE_LINE,
    INLINE_WORDS,
    ArenaHeader,
    Pool,
    header_of,
    key_words,
    record_bytes,
    release_event_of,
    tensor_words,
)
from llmdd._core.lifecycle cimport (
    ACCEPTED,
    KEY_ALREADY_BOUND,
    NO_ARENA_ROOM,
    NO_POOL_MEMORY,
    Allocation,
    Refusal,
    allocate,
    reap,
)
from llmdd._core.node_memory cimport NodeMemory, enter_before
from llmdd._core.references cimport anything_released
from llmdd._core.release_event cimport (
    expect_release,
    give_turn,
    sleep_until_release,
    sleep_until_turn,
)
from llmdd._core.segments cimport Mapping
from llmdd._core.status import LLMStatusCode, failure

cdef enum:
    REAP_LIMIT = 4096

# How long a thread sleeps at a time. It is woken for whatever concerns it; but a peer may die before it wakes us, or take
# our word without waking anybody, and the kernel may give another thread the signal that Python's main thread waits for.
# Room in the index, where a key went and its cache stays, is announced by nobody: it is so seldom what is missing.
cdef int64_t LONGEST_SLEEP_NS = 50_000_000


@final
cdef class AllocationQueue:
    """The allocations that wait for one pool.

    Parameters
    ----------
    pool : int
        Which: a Placement.
    """

    def __cinit__(self, unsigned int pool):
        self.pool = pool

    cdef bint is_empty(self) noexcept:
        cdef bint empty
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        empty = self.first == NULL
        leave_critical_section(&section)
        return empty

    cdef bint is_first(self, const Waiter *waiter) noexcept:
        cdef bint first
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        first = self.first == waiter
        leave_critical_section(&section)
        return first

    cdef int require_open(self, str tag) except -1:
        cdef bint closed
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        closed = self.closed
        leave_critical_section(&section)
        if closed:
            raise failure(tag, LLMStatusCode.LLM_ENGINE_FINALIZED, "llm datadist was finalized while the call waited for memory")
        return 0

    cdef void join(self, Waiter *waiter) noexcept:
        """Come last. Under the store's lock, so that nobody joins between another's look at the queue and its joining."""
        cdef CriticalSection section
        waiter.next = NULL
        waiter.turn = 0
        enter_critical_section(&section, <PyObject *>self)
        if self.last == NULL:
            self.first = waiter
        else:
            self.last.next = waiter
        self.last = waiter
        self.length += 1
        leave_critical_section(&section)

    cdef void leave(self, Waiter *waiter) noexcept:
        """Served, or not: whoever comes next is the first, if this was."""
        cdef Waiter *before = NULL
        cdef Waiter *found
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        found = self.first
        while found != waiter:
            before, found = found, found.next
        if before == NULL:
            self.first = waiter.next
        else:
            before.next = waiter.next
        if self.last == waiter:
            self.last = before
        self.length -= 1
        # Here, where the next one cannot leave: what is written to is on its stack.
        if before == NULL and self.first != NULL:
            give_turn(&self.first.turn)
        leave_critical_section(&section)

    cdef void close(self) noexcept:
        """Nobody waits any more. The first is to be woken by the arena's event, after this."""
        cdef Waiter *waiter
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        self.closed = True
        waiter = self.first
        while waiter != NULL:
            give_turn(&waiter.turn)
            waiter = waiter.next
        leave_critical_section(&section)

    cdef Refusal allocate(self, NodeMemory memory, str tag, Allocation *request) except *:
        """Make a cache, as soon as there is room and those who came before have got theirs.

        What no release could help is refused at once.
        """
        cdef Waiter waiter
        cdef Refusal refusal = ACCEPTED
        cdef Refusal never
        cdef Mapping arena
        enter_before(memory, tag, request.deadline)
        try:
            reap(memory.base, REAP_LIMIT)
            request.only_check = not self.is_empty()
            refusal = allocate(memory.base, request)
            if refusal == KEY_ALREADY_BOUND or (refusal == ACCEPTED and not request.only_check):
                return refusal
            if refusal == ACCEPTED:
                refusal = NO_POOL_MEMORY        # whoever waits comes first
            never = refusal_for_ever(memory.base, request)
            if never != ACCEPTED:
                return never
            if memory.lock.depth > 1:
                return refusal                  # this thread holds the store still: nobody could release anything
            request.only_check = False
            arena = memory.arena                # the event stays mapped, whoever closes the store meanwhile
            self.join(&waiter)
        finally:
            memory.leave()
        try:
            while self.wait(memory, tag, &waiter, request, &refusal):
                pass
        finally:
            self.leave(&waiter)
        return refusal

    cdef int wait(
        self, NodeMemory memory, str tag, Waiter *waiter, Allocation *request, Refusal *refusal
    ) except -1:
        """Try, if it is our turn; else sleep, until there is reason to try. False: there is an answer."""
        cdef uint64_t *event = NULL
        cdef bint first = self.is_first(waiter)
        cdef int64_t left
        self.require_open(tag)
        if first:
            enter_before(memory, tag, request.deadline)
            try:
                reap(memory.base, REAP_LIMIT)
                refusal[0] = allocate(memory.base, request)
                if refusal[0] == ACCEPTED or refusal[0] == KEY_ALREADY_BOUND:
                    return False
                # Who releases under the lock comes after this; of who does it without, one of us sees the other.
                event = release_event_of(memory.base, header_of(memory.base))
                expect_release(event, self.pool)
                if anything_released(memory.base):
                    return True
            finally:
                memory.leave()
        # Again, now that close would wake us.
        self.require_open(tag)
        left = request.deadline - monotonic_nanoseconds()
        if left <= 0:
            raise failure(
                tag,
                LLMStatusCode.LLM_TIMEOUT,
                f"the {'DEVICE' if self.pool else 'HOST'} pool had no room for {request.num_tensors} tensors of "
                f"{request.tensor_bytes} bytes within sync_kv_timeout, {memory.timeout_ns // 1000000} ms",
            )
        left = min(left, LONGEST_SLEEP_NS)
        with nogil:
            if first:
                sleep_until_release(event, self.pool, left)
            else:
                sleep_until_turn(&waiter.turn, left)
        PyErr_CheckSignals()
        return True


cdef Refusal refusal_for_ever(char *arena, const Allocation *request) noexcept nogil:
    """What the request is refused with however much is released: it is more than the whole pool or arena has."""
    cdef ArenaHeader *header = header_of(arena)
    cdef Pool *pool = &header.pools[request.placement]
    cdef uint64_t page = <uint64_t>1 << pool.page_shift
    cdef uint64_t words = key_words(request.key_count) + request.key_count * tensor_words(request.num_tensors)
    if (request.tensor_bytes + page - 1) // page > pool.tree.pages // request.num_tensors:
        return NO_POOL_MEMORY
    if record_bytes(request.key_count, request.num_tensors, True) > header.record_capacity * CACHE_LINE:
        return NO_ARENA_ROOM
    if words > INLINE_WORDS and words * 8 > header.word_capacity * CACHE_LINE:
        return NO_ARENA_ROOM
    if request.key_count + 1 > most_entries(header):
        return NO_ARENA_ROOM
    return ACCEPTED
