"""Keys of peers: what signs, what verifies, and how both travel and rest (peer-ids.md, "Keys")."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from enum import IntEnum
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature

from flare.errors import DecodeError, InvalidKey
from flare.wire.key_types import Algorithm, Ecdsa, Ed25519, Rsa, Secp256k1
from flare.wire.peer_id import PeerId
from flare.wire.schema import Message, message

Kind = Literal["rsa", "ed25519", "secp256k1", "ecdsa"]

MAX_KEY_FILE = 64 * 1024  # bytes: a file above holds something else


class KeyType(IntEnum):
    RSA = 0
    ED25519 = 1
    SECP256K1 = 2
    ECDSA = 3


@message
class KeyMessage(Message):
    """The PublicKey and PrivateKey messages, which look the same."""

    type: Annotated[KeyType, 1]
    data: Annotated[bytes, 2] = dataclasses.field(repr=False)


_ALGORITHMS: dict[KeyType, Algorithm] = {
    KeyType.RSA: Rsa(),
    KeyType.ED25519: Ed25519(),
    KeyType.SECP256K1: Secp256k1(),
    KeyType.ECDSA: Ecdsa(),
}
_TYPES: dict[Kind, KeyType] = {
    "rsa": KeyType.RSA,
    "ed25519": KeyType.ED25519,
    "secp256k1": KeyType.SECP256K1,
    "ecdsa": KeyType.ECDSA,
}
_KINDS: dict[KeyType, Kind] = {number: kind for kind, number in _TYPES.items()}


class PublicKey:
    """A peer's public key. Immutable, hashable; equal when the encodings are."""

    __slots__ = ("_encoded", "_key", "_message", "_type")

    def __init__(self, type: KeyType, key: Any) -> None:
        """`key` is the object of `cryptography`'s."""
        self._type = type
        self._key = key
        self._encoded = KeyMessage(type, _ALGORITHMS[type].public_data(key)).encode()
        self._message: KeyMessage | None = None

    @classmethod
    def from_protobuf(cls, data: bytes) -> PublicKey:
        """The key in a PublicKey message. Raises DecodeError, also for keys too small or too large to use."""
        return cls.from_message(KeyMessage.decode(data))

    @classmethod
    def from_message(cls, key: KeyMessage) -> PublicKey:
        """The key in a PublicKey message already decoded. Raises DecodeError."""
        try:
            return cls(key.type, _ALGORITHMS[key.type].load_public(key.data))
        except ValueError as error:
            raise DecodeError(f"{key.type.name} public key: {error}") from None

    def to_protobuf(self) -> bytes:
        """The PublicKey message, in the deterministic encoding that peer ids hash."""
        return self._encoded

    def to_message(self) -> KeyMessage:
        """The PublicKey message, to embed in another."""
        if self._message is None:
            self._message = KeyMessage.decode(self._encoded)
        return self._message

    @property
    def kind(self) -> Kind:
        """One of rsa, ed25519, secp256k1, ecdsa."""
        return _KINDS[self._type]

    @property
    def key(self) -> Any:
        """The key as an object of `cryptography`'s."""
        return self._key

    @property
    def peer_id(self) -> PeerId:
        return PeerId.from_public_key(self)

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `data`."""
        try:
            _ALGORITHMS[self._type].verify(self._key, data, signature)
        except InvalidSignature:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return self._encoded == other._encoded if isinstance(other, PublicKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._encoded)

    def __repr__(self) -> str:
        return f"<{self.kind} public key of {self.peer_id}>"


class Identity:
    """A peer's private key: who we are."""

    __slots__ = ("__weakref__", "_key", "_type", "peer_id", "public_key")

    def __init__(self, type: KeyType, key: Any) -> None:
        """`key` is the object of `cryptography`'s."""
        self._type = type
        self._key = key
        self.public_key = PublicKey(type, key.public_key())
        self.peer_id = self.public_key.peer_id

    @classmethod
    def generate(cls, kind: Kind = "ed25519") -> Identity:
        """A new one. RSA keys have 2048 bits."""
        if kind not in _TYPES:
            raise InvalidKey(f"{kind!r} is no kind of key: choose one of {', '.join(_TYPES)}")
        type = _TYPES[kind]
        return cls(type, _ALGORITHMS[type].generate())

    @classmethod
    def from_protobuf(cls, data: bytes) -> Identity:
        """The identity in a PrivateKey message. Raises InvalidKey."""
        try:
            decoded = KeyMessage.decode(data)
        except DecodeError as error:
            raise InvalidKey(f"no libp2p private key: {error}") from None
        try:
            return cls(decoded.type, _ALGORITHMS[decoded.type].load_private(decoded.data))
        except ValueError as error:
            raise InvalidKey(f"{decoded.type.name} private key: {error}") from None

    def to_protobuf(self) -> bytes:
        """The PrivateKey message. Secret."""
        return KeyMessage(self._type, _ALGORITHMS[self._type].private_data(self._key)).encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity in the file at `path`, a PrivateKey message. Raises OSError and InvalidKey."""
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
        if len(data) > MAX_KEY_FILE:
            raise InvalidKey(f"{os.fspath(path)} is too large for a key file")
        try:
            return cls.from_protobuf(data)
        except InvalidKey as error:
            raise InvalidKey(f"{os.fspath(path)}: {error}") from None

    def save(self, path: str | os.PathLike[str], mode: int = 0o600, *, replace: bool = False) -> None:
        """Writes the private key to `path`, whole or not at all.

        Raises OSError: FileExistsError unless `replace`.
        """
        temporary = f"{os.fspath(path)}.{os.getpid()}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(self.to_protobuf())
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)  # unlike a rename it fails when the name is taken
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    @property
    def kind(self) -> Kind:
        """One of rsa, ed25519, secp256k1, ecdsa."""
        return _KINDS[self._type]

    @property
    def key(self) -> Any:
        """The private key as an object of `cryptography`'s. Secret."""
        return self._key

    def sign(self, data: bytes) -> bytes:
        """This identity's signature over `data`, which `public_key.verify` accepts."""
        return _ALGORITHMS[self._type].sign(self._key, data)

    def __repr__(self) -> str:
        return f"<{self.kind} identity of {self.peer_id}>"
