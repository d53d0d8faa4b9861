"""What keeps an object's attributes together without a GIL, and costs nothing with one (see ``critical_sections.h``).

An attribute that holds a Python object may be read as it is only if it is never replaced once other threads can see its
owner: with the GIL gone, the object could go between the load of the pointer and the count of the reference. Others are
read, and replaced, in a critical section of their owner. Nothing in one raises, unless `finally` leaves it.
"""

from cpython.object cimport PyObject


cdef extern from "critical_sections.h":
    ctypedef struct CriticalSection:
        pass
    void enter_critical_section(CriticalSection *section, PyObject *object) noexcept
    void leave_critical_section(CriticalSection *section) noexcept
