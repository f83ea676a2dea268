"""HKDF-Expand-Label of TLS 1.3 (RFC 8446, 7.1): from a traffic secret to a key, an IV or the next secret.

HMAC comes from the libcrypto of aead.pyx, without the GIL; where that can't be reached, from Python.
"""

import hmac as _hmac

from flare._core.aead import backend as _backend
from flare._core.libcrypto import find as _find_libcrypto
from flare.errors import UsageError

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, strlen

from flare._core.aead cimport wipe

cdef enum:
    LABEL_MAX = 16
    INFO_MAX = 2 + 1 + 6 + LABEL_MAX + 1 + 1

ctypedef const void* (*hash_fn)() noexcept nogil
ctypedef uint8_t* (*hmac_fn)(
    const void*, const void*, int, const uint8_t*, size_t, uint8_t*, unsigned int*
) noexcept nogil

_NEEDED = ("HMAC", "EVP_sha256", "EVP_sha384")

cdef hmac_fn hmac_call = NULL
cdef hash_fn sha256 = NULL
cdef hash_fn sha384 = NULL


cdef int expand_label(
    int hash_size, const uint8_t* secret, const char* label, uint8_t* out, size_t n
) noexcept nogil:
    cdef uint8_t info[INFO_MAX]
    cdef uint8_t block[SECRET_MAX]
    cdef size_t label_n = strlen(label)
    cdef size_t info_n = 2 + 1 + 6 + label_n + 1 + 1
    cdef int error
    if (hash_size != 32 and hash_size != 48) or n > <size_t>hash_size or label_n > LABEL_MAX:
        return -1
    # struct HkdfLabel, and the number of the only block behind it (RFC 5869, 2.3)
    info[0] = 0
    info[1] = <uint8_t>n
    info[2] = <uint8_t>(6 + label_n)
    memcpy(info + 3, b"tls13 ", 6)
    memcpy(info + 9, label, label_n)
    info[9 + label_n] = 0
    info[10 + label_n] = 1
    if hmac_call != NULL:
        error = native_hmac(hash_size, secret, info, info_n, block)
    else:
        error = python_hmac(hash_size, secret, info, info_n, block)
    if error == 0:
        memcpy(out, block, n)
    wipe(block, SECRET_MAX)
    return error


cdef int native_hmac(
    int hash_size, const uint8_t* secret, const uint8_t* info, size_t n, uint8_t* out
) noexcept nogil:
    cdef unsigned int out_n = 0
    cdef const void* hash = sha256() if hash_size == 32 else sha384()
    if hmac_call(hash, secret, hash_size, info, n, out, &out_n) == NULL:
        return -1
    return 0 if out_n == <unsigned int>hash_size else -1


cdef int python_hmac(
    int hash_size, const uint8_t* secret, const uint8_t* info, size_t n, uint8_t* out
) noexcept with gil:
    cdef bytes digest
    try:
        digest = _hmac.digest(
            PyBytes_FromStringAndSize(<const char*>secret, hash_size),
            PyBytes_FromStringAndSize(<const char*>info, n),
            "sha256" if hash_size == 32 else "sha384",
        )
    except Exception:  # the caller is C: it gets a code, whatever the library raised
        return -1
    memcpy(out, PyBytes_AS_STRING(digest), hash_size)
    return 0


cdef int choose() except -1:
    global hmac_call, sha256, sha384
    found = _find_libcrypto() if _backend() != "cryptography" else None
    if found is None or not all(found.symbols[name] for name in _NEEDED):
        return 0
    sha256 = <hash_fn><uintptr_t>found.symbols["EVP_sha256"]
    sha384 = <hash_fn><uintptr_t>found.symbols["EVP_sha384"]
    hmac_call = <hmac_fn><uintptr_t>found.symbols["HMAC"]
    return 0


choose()


def hkdf_expand_label(const uint8_t[::1] secret not None, bytes label not None, size_t size):
    cdef uint8_t out[SECRET_MAX]
    if secret.shape[0] not in (32, 48) or size > <size_t>secret.shape[0] or len(label) > LABEL_MAX:
        raise UsageError("a secret has 32 or 48 bytes, a label at most 16, and no more come out")
    if expand_label(<int>secret.shape[0], &secret[0], label, out, size) < 0:
        raise MemoryError("HMAC failed")
    return PyBytes_FromStringAndSize(<const char*>out, size)
