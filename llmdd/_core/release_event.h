/* An event count in shared memory: whoever releases something wakes the owner's thread that waits for memory, and does
 * nothing but look at one word while nobody waits.
 *
 * A half of the word for each pool: 1 while the first of the calls that wait for that pool sleeps, or is about to. Whoever
 * releases takes the word, so that of many who release at once one makes the system call. Peers write the word too: what
 * else they leave there costs the owner a look, and if they take it without waking, the owner looks again all the same
 * when its sleep is over.
 */
#ifndef LLMDD_RELEASE_EVENT_H
#define LLMDD_RELEASE_EVENT_H
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"

static inline uint32_t *release_event_half(uint64_t *event, unsigned pool) { return (uint32_t *)event + pool; }

static inline void futex_sleep(uint32_t *word, uint32_t expected, int64_t nanoseconds, int operation) {
    struct timespec rest = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    if (nanoseconds > 0)
        syscall(SYS_futex, word, operation, expected, &rest, NULL, 0);
}

static __attribute__((noinline, cold)) void wake_for_release(uint64_t *event) {
    uint64_t expected = atomic_take(event);
    for (unsigned pool = 0; pool < 2; pool++)
        if (expected >> 32 * pool & 0xFFFFFFFF)
            syscall(SYS_futex, release_event_half(event, pool), FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* After something was released, and can be seen. */
static inline void announce_release(uint64_t *event) {
    /* Pairs with expect_release: the release comes before this look, what is expected is set before the look for releases.
     * One of the two sees the other. */
    if (__builtin_expect(atomic_load_word(event) != 0, 0))
        wake_for_release(event);
}

/* Before a last look for what was released: from now on whoever releases wakes us. */
static inline void expect_release(uint64_t *event, unsigned pool) {
    uint64_t half = (uint64_t)0xFFFFFFFF << 32 * pool, one = (uint64_t)1 << 32 * pool;
    atomic_fetch_clear(event, half & ~one);
    /* Pairs with announce_release. */
    atomic_fetch_set(event, one);
}

/* Until a release is announced since expect_release, the time is over, or a signal comes. */
static inline void sleep_until_release(uint64_t *event, unsigned pool, int64_t nanoseconds) {
    futex_sleep(release_event_half(event, pool), 1, nanoseconds, FUTEX_WAIT);
}

/* Between the threads of one process: the word goes from 0 to 1 once. */
static inline void sleep_until_turn(uint32_t *turn, int64_t nanoseconds) {
    futex_sleep(turn, 0, nanoseconds, FUTEX_WAIT_PRIVATE);
}

static inline void give_turn(uint32_t *turn) {
    /* Orders nothing: who is woken looks again under a lock. */
    atomic_store_number(turn, 1);
    syscall(SYS_futex, turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#endif
