"""flare.wire.multibase: base58btc and the multibase prefixes that libp2p uses."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.wire.multibase import MAX_TEXT, base58_decode, base58_encode, multibase_decode, multibase_encode

PREFIXES = ["b", "f", "k", "u", "z"]


@given(st.binary(max_size=80))
def test_base58_is_the_usual_one(data: bytes) -> None:
    assert base58_encode(data) == base58.b58encode(data).decode()
    assert base58_decode(base58_encode(data)) == data


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "\u00e9", "abc "])
def test_base58_has_58_digits(text: str) -> None:
    with pytest.raises(ValueError, match="no base58 digit"):
        base58_decode(text)


def test_base58_has_a_length_limit() -> None:
    base58_decode("z" * MAX_TEXT)
    with pytest.raises(ValueError, match="at most 512"):
        base58_decode("z" * (MAX_TEXT + 1))
    with pytest.raises(ValueError, match="at most 512"):
        multibase_decode("b" + "a" * MAX_TEXT)


@given(st.sampled_from(PREFIXES), st.binary(max_size=80))
def test_multibase_comes_back(prefix: str, data: bytes) -> None:
    assert multibase_decode(multibase_encode(prefix, data)) == data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("bmfxgk4tj", b"aneri"),
        ("f00ff", b"\x00\xff"),
        ("k", b""),
        ("k73", b"\xff"),
        ("u_-8", b"\xff\xef"),
        ("m/+8", b"\xff\xef"),
        ("z2g", b"a"),
    ],
)
def test_examples(text: str, data: bytes) -> None:
    assert multibase_decode(text) == data


@pytest.mark.parametrize(
    "text", ["", "?abc", "bABC", "b1", "ba", "f0", "f0 0", "fFF", "u+/8", "m_-8", "u_-9", "bmf\u00e9"]
)
def test_what_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        multibase_decode(text)


@given(st.text(max_size=20))
def test_junk_raises_nothing_but_value_errors(text: str) -> None:
    try:
        data = multibase_decode(text)
    except ValueError:
        return
    assert text[0] == "m" or multibase_encode(text[0], data) == text
