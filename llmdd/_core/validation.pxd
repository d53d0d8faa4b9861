"""Checks of arguments, with the errors and messages of api §2.1."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef uint64_t checked_uint64(str name, object value) except? 0
cdef int64_t checked_int64(str name, object value) except? 0
cdef uint32_t checked_uint32(str name, object value) except? 0
cdef int64_t checked_int32(str name, object value) except? 0
cdef uint64_t checked_lease_ms(object lease) except? 0
cdef int require_type(str name, object value, object wanted) except -1
cdef int require_present(str name, object value, object wanted) except -1
cdef int check_range(str name, object value, str type_name, object low, object high) except -1
cdef object wrong_type(str name, object value, str wanted)
