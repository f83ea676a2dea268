"""QUIC's packets of data: their protection, and the frames that bulk transfer is made of.

Short headers only (RFC 9000, 17.3), with the ciphers of libcrypto (RFC 9001, 5). What is in any way unusual
is not judged here: `Keys.open` gives the payload, or None, and the engine does as it does without this.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset

from flare._core.aead import backend as _backend
from flare._core.libcrypto import find as _find_libcrypto
from flare.errors import InvalidKey, UsageError

from flare._core.aead cimport (
    AEAD_AES_128_GCM,
    AEAD_AES_256_GCM,
    AEAD_CHACHA20_POLY1305,
    AEAD_IV,
    AEAD_OK,
    AEAD_TAG,
    aead,
    aead_free,
    aead_init_iv,
    aead_open_ad,
    aead_seal_ad,
)
from flare._core.cursor cimport CURSOR_OK, CURSOR_SHORT, cursor, cursor_take

cdef enum:
    SAMPLE = 16          # bytes that header protection looks at (RFC 9001, 5.4.2)
    NUMBER = 4           # bytes of our packet numbers: right however many packets are under way
    CID_MAX = 20
    DATAGRAM_MAX = 65535
    VARINT_MAX_BYTES = 8
    LONG = 0x80
    FIXED_BIT = 0x40
    RESERVED_BITS = 0x18
    PADDING = 0x00
    PING = 0x01
    ACK = 0x02
    STREAM = 0x08
    STREAM_FIN = 0x01
    STREAM_LENGTH = 0x02
    STREAM_OFFSET = 0x04

cdef uint64_t VARINT_MAX = (1 << 62) - 1

ctypedef void* (*ctx_new_fn)() noexcept nogil
ctypedef void (*ctx_free_fn)(void*) noexcept nogil
ctypedef int (*init_fn)(void*, const void*, void*, const uint8_t*, const uint8_t*, int) noexcept nogil
ctypedef int (*update_fn)(void*, uint8_t*, int*, const uint8_t*, int) noexcept nogil
ctypedef const void* (*cipher_fn)() noexcept nogil

cdef ctx_new_fn ctx_new = NULL
cdef ctx_free_fn ctx_free = NULL
cdef init_fn init = NULL
cdef update_fn update = NULL
cdef const void* mask_ciphers[4]  # by the kind of the AEAD beside it

_NEEDED = ("EVP_aes_128_ecb", "EVP_aes_256_ecb", "EVP_chacha20")

# One packet's plaintext. The GIL is held from when it is filled until it was read.
cdef uint8_t plain[DATAGRAM_MAX]


cdef int choose() except -1:
    global ctx_new, ctx_free, init, update
    found = _find_libcrypto() if _backend() != "cryptography" else None
    if found is None or not all(found.symbols[name] for name in _NEEDED):
        return 0
    symbols = found.symbols
    mask_ciphers[<int>AEAD_AES_128_GCM] = (<cipher_fn><uintptr_t>symbols["EVP_aes_128_ecb"])()
    mask_ciphers[<int>AEAD_AES_256_GCM] = (<cipher_fn><uintptr_t>symbols["EVP_aes_256_ecb"])()
    mask_ciphers[<int>AEAD_CHACHA20_POLY1305] = (<cipher_fn><uintptr_t>symbols["EVP_chacha20"])()
    ctx_free = <ctx_free_fn><uintptr_t>symbols["EVP_CIPHER_CTX_free"]
    init = <init_fn><uintptr_t>symbols["EVP_CipherInit_ex"]
    update = <update_fn><uintptr_t>symbols["EVP_CipherUpdate"]
    ctx_new = <ctx_new_fn><uintptr_t>symbols["EVP_CIPHER_CTX_new"]
    return 0


choose()


def available():
    return ctx_new != NULL


# Variable-length integers (RFC 9000, 16)

cdef inline int pull(cursor* c, uint64_t* value) noexcept nogil:
    cdef const uint8_t* first = cursor_take(c, 1)
    cdef const uint8_t* rest
    cdef int i, more
    if first == NULL:
        return CURSOR_SHORT
    more = (1 << (first[0] >> 6)) - 1
    rest = cursor_take(c, more)
    if rest == NULL:
        return CURSOR_SHORT
    value[0] = first[0] & 0x3F
    for i in range(more):
        value[0] = value[0] << 8 | rest[i]
    return CURSOR_OK


cdef inline size_t push(uint8_t* out, uint64_t value) noexcept nogil:
    """`value` in as few bytes as it takes: 1, 2, 4 or 8; returns how many."""
    cdef size_t n = 1 if value < 1 << 6 else 2 if value < 1 << 14 else 4 if value < 1 << 30 else 8
    cdef size_t i
    for i in range(n):
        out[i] = <uint8_t>(value >> (8 * (n - 1 - i)))
    out[0] |= 0x00 if n == 1 else 0x40 if n == 2 else 0x80 if n == 4 else 0xC0
    return n


cdef inline size_t pushed(uint64_t value) noexcept nogil:
    return 1 if value < 1 << 6 else 2 if value < 1 << 14 else 4 if value < 1 << 30 else 8


cdef size_t push_stream_header(
    uint8_t* out, uint64_t stream, uint64_t offset, uint64_t size, bint fin, bint sized
) noexcept nogil:
    cdef size_t n = 1
    out[0] = STREAM | (STREAM_FIN if fin else 0) | (STREAM_LENGTH if sized else 0)
    n += push(out + n, stream)
    if offset:
        out[0] |= STREAM_OFFSET
        n += push(out + n, offset)
    if sized:
        n += push(out + n, size)
    return n


def stream_overhead(uint64_t stream, uint64_t offset):
    """Bytes before the data in a STREAM frame that ends a packet; behind others it has a length: 2 more."""
    return 1 + pushed(stream) + (pushed(offset) if offset else 0)


def stream_frame(
    uint64_t stream, uint64_t offset, bytearray data not None, Py_ssize_t at, Py_ssize_t size, bint fin
):
    """A STREAM frame with its length (RFC 9000, 19.8)."""
    cdef uint8_t head[1 + 3 * VARINT_MAX_BYTES]
    cdef size_t n
    if at < 0 or size < 0 or at + size > len(data) or stream > VARINT_MAX or offset > VARINT_MAX:
        raise UsageError("a piece of the stream that is not there")
    n = push_stream_header(head, stream, offset, size, fin, True)
    made = PyBytes_FromStringAndSize(NULL, n + size)
    memcpy(PyBytes_AS_STRING(made), head, n)
    memcpy(PyBytes_AS_STRING(made) + n, <char*>data + at, size)
    return made


# What came

cdef list pull_ack(cursor* c, uint64_t* delay):
    """[(start, stop)], the lowest first; None when a frame is not as RFC 9000, 19.3 has it."""
    cdef uint64_t largest, count, length, gap
    cdef list found = []
    if (
        pull(c, &largest) != CURSOR_OK or pull(c, delay) != CURSOR_OK
        or pull(c, &count) != CURSOR_OK or pull(c, &length) != CURSOR_OK or length > largest
    ):
        return None
    found.append((largest - length, largest + 1))
    largest -= length
    while count:
        if pull(c, &gap) != CURSOR_OK or pull(c, &length) != CURSOR_OK or gap + 2 > largest:
            return None
        largest -= gap + 2
        if length > largest:
            return None
        found.append((largest - length, largest + 1))
        largest -= length
        count -= 1
    found.reverse()
    return found


cdef tuple pull_stream(cursor* c, int kind):
    """(stream, offset, data, fin); None when it is cut off or reaches too far."""
    cdef uint64_t stream, offset = 0, size
    cdef const uint8_t* data
    if pull(c, &stream) != CURSOR_OK:
        return None
    if kind & STREAM_OFFSET and pull(c, &offset) != CURSOR_OK:
        return None
    if kind & STREAM_LENGTH:
        if pull(c, &size) != CURSOR_OK:
            return None
    else:
        size = c.end - c.ptr
    data = cursor_take(c, size)
    if data == NULL or offset + size > VARINT_MAX:
        return None
    return stream, offset, PyBytes_FromStringAndSize(<const char*>data, size), bool(kind & STREAM_FIN)


cdef tuple frames_of(uint64_t number, const uint8_t* data, size_t size):
    cdef cursor c
    cdef const uint8_t* kind
    cdef uint64_t delay = 0
    cdef bint eliciting = False, unusual = size == 0
    cdef list acked = None, streams = []
    cdef tuple piece
    c.ptr, c.end = data, data + size
    while c.ptr < c.end and not unusual:
        kind = cursor_take(&c, 1)
        if kind[0] == PADDING:
            continue
        if kind[0] == PING:
            eliciting = True
        elif kind[0] & ~0x07 == STREAM:
            piece = pull_stream(&c, kind[0])
            unusual = piece is None
            eliciting = True
            streams.append(piece)
        elif kind[0] == ACK and acked is None:
            acked = pull_ack(&c, &delay)
            unusual = acked is None
        else:
            unusual = True
    if unusual:
        return number, PyBytes_FromStringAndSize(<const char*>data, size), None, 0, None, False
    return number, None, acked, delay, streams, eliciting


def frames(bytes payload not None):
    """What `Keys.open` makes of a payload; its number is 0. For tests."""
    return frames_of(0, <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


cdef uint64_t whole_number(uint64_t expected, uint64_t low, int size) noexcept nogil:
    """A packet's number by its last bytes (RFC 9000, A.3)."""
    cdef uint64_t window = <uint64_t>1 << (8 * size)
    cdef uint64_t half = window >> 1
    cdef uint64_t found = (expected & ~(window - 1)) | low
    if found + half <= expected and found < VARINT_MAX + 1 - window:
        return found + window
    if found > expected + half and found >= window:
        return found - window
    return found


cdef class Keys:
    """See quic.pyi."""

    cdef aead state
    cdef void* mask_ctx
    cdef bint chacha
    cdef readonly int phase

    def __cinit__(
        self, int kind, const uint8_t[::1] key not None, const uint8_t[::1] iv not None,
        const uint8_t[::1] mask_key not None, int phase=0
    ):
        cdef Py_ssize_t size = 16 if kind == AEAD_AES_128_GCM else 32
        if ctx_new == NULL:
            raise UsageError("libcrypto is not within reach")
        if kind not in (AEAD_AES_128_GCM, AEAD_AES_256_GCM, AEAD_CHACHA20_POLY1305):
            raise UsageError(f"unknown AEAD kind {kind}")
        if key.shape[0] != size or mask_key.shape[0] != size or iv.shape[0] != AEAD_IV:
            raise InvalidKey(f"keys of {size} bytes and an IV of {AEAD_IV} needed")
        aead_init_iv(&self.state, kind, &key[0], &iv[0])
        self.chacha = kind == AEAD_CHACHA20_POLY1305
        self.phase = phase & 1
        self.mask_ctx = ctx_new()
        if self.mask_ctx == NULL or init(self.mask_ctx, mask_ciphers[kind], NULL, &mask_key[0], NULL, 1) != 1:
            raise MemoryError

    def __dealloc__(self):
        if self.mask_ctx != NULL:
            ctx_free(self.mask_ctx)
        aead_free(&self.state)

    cdef int mask(self, const uint8_t* sample, uint8_t* out) except -1:
        """Five bytes that hide a header (RFC 9001, 5.4)."""
        cdef int done = 0
        cdef uint8_t block[SAMPLE]
        if self.chacha:
            memset(block, 0, 5)
            if init(self.mask_ctx, NULL, NULL, NULL, sample, 1) == 1:
                update(self.mask_ctx, block, &done, block, 5)
        else:
            update(self.mask_ctx, block, &done, sample, SAMPLE)
        if done < 5:
            raise MemoryError("libcrypto failed")
        memcpy(out, block, 5)
        return 0

    def open(self, bytes datagram not None, bytes cid not None, uint64_t expected):
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(datagram)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(datagram)
        cdef Py_ssize_t at = 1 + PyBytes_GET_SIZE(cid)
        cdef uint8_t mask[5]
        cdef uint8_t header[1 + CID_MAX + 4]
        cdef uint64_t low = 0
        cdef Py_ssize_t head
        cdef int i, numbers
        if at > 1 + CID_MAX or size < at + 4 + SAMPLE or size > DATAGRAM_MAX:
            return None
        if data[0] & LONG or memcmp(data + 1, PyBytes_AS_STRING(cid), at - 1) != 0:
            return None
        self.mask(data + at + 4, mask)
        memcpy(header, data, at + 4)
        header[0] ^= mask[0] & 0x1F
        if header[0] & RESERVED_BITS or (header[0] >> 2) & 1 != self.phase:
            return None
        numbers = (header[0] & 3) + 1
        for i in range(numbers):
            header[at + i] ^= mask[1 + i]
            low = low << 8 | header[at + i]
        head = at + numbers
        memcpy(plain, data + head, size - head)
        self.state.nonce = whole_number(expected, low, numbers)
        cdef uint64_t number = self.state.nonce
        if aead_open_ad(&self.state, header, head, plain, size - head) != AEAD_OK:
            return None
        return frames_of(number, plain, size - head - AEAD_TAG)

    def seal(self, bytes cid not None, uint64_t number, bytes frames not None, Py_ssize_t size=0):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(frames)
        cdef Py_ssize_t head = 1 + PyBytes_GET_SIZE(cid) + NUMBER
        cdef bytes made
        cdef uint8_t* body
        size = max(size, head + n + AEAD_TAG)
        made = self.begin(cid, number, size)
        body = <uint8_t*>PyBytes_AS_STRING(made) + head
        memcpy(body, PyBytes_AS_STRING(frames), n)
        memset(body + n, PADDING, size - head - n - AEAD_TAG)
        self.finish(made, head, number)
        return made

    def seal_stream(
        self, bytes cid not None, uint64_t number, bytes frames not None, uint64_t stream, uint64_t offset,
        bytearray data not None, Py_ssize_t at, Py_ssize_t size, bint fin
    ):
        return self.stream_packet(cid, number, frames, stream, offset, data, at, size, fin)

    cdef bytes stream_packet(
        self, bytes cid, uint64_t number, bytes frames, uint64_t stream, uint64_t offset,
        bytearray data, Py_ssize_t at, Py_ssize_t size, bint fin
    ):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(frames)
        cdef Py_ssize_t head = 1 + PyBytes_GET_SIZE(cid) + NUMBER
        cdef uint8_t opening[1 + 2 * VARINT_MAX_BYTES]
        cdef Py_ssize_t opened
        cdef bytes made
        cdef uint8_t* body
        if at < 0 or size < 0 or at + size > len(data) or stream > VARINT_MAX or offset > VARINT_MAX:
            raise UsageError("a piece of the stream that is not there")
        opened = push_stream_header(opening, stream, offset, size, fin, False)
        made = self.begin(cid, number, head + n + opened + size + AEAD_TAG)
        body = <uint8_t*>PyBytes_AS_STRING(made) + head
        memcpy(body, PyBytes_AS_STRING(frames), n)
        memcpy(body + n, opening, opened)
        memcpy(body + n + opened, <char*>data + at, size)
        self.finish(made, head, number)
        return made

    def seal_run(
        self, bytes cid not None, uint64_t number, uint64_t stream, uint64_t offset, bytearray data not None,
        Py_ssize_t at, Py_ssize_t size, Py_ssize_t room, Py_ssize_t count
    ):
        cdef list made = []
        cdef Py_ssize_t n
        if at < 0 or size < 0 or at + size > len(data):
            raise UsageError("a piece of the stream that is not there")
        while count > 0:
            n = room - 1 - pushed(stream) - (pushed(offset) if offset else 0)
            if n <= 0 or n > size:
                break
            made.append((
                self.stream_packet(cid, number, b"", stream, offset, data, at, n, False), offset, offset + n
            ))
            number += 1
            offset += n
            at += n
            size -= n
            count -= 1
        return made

    cdef bytes begin(self, bytes cid, uint64_t number, Py_ssize_t size):
        """A datagram with its header, unprotected yet."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(cid)
        cdef bytes made
        cdef uint8_t* out
        cdef int i
        if n > CID_MAX or size > DATAGRAM_MAX:
            raise UsageError("a packet that is too long")
        made = PyBytes_FromStringAndSize(NULL, size)
        out = <uint8_t*>PyBytes_AS_STRING(made)
        out[0] = FIXED_BIT | self.phase << 2 | NUMBER - 1
        memcpy(out + 1, PyBytes_AS_STRING(cid), n)
        for i in range(NUMBER):
            out[1 + n + i] = <uint8_t>(number >> (8 * (NUMBER - 1 - i)))
        return made

    cdef int finish(self, bytes made, Py_ssize_t head, uint64_t number) except -1:
        """Encrypt what is behind the header, and hide the header."""
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(made)
        cdef uint8_t mask[5]
        cdef int i
        self.state.nonce = number
        if aead_seal_ad(
            &self.state, out, head, out + head, PyBytes_GET_SIZE(made) - head - AEAD_TAG
        ) != AEAD_OK:
            raise MemoryError("libcrypto failed")
        self.mask(out + head, mask)  # the sample begins four bytes behind where the number does
        out[0] ^= mask[0] & 0x1F
        for i in range(NUMBER):
            out[head - NUMBER + i] ^= mask[1 + i]
        return 0
