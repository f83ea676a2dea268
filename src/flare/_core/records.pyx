"""Records of a link: Noise's (2-byte length, ChaCha20-Poly1305), TLS 1.3's (tls.pyx), or none for tests."""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove

from flare._core.aead cimport (
    AEAD_BAD_TAG,
    AEAD_CHACHA20_POLY1305,
    AEAD_EXHAUSTED,
    AEAD_OK,
    aead_begin,
    aead_drop,
    aead_end,
    aead_free,
    aead_init,
    aead_is_native,
    aead_open,
    aead_park,
    aead_piece,
    aead_seal,
)
from flare._core.core cimport SPARE_SIZE, SPARES
from flare._core.record_error cimport (
    RECORD_ALERT,
    RECORD_BAD_ALERT,
    RECORD_CLOSED,
    RECORD_CONTENT_TYPE,
    RECORD_EXHAUSTED,
    RECORD_FORGED,
    RECORD_HANDSHAKE,
    RECORD_LARGE,
    RECORD_MEMORY,
    RECORD_OK,
    RECORD_OUTER_TYPE,
    RECORD_SHORT,
    RECORD_UNTYPED,
    RECORD_USELESS,
)
from flare._core.tls cimport (
    ALERT_CLOSE_NOTIFY,
    ALERT_NONE,
    TLS_ALERT_RECORD,
    TLS_HEADER,
    TLS_KEY_UPDATE_RECORD,
    TLS_PLAINTEXT,
    TLS_REKEY,
    TLS_TAG,
    tls_alert,
    tls_alert_for,
    tls_hash_size,
    tls_init,
    tls_open,
    tls_record_size,
    tls_seal,
    tls_update,
    tls_wipe,
)

from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    InvalidKey,
    ProtocolViolation,
    ResourceLimit,
    UsageError,
)

cdef enum:
    # behind what is taken: a header, what sealing adds, and a key update
    SLACK = TLS_HEADER + 1 + TLS_TAG + TLS_KEY_UPDATE_RECORD

cdef extern from *:
    """
    static const unsigned char flare_header[3] = {0, 2, 5};  /* by record_kind */
    static const unsigned short flare_plaintext[3] = {65535 - 16, 65535 - 16, 1 << 14};
    """
    const uint8_t* HEADER "flare_header"
    const unsigned short* PLAINTEXT "flare_plaintext"

cdef dict FAILURES = {
    RECORD_FORGED: (AuthenticationFailed, "a record does not verify"),
    RECORD_SHORT: (AuthenticationFailed, "a record too short to verify"),
    RECORD_EXHAUSTED: (ResourceLimit, "all nonces of this connection's keys are used"),
    RECORD_OUTER_TYPE: (ProtocolViolation, "a record that is not encrypted, after the handshake"),
    RECORD_LARGE: (ProtocolViolation, "a record of more than 2^14 bytes"),
    RECORD_UNTYPED: (ProtocolViolation, "a record of nothing but padding"),
    RECORD_CONTENT_TYPE: (ProtocolViolation, "a record of a content type that has no place there"),
    RECORD_HANDSHAKE: (ProtocolViolation, "a handshake message that has no place after the handshake"),
    RECORD_BAD_ALERT: (ProtocolViolation, "an alert that is none"),
    RECORD_USELESS: (ProtocolViolation, "too many records in a row without data"),
}
cdef dict ALERTS = {  # RFC 8446, 6.2: those that peers of libp2p send
    10: "unexpected message",
    20: "bad record MAC",
    22: "record overflow",
    40: "handshake failure",
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    47: "illegal parameter",
    48: "unknown certificate authority",
    49: "access denied",
    50: "decode error",
    51: "decrypt error",
    70: "protocol version",
    80: "internal error",
    109: "missing extension",
    116: "certificate required",
    120: "no application protocol",
}


cdef class RecordKeys:
    """What `Engine.attach` needs to know of a handshake."""

    def __dealloc__(self):
        aead_free(&self.sending)
        aead_free(&self.receiving)
        if self.tls != NULL:
            tls_wipe(self.tls)
            free(self.tls)

    cdef int check_unused(self) except -1:
        if self.used:
            raise UsageError("the keys of one handshake serve one link: two would use nonces twice")
        return 0

    cdef void hand_over(self, outbox* out, aead* receiving):
        self.used = True
        aead_park(&self.sending)
        aead_park(&self.receiving)
        out.key = self.sending
        receiving[0] = self.receiving
        out.tls = self.tls
        self.tls = NULL


cdef class PlainRecords(RecordKeys):
    """No records and no secrecy: for tests."""

    def __cinit__(self):
        self.kind = RECORD_PLAIN


cdef class NoiseRecords(RecordKeys):
    """Noise transport keys, 32 bytes each, and the nonces they stand at."""

    def __cinit__(self, const uint8_t[::1] send_key, const uint8_t[::1] recv_key, send_nonce=0, recv_nonce=0):
        if send_key.shape[0] != 32 or recv_key.shape[0] != 32:
            raise InvalidKey("Noise transport keys have 32 bytes")
        check_nonces(send_nonce, recv_nonce)
        self.kind = RECORD_NOISE
        aead_init(&self.sending, AEAD_CHACHA20_POLY1305, &send_key[0])
        aead_init(&self.receiving, AEAD_CHACHA20_POLY1305, &recv_key[0])
        self.sending.nonce = send_nonce
        self.receiving.nonce = recv_nonce


cdef class TlsRecords(RecordKeys):
    """The traffic secrets of a TLS 1.3 connection, and the sequence numbers they stand at."""

    def __cinit__(
        self,
        int suite,
        const uint8_t[::1] send_secret,
        const uint8_t[::1] recv_secret,
        send_nonce=0,
        recv_nonce=0,
    ):
        cdef int size = tls_hash_size(suite)
        if size == 0:
            raise UsageError(f"{suite:#06x} is no cipher suite of TLS 1.3 that flare knows")
        if send_secret.shape[0] != size or recv_secret.shape[0] != size:
            raise InvalidKey(f"the traffic secrets of suite {suite:#06x} have {size} bytes")
        check_nonces(send_nonce, recv_nonce)
        self.kind = RECORD_TLS
        self.tls = <tls_state*>calloc(1, sizeof(tls_state))
        if self.tls == NULL:
            raise MemoryError
        if tls_init(self.tls, &self.sending, &self.receiving, suite, &send_secret[0], &recv_secret[0]) < 0:
            raise MemoryError("the keys of TLS could not be derived")
        self.sending.nonce = send_nonce
        self.receiving.nonce = recv_nonce

    @property
    def send_nonce(self):
        return self.sending.nonce

    @property
    def recv_nonce(self):
        return self.receiving.nonce

    def size(self, const uint8_t[::1] header not None):
        cdef int size
        self.check_unused()
        if header.shape[0] != TLS_HEADER:
            raise UsageError(f"the header of a record has {TLS_HEADER} bytes")
        size = tls_record_size(&header[0])
        if size < 0:
            raise record_failure(self.kind, size, ALERT_NONE)
        return size

    def seal(self, const uint8_t[::1] data not None):
        cdef bytearray out = bytearray()
        cdef size_t n = data.shape[0]
        cdef size_t at = 0
        cdef size_t part
        self.check_unused()
        if self.tls.update_due:
            out += self.sealed(None)
        while at < n:
            part = min(n - at, <size_t>TLS_PLAINTEXT)
            out += self.sealed(data[at : at + part])
            at += part
        return bytes(out)

    cdef bytearray sealed(self, const uint8_t[::1] data):
        """One record of `data`; of None a KeyUpdate."""
        cdef size_t n = 0 if data is None else data.shape[0]
        cdef size_t size = TLS_KEY_UPDATE_RECORD if data is None else TLS_HEADER + n + 1 + TLS_TAG
        cdef bytearray record = bytearray(size)
        cdef uint8_t[::1] view = record
        cdef int error
        if data is None:
            error = tls_update(self.tls, &self.sending, &view[0])
        else:
            memcpy(&view[TLS_HEADER], &data[0], n)
            error = tls_seal(&self.sending, &view[0], n)
        if error != AEAD_OK:
            raise record_failure(
                self.kind, RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY, ALERT_NONE
            )
        return record

    def open(self, const uint8_t[::1] record not None):
        cdef bytearray copy = bytearray(record)
        cdef uint8_t[::1] view = copy
        cdef size_t n = 0
        cdef int error
        self.check_unused()
        if len(copy) < TLS_HEADER or tls_record_size(&view[0]) != <int>len(copy):
            raise UsageError("one whole record is opened at a time")
        error = tls_open(self.tls, &self.receiving, &view[0], len(copy), &n)
        if error != RECORD_OK:
            raise record_failure(self.kind, error, self.tls.alert)
        return bytes(view[TLS_HEADER : TLS_HEADER + n])

    def unread(self, const uint8_t[::1] data not None):
        cdef aead again = self.receiving
        cdef bytearray record
        cdef uint8_t[::1] view
        cdef size_t n = data.shape[0]
        cdef int error
        self.check_unused()
        if n == 0 or n > TLS_PLAINTEXT or self.receiving.nonce == 0:
            raise UsageError("what is read again was part of the record opened last")
        record = bytearray(TLS_HEADER + n + 1 + TLS_TAG)
        view = record
        memcpy(&view[TLS_HEADER], &data[0], n)
        self.receiving.nonce -= 1
        again.nonce = self.receiving.nonce
        again.ctx = NULL
        again.direction = 0
        error = tls_seal(&again, &view[0], n)
        aead_free(&again)
        if error != AEAD_OK:
            raise record_failure(self.kind, RECORD_MEMORY, ALERT_NONE)
        return bytes(record)


cdef int check_nonces(sending, receiving) except -1:
    if not (0 <= sending < 2**64 and 0 <= receiving < 2**64):
        raise UsageError("a nonce has 64 bits")
    return 0


cdef object record_failure(int kind, int error, int alert):
    if error == RECORD_MEMORY:
        return MemoryError("no memory for the connection's records")
    if error == RECORD_CLOSED:
        return ConnectionClosed("the peer closed the connection")
    if error == RECORD_ALERT:
        told = ALERTS.get(alert, "of a kind unknown here")
        return AuthenticationFailed(f"the peer ended the connection: alert {alert}, {told}", protocol="tls")
    cls, sentence = FAILURES[error]
    if not issubclass(cls, ProtocolViolation):
        return cls(sentence)
    return cls(sentence, protocol="tls" if kind == RECORD_TLS else "noise")


# In

cdef size_t record_header(int kind) noexcept nogil:
    return HEADER[kind]


cdef int record_size(int kind, const uint8_t* header) noexcept nogil:
    cdef int size
    if kind == RECORD_TLS:
        return tls_record_size(header)
    size = <int>header[0] << 8 | header[1]
    return RECORD_SHORT if size < NOISE_TAG else NOISE_HEADER + size


cdef int record_open(outbox* o, aead* key, uint8_t* record, size_t size, size_t* n) noexcept nogil:
    cdef int error
    if o.kind == RECORD_TLS:
        return tls_open(o.tls, key, record, size, n)
    n[0] = size - NOISE_HEADER - NOISE_TAG
    error = aead_open(key, record + NOISE_HEADER, size - NOISE_HEADER)
    if error == AEAD_OK:
        return RECORD_OK
    if error == AEAD_BAD_TAG:
        return RECORD_FORGED
    return RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY


# Out

cdef size_t out_room(const outbox* o) noexcept nogil:
    if o.record == NOWHERE:
        return PLAINTEXT[o.kind]
    return PLAINTEXT[o.kind] - (o.end - o.record - HEADER[o.kind])


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
    if o.in_pieces or out_room(o) < n:
        out_finish(o)
    if o.cap - o.end < n + SLACK and grow(c, o, n + SLACK) < 0:
        return NULL
    if o.record == NOWHERE:
        o.record = o.end
        o.end += HEADER[o.kind]
    place = o.data + o.end
    o.end += n
    o.frame = NOWHERE
    return place


cdef bint out_appends(const outbox* o) noexcept nogil:
    return o.kind == RECORD_NOISE and aead_is_native()


cdef int out_append(
    core* c, outbox* o, const uint8_t* head, size_t head_n, const uint8_t* data, size_t n
) noexcept nogil:
    if o.record != NOWHERE and not o.in_pieces:
        out_finish(o)
    if o.cap - o.end < head_n + n + SLACK and grow(c, o, head_n + n + SLACK) < 0:
        return -1
    if o.record == NOWHERE:
        o.record = o.end
        o.end += NOISE_HEADER
        o.in_pieces = 1
        note(o, aead_begin(&o.key))
    if not o.error:
        note(o, aead_piece(&o.key, o.data + o.end, head, head_n))
    if not o.error:
        note(o, aead_piece(&o.key, o.data + o.end + head_n, data, n))
    o.end += head_n + n
    o.frame = NOWHERE
    return -1 if o.error else 0


cdef void out_finish(outbox* o) noexcept nogil:
    cdef size_t n
    cdef uint8_t* record
    if o.record == NOWHERE:
        return
    record = o.data + o.record
    n = o.end - o.record - HEADER[o.kind]
    if o.kind == RECORD_TLS:
        note(o, tls_seal(&o.key, record, n))
        o.end += 1 + TLS_TAG
        if o.key.nonce >= TLS_REKEY and not o.error:
            note(o, tls_update(o.tls, &o.key, o.data + o.end))
            o.end += TLS_KEY_UPDATE_RECORD
    elif o.kind == RECORD_NOISE:
        record[0] = <uint8_t>((n + NOISE_TAG) >> 8)
        record[1] = <uint8_t>(n + NOISE_TAG)
        if not o.in_pieces:
            note(o, aead_seal(&o.key, record + NOISE_HEADER, n))
        elif not o.error:
            note(o, aead_end(&o.key, o.data + o.end))
        o.in_pieces = 0
        o.end += NOISE_TAG
    o.sealed += 1
    o.record = NOWHERE
    o.frame = NOWHERE


cdef inline void note(outbox* o, int error) noexcept nogil:
    """What an AEAD returned."""
    if error != AEAD_OK:
        o.error = RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY


cdef bint out_answer(core* c, outbox* o) noexcept nogil:
    if o.tls == NULL or not o.tls.update_due or o.error:
        return False
    out_finish(o)
    if o.cap - o.end < SLACK and grow(c, o, SLACK) < 0:
        return False
    note(o, tls_update(o.tls, &o.key, o.data + o.end))
    o.end += TLS_KEY_UPDATE_RECORD
    return True


cdef void out_farewell(core* c, outbox* o, int error) noexcept nogil:
    cdef int code = ALERT_CLOSE_NOTIFY if error == RECORD_OK else tls_alert_for(error)
    if o.tls == NULL or o.error or code == ALERT_NONE:
        return
    out_finish(o)
    if o.cap - o.end < SLACK and grow(c, o, SLACK) < 0:
        return
    note(o, tls_alert(&o.key, o.data + o.end, code))
    o.end += TLS_ALERT_RECORD


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
    if o.in_pieces:
        aead_drop(&o.key)  # what was encrypted under its counter is nowhere, and nothing else may be
        o.in_pieces = 0
    if o.data != NULL:
        drop_buffer(c, o)
    o.start = o.end = 0
    o.record = o.frame = NOWHERE


cdef void out_forget(outbox* o) noexcept nogil:
    aead_free(&o.key)
    if o.tls != NULL:
        tls_wipe(o.tls)
        free(o.tls)
        o.tls = NULL
