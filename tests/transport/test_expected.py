"""What comes to a listener while hole punches wait there: each peer's connection to its punch, all others as
ever."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from flare.errors import FlareError, PeerMismatch
from flare.transport import multistream
from flare.transport.connection import Connection
from flare.transport.expected import Expectations, waits_for_us
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.aio import aio, eventually
from tests.support.hosts import Node
from tests.support.linked import ALICE, BOB

HERE = ipaddress.ip_address("198.51.100.7")


def addr(text: str) -> Multiaddr:
    return Multiaddr(text)


class Punch:
    """What waits, and what it was told."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.connections: list[Connection] = []
        self.errors: list[Exception] = []
        self.wants = True

    def securing(self, task: asyncio.Task[None]) -> None:
        self.tasks.append(task)

    def secured(self, connection: Connection) -> bool:
        self.connections.append(connection)
        return self.wants

    def failed(self, remote: Multiaddr, error: Exception) -> None:
        self.errors.append(error)


class TestClaims:
    def test_an_address_that_is_named_comes_before_one_that_shares_its_ip(self) -> None:
        claims = Expectations()
        a, b = Punch(), Punch()
        with (
            claims.expect(ALICE.peer_id, [addr("/ip4/198.51.100.7/tcp/1")], client=True, waiting=a),
            claims.expect(BOB.peer_id, [addr("/ip4/198.51.100.7/tcp/2")], client=True, waiting=b),
        ):
            assert [claim.waiting for claim in claims.at(HERE, 1)] == [a]
            assert [claim.waiting for claim in claims.at(HERE, 2)] == [b]
            assert [claim.waiting for claim in claims.at(HERE, 3)] == [a, b]
            assert claims.at(ipaddress.ip_address("198.51.100.8"), 1) == []
        assert claims.at(HERE, 1) == []
        assert len(claims) == 0

    def test_other_ports_count_for_so_many_ips_and_no_more(self) -> None:
        claims = Expectations(max_ips=2)
        listed = [addr(f"/ip4/198.51.100.{n}/tcp/4001") for n in (1, 2, 3)]
        with claims.expect(ALICE.peer_id, listed, client=True, waiting=Punch()):
            counted = [bool(claims.at(ipaddress.ip_address(f"198.51.100.{n}"), 9)) for n in (1, 2, 3)]
            assert counted == [True, True, False]
            assert claims.at(ipaddress.ip_address("198.51.100.3"), 4001), "the port that was named does count"

    def test_the_newest_claim_on_a_peer_has_its_connections(self) -> None:
        claims = Expectations()
        early, late = Punch(), Punch()
        with claims.expect(ALICE.peer_id, [], client=True, waiting=early):
            with claims.expect(ALICE.peer_id, [], client=True, waiting=late):
                found = claims.of(ALICE.peer_id)
                assert found is not None
                assert found.waiting is late
            found = claims.of(ALICE.peer_id)
            assert found is not None
            assert found.waiting is early
        assert claims.of(ALICE.peer_id) is None


def ends() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    return near, far


HEADER = multistream.encode(multistream.HEADER)


@pytest.mark.parametrize(
    ("said", "listens"),
    [
        (b"", True),
        (HEADER, True),  # go-libp2p says so much before it hears anything
        (HEADER[:7], True),
        (multistream.proposal("/noise"), False),
        (HEADER + b"\x07", False),
        (b"GET / HTTP/1.1", False),
    ],
)
@aio
async def test_who_listens_and_who_dials(said: bytes, listens: bool) -> None:
    near, far = ends()
    with near, far:
        far.sendall(said)
        await asyncio.sleep(0.01)
        assert await waits_for_us(near) is listens
        assert near.recv(100) == said if said else True, "nothing was taken out of the socket"


@aio
async def test_whoever_is_gone_does_not_listen() -> None:
    near, far = ends()
    with near:
        far.close()
        await asyncio.sleep(0.01)
        assert not await waits_for_us(near)


async def silent_dial(node: Node, target: Node, expected: PeerId | None = None) -> Connection:
    """A connection whose dialler is the listener of the handshake, as a punch's is from the server's side."""
    return await node.tcp.dial(target.addr, expected_peer=expected, initiator=False)


def claim(node: Node, peer: Node, waiting: Punch, *, client: bool, exact: bool = True) -> Any:
    at = peer.addr.without_peer() if exact else addr("/ip4/127.0.0.1/tcp/9")
    return node.tcp.expected.expect(peer.peer_id, [at], client=client, waiting=waiting)


class TestOneIp:
    """All of these peers are behind one IP, as behind one NAT."""

    @pytest.mark.parametrize("exact", [True, False])
    @aio
    async def test_two_that_punch_at_once_and_listen_in_the_handshake(self, exact: bool) -> None:
        bobs, carols = Punch(), Punch()
        async with Node() as a, Node() as bob, Node() as carol:
            with (
                claim(a, bob, bobs, client=True, exact=exact),
                claim(a, carol, carols, client=True, exact=exact),
            ):
                await asyncio.gather(silent_dial(carol, a, a.peer_id), silent_dial(bob, a, a.peer_id))
                await eventually(lambda: bobs.connections and carols.connections)
            assert [c.remote_peer for c in bobs.connections] == [bob.peer_id]
            assert [c.remote_peer for c in carols.connections] == [carol.peer_id]
            assert bobs.connections[0].initiator
            assert a.inbound.empty()

    @aio
    async def test_two_that_punch_at_once_in_different_roles(self) -> None:
        bobs, carols = Punch(), Punch()
        async with Node() as a, Node() as bob, Node() as carol:
            with (
                claim(a, bob, bobs, client=True, exact=False),
                claim(a, carol, carols, client=False, exact=False),
            ):
                await asyncio.gather(silent_dial(bob, a, a.peer_id), carol.dial(a))
                await eventually(lambda: bobs.connections and carols.connections)
            assert bobs.connections[0].initiator
            assert not carols.connections[0].initiator

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("client", [True, False])
    @aio
    async def test_a_stranger_who_dials_in_the_midst(self, client: bool, exact: bool) -> None:
        """Also when the punch's peer claims the stranger's very address for its own."""
        punch = Punch()
        async with Node() as a, Node() as bob, Node() as stranger:
            listed = [(stranger.addr if exact else bob.addr).without_peer()]
            with a.tcp.expected.expect(bob.peer_id, listed, client=client, waiting=punch):
                near = await stranger.dial(a)
                assert (await a.inbound.get()).remote_peer == stranger.peer_id
                assert await near.ping() > 0
                if client:
                    await silent_dial(bob, a, a.peer_id)
                else:
                    await bob.dial(a)
                await eventually(lambda: punch.connections)
            assert punch.connections[0].remote_peer == bob.peer_id
            assert punch.errors == []
            assert not near.closed

    @aio
    async def test_a_peer_that_dials_plainly_while_we_would_have_spoken_first(self) -> None:
        punch = Punch()
        async with Node() as a, Node() as bob:
            with claim(a, bob, punch, client=True):
                await bob.dial(a)
                await eventually(lambda: punch.connections)
            assert not punch.connections[0].initiator

    @aio
    async def test_a_silent_stranger_is_told_to_the_punch(self) -> None:
        punch = Punch()
        async with Node() as a, Node() as bob, Node() as stranger:
            with claim(a, bob, punch, client=True, exact=False):
                (outcome,) = await asyncio.gather(silent_dial(stranger, a), return_exceptions=True)
                await eventually(lambda: punch.errors)
                assert isinstance(punch.errors[0], PeerMismatch)
                if not isinstance(outcome, FlareError):
                    await outcome.wait_closed()
            assert a.inbound.empty()

    @aio
    async def test_a_silent_stranger_among_two_punches(self) -> None:
        bobs, carols = Punch(), Punch()
        async with Node() as a, Node() as bob, Node() as carol, Node() as stranger:
            with (
                claim(a, bob, bobs, client=True, exact=False),
                claim(a, carol, carols, client=True, exact=False),
            ):
                near = await silent_dial(stranger, a)
                await near.wait_closed()
                await eventually(lambda: bobs.errors and carols.errors)
            assert a.inbound.empty()

    @aio
    async def test_what_a_punch_does_not_want_any_more_is_an_ordinary_connection(self) -> None:
        punch = Punch()
        punch.wants = False
        async with Node() as a, Node() as bob:
            with claim(a, bob, punch, client=False):
                await bob.dial(a)
                assert (await a.inbound.get()).remote_peer == bob.peer_id

    @aio
    async def test_a_socket_on_which_we_speak_first_ends_with_its_claim(self) -> None:
        punch = Punch()
        async with Node() as a, Node() as bob:
            with socket.socket() as silent:
                with claim(a, bob, punch, client=True, exact=False):
                    silent.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(silent, (str(a.addr.ip), a.addr.port))
                    await eventually(lambda: a.tcp.admission.handshakes)
                    await asyncio.sleep(0.1)
                    assert a.tcp.admission.handshakes == 1
                await eventually(lambda: not a.tcp.admission.handshakes)
