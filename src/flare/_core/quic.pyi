from typing_extensions import Buffer

Opened = tuple[
    int,
    bytes | None,
    list[tuple[int, int]] | None,
    int,
    list[tuple[int, int, bytes, bool]] | None,
    bool,
]
"""A packet: its number, its payload if that is unusual, and else ranges acknowledged (from, to just past,
lowest first; None without an ACK), their delay as encoded, STREAM frames as (stream, offset, data, fin), and
whether it asks for an acknowledgement."""

def available() -> bool:
    """Whether libcrypto is within reach; without it there are no Keys."""

def stream_overhead(stream: int, offset: int) -> int:
    """Bytes before the data in a STREAM frame that ends a packet; behind others it has a length: 2 more."""

def stream_frame(stream: int, offset: int, data: bytearray, at: int, size: int, fin: bool) -> bytes:
    """A STREAM frame with its length (RFC 9000, 19.8); `size` bytes of `data` from `at` on."""

def frames(payload: bytes) -> Opened:
    """What `Keys.open` makes of a payload; its number is 0. For tests."""

class Keys:
    """The protection of 1-RTT packets in one direction, in one key phase (RFC 9001, 5 and 6).

    `kind` is flare._core.aead's. InvalidKey for a key of the wrong size, UsageError without libcrypto.
    """

    def __init__(self, kind: int, key: Buffer, iv: Buffer, mask_key: Buffer, phase: int = 0) -> None: ...
    @property
    def phase(self) -> int: ...
    def open(self, datagram: bytes, cid: bytes, expected: int) -> Opened | None:
        """A datagram with a short header to `cid`; None when it is anything else:

        a long header, to another id, forged or cut off, of the other key phase, or with reserved bits.
        `expected` is the largest number that came and 1.
        """
    def seal(self, cid: bytes, number: int, frames: bytes, size: int = 0) -> bytes:
        """A datagram to `cid` with these frames, padded to `size` bytes."""
    def seal_stream(
        self,
        cid: bytes,
        number: int,
        frames: bytes,
        stream: int,
        offset: int,
        data: bytearray,
        at: int,
        size: int,
        fin: bool,
    ) -> bytes:
        """The same with a STREAM frame behind `frames`: `size` bytes of `data` from `at` on."""
    def seal_run(
        self,
        cid: bytes,
        number: int,
        stream: int,
        offset: int,
        data: bytearray,
        at: int,
        size: int,
        room: int,
        count: int,
    ) -> list[tuple[bytes, int, int]]:
        """Up to `count` datagrams, each filled by `room` bytes of one STREAM frame; from `number` on.

        With each, the offsets of its data in the stream: from, to. What is left of `size` fills no packet.
        """
