"""Peers that speak Noise well and then misbehave: yamux frames by hand, handshakes that lie."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flare._core.wire import encode_uvarint
from flare.config import Timeouts
from flare.errors import FlareError
from flare.transport import multistream, noise
from flare.transport.channel import SocketChannel
from flare.transport.noise import RecordSecrets
from flare.transport.upgrade import RecordChannel, upgrade
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_SIZE = 256 * 1024


def header(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    """A frame's 12 bytes (specs/yamux, "Framing")."""
    return struct.pack(">BBHII", version, kind, flags, stream, length)


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    """A DATA frame."""
    return header(DATA, flags, stream, len(payload)) + payload


@dataclass(frozen=True)
class Frame:
    """A frame that came."""

    kind: int
    flags: int
    stream: int
    length: int
    payload: bytes


@asynccontextmanager
async def raw(addr: Multiaddr, source: str = "") -> AsyncIterator[socket.socket]:
    """A TCP connection to `addr`, from the IP `source` if given, that has said nothing."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (str(addr.ip), addr.port))
        yield sock


async def ends(sock: socket.socket, timeout: float) -> bool:
    """Whether the other side ends the connection within `timeout` seconds; what it says before is dropped."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            while await loop.sock_recv(sock, 65536):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


class Client:
    """A dialler with a Noise session, and yamux frames made by hand. Its streams have odd ids."""

    def __init__(self, sock: socket.socket, records: RecordChannel, channel: SocketChannel) -> None:
        self.sock = sock
        self._records = records
        self._channel = channel
        self._next = 1

    async def send(self, *frames: bytes) -> None:
        """The frames, in one record if they fit."""
        await self._records.write(b"".join(frames))

    async def send_raw(self, wire: bytes) -> None:
        """Bytes past the encryption."""
        await self._channel.write(wire)

    async def frame(self) -> Frame:
        """The next frame. FlareError at the end of the connection."""
        kind, flags, stream, length = struct.unpack(">xBHII", await self._records.read_exactly(12))
        payload = await self._records.read_exactly(length) if kind == DATA else b""
        return Frame(kind, flags, stream, length, payload)

    async def frames(self, timeout: float) -> list[Frame]:
        """All that come until the host ends the connection, or none came for `timeout` seconds."""
        found: list[Frame] = []
        try:
            while True:
                async with asyncio.timeout(timeout):
                    found.append(await self.frame())
        except (FlareError, TimeoutError):
            return found

    async def open(self, protocol: str, *more: bytes) -> int:
        """A stream that proposed `protocol`, and wrote `more` in the same record; gives its id."""
        stream, self._next = self._next, self._next + 2
        await self.send(data(stream, multistream.proposal(protocol) + b"".join(more), SYN))
        return stream

    async def answers(self, stream: int, size: int, timeout: float = 5) -> bytes:
        """The first `size` bytes that come on `stream`; fewer when it is reset or the connection ends."""
        got = b""
        async with asyncio.timeout(timeout):
            while len(got) < size:
                frame = await self.frame()
                if frame.stream == stream:
                    got += frame.payload
                    if frame.flags & (RST | FIN):
                        break
        return got

    async def ping(self) -> bool:
        """Whether the host still serves /ipfs/ping on this connection."""
        stream = await self.open("/ipfs/ping/1.0.0", bytes(range(32)))
        answer = multistream.proposal("/ipfs/ping/1.0.0") + bytes(range(32))
        try:
            return await self.answers(stream, len(answer)) == answer
        except (FlareError, TimeoutError):
            return False


@asynccontextmanager
async def client(
    addr: Multiaddr, identity: Identity | None = None, source: str = ""
) -> AsyncIterator[Client]:
    """A hostile dialler of the host at `addr`, past its Noise handshake."""
    async with raw(addr, source) as sock:
        channel = SocketChannel(asyncio.get_running_loop(), sock)
        upgraded = await upgrade(
            channel,
            identity or Identity.generate(),
            initiator=True,
            expected_peer=None,
            timeouts=Timeouts(),
            security=("noise",),
        )
        assert not upgraded.leftover
        assert isinstance(upgraded.records, RecordSecrets)
        yield Client(sock, RecordChannel(channel, upgraded.records), channel)


def liar(victim: Identity, how: str) -> Identity:
    """An identity whose Noise handshakes claim to be `victim`'s, or are otherwise not what they should be."""
    identity = Identity.generate()
    private, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    key = victim.public_key.to_protobuf()
    signed = noise._SIGNED + public
    match how:
        case "another's key, our signature":
            signature = identity.sign(signed)
        case "another's signature of another static key":
            signature = victim.sign(noise._SIGNED + other.public_key().public_bytes_raw())
        case "a signature without the prefix":
            signature = victim.sign(public)
        case "no signature":
            signature = b""
        case "a key that is none":
            key, signature = b"\x08\x01\x12\x05short", victim.sign(signed)
        case "a key of an unknown kind":
            key, signature = b"\x08\x63\x12\x00", victim.sign(signed)
        case "an endless key":
            key, signature = b"\x08\x01\x12" + encode_uvarint(1 << 40), victim.sign(signed)
        case _:
            raise ValueError(how)
    noise._statics[identity] = noise._Static(private, public, key, signature)
    return identity


LIES = [
    "another's key, our signature",
    "another's signature of another static key",
    "a signature without the prefix",
    "no signature",
    "a key that is none",
    "a key of an unknown kind",
    "an endless key",
]
