"""The keys of a TLS 1.3 connection, which flare's records keep to themselves and the load in C needs."""

from __future__ import annotations

from typing import Final
from unittest import mock

from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from flare._core.records import TlsRecords
from flare.transport import tls

IV: Final = 12
# RFC 8446, appendix B.4: what records.h calls it, its hash, its key's size
SUITES: Final[dict[int, tuple[str, HashAlgorithm, int]]] = {
    0x1301: ("tls-aes128", SHA256(), 16),
    0x1302: ("tls-aes256", SHA384(), 32),
    0x1303: ("tls-chacha20", SHA256(), 32),
}


class OpenRecords(TlsRecords):
    """TLS records that tell their keys."""

    def __init__(self, suite: int, send_secret: bytes, recv_secret: bytes) -> None:
        # The secrets are with TlsRecords already: a compiled class takes them before it is initialised.
        self.format, self._hash, self._size = SUITES[suite]
        self._send, self._receive = send_secret, recv_secret

    @property
    def send_key(self) -> bytes:
        """Key and IV, as records.h wants them."""
        return self._key(self._send)

    @property
    def recv_key(self) -> bytes:
        """The same of the other direction."""
        return self._key(self._receive)

    def _key(self, secret: bytes) -> bytes:
        return b"".join(
            expand_label(secret, label, size, self._hash)
            for label, size in ((b"key", self._size), (b"iv", IV))
        )


def expand_label(secret: bytes, label: bytes, size: int, algorithm: HashAlgorithm) -> bytes:
    """HKDF-Expand-Label without a context (RFC 8446, 7.1)."""
    name = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0"
    return HKDFExpand(algorithm, size, info).derive(secret)


def told() -> mock._patch[type[OpenRecords]]:
    """Within it, handshakes end in records that tell their keys."""
    return mock.patch.object(tls, "TlsRecords", OpenRecords)
