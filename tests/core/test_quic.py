"""1-RTT packets beside aioquic's: protection (RFC 9001, 5), and the frames of bulk data (RFC 9000, 19)."""

from __future__ import annotations

import os
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoContext, derive_key_iv_hp
from aioquic.quic.packet import pull_ack_frame
from hypothesis import given
from hypothesis import strategies as st

from flare._core import aead
from flare._core.quic import Keys, available, frames, stream_frame, stream_overhead
from flare.errors import InvalidKey, UsageError

pytestmark = pytest.mark.skipif(not available(), reason="libcrypto is not within reach")

SUITES = {
    aead.AES_128_GCM: tls.CipherSuite.AES_128_GCM_SHA256,
    aead.AES_256_GCM: tls.CipherSuite.AES_256_GCM_SHA384,
    aead.CHACHA20_POLY1305: tls.CipherSuite.CHACHA20_POLY1305_SHA256,
}
CID = b"8 bytes."
MOST = (1 << 62) - 1
NOTHING = (None, 0, [], False)


def pair(kind: int, phase: int = 0) -> tuple[Keys, CryptoContext]:
    """Ours and aioquic's, of one secret. Each of ours seals or opens, and never does both."""
    return trio(kind, phase)[1:]


def trio(kind: int, phase: int = 0) -> tuple[Keys, Keys, CryptoContext]:
    secret = os.urandom(48 if kind == aead.AES_256_GCM else 32)
    theirs = CryptoContext(key_phase=phase)
    theirs.setup(cipher_suite=SUITES[kind], secret=secret, version=1)
    key, iv, mask_key = derive_key_iv_hp(cipher_suite=SUITES[kind], secret=secret, version=1)
    return Keys(kind, key, iv, mask_key, phase), Keys(kind, key, iv, mask_key, phase), theirs


def theirs_sealed(context: CryptoContext, number: int, payload: bytes, *, first: int = 0x40) -> bytes:
    header = bytes((first | context.key_phase << 2 | 1,)) + CID + (number & 0xFFFF).to_bytes(2, "big")
    return context.encrypt_packet(header, payload, number)


@pytest.mark.parametrize("kind", SUITES)
class TestProtection:
    @pytest.mark.parametrize("phase", [0, 1])
    def test_aioquic_opens_what_we_seal(self, kind: int, phase: int) -> None:
        ours, theirs = pair(kind, phase)
        made = ours.seal(CID, 70_000, b"\x01\x01\x01")
        header, payload, number, updated = theirs.decrypt_packet(made, 9, 70_000)
        assert (header[0] & 0xFC, header[1:9], payload, number) == (
            0x40 | phase << 2,
            CID,
            b"\x01" * 3,
            70_000,
        )
        assert not updated

    def test_we_open_what_aioquic_seals(self, kind: int) -> None:
        ours, theirs = pair(kind)
        for number in (0, 255, 65_535, 65_536, 1 << 40):
            made = theirs_sealed(theirs, number, b"\x01" + bytes(30))
            assert ours.open(made, CID, number) == (number, None, None, 0, [], True)

    def test_data_of_a_stream(self, kind: int) -> None:
        sealer, ours, theirs = trio(kind)
        data = bytearray(os.urandom(1000))
        made = sealer.seal_stream(CID, 5, b"\x01", 4, 7, data, 100, 900, True)
        assert theirs.decrypt_packet(made, 9, 5)[1] == b"\x01\x0d\x04\x07" + data[100:]
        assert ours.open(made, CID, 5) == (5, None, None, 0, [(4, 7, bytes(data[100:]), True)], True)

    def test_padding_to_a_size(self, kind: int) -> None:
        sealer, ours, _ = trio(kind)
        for size in (0, 30, 31, 1452):
            made = sealer.seal(CID, 5, b"\x01", size)
            assert len(made) == max(size, 1 + 8 + 4 + 1 + 16)
            assert ours.open(made, CID, 5) == (5, None, None, 0, [], True)

    @given(st.integers(0, 59), st.integers(1, 255))
    def test_a_byte_that_was_touched(self, kind: int, at: int, flip: int) -> None:
        ours, theirs = pair(kind)
        made = bytearray(theirs_sealed(theirs, 3, b"\x01" + bytes(32)))
        made[at] ^= flip
        opened = ours.open(bytes(made), CID, 3)
        assert opened is None

    def test_what_is_cut_off(self, kind: int) -> None:
        ours, theirs = pair(kind)
        made = theirs_sealed(theirs, 3, b"\x01\x01\x01")
        assert ours.open(made, CID, 3) is not None
        for size in range(len(made)):
            assert ours.open(made[:size], CID, 3) is None

    def test_the_other_key_phase_and_reserved_bits_are_not_judged_here(self, kind: int) -> None:
        ours, theirs = pair(kind)
        assert ours.open(theirs_sealed(theirs, 3, b"\x01\x01\x01", first=0x44), CID, 3) is None
        assert ours.open(theirs_sealed(theirs, 3, b"\x01\x01\x01", first=0x48), CID, 3) is None

    @given(st.integers(0, MOST - (1 << 32)), st.integers(-30_000, 30_000))
    def test_whole_packet_numbers(self, kind: int, expected: int, off: int) -> None:
        """RFC 9000, A.3: two bytes tell numbers within half of 65,536."""
        number = max(0, expected + off)
        ours, theirs = pair(kind)
        opened = ours.open(theirs_sealed(theirs, number, b"\x01\x01\x01"), CID, expected)
        assert opened is not None
        assert opened[0] == number


def test_misuse() -> None:
    with pytest.raises(UsageError):
        Keys(9, bytes(16), bytes(12), bytes(16))
    for key, iv, mask in ((15, 12, 16), (16, 11, 16), (16, 12, 17)):
        with pytest.raises(InvalidKey):
            Keys(aead.AES_128_GCM, bytes(key), bytes(iv), bytes(mask))
    keys = Keys(aead.AES_128_GCM, bytes(16), bytes(12), bytes(16))
    with pytest.raises(UsageError):
        keys.seal(bytes(21), 0, b"\x01")
    with pytest.raises(UsageError):
        keys.seal(CID, 0, b"\x01", 65_536)
    assert len(keys.seal(bytes(20), 0, b"\x01", 65_535)) == 65_535
    for at, size in ((-1, 5), (0, 11), (11, 0), (0, -1)):
        with pytest.raises(UsageError):
            keys.seal_stream(CID, 0, b"", 4, 0, bytearray(10), at, size, False)
        with pytest.raises(UsageError):
            stream_frame(4, 0, bytearray(10), at, size, False)
    for cid in (b"another.", b"", bytes(21)):
        assert keys.open(keys.seal(CID, 0, b"\x01" * 20), cid, 0) is None
    with pytest.raises(UsageError):
        keys.seal_run(CID, 0, 4, 0, bytearray(10), 5, 6, 100, 1)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 10_000), (16_000, 10_000), ((1 << 30) - 3_000, 10_000), (7, 5)]
)
def test_a_run_of_full_packets(offset: int, size: int) -> None:
    """Each as seal_stream makes it; what fills none is left."""
    sealer, ours, _ = trio(aead.AES_128_GCM)
    data = bytearray(os.urandom(size + 9))
    room = 1100
    run = sealer.seal_run(CID, 90, 4, offset, data, 9, size, room, 100)
    at = offset
    for number, (datagram, start, end) in enumerate(run, 90):
        assert start == at
        assert len(datagram) == 1 + 8 + 4 + room + 16
        piece = bytes(data[9 + start - offset : 9 + end - offset])
        assert ours.open(datagram, CID, number) == (number, None, None, 0, [(4, start, piece, False)], True)
        at = end
    assert size - (at - offset) < room
    assert len(sealer.seal_run(CID, 90, 4, offset, data, 9, size, room, 3)) == min(3, len(run))
    assert sealer.seal_run(CID, 90, 4, offset, data, 9, size, room, 0) == []
    assert sealer.seal_run(CID, 90, 4, offset, data, 9, size, 2, 9) == []


# Frames

number = st.one_of(st.integers(0, 70), st.integers(16_300, 16_400), st.integers(0, MOST))


@given(number, st.integers(0, MOST - 100), st.binary(max_size=100), st.booleans())
def test_a_stream_frame_comes_back(stream: int, offset: int, data: bytes, fin: bool) -> None:
    made = stream_frame(stream, offset, bytearray(b"..") + data, 2, len(data), fin)
    assert len(made) - len(data) == stream_overhead(stream, offset) + (1 if len(data) < 64 else 2)
    assert frames(made + bytes(3)) == (0, None, None, 0, [(stream, offset, data, fin)], True)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=20), number, st.integers(0, MOST)
)
def test_an_ack_is_as_aioquic_reads_it(rest: list[tuple[int, int]], delay: int, largest: int) -> None:
    frame = Buffer(capacity=500)
    frame.push_uint_var(largest)
    frame.push_uint_var(delay)
    frame.push_uint_var(len(rest))
    frame.push_uint_var(3)
    for gap, length in rest:
        frame.push_uint_var(gap)
        frame.push_uint_var(length)
    body = frame.data
    try:
        ranges, told = pull_ack_frame(Buffer(data=body))
        expected: Any = (None, [(found.start, found.stop) for found in ranges], told, [], False)
    except (ValueError, AssertionError):
        expected = (b"\x02" + body, *NOTHING[:2], None, False)
    assert frames(b"\x02" + body)[1:] == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x02\x05",  # an ACK cut off
        b"\x02\x05\x00\x01\x00",
        b"\x02\x05\x00\x00\x06",  # below 0
        b"\x02\x05\x00\x01\x00\x04\x00",
        b"\x02\x05\x00\x00\x00\x02\x05\x00\x00\x00",  # two of them
        b"\x03\x05\x00\x00\x00\x01\x01\x01",  # with ECN
        b"\x08",
        b"\x0a\x04\x05abcd",  # a length that is not there
        b"\x0c\x04\xff",
        b"\x0e\x04" + b"\xff" * 8 + b"\x01x",  # past 2^62-1
        b"\x10\x20",  # MAX_DATA
        b"\x1c\x00\x00\x00",
        b"\x40\x01",  # PING in two bytes
        b"\x01\x01\x1e",
    ],
)
def test_what_is_unusual_is_left_alone(payload: bytes) -> None:
    assert frames(payload) == (0, payload, None, 0, None, False)


def test_what_is_not() -> None:
    assert frames(b"\x00\x01\x00")[1:] == (None, None, 0, [], True)
    assert frames(bytes(5))[1:] == (None, None, 0, [], False)
    assert frames(b"\x02\x05\x40\x64\x00\x00")[1:] == (None, [(5, 6)], 100, [], False)
    assert frames(b"\x0c\x04\x07abc")[4] == [(4, 7, b"abc", False)]
    assert frames(b"\x0a\x04\x02ab\x09\x08cd")[4] == [(4, 0, b"ab", False), (8, 0, b"cd", True)]


@given(st.binary(max_size=200))
def test_any_payload(payload: bytes) -> None:
    _, left, acked, _, streams, _ = frames(payload)
    if left is not None:
        assert (left, acked, streams) == (payload, None, None)
        return
    assert streams is not None
    assert sum(len(data) for _, _, data, _ in streams) <= len(payload)
    for start, stop in acked or []:
        assert 0 <= start < stop
