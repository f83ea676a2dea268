"""The Noise handshake (noise/README.md): vectors, both roles against each other, and everything bent on the
way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    NetworkError,
    PeerMismatch,
    ProtocolViolation,
    TimedOut,
)
from flare.transport import noise
from flare.transport.noise import NoiseSession, handshake
from flare.wire.keys import Identity
from flare.wire.messages import NoiseExtensions, NoiseHandshakePayload
from tests.support.aio import aio, run
from tests.support.channels import MemoryChannel, channel_pair

T = 5.0
ALICE = Identity.generate()
BOB = Identity.generate()


async def both(
    near: MemoryChannel,
    far: MemoryChannel,
    *,
    expected: Any = BOB.peer_id,
    timeout: float = T,
    near_muxers: tuple[str, ...] = ("/yamux/1.0.0",),
    far_muxers: tuple[str, ...] = ("/yamux/1.0.0",),
) -> tuple[NoiseSession | BaseException, NoiseSession | BaseException]:
    """ALICE dials BOB; each side's session or error. A side that fails closes the channel."""

    async def side(channel: MemoryChannel, **how: Any) -> NoiseSession:
        try:
            return await handshake(channel, timeout=timeout, **how)
        finally:
            channel.end()

    return tuple(  # type: ignore[return-value]
        await asyncio.gather(
            side(near, identity=ALICE, initiator=True, expected_peer=expected, muxers=near_muxers),
            side(far, identity=BOB, initiator=False, expected_peer=None, muxers=far_muxers),
            return_exceptions=True,
        )
    )


def session(result: NoiseSession | BaseException) -> NoiseSession:
    assert isinstance(result, NoiseSession), repr(result)
    return result


class TestVectors:
    """Published vectors of Noise_XX_25519_ChaChaPoly_SHA256 without a prologue."""

    INIT_STATIC = bytes(range(32))
    RESP_STATIC = bytes(range(1, 33))
    INIT_EPHEMERAL = bytes(range(0x20, 0x40))
    RESP_EPHEMERAL = bytes(range(0x41, 0x61))
    EMPTY = (
        "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254",
        "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816d6e8346d4ea17a6f2a0bb4"
        "ef4ed56c133cff4560a34e36ea82109f26cf2e5a5caf992b608d55c747f615e5a3425a7a19eefb8f",
        "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d97e5ea11b16f3968710b23a3be3202dc1b5e1ce3c96334749"
        "1e74f5c0768a9b42",
    )
    PAYLOADS = (
        "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254746573745f6d73675f30",
        "64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d484663414af878d3e46a2f58911a816d6e8346d4ea17a6f2a0bb4"
        "ef4ed56c133cff4572e7a2ba5123ac30618b3d205f5c2d17f50cbca216483ac56bcc78e33bf520303278db641e5e731b2e3a",
        "87f864c11ba449f46a0a4f4e2eacbb7b0457784f4fca1937f572c93603e9c4d9f27e318e43ba630594c4d08eeb3b36d97c7377a2f4f9144b"
        "2f0c8095ad92140505b2ab53eff244b14138",
    )
    RECORDS = (
        "a52ef02ba60e12696d1d6b9ef4245c88fca757b6134ad6e76b56e310a6adf6",
        "2445aa438ebd649281c636cc7269ca82f1d9023d72520943aeabf909cdf521",
    )

    @pytest.fixture
    def fixed(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, bytes, bytes], None]:
        """Fix the keys and the payload of the next side to run."""
        monkeypatch.setattr(noise, "_authenticate", lambda *_: (BOB.peer_id, BOB.public_key, ()))

        def fix(static: bytes, ephemeral: bytes, payload: bytes) -> None:
            key = X25519PrivateKey.from_private_bytes(static)
            made = noise._Static(key, key.public_key().public_bytes_raw(), b"", b"")
            monkeypatch.setattr(noise, "_static_of", lambda _: made)
            monkeypatch.setattr(noise, "_payload", lambda *_: payload)
            fixed_ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)

            class Generator:
                generate = staticmethod(lambda: fixed_ephemeral)

            monkeypatch.setattr(noise, "X25519PrivateKey", Generator)

        return fix

    def test_initiator(self, fixed: Callable[[bytes, bytes, bytes], None]) -> None:
        async def main() -> None:
            near, _ = channel_pair()
            fixed(self.INIT_STATIC, self.INIT_EPHEMERAL, b"")
            near.feed(noise._framed(bytes.fromhex(self.EMPTY[1])))
            made = await handshake(near, ALICE, initiator=True, expected_peer=None, timeout=T)
            assert [data[2:].hex() for data in near.written] == [self.EMPTY[0], self.EMPTY[2]]
            self.check_records(made.records.send_key, made.records.recv_key)

        run(main())

    @pytest.mark.parametrize(("messages", "payload"), [(EMPTY, b""), (PAYLOADS, b"test_msg_1")])
    def test_responder(
        self, fixed: Callable[[bytes, bytes, bytes], None], messages: tuple[str, ...], payload: bytes
    ) -> None:
        async def main() -> None:
            _, far = channel_pair()
            fixed(self.RESP_STATIC, self.RESP_EPHEMERAL, payload)
            far.feed(noise._framed(bytes.fromhex(messages[0])) + noise._framed(bytes.fromhex(messages[2])))
            made = await handshake(far, BOB, initiator=False, expected_peer=None, timeout=T)
            assert far.written[0][2:].hex() == messages[1]
            self.check_records(made.records.recv_key, made.records.send_key)

        run(main())

    def check_records(self, of_initiator: bytes, of_responder: bytes) -> None:
        for key, text, sealed in zip(
            (of_initiator, of_responder), (b"yellowsubmarine", b"submarineyellow"), self.RECORDS, strict=True
        ):
            assert ChaCha20Poly1305(key).encrypt(bytes(12), text, None).hex() == sealed


class TestAgreement:
    @aio
    async def test_both_know_each_other_and_share_keys(self) -> None:
        near, far = map(session, await both(*channel_pair()))
        assert (near.remote_peer, far.remote_peer) == (BOB.peer_id, ALICE.peer_id)
        assert (near.remote_key, far.remote_key) == (BOB.public_key, ALICE.public_key)
        assert near.records.send_key == far.records.recv_key
        assert near.records.recv_key == far.records.send_key
        assert near.records.send_key != near.records.recv_key
        assert "send_key" not in repr(near), "keys do not belong in logs"

    @aio
    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "secp256k1", "rsa"])
    async def test_every_kind_of_identity(self, kind: Any) -> None:
        carol = Identity.generate(kind)
        near, far = channel_pair()
        results = await asyncio.gather(
            handshake(near, carol, initiator=True, expected_peer=ALICE.peer_id, timeout=T),
            handshake(far, ALICE, initiator=False, expected_peer=carol.peer_id, timeout=T),
        )
        assert results[1].remote_peer == carol.peer_id

    @aio
    async def test_early_muxer_negotiation_takes_the_initiators_order(self) -> None:
        for near_muxers, far_muxers, agreed in [
            (("/a", "/b"), ("/b", "/a"), "/a"),
            (("/a", "/b"), ("/b",), "/b"),
            (("/a",), ("/b",), None),
            (("/a",), (), None),
        ]:
            results = await both(*channel_pair(), near_muxers=near_muxers, far_muxers=far_muxers)
            assert [session(result).muxer for result in results] == [agreed, agreed]

    @aio
    async def test_a_list_of_muxers_at_the_limit_and_past_it(self) -> None:
        for extra, agreed in [(noise.MAX_MUXERS - 1, "/yamux/1.0.0"), (noise.MAX_MUXERS, None)]:
            many = (*tuple(f"/{i}" for i in range(extra)), "/yamux/1.0.0")
            near, far = await both(*channel_pair(), near_muxers=many)
            assert session(near).muxer == "/yamux/1.0.0"
            assert session(far).muxer == agreed

    @aio
    async def test_the_static_key_is_signed_once_and_ephemeral_keys_differ(self) -> None:
        first, second = channel_pair(), channel_pair()
        await both(*first)
        await both(*second)
        assert noise._static_of(ALICE) is noise._static_of(ALICE)
        assert first[0].written[0] != second[0].written[0]

    @aio
    async def test_nothing_is_read_past_the_last_message(self) -> None:
        near, far = channel_pair()
        near.mangle = lambda data, index: data + b"first record" if index == 1 else data
        far.mangle = lambda data, _: data + b"of the responder"
        _, result = await both(near, far)
        session(result)
        assert far.leftover() == b"first record"
        assert near.leftover() == b"of the responder"


class TestHostilePeers:
    @aio
    async def test_somebody_else_answers(self) -> None:
        carol = Identity.generate().peer_id
        near, far = await both(*channel_pair(), expected=carol)
        assert isinstance(near, PeerMismatch)
        assert (near.expected, near.actual) == (carol, BOB.peer_id)
        assert isinstance(far, ConnectionClosed), "the initiator must not go on"

    @aio
    async def test_an_initiator_does_not_show_itself_to_somebody_else(self) -> None:
        near, far = channel_pair()
        await both(near, far, expected=Identity.generate().peer_id)
        assert len(near.written) == 1, "no third message"

    @aio
    async def test_every_bit_matters(self) -> None:
        """One flipped bit in each byte of each message: no handshake may succeed on both sides."""
        near, far = channel_pair()
        await both(near, far)
        sizes = [(0, 0, len(near.written[0])), (1, 0, len(far.written[0])), (0, 1, len(near.written[1]))]
        for side, index, size in sizes:
            for at in range(2, size, 7):
                pair = channel_pair()

                def flip(data: bytes, nth: int, at: int = at, index: int = index) -> bytes:
                    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] if nth == index else data

                pair[side].mangle = flip
                results = await both(*pair)
                assert any(isinstance(result, AuthenticationFailed) for result in results), (
                    side,
                    index,
                    at,
                    results,
                )

    @aio
    async def test_every_truncation(self) -> None:
        near, far = channel_pair()
        await both(near, far)
        for side, index, size in [(0, 0, 34), (1, 0, len(far.written[0])), (0, 1, len(near.written[1]))]:
            for cut in range(0, size, 11):
                pair = channel_pair()

                def cut_short(data: bytes, nth: int, cut: int = cut, index: int = index) -> bytes:
                    return data[:cut] if nth == index else data

                pair[side].mangle = cut_short
                results = await both(*pair, timeout=0.02)
                victim = results[1 - side]
                assert isinstance(victim, ConnectionClosed | TimedOut), (side, index, cut, victim)

    @aio
    @pytest.mark.parametrize("size", [0, 1, 31])
    async def test_a_first_message_too_short(self, size: int) -> None:
        _, far = channel_pair()
        far.feed(noise._framed(bytes(size)))
        with pytest.raises(DecodeError, match=f"first message of {size} bytes"):
            await handshake(far, BOB, initiator=False, expected_peer=None, timeout=T)

    @aio
    async def test_a_key_of_small_order(self) -> None:
        for key in (bytes(32), b"\x01" + bytes(31)):
            _, far = channel_pair()
            far.feed(noise._framed(key))
            with pytest.raises(AuthenticationFailed, match="small order"):
                await handshake(far, BOB, initiator=False, expected_peer=None, timeout=T)

    @aio
    async def test_a_silent_peer(self) -> None:
        for initiator in (True, False):
            channel, _ = channel_pair()
            with pytest.raises(TimedOut, match="Noise handshake"):
                await handshake(channel, BOB, initiator=initiator, expected_peer=None, timeout=0.05)

    @aio
    async def test_payloads_that_prove_nothing(self) -> None:
        static = noise._static_of(BOB)
        stolen = noise._static_of(ALICE)
        for payload, error in [
            (b"", DecodeError),
            (b"\xff\xff", DecodeError),
            (NoiseHandshakePayload(b"junk", static.signature).encode(), DecodeError),
            (NoiseHandshakePayload(static.identity_key, b"").encode(), AuthenticationFailed),
            (NoiseHandshakePayload(static.identity_key, bytes(64)).encode(), AuthenticationFailed),
            (NoiseHandshakePayload(stolen.identity_key, stolen.signature).encode(), AuthenticationFailed),
            (NoiseHandshakePayload(stolen.identity_key, static.signature).encode(), AuthenticationFailed),
        ]:
            with pytest.raises(error):
                noise._authenticate(payload, static.public, None)
        good = NoiseHandshakePayload(static.identity_key, static.signature, NoiseExtensions(("/m",))).encode()
        assert noise._authenticate(good, static.public, BOB.peer_id) == (BOB.peer_id, BOB.public_key, ("/m",))


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_payload_gives_a_protocol_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        noise._authenticate(data, bytes(32), None)


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_clear_error(data: bytes, initiator: bool) -> None:
    async def main() -> None:
        channel, other = channel_pair()
        channel.feed(data)
        other.end()
        with pytest.raises((ProtocolViolation, NetworkError)):
            await handshake(channel, BOB, initiator=initiator, expected_peer=None, timeout=T)

    run(main())


@aio
async def test_a_message_at_the_limit_and_one_past_it() -> None:
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    for size, error in ((noise.MAX_MESSAGE, AuthenticationFailed), (noise.MAX_MESSAGE + 1, FrameTooLarge)):
        _, far = channel_pair()
        far.feed(noise._framed(key) + noise._framed(bytes(size)))
        with pytest.raises(error):
            await handshake(far, BOB, initiator=False, expected_peer=None, timeout=T)
