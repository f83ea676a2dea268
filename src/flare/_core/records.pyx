"""Records of a link: Noise's (2-byte length, ChaCha20-Poly1305), or none for tests."""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from flare._core.aead cimport (
    AEAD_BAD_TAG,
    AEAD_CHACHA20_POLY1305,
    AEAD_EXHAUSTED,
    AEAD_OK,
    aead_free,
    aead_init,
    aead_open,
    aead_seal,
)
from flare._core.core cimport SPARE_SIZE, SPARES

from flare.errors import InvalidKey, UsageError


cdef class RecordKeys:
    """What `Engine.attach` needs to know of a handshake."""

    cdef int check_unused(self) except -1:
        if self.used:
            raise UsageError("the keys of one handshake serve one link: two would use nonces twice")
        return 0


cdef class PlainRecords(RecordKeys):
    """No records and no secrecy: for tests."""

    def __cinit__(self):
        self.kind = RECORD_PLAIN


cdef class NoiseRecords(RecordKeys):
    """Noise transport keys, 32 bytes each, and the nonces they stand at."""

    def __cinit__(self, const uint8_t[::1] send_key, const uint8_t[::1] recv_key, send_nonce=0, recv_nonce=0):
        if send_key.shape[0] != 32 or recv_key.shape[0] != 32:
            raise InvalidKey("Noise transport keys have 32 bytes")
        if not (0 <= send_nonce < 2**64 and 0 <= recv_nonce < 2**64):
            raise UsageError("a nonce has 64 bits")
        self.kind = RECORD_NOISE
        aead_init(&self.sending, AEAD_CHACHA20_POLY1305, &send_key[0])
        aead_init(&self.receiving, AEAD_CHACHA20_POLY1305, &recv_key[0])
        self.sending.nonce = send_nonce
        self.receiving.nonce = recv_nonce

    def __dealloc__(self):
        aead_free(&self.sending)
        aead_free(&self.receiving)


cdef size_t out_room(const outbox* o) noexcept nogil:
    if o.record == NOWHERE:
        return RECORD_PLAINTEXT
    return RECORD_PLAINTEXT - (o.end - o.record - (NOISE_HEADER if o.kind == RECORD_NOISE else 0))


cdef int grow(core* c, outbox* o, size_t n) noexcept nogil:
    """Make room for n more bytes after o.end."""
    cdef size_t cap
    cdef uint8_t* data
    if o.data == NULL and n <= SPARE_SIZE:
        if c.spare_count:
            c.spare_count -= 1
            o.data = c.spares[c.spare_count]
        else:
            o.data = <uint8_t*>malloc(SPARE_SIZE)
        o.cap = SPARE_SIZE
        if o.data != NULL:
            return 0
        o.cap = 0
        o.error = RECORD_MEMORY
        return -1
    if o.start > o.end - o.start and o.cap - (o.end - o.start) >= n:
        memmove(o.data, o.data + o.start, o.end - o.start)
        if o.record != NOWHERE:
            o.record -= o.start
        if o.frame != NOWHERE:
            o.frame -= o.start
        o.end -= o.start
        o.start = 0
        return 0
    cap = o.cap * 2 if o.cap else SPARE_SIZE
    while cap < o.end + n:
        cap *= 2
    data = <uint8_t*>realloc(o.data, cap)
    if data == NULL:
        o.error = RECORD_MEMORY
        return -1
    o.data = data
    o.cap = cap
    return 0


cdef uint8_t* out_take(core* c, outbox* o, size_t n) noexcept nogil:
    cdef uint8_t* place
    if out_room(o) < n:
        out_finish(o)
    if o.cap - o.end < n + NOISE_HEADER + NOISE_TAG and grow(c, o, n + NOISE_HEADER + NOISE_TAG) < 0:
        return NULL
    if o.record == NOWHERE:
        o.record = o.end
        if o.kind == RECORD_NOISE:
            o.end += NOISE_HEADER
    place = o.data + o.end
    o.end += n
    o.frame = NOWHERE
    return place


cdef void out_finish(outbox* o) noexcept nogil:
    cdef size_t n
    cdef uint8_t* record
    cdef int error
    if o.record == NOWHERE:
        return
    if o.kind == RECORD_NOISE:
        record = o.data + o.record
        n = o.end - o.record - NOISE_HEADER
        record[0] = <uint8_t>((n + NOISE_TAG) >> 8)
        record[1] = <uint8_t>(n + NOISE_TAG)
        error = aead_seal(&o.key, record + NOISE_HEADER, n)
        if error != AEAD_OK:
            o.error = RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY
        o.end += NOISE_TAG
        o.sealed += 1
    o.record = NOWHERE
    o.frame = NOWHERE


cdef void drop_buffer(core* c, outbox* o) noexcept nogil:
    if o.cap == SPARE_SIZE and c.spare_count < SPARES:
        c.spares[c.spare_count] = o.data
        c.spare_count += 1
    else:
        free(o.data)
    o.data = NULL
    o.cap = 0


cdef void out_sent(core* c, outbox* o, size_t n) noexcept nogil:
    o.start += n
    if o.start == o.end:
        drop_buffer(c, o)
        o.start = o.end = 0
        o.record = o.frame = NOWHERE


cdef void out_trim(core* c, outbox* o) noexcept nogil:
    cdef size_t n = o.end - o.start
    cdef uint8_t* small
    if n == 0 or n > o.cap // 4 or o.record != NOWHERE:
        return
    small = <uint8_t*>malloc(n)
    if small == NULL:
        return
    memcpy(small, o.data + o.start, n)
    drop_buffer(c, o)
    o.data = small
    o.cap = n
    o.start = 0
    o.end = n


cdef void out_free(core* c, outbox* o) noexcept nogil:
    if o.data != NULL:
        drop_buffer(c, o)
    o.start = o.end = 0
    o.record = o.frame = NOWHERE


cdef int record_open(aead* key, uint8_t* data, size_t n) noexcept nogil:
    cdef int error
    if n < NOISE_TAG:
        return RECORD_SHORT
    error = aead_open(key, data, n)
    if error == AEAD_OK:
        return RECORD_OK
    if error == AEAD_BAD_TAG:
        return RECORD_FORGED
    return RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY
