"""The arena: one region, addressed by offsets, that holds the lifecycle of every cache of a node.

Two segments, mapped one behind the other so that one base address serves both::

    control     header | key index | slots | free slots | registrations | record units | page trees | tenants of pages
                                                                                          peers: read-only
    references  released bitmap | reference slots | pins of further peers | word units   peers: read and write

Everything is sized by capacity at start and zero until used, so an untouched page costs nothing. Zero means free,
empty, unused everywhere.

A *slot* is the home of one cache at a time. What its tenant is (descriptor, keys, place in the pool) stands in the
control segment, where only the owner writes, and so does the id reference, which only the owner drops. The references
that peers drop stand in the references segment: words that carry the tenant's generation in the upper half and bits that
are only ever cleared in the lower half. So a peer that runs wild can give up keys, which is its right, but cannot free
what the owner holds.

A tensor consists of *rows*: of batch slots in a continuous cache, of blocks in a blocks cache. Its memory is in a pool, or
it is *registered*: the caller's own, somewhere in the owner's process.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from llmdd._core.atomic cimport atomic_load_flag

cdef enum:
    LAYOUT_VERSION_NUMBER = 4
    CACHE_LINE = 64
    HEADER_BYTES = 4096
    POOL_COUNT = 2                 # indexed by Placement: 0 HOST, 1 DEVICE
    PEER_LIMIT = 1024              # pin bits of a reference slot
    PEER_WORDS = 16                # words of 64 bits that hold them
    MORE_PEER_WORDS = 15
    WORD_BITS = 32                 # reference bits of a word; the generation has the other half
    INLINE_WORDS = 6               # reference words inside the reference slot
    INDEX_OVERFLOW = 256           # entries behind the last home, so that probing never wraps
    RELEASED_LEVELS = 4            # 64**4 slots at most
    FREE_REGISTRATION = 1 << 30    # larger than any number of a slot

cdef enum KeyKind:
    KEY_NONE = 0
    KEY_REQUEST = 1
    KEY_PREFIX = 2
    KEY_BLOCKS = 3
    KEY_CACHE_ID = 4

cdef struct PageTree:
    # A bitmap of pages with a tree of free runs above it (page_pool.pxd).
    uint64_t offset                # of the bitmap; the tree's levels follow it
    uint64_t pages
    uint64_t words                 # a power of two
    uint64_t free_pages

cdef struct Pool:
    uint64_t configured
    uint64_t page_shift
    uint64_t bytes                 # whole pages only
    uint64_t address               # of the pool in its owner's process
    uint64_t tenants               # arena offset of a number for each page: whose slot it last went to, plus 1
    PageTree tree

cdef struct IndexEntry:
    uint64_t id
    uint64_t model_id
    uint32_t tag                   # 29 bits of the hash above 3 bits of KeyKind; 0: empty
    uint32_t slot
    uint32_t batch_index
    uint32_t generation

cdef struct KeyRecord:
    uint64_t id
    uint64_t model_id
    uint32_t kind
    uint32_t leased                # the batch slots of this tenant have lease words (leases.pxd)

cdef struct Slot:
    uint64_t gate                  # generation << 1 | open
    uint64_t local_pins            # the owner's own transfers and views
    uint32_t indexed               # keys that are in the index, where one word is enough
    uint8_t tenant
    uint8_t held                   # the id reference
    uint8_t quarantined            # it has no tenant, but an evicted peer may still read what the last one had here
    # From here on nothing changes while somebody may have it pinned, be it in quarantine: copy_record copies it.
    uint8_t contiguous             # one run of pages holds every tensor
    int64_t cache_id
    uint64_t words                 # arena offset of the reference words
    uint64_t keys                  # arena offset of key_count KeyRecords
    uint64_t place                 # contiguous: pool offset of tensor 0; else arena offset of an array, which holds
                                   # pool offsets or, registered, addresses in the owner's process
    uint64_t row_bytes             # bytes of one row of one tensor
    uint64_t row_count             # batch slots, or blocks
    uint64_t tensor_stride         # bytes that a tensor takes: whole pages in a pool
    uint32_t num_tensors
    uint32_t key_count             # batch slots that may be keyed; a blocks cache has one at most
    uint32_t record_units          # 0: the records are inline
    uint32_t word_units            # 0: the words are inline
    uint32_t registration          # position among the registrations, of a registered cache
    uint8_t placement
    uint8_t blocks                 # the rows are blocks
    uint8_t registered             # the memory is the caller's
    uint8_t accessible             # to peers in remote mode (api §3.9)
    KeyRecord first_key

cdef struct PinWords:
    uint64_t readers               # one bit for each local peer that reads; those of evicted ones hold nothing
    uint64_t writers               # one for each that writes: these hold the memory as long as it lives

cdef struct ReferenceSlot:
    # One cache line. The pins of peers beyond the first 64 stand elsewhere, so that those who are not there cost nothing.
    PinWords pins
    uint64_t words[INLINE_WORDS]

cdef struct ArenaHeader:
    char magic[8]
    uint64_t layout_version
    uint64_t spec_checksum
    uint64_t incarnation
    uint64_t cluster_id
    uint64_t remote_accessible
    uint64_t control_bytes
    uint64_t references_bytes
    uint64_t slot_capacity
    uint64_t index_capacity        # homes, a power of two
    uint64_t index_offset
    uint64_t slots_offset
    uint64_t free_slots_offset
    uint64_t registrations_offset  # a number for each registered cache: its slot, plus 1; else FREE_REGISTRATION, and
                                   # behind it the next one that is nobody's, plus 1
    uint64_t records_offset
    uint64_t record_capacity       # units of a cache line
    uint64_t released_offsets[RELEASED_LEVELS]
    uint64_t reference_slots_offset
    uint64_t more_pins_offset      # MORE_PEER_WORDS of PinWords for each slot
    uint64_t words_offset
    uint64_t word_capacity         # units of a cache line
    uint64_t hash_seed[2]
    Pool pools[POOL_COUNT]
    PageTree record_tree
    PageTree word_tree
    # What changes with every call stands apart from what peers read once.
    uint64_t padding[8]
    uint64_t index_version         # odd while entries move
    uint64_t index_bits            # the index has 2**index_bits homes now
    uint64_t index_count
    int64_t next_cache_id
    uint64_t slots_used            # slots that ever had a tenant
    uint64_t free_slot_count
    uint64_t live_caches
    uint64_t live_keys
    uint64_t registrations         # positions that were ever used
    uint64_t free_registration     # the head of those that are nobody's now, plus 1
    uint64_t peer_words            # pin words of a reference slot in which a peer was ever given a bit
    uint64_t evicted[PEER_WORDS]   # peers whose link is down though they live: as readers they pin nothing
    uint64_t leased_caches         # tenants that have lease words
    # References that went, by how: each is counted where the owner takes the key out of its index.
    uint64_t keys_dropped          # by transfers, or withdrawn
    uint64_t keys_withdrawn        # with their cache
    uint64_t keys_removed          # by remove_cache_key
    uint64_t keys_expired

cdef inline ArenaHeader *header_of(char *arena) noexcept nogil:
    return <ArenaHeader *>arena

cdef inline Slot *slot_at(char *arena, uint64_t slot) noexcept nogil:
    return <Slot *>(arena + header_of(arena).slots_offset) + slot

cdef inline void copy_record(Slot *copy, const Slot *slot) noexcept nogil:
    """What is written of a pinned slot's tenant. The rest of the slot changes meanwhile; of that only `held` is read.

    The look at the gate that confirmed the pin came after the gate was opened, and so after all of this was written.
    """
    memcpy(&copy.contiguous, &slot.contiguous, <const char *>(slot + 1) - <const char *>&slot.contiguous)
    # The owner may be dropping it: then the gate is closed after this, or the keys hold the cache still (protocol 9).
    copy.held = atomic_load_flag(&slot.held)

cdef inline ReferenceSlot *reference_slot_at(char *arena, uint64_t slot) noexcept nogil:
    return <ReferenceSlot *>(arena + header_of(arena).reference_slots_offset) + slot

cdef inline PinWords *pin_words(char *arena, const ArenaHeader *known, uint64_t slot, uint64_t number) noexcept nogil:
    """The pin words of peers [64 * number, 64 * (number + 1)). `known` is the header to be believed."""
    if number == 0:
        return &(<ReferenceSlot *>(arena + known.reference_slots_offset) + slot).pins
    return <PinWords *>(arena + known.more_pins_offset) + slot * MORE_PEER_WORDS + (number - 1)

cdef inline uint64_t *words_of(char *arena, Slot *slot) noexcept nogil:
    return <uint64_t *>(arena + slot.words)

cdef inline uint64_t batch_size_of(const Slot *slot) noexcept nogil:
    """A blocks cache has one batch slot, the whole of it (api §3.1)."""
    return 1 if slot.blocks else slot.row_count

cdef inline uint64_t record_of(const Slot *slot) noexcept nogil:
    """Arena offset of the record units: the keys come first in them, the places of tensors last."""
    return slot.keys if slot.key_count > 1 else slot.place

cdef inline uint32_t *registrations_of(char *arena) noexcept nogil:
    return <uint32_t *>(arena + header_of(arena).registrations_offset)

cdef inline KeyRecord *keys_of(char *arena, Slot *slot) noexcept nogil:
    return <KeyRecord *>(arena + slot.keys)

cdef inline bint is_leased(char *arena, Slot *slot) noexcept nogil:
    """Whether the tenant has lease words. Its records have been written."""
    return slot.key_count != 0 and keys_of(arena, slot).leased != 0

cdef inline uint64_t key_words(uint64_t key_count) noexcept nogil:
    """Words that hold `key_count` key bits."""
    return (key_count + WORD_BITS - 1) // WORD_BITS

cdef inline uint64_t tensor_words(uint64_t num_tensors) noexcept nogil:
    """Words that hold one key's bits of tensors still to be transferred."""
    return (num_tensors + WORD_BITS - 1) // WORD_BITS

cdef inline uint32_t *indexed_of(char *arena, Slot *slot) noexcept nogil:
    """The owner's note of which keys have an index entry: one number per key word, bits as in the word."""
    if slot.key_count <= WORD_BITS:
        return &slot.indexed
    return <uint32_t *>(arena + slot.keys + slot.key_count * sizeof(KeyRecord))
