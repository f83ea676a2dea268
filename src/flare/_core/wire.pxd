from libc.stdint cimport uint64_t

from flare._core.cursor cimport cursor


cpdef enum Kind:
    UINT64
    UINT32
    INT64
    INT32
    BOOL
    ENUM     # closed, as in proto2: an unknown value counts as absent
    FIXED    # fixed64: eight bytes, the lowest first
    STRING
    BYTES
    MESSAGE


cdef class Field:
    cdef readonly int number
    cdef readonly str name
    cdef readonly Kind kind
    cdef readonly bint repeated
    cdef readonly bint required
    cdef readonly bint lenient
    cdef readonly Py_ssize_t most
    cdef readonly object default
    cdef readonly object convert
    cdef readonly Schema schema
    cdef dict members


cdef struct writer:
    unsigned char* data
    size_t size
    size_t room


cdef class Schema:
    cdef readonly str name
    cdef readonly type cls
    cdef readonly tuple fields
    cdef int count
    cdef int numbers[32]

    cdef int read(self, cursor* c, list values) except -1
    cdef int read_known(self, cursor* c, int wire_type, Py_ssize_t index, list values) except -1
    cdef object build(self, list values)
    cdef int write(self, writer* out, object message) except -1
    cdef int write_one(self, writer* out, Field field, object value) except -1
