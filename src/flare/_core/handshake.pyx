"""The listener's side of a handshake in C: bytes in, bytes out, record keys in the end.

A relay answers a handshake for every peer that comes, and beside the curve arithmetic the interpreter's share
of it was the largest: a dozen awaits, and twenty hashes a handshake. Here one call for each packet does it,
without the GIL, on functions of the libcrypto that `ssl` loaded. Whatever is not the usual course (another
proposal than Noise, a greeting that comes alone) is left to flare.transport.upgrade with nothing answered.

Noise_XX_25519_ChaChaPoly_SHA256 (Noise rev. 34; noise/README.md), each message behind its length:

    -> e
    <- e, ee, s, es, payload
    -> s, se, payload
"""

import hmac as _hmac
import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey as _X25519

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from flare._core.aead cimport (
    AEAD_CHACHA20_POLY1305, AEAD_OK, aead, aead_free, aead_init, aead_is_native, aead_open_ad, aead_seal_ad
)

from flare._core.libcrypto import HANDSHAKE as _NEEDED
from flare._core.libcrypto import find as _find_libcrypto
from flare.errors import AuthenticationFailed, DecodeError, FrameTooLarge, InvalidKey, UsageError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t n, int flags)
    ssize_t recv(int fd, void* data, size_t n, int flags)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT

cdef extern from *:
    """
    static void flare_forget(void *p, size_t n) {
        volatile unsigned char *bytes = (volatile unsigned char *)p;
        while (n--) *bytes++ = 0;
    }
    """
    void flare_forget(void* p, size_t n) noexcept nogil

cdef enum:
    KEY = 32
    HASH = 32
    TAG = 16
    BLOCK = 64  # of SHA-256
    CHUNK = 4096  # bytes read at once
    MAX_MESSAGE = 4096  # bytes of a handshake message, as flare.transport.noise has it: defends memory
    MAX_PAYLOAD = MAX_MESSAGE - 2 * KEY - 2 * TAG  # of our own
    EVP_PKEY_X25519 = 1034

cdef enum phase:
    NEGOTIATES
    AWAITS_FIRST
    AWAITS_THIRD
    IS_DONE
    IS_ELSEWHERE
    FAILED

cdef enum failure:
    NONE
    SHORT_FIRST
    SHORT_THIRD
    TOO_LONG
    SMALL_ORDER
    BAD_STATIC
    BAD_PAYLOAD
    NO_MEMORY
    BACKEND

WAITS = 0
DONE = 1
ELSEWHERE = 2

cdef const char* PROPOSAL = b"\x13/multistream/1.0.0\n\x07/noise\n"
cdef const char* NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
cdef enum:
    PROPOSAL_SIZE = 28
    GREETING_SIZE = 20


include "noise_state.pxi"


cdef class StaticKey:
    cdef void* key
    cdef void* ctx
    cdef readonly bytes public
    cdef const uint8_t* public_data
    cdef bytes payload

    def __cinit__(self, bytes private not None, bytes payload not None):
        if not usable:
            raise UsageError("no libcrypto to do it with: ask available() first")
        if len(private) != KEY:
            raise InvalidKey(f"an X25519 key has {KEY} bytes, not {len(private)}")
        if len(payload) > MAX_PAYLOAD:
            raise UsageError(f"a payload of {len(payload)} bytes, at most {MAX_PAYLOAD}")
        self.key = new_key(private)
        self.ctx = derivation(self.key)
        if self.ctx == NULL:
            raise MemoryError
        self.public = public_of(self.key)
        self.public_data = <const uint8_t*>PyBytes_AS_STRING(self.public)
        self.payload = payload

    def __dealloc__(self):
        if self.key != NULL:
            crypto.ctx_free(self.ctx)
            crypto.key_free(self.key)


cdef void* new_key(bytes private) except NULL:
    cdef void* key = crypto.new_private(
        EVP_PKEY_X25519, NULL, <const uint8_t*>PyBytes_AS_STRING(private), KEY
    )
    if key == NULL:
        raise MemoryError("libcrypto gives no key")
    return key


cdef bytes public_of(void* key):
    cdef uint8_t public[KEY]
    cdef size_t n = KEY
    if crypto.get_public(key, public, &n) != 1 or n != KEY:
        raise MemoryError("libcrypto gives no public key")
    return PyBytes_FromStringAndSize(<const char*>public, KEY)


cdef class Responder:
    cdef int fd
    cdef phase at
    cdef failure why
    cdef StaticKey mine
    cdef void* static_ctx  # its parts, for code without the GIL
    cdef const uint8_t* static_public
    cdef const uint8_t* said
    cdef size_t said_n
    cdef void* ephemeral
    cdef void* ephemeral_ctx
    cdef symmetric s
    cdef uint8_t remote_ephemeral[KEY]
    cdef uint8_t theirs[KEY]  # static
    cdef uint8_t receiving[KEY]
    cdef uint8_t sending[KEY]
    cdef uint8_t* data  # received and not yet taken
    cdef size_t size
    cdef size_t room
    cdef size_t payload_at
    cdef size_t payload_size
    cdef size_t wanted  # bytes that the message announced which is too short
    cdef uint8_t* out
    cdef size_t out_size

    def __cinit__(self, int fd, StaticKey key not None, *, bytes ephemeral=None):
        self.fd = fd
        self.mine = key
        self.static_ctx = key.ctx
        self.static_public = key.public_data
        self.said = <const uint8_t*>PyBytes_AS_STRING(key.payload)
        self.said_n = PyBytes_GET_SIZE(key.payload)
        if ephemeral is not None:
            if len(ephemeral) != KEY:
                raise InvalidKey(f"an X25519 key has {KEY} bytes, not {len(ephemeral)}")
            self.ephemeral = new_key(ephemeral)

    def __dealloc__(self):
        self.shut()
        free(self.data)
        free(self.out)

    cdef void shut(self):
        if self.ephemeral != NULL:
            crypto.ctx_free(self.ephemeral_ctx)
            crypto.key_free(self.ephemeral)
            self.ephemeral = self.ephemeral_ctx = NULL
        flare_forget(&self.s, sizeof(symmetric))
        flare_forget(self.receiving, KEY)
        flare_forget(self.sending, KEY)

    @property
    def state(self):
        return DONE if self.at == IS_DONE else ELSEWHERE if self.at == IS_ELSEWHERE else WAITS

    @property
    def remote_static(self):
        return PyBytes_FromStringAndSize(<const char*>self.theirs, KEY)

    @property
    def payload(self):
        return PyBytes_FromStringAndSize(<const char*>self.data + self.payload_at, self.payload_size)

    @property
    def send_key(self):
        return PyBytes_FromStringAndSize(<const char*>self.sending, KEY)

    @property
    def recv_key(self):
        return PyBytes_FromStringAndSize(<const char*>self.receiving, KEY)

    @property
    def rest(self):
        cdef size_t start = self.payload_at + self.payload_size + TAG if self.at == IS_DONE else 0
        return PyBytes_FromStringAndSize(<const char*>self.data + start, self.size - start)

    def advance(self):
        cdef uint8_t chunk[CHUNK]
        cdef ssize_t n
        cdef int error
        self.check()
        with nogil:
            while True:
                n = recv(self.fd, chunk, CHUNK, MSG_DONTWAIT)
                if n >= 0 or errno != EINTR:
                    break
            error = errno if n < 0 else 0
            if n > 0:
                self.take(chunk, n)
        if n == 0:
            raise EOFError
        if error:
            if error == EAGAIN:
                return WAITS
            raise OSError(error, os.strerror(error))
        self.verdict()
        if self.out_size:
            n = send(self.fd, self.out, self.out_size, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n < 0:
                raise OSError(errno, os.strerror(errno))
            if <size_t>n < self.out_size:
                raise OSError(EAGAIN, "the socket takes no handshake")
            self.out_size = 0
        return self.state

    def feed(self, data):
        cdef Py_buffer view
        cdef bytes said
        self.check()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            self.take(<const uint8_t*>view.buf, view.len)
        PyBuffer_Release(&view)
        self.verdict()
        said = PyBytes_FromStringAndSize(<const char*>self.out, self.out_size)
        self.out_size = 0
        return said

    cdef int check(self) except -1:
        if self.at >= IS_DONE:
            raise UsageError("this handshake is over")
        return 0

    cdef int verdict(self) except -1:
        cdef failure why = self.why
        if why == NONE:
            return 0
        self.shut()
        if why == SHORT_FIRST or why == SHORT_THIRD:
            which, least = ("first", KEY) if why == SHORT_FIRST else ("third", KEY + 2 * TAG)
            raise DecodeError(
                f"{which} message of {self.wanted} bytes, at least {least} expected", protocol="/noise"
            )
        if why == TOO_LONG:
            raise FrameTooLarge(self.wanted, MAX_MESSAGE, protocol="/noise")
        if why == SMALL_ORDER:
            raise AuthenticationFailed("a key of small order", protocol="/noise")
        if why == BAD_STATIC:
            raise AuthenticationFailed("the static key of the initiator does not decrypt", protocol="/noise")
        if why == BAD_PAYLOAD:
            raise AuthenticationFailed("the payload of the initiator does not decrypt", protocol="/noise")
        raise MemoryError("no memory for a handshake")

    # What follows runs without the GIL.

    cdef void fail(self, failure why) noexcept nogil:
        self.why = why
        self.at = FAILED

    cdef void take(self, const uint8_t* data, size_t n) noexcept nogil:
        cdef size_t room
        cdef uint8_t* grown
        if self.size + n > self.room:
            room = max(2 * self.room, self.size + n, <size_t>512)
            grown = <uint8_t*>realloc(self.data, room)
            if grown == NULL:
                self.fail(NO_MEMORY)
                return
            self.data = grown
            self.room = room
        memcpy(self.data + self.size, data, n)
        self.size += n
        if self.at == NEGOTIATES:
            self.negotiate()
        if self.at == AWAITS_FIRST:
            self.first()
        if self.at == AWAITS_THIRD:
            self.third()

    cdef void drop(self, size_t n) noexcept nogil:
        self.size -= n
        memmove(self.data, self.data + n, self.size)

    cdef void negotiate(self) noexcept nogil:
        cdef size_t n = min(self.size, <size_t>PROPOSAL_SIZE)
        if memcmp(self.data, PROPOSAL, n) != 0 or self.size == GREETING_SIZE:
            self.at = IS_ELSEWHERE  # or a greeting that waits for ours
        elif n == PROPOSAL_SIZE:
            self.drop(n)
            self.say(<const uint8_t*>PROPOSAL, n)
            self.at = AWAITS_FIRST

    cdef uint8_t* more(self, size_t n) noexcept nogil:
        """Room for `n` bytes more to say; NULL: it has failed."""
        cdef uint8_t* grown = <uint8_t*>realloc(self.out, self.out_size + n)
        if grown == NULL:
            self.fail(NO_MEMORY)
            return NULL
        self.out = grown
        self.out_size += n
        return grown + self.out_size - n

    cdef void say(self, const uint8_t* data, size_t n) noexcept nogil:
        cdef uint8_t* room = self.more(n)
        if room != NULL:
            memcpy(room, data, n)

    cdef bint whole(self, size_t least, failure short) noexcept nogil:
        """Whether all of the next message is here."""
        if self.size < 2:
            return False
        self.wanted = <size_t>self.data[0] << 8 | self.data[1]
        if self.wanted < least:
            self.fail(short)
            return False
        if self.wanted > MAX_MESSAGE:
            self.fail(TOO_LONG)
            return False
        return self.size >= 2 + self.wanted

    cdef void first(self) noexcept nogil:
        cdef symmetric* s = &self.s
        cdef uint8_t private[KEY]
        cdef uint8_t* message
        cdef size_t n = KEY
        cdef size_t payload_n = self.said_n
        cdef size_t size = KEY + KEY + TAG + payload_n + TAG
        if not self.whole(KEY, SHORT_FIRST):
            return
        memcpy(s.hash, NAME, HASH)  # 32 bytes, so that it is its own hash (Noise 5.2)
        memcpy(s.chain, NAME, HASH)
        mix_hash(s, NULL, 0)  # the empty prologue
        memcpy(self.remote_ephemeral, self.data + 2, KEY)
        mix_hash(s, self.remote_ephemeral, KEY)
        # the rest is in the clear: bound to the transcript, and ignored
        mix_hash(s, self.data + 2 + KEY, self.wanted - KEY)
        self.drop(2 + self.wanted)

        if self.ephemeral == NULL:
            if crypto.random(private, KEY) == 1:
                self.ephemeral = crypto.new_private(EVP_PKEY_X25519, NULL, private, KEY)
            flare_forget(private, KEY)
        message = self.more(2 + size)
        if message == NULL:
            return
        message[0] = <uint8_t>(size >> 8)
        message[1] = <uint8_t>size
        message += 2
        if self.ephemeral != NULL:
            self.ephemeral_ctx = derivation(self.ephemeral)
        if self.ephemeral_ctx == NULL or crypto.get_public(self.ephemeral, message, &n) != 1:
            self.fail(BACKEND)
            return
        mix_hash(s, message, KEY)
        if not mix_key(s, self.ephemeral_ctx, self.remote_ephemeral):  # ee
            self.fail(SMALL_ORDER)
            return
        message += KEY
        memcpy(message, self.static_public, KEY)
        if not seal(s, message, KEY):
            self.fail(BACKEND)
            return
        if not mix_key(s, self.static_ctx, self.remote_ephemeral):  # es
            self.fail(SMALL_ORDER)
            return
        message += KEY + TAG
        memcpy(message, self.said, payload_n)
        if not seal(s, message, payload_n):
            self.fail(BACKEND)
            return
        self.at = AWAITS_THIRD

    cdef void third(self) noexcept nogil:
        cdef symmetric* s = &self.s
        cdef uint8_t* message
        if not self.whole(KEY + 2 * TAG, SHORT_THIRD):
            return
        message = self.data + 2
        if not unseal(s, message, KEY + TAG):
            self.fail(BAD_STATIC)
            return
        memcpy(self.theirs, message, KEY)
        if not mix_key(s, self.ephemeral_ctx, self.theirs):  # se
            self.fail(SMALL_ORDER)
            return
        self.payload_at = 2 + KEY + TAG
        self.payload_size = self.wanted - KEY - 2 * TAG
        if not unseal(s, self.data + self.payload_at, self.payload_size + TAG):
            self.fail(BAD_PAYLOAD)
            return
        hkdf(s.chain, NULL, 0, self.sending)  # the initiator's records, then the responder's
        memcpy(self.receiving, s.chain, KEY)
        self.at = IS_DONE


# Choosing, once, at import

cdef bint choose():
    global usable
    if not aead_is_native():
        return False
    found = _find_libcrypto()
    if found is None:
        return False
    symbols = [found.symbols.get(name, 0) for name in _NEEDED]
    if not all(symbols):
        return False
    crypto.sha_init = <sha_init_fn><uintptr_t>symbols[0]
    crypto.sha_update = <sha_update_fn><uintptr_t>symbols[1]
    crypto.sha_final = <sha_final_fn><uintptr_t>symbols[2]
    crypto.new_private = <new_raw_fn><uintptr_t>symbols[3]
    crypto.new_public = <new_raw_fn><uintptr_t>symbols[4]
    crypto.get_public = <get_raw_fn><uintptr_t>symbols[5]
    crypto.key_free = <free_fn><uintptr_t>symbols[6]
    crypto.ctx_new = <ctx_new_fn><uintptr_t>symbols[7]
    crypto.ctx_free = <free_fn><uintptr_t>symbols[8]
    crypto.derive_init = <ctx_fn><uintptr_t>symbols[9]
    crypto.set_peer = <set_peer_fn><uintptr_t>symbols[10]
    crypto.derive = <derive_fn><uintptr_t>symbols[11]
    crypto.random = <random_fn><uintptr_t>symbols[12]
    crypto.clear_errors = <clear_fn><uintptr_t>symbols[13]
    return self_test()


cdef bint self_test():
    """What libcrypto gives is what `cryptography` and hashlib give."""
    cdef uint8_t shared[HASH]
    cdef uint8_t chain[HASH]
    cdef bytes private = bytes(range(KEY))
    cdef bytes public
    cdef void* key = new_key(private)
    cdef void* ctx = derivation(key)
    if ctx == NULL:
        crypto.key_free(key)
        return False
    try:
        expected = _X25519.from_private_bytes(private)
        public = expected.public_key().public_bytes_raw()
        if public_of(key) != public or not exchange(ctx, <const uint8_t*>PyBytes_AS_STRING(public), shared):
            return False
        if shared[:KEY] != expected.exchange(expected.public_key()):
            return False
        memcpy(chain, PyBytes_AS_STRING(private), KEY)
        hkdf(chain, <const uint8_t*>PyBytes_AS_STRING(public), KEY, shared)
        secret = _hmac.digest(private, public, "sha256")
        return shared[:HASH] == _hmac.digest(secret, chain[:HASH] + b"\x02", "sha256")
    finally:
        crypto.ctx_free(ctx)
        crypto.key_free(key)


usable = choose()


def available():
    return usable
