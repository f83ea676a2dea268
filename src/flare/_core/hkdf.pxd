# HKDF-Expand-Label of TLS 1.3 (RFC 8446, 7.1), for C code that holds no GIL.

from libc.stdint cimport uint8_t

cdef enum:
    SECRET_MAX = 48  # bytes of a secret: the size of its hash

# n bytes, at most the hash's, derived from a secret of hash_size bytes (32: SHA-256, 48: SHA-384) with an
# empty context. 0, or -1 when the library fails.
cdef int expand_label(
    int hash_size, const uint8_t* secret, const char* label, uint8_t* out, size_t n
) noexcept nogil
