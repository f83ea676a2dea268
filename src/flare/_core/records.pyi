from typing_extensions import Buffer

class RecordKeys:
    """What `Engine.attach` needs to know of a handshake. One object serves one link."""

class PlainRecords(RecordKeys):
    """No records and no secrecy: for tests."""

    def __init__(self) -> None: ...

class NoiseRecords(RecordKeys):
    """Noise transport messages (noise/README.md, "Wire Format"): 32-byte keys and the nonces they stand at.

    Raises InvalidKey for a key of another size.
    """

    def __init__(
        self, send_key: Buffer, recv_key: Buffer, send_nonce: int = 0, recv_nonce: int = 0
    ) -> None: ...

class TlsRecords(RecordKeys):
    """Records of TLS 1.3 (RFC 8446, 5): traffic secrets of a cipher suite (B.4) and the sequence numbers.

    Until a link takes them over they seal and open what is negotiated before. Raises UsageError for an
    unknown suite, InvalidKey for a secret of another size than its hash.
    """

    def __init__(
        self, suite: int, send_secret: Buffer, recv_secret: Buffer, send_nonce: int = 0, recv_nonce: int = 0
    ) -> None: ...
    @property
    def send_nonce(self) -> int:
        """The sequence number of the next record sent."""
    @property
    def recv_nonce(self) -> int:
        """The sequence number of the next record received."""
    def size(self, header: Buffer) -> int:
        """Bytes of the whole record with this header of 5 bytes. ProtocolViolation for a wrong one."""
    def seal(self, data: Buffer) -> bytes:
        """`data` in records, behind a KeyUpdate when the peer asked for one."""
    def open(self, record: Buffer) -> bytes:
        """The application data of one whole record; b"" when it held something else, which is heeded.

        Raises AuthenticationFailed, also for an alert, ProtocolViolation, and ConnectionClosed at
        close_notify.
        """
    def unread(self, data: Buffer) -> bytes:
        """The end of what `open` gave last as the record to be opened next: for a link to begin with."""
