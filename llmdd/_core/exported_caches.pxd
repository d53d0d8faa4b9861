"""The caches of one node, as the links let peers at them: exported, pinned, held and let go."""

from libc.stdint cimport uint64_t

from llmdd._core.layout cimport PEER_WORDS
from llmdd._core.node_caches cimport NodeCaches


cdef class ExportedCaches(NodeCaches):
    cdef uint64_t[PEER_WORDS] admitted   # one bit for each pin bit given to a peer
    cdef int move_registered(self, uint64_t peer_bit, uint64_t slot_number, uint64_t generation, uint64_t tensor,
                             uint64_t offset, uint64_t size, char *data, bint to_tensor) except -1
    cdef int require_admitted(self, unsigned int bit) except -1
