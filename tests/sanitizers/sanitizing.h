/* What the stress tells a sanitizer about memory that it did not allocate itself. */
#ifndef LLMDD_SANITIZING_H
#define LLMDD_SANITIZING_H
#include <stddef.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
static inline void forbid(const void *begin, size_t size) { __asan_poison_memory_region(begin, size); }
static inline void allow(const void *begin, size_t size) { __asan_unpoison_memory_region(begin, size); }
#else
static inline void forbid(const void *begin, size_t size) { (void)begin, (void)size; }
static inline void allow(const void *begin, size_t size) { (void)begin, (void)size; }
#endif

#endif
