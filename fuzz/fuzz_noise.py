"""Noise payloads and messages from strangers: only documented errors, and nobody passes for somebody else."""

from __future__ import annotations

import asyncio
import contextlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flare.errors import NetworkError, ProtocolViolation
from flare.transport import noise
from flare.transport.channel import BufferedChannel
from flare.wire.keys import Identity, Kind
from flare.wire.messages import NoiseExtensions, NoiseHandshakePayload

_KINDS: tuple[Kind, ...] = ("ed25519", "secp256k1", "ecdsa", "rsa")
_STATIC = X25519PrivateKey.generate().public_key().public_bytes_raw()
_IDENTITIES = [Identity.generate(kind) for kind in _KINDS]
_PEERS = {who.peer_id for who in _IDENTITIES}

CORPUS = tuple(
    NoiseHandshakePayload(
        who.public_key.to_protobuf(), who.sign(b"noise-libp2p-static-key:" + _STATIC), extensions
    ).encode()
    for who in _IDENTITIES
    for extensions in (None, NoiseExtensions(("/yamux/1.0.0", "/mplex/6.7.0"), (b"hash",)))
)


class Recording(BufferedChannel):
    """A peer that sends `data`, and then its end."""

    def __init__(self, data: bytes) -> None:
        super().__init__("the peer")
        self._data = data

    async def _receive(self) -> bytes:
        data, self._data = self._data, b""
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody listens."""


def fuzz(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        peer, key, muxers = noise._authenticate(data, _STATIC, None)
        assert peer in _PEERS, "a static key that nobody signed"
        assert key.peer_id == peer
        assert len(muxers) <= noise.MAX_MUXERS
    asyncio.run(_messages(data))


async def _messages(data: bytes) -> None:
    for initiator in (True, False):
        for stream in (data, len(data).to_bytes(2, "big") + data):
            try:
                await noise.handshake(
                    Recording(stream), _IDENTITIES[0], initiator=initiator, expected_peer=None, timeout=5.0
                )
            except (ProtocolViolation, NetworkError):
                continue
            raise AssertionError("a handshake with noise of another kind")
