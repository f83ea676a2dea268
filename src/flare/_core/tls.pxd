# Records of TLS 1.3 after the handshake (RFC 8446, 5), for links and for what is negotiated before one.

from libc.stdint cimport uint8_t, uint32_t

from flare._core.aead cimport aead
from flare._core.hkdf cimport SECRET_MAX

cdef enum:
    TLS_HEADER = 5
    TLS_TAG = 16
    TLS_PLAINTEXT = 1 << 14  # largest (5.1)
    TLS_CIPHERTEXT = TLS_PLAINTEXT + 256  # largest, type, padding and tag included (5.2)
    TLS_REKEY = 1 << 23  # records under one key before ours is changed: AES-GCM allows 2^24.5 (5.5)
    TLS_USELESS = 16  # records in a row without data before the peer is cut off: defends CPU
    TLS_KEY_UPDATE_RECORD = TLS_HEADER + 5 + 1 + TLS_TAG
    TLS_ALERT_RECORD = TLS_HEADER + 2 + 1 + TLS_TAG

cdef enum tls_alert_code:
    ALERT_CLOSE_NOTIFY = 0
    ALERT_NONE = 255

# What a connection keeps besides its two `aead`s. Zeroed memory is no valid state.
cdef struct tls_state:
    uint8_t send_secret[SECRET_MAX]
    uint8_t receive_secret[SECRET_MAX]
    uint8_t hash_size
    uint8_t kind  # of the aead
    uint8_t message[5]  # a handshake message's header and first byte, as far as they came
    uint8_t message_n
    uint32_t message_left  # bytes of its body
    uint8_t useless  # records without data since the last with some
    uint8_t alert  # what the peer ended with
    uint8_t update_due  # the peer asked for a KeyUpdate of ours

# Zero and set up the state and both directions from the traffic secrets of a cipher suite (RFC 8446, B.4:
# 0x1301 to 0x1303). 0, or -1 for an unknown suite or when the library fails.
cdef int tls_init(
    tls_state* t,
    aead* sending,
    aead* receiving,
    int suite,
    const uint8_t* send_secret,
    const uint8_t* receive_secret,
) noexcept nogil
cdef void tls_wipe(tls_state* t) noexcept nogil
# Bytes of a hash of the suite, 0: unknown.
cdef int tls_hash_size(int suite) noexcept nogil
# Bytes of the whole record whose header this is, or a record_error.
cdef int tls_record_size(const uint8_t* header) noexcept nogil
# Seals n bytes of application data that lie behind room for a header, before room for type and tag. An AEAD's
# error.
cdef int tls_seal(aead* sending, uint8_t* record, size_t n) noexcept nogil
# Opens a whole record in place. `n`: bytes of application data behind the header. A record_error.
cdef int tls_open(tls_state* t, aead* receiving, uint8_t* record, size_t size, size_t* n) noexcept nogil
# Writes a KeyUpdate, TLS_KEY_UPDATE_RECORD bytes, and changes the key (4.6.3). An AEAD's error.
cdef int tls_update(tls_state* t, aead* sending, uint8_t* record) noexcept nogil
# Writes an alert, TLS_ALERT_RECORD bytes. An AEAD's error.
cdef int tls_alert(aead* sending, uint8_t* record, int code) noexcept nogil
# The alert that tells the peer of a record_error of its making (6.2); ALERT_NONE: there is nothing to say.
cdef int tls_alert_for(int error) noexcept nogil
