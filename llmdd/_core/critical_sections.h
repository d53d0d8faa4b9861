/* A lock of one object, for a few instructions that the GIL keeps together where there is one.
 *
 * With the GIL these are nothing. Without it they are CPython's critical sections, under which Cython reads and replaces
 * public attributes too: two threads are never in those of one object at once. A thread that has to wait for something
 * gives its critical sections up meanwhile, as it would the GIL: so what must not be torn apart must not wait.
 *
 * (In the plural, because CPython has a header of the other name.)
 */
#ifndef LLMDD_CRITICAL_SECTIONS_H
#define LLMDD_CRITICAL_SECTIONS_H
#include <Python.h>

#ifdef Py_GIL_DISABLED

typedef PyCriticalSection CriticalSection;

static inline void enter_critical_section(CriticalSection *section, PyObject *object) {
    PyCriticalSection_Begin(section, object);
}

static inline void leave_critical_section(CriticalSection *section) {
    PyCriticalSection_End(section);
}

#else

typedef char CriticalSection;

static inline void enter_critical_section(CriticalSection *section, PyObject *object) {
    (void)section;
    (void)object;
}

static inline void leave_critical_section(CriticalSection *section) {
    (void)section;
}

#endif
#endif
