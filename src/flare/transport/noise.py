"""The Noise handshake of libp2p, Noise_XX_25519_ChaChaPoly_SHA256 (noise/README.md; Noise rev. 34).

    -> e
    <- e, ee, s, es, payload
    -> s, se, payload

Each message has its length before it, 2 bytes big-endian. A payload holds the identity key and its signature
of the static Noise key, and the stream multiplexers that the sender speaks, which saves the round trip of
choosing one later.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from flare._core.handshake import StaticKey
from flare.errors import AuthenticationFailed, DecodeError, FrameTooLarge, PeerMismatch
from flare.transport.channel import Channel
from flare.transport.deadline import within
from flare.wire.keys import Identity, PublicKey
from flare.wire.messages import NoiseExtensions, NoiseHandshakePayload
from flare.wire.peer_id import PeerId

PROTOCOL: Final = "/noise"
MAX_MUXERS: Final = 100  # names in a peer's list before it is ignored, as in go-libp2p: defends CPU
MAX_MESSAGE: Final = 4096  # bytes of a handshake message; RSA's largest take half: defends memory

_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"  # 32 bytes, so that it is its own hash (Noise 5.2)
_START: Final = hashlib.sha256(_NAME).digest()  # mixed with the empty prologue
_SIGNED: Final = b"noise-libp2p-static-key:"
_KEY: Final = 32
_TAG: Final = 16


@dataclass(frozen=True, slots=True)
class RecordSecrets:
    """The keys of the records that follow a handshake, and how many of each direction are behind us."""

    send_key: bytes = field(repr=False)
    recv_key: bytes = field(repr=False)
    send_nonce: int = 0
    recv_nonce: int = 0


@dataclass(frozen=True, slots=True)
class NoiseSession:
    """A finished handshake: who the peer is, and the keys of the records that follow."""

    remote_peer: PeerId
    remote_key: PublicKey
    muxer: str | None  # agreed in the payloads; None: it is still to be negotiated
    records: RecordSecrets


@dataclass(frozen=True, slots=True)
class _Static:
    """A static Noise key, made once for each identity, and the identity's signature of it."""

    private: X25519PrivateKey
    public: bytes
    identity_key: bytes
    signature: bytes


_statics: WeakKeyDictionary[Identity, _Static] = WeakKeyDictionary()


async def handshake(
    channel: Channel,
    identity: Identity,
    *,
    initiator: bool,
    expected_peer: PeerId | None,
    muxers: Sequence[str] = ("/yamux/1.0.0",),
    timeout: float,
) -> NoiseSession:
    """Authenticate both peers over `channel` and derive record keys; reads nothing past the last message.

    Raises PeerMismatch when somebody other than `expected_peer` answers, AuthenticationFailed, DecodeError,
    NetworkError, TimedOut after `timeout` seconds. An initiator's identity is not shown to a peer that is not
    the expected one.
    """
    async with within(timeout, f"the Noise handshake with {expected_peer or 'an unknown peer'}"):
        if initiator:
            return await _initiate(channel, identity, expected_peer, muxers)
        return await _respond(channel, identity, expected_peer, muxers)


async def _initiate(
    channel: Channel, identity: Identity, expected_peer: PeerId | None, muxers: Sequence[str]
) -> NoiseSession:
    state = _Symmetric()
    ephemeral = X25519PrivateKey.generate()
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    state.mix_hash(ephemeral_public)
    state.mix_hash(b"")  # the empty payload
    await channel.write(_framed(ephemeral_public))

    message = await _receive(channel, _KEY + _KEY + _TAG + _TAG, "second")
    remote_ephemeral = message[:_KEY]
    state.mix_hash(remote_ephemeral)
    state.mix_key(_exchange(ephemeral, remote_ephemeral))  # ee
    remote_static = state.decrypt(message[_KEY : 2 * _KEY + _TAG], "the static key of the responder")
    state.mix_key(_exchange(ephemeral, remote_static))  # es
    payload = state.decrypt(message[2 * _KEY + _TAG :], "the payload of the responder")
    peer, key, theirs = _authenticate(payload, remote_static, expected_peer)

    static = _static_of(identity)
    sealed_static = state.encrypt(static.public)
    state.mix_key(_exchange(static.private, remote_ephemeral))  # se
    await channel.write(_framed(sealed_static + state.encrypt(_payload(static, muxers))))
    send, receive = state.split()
    muxer = next((name for name in muxers if name in theirs), None)
    return NoiseSession(peer, key, muxer, RecordSecrets(send, receive))


async def _respond(
    channel: Channel, identity: Identity, expected_peer: PeerId | None, muxers: Sequence[str]
) -> NoiseSession:
    state = _Symmetric()
    message = await _receive(channel, _KEY, "first")
    remote_ephemeral = message[:_KEY]
    state.mix_hash(remote_ephemeral)
    state.mix_hash(message[_KEY:])  # in the clear, so it is bound to the transcript and otherwise ignored

    ephemeral = X25519PrivateKey.generate()
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    static = _static_of(identity)
    state.mix_hash(ephemeral_public)
    state.mix_key(_exchange(ephemeral, remote_ephemeral))  # ee
    sealed_static = state.encrypt(static.public)
    state.mix_key(_exchange(static.private, remote_ephemeral))  # es
    await channel.write(_framed(ephemeral_public + sealed_static + state.encrypt(_payload(static, muxers))))

    message = await _receive(channel, _KEY + _TAG + _TAG, "third")
    remote_static = state.decrypt(message[: _KEY + _TAG], "the static key of the initiator")
    state.mix_key(_exchange(ephemeral, remote_static))  # se
    payload = state.decrypt(message[_KEY + _TAG :], "the payload of the initiator")
    peer, key, theirs = _authenticate(payload, remote_static, expected_peer)
    receive, send = state.split()
    muxer = next((name for name in theirs if name in muxers), None)
    return NoiseSession(peer, key, muxer, RecordSecrets(send, receive))


class _Symmetric:
    """The SymmetricState of a handshake and its CipherState (Noise 5.1 and 5.2)."""

    __slots__ = ("_aead", "_chaining_key", "_hash", "_nonce")

    def __init__(self) -> None:
        self._chaining_key = _NAME
        self._hash = _START
        self._aead: ChaCha20Poly1305 | None = None
        self._nonce = 0

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, material)
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        assert self._aead is not None
        ciphertext = self._aead.encrypt(self._next_nonce(), plaintext, self._hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: bytes, what: str) -> bytes:
        assert self._aead is not None
        try:
            plaintext = self._aead.decrypt(self._next_nonce(), ciphertext, self._hash)
        except InvalidTag:
            raise AuthenticationFailed(f"{what} does not decrypt", protocol=PROTOCOL) from None
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The record keys: of the initiator's records, of the responder's."""
        return _hkdf(self._chaining_key, b"")

    def _next_nonce(self) -> bytes:
        nonce = b"\0\0\0\0" + self._nonce.to_bytes(8, "little")  # Noise 12.3
        self._nonce += 1
        return nonce


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise AuthenticationFailed("a key of small order", protocol=PROTOCOL) from None


def _static_of(identity: Identity) -> _Static:
    static = _statics.get(identity)
    if static is None:
        private = X25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
        static = _Static(private, public, identity.public_key.to_protobuf(), identity.sign(_SIGNED + public))
        _statics[identity] = static
    return static


def static_key(identity: Identity, muxers: Sequence[str] = ("/yamux/1.0.0",)) -> StaticKey:
    """What flare._core.handshake needs to answer for `identity`; it shares the static key of `handshake`."""
    static = _static_of(identity)
    return StaticKey(static.private.private_bytes_raw(), _payload(static, muxers))


def secured(
    payload: bytes,
    remote_static: bytes,
    send_key: bytes,
    recv_key: bytes,
    muxers: Sequence[str] = ("/yamux/1.0.0",),
) -> NoiseSession:
    """The session of a listener's handshake that flare._core.handshake ran, once its peer is authenticated.

    Raises AuthenticationFailed and DecodeError.
    """
    peer, key, theirs = _authenticate(payload, remote_static, None)
    muxer = next((name for name in theirs if name in muxers), None)
    return NoiseSession(peer, key, muxer, RecordSecrets(send_key, recv_key))


def _payload(static: _Static, muxers: Sequence[str]) -> bytes:
    return NoiseHandshakePayload(
        identity_key=static.identity_key,
        identity_sig=static.signature,
        extensions=NoiseExtensions(stream_muxers=tuple(muxers)),
    ).encode()


def _authenticate(
    payload: bytes, remote_static: bytes, expected_peer: PeerId | None
) -> tuple[PeerId, PublicKey, Sequence[str]]:
    """Who signed `remote_static`, and the multiplexers it speaks ("The libp2p Handshake Payload")."""
    message = NoiseHandshakePayload.decode(payload)
    key = PublicKey.from_protobuf(message.identity_key)
    peer = PeerId.from_public_key(key)
    if not key.verify(_SIGNED + remote_static, message.identity_sig):
        raise AuthenticationFailed(f"peer {peer} did not sign its static key", protocol=PROTOCOL)
    if expected_peer is not None and peer != expected_peer:
        raise PeerMismatch(expected_peer, peer)
    muxers = message.extensions.stream_muxers if message.extensions is not None else ()
    return peer, key, muxers if len(muxers) <= MAX_MUXERS else ()


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def _receive(channel: Channel, at_least: int, which: str) -> bytes:
    size = int.from_bytes(await channel.read_exactly(2), "big")
    if size < at_least:
        raise DecodeError(f"{which} message of {size} bytes, at least {at_least} expected", protocol=PROTOCOL)
    if size > MAX_MESSAGE:
        raise FrameTooLarge(size, MAX_MESSAGE, protocol=PROTOCOL)
    return await channel.read_exactly(size)
