from typing_extensions import Buffer

class RecordKeys:
    """What `Engine.attach` needs to know of a handshake. One object serves one link."""

class PlainRecords(RecordKeys):
    """No records and no secrecy: for tests."""

    def __init__(self) -> None: ...

class NoiseRecords(RecordKeys):
    """Noise transport messages (noise/README.md, "Wire Format"): 32-byte keys and the nonces they stand at.

    Raises InvalidKey for a key of another size.
    """

    def __init__(
        self, send_key: Buffer, recv_key: Buffer, send_nonce: int = 0, recv_nonce: int = 0
    ) -> None: ...
