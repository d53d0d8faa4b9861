/* A lock of this process's threads in one word: 0 free, 1 taken, 2 taken and perhaps waited for.
 *
 * Taken and released without a system call as long as nobody waits (Drepper, "Futexes Are Tricky", the second mutex).
 */
#ifndef LLMDD_FUTEX_H
#define LLMDD_FUTEX_H
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"

static inline int futex_try(uint32_t *word) {
    uint32_t free_word = 0;
    /* Acquires what the last holder released. That it is not free orders nothing. */
    return __atomic_compare_exchange_n(word, &free_word, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* 1: taken. 0: it did not become free within the time. */
static inline int futex_take(uint32_t *word, int64_t timeout_nanoseconds) {
    int64_t deadline = monotonic_nanoseconds() + timeout_nanoseconds;
    /* Acquires what the last holder released. The 2 that it leaves pairs with the exchange in futex_release: whoever takes
     * the lock so must wake another when it releases it, for it cannot know whether it is the last that waited. The kernel
     * compares the word with 2 again before it lets us sleep: a release in between is not slept through. */
    while (__atomic_exchange_n(word, 2, __ATOMIC_ACQUIRE) != 0) {
        int64_t left = deadline - monotonic_nanoseconds();
        if (left <= 0)
            return 0;
        struct timespec rest = {left / 1000000000, left % 1000000000};
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 2, &rest, NULL, 0);
    }
    return 1;
}

static inline void futex_release(uint32_t *word) {
    /* Releases everything done under the lock, to the acquire in futex_try and futex_take. */
    if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) == 2)
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#endif
