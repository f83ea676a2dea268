from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

CHACHA20_POLY1305: Final[int]
AES_128_GCM: Final[int]
AES_256_GCM: Final[int]
TAG_SIZE: Final[int]

def backend() -> str:
    """What does the work: "libcrypto 3.0.19" (the interpreter's own, no GIL) or "cryptography" (with it)."""

class Aead:
    """One direction of records with counter nonces: the C state of aead.pxd, for tests and benchmarks.

    Without `iv` nonces are Noise's (4 zero bytes, then the counter; Noise 12.3 and 12.4), with it TLS 1.3's
    (RFC 8446, 5.3). Raises InvalidKey for a key of the wrong size.
    """

    def __init__(self, key: Buffer, kind: int = ..., *, iv: Buffer | None = None, nonce: int = 0) -> None: ...
    @property
    def nonce(self) -> int:
        """The counter of the next record."""
    @property
    def parked(self) -> bool:
        """Whether no cipher context is held."""
    def park(self) -> None:
        """Give the cipher context back and keep key and counter; the next record makes a new one."""
    def seal_pieces(self, pieces: Sequence[bytes]) -> bytes:
        """As `seal`, with the plaintext in pieces. Raises UsageError where the GIL would be taken."""
    def seal(self, data: Buffer, ad: Buffer = b"") -> bytes:
        """Ciphertext and tag. Raises ResourceLimit when the counter is exhausted."""
    def open(self, data: Buffer, ad: Buffer = b"") -> bytes:
        """Plaintext. Raises AuthenticationFailed, and then the counter stays."""
    def seal_in_place(self, buffer: Buffer, n: int, ad: Buffer = b"") -> None:
        """Encrypt the first `n` bytes where they are and write the tag behind them."""
    def open_in_place(self, buffer: Buffer, ad: Buffer = b"") -> int:
        """Decrypt where it is and return the bytes of plaintext at the start; zeroes them when it fails."""
