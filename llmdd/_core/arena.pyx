# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Laying an arena out (see ``arena.pxd``)."""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy, memset

from llmdd._core.layout cimport (
    CACHE_LINE,
    HEADER_BYTES,
    INDEX_OVERFLOW,
    LAYOUT_VERSION_NUMBER,
    MORE_PEER_WORDS,
    POOL_COUNT,
    RELEASED_LEVELS,
    ArenaHeader,
    IndexEntry,
    PageTree,
    PinWords,
    ReferenceSlot,
    Slot,
    header_of,
)
from llmdd._core.page_pool cimport page_tree_bytes, page_tree_init
from llmdd._core.tables cimport SPEC_CHECKSUM_BITS

cdef const char *MAGIC = b"llmdd-kv"

cdef enum:
    PAGE = 4096
    FIRST_INDEX_BITS = 10
    MAX_INDEX_HOMES = 1 << 29
    MAX_SLOTS = 64 * 64 * 64 * 64


cdef inline uint64_t reserve(uint64_t *end, uint64_t size) noexcept nogil:
    """The offset of `size` bytes at the end of what is planned so far, which grows by them."""
    cdef uint64_t offset = end[0]
    end[0] = (offset + size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    return offset


cdef inline uint64_t whole_pages(uint64_t size) noexcept nogil:
    return (size + PAGE - 1) // PAGE * PAGE


cdef void plan_arena(ArenaHeader *header, const Capacities *capacities, const PoolSize *pools) noexcept nogil:
    """Where everything will lie, and how large the two segments are."""
    cdef uint64_t end = HEADER_BYTES
    cdef uint64_t words = 64 * 64 * 64
    cdef int i
    memset(header, 0, sizeof(ArenaHeader))
    memcpy(header.magic, MAGIC, 8)
    header.layout_version = LAYOUT_VERSION_NUMBER
    header.spec_checksum = SPEC_CHECKSUM_BITS
    header.slot_capacity = capacities.slots
    header.index_capacity = capacities.keys
    header.record_capacity = capacities.records
    header.word_capacity = capacities.words
    header.index_offset = reserve(&end, (capacities.keys + INDEX_OVERFLOW) * sizeof(IndexEntry))
    header.slots_offset = reserve(&end, capacities.slots * sizeof(Slot))
    header.free_slots_offset = reserve(&end, capacities.slots * 4)
    header.registrations_offset = reserve(&end, capacities.slots * 4)
    header.records_offset = reserve(&end, capacities.records * CACHE_LINE)
    header.record_tree.offset = reserve(&end, page_tree_bytes(capacities.records))
    header.word_tree.offset = reserve(&end, page_tree_bytes(capacities.words))
    for i in range(POOL_COUNT):
        if pools[i].memory_size:
            header.pools[i].configured = 1
            header.pools[i].page_shift = pools[i].page_shift
            header.pools[i].tree.pages = pools[i].memory_size >> pools[i].page_shift
            header.pools[i].bytes = header.pools[i].tree.pages << pools[i].page_shift
            header.pools[i].tree.offset = reserve(&end, page_tree_bytes(header.pools[i].tree.pages))
            header.pools[i].tenants = reserve(&end, header.pools[i].tree.pages * 4)
    header.control_bytes = end = whole_pages(end)
    # Every level in full, so that no bit a peer sets can lead the owner outside.
    for i in range(RELEASED_LEVELS):
        # Behind the last word of the highest level there is the release event.
        header.released_offsets[i] = reserve(&end, (words + (i == RELEASED_LEVELS - 1)) * 8)
        words //= 64
    header.reference_slots_offset = reserve(&end, capacities.slots * sizeof(ReferenceSlot))
    header.more_pins_offset = reserve(&end, capacities.slots * MORE_PEER_WORDS * sizeof(PinWords))
    header.words_offset = reserve(&end, capacities.words * CACHE_LINE)
    header.references_bytes = whole_pages(end) - header.control_bytes


cdef void init_arena(char *arena, const ArenaHeader *plan) noexcept nogil:
    """An empty arena over zeroed memory."""
    cdef ArenaHeader *header = header_of(arena)
    cdef PageTree *tree
    cdef int i
    memcpy(header, plan, sizeof(ArenaHeader))
    header.index_bits = FIRST_INDEX_BITS
    header.next_cache_id = 1
    page_tree_init(arena, &header.record_tree, plan.record_tree.offset, plan.record_capacity)
    page_tree_init(arena, &header.word_tree, plan.word_tree.offset, plan.word_capacity)
    for i in range(POOL_COUNT):
        if plan.pools[i].configured:
            tree = &header.pools[i].tree
            page_tree_init(arena, tree, plan.pools[i].tree.offset, plan.pools[i].tree.pages)


cdef inline void copy_tree(PageTree *known, const PageTree *tree) noexcept nogil:
    known.offset = tree.offset
    known.pages = tree.pages
    known.words = tree.words


cdef void copy_header(ArenaHeader *known, const ArenaHeader *header) noexcept nogil:
    """What a peer reads once of a header: all that stands still since before anybody could attach. The rest is zero."""
    cdef int i
    memset(known, 0, sizeof(ArenaHeader))
    memcpy(known, header, <const char *>&header.pools - <const char *>header)
    for i in range(POOL_COUNT):
        known.pools[i].configured = header.pools[i].configured
        known.pools[i].page_shift = header.pools[i].page_shift
        known.pools[i].bytes = header.pools[i].bytes
        known.pools[i].address = header.pools[i].address
        known.pools[i].tenants = header.pools[i].tenants
        copy_tree(&known.pools[i].tree, &header.pools[i].tree)
    copy_tree(&known.record_tree, &header.record_tree)
    copy_tree(&known.word_tree, &header.word_tree)


cdef str what_is_wrong(const ArenaHeader *header, uint64_t control_bytes, uint64_t references_bytes):
    """Why a peer cannot use the arena with this header; empty if it can.

    Laid out again from its capacities, the arena must come out the same: so every offset lies inside its segment.
    """
    cdef Capacities capacities
    cdef PoolSize[POOL_COUNT] pools
    cdef ArenaHeader again
    cdef int i
    if memcmp(header.magic, MAGIC, 8) != 0:
        return "it does not begin like an llmdd arena"
    if header.layout_version != LAYOUT_VERSION_NUMBER:
        return f"its layout has version {header.layout_version}, this process has {LAYOUT_VERSION_NUMBER}"
    if header.spec_checksum != SPEC_CHECKSUM_BITS:
        return f"its spec has checksum {header.spec_checksum:016x}, this process has {SPEC_CHECKSUM_BITS:016x}"
    if header.slot_capacity > MAX_SLOTS or header.index_capacity > MAX_INDEX_HOMES:
        return "its capacities are larger than any arena's"
    if header.record_capacity > 1 << 32 or header.word_capacity > 1 << 32:
        return "its capacities are larger than any arena's"
    capacities.slots = header.slot_capacity
    capacities.keys = header.index_capacity
    capacities.records = header.record_capacity
    capacities.words = header.word_capacity
    for i in range(POOL_COUNT):
        if header.pools[i].configured:
            if header.pools[i].page_shift > 40 or header.pools[i].bytes >> header.pools[i].page_shift > 1 << 32:
                return "its pools are larger than any arena's"
            if header.pools[i].bytes == 0 or header.pools[i].bytes != (
                header.pools[i].tree.pages << header.pools[i].page_shift
            ):
                return "the size of a pool is not that of its pages"
        pools[i].memory_size = header.pools[i].bytes if header.pools[i].configured else 0
        pools[i].page_shift = header.pools[i].page_shift
    plan_arena(&again, &capacities, pools)
    if again.control_bytes != control_bytes or again.references_bytes != references_bytes:
        return "its segments are not as large as its header says"
    if (
        again.index_offset != header.index_offset
        or again.slots_offset != header.slots_offset
        or again.registrations_offset != header.registrations_offset
        or again.records_offset != header.records_offset
        or again.reference_slots_offset != header.reference_slots_offset
        or again.more_pins_offset != header.more_pins_offset
        or again.words_offset != header.words_offset
        or memcmp(again.released_offsets, header.released_offsets, sizeof(again.released_offsets)) != 0
    ):
        return "its header contradicts itself"
    for i in range(POOL_COUNT):
        if again.pools[i].tenants != header.pools[i].tenants:
            return "its header contradicts itself"
    return ""
