/* Atomic operations on words that other threads, or other processes through a shared mapping, read or write.
 *
 * C11's memory model, by the compiler's builtins, so that the words themselves stay plain integers in structures that
 * Cython can see. Sequentially consistent unless the name says otherwise: every place where two words decide together
 * (a pin against the gate, a key bit against its tensors) needs the single order.
 */
#ifndef LLMDD_ATOMIC_H
#define LLMDD_ATOMIC_H
#include <stdint.h>
#include <string.h>
#include <time.h>

/* Some words hold two numbers that are also read as the structure's fields (an index entry's): the compiler must know. */
typedef uint64_t __attribute__((__may_alias__)) shared_word;

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the first of two 32-bit numbers in a word is taken for its lower half: llmdd needs a little-endian machine"
#endif

/* One of the single order of all sequentially consistent operations. Where two of them decide together, a comment at each
 * says which the other is: spec/protocol.py names the pairs of every step. */
static inline uint64_t atomic_load_word(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static inline void atomic_store_word(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
static inline uint64_t atomic_fetch_set(uint64_t *word, uint64_t bits) { return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST); }
static inline uint64_t atomic_fetch_clear(uint64_t *word, uint64_t bits) { return __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST); }
static inline uint64_t atomic_fetch_add_word(uint64_t *word, uint64_t by) { return __atomic_fetch_add(word, by, __ATOMIC_SEQ_CST); }
static inline uint64_t atomic_fetch_subtract(uint64_t *word, uint64_t by) { return __atomic_fetch_sub(word, by, __ATOMIC_SEQ_CST); }
static inline uint64_t atomic_take(uint64_t *word) { return __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST); }
static inline int atomic_replace(uint64_t *word, uint64_t expected, uint64_t value) {
    return __atomic_compare_exchange_n(word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* A load with acquire that sees what a store with release wrote sees everything written before that store. */
static inline uint64_t atomic_load_acquire(const uint64_t *word) {
    return __atomic_load_n((const shared_word *)word, __ATOMIC_ACQUIRE);
}
static inline void atomic_store_release(uint64_t *word, uint64_t value) {
    __atomic_store_n((shared_word *)word, value, __ATOMIC_RELEASE);
}

/* Never torn, and ordered by nothing: for hints, and for words that something else orders. */
static inline uint64_t atomic_load_relaxed(const uint64_t *word) {
    return __atomic_load_n((const shared_word *)word, __ATOMIC_RELAXED);
}
static inline void atomic_store_relaxed(uint64_t *word, uint64_t value) {
    __atomic_store_n((shared_word *)word, value, __ATOMIC_RELAXED);
}
static inline uint32_t atomic_load_number(const uint32_t *number) { return __atomic_load_n(number, __ATOMIC_RELAXED); }
static inline void atomic_store_number(uint32_t *number, uint32_t value) { __atomic_store_n(number, value, __ATOMIC_RELAXED); }
static inline int atomic_load_flag(const uint8_t *flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
static inline void atomic_store_flag(uint8_t *flag, int value) { __atomic_store_n(flag, (uint8_t)value, __ATOMIC_RELAXED); }

/* For bytes that are copied plainly and judged afterwards, and for nothing else: ThreadSanitizer, under which the core is
 * stressed (tests/sanitizers), does not know fences. */
static inline void atomic_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline void atomic_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

/* The word becomes `value` unless it is larger. Sequentially consistent. */
static inline void atomic_raise(uint64_t *word, uint64_t value) {
    uint64_t found = __atomic_load_n(word, __ATOMIC_SEQ_CST);
    while (found < value && !__atomic_compare_exchange_n(word, &found, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
}

static inline unsigned lowest_bit(uint64_t word) { return (unsigned)__builtin_ctzll(word); }
static inline unsigned highest_bit(uint64_t word) { return 63u - (unsigned)__builtin_clzll(word); }
static inline unsigned count_bits(uint64_t word) { return (unsigned)__builtin_popcountll(word); }

static inline uint64_t multiply_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline int64_t monotonic_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif
