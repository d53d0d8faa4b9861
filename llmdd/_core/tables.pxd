"""The tables compiled from ``spec/``, and the one way to look an outcome up."""

include "spec_tables.pxi"


cdef inline spec_outcome cache_outcome(unsigned int state, unsigned int event, unsigned int guards) noexcept nogil:
    """What `event` does to a cache in `state` when the guards whose bits are set hold."""
    return CACHE_OUTCOMES[((state * CACHE_EVENT_COUNT + event) << CACHE_GUARD_BITS) | guards]


cdef inline spec_outcome batch_slot_outcome(unsigned int state, unsigned int event, unsigned int guards) noexcept nogil:
    """What `event` does to a batch slot in `state` when the guards whose bits are set hold."""
    return BATCH_SLOT_OUTCOMES[((state * BATCH_SLOT_EVENT_COUNT + event) << BATCH_SLOT_GUARD_BITS) | guards]
