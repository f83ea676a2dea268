"""How libp2p writes binary values as text: base58btc, and the others behind multibase prefixes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from flare._core.wire import base58

MAX_TEXT = 512  # characters: base58 takes quadratic time, and no peer id or hash comes near

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def base58_encode(data: bytes) -> str:
    """`data` in base58btc, each leading zero byte as a `1`."""
    return base58(data)


def base58_decode(text: str) -> bytes:
    """The bytes of base58btc `text`. Raises ValueError."""
    return _from_digits(text, _BASE58)


def multibase_encode(prefix: str, data: bytes) -> str:
    """`data` behind a multibase prefix: b (base32), f (base16), k (base36), u (base64url), z (base58btc)."""
    return prefix + _ENCODERS[prefix](data)


def multibase_decode(text: str) -> bytes:
    """The bytes of multibase `text`, any of the prefixes above or m (base64). Raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters, at most {MAX_TEXT} allowed")
    prefix, body = text[:1], text[1:]
    if prefix not in _DECODERS:
        raise ValueError(f"unknown multibase prefix {prefix!r}")
    if not body.isascii():
        raise ValueError("not ASCII")
    data = _DECODERS[prefix](body)
    if _ENCODERS[prefix](data) != body:
        raise ValueError("not canonical")
    return data


def _to_digits(data: bytes, alphabet: str) -> str:
    base = len(alphabet)
    value = int.from_bytes(data, "big")
    digits = []
    while value:
        value, digit = divmod(value, base)
        digits.append(alphabet[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return alphabet[0] * zeros + "".join(reversed(digits))


def _from_digits(text: str, alphabet: str) -> bytes:
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters, at most {MAX_TEXT} allowed")
    base = len(alphabet)
    value = 0
    for character in text:
        digit = alphabet.find(character)
        if digit < 0:
            raise ValueError(f"{character!r} is no base{base} digit")
        value = value * base + digit
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return b"\0" * zeros + value.to_bytes((value.bit_length() + 7) // 8, "big")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _base64_decode(text: str, altchars: bytes | None = None) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _hex_decode(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError("not hexadecimal") from None


def _base32_decode(text: str) -> bytes:
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error as error:
        raise ValueError(f"not base32: {error}") from None


_ENCODERS: dict[str, Callable[[bytes], str]] = {
    "b": _base32,
    "f": bytes.hex,
    "k": lambda data: _to_digits(data, _BASE36),
    "m": _base64,
    "u": _base64url,
    "z": base58_encode,
}
_DECODERS: dict[str, Callable[[str], bytes]] = {
    "b": _base32_decode,
    "f": _hex_decode,
    "k": lambda text: _from_digits(text, _BASE36),
    "m": _base64_decode,
    "u": lambda text: _base64_decode(text, b"-_"),
    "z": base58_decode,
}
