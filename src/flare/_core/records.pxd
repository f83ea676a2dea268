# Records: what a link's bytes are wrapped in. Frames are appended to an open record in the output buffer,
# which is sealed in place when it is full or when the link flushes; or encrypted on their way there.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flare._core.aead cimport aead
from flare._core.core cimport core
from flare._core.record_error cimport record_error
from flare._core.tls cimport tls_state

cdef enum record_kind:
    RECORD_PLAIN = 0
    RECORD_NOISE = 1
    RECORD_TLS = 2

cdef enum:
    NOISE_HEADER = 2
    NOISE_TAG = 16
    NOISE_RECORD = 65535  # largest ciphertext (noise/README.md, "Wire Format")
    RECORD_PLAINTEXT = NOISE_RECORD - NOISE_TAG  # largest of any kind
    RECORD_HEADER_MAX = 5

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
    uint8_t in_pieces  # the open record is encrypted as it grows, by out_append
    int error  # a record_error that sticks: the link is over
    uint64_t sealed  # records
    aead key
    tls_state* tls  # both directions'; NULL: not TLS

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
    cdef tls_state* tls

    cdef int check_unused(self) except -1
    # Keys and counters are the link's from now on.
    cdef void hand_over(self, outbox* out, aead* receiving)

# Bytes of a record's header, which says how long the record is.
cdef size_t record_header(int kind) noexcept nogil
# Bytes of the whole record whose header this is, or a record_error.
cdef int record_size(int kind, const uint8_t* header) noexcept nogil
# Decrypts a whole record in place. Its n bytes of text lie behind the header. A record_error.
cdef int record_open(outbox* o, aead* key, uint8_t* record, size_t size, size_t* n) noexcept nogil

# Room left in the open record, or in a new one when none is open.
cdef size_t out_room(const outbox* o) noexcept nogil
# n bytes in one record, to be filled by the caller; NULL: no memory, and o.error is set. n <=
# out_room of a new record.
cdef uint8_t* out_take(core* c, outbox* o, size_t n) noexcept nogil
# Whether records may be encrypted as they grow: then bulk is copied and encrypted in one.
cdef bint out_appends(const outbox* o) noexcept nogil
# head and data, encrypted, in one record that grows so or is new; -1: o.error is set. Both together <=
# out_room of that record.
cdef int out_append(
    core* c, outbox* o, const uint8_t* head, size_t head_n, const uint8_t* data, size_t n
) noexcept nogil
# Seals the open record.
cdef void out_finish(outbox* o) noexcept nogil
# The key update that the peer asked for, if it did; True: there is something to send.
cdef bint out_answer(core* c, outbox* o) noexcept nogil
# The last word: close_notify, or the alert for a record_error. Nothing where records have none.
cdef void out_farewell(core* c, outbox* o, int error) noexcept nogil
# n bytes from o.start were sent.
cdef void out_sent(core* c, outbox* o, size_t n) noexcept nogil
# What stays for long moves out of a borrowed buffer that is much larger.
cdef void out_trim(core* c, outbox* o) noexcept nogil
cdef void out_free(core* c, outbox* o) noexcept nogil
# The keys of a link that is over.
cdef void out_forget(outbox* o) noexcept nogil

# The exception for a record_error on records of a kind.
cdef object record_failure(int kind, int error, int alert)
