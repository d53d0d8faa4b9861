"""Waiting for releases by anybody who has the arena mapped (see ``release_event.h``)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "release_event.h" nogil:
    void announce_release(uint64_t *event) noexcept
    void expect_release(uint64_t *event, unsigned int pool) noexcept
    void sleep_until_release(uint64_t *event, unsigned int pool, int64_t nanoseconds) noexcept
    void sleep_until_turn(uint32_t *turn, int64_t nanoseconds) noexcept
    void give_turn(uint32_t *turn) noexcept
