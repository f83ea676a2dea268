"""Records of TLS 1.3 after the handshake (RFC 8446, 5), and what may still come: alerts, tickets, new keys.

Tickets are skipped: every connection of libp2p authenticates anew. A KeyUpdate is followed, and answered when
the peer asks; our own key changes long before AES-GCM's limit.
"""

from libc.string cimport memcpy, memset

from flare._core.aead cimport (
    AEAD_AES_128_GCM,
    AEAD_AES_256_GCM,
    AEAD_BACKEND,
    AEAD_BAD_TAG,
    AEAD_CHACHA20_POLY1305,
    AEAD_EXHAUSTED,
    AEAD_IV,
    AEAD_KEY_MAX,
    AEAD_OK,
    aead_free,
    aead_init_iv,
    aead_open_ad,
    aead_seal_ad,
    wipe,
)
from flare._core.hkdf cimport expand_label
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

cdef enum content_type:  # RFC 8446, 5.1
    CONTENT_ALERT = 21
    CONTENT_HANDSHAKE = 22
    CONTENT_DATA = 23

cdef enum handshake_type:  # RFC 8446, 4
    NEW_SESSION_TICKET = 4
    KEY_UPDATE = 24

cdef enum:
    MESSAGE_HEADER = 4
    UPDATE_REQUESTED = 1


# Keys

cdef int tls_hash_size(int suite) noexcept nogil:
    if suite == 0x1301 or suite == 0x1303:
        return 32
    return 48 if suite == 0x1302 else 0


cdef int tls_init(
    tls_state* t,
    aead* sending,
    aead* receiving,
    int suite,
    const uint8_t* send_secret,
    const uint8_t* receive_secret,
) noexcept nogil:
    cdef int size = tls_hash_size(suite)
    memset(t, 0, sizeof(tls_state))
    memset(sending, 0, sizeof(aead))
    memset(receiving, 0, sizeof(aead))
    if size == 0:
        return -1
    t.hash_size = <uint8_t>size
    t.kind = AEAD_AES_128_GCM
    if suite == 0x1302:
        t.kind = AEAD_AES_256_GCM
    elif suite == 0x1303:
        t.kind = AEAD_CHACHA20_POLY1305
    t.alert = ALERT_NONE
    memcpy(t.send_secret, send_secret, size)
    memcpy(t.receive_secret, receive_secret, size)
    if set_key(t, sending, t.send_secret) < 0 or set_key(t, receiving, t.receive_secret) < 0:
        return -1
    return 0


cdef int set_key(const tls_state* t, aead* direction, const uint8_t* secret) noexcept nogil:
    """Key and IV of a traffic secret, the counter at 0 (7.3)."""
    cdef uint8_t key[AEAD_KEY_MAX]
    cdef uint8_t iv[AEAD_IV]
    cdef size_t key_n = 16 if t.kind == AEAD_AES_128_GCM else 32
    cdef int error = expand_label(t.hash_size, secret, b"key", key, key_n)
    if error == 0:
        error = expand_label(t.hash_size, secret, b"iv", iv, AEAD_IV)
    aead_free(direction)
    if error == 0 and aead_init_iv(direction, t.kind, key, iv) != AEAD_OK:
        error = -1
    wipe(key, AEAD_KEY_MAX)
    return error


cdef int next_key(const tls_state* t, aead* direction, uint8_t* secret) noexcept nogil:
    """The secret after this one, and its key (7.2)."""
    cdef uint8_t following[SECRET_MAX]
    if expand_label(t.hash_size, secret, b"traffic upd", following, t.hash_size) < 0:
        return -1
    memcpy(secret, following, t.hash_size)
    wipe(following, SECRET_MAX)
    return set_key(t, direction, secret)


cdef void tls_wipe(tls_state* t) noexcept nogil:
    wipe(t, sizeof(tls_state))


# Out

cdef int seal(aead* sending, uint8_t* record, size_t n, int content) noexcept nogil:
    cdef size_t sealed = n + 1 + TLS_TAG
    record[0] = CONTENT_DATA
    record[1] = record[2] = 3  # TLS 1.2, as every record says (5.1)
    record[3] = <uint8_t>(sealed >> 8)
    record[4] = <uint8_t>sealed
    record[TLS_HEADER + n] = <uint8_t>content
    return aead_seal_ad(sending, record, TLS_HEADER, record + TLS_HEADER, n + 1)


cdef int tls_seal(aead* sending, uint8_t* record, size_t n) noexcept nogil:
    return seal(sending, record, n, CONTENT_DATA)


cdef int tls_update(tls_state* t, aead* sending, uint8_t* record) noexcept nogil:
    cdef int error
    cdef uint8_t* message = record + TLS_HEADER
    t.update_due = 0
    message[0] = KEY_UPDATE
    message[1] = message[2] = 0
    message[3] = 1
    message[4] = 0  # the peer's own key may stay
    error = seal(sending, record, MESSAGE_HEADER + 1, CONTENT_HANDSHAKE)
    if error == AEAD_OK and next_key(t, sending, t.send_secret) < 0:
        error = AEAD_BACKEND
    return error


cdef int tls_alert(aead* sending, uint8_t* record, int code) noexcept nogil:
    record[TLS_HEADER] = 1 if code == ALERT_CLOSE_NOTIFY else 2  # warning or fatal
    record[TLS_HEADER + 1] = <uint8_t>code
    return seal(sending, record, 2, CONTENT_ALERT)


cdef int tls_alert_for(int error) noexcept nogil:
    if error == RECORD_FORGED or error == RECORD_SHORT:
        return 20  # bad_record_mac
    if error == RECORD_LARGE:
        return 22  # record_overflow
    if error == RECORD_OUTER_TYPE or error == RECORD_UNTYPED or error == RECORD_CONTENT_TYPE:
        return 10  # unexpected_message
    if error == RECORD_HANDSHAKE or error == RECORD_USELESS:
        return 10
    if error == RECORD_BAD_ALERT:
        return 50  # decode_error
    return 80 if error == RECORD_MEMORY else ALERT_NONE  # internal_error


# In

cdef int tls_record_size(const uint8_t* header) noexcept nogil:
    cdef int size = <int>header[3] << 8 | header[4]
    if header[0] != CONTENT_DATA:
        return RECORD_OUTER_TYPE
    if size > TLS_CIPHERTEXT:
        return RECORD_LARGE
    return TLS_HEADER + size if size > TLS_TAG else RECORD_SHORT


cdef int tls_open(tls_state* t, aead* receiving, uint8_t* record, size_t size, size_t* n) noexcept nogil:
    cdef uint8_t* text = record + TLS_HEADER
    cdef size_t end = size - TLS_HEADER - TLS_TAG  # tls_record_size saw to it that this is 1 or more
    cdef int content
    cdef int error = aead_open_ad(receiving, record, TLS_HEADER, text, size - TLS_HEADER)
    n[0] = 0
    if error != AEAD_OK:
        if error == AEAD_BAD_TAG:
            return RECORD_FORGED
        return RECORD_EXHAUSTED if error == AEAD_EXHAUSTED else RECORD_MEMORY
    if end - 1 > TLS_PLAINTEXT:
        return RECORD_LARGE
    while end > 0 and text[end - 1] == 0:  # padding
        end -= 1
    if end == 0:
        return RECORD_UNTYPED
    end -= 1
    content = text[end]
    if content == CONTENT_DATA and t.message_n == 0:
        if end > 0:
            t.useless = 0
            n[0] = end
            return RECORD_OK
    elif content == CONTENT_ALERT:
        error = heed(t, text, end)
    elif content == CONTENT_HANDSHAKE:
        error = follow(t, receiving, text, end)
    else:
        return RECORD_CONTENT_TYPE
    if error != RECORD_OK:
        return error
    t.useless += 1
    return RECORD_OK if t.useless <= TLS_USELESS else RECORD_USELESS


cdef int heed(tls_state* t, const uint8_t* text, size_t n) noexcept nogil:
    """An alert (6). All but two end the connection, whatever level they state."""
    if n != 2:
        return RECORD_BAD_ALERT
    if text[1] == ALERT_CLOSE_NOTIFY:
        return RECORD_CLOSED
    if text[1] == 90:  # user_canceled: a close_notify follows
        return RECORD_OK
    t.alert = text[1]
    return RECORD_ALERT


cdef int follow(tls_state* t, aead* receiving, const uint8_t* text, size_t n) noexcept nogil:
    """Handshake messages, which may begin and end anywhere in records (4.6, 5.1)."""
    cdef size_t part
    cdef size_t needed
    if n == 0:
        return RECORD_HANDSHAKE  # 5.1: no empty fragments
    while n:
        # a header; of a KeyUpdate its one byte too
        needed = MESSAGE_HEADER + (1 if t.message_n and t.message[0] == KEY_UPDATE else 0)
        if t.message_n < needed:
            t.message[t.message_n] = text[0]
            t.message_n += 1
            text += 1
            n -= 1
            if t.message_n == 1 and t.message[0] != NEW_SESSION_TICKET and t.message[0] != KEY_UPDATE:
                return RECORD_HANDSHAKE
            if t.message_n == MESSAGE_HEADER:
                t.message_left = (
                    <uint32_t>t.message[1] << 16 | <uint32_t>t.message[2] << 8 | t.message[3]
                )
                if t.message[0] == KEY_UPDATE and t.message_left != 1:
                    return RECORD_HANDSHAKE
            if t.message_n == MESSAGE_HEADER + 1:
                if t.message[4] > UPDATE_REQUESTED or n:  # what follows is under the next key (5.1)
                    return RECORD_HANDSHAKE
                if next_key(t, receiving, t.receive_secret) < 0:
                    return RECORD_MEMORY
                t.update_due |= t.message[4]
                t.message_n = 0
                t.message_left = 0
        else:
            part = min(n, <size_t>t.message_left)
            text += part
            n -= part
            t.message_left -= <uint32_t>part
        if t.message_n == MESSAGE_HEADER and t.message[0] == NEW_SESSION_TICKET and t.message_left == 0:
            t.message_n = 0
    return RECORD_OK
