from typing import Final

WAITS: Final[int]
DONE: Final[int]
ELSEWHERE: Final[int]

def available() -> bool:
    """Whether the interpreter's libcrypto can be reached for it; if not, flare.transport.noise does it."""

class StaticKey:
    """A static X25519 key and what its owner says with it; made once for many handshakes."""

    public: bytes
    def __init__(self, private: bytes, payload: bytes) -> None: ...

class Responder:
    """The listener's side of one handshake, from the first byte to record keys: multistream's choice of
    Noise, and Noise_XX_25519_ChaChaPoly_SHA256. It checks no identity.

    `fd` is borrowed; -1 for one that is only fed. `state` is WAITS for more of the peer's bytes, DONE, or
    ELSEWHERE: the peer wants no Noise at once, nothing was answered, and `rest` is all that it sent.
    """

    state: int
    remote_static: bytes
    payload: bytes
    send_key: bytes
    recv_key: bytes
    rest: bytes
    def __init__(self, fd: int, key: StaticKey, *, ephemeral: bytes | None = None) -> None:
        """`ephemeral`, a private key, makes it repeatable: for tests."""

    def advance(self) -> int:
        """Read what has come from the descriptor, answer it, and give the state.

        Raises OSError, EOFError at the end, DecodeError, FrameTooLarge and AuthenticationFailed.
        It is over then.
        """

    def feed(self, data: bytes | bytearray | memoryview) -> bytes:
        """The same without a descriptor: `data` came, the result is to be sent."""
