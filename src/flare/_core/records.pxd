# Records: what a link's bytes are wrapped in. Frames are appended to an open record in the output buffer,
# which is sealed in place when it is full or when the link flushes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flare._core.aead cimport aead
from flare._core.core cimport core

cdef enum:
    RECORD_PLAIN = 0
    RECORD_NOISE = 1

cdef enum:
    NOISE_HEADER = 2
    NOISE_TAG = 16
    NOISE_RECORD = 65535  # largest ciphertext (noise/README.md, "Wire Format")
    RECORD_PLAINTEXT = NOISE_RECORD - NOISE_TAG

cdef enum record_error:
    RECORD_OK = 0
    RECORD_FORGED = -1
    RECORD_SHORT = -2  # no room for a tag
    RECORD_EXHAUSTED = -3
    RECORD_MEMORY = -4

cdef struct outbox:
    uint8_t* data
    size_t cap
    size_t start  # first byte not sent
    size_t end
    size_t record  # where the open record begins; NOWHERE: none is open
    # header of the last DATA frame, while its record is open and nothing follows it; else NOWHERE
    size_t frame
    uint32_t frame_stream
    uint8_t kind
    int error  # a record_error that sticks: the link is over
    uint64_t sealed  # records
    aead key

cdef extern from *:
    """
    #define FLARE_NOWHERE ((size_t)-1)
    """
    const size_t NOWHERE "FLARE_NOWHERE"

cdef class RecordKeys:
    cdef int kind
    cdef bint used
    cdef aead sending
    cdef aead receiving

    cdef int check_unused(self) except -1

# Room left in the open record, or in a new one when none is open.
cdef size_t out_room(const outbox* o) noexcept nogil
# n bytes in one record, to be filled by the caller; NULL: no memory, and o.error is set. n <=
# RECORD_PLAINTEXT.
cdef uint8_t* out_take(core* c, outbox* o, size_t n) noexcept nogil
# Seals the open record.
cdef void out_finish(outbox* o) noexcept nogil
# n bytes from o.start were sent.
cdef void out_sent(core* c, outbox* o, size_t n) noexcept nogil
# What stays for long moves out of a borrowed buffer that is much larger.
cdef void out_trim(core* c, outbox* o) noexcept nogil
cdef void out_free(core* c, outbox* o) noexcept nogil
# Decrypts one record of n bytes, tag included, in place.
cdef int record_open(aead* key, uint8_t* data, size_t n) noexcept nogil
