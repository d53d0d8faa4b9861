/* Copies that leave the processor's caches alone, and threads to share them.
 *
 * What is larger than a core's cache is not worth keeping there: stores that go past the caches need not fetch each line
 * of the target first, which is a third of the traffic. SSE2 is part of every x86-64; elsewhere memcpy knows best.
 */
#ifndef LLMDD_STREAMING_H
#define LLMDD_STREAMING_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

static inline void stream_bytes(char *target, const char *source, uint64_t size) {
#ifdef __SSE2__
    enum { LINE = 64, AHEAD = 768 };
    uint64_t head = -(uintptr_t)target % LINE;
    if (size < 4 * LINE) {
        memcpy(target, source, size);
        return;
    }
    memcpy(target, source, head);
    target += head;
    source += head;
    size -= head;
    for (; size >= LINE; size -= LINE, target += LINE, source += LINE) {
        _mm_prefetch(source + AHEAD, _MM_HINT_NTA);
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        __m128i b = _mm_loadu_si128((const __m128i *)source + 1);
        __m128i c = _mm_loadu_si128((const __m128i *)source + 2);
        __m128i d = _mm_loadu_si128((const __m128i *)source + 3);
        _mm_stream_si128((__m128i *)target, a);
        _mm_stream_si128((__m128i *)target + 1, b);
        _mm_stream_si128((__m128i *)target + 2, c);
        _mm_stream_si128((__m128i *)target + 3, d);
    }
#endif
    memcpy(target, source, size);
}

/* Streamed bytes are seen by others no later than what is stored after this. */
static inline void end_streaming(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* On how many processors this thread may run. */
static inline unsigned usable_processors(void) {
    cpu_set_t processors;
    return sched_getaffinity(0, sizeof(processors), &processors) == 0 ? (unsigned)CPU_COUNT(&processors) : 1;
}

#endif
