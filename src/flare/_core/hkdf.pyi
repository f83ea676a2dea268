from typing_extensions import Buffer

def hkdf_expand_label(secret: Buffer, label: bytes, size: int) -> bytes:
    """`size` bytes from a traffic secret (RFC 8446, 7.1) with an empty context: for tests.

    A secret of 32 bytes stands for SHA-256, one of 48 for SHA-384. Raises UsageError for other sizes.
    """
