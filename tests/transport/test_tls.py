"""The TLS handshake of libp2p (tls/tls.md): both roles, what it negotiates, and peers that do it wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL

from flare._core.engine import Engine
from flare._core.link import TlsRecords
from flare.config import Timeouts
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    FlareError,
    NetworkError,
    PeerMismatch,
    ProtocolViolation,
    TimedOut,
)
from flare.transport import certificate, multistream, tls
from flare.transport.channel import BufferedChannel
from flare.transport.tls import TlsSession, handshake
from flare.transport.upgrade import upgrade
from flare.wire.keys import Identity, Kind
from tests.support.aio import aio
from tests.support.certificates import Forged
from tests.support.channels import MemoryChannel, channel_pair
from tests.support.mux import Heard, exchange

ALICE, BOB, MALLORY = Identity.generate(), Identity.generate(), Identity.generate()
T = 5.0
YAMUX = "/yamux/1.0.0"
Outcome = TlsSession | BaseException


async def ends(
    near: MemoryChannel, far: MemoryChannel, dialler: Any, listener: Any
) -> tuple[Outcome, Outcome]:
    """Each side's session or error; a side that fails closes its channel."""

    async def closing(work: Any, channel: MemoryChannel) -> Any:
        try:
            return await work
        except (FlareError, OSError) as error:
            channel.end()
            return error

    return tuple(await asyncio.gather(closing(dialler, far), closing(listener, near)))


async def both(**dialling: Any) -> tuple[Outcome, Outcome]:
    """ALICE dials BOB."""
    near, far = channel_pair()
    listening = dialling.pop("listening", {})
    dialler = handshake(
        near, ALICE, **({"initiator": True, "expected_peer": BOB.peer_id, "timeout": T} | dialling)
    )
    listener = handshake(far, BOB, **({"initiator": False, "expected_peer": None, "timeout": T} | listening))
    return await ends(near, far, dialler, listener)


class TestHandshake:
    @aio
    async def test_who_the_peers_are_and_what_they_agree_on(self) -> None:
        a, b = await both()
        assert isinstance(a, TlsSession)
        assert isinstance(b, TlsSession)
        assert (a.remote_peer, b.remote_peer) == (BOB.peer_id, ALICE.peer_id)
        assert (a.remote_key, b.remote_key) == (BOB.public_key, ALICE.public_key)
        assert a.muxer == b.muxer == YAMUX
        assert b.records.open(a.records.seal(b"there")) == b"there"
        assert a.records.open(b.records.seal(b"and back")) == b"and back"

    @aio
    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "secp256k1", "rsa"])
    async def test_every_kind_of_identity(self, kind: Kind) -> None:
        who = Identity.generate(kind)
        near, far = channel_pair()
        a, b = await ends(
            near,
            far,
            handshake(near, who, initiator=True, expected_peer=BOB.peer_id, timeout=T),
            handshake(far, BOB, initiator=False, expected_peer=who.peer_id, timeout=T),
        )
        assert isinstance(a, TlsSession)
        assert isinstance(b, TlsSession)
        assert b.remote_key.kind == kind

    @aio
    async def test_who_knows_no_early_negotiation(self) -> None:
        for dialling in ({"muxers": ()}, {"listening": {"muxers": ()}}):
            a, b = await both(**dialling)
            assert isinstance(a, TlsSession)
            assert isinstance(b, TlsSession)
            assert a.muxer is None
            assert b.muxer is None

    @aio
    async def test_the_client_s_favourite_is_taken(self) -> None:
        a, _ = await both(muxers=("/x", YAMUX), listening={"muxers": (YAMUX, "/x")})
        assert isinstance(a, TlsSession)
        assert a.muxer == "/x"

    @aio
    async def test_somebody_else_answers(self) -> None:
        a, b = await both(expected_peer=MALLORY.peer_id)
        assert isinstance(a, PeerMismatch)
        assert (a.expected, a.actual) == (MALLORY.peer_id, BOB.peer_id)
        assert isinstance(b, ProtocolViolation | NetworkError)

    @aio
    async def test_somebody_else_comes(self) -> None:
        _, b = await both(listening={"expected_peer": MALLORY.peer_id})
        assert isinstance(b, PeerMismatch)

    @aio
    async def test_a_peer_that_says_nothing(self) -> None:
        for initiator in (True, False):
            near, _ = channel_pair()
            with pytest.raises(TimedOut, match="the TLS handshake"):
                await handshake(near, ALICE, initiator=initiator, expected_peer=None, timeout=0.05)

    @aio
    async def test_a_peer_that_goes(self) -> None:
        for initiator in (True, False):
            near, far = channel_pair()
            far.end()
            with pytest.raises(ConnectionClosed):
                await handshake(near, ALICE, initiator=initiator, expected_peer=None, timeout=T)

    def test_aes_goes_first_where_it_is_fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for aes, chacha, first in ((1.0, 1.0, "AES_128"), (1.0, 0.51, "AES_128"), (1.0, 0.49, "CHACHA20")):
            monkeypatch.setattr(tls, "_seconds", lambda *_, a=aes, c=chacha: [a, c])
            order = tls.suites()
            assert first in order[0]
            assert len(order) == 3
            assert order.index("TLS_AES_128_GCM_SHA256") < order.index("TLS_AES_256_GCM_SHA384")

    def test_the_context_follows_the_certificate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        who = Identity.generate()
        first = tls._context_of(who)
        assert tls._context_of(who) is first
        renewed = certificate.make(who)
        monkeypatch.setattr(certificate, "own", lambda identity: renewed)
        assert tls._context_of(who) is not first


class TestHandingOver:
    @aio
    @pytest.mark.parametrize("dials", [True, False])
    async def test_what_comes_along_with_the_last_negotiation_message_reaches_the_link(
        self, dials: bool
    ) -> None:
        """A peer without early negotiation, which sends yamux in the record of its last message, and more."""
        near, far = channel_pair()
        ours = asyncio.create_task(
            upgrade(
                near,
                ALICE,
                initiator=not dials,
                expected_peer=None,
                timeouts=Timeouts(),
                security=("tls",),
            )
        )
        if dials:
            await multistream.select(far, ("/tls/1.0.0",), T)
        else:
            await multistream.handle(far, ("/tls/1.0.0",), T)
        session = await handshake(far, BOB, initiator=dials, expected_peer=None, muxers=(), timeout=T)
        stream_id = (1 if dials else 2).to_bytes(4, "big")
        syn = bytes.fromhex("0000 0001") + stream_id + (5).to_bytes(4, "big") + b"hello"
        answer = multistream.proposal(YAMUX)
        records = session.records
        await far.write(records.seal(answer + syn))
        await far.write(
            records.seal(bytes.fromhex("0000 0000") + stream_id + (6).to_bytes(4, "big") + b" world")
        )
        made = await ours
        assert isinstance(made.records, TlsRecords)
        engine = Engine()
        link = engine.attach_memory(record=made.records, initiator=not dials, leftover=made.leftover)
        heard = Heard(link)
        link.feed(await near.read(1000))
        engine.run_pass()
        assert heard.streams[0].read() == b"hello world"
        assert heard.closed == []
        engine.close()

    @aio
    async def test_data_right_behind_the_handshake(self) -> None:
        """The client may send before the server has verified it: in the same bytes as its Finished."""
        near, far = channel_pair()
        gathered = bytearray()

        class Late(BufferedChannel):
            """A dialler's channel that holds back what it sends after the ClientHello."""

            async def _receive(self) -> bytes:
                return await near.read(1 << 16)

            async def write(self, data: bytes | bytearray | memoryview) -> None:
                if not near.written:  # the ClientHello
                    await near.write(data)
                else:
                    gathered.extend(data)

        listening = asyncio.create_task(handshake(far, BOB, initiator=False, expected_peer=None, timeout=T))
        a = await handshake(Late("bob"), ALICE, initiator=True, expected_peer=BOB.peer_id, timeout=T)
        engine = Engine()
        client = engine.attach_memory(record=a.records, initiator=True)
        stream = client.open_stream()
        stream.write(b"early")
        await near.write(bytes(gathered) + client.take_output())
        b = await listening
        server = engine.attach_memory(record=b.records, initiator=False, leftover=far.leftover())
        heard = Heard(server)
        exchange(client, server, engine)
        assert heard.streams[0].read() == b"early"
        engine.close()


LONG = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(20_000))


# A peer that is OpenSSL's and does what we would not.


@dataclass
class Stranger:
    """One side of TLS, set up wrong in one way."""

    forged: Forged | None = field(default_factory=lambda: Forged(MALLORY, time.time()))
    version: int = SSL.TLS1_3_VERSION
    alpn: list[bytes] = field(default_factory=lambda: [b"libp2p"])
    chain: bool = False

    def connection(self, initiator: bool) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(self.version)
        context.set_max_proto_version(self.version)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        if self.forged is not None:
            context.use_privatekey(self.forged.key)
            context.use_certificate(x509.load_der_x509_certificate(self.forged.der()))
        if self.chain:
            extra = x509.load_der_x509_certificate(certificate.make(MALLORY).der)
            context.add_extra_chain_cert(extra)
        context.set_alpn_select_callback(lambda _, offered: next(p for p in self.alpn if p in offered))
        connection = SSL.Connection(context, None)
        if initiator:
            if self.alpn:
                connection.set_alpn_protos(self.alpn)
            connection.set_connect_state()
        else:
            connection.set_accept_state()
        return connection

    async def talk(self, channel: MemoryChannel, initiator: bool) -> None:
        connection = self.connection(initiator)
        done = False
        while True:
            try:
                connection.do_handshake() if not done else connection.recv(1)
                done = True
                continue
            except SSL.WantReadError:
                pass
            finally:
                try:
                    while True:
                        await channel.write(connection.bio_read(1 << 16))
                except SSL.WantReadError:
                    pass
            connection.bio_write(await channel.read(1 << 16))


def forged(bend: Callable[[Forged], object]) -> Callable[[], Stranger]:
    def make() -> Stranger:
        one = Forged(MALLORY, time.time())
        bend(one)
        return Stranger(forged=one)

    return make


STRANGERS: dict[str, tuple[Callable[[], Stranger], type[Exception], str, bool]] = {
    # what is wrong: the peer, the error, its words, whether a listener may be wrong so too
    "no extension": (
        forged(lambda f: f.without_extension()),
        AuthenticationFailed,
        "no libp2p extension",
        True,
    ),
    "another's signature": (forged(lambda f: f.signed_by(BOB)), AuthenticationFailed, "did not sign", True),
    "expired": (forged(lambda f: f.valid(0, 1e9)), AuthenticationFailed, "expired", True),
    "not yet valid": (forged(lambda f: f.valid(4e9, 5e9)), AuthenticationFailed, "valid only from", True),
    "a critical extension": (
        forged(lambda f: f.with_critical("1.2.3")),
        AuthenticationFailed,
        "critical",
        True,
    ),
    "a chain of two": (lambda: Stranger(chain=True), AuthenticationFailed, "2 certificates", True),
    "an endless certificate": (
        forged(lambda f: f.extras.append((LONG, False))),
        AuthenticationFailed,
        "at most",
        True,
    ),
    "no certificate": (lambda: Stranger(forged=None), AuthenticationFailed, "sent no certificate", False),
    "no ALPN": (lambda: Stranger(alpn=[]), ProtocolViolation, "has no ALPN", False),
    "another ALPN": (lambda: Stranger(alpn=[b"h2"]), ProtocolViolation, "no application protocol", False),
    "TLS 1.2": (lambda: Stranger(version=SSL.TLS1_2_VERSION), ProtocolViolation, "protocol", True),
}


class TestStrangers:
    @aio
    @pytest.mark.parametrize("name", list(STRANGERS))
    async def test_a_dialler_that_is_refused(self, name: str) -> None:
        make, error, words, _ = STRANGERS[name]
        near, far = channel_pair()
        talking = asyncio.create_task(make().talk(far, True))
        with pytest.raises(error, match=words):
            await handshake(near, BOB, initiator=False, expected_peer=None, timeout=T)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)

    @aio
    @pytest.mark.parametrize("name", [name for name, (*_, both) in STRANGERS.items() if both])
    async def test_a_listener_that_is_refused(self, name: str) -> None:
        make, error, words, _ = STRANGERS[name]
        near, far = channel_pair()
        talking = asyncio.create_task(make().talk(far, False))
        with pytest.raises(error, match=words):
            await handshake(near, ALICE, initiator=True, expected_peer=None, timeout=T)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)

    @aio
    @pytest.mark.parametrize("initiator", [True, False])
    @pytest.mark.parametrize(
        ("wire", "words"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "begins no TLS record"),
            (b"\x16\x02\x00\x00\x05hello", "begins no TLS record"),
            (b"\x18\x03\x03\x00\x05hello", "begins no TLS record"),
            (b"\x16\x03\x03\x41\x01", "a record of 16641 bytes"),
            (b"\x16\x03\x03\x00\x04\x63\x00\x00\x00", r"unexpected message|bad|length"),
            (b"\x15\x03\x03\x00\x02\x02\x28", "alert|unexpected message"),
        ],
    )
    async def test_garbage(self, initiator: bool, wire: bytes, words: str) -> None:
        near, far = channel_pair()
        await far.write(wire)
        with pytest.raises(ProtocolViolation, match=words):
            await handshake(near, ALICE, initiator=initiator, expected_peer=None, timeout=T)

    @aio
    async def test_a_handshake_in_crumbs(self) -> None:
        """Each byte of a ClientHello in a record of its own."""
        near, far = channel_pair()
        hello = Stranger().connection(True)
        with pytest.raises(SSL.WantReadError):
            hello.do_handshake()
        message = hello.bio_read(1 << 16)[5:]
        assert len(message) > tls.MAX_RECORDS
        for at in range(len(message)):
            await far.write(b"\x16\x03\x01\x00\x01" + message[at : at + 1])
        with pytest.raises(ProtocolViolation, match="more than 256 records"):
            await handshake(near, BOB, initiator=False, expected_peer=None, timeout=1.0)
