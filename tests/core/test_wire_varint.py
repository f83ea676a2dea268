"""flare._core.wire: multiformats varints and length-delimited frames (multiformats/unsigned-varint)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core.wire import decode_uvarint, encode_uvarint, frame
from flare.errors import DecodeError, UsageError


class TestUvarint:
    @pytest.mark.parametrize(
        ("value", "encoded"),
        [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (255, "ff01"), (300, "ac02"), (16384, "808001")],
    )
    def test_examples_of_the_spec(self, value: int, encoded: str) -> None:
        assert encode_uvarint(value).hex() == encoded
        assert decode_uvarint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)

    @given(st.integers(0, 2**63 - 1), st.binary(max_size=4), st.binary(max_size=4))
    def test_comes_back_from_the_middle_of_a_buffer(self, value: int, before: bytes, after: bytes) -> None:
        data = before + encode_uvarint(value) + after
        assert decode_uvarint(data, len(before)) == (value, len(data) - len(after))
        assert decode_uvarint(memoryview(data), len(before)) == decode_uvarint(bytearray(data), len(before))

    @given(st.integers(0, 2**63 - 1))
    def test_every_truncation_is_refused(self, value: int) -> None:
        encoded = encode_uvarint(value)
        for end in range(len(encoded)):
            with pytest.raises(DecodeError, match="truncated"):
                decode_uvarint(encoded[:end])

    def test_63_bits_are_the_limit(self) -> None:
        assert decode_uvarint(b"\xff" * 8 + b"\x7f") == (2**63 - 1, 9)
        with pytest.raises(DecodeError, match="too long"):
            decode_uvarint(b"\xff" * 9 + b"\x01")
        with pytest.raises(DecodeError, match="too long"):
            decode_uvarint(b"\x80" * 9)
        with pytest.raises(UsageError):
            encode_uvarint(2**63)
        with pytest.raises(UsageError):
            encode_uvarint(-1)

    @pytest.mark.parametrize("encoded", ["8000", "818000", "ff00", "80" * 8 + "00"])
    def test_padding_is_refused(self, encoded: str) -> None:
        with pytest.raises(DecodeError, match="not minimal"):
            decode_uvarint(bytes.fromhex(encoded))

    @given(st.binary(max_size=12))
    def test_whatever_is_accepted_is_the_only_encoding(self, data: bytes) -> None:
        try:
            value, end = decode_uvarint(data)
        except DecodeError:
            return
        assert encode_uvarint(value) == data[:end]

    def test_an_offset_outside_of_the_data_is_misuse(self) -> None:
        with pytest.raises(DecodeError):
            decode_uvarint(b"\x01", 1)
        for offset in (2, -1):
            with pytest.raises(UsageError):
                decode_uvarint(b"\x01", offset)


class TestFrame:
    @given(st.binary(max_size=400))
    def test_is_the_length_and_the_payload(self, payload: bytes) -> None:
        framed = frame(payload)
        size, start = decode_uvarint(framed)
        assert size == len(payload)
        assert framed[start:] == payload
        assert frame(memoryview(payload)) == framed
