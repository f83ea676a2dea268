"""From a bare channel to record keys and a multiplexer (connections/README.md, "Upgrading Connections")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from flare._core.records import TlsRecords
from flare.config import SECURITY, Security, Timeouts
from flare.errors import AuthenticationFailed
from flare.transport import multistream, noise, tls
from flare.transport.channel import BufferedChannel
from flare.transport.noise import NoiseSession, RecordSecrets
from flare.transport.tls import TlsSession
from flare.wire.keys import Identity, PublicKey
from flare.wire.peer_id import PeerId

YAMUX: Final = "/yamux/1.0.0"
MUXERS: Final = (YAMUX,)
PROTOCOLS: Final[dict[Security, str]] = {"tls": tls.PROTOCOL, "noise": noise.PROTOCOL}

_TLS_HEADER: Final = 5
_TAG: Final = 16
_MAX_PLAIN: Final = 65535 - _TAG


@dataclass(frozen=True, slots=True)
class Upgraded:
    """All that a link needs to take over; `leftover` was read from the peer and is its, still encrypted."""

    remote_peer: PeerId
    remote_key: PublicKey
    records: RecordSecrets | TlsRecords
    leftover: bytes
    security: str
    muxer: str


async def upgrade(
    channel: BufferedChannel,
    identity: Identity,
    *,
    initiator: bool,
    expected_peer: PeerId | None,
    timeouts: Timeouts,
    security: Sequence[Security] = SECURITY,
) -> Upgraded:
    """Negotiate one of `security`, run it, agree on yamux.

    The initiator proposes in the order of `security`, the listener takes what it has. A single proposal
    travels with the handshake's first message and saves a round trip.
    Raises what multistream, tls and noise raise; the caller bounds the whole by Timeouts.dial or
    Timeouts.handshake.
    """
    limit = timeouts.dial if initiator else timeouts.handshake
    offered = [PROTOCOLS[name] for name in security]
    carrier: BufferedChannel | multistream.Optimistic = channel
    if not initiator:
        chosen = await multistream.handle(channel, offered, timeouts.handshake)
    elif len(offered) == 1:
        chosen = offered[0]
        carrier = multistream.Optimistic(channel, chosen)
    else:
        chosen = await multistream.select(channel, offered, timeouts.dial, expected_peer or channel.peer)
    session: NoiseSession | TlsSession
    session = await (tls if chosen == tls.PROTOCOL else noise).handshake(
        carrier, identity, initiator=initiator, expected_peer=expected_peer, muxers=MUXERS, timeout=limit
    )
    records, muxer, unread = session.records, session.muxer, b""
    if muxer is None:
        secured = (
            TlsChannel(channel, records)
            if isinstance(records, TlsRecords)
            else RecordChannel(channel, records)
        )
        if initiator:
            muxer = await multistream.select(secured, MUXERS, timeouts.negotiate)
        else:
            muxer = await multistream.handle(secured, MUXERS, timeouts.negotiate)
        records, unread = secured.hand_over()
    return Upgraded(
        session.remote_peer, session.remote_key, records, unread + channel.leftover(), chosen, muxer
    )


async def agree(channel: BufferedChannel, session: NoiseSession, timeouts: Timeouts) -> Upgraded:
    """Go on, as the listener, after a Noise handshake whose peer did not name its multiplexers in it."""
    secured = RecordChannel(channel, session.records)
    muxer = await multistream.handle(secured, MUXERS, timeouts.negotiate)
    records, unread = secured.hand_over()
    return Upgraded(
        session.remote_peer, session.remote_key, records, unread + channel.leftover(), noise.PROTOCOL, muxer
    )


class TlsChannel(BufferedChannel):
    """A channel within TLS records, for the little that is negotiated there before a link takes over."""

    def __init__(self, channel: BufferedChannel, records: TlsRecords) -> None:
        super().__init__(channel.peer)
        self._channel = channel
        self._records = records
        self._header = b""  # of a record whose body was not read yet

    async def _receive(self) -> bytes:
        """The data of the next record that has any. The end of the channel raises."""
        while True:
            if not self._header:
                self._header = await self._channel.read_exactly(_TLS_HEADER)
            size = self._records.size(self._header)
            record = self._header + await self._channel.read_exactly(size - _TLS_HEADER)
            self._header = b""
            if data := self._records.open(record):
                return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, in one record or more."""
        await self._channel.write(self._records.seal(data))

    def hand_over(self) -> tuple[TlsRecords, bytes]:
        """Keys and counters for a link, and what it must read first, as `RecordChannel.hand_over`."""
        rest = self.leftover()
        return self._records, self._records.unread(rest) if rest else b""


class RecordChannel(BufferedChannel):
    """A channel within Noise records, for the little that is negotiated there before a link takes over."""

    def __init__(self, channel: BufferedChannel, records: RecordSecrets) -> None:
        super().__init__(channel.peer)
        self._channel = channel
        self._records = records
        self._sealer = ChaCha20Poly1305(records.send_key)
        self._opener = ChaCha20Poly1305(records.recv_key)
        self._sent = records.send_nonce
        self._received = records.recv_nonce
        self._size: int | None = None  # of a record whose length was read and whose body was not

    async def _receive(self) -> bytes:
        """The plaintext of the next record that has any. The end of the channel raises."""
        while True:
            if self._size is None:
                self._size = int.from_bytes(await self._channel.read_exactly(2), "big")
            sealed = await self._channel.read_exactly(self._size)
            self._size = None
            try:
                plain = self._opener.decrypt(_nonce(self._received), sealed, None)
            except InvalidTag:
                raise AuthenticationFailed(
                    f"a record from {self.peer} does not decrypt", protocol=noise.PROTOCOL
                ) from None
            self._received += 1
            if plain:
                return plain

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, in one record or more."""
        view = memoryview(data)
        out = bytearray()
        for at in range(0, len(view), _MAX_PLAIN):
            sealed = self._sealer.encrypt(_nonce(self._sent), view[at : at + _MAX_PLAIN], None)
            self._sent += 1
            out += len(sealed).to_bytes(2, "big") + sealed
        await self._channel.write(out)

    def hand_over(self) -> tuple[RecordSecrets, bytes]:
        """Keys and counters for a link, and what it must read first.

        A peer may put its first multiplexer frames into the record of its last negotiation message. They were
        decrypted here, so they are sealed again under the same counter, which the link then begins with.
        """
        again = b""
        if rest := self.leftover():
            self._received -= 1
            sealed = self._opener.encrypt(_nonce(self._received), rest, None)
            again = len(sealed).to_bytes(2, "big") + sealed
        return RecordSecrets(
            self._records.send_key, self._records.recv_key, self._sent, self._received
        ), again


def _nonce(counter: int) -> bytes:
    return b"\0\0\0\0" + counter.to_bytes(8, "little")
