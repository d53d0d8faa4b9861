"""Renewing leases of keys: by the owner, for itself and for peers on other hosts, and by peers through its mapped arena."""

from libc.stdint cimport uint64_t

from llmdd._core.transfer cimport Transfer, TransferResult

cdef TransferResult renew(Transfer *named, uint64_t lease_ms) noexcept nogil
cdef void renew_each(Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms) noexcept nogil
