"""Record encryption against the RFC's vectors, against `cryptography`, and against what an attacker does."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from flare._core import aead
from flare.errors import AuthenticationFailed, InvalidKey, ResourceLimit, UsageError

KINDS = {aead.CHACHA20_POLY1305: 32, aead.AES_128_GCM: 16, aead.AES_256_GCM: 32}
LAST_NONCE = 2**64 - 2


def oracle(kind: int, key: bytes) -> ChaCha20Poly1305 | AESGCM:
    return ChaCha20Poly1305(key) if kind == aead.CHACHA20_POLY1305 else AESGCM(key)


def noise_nonce(kind: int, counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little" if kind == aead.CHACHA20_POLY1305 else "big")


def tls_nonce(iv: bytes, counter: int) -> bytes:
    return bytes(a ^ b for a, b in zip(iv, counter.to_bytes(12, "big"), strict=True))


class TestRFC8439:
    """Appendix A.5 and 2.8.2, whose nonces an IV with counter 0 gives."""

    def test_section_2_8_2_encryption(self) -> None:
        key = bytes(range(0x80, 0xA0))
        iv = bytes.fromhex("070000004041424344454647")
        ad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
        plaintext = (
            b"Ladies and Gentlemen of the class of '99: "
            b"If I could offer you only one tip for the future, sunscreen would be it."
        )
        sealed = aead.Aead(key, iv=iv).seal(plaintext, ad)
        assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
        assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
        assert aead.Aead(key, iv=iv).open(sealed, ad) == plaintext

    def test_appendix_a_5_decryption(self) -> None:
        key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
        iv = bytes.fromhex("000000000102030405060708")
        ad = bytes.fromhex("f33388860000000000004e91")
        sealed = bytes.fromhex(
            "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2"
            "4c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf"
            "332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855"
            "9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4"
            "b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523e"
            "af4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a"
            "0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10"
            "49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29"
            "a6ad5cb4022b02709b"
            "eead9d67890cbb22392336fea1851f38"
        )
        opened = aead.Aead(key, iv=iv).open(sealed, ad)
        assert opened.startswith(b"Internet-Drafts are draft documents valid for a maximum of six months")
        assert len(opened) == 265


@pytest.mark.parametrize("kind", KINDS)
class TestAgainstCryptography:
    def test_counter_nonces_noise_12_3_and_12_4(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sender, receiver = aead.Aead(key, kind), aead.Aead(key, kind)
        for counter in range(300):  # past one byte, so that the byte order shows
            plaintext = os.urandom(counter)
            sealed = sender.seal(plaintext)
            assert sealed == oracle(kind, key).encrypt(noise_nonce(kind, counter), plaintext, None)
            assert receiver.open(sealed) == plaintext

    @given(pieces=st.lists(st.binary(max_size=200), max_size=8), counter=st.integers(0, 2**64 - 3))
    def test_pieces_are_one_record(self, kind: int, pieces: list[bytes], counter: int) -> None:
        key = bytes(range(KINDS[kind]))
        sender = aead.Aead(key, kind, nonce=counter)
        if aead.backend() == "cryptography":  # where only C can encrypt in pieces
            with pytest.raises(UsageError):
                sender.seal_pieces(pieces)
            return
        nonce, following = noise_nonce(kind, counter), noise_nonce(kind, counter + 1)
        assert sender.seal_pieces(pieces) == oracle(kind, key).encrypt(nonce, b"".join(pieces), None)
        assert sender.nonce == counter + 1
        assert sender.seal(b"next") == oracle(kind, key).encrypt(following, b"next", None)

    def test_pieces_end_with_the_counter(self, kind: int) -> None:
        sender = aead.Aead(bytes(KINDS[kind]), kind, nonce=LAST_NONCE)
        if aead.backend() != "cryptography":
            sender.seal_pieces([b"last"])
            with pytest.raises(ResourceLimit):
                sender.seal_pieces([b"one past"])

    def test_counter_nonces_rfc_8446_5_3(self, kind: int) -> None:
        key, iv = os.urandom(KINDS[kind]), os.urandom(12)
        start = 0x0102030405060700
        sender = aead.Aead(key, kind, iv=iv, nonce=start)
        receiver = aead.Aead(key, kind, iv=iv, nonce=start)
        for counter in range(start, start + 300):
            sealed = sender.seal(b"record", b"header")
            assert sealed == oracle(kind, key).encrypt(tls_nonce(iv, counter), b"record", b"header")
            assert receiver.open(sealed, b"header") == b"record"

    @pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 1024, 65_519, 1 << 20])
    def test_sizes(self, kind: int, size: int) -> None:
        key, plaintext = os.urandom(KINDS[kind]), os.urandom(size)
        sealed = aead.Aead(key, kind).seal(plaintext)
        assert sealed == oracle(kind, key).encrypt(bytes(12), plaintext, None)
        assert aead.Aead(key, kind).open(sealed) == plaintext


@given(
    key=st.binary(min_size=32, max_size=32),
    plaintext=st.binary(max_size=2048),
    ad=st.binary(max_size=64),
    counter=st.integers(0, LAST_NONCE),
)
def test_any_record_matches_cryptography(key: bytes, plaintext: bytes, ad: bytes, counter: int) -> None:
    nonce = noise_nonce(aead.CHACHA20_POLY1305, counter)
    sealed = aead.Aead(key, nonce=counter).seal(plaintext, ad)
    assert sealed == ChaCha20Poly1305(key).encrypt(nonce, plaintext, ad)
    assert aead.Aead(key, nonce=counter).open(sealed, ad) == plaintext


@pytest.mark.parametrize("kind", KINDS)
class TestTampering:
    def test_every_flipped_bit_is_refused(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sealed = aead.Aead(key, kind).seal(b"attack at dawn")
        receiver = aead.Aead(key, kind)
        for bit in range(len(sealed) * 8):
            forged = bytearray(sealed)
            forged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(AuthenticationFailed):
                receiver.open(forged)
        assert receiver.nonce == 0, "a forgery does not advance the counter"
        assert receiver.open(sealed) == b"attack at dawn"

    def test_every_truncation_is_refused(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sealed = aead.Aead(key, kind).seal(b"attack at dawn")
        receiver = aead.Aead(key, kind)
        for size in range(len(sealed)):
            with pytest.raises(AuthenticationFailed):
                receiver.open(sealed[:size])

    def test_replayed_reordered_or_foreign_records_are_refused(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sender, receiver = aead.Aead(key, kind), aead.Aead(key, kind)
        first, second = sender.seal(b"first"), sender.seal(b"second")
        with pytest.raises(AuthenticationFailed):
            receiver.open(second)
        assert receiver.open(first) == b"first"
        with pytest.raises(AuthenticationFailed):
            receiver.open(first)
        with pytest.raises(AuthenticationFailed):
            aead.Aead(os.urandom(KINDS[kind]), kind).open(first)

    def test_other_additional_data_is_refused(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sealed = aead.Aead(key, kind).seal(b"record", b"header")
        for other in (b"", b"heade", b"headers", b"Header"):
            with pytest.raises(AuthenticationFailed):
                aead.Aead(key, kind).open(sealed, other)

    def test_unauthenticated_plaintext_is_zeroed(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        forged = bytearray(aead.Aead(key, kind).seal(b"attack at dawn"))
        forged[-1] ^= 1
        with pytest.raises(AuthenticationFailed):
            aead.Aead(key, kind).open_in_place(forged)
        assert forged[: -aead.TAG_SIZE] == bytes(14)


@pytest.mark.parametrize("kind", KINDS)
class TestInPlace:
    def test_touches_the_record_and_its_tag_and_nothing_else(self, kind: int) -> None:
        key, plaintext = os.urandom(KINDS[kind]), os.urandom(1000)
        arena = bytearray(b"\xaa" * 8 + plaintext + b"\x00" * aead.TAG_SIZE + b"\xbb" * 8)
        inside = memoryview(arena)[8:-8]
        aead.Aead(key, kind).seal_in_place(inside, len(plaintext))
        assert inside == oracle(kind, key).encrypt(bytes(12), plaintext, None)
        assert aead.Aead(key, kind).open_in_place(inside) == len(plaintext)
        assert inside[: len(plaintext)] == plaintext
        assert arena[:8] == b"\xaa" * 8
        assert arena[-8:] == b"\xbb" * 8

    def test_room_for_the_tag(self, kind: int) -> None:
        sender = aead.Aead(bytes(KINDS[kind]), kind)
        sender.seal_in_place(bytearray(20 + aead.TAG_SIZE), 20)
        for buffer in (bytearray(20 + aead.TAG_SIZE - 1), bytearray(3), bytearray()):
            with pytest.raises(UsageError, match="do not fit"):
                sender.seal_in_place(buffer, 20)
        assert sender.nonce == 1


@pytest.mark.parametrize("kind", KINDS)
class TestNonceExhaustion:
    """Noise 5.1: the nonce 2^64-1 is reserved and must not be used."""

    def test_seals_the_last_and_not_one_more(self, kind: int) -> None:
        key = os.urandom(KINDS[kind])
        sender, receiver = (aead.Aead(key, kind, nonce=LAST_NONCE) for _ in range(2))
        sealed = sender.seal(b"last")
        assert sealed == oracle(kind, key).encrypt(noise_nonce(kind, LAST_NONCE), b"last", None)
        buffer = bytearray(b"one more" + bytes(16))
        with pytest.raises(ResourceLimit):
            sender.seal_in_place(buffer, 8)
        assert buffer == b"one more" + bytes(16), "nothing is written"
        assert receiver.open(sealed) == b"last"
        forbidden = oracle(kind, key).encrypt(noise_nonce(kind, 2**64 - 1), b"x", None)
        with pytest.raises(ResourceLimit):
            receiver.open(forbidden)


class TestParking:
    def test_keeps_key_and_counter(self) -> None:
        key = os.urandom(32)
        sender, receiver = aead.Aead(key), aead.Aead(key)
        assert sender.parked, "no context before the first record"
        for message in (b"one", b"two", b"three"):
            assert receiver.open(sender.seal(message)) == message
            assert not sender.parked
            assert not receiver.parked
            sender.park()
            receiver.park()
            sender.park()
            assert sender.parked
        assert sender.nonce == receiver.nonce == 3


class TestMisuse:
    def test_a_state_is_one_direction(self) -> None:
        sender = aead.Aead(bytes(32))
        sealed = sender.seal(b"x")
        with pytest.raises(UsageError, match="not both"):
            sender.open(sealed)
        receiver = aead.Aead(bytes(32))
        receiver.open(sealed)
        with pytest.raises(UsageError, match="not both"):
            receiver.seal(b"x")

    @pytest.mark.parametrize("kind", KINDS)
    def test_key_sizes(self, kind: int) -> None:
        for size in (0, 15, 16, 17, 31, 32, 33):
            if size != KINDS[kind]:
                with pytest.raises(InvalidKey, match=f"{KINDS[kind]} needed"):
                    aead.Aead(bytes(size), kind)

    def test_kinds_ivs_and_counters(self) -> None:
        for kind in (-1, 0, 4, 255, 257):
            with pytest.raises(UsageError, match="unknown AEAD kind"):
                aead.Aead(bytes(32), kind)
        for size in (0, 11, 13):
            with pytest.raises(UsageError, match="12 needed"):
                aead.Aead(bytes(32), iv=bytes(size))
        for nonce in (-1, 2**64):
            with pytest.raises(UsageError, match="64 bits"):
                aead.Aead(bytes(32), nonce=nonce)
