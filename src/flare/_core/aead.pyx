"""Authenticated encryption of records: ChaCha20-Poly1305 and AES-GCM, in place, with counter nonces.

The work is done by EVP functions of the libcrypto that the interpreter's own `ssl` loaded (see libcrypto.py),
called from C without the GIL. Where they can't be reached, or with FLARE_AEAD=cryptography in the
environment, `cryptography` does the same and the GIL is taken around each record.

A context is made at the first record, with the key set; each record then sets only its nonce.
"""

import os

from cryptography.exceptions import InvalidTag as _InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM as _AESGCM
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305 as _ChaCha20Poly1305

from flare._core.libcrypto import find as _find_libcrypto
from flare.errors import AuthenticationFailed, InvalidKey, ResourceLimit, UsageError

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport UINT64_MAX, uintptr_t
from libc.string cimport memcpy, memset

CHACHA20_POLY1305 = AEAD_CHACHA20_POLY1305
AES_128_GCM = AEAD_AES_128_GCM
AES_256_GCM = AEAD_AES_256_GCM
TAG_SIZE = AEAD_TAG

cdef enum:
    AEAD_SEALS = 1
    AEAD_OPENS = 2
    EVP_CTRL_AEAD_GET_TAG = 0x10
    EVP_CTRL_AEAD_SET_TAG = 0x11
    MAX_RECORD = 1 << 30  # EVP counts in int

cdef extern from *:
    """
    /* not memset: a compiler drops one on memory that is about to be freed */
    static void flare_wipe(void *p, size_t n) {
        volatile unsigned char *bytes = (volatile unsigned char *)p;
        while (n--) *bytes++ = 0;
    }
    """
    void flare_wipe(void* p, size_t n) noexcept nogil

ctypedef const void* (*cipher_fn)() noexcept nogil
ctypedef void* (*fetch_fn)(void*, const char*, const char*) noexcept nogil

ctypedef void* (*ctx_new_fn)() noexcept nogil
ctypedef void (*ctx_free_fn)(void*) noexcept nogil
ctypedef int (*ctrl_fn)(void*, int, int, void*) noexcept nogil
ctypedef int (*init_fn)(void*, const void*, void*, const uint8_t*, const uint8_t*, int) noexcept nogil
ctypedef int (*update_fn)(void*, uint8_t*, int*, const uint8_t*, int) noexcept nogil
ctypedef int (*final_fn)(void*, uint8_t*, int*) noexcept nogil

cdef struct evp_calls:
    ctx_new_fn ctx_new
    ctx_free_fn ctx_free
    ctrl_fn ctrl
    init_fn init
    update_fn update
    final_fn final
    const void* ciphers[4]  # by kind

cdef evp_calls evp
cdef bint native = False


# States

cdef inline int key_size(int kind) noexcept nogil:
    if kind == AEAD_CHACHA20_POLY1305 or kind == AEAD_AES_256_GCM:
        return 32
    return 16 if kind == AEAD_AES_128_GCM else 0


cdef int aead_init(aead* a, int kind, const uint8_t* key) noexcept nogil:
    cdef int size = key_size(kind)
    memset(a, 0, sizeof(aead))
    if size == 0:
        return AEAD_MISUSE
    a.kind = <uint8_t>kind
    a.little_endian = kind == AEAD_CHACHA20_POLY1305
    memcpy(a.key, key, size)
    return AEAD_OK


cdef int aead_init_iv(aead* a, int kind, const uint8_t* key, const uint8_t* iv) noexcept nogil:
    cdef int error = aead_init(a, kind, key)
    if error == AEAD_OK:
        a.little_endian = 0
        memcpy(a.iv, iv, AEAD_IV)
    return error


cdef void aead_park(aead* a) noexcept nogil:
    if a.ctx == NULL:
        return
    if native:
        evp.ctx_free(a.ctx)
    else:
        release_object(a.ctx)
    a.ctx = NULL


cdef void aead_free(aead* a) noexcept nogil:
    aead_park(a)
    flare_wipe(a, sizeof(aead))


cdef void wipe(void* p, size_t n) noexcept nogil:
    flare_wipe(p, n)


cdef bint aead_is_native() noexcept nogil:
    return native


# Records

cdef int aead_seal(aead* a, uint8_t* buf, size_t n) noexcept nogil:
    return aead_seal_ad(a, NULL, 0, buf, n)


cdef int aead_open(aead* a, uint8_t* buf, size_t n) noexcept nogil:
    return aead_open_ad(a, NULL, 0, buf, n)


cdef int aead_seal_ad(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil:
    cdef int error = begin(a, AEAD_SEALS, ad_n, n)
    if error == AEAD_OK:
        error = evp_seal(a, ad, ad_n, buf, n) if native else object_seal(a, ad, ad_n, buf, n)
    if error == AEAD_OK:
        a.nonce += 1
    return error


cdef int aead_open_ad(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil:
    cdef int error
    if n < AEAD_TAG:
        return AEAD_BAD_TAG
    n -= AEAD_TAG
    error = begin(a, AEAD_OPENS, ad_n, n)
    if error != AEAD_OK:
        return error
    error = evp_open(a, ad, ad_n, buf, n) if native else object_open(a, ad, ad_n, buf, n)
    if error == AEAD_OK:
        a.nonce += 1
    else:
        memset(buf, 0, n)  # nobody may act on bytes that were not authenticated
    return error


cdef inline int begin(aead* a, int direction, size_t ad_n, size_t n) noexcept nogil:
    if a.direction != direction:
        # sealing and opening on one counter would use a nonce twice
        if a.direction != 0 or a.kind == 0:
            return AEAD_MISUSE
        a.direction = <uint8_t>direction
    if n > MAX_RECORD or ad_n > MAX_RECORD:
        return AEAD_MISUSE
    if a.nonce == UINT64_MAX:
        return AEAD_EXHAUSTED
    return AEAD_OK


cdef inline void put_nonce(const aead* a, uint8_t* out) noexcept nogil:
    cdef uint8_t counter[8]
    cdef int i
    # loops without a branch in them: compilers make one store of each
    if a.little_endian:
        for i in range(8):
            counter[i] = <uint8_t>(a.nonce >> (8 * i))
    else:
        for i in range(8):
            counter[i] = <uint8_t>(a.nonce >> (56 - 8 * i))
    memcpy(out, a.iv, AEAD_IV)
    for i in range(8):
        out[4 + i] ^= counter[i]


# libcrypto

cdef int evp_begin(aead* a, int encrypts) noexcept nogil:
    cdef uint8_t nonce[AEAD_IV]
    put_nonce(a, nonce)
    if a.ctx != NULL:
        return AEAD_OK if evp.init(a.ctx, NULL, NULL, NULL, nonce, encrypts) == 1 else AEAD_BACKEND
    a.ctx = evp.ctx_new()
    if a.ctx == NULL:
        return AEAD_BACKEND
    # both ciphers take a 12-byte IV unless told otherwise
    if evp.init(a.ctx, evp.ciphers[a.kind], NULL, a.key, nonce, encrypts) == 1:
        return AEAD_OK
    aead_park(a)
    return AEAD_BACKEND


cdef int evp_seal(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil:
    cdef int done = 0
    if evp_begin(a, 1) != AEAD_OK:
        return AEAD_BACKEND
    if (
        (ad_n == 0 or evp.update(a.ctx, NULL, &done, ad, <int>ad_n) == 1)
        and (n == 0 or evp.update(a.ctx, buf, &done, buf, <int>n) == 1)
        and evp.final(a.ctx, buf + n, &done) == 1
        and evp.ctrl(a.ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, buf + n) == 1
    ):
        return AEAD_OK
    aead_park(a)
    return AEAD_BACKEND


cdef int evp_open(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept nogil:
    cdef int done = 0
    cdef uint8_t nothing[AEAD_TAG]
    if evp_begin(a, 0) != AEAD_OK:
        return AEAD_BACKEND
    if not (
        evp.ctrl(a.ctx, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, buf + n) == 1
        and (ad_n == 0 or evp.update(a.ctx, NULL, &done, ad, <int>ad_n) == 1)
        and (n == 0 or evp.update(a.ctx, buf, &done, buf, <int>n) == 1)
    ):
        aead_park(a)
        return AEAD_BACKEND
    return AEAD_OK if evp.final(a.ctx, nothing, &done) == 1 else AEAD_BAD_TAG


# libcrypto, in pieces

cdef int aead_begin(aead* a) noexcept nogil:
    cdef int error = begin(a, AEAD_SEALS, 0, 0)
    if error == AEAD_OK:
        error = evp_begin(a, 1) if native else AEAD_MISUSE
    return error


cdef int aead_piece(aead* a, uint8_t* out, const uint8_t* data, size_t n) noexcept nogil:
    cdef int done = 0
    if n > MAX_RECORD or a.ctx == NULL:
        return AEAD_MISUSE
    return AEAD_OK if n == 0 or evp.update(a.ctx, out, &done, data, <int>n) == 1 else AEAD_BACKEND


cdef int aead_end(aead* a, uint8_t* tag) noexcept nogil:
    cdef int done = 0
    if a.ctx == NULL:
        return AEAD_MISUSE
    if (
        evp.final(a.ctx, tag, &done) != 1
        or evp.ctrl(a.ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, tag) != 1
    ):
        aead_park(a)
        return AEAD_BACKEND
    a.nonce += 1
    return AEAD_OK


cdef void aead_drop(aead* a) noexcept nogil:
    if a.nonce != UINT64_MAX:
        a.nonce += 1


# cryptography, with the GIL

cdef object make_cipher(const aead* a):
    key = PyBytes_FromStringAndSize(<const char*>a.key, key_size(a.kind))
    return _ChaCha20Poly1305(key) if a.kind == AEAD_CHACHA20_POLY1305 else _AESGCM(key)


cdef object cipher_of(aead* a):
    if a.ctx == NULL:
        cipher = make_cipher(a)
        Py_INCREF(cipher)
        a.ctx = <void*>cipher
    return <object>a.ctx


cdef void release_object(void* held) noexcept with gil:
    Py_DECREF(<object>held)


cdef bytes nonce_bytes(const aead* a):
    cdef uint8_t nonce[AEAD_IV]
    put_nonce(a, nonce)
    return PyBytes_FromStringAndSize(<const char*>nonce, AEAD_IV)


cdef bytes copy_of(const uint8_t* data, size_t n):
    return PyBytes_FromStringAndSize(<const char*>data if n else NULL, n)


# The copies: `cryptography` does not promise that its input and its output may be one buffer.

cdef int object_seal(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept with gil:
    try:
        cipher = cipher_of(a)
        plaintext = copy_of(buf, n)
        if hasattr(cipher, "encrypt_into"):
            cipher.encrypt_into(
                nonce_bytes(a), plaintext, copy_of(ad, ad_n),
                PyMemoryView_FromMemory(<char*>buf, n + AEAD_TAG, PyBUF_WRITE),
            )
        else:
            sealed = cipher.encrypt(nonce_bytes(a), plaintext, copy_of(ad, ad_n))
            memcpy(buf, PyBytes_AS_STRING(sealed), n + AEAD_TAG)
    except Exception:  # the caller is C: it gets a code, whatever the library raised
        return AEAD_BACKEND
    return AEAD_OK


cdef int object_open(aead* a, const uint8_t* ad, size_t ad_n, uint8_t* buf, size_t n) noexcept with gil:
    try:
        cipher = cipher_of(a)
        sealed = copy_of(buf, n + AEAD_TAG)
        if hasattr(cipher, "decrypt_into"):
            cipher.decrypt_into(
                nonce_bytes(a), sealed, copy_of(ad, ad_n),
                PyMemoryView_FromMemory(<char*>buf if n else <char*>a.iv, n, PyBUF_WRITE),
            )
        else:
            opened = cipher.decrypt(nonce_bytes(a), sealed, copy_of(ad, ad_n))
            memcpy(buf, PyBytes_AS_STRING(opened), n)
    except _InvalidTag:
        return AEAD_BAD_TAG
    except Exception:  # the caller is C: it gets a code, whatever the library raised
        return AEAD_BACKEND
    return AEAD_OK


# Choosing, once, at import

cdef const void* cipher_at(dict symbols, str getter, bytes name):
    cdef fetch_fn fetch = <fetch_fn><uintptr_t>symbols["EVP_CIPHER_fetch"]
    cdef cipher_fn get = <cipher_fn><uintptr_t>symbols[getter]
    cdef const void* fetched = NULL
    if fetch != NULL:
        fetched = fetch(NULL, name, NULL)
    return fetched if fetched != NULL else get()


cdef bint self_test():
    """One record under each kind, there and back."""
    cdef aead sender
    cdef aead receiver
    cdef uint8_t key[AEAD_KEY_MAX]
    cdef uint8_t record[3 + AEAD_TAG]
    cdef int kind
    cdef bint good = True
    memset(key, 7, AEAD_KEY_MAX)
    for kind in range(AEAD_CHACHA20_POLY1305, AEAD_AES_256_GCM + 1):
        memcpy(record, b"abc", 3)
        aead_init(&sender, kind, key)
        aead_init(&receiver, kind, key)
        good = good and aead_seal(&sender, record, 3) == AEAD_OK
        good = good and copy_of(record, 3 + AEAD_TAG) == make_cipher(&sender).encrypt(bytes(12), b"abc", None)
        good = good and aead_open(&receiver, record, 3 + AEAD_TAG) == AEAD_OK and copy_of(record, 3) == b"abc"
        aead_free(&sender)
        aead_free(&receiver)
    return good


cdef str choose_backend():
    global native
    found = None if os.environ.get("FLARE_AEAD") == "cryptography" else _find_libcrypto()
    if found is None:
        return "cryptography"
    symbols = found.symbols
    evp.ctx_new = <ctx_new_fn><uintptr_t>symbols["EVP_CIPHER_CTX_new"]
    evp.ctx_free = <ctx_free_fn><uintptr_t>symbols["EVP_CIPHER_CTX_free"]
    evp.ctrl = <ctrl_fn><uintptr_t>symbols["EVP_CIPHER_CTX_ctrl"]
    evp.init = <init_fn><uintptr_t>symbols["EVP_CipherInit_ex"]
    evp.update = <update_fn><uintptr_t>symbols["EVP_CipherUpdate"]
    evp.final = <final_fn><uintptr_t>symbols["EVP_CipherFinal_ex"]
    evp.ciphers[<int>AEAD_CHACHA20_POLY1305] = cipher_at(
        symbols, "EVP_chacha20_poly1305", b"ChaCha20-Poly1305"
    )
    evp.ciphers[<int>AEAD_AES_128_GCM] = cipher_at(symbols, "EVP_aes_128_gcm", b"AES-128-GCM")
    evp.ciphers[<int>AEAD_AES_256_GCM] = cipher_at(symbols, "EVP_aes_256_gcm", b"AES-256-GCM")
    native = True
    if self_test():
        words = found.version.split()
        return f"libcrypto {words[1]}" if words[0] == "OpenSSL" else f"libcrypto {found.version}"
    native = False  # such as a FIPS build without ChaCha20
    return "cryptography"


cdef str chosen = choose_backend()


def backend():
    return chosen


# For tests and benchmarks

cdef class Aead:
    cdef aead state

    def __cinit__(
        self, const uint8_t[::1] key not None, int kind=AEAD_CHACHA20_POLY1305, *, iv=None, nonce=0
    ):
        cdef const uint8_t[::1] given
        cdef int size = key_size(kind)
        if size == 0:
            raise UsageError(f"unknown AEAD kind {kind}")
        if key.shape[0] != size:
            raise InvalidKey(f"a key of {key.shape[0]} bytes, {size} needed")
        if not 0 <= nonce <= UINT64_MAX:
            raise UsageError("a nonce has 64 bits")
        if iv is None:
            aead_init(&self.state, kind, &key[0])
        else:
            given = iv
            if given.shape[0] != AEAD_IV:
                raise UsageError(f"an IV of {given.shape[0]} bytes, {AEAD_IV} needed")
            aead_init_iv(&self.state, kind, &key[0], &given[0])
        self.state.nonce = nonce

    def __dealloc__(self):
        aead_free(&self.state)

    @property
    def nonce(self):
        return self.state.nonce

    @property
    def parked(self):
        return self.state.ctx == NULL

    def park(self):
        aead_park(&self.state)

    def seal_pieces(self, pieces):
        cdef bytearray made = bytearray(sum(map(len, pieces)) + AEAD_TAG)
        cdef uint8_t[::1] out = made
        cdef const uint8_t[::1] piece
        cdef size_t at = 0
        check(aead_begin(&self.state))
        for data in pieces:
            if data:
                piece = data
                check(aead_piece(&self.state, &out[at], &piece[0], piece.shape[0]))
                at += piece.shape[0]
        check(aead_end(&self.state, &out[at]))
        return bytes(made)

    def seal(self, data, ad=b""):
        record = bytearray(data)
        cdef size_t n = len(record)
        record.extend(bytes(AEAD_TAG))
        self.seal_in_place(record, n, ad)
        return bytes(record)

    def open(self, data, ad=b""):
        record = bytearray(data)
        n = self.open_in_place(record, ad)
        return bytes(memoryview(record)[:n])

    def seal_in_place(self, uint8_t[::1] buffer not None, size_t n, const uint8_t[::1] ad not None=b""):
        cdef uint8_t* start = &buffer[0] if buffer.shape[0] else NULL
        cdef const uint8_t* extra = &ad[0] if ad.shape[0] else NULL
        cdef size_t room = buffer.shape[0]
        cdef size_t extra_n = ad.shape[0]
        cdef int error
        if room < AEAD_TAG or n > room - AEAD_TAG:
            raise UsageError(f"{n} bytes and a tag of {AEAD_TAG} do not fit into {room}")
        with nogil:
            error = aead_seal_ad(&self.state, extra, extra_n, start, n)
        check(error)

    def open_in_place(self, uint8_t[::1] buffer not None, const uint8_t[::1] ad not None=b""):
        cdef uint8_t* start = &buffer[0] if buffer.shape[0] else NULL
        cdef const uint8_t* extra = &ad[0] if ad.shape[0] else NULL
        cdef size_t n = buffer.shape[0]
        cdef size_t extra_n = ad.shape[0]
        cdef int error
        with nogil:
            error = aead_open_ad(&self.state, extra, extra_n, start, n)
        check(error)
        return n - AEAD_TAG


cdef int check(int error) except -1:
    if error == AEAD_OK:
        return 0
    if error == AEAD_BAD_TAG:
        raise AuthenticationFailed("a record does not verify under its key and counter")
    if error == AEAD_EXHAUSTED:
        raise ResourceLimit("all 2^64-1 nonces of this key are used")
    if error == AEAD_MISUSE:
        raise UsageError("a key seals or opens, not both, and no record above 1 GiB")
    raise MemoryError(f"{chosen} could not run the cipher")
