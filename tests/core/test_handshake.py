"""The listener's handshake in C does what flare.transport.noise does, and nothing else than it says."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core import handshake
from flare._core.handshake import DONE, ELSEWHERE, WAITS, Responder, StaticKey
from flare.errors import (
    AuthenticationFailed,
    DecodeError,
    FrameTooLarge,
    InvalidKey,
    ProtocolViolation,
    UsageError,
)
from flare.transport import multistream, noise
from flare.transport.channel import BufferedChannel
from flare.wire.keys import Identity
from tests.transport.test_noise import TestVectors as Vectors

ALICE, BOB = Identity.generate(), Identity.generate()
PROPOSAL = multistream.proposal("/noise")
KEY = noise.static_key(BOB)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Fed(BufferedChannel):
    """A channel to a Responder, which gets what is written in pieces of `piece` bytes."""

    def __init__(self, responder: Responder, piece: int = 0, after: bytes = b"") -> None:
        super().__init__("the responder")
        self.responder = responder
        self._piece = piece
        self._after = after  # follows our last message in the same packet
        self._answers = b""
        self._writes = 0

    async def _receive(self) -> bytes:
        data, self._answers = self._answers, b""
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._writes += 1
        data = bytes(data) + (self._after if self._writes == 2 else b"")
        step = self._piece or len(data)
        for at in range(0, len(data), step):
            self._answers += self.responder.feed(data[at : at + step])


def run(channel: Fed, who: Identity = ALICE) -> noise.NoiseSession:
    """flare.transport.noise as the initiator."""

    async def main() -> noise.NoiseSession:
        proposing = multistream.Optimistic(channel, "/noise")
        return await noise.handshake(proposing, who, initiator=True, expected_peer=BOB.peer_id, timeout=5)

    return asyncio.run(main())


def test_the_interpreters_libcrypto_has_what_it_takes() -> None:
    assert handshake.available() == (os.environ.get("FLARE_AEAD") != "cryptography")


class TestVectorsOfNoise:
    @pytest.mark.parametrize(
        ("messages", "payload"), [(Vectors.EMPTY, b""), (Vectors.PAYLOADS, b"test_msg_1")]
    )
    def test_responder(self, messages: tuple[str, ...], payload: bytes) -> None:
        responder = Responder(-1, StaticKey(Vectors.RESP_STATIC, payload), ephemeral=Vectors.RESP_EPHEMERAL)
        assert responder.feed(PROPOSAL) == PROPOSAL
        assert responder.feed(framed(bytes.fromhex(messages[0])))[2:].hex() == messages[1]
        assert responder.feed(framed(bytes.fromhex(messages[2]))) == b""
        assert responder.state == DONE
        Vectors().check_records(responder.recv_key, responder.send_key)
        public = X25519PrivateKey.from_private_bytes(Vectors.INIT_STATIC).public_key().public_bytes_raw()
        assert responder.remote_static == public


class TestAgreement:
    @pytest.mark.parametrize("piece", [0, 3, 7, 100])
    def test_with_an_initiator_however_its_bytes_come(self, piece: int) -> None:
        responder = Responder(-1, KEY)
        near = run(Fed(responder, piece) if piece else Fed(responder))
        assert responder.state == DONE
        assert responder.rest == b""
        far = noise.secured(
            responder.payload, responder.remote_static, responder.send_key, responder.recv_key
        )
        assert (near.remote_peer, far.remote_peer) == (BOB.peer_id, ALICE.peer_id)
        assert near.muxer == far.muxer == "/yamux/1.0.0"
        assert near.records.send_key == far.records.recv_key != far.records.send_key == near.records.recv_key

    def test_every_kind_of_identity(self) -> None:
        for kind in ("ed25519", "secp256k1", "ecdsa", "rsa"):
            who = Identity.generate(kind)  # type: ignore[arg-type]
            responder = Responder(-1, KEY)
            run(Fed(responder), who)
            session = noise.secured(responder.payload, responder.remote_static, bytes(32), bytes(32))
            assert session.remote_key == who.public_key

    def test_what_follows_the_last_message_is_kept_for_whoever_reads_on(self) -> None:
        responder = Responder(-1, KEY)
        run(Fed(responder, after=b"a record"))
        assert responder.rest == b"a record"

    def test_each_handshake_has_an_ephemeral_key_of_its_own(self) -> None:
        seen = set()
        for _ in range(3):
            responder = Responder(-1, KEY)
            responder.feed(PROPOSAL)
            seen.add(responder.feed(framed(KEY.public))[2:34])
        assert len(seen) == 3

    def test_each_identity_has_a_static_key_of_its_own_and_keeps_it(self) -> None:
        assert noise.static_key(BOB).public == KEY.public != noise.static_key(ALICE).public


class TestElsewhere:
    @pytest.mark.parametrize(
        "data",
        [
            multistream.encode(multistream.HEADER),
            multistream.proposal("/tls/1.0.0"),
            multistream.encode(multistream.HEADER) + multistream.encode("/noisy"),
            b"GET / HTTP/1.1\r\n",
            b"\x00",
        ],
        ids=["a greeting alone", "tls", "another name", "http", "zero"],
    )
    def test_what_is_not_noise_at_once_is_handed_back_unanswered(self, data: bytes) -> None:
        responder = Responder(-1, KEY)
        assert responder.feed(data) == b""
        assert responder.state == ELSEWHERE
        assert responder.rest == data
        with pytest.raises(UsageError, match="over"):
            responder.feed(b"more")

    def test_a_proposal_in_pieces(self) -> None:
        responder = Responder(-1, KEY)
        assert responder.feed(PROPOSAL[:5]) == b""
        assert responder.feed(PROPOSAL[5:-1]) == b""
        assert responder.state == WAITS
        assert responder.feed(PROPOSAL[-1:]) == PROPOSAL


class TestHostilePeers:
    def begun(self) -> Responder:
        responder = Responder(-1, KEY)
        responder.feed(PROPOSAL)
        return responder

    @pytest.mark.parametrize("size", [0, 1, 31])
    def test_a_first_message_too_short(self, size: int) -> None:
        with pytest.raises(DecodeError, match=f"first message of {size} bytes, at least 32"):
            self.begun().feed(framed(bytes(size)))

    @pytest.mark.parametrize("size", [0, 63])
    def test_a_third_message_too_short(self, size: int) -> None:
        responder = self.begun()
        responder.feed(framed(KEY.public))
        with pytest.raises(DecodeError, match=f"third message of {size} bytes, at least 64"):
            responder.feed(framed(bytes(size)))

    def test_a_message_at_the_limit_and_one_past_it(self) -> None:
        for size, error in (
            (noise.MAX_MESSAGE, AuthenticationFailed),
            (noise.MAX_MESSAGE + 1, FrameTooLarge),
        ):
            responder = self.begun()
            responder.feed(framed(KEY.public))
            with pytest.raises(error):
                responder.feed(framed(bytes(size)))
            with pytest.raises(UsageError):
                responder.feed(b"")

    def test_keys_of_small_order(self) -> None:
        for key in (bytes(32), b"\x01" + bytes(31)):
            with pytest.raises(AuthenticationFailed, match="small order"):
                self.begun().feed(framed(key))

    def test_every_bit_of_the_third_message_matters(self) -> None:
        vectors = Vectors()
        third = bytes.fromhex(vectors.PAYLOADS[2])
        for at in range(len(third)):
            responder = Responder(
                -1, StaticKey(vectors.RESP_STATIC, b"test_msg_1"), ephemeral=vectors.RESP_EPHEMERAL
            )
            responder.feed(PROPOSAL + framed(bytes.fromhex(vectors.PAYLOADS[0])))
            bent = bytearray(third)
            bent[at] ^= 1 << at % 8
            with pytest.raises(AuthenticationFailed, match="does not decrypt"):
                responder.feed(framed(bytes(bent)))

    @given(st.binary(max_size=300), st.sampled_from([b"", PROPOSAL, PROPOSAL + framed(bytes(range(32)))]))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_give_a_clear_error_or_none(self, data: bytes, before: bytes) -> None:
        responder = Responder(-1, KEY)
        try:
            responder.feed(before + data)
        except ProtocolViolation:
            return
        assert responder.state in (WAITS, ELSEWHERE)


class TestMisuse:
    def test_keys_have_32_bytes(self) -> None:
        for size in (31, 33):
            with pytest.raises(InvalidKey):
                StaticKey(bytes(size), b"")
            with pytest.raises(InvalidKey):
                Responder(-1, KEY, ephemeral=bytes(size))

    @pytest.mark.parametrize("extra", [0, 1])
    def test_a_payload_at_the_limit_and_one_past_it(self, extra: int) -> None:
        payload = bytes(noise.MAX_MESSAGE - 96 + extra)
        if extra:
            with pytest.raises(UsageError, match="at most 4000"):
                StaticKey(bytes(range(32)), payload)
        else:
            responder = Responder(-1, StaticKey(bytes(range(32)), payload))
            assert len(responder.feed(PROPOSAL + framed(KEY.public))) == len(PROPOSAL) + 2 + noise.MAX_MESSAGE


class TestOnASocket:
    def test_it_answers_what_has_come(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            far.setblocking(False)
            responder = Responder(far.fileno(), KEY)
            assert responder.advance() == WAITS
            near.sendall(PROPOSAL)
            assert responder.advance() == WAITS
            assert near.recv(100) == PROPOSAL
            near.sendall(b"\xff")
            assert responder.advance() == WAITS

    def test_the_end(self) -> None:
        near, far = socket.socketpair()
        with far:
            near.close()
            with pytest.raises(EOFError):
                Responder(far.fileno(), KEY).advance()

    def test_an_error_of_the_socket(self) -> None:
        with pytest.raises(OSError, match="descriptor"):
            Responder(-1, KEY).advance()
