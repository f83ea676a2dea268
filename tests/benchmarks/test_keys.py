"""The keys that the load takes over from a TLS handshake."""

from benchmarks.relay.keys import expand_label
from cryptography.hazmat.primitives.hashes import SHA256


def test_keys_of_rfc_8448() -> None:
    """RFC 8448, section 3: the server's application traffic secret, and the key and IV made of it."""
    secret = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
    assert expand_label(secret, b"key", 16, SHA256()).hex() == "9f02283b6c9c07efc26bb9f2ac92e356"
    assert expand_label(secret, b"iv", 12, SHA256()).hex() == "cf782b88dd83549aadf1e984"
