"""Peer ids: the multihash of a peer's public key (peer-ids.md)."""

from __future__ import annotations

import hashlib
from functools import total_ordering
from typing import TYPE_CHECKING

from flare.errors import DecodeError, InvalidPeerId
from flare.wire.multibase import base58_decode, base58_encode, multibase_decode, multibase_encode

if TYPE_CHECKING:
    from flare.wire.keys import PublicKey

MAX_INLINE_KEY = 42  # bytes: an encoded key up to here is its own id, a longer one is hashed

_IDENTITY = 0x00
_SHA256 = b"\x12\x20"
_CID = b"\x01\x72"  # CIDv1, libp2p-key


@total_ordering
class PeerId:
    """Who a peer is: the hash of its public key, or for short keys the key itself.

    Made of the multihash's bytes or of text, base58btc or a CIDv1 in any usual multibase. Immutable,
    hashable, ordered by its bytes. Raises InvalidPeerId.
    """

    __slots__ = ("_bytes", "_text")

    def __init__(self, value: bytes | str | PeerId) -> None:
        self._text: str | None = None
        if isinstance(value, PeerId):
            self._bytes: bytes = value._bytes
        elif isinstance(value, str):
            self._bytes = _from_text(value)
        elif isinstance(value, bytes | bytearray | memoryview):
            self._bytes = check_multihash(bytes(value))
        else:
            raise InvalidPeerId(f"a peer id is made of bytes or text, not {type(value).__name__}")

    @classmethod
    def from_public_key(cls, key: PublicKey) -> PeerId:
        """The id of the peer that owns `key` (peer-ids.md, "Peer Ids")."""
        encoded = key.to_protobuf()
        if len(encoded) <= MAX_INLINE_KEY:
            return cls(bytes((_IDENTITY, len(encoded))) + encoded)
        return cls(_SHA256 + hashlib.sha256(encoded).digest())

    def extract_public_key(self) -> PublicKey | None:
        """The key that the id holds; None when it holds a hash. Raises InvalidPeerId when it holds junk."""
        from flare.wire.keys import PublicKey  # keys builds on this module

        if self._bytes[0] != _IDENTITY:
            return None
        try:
            return PublicKey.from_protobuf(self._bytes[2:])
        except DecodeError as error:
            raise InvalidPeerId(f"{self} holds no public key: {error}") from None

    def short(self) -> str:
        """The last eight characters, for logs."""
        return str(self)[-8:]

    def to_cid(self, base: str = "b") -> str:
        """As CIDv1 text: base32, or with `base` "k" base36 (RFC 0001)."""
        return multibase_encode(base, _CID + self._bytes)

    def __bytes__(self) -> bytes:
        return self._bytes

    def __str__(self) -> str:
        if self._text is None:
            self._text = base58_encode(self._bytes)
        return self._text

    def __repr__(self) -> str:
        return f"PeerId('{self}')"

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        return self._bytes == other._bytes if isinstance(other, PeerId) else NotImplemented

    def __lt__(self, other: PeerId) -> bool:
        return self._bytes < other._bytes if isinstance(other, PeerId) else NotImplemented


def check_multihash(multihash: bytes) -> bytes:
    """`multihash` when it can be a peer id: sha2-256, or an identity no longer than an inlined key.

    Raises InvalidPeerId.
    """
    if multihash[:2] == _SHA256 and len(multihash) == 34:
        return multihash
    length = len(multihash) - 2
    if 1 <= length <= MAX_INLINE_KEY and multihash[0] == _IDENTITY and multihash[1] == length:
        return multihash
    shown = multihash[:48].hex() or "nothing"
    raise InvalidPeerId(f"{shown} is neither a sha2-256 multihash nor an inlined key")


def _from_text(text: str) -> bytes:
    try:
        if text.startswith(("1", "Qm")):
            return check_multihash(base58_decode(text))
        cid = multibase_decode(text)
    except InvalidPeerId:
        raise
    except ValueError as error:
        raise InvalidPeerId(f"{text[:80]!r} is no peer id: {error}") from None
    if not cid.startswith(_CID):
        raise InvalidPeerId(f"{text[:80]!r} is no CIDv1 of a libp2p key")
    return check_multihash(cid[2:])
