# Bytes in order, in chunks that grow with the queue: a stream's received bytes. Empty, it holds no memory.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef enum:
    CHUNK_MIN = 1024
    CHUNK_MAX = 64 * 1024

cdef struct chunk:
    chunk* next  # its bytes follow the struct
    uint32_t start
    uint32_t end
    uint32_t cap

cdef struct queue:
    chunk* head
    chunk* tail
    size_t size


cdef inline int queue_push(queue* q, const uint8_t* data, size_t n) noexcept nogil:
    cdef chunk* c
    cdef size_t take
    cdef size_t cap
    while n:
        c = q.tail
        if c == NULL or c.end == c.cap:
            # doubles with the queue, so that trickles stay small and floods take few allocations
            cap = max(max(q.size, min(n, <size_t>CHUNK_MAX)), <size_t>CHUNK_MIN)
            cap = min(cap, <size_t>CHUNK_MAX)
            c = <chunk*>malloc(sizeof(chunk) + cap)
            if c == NULL:
                return -1
            c.next = NULL
            c.start = c.end = 0
            c.cap = <uint32_t>cap
            if q.tail == NULL:
                q.head = c
            else:
                q.tail.next = c
            q.tail = c
        take = min(n, <size_t>(c.cap - c.end))
        memcpy(<uint8_t*>(c + 1) + c.end, data, take)
        c.end += <uint32_t>take
        q.size += take
        data += take
        n -= take
    return 0


cdef inline void queue_skip(queue* q, size_t n) noexcept nogil:
    cdef chunk* c
    cdef size_t take
    while n:
        c = q.head
        take = min(n, <size_t>(c.end - c.start))
        c.start += <uint32_t>take
        q.size -= take
        n -= take
        if c.start == c.end:
            q.head = c.next
            if q.head == NULL:
                q.tail = NULL
            free(c)


cdef inline size_t queue_clear(queue* q) noexcept nogil:
    cdef size_t n = q.size
    queue_skip(q, n)
    return n


cdef inline size_t queue_peek(const queue* q, const uint8_t** data) noexcept nogil:
    """The first contiguous bytes, which stay; 0: there are none."""
    cdef chunk* c = q.head
    if c == NULL:
        return 0
    data[0] = <const uint8_t*>(c + 1) + c.start
    return c.end - c.start


cdef inline size_t queue_copy(const queue* q, uint8_t* out, size_t n) noexcept nogil:
    """Up to n bytes, which stay."""
    cdef chunk* c = q.head
    cdef size_t total = 0
    cdef size_t take
    while c != NULL and total < n:
        take = min(n - total, <size_t>(c.end - c.start))
        memcpy(out + total, <const uint8_t*>(c + 1) + c.start, take)
        total += take
        c = c.next
    return total
