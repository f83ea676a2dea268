"""From a bare channel to record keys and a multiplexer (connections/README.md, "Upgrading Connections")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from flare.config import Timeouts
from flare.errors import AuthenticationFailed
from flare.transport import multistream, noise
from flare.transport.channel import BufferedChannel
from flare.transport.noise import NoiseSession, RecordSecrets
from flare.wire.keys import Identity, PublicKey
from flare.wire.peer_id import PeerId

YAMUX: Final = "/yamux/1.0.0"
MUXERS: Final = (YAMUX,)

_TAG: Final = 16
_MAX_PLAIN: Final = 65535 - _TAG


@dataclass(frozen=True, slots=True)
class Upgraded:
    """All that a link needs to take over; `leftover` was read from the peer and is its, still encrypted."""

    remote_peer: PeerId
    remote_key: PublicKey
    records: RecordSecrets
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
) -> Upgraded:
    """Negotiate Noise, run it, agree on yamux.

    The initiator proposes Noise along with its first message: two round trips in all, TCP's own included.
    Raises what multistream and noise raise; the caller bounds the whole by Timeouts.dial or
    Timeouts.handshake.
    """
    limit = timeouts.dial if initiator else timeouts.handshake
    if initiator:
        proposing = multistream.Optimistic(channel, noise.PROTOCOL)
        session = await noise.handshake(
            proposing, identity, initiator=True, expected_peer=expected_peer, muxers=MUXERS, timeout=limit
        )
    else:
        await multistream.handle(channel, (noise.PROTOCOL,), timeouts.handshake)
        session = await noise.handshake(
            channel, identity, initiator=False, expected_peer=expected_peer, muxers=MUXERS, timeout=limit
        )
    records, muxer, unread = session.records, session.muxer, b""
    if muxer is None:
        secured = RecordChannel(channel, records)
        if initiator:
            muxer = await multistream.select(secured, MUXERS, timeouts.negotiate)
        else:
            muxer = await multistream.handle(secured, MUXERS, timeouts.negotiate)
        records, unread = secured.hand_over()
    return Upgraded(
        session.remote_peer, session.remote_key, records, unread + channel.leftover(), noise.PROTOCOL, muxer
    )


async def agree(channel: BufferedChannel, session: NoiseSession, timeouts: Timeouts) -> Upgraded:
    """Go on, as the listener, after a Noise handshake whose peer did not name its multiplexers in it."""
    secured = RecordChannel(channel, session.records)
    muxer = await multistream.handle(secured, MUXERS, timeouts.negotiate)
    records, unread = secured.hand_over()
    return Upgraded(
        session.remote_peer, session.remote_key, records, unread + channel.leftover(), noise.PROTOCOL, muxer
    )


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
