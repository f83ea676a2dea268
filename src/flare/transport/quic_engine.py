"""What flare asks of a QUIC implementation: datagrams in and out, timers, streams. No I/O and no clock.

An engine is handed every datagram and the time, and asked what to send and when it wants to be woken. Times
are seconds of time.monotonic(). So another engine (in C or Rust) takes the place of aioquic by implementing
`Engine` and `EngineConnection`, and calling `Events`; nothing else of flare knows which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

ALPN: Final = "libp2p"
VERSION_1: Final = 1
NO_ERROR: Final = 0  # libp2p's only application error code, of connections and of streams

Address = tuple[str, int] | tuple[str, int, str]  # see flare._core.udp
Verify = Callable[[Sequence[bytes]], None]
"""Judges the certificates that a peer showed, in DER; raises AuthenticationFailed."""


@dataclass(frozen=True, slots=True)
class Initial:
    """The header of a packet that may start a connection (RFC 9000, 17.2.2)."""

    destination: bytes  # the connection id that the client made up
    source: bytes
    token: bytes


class Events(Protocol):
    """What an engine tells of one connection, during `receive`, `expire` and `datagrams`."""

    def established(self) -> None:
        """The handshake is done and the peer's certificate was found good."""

    def stream_data(self, stream: int, data: bytes, fin: bool) -> None:
        """In order, and each byte once. A number not seen before is a stream that the peer opened."""

    def stream_reset(self, stream: int, code: int) -> None:
        """The peer gave up sending (RESET_STREAM)."""

    def stop_sending(self, stream: int, code: int) -> None:
        """The peer reads no more (STOP_SENDING); the engine has reset our side."""

    def pong(self, uid: int) -> None:
        """A ping was acknowledged."""

    def cid_issued(self, cid: bytes) -> None:
        """Datagrams with this connection id are the connection's from now on."""

    def cid_retired(self, cid: bytes) -> None:
        """... no more."""

    def token_learned(self, token: bytes) -> None:
        """A datagram that ends in these 16 bytes says that the peer knows nothing of the connection."""

    def terminated(self, reason: Exception | None) -> None:
        """It is over: None when it was closed here, ConnectionClosed, AuthenticationFailed, TimedOut."""


class EngineConnection(Protocol):
    """One connection. Every call may leave something to send: ask `datagrams` after it, then `deadline`."""

    @property
    def cids(self) -> Sequence[bytes]:
        """The connection ids that datagrams for it carry now."""

    @property
    def remote(self) -> Address:
        """Where the peer is now: it changes when a client migrates."""

    @property
    def rtt(self) -> float:
        """The smoothed round trip in seconds; 0: not measured yet."""

    @property
    def idle_timeout(self) -> float:
        """Seconds after which either side gives up a connection on which nothing comes."""

    @property
    def in_flight(self) -> bool:
        """Stream data was taken and is not acknowledged yet."""

    def receive(self, datagrams: Sequence[bytes], remote: Address, now: float) -> None:
        """Datagrams came, all from one place."""

    def datagrams(self, now: float) -> list[tuple[bytes, Address]]:
        """What to send now."""

    def deadline(self) -> float | None:
        """When to call `expire`; None: never."""

    def expire(self, now: float) -> None:
        """The deadline is over."""

    def open_stream(self) -> int:
        """A new bidirectional stream. ResourceLimit while too many wait for the peer to allow them."""

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for; returns how many bytes."""

    def writable(self, stream: int) -> bool:
        """`write` would take something."""

    def finish(self, stream: int) -> None:
        """No more to send on it (FIN)."""

    def reset(self, stream: int, code: int) -> None:
        """Give up sending on it."""

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to send no more on it."""

    def consumed(self, stream: int, size: int, *, again: bool) -> None:
        """`size` bytes of a stream are done with: the peer may send as many more, on it too when `again`."""

    def ping(self, uid: int) -> None:
        """Have something acknowledged: keeps the connection alive, and measures the round trip."""

    def close(self, code: int, reason: str) -> None:
        """Close at once; the peer is told by what `datagrams` gives next."""


class Engine(Protocol):
    """A QUIC implementation, for one identity."""

    @property
    def name(self) -> str:
        """It and its version."""

    def connect(self, remote: Address, verify: Verify, events: Events, now: float) -> EngineConnection:
        """A connection to be made."""

    def accept(
        self, initial: Initial, original: bytes | None, verify: Verify, events: Events
    ) -> EngineConnection:
        """A connection that a client begins; `original`: what `proved` gave after a retry, else None."""

    def initial(self, data: bytes) -> Initial | None:
        """What a datagram of 1200 bytes or more begins with, if it starts a connection."""

    def retry(self, initial: Initial, remote: Address, now: float) -> bytes:
        """The datagram that has a client prove its address (RFC 9000, 8.1.2)."""

    def proved(self, initial: Initial, remote: Address, now: float) -> bytes | None:
        """The connection id that the client made up first, if its token proves its address; else None."""

    def invalid_token(self, initial: Initial) -> bytes:
        """The datagram that refuses a client for its token (RFC 9000, 8.1.3)."""

    def negotiate_version(self, data: bytes) -> bytes | None:
        """The answer to a datagram in a version that is none of ours (RFC 9000, 6)."""

    def stateless_reset(self, data: bytes) -> bytes | None:
        """The answer to a datagram of a connection that nobody knows (RFC 9000, 10.3)."""
