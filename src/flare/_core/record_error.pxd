# What can be wrong with a record. The connection is over in each case but RECORD_OK; records.record_failure
# has the sentence for it.

cdef enum record_error:
    RECORD_OK = 0
    RECORD_FORGED = -1
    RECORD_SHORT = -2  # no room for a tag
    RECORD_EXHAUSTED = -3
    RECORD_MEMORY = -4
    # TLS only (RFC 8446)
    RECORD_CLOSED = -5  # close_notify: the end, and no error
    RECORD_OUTER_TYPE = -6  # another one than application_data (5.2)
    RECORD_LARGE = -7  # ciphertext or plaintext (5.2, 5.4)
    RECORD_UNTYPED = -8  # padding and nothing else (5.4)
    RECORD_CONTENT_TYPE = -9  # unknown, or amid a handshake message (5.1)
    RECORD_HANDSHAKE = -10  # a handshake message that has no place after the handshake (4.6)
    RECORD_ALERT = -11  # the peer ended it, and said why (6.2)
    RECORD_BAD_ALERT = -12
    RECORD_USELESS = -13  # many in a row that carried nothing
