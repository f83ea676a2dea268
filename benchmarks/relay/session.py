"""A connection to a relay by hand: secured, and yamux just as far as setting up one circuit needs.

The load runs in C, on the descriptor and the keys; a `Session` gets there with what flare has for
handshakes, and knows at each moment where its records and windows stand. It is one straight line: whoever
waits reads frames.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import Final, Self

from benchmarks.relay.keys import OpenRecords
from flare._core.records import TlsRecords
from flare.config import Security, Timeouts
from flare.transport import multistream
from flare.transport.channel import BufferedChannel, SocketChannel
from flare.transport.noise import RecordSecrets
from flare.transport.upgrade import RecordChannel, TlsChannel, upgrade
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

HEADER: Final = struct.Struct(">BBHII")
DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, RST = 1, 2, 8
FIRST_WINDOW: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class End:
    """What the load needs to go on from here."""

    fd: int
    send_key: bytes = field(repr=False)
    recv_key: bytes = field(repr=False)
    send_nonce: int
    recv_nonce: int
    stream: int
    window: int
    leftover: bytes

    def __str__(self) -> str:
        keys = f"{self.send_key.hex()} {self.recv_key.hex()} {self.send_nonce} {self.recv_nonce}"
        return f"{self.fd} {keys} {self.stream} {self.window} {self.leftover.hex() or '-'}"


class YamuxStream(BufferedChannel):
    """One stream of a session."""

    def __init__(self, session: Session, number: int, flags: int) -> None:
        super().__init__(session.peer)
        self.session = session
        self.number = number
        self.window = FIRST_WINDOW
        self._flags = flags  # to be said with the first frame

    async def _receive(self) -> bytes:
        while not (data := self.session.arrived(self.number)):
            await self.session.step()
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data` in one frame."""
        self.window -= len(data)
        await self.session.send(DATA, self._flags, self.number, len(data), bytes(data))
        self._flags = 0


class Session:
    """A connection to `peer`, made by us."""

    def __init__(
        self, sock: socket.socket, lower: SocketChannel, records: RecordChannel | TlsChannel, format: str
    ) -> None:
        self.peer = lower.peer
        self.format = format  # of its records, as records.h calls it
        self._sock = sock
        self._lower = lower
        self._records = records
        self._arrived: dict[int, bytearray] = {}
        self._streams: dict[int, YamuxStream] = {}
        self._next = 1

    @classmethod
    async def dial(cls, addr: Multiaddr, identity: Identity, security: Security = "noise") -> Self:
        """Connect and upgrade, with `security` and nothing else; TLS within keys.told()."""
        loop = asyncio.get_running_loop()
        sock = socket.create_connection((str(addr.ip), addr.port or 0))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lower = SocketChannel(loop, sock, addr.peer_id)
        upgraded = await upgrade(
            lower,
            identity,
            initiator=True,
            expected_peer=addr.peer_id,
            timeouts=Timeouts(),
            security=(security,),
        )
        again = Resumed(loop, sock, addr.peer_id, upgraded.leftover)
        records = upgraded.records
        if isinstance(records, TlsRecords):
            assert isinstance(records, OpenRecords)
            return cls(sock, again, TlsChannel(again, records), records.format)
        return cls(sock, again, RecordChannel(again, records), "noise")

    def arrived(self, number: int) -> bytes:
        """Take what came on a stream."""
        data = bytes(self._arrived.get(number, b""))
        self._arrived.pop(number, None)
        return data

    async def send(self, type: int, flags: int, number: int, length: int, payload: bytes = b"") -> None:
        """Send one frame."""
        await self._records.write(HEADER.pack(0, type, flags, number, length) + payload)

    async def step(self) -> None:
        """Read one frame and do what it asks."""
        _, type, flags, number, length = HEADER.unpack(await self._records.read_exactly(HEADER.size))
        if type == DATA:
            self._arrived.setdefault(number, bytearray()).extend(await self._records.read_exactly(length))
        elif type == WINDOW and number in self._streams:
            self._streams[number].window += length
        elif type == PING and flags & SYN:
            await self.send(PING, ACK, 0, length)
        elif type == GOAWAY:
            raise ConnectionError(f"{self.peer} said go-away")
        if flags & RST and number in self._streams:
            raise ConnectionError(f"{self.peer} reset the stream")

    async def open(self, protocol: str) -> YamuxStream:
        """Open a stream for `protocol`."""
        stream = self._streams[self._next] = YamuxStream(self, self._next, SYN)
        self._next += 2
        await multistream.select(stream, (protocol,), Timeouts().negotiate)
        return stream

    async def accept(self, protocol: str) -> YamuxStream:
        """Wait for a stream for `protocol`; one for anything else is reset."""
        begins = multistream.encode(multistream.HEADER)
        wanted = begins + multistream.encode(protocol)
        while True:
            await self.step()
            for number in [number for number in self._arrived if number % 2 == 0]:
                data = self._arrived[number]
                if (
                    data == begins and number not in self._streams
                ):  # py-libp2p waits for the answer to its header
                    await self._inbound(number).write(begins)
                elif data.startswith(wanted):
                    del data[: len(wanted)]
                    answered = number in self._streams
                    stream = self._inbound(number)
                    await stream.write(wanted[len(begins) :] if answered else wanted)
                    return stream
                elif not wanted.startswith(data):
                    del self._arrived[number]
                    self._streams.pop(number, None)
                    await self.send(WINDOW, RST, number, 0)

    def _inbound(self, number: int) -> YamuxStream:
        return self._streams.setdefault(number, YamuxStream(self, number, ACK))

    def hand_over(self, stream: YamuxStream) -> End:
        """Everything as it stands, for whoever goes on from here and closes the descriptor."""
        records: RecordSecrets | TlsRecords
        records, again = self._records.hand_over()
        rest = again + self._lower.leftover()
        assert isinstance(records, RecordSecrets | OpenRecords)
        keys = (records.send_key, records.recv_key, records.send_nonce, records.recv_nonce)
        return End(self._sock.detach(), *keys, stream.number, stream.window, rest)


class Resumed(SocketChannel):
    """A channel that begins with bytes read before."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, peer: object, leftover: bytes
    ) -> None:
        super().__init__(loop, sock, peer)
        self._buffer += leftover
