# The one bounds check: every decoder reads through a cursor and never past its end.
# Nothing here raises, allocates or needs the GIL.

from libc.stdint cimport uint8_t, uint64_t


cdef struct cursor:
    const uint8_t* ptr
    const uint8_t* end


cdef enum cursor_status:
    CURSOR_OK = 0
    CURSOR_SHORT = -1   # the input ends inside the value: more of it may come
    CURSOR_LONG = -2    # more bits than its type holds
    CURSOR_PADDED = -3  # not the shortest encoding


cdef inline const uint8_t* cursor_take(cursor* c, uint64_t n) noexcept nogil:
    """The next `n` bytes, or NULL when fewer are left; then the cursor has not moved."""
    cdef const uint8_t* start = c.ptr
    if <uint64_t>(c.end - start) < n:
        return NULL
    c.ptr = start + n
    return start


cdef inline int cursor_varint(cursor* c, uint64_t* value) noexcept nogil:
    """A protobuf varint: 64 bits in at most 10 bytes, zero padding allowed."""
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef const uint8_t* byte
    while True:
        byte = cursor_take(c, 1)
        if byte == NULL:
            return CURSOR_SHORT
        if shift == 63 and byte[0] > 1:
            return CURSOR_LONG
        result |= <uint64_t>(byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            value[0] = result
            return CURSOR_OK
        shift += 7


cdef inline int cursor_uvarint(cursor* c, uint64_t* value) noexcept nogil:
    """A multiformats unsigned varint: 63 bits in at most 9 bytes, the shortest encoding only."""
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef const uint8_t* byte
    while True:
        byte = cursor_take(c, 1)
        if byte == NULL:
            return CURSOR_SHORT
        if shift == 56 and byte[0] >= 0x80:
            return CURSOR_LONG
        result |= <uint64_t>(byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            if byte[0] == 0 and shift > 0:
                return CURSOR_PADDED
            value[0] = result
            return CURSOR_OK
        shift += 7


cdef inline int cursor_fixed64(cursor* c, uint64_t* value) noexcept nogil:
    """Eight bytes, the lowest first."""
    cdef const uint8_t* data = cursor_take(c, 8)
    cdef uint64_t result = 0
    cdef int i
    if data == NULL:
        return CURSOR_SHORT
    for i in range(8):
        result |= <uint64_t>data[i] << (8 * i)
    value[0] = result
    return CURSOR_OK


cdef inline void fixed_write(uint8_t* out, uint64_t value) noexcept nogil:
    """`value` in the eight bytes at `out`, the lowest first."""
    cdef int i
    for i in range(8):
        out[i] = <uint8_t>(value >> (8 * i))


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    """How many bytes the shortest varint of `value` takes: 1 to 10."""
    cdef size_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline size_t varint_write(uint8_t* out, uint64_t value) noexcept nogil:
    """Writes the shortest varint of `value` at `out`, which has varint_size(value) bytes; returns that."""
    cdef size_t n = 0
    while value >= 0x80:
        out[n] = <uint8_t>(value | 0x80)
        value >>= 7
        n += 1
    out[n] = <uint8_t>value
    return n + 1
