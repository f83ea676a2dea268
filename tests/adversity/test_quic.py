"""QUIC among strangers and on networks that change: RFC 9000, 5.2, 6, 8, 9 and 10."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from flare.config import Config, HostLimits, QuicLimits, Timeouts
from flare.errors import AuthenticationFailed, ConnectionClosed, FlareError
from flare.transport import certificate
from flare.transport.connection import Connection
from flare.transport.quic_aioquic import AioquicConnection, AioquicEngine
from flare.transport.quic_engine import Address
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.certificates import Forged
from tests.support.quic_nodes import QuicNode
from tests.support.udp_proxy import UdpProxy


def limited(*, timeouts: Timeouts | None = None, **limits: Any) -> Config:
    return Config(
        quic=replace(QuicLimits(), **limits),
        timeouts=timeouts or Timeouts(),
        host=HostLimits(exempt=("127.0.0.0/8",)),
    )


async def works(connection: Connection) -> None:
    async with connection.open_stream("/echo") as stream:
        await stream.write(b"still here")
        assert await stream.read_exactly(10) == b"still here"


class Nobody:
    """Events that nobody wants."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Stranger:
    """A socket that sends what it likes to a node."""

    def __init__(self, node: QuicNode) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect(("127.0.0.1", node.port))
        self.remote: Address = ("127.0.0.1", node.port)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.send(data)

    async def answer(self, seconds: float = 0.2) -> bytes | None:
        """The next datagram; None when none comes."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except TimeoutError:
            return None

    def begin(self) -> AioquicConnection:
        """The first flight of a client."""
        engine = AioquicEngine(Identity.generate(), QuicLimits())
        connection = engine.connect(self.remote, lambda chain: None, Nobody(), time.monotonic())
        for data, _ in connection.datagrams(time.monotonic()):
            self.send(data)
        return connection


class Hostile(AioquicEngine):
    """An engine whose certificate is what `spoil` makes of it."""

    def __init__(self, spoil: Any) -> None:
        super().__init__(Identity.generate(), QuicLimits())
        self._spoil = spoil

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        configuration = super()._configuration(is_client=is_client)
        self._spoil(configuration)
        return configuration


def no_certificate(configuration: QuicConfiguration) -> None:
    configuration.certificate = configuration.private_key = None


def chain_of_two(configuration: QuicConfiguration) -> None:
    configuration.certificate_chain = [configuration.certificate]


def expired(configuration: QuicConfiguration) -> None:
    _replace(configuration, certificate.make(Identity.generate(), time.time() - 800 * 86400))


def of_the_future(configuration: QuicConfiguration) -> None:
    _replace(configuration, certificate.make(Identity.generate(), time.time() + 800 * 86400))


def anothers_key(configuration: QuicConfiguration) -> None:
    configuration.private_key = certificate.make(Identity.generate()).key


def _replace(configuration: QuicConfiguration, made: certificate.Certificate) -> None:
    configuration.certificate = x509.load_der_x509_certificate(made.der)
    configuration.private_key = made.key


def forged(bend: Callable[[Forged], object]) -> Callable[[QuicConfiguration], None]:
    """A certificate with one thing wrong."""

    def spoil(configuration: QuicConfiguration) -> None:
        one = Forged(Identity.generate(), time.time())
        bend(one)
        configuration.certificate = x509.load_der_x509_certificate(one.der())
        configuration.private_key = one.key

    return spoil


FORGED = {
    "no extension": (forged(lambda f: f.without_extension()), "no libp2p extension"),
    "another peer's signature": (forged(lambda f: f.signed_by(Identity.generate())), "did not sign its key"),
    "a signature of another key": (forged(lambda f: f.over_another_key()), "did not sign its key"),
    "an identity key of no known type": (
        forged(lambda f: f.with_public_key(b"\x08\x09\x12\x01x")),
        "its libp2p extension",
    ),
    "a certificate key that is too weak": (
        forged(lambda f: f.with_key(rsa.generate_private_key(65537, 1024))),
        "its key is none of",
    ),
    "a critical extension nobody knows": (forged(lambda f: f.with_critical("1.2.3.4")), "critical extension"),
    "signed by another certificate": (
        forged(lambda f: f.issued_by_another()),
        "its signature|cannot be read",
    ),
}


class TestCertificates:
    @aio
    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (chain_of_two, "2 certificates instead of one"),
            (expired, "expired"),
            (of_the_future, "valid only from"),
            (anothers_key, "TLS alert 51"),
        ],
    )
    async def test_a_server_is_refused_within_the_handshake(self, spoil: Any, reason: str) -> None:
        async with QuicNode() as a, QuicNode(engine=Hostile(spoil)) as b:
            with pytest.raises(FlareError, match=reason):
                await a.quic.dial(b.quic.listen_addrs[0], expected_peer=None)
            assert not a.quic.connections
            await eventually(lambda: not b.quic.half_open)

    @aio
    @pytest.mark.parametrize(
        ("spoil", "alert"),
        [
            (no_certificate, "116 .certificate_required."),
            (chain_of_two, "42 .bad_certificate."),
            (expired, "42 .bad_certificate."),
            (anothers_key, "51"),
        ],
    )
    async def test_a_client_is_refused_before_anybody_hears_of_it(self, spoil: Any, alert: str) -> None:
        """A client is done before the server has judged it (RFC 8446, 2): it learns by the close."""
        async with QuicNode(engine=Hostile(spoil)) as a, QuicNode() as b:
            connection = await a.dial(b)
            await connection.wait_closed()
            assert "TLS alert" in str(connection.close_reason)
            with pytest.raises(FlareError, match=alert):
                raise connection.close_reason  # type: ignore[misc]
            assert b.inbound.empty()
            assert not b.quic.half_open
            assert not b.quic.connections

    @aio
    @pytest.mark.parametrize("name", FORGED)
    async def test_a_forged_one_of_a_server(self, name: str) -> None:
        spoil, reason = FORGED[name]
        async with QuicNode() as a, QuicNode(engine=Hostile(spoil)) as b:
            with pytest.raises(AuthenticationFailed, match=reason):
                await a.quic.dial(b.quic.listen_addrs[0], expected_peer=None)
            assert not a.quic.connections
            await eventually(lambda: not b.quic.half_open)

    @aio
    @pytest.mark.parametrize("name", FORGED)
    async def test_a_forged_one_of_a_client(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG", "flare.transport.quic")
        spoil, reason = FORGED[name]
        async with QuicNode(engine=Hostile(spoil)) as a, QuicNode() as b:
            connection = await a.dial(b)
            await connection.wait_closed()
            assert "42 (bad_certificate)" in str(connection.close_reason)
            assert b.inbound.empty()
            assert not b.quic.half_open
            assert not b.quic.connections
            assert re.search(reason, caplog.text)

    @aio
    async def test_an_empty_certificate_is_an_authentication_failure_here(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with QuicNode(engine=Hostile(no_certificate)) as a, QuicNode() as b:
            ended: list[BaseException | None] = []
            accept = b.quic._accept

            def watched(sock: Any, *rest: Any) -> None:
                accept(sock, *rest)
                (session,) = sock.sessions
                before = session.on_close
                session.on_close = lambda reason: (ended.append(reason), before(reason))

            monkeypatch.setattr(b.quic, "_accept", watched)
            await a.dial(b)
            await eventually(lambda: ended)
            assert isinstance(ended[0], AuthenticationFailed)
            assert "the peer sent no certificate" in str(ended[0])


class TestAddressesAreProved:
    @aio
    async def test_past_a_number_of_half_open_ones_a_client_must_prove_its_address(self) -> None:
        """RFC 9000, 8.1.2: at the limit and one past it."""
        async with QuicNode(limited(max_unproved=3)) as node:
            strangers = [Stranger(node) for _ in range(4)]
            try:
                for stranger in strangers[:3]:
                    stranger.begin()
                await eventually(lambda: node.quic.half_open == 3)
                for stranger in strangers[:3]:
                    answer = await stranger.answer()
                    assert answer is not None
                    assert answer[0] & 0xF0 == 0xC0, "an Initial packet"
                strangers[3].begin()
                retry = await strangers[3].answer()
                assert retry is not None
                assert retry[0] & 0xF0 == 0xF0, "a Retry packet"
                assert node.quic.half_open == 3
                async with QuicNode() as honest:
                    await works(await honest.dial(node))
            finally:
                for stranger in strangers:
                    stranger.sock.close()

    @aio
    async def test_a_token_that_proves_nothing_is_refused(self) -> None:
        """RFC 9000, 8.1.3: INVALID_TOKEN, since a second Retry would be ignored."""
        async with QuicNode(limited(max_unproved=0)) as node:
            with Stranger(node) as stranger:
                engine = AioquicEngine(Identity.generate(), QuicLimits())
                forged = AioquicEngine(Identity.generate(), QuicLimits())
                connection = engine.connect(stranger.remote, lambda chain: None, Nobody(), time.monotonic())
                (first, _), *_ = connection.datagrams(time.monotonic())
                initial = engine.initial(first)
                assert initial is not None
                connection.receive(
                    [forged.retry(initial, ("127.0.0.1", 9), time.monotonic())],
                    stranger.remote,
                    time.monotonic(),
                )
                for data, _ in connection.datagrams(time.monotonic()):
                    stranger.send(data)
                answer = await stranger.answer()
                assert answer is not None
                connection.receive([answer], stranger.remote, time.monotonic())
                assert "INVALID_TOKEN" in str(connection._reason(connection._quic._close_event))  # type: ignore[arg-type]
                assert node.quic.half_open == 0

    @aio
    async def test_spoofed_initials_leave_nothing_behind(self) -> None:
        quick = replace(Timeouts(), handshake=0.5)
        async with QuicNode(limited(timeouts=quick, max_unproved=8)) as node:
            with Stranger(node) as template:
                engine = AioquicEngine(Identity.generate(), QuicLimits())
                flights = []
                for _ in range(60):
                    made = engine.connect(template.remote, lambda chain: None, Nobody(), time.monotonic())
                    flights.append(made.datagrams(time.monotonic())[0][0])
                for flight in flights:
                    template.send(flight)
                await eventually(lambda: node.quic.half_open)
                assert node.quic.half_open <= 8
            await eventually(lambda: not node.quic.half_open)
            (sock,) = node.quic._sockets
            assert not sock.sessions
            assert not node.quic._unproved
            await eventually(lambda: not sock.routes, timeout=10)
            assert node.quic.admission.handshakes == 0

    @aio
    async def test_a_proved_address_has_its_limits_too(self) -> None:
        config = Config(quic=QuicLimits(max_unproved=0), host=HostLimits(exempt=(), max_connections_per_ip=2))
        async with (
            QuicNode(config) as node,
            QuicNode(Config(timeouts=replace(Timeouts(), dial=0.3))) as client,
        ):
            await client.dial(node)
            await client.dial(node)
            with pytest.raises(FlareError):
                await client.dial(node)
            assert len(node.quic.connections) == 2

    @aio
    async def test_an_unproved_address_that_turns_out_to_have_too_many_is_cut_off(self) -> None:
        config = Config(host=HostLimits(exempt=(), max_connections_per_ip=1))
        async with QuicNode(config) as node, QuicNode() as client:
            await client.dial(node)
            second = await client.dial(node)
            await second.wait_closed()
            assert len(node.quic.connections) == 1


class TestGarbage:
    @aio
    async def test_noise_is_dropped_and_leaves_nothing_behind(self) -> None:
        async with QuicNode() as node, QuicNode() as client:
            connection = await client.dial(node)
            await works(connection)
            (sock,) = node.quic._sockets
            noise = random.Random(1)
            before = len(sock.routes)
            with Stranger(node) as stranger:
                for _ in range(40):
                    for _ in range(100):
                        stranger.send(noise.randbytes(noise.choice((0, 1, 21, 40, 64, 1200, 1400))))
                    await asyncio.sleep(0)
            await works(connection)
            assert sock.datagrams.dropped > 1000
            assert len(sock.routes) == before
            assert node.quic.half_open == 0
            assert len(sock.sessions) == 1

    @aio
    async def test_initials_whose_inside_is_noise_do_not_stay(self) -> None:
        """The header is right and the keys can be computed by anybody; the packet does not decrypt."""
        quick = replace(Timeouts(), handshake=0.2)
        async with QuicNode(limited(timeouts=quick)) as node:
            with Stranger(node) as stranger:
                for _ in range(20):
                    cid = os.urandom(8)
                    head = bytes((0xC3, 0, 0, 0, 1, 8)) + cid + bytes((8,)) + cid + bytes((0, 0x44, 0x96))
                    stranger.send(head + os.urandom(1200 - len(head)))
                await asyncio.sleep(0.05)
            await eventually(lambda: not node.quic.half_open)
            assert not node.quic._sockets[0].sessions

    @aio
    async def test_another_version_is_told_ours(self) -> None:
        """RFC 9000, 6.1 and 5.2.2: only datagrams that could start a connection are answered."""
        async with QuicNode() as node:
            with Stranger(node) as stranger:
                hello = bytes((0xC0, 0x6B, 0x33, 0x43, 0xCF, 8)) + b"destinat" + bytes((4,)) + b"from"
                stranger.send(hello.ljust(1199, b"\0"))
                assert await stranger.answer() is None
                stranger.send(hello.ljust(1200, b"\0"))
                answer = await stranger.answer(2)
                assert answer is not None
                assert answer[1:5] == bytes(4), "version negotiation"
                assert answer[5:] == bytes((4,)) + b"from" + bytes((8,)) + b"destinat" + bytes((0, 0, 0, 1))
                stranger.send(answer.ljust(1200, b"\0"))
                assert await stranger.answer() is None, "it is never answered itself"

    @aio
    async def test_a_server_that_speaks_no_version_of_ours(self) -> None:
        """RFC 9000, 6.2: the dial ends at once, with its reason."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.settimeout(20)
            server.bind(("127.0.0.1", 0))
            there = Multiaddr(f"/ip4/127.0.0.1/udp/{server.getsockname()[1]}/quic-v1")
            async with QuicNode() as node:
                dialling = asyncio.ensure_future(node.quic.dial(there, expected_peer=None))
                first, client = await asyncio.to_thread(server.recvfrom, 2048)
                at = 6 + first[5]
                destination, source = first[6:at], first[at + 1 : at + 1 + first[at]]
                answer = bytes((0x80, 0, 0, 0, 0, len(source))) + source
                answer += bytes((len(destination),)) + destination + bytes.fromhex("ff00001d")
                server.sendto(answer, client)
                with pytest.raises(FlareError, match="version"):
                    await dialling
                assert not node.quic.connections

    @aio
    async def test_a_forged_version_negotiation_later_is_nothing(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            (cid, *_) = connection.link._engine.cids
            with Stranger(a) as stranger:
                stranger.send(bytes((0x80, 0, 0, 0, 0, 8)) + cid + bytes(9) + bytes.fromhex("ff00001d"))
            await works(connection)

    @aio
    async def test_answers_to_strangers_are_rationed(self) -> None:
        async with QuicNode(limited(resets_per_second=5)) as node:
            with Stranger(node) as stranger:
                for _ in range(40):
                    stranger.send(b"\x40" + os.urandom(60))
                answers = 0
                while await stranger.answer(0.05) is not None:
                    answers += 1
                assert 5 <= answers <= 7  # what came while we looked is in the ration too

    @aio
    async def test_a_reset_is_shorter_than_what_it_answers(self) -> None:
        """RFC 9000, 10.3.3: so that two that know nothing of each other do not go on for ever."""
        async with QuicNode() as node:
            with Stranger(node) as stranger:
                stranger.send(b"\x40" + os.urandom(20))
                assert await stranger.answer() is None
                stranger.send(b"\x40" + os.urandom(21))
                answer = await stranger.answer()
                assert answer is not None
                assert len(answer) == 21


class TestNetworksThatChange:
    @aio
    async def test_a_client_that_moves_keeps_its_connection(self) -> None:
        """RFC 9000, 9: its NAT gives it another port, and the server follows."""
        async with QuicNode() as a, QuicNode() as b, UdpProxy(b.port) as proxy:
            there = Multiaddr(f"/ip4/127.0.0.1/udp/{proxy.port}/quic-v1")
            connection = await a.dial(b, there)
            far = await b.inbound.get()
            await works(connection)
            assert far.link.remote[1] == proxy.source
            await proxy.move()
            await works(connection)
            assert far.link.remote[1] == proxy.source
            sent = os.urandom(500_000)
            async with connection.open_stream("/echo") as stream:
                writing = asyncio.ensure_future(stream.write(sent))
                assert await stream.read_exactly(len(sent)) == sent
                await writing

    @aio
    async def test_silence_ends_a_connection_on_both_sides(self) -> None:
        """RFC 9000, 10.1."""
        config = limited(idle_timeout=0.5, keepalive=0.1)
        async with QuicNode(config) as a, QuicNode(config) as b, UdpProxy(b.port) as proxy:
            connection = await a.dial(b, Multiaddr(f"/ip4/127.0.0.1/udp/{proxy.port}/quic-v1"))
            far = await b.inbound.get()
            proxy.drop = True
            await connection.wait_closed()
            await far.wait_closed()
            for end in (connection, far):
                assert isinstance(end.close_reason, ConnectionClosed)
                assert "nothing came from the peer for 0.5 s" in str(end.close_reason)

    @aio
    async def test_an_idle_connection_is_kept_alive(self) -> None:
        config = limited(idle_timeout=0.6, keepalive=0.15)
        async with QuicNode(config) as a, QuicNode(config) as b, UdpProxy(b.port) as proxy:
            connection = await a.dial(b, Multiaddr(f"/ip4/127.0.0.1/udp/{proxy.port}/quic-v1"))
            await asyncio.sleep(0.2)
            before = proxy.passed
            await asyncio.sleep(1.2)
            assert not connection.closed
            assert 4 <= proxy.passed - before < 60, "and not by a storm of pings"

    @aio
    async def test_a_peer_that_lost_its_memory_says_so(self) -> None:
        """RFC 9000, 10.3: it restarts under the same identity, and its reset is believed."""
        identity = Identity.generate()
        async with QuicNode() as a:
            async with QuicNode(identity=identity) as b:
                port = b.port
                connection = await a.dial(b)
                await works(connection)
                for sock in b.quic._sockets:  # a crash: nobody is told
                    for session in list(sock.sessions):
                        session._engine.datagrams = lambda now: []  # type: ignore[method-assign]
            assert not connection.closed
            async with QuicNode(identity=identity, listen=f"/ip4/127.0.0.1/udp/{port}/quic-v1") as b:
                ping = asyncio.ensure_future(connection.ping(5))
                await connection.wait_closed()
                await asyncio.gather(ping, return_exceptions=True)
                assert "stateless reset" in str(connection.close_reason)
                await works(await a.dial(b))

    @aio
    async def test_a_forged_reset_is_nothing(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            with Stranger(a) as stranger:
                for _ in range(10):
                    stranger.send(b"\x40" + os.urandom(42))
            await works(connection)

    @aio
    async def test_lost_last_words_are_repeated(self) -> None:
        """RFC 9000, 10.2.1."""
        async with QuicNode() as a, QuicNode() as b, UdpProxy(b.port) as proxy:
            connection = await a.dial(b, Multiaddr(f"/ip4/127.0.0.1/udp/{proxy.port}/quic-v1"))
            far = await b.inbound.get()
            proxy.drop = True
            connection.abort("gone")
            await asyncio.sleep(0.05)
            proxy.drop = False
            assert not far.closed
            ping = asyncio.ensure_future(far.ping(5))
            await far.wait_closed()
            assert "the peer closed the connection" in str(far.close_reason)
            await asyncio.gather(ping, return_exceptions=True)
