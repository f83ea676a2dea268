# Authenticated encryption of records, for C code that holds no GIL. One `aead` is one direction of one
# connection, used by one thread at a time. Zeroed memory is a valid state that aead_free accepts.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    AEAD_TAG = 16  # bytes a sealed record is longer than its plaintext
    AEAD_KEY_MAX = 32
    AEAD_IV = 12

cdef enum:  # kind
    AEAD_CHACHA20_POLY1305 = 1
    AEAD_AES_128_GCM = 2
    AEAD_AES_256_GCM = 3

cdef enum:  # what the calls return
    AEAD_OK = 0
    AEAD_BAD_TAG = -1  # not what the key's owner sealed: the connection is over
    AEAD_EXHAUSTED = -2  # the counter stands at 2^64-1, which is never used (Noise, 5.1)
    AEAD_MISUSE = -3  # unknown kind, a record too long, or one state used for both directions
    AEAD_BACKEND = -4  # the library failed: out of memory, or the cipher is switched off

cdef struct aead:
    void* ctx  # EVP_CIPHER_CTX*, or the PyObject* of `cryptography`'s cipher; NULL while parked
    uint64_t nonce  # of the next record; may be set before the first
    uint8_t key[AEAD_KEY_MAX]
    uint8_t iv[AEAD_IV]  # xored with the counter, as TLS 1.3 does; zero for Noise
    uint8_t kind
    uint8_t direction  # 0: not used yet, then AEAD_SEALS or AEAD_OPENS for good
    uint8_t little_endian  # Noise's ChaChaPoly counts in little-endian, everything else in big-endian

# Noise's nonces: 4 zero bytes and the counter. `key` holds as many bytes as the kind takes. Overwrites `a`
# without freeing what it held.
cdef int aead_init(aead* a, int kind, const uint8_t* key) noexcept nogil
# TLS 1.3's nonces: the counter, big-endian, xored into a 12-byte IV (RFC 8446, 5.3).
cdef int aead_init_iv(aead* a, int kind, const uint8_t* key, const uint8_t* iv) noexcept nogil
# Encrypts n bytes of buf in place and writes the tag at buf + n, which must have room for it. Returns AEAD_OK
# or what went wrong.
cdef int aead_seal(aead* a, uint8_t* buf, size_t n) noexcept nogil
# Decrypts in place; n counts the tag, the plaintext is the first n - AEAD_TAG bytes. On AEAD_BAD_TAG they are
# zeroed and the counter stays.
cdef int aead_open(aead* a, uint8_t* buf, size_t n) noexcept nogil
# The same with additional data that is authenticated and not sent.
cdef int aead_seal_ad(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil
cdef int aead_open_ad(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil
# The same as aead_seal in pieces, from anywhere to anywhere else, which saves a copy: aead_piece between
# aead_begin and aead_end, which writes the tag. Only where aead_is_native; nothing else may be done with `a`
# in between. What was begun and is not ended costs its counter: aead_drop.
cdef int aead_begin(aead* a) noexcept nogil
cdef int aead_piece(aead* a, uint8_t* out, const uint8_t* data, size_t n) noexcept nogil
cdef int aead_end(aead* a, uint8_t* tag) noexcept nogil
cdef void aead_drop(aead* a) noexcept nogil
# Gives the cipher context back and keeps key and counter: for an idle connection. The next record makes a new
# one.
cdef void aead_park(aead* a) noexcept nogil
# Frees the context and zeroes the key; `a` then is as if zeroed.
cdef void aead_free(aead* a) noexcept nogil
# Zeroes secrets; no compiler drops it.
cdef void wipe(void* p, size_t n) noexcept nogil
# 1 when no call takes the GIL.
cdef bint aead_is_native() noexcept nogil
