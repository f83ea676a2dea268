"""QUIC hole punches on loopback (DCUtR.md, step 5)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from flare.config import PunchConfig, Timeouts
from flare.errors import PunchFailed
from flare.nat import quic_punch
from flare.nat.birthday import OWN_NAT, PROBE, Opener, Search
from flare.nat.prediction import Part
from flare.nat.quic_punch import NOISE, REFLEXIVE, QuicPunch
from flare.protocols.dcutr import CLIENT, SERVER
from flare.transport import quic
from flare.transport.connection import Connection
from flare.transport.udp import udp_socket
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.linked import ALICE, BOB
from tests.support.quic_nodes import QuicNode

SHORT = replace(Timeouts(), punch=0.5)
MS = 1_000_000
IP_RECVTTL = 12  # Linux's, which Python does not name


def bare(node: QuicNode) -> Multiaddr:
    return node.addr.without_peer()


async def closed(connection: Connection) -> None:
    """Waits for the end of a connection."""
    ended = asyncio.Event()
    connection.add_close_callback(lambda _: ended.set())
    await ended.wait()


def ttl_of_next(sock: socket.socket) -> int:
    """With how many hops left the next datagram came."""
    _, ((_, _, data),), _, _ = sock.recvmsg(2048, 64)
    return int.from_bytes(data, sys.byteorder)


class TestQuicPunch:
    @aio
    async def test_the_server_makes_noise_and_takes_what_comes(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            deadline = time.monotonic_ns() + 20 * MS
            near, far = await asyncio.gather(
                QuicPunch(a.quic)(b.peer_id, [bare(b)], deadline, role=CLIENT, rtt_ns=MS),
                QuicPunch(b.quic)(a.peer_id, [bare(a)], deadline, role=SERVER, rtt_ns=MS),
            )
            assert near.initiator
            assert not far.initiator
            assert (near.remote_peer, far.remote_peer) == (b.peer_id, a.peer_id)
            assert b.inbound.empty(), "it went to the punch"
            assert near.local_addr == bare(a), "from the port that is listened on"

    @aio
    async def test_it_begins_at_the_deadline(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            deadline = time.monotonic_ns() + 150 * MS
            connection = await QuicPunch(a.quic)(b.peer_id, [bare(b)], deadline, role=CLIENT, rtt_ns=MS)
            assert time.monotonic_ns() >= deadline
            assert not connection.closed

    @pytest.mark.parametrize("role", [CLIENT, SERVER])
    @aio
    async def test_nobody_there(self, role: str) -> None:
        nobody = Multiaddr("/ip4/127.0.0.1/udp/9/quic-v1")
        async with QuicNode() as a:
            start = time.monotonic()
            with pytest.raises(PunchFailed, match=r"within 0\.5 s over QUIC"):
                await QuicPunch(a.quic, timeouts=SHORT)(
                    BOB.peer_id, [nobody], time.monotonic_ns(), role=role, rtt_ns=MS
                )
            assert time.monotonic() - start > 0.4
            assert not a.quic.connections

    @aio
    async def test_every_address_is_dialled_at_the_deadline(self) -> None:
        """No delays between them, as an ordinary dial has."""
        async with QuicNode() as a:
            dialled: list[tuple[Multiaddr, int]] = []

            async def dial(addr: Multiaddr, **_: Any) -> Any:
                dialled.append((addr, turns))
                await asyncio.sleep(9)

            a.quic.dial = dial  # type: ignore[assignment, method-assign]
            addrs = [Multiaddr(f"/ip4/127.0.0.{at}/udp/9/quic-v1") for at in range(1, 6)]
            addrs.append(Multiaddr("/ip6/::1/udp/9/quic-v1"))
            turns = 0
            punching = asyncio.ensure_future(
                QuicPunch(a.quic, timeouts=SHORT)(
                    BOB.peer_id, addrs, time.monotonic_ns(), role=CLIENT, rtt_ns=MS
                )
            )
            while not dialled:
                turns += 1
                await asyncio.sleep(0)
            assert dialled == [(addr, turns) for addr in addrs]
            punching.cancel()
            await asyncio.wait([punching])

    @aio
    async def test_the_noise_leaves_from_the_listening_socket_and_is_no_packet(self) -> None:
        """As go-libp2p's: 64 random bytes, again and again, until the punch is over."""
        async with QuicNode() as b:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nat:
                nat.settimeout(20)
                nat.bind(("127.0.0.1", 0))
                there = Multiaddr(f"/ip4/127.0.0.1/udp/{nat.getsockname()[1]}/quic-v1")
                punching = asyncio.ensure_future(
                    QuicPunch(b.quic, timeouts=SHORT)(
                        ALICE.peer_id, [there], time.monotonic_ns(), role=SERVER, rtt_ns=MS
                    )
                )
                heard = [await asyncio.to_thread(nat.recvfrom, 2048) for _ in range(3)]
                assert {address for _, address in heard} == {("127.0.0.1", b.port)}
                assert {len(data) for data, _ in heard} == {NOISE}
                assert len({data for data, _ in heard}) == 3
                assert not any(data[0] & 0xC0 for data, _ in heard)
                with pytest.raises(PunchFailed):
                    await punching

    @pytest.mark.skipif(sys.platform != "linux", reason="how Linux tells")
    @aio
    async def test_before_it_may_begin_it_knocks_with_packets_that_die_on_the_way(self) -> None:
        """A NAT that took the peer's first packet for its own would show ours under another port."""
        async with QuicNode() as b:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nat:
                nat.settimeout(20)
                nat.bind(("127.0.0.1", 0))
                nat.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
                there = Multiaddr(f"/ip4/127.0.0.1/udp/{nat.getsockname()[1]}/quic-v1")
                begins = time.monotonic_ns() + 100 * MS
                punching = asyncio.ensure_future(
                    QuicPunch(b.quic, timeouts=SHORT)(ALICE.peer_id, [there], begins, role=SERVER, rtt_ns=MS)
                )
                ttls = [await asyncio.to_thread(ttl_of_next, nat) for _ in range(2)]
                assert ttls[0] == OWN_NAT
                assert ttls[1] > 30
                punching.cancel()
                await asyncio.wait([punching])

    @aio
    async def test_it_cannot_knock_where_there_is_no_way(self) -> None:
        async with QuicNode() as a:
            punch = QuicPunch(a.quic)
            for addr in (
                "/ip4/255.255.255.255/udp/9/quic-v1",
                "/ip6/2001:db8::1/udp/9/quic-v1",
                "/ip4/1.2.3.4",
            ):
                punch.knock([Multiaddr(addr)])

    @aio
    async def test_what_comes_just_before_the_end_is_not_lost(self) -> None:
        """The server's patience with its client's choice outlasts the punch."""
        async with QuicNode() as a, QuicNode() as b:
            punching = asyncio.ensure_future(
                QuicPunch(b.quic, timeouts=SHORT)(
                    a.peer_id, [bare(a)], time.monotonic_ns(), role=SERVER, rtt_ns=300 * MS
                )
            )
            await asyncio.sleep(0.2)
            near = await a.quic.dial(b.addr, expected_peer=b.peer_id)
            assert (await punching).remote_peer == a.peer_id
            assert not near.closed

    @pytest.mark.parametrize("cancelled", [True, False])
    @aio
    async def test_what_a_server_does_not_choose_is_for_its_client_to_choose(self, cancelled: bool) -> None:
        left: list[Connection] = []
        async with QuicNode() as a, QuicNode() as b:
            punch = QuicPunch(b.quic, left_over=left.append)
            punching = asyncio.ensure_future(
                punch(a.peer_id, [bare(a)], time.monotonic_ns(), role=SERVER, rtt_ns=1000 * MS)
            )
            await asyncio.sleep(0.05)
            both = [await a.quic.dial(b.addr, expected_peer=b.peer_id) for _ in range(2)]
            await eventually(lambda: len(b.quic.connections) == 2)
            if cancelled:
                punching.cancel()
                await asyncio.wait([punching])
                assert len(left) == 2
            else:
                kept = await punching
                assert len(left) == 1
                assert left[0] is not kept
            assert not any(connection.closed for connection in (*both, *left))

    @aio
    async def test_somebody_else_at_the_address(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            with pytest.raises(PunchFailed, match="expected peer"):
                await QuicPunch(a.quic, timeouts=SHORT)(
                    BOB.peer_id, [bare(b)], time.monotonic_ns(), role=CLIENT, rtt_ns=MS
                )

    @aio
    async def test_a_server_that_dials_too_leaves_one_connection(self) -> None:
        """rust-libp2p's server does."""
        async with QuicNode() as a, QuicNode() as b:
            deadline = time.monotonic_ns() + 20 * MS
            kept, theirs = await asyncio.gather(
                QuicPunch(a.quic)(b.peer_id, [bare(b)], deadline, role=CLIENT, rtt_ns=MS),
                b.quic.dial(a.addr, expected_peer=a.peer_id),
                return_exceptions=True,
            )
            assert not isinstance(kept, BaseException)
            if not isinstance(theirs, BaseException) and kept.initiator:
                await closed(theirs)
            assert not kept.closed
            assert a.inbound.empty()

    @aio
    async def test_what_a_server_dialled_and_comes_later_is_surplus_while_the_kept_one_lives(self) -> None:
        """As when its first packet was lost at the client's NAT."""
        async with QuicNode() as a, QuicNode() as b:
            kept = await QuicPunch(a.quic)(b.peer_id, [bare(b)], time.monotonic_ns(), role=CLIENT, rtt_ns=MS)
            late = await b.quic.dial(a.addr, expected_peer=a.peer_id)
            await closed(late)
            assert not kept.closed
            kept.abort("the test wants another one")
            anew = await b.quic.dial(a.addr, expected_peer=a.peer_id)
            assert (await a.inbound.get()).remote_peer == b.peer_id
            assert not anew.closed

    @aio
    async def test_for_how_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quic_punch, "LINGER", 0.0)
        async with QuicNode() as a, QuicNode() as b:
            kept = await QuicPunch(a.quic)(b.peer_id, [bare(b)], time.monotonic_ns(), role=CLIENT, rtt_ns=MS)
            await asyncio.sleep(0)
            another = await b.quic.dial(a.addr, expected_peer=a.peer_id)
            assert (await a.inbound.get()).remote_peer == b.peer_id
            assert not another.closed
            assert not kept.closed

    @aio
    async def test_noise_from_another_port_is_a_place_to_dial(self) -> None:
        """The server's NAT shows it under a port that nobody could tell."""
        elsewhere = Multiaddr("/ip4/127.0.0.1/udp/9/quic-v1")
        async with QuicNode() as a, QuicNode() as b:
            deadline = time.monotonic_ns() + 20 * MS
            near, far = await asyncio.gather(
                QuicPunch(a.quic)(b.peer_id, [elsewhere], deadline, role=CLIENT, rtt_ns=MS),
                QuicPunch(b.quic)(a.peer_id, [bare(a)], deadline, role=SERVER, rtt_ns=MS),
            )
            assert near.remote_addr == bare(b)
            assert not far.closed

    @pytest.mark.parametrize("places", [REFLEXIVE, REFLEXIVE + 1])
    @aio
    async def test_how_many_such_places_are_dialled(self, places: int) -> None:
        async with QuicNode() as a:
            dialled: list[Multiaddr] = []

            async def dial(addr: Multiaddr, **_: Any) -> Any:
                dialled.append(addr)
                await asyncio.sleep(9)

            a.quic.dial = dial  # type: ignore[assignment, method-assign]
            punch = QuicPunch(a.quic, timeouts=SHORT)
            told = Multiaddr("/ip4/127.0.0.1/udp/9/quic-v1")
            punching = asyncio.ensure_future(
                punch(BOB.peer_id, [told], time.monotonic_ns(), role=CLIENT, rtt_ns=MS)
            )
            await asyncio.sleep(0.05)
            for port in range(places):
                a.quic.socket_for(told.ip)._expected["127.0.0.1"][0](bytes(NOISE), ("127.0.0.1", 1000 + port))  # type: ignore[arg-type]
            with pytest.raises(PunchFailed):
                await punching
            assert len(dialled) == 1 + REFLEXIVE - (places < REFLEXIVE)


class TestSearch:
    """Nobody was told the right address; the sockets of the one side reach the other, and its answer them."""

    LIMITS = PunchConfig(sockets=4, probes=8, probe_rate=1000.0)
    NOWHERE = Multiaddr("/ip4/127.0.0.1/udp/9/quic-v1")

    async def met(
        self, opener: QuicNode, prober: QuicNode, *, opener_is: str
    ) -> tuple[Connection, Connection]:
        """The opener's connection and the prober's."""
        punches = (QuicPunch(opener.quic, limits=self.LIMITS), QuicPunch(prober.quic, limits=self.LIMITS))
        roles = (CLIENT, SERVER) if opener_is == CLIENT else (SERVER, CLIENT)
        searches = (Search(Part.OPENS, ("127.0.0.1", prober.port)), Search(Part.PROBES, ("127.0.0.1", 9)))
        made = await asyncio.gather(
            *(
                punch(peer.peer_id, [self.NOWHERE], time.monotonic_ns(), role=role, rtt_ns=MS, search=search)
                for punch, peer, role, search in zip(punches, (prober, opener), roles, searches, strict=True)
            )
        )
        for punch in punches:
            assert punch.sockets.held == 0
        return made[0], made[1]

    @pytest.mark.parametrize("opener_is", [CLIENT, SERVER])
    @aio
    async def test_the_socket_that_is_found_serves_the_connection(self, opener_is: str) -> None:
        async with QuicNode() as a, QuicNode() as b:
            ours, theirs = await self.met(a, b, opener_is=opener_is)
            assert (ours.initiator, theirs.initiator) == (opener_is == CLIENT, opener_is == SERVER)
            assert (ours.remote_peer, theirs.remote_peer) == (b.peer_id, a.peer_id)
            assert ours.local_addr is not None
            assert ours.local_addr.port == theirs.remote_addr.port != a.port, "an extra socket's"
            assert theirs.local_addr is not None
            assert theirs.local_addr.port == b.port
            for connection, node in ((ours, a), (theirs, b)):
                connection.serve(node.handlers)
            async with ours.open_stream("/echo") as stream:
                await stream.write(b"over it")
                assert await stream.read_exactly(7) == b"over it"

    @aio
    async def test_and_closes_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quic, "LAST_WORDS", 0.0)
        async with QuicNode() as a, QuicNode() as b:
            ours, theirs = await self.met(a, b, opener_is=CLIENT)
            gone = asyncio.ensure_future(closed(theirs))
            await ours.close()
            await gone
            await asyncio.sleep(0.05)
            assert [socket.port for socket in a.quic._sockets] == [a.port]

    @pytest.mark.parametrize("found", [REFLEXIVE, REFLEXIVE + 1])
    @aio
    async def test_how_many_found_sockets_are_kept(self, found: int) -> None:
        async with QuicNode() as a:
            race = quic_punch._Race(QuicPunch(a.quic), BOB.peer_id, client=False, rtt=0.0)
            socks = [udp_socket(ipaddress.ip_address("127.0.0.1"), 0) for _ in range(found)]
            for sock in socks:
                race._hit(sock, ("127.0.0.1", 9))
            assert len(race._found) == REFLEXIVE
            assert [sock.fileno() == -1 for sock in socks] == [False] * REFLEXIVE + [True] * (
                found - REFLEXIVE
            )
            await race.stop()
            assert all(sock.fileno() == -1 for sock in socks), "none has a connection"

    @pytest.mark.parametrize("places", [REFLEXIVE, REFLEXIVE + 1])
    @aio
    async def test_how_many_are_answered(self, places: int) -> None:
        """Who sends from many ports does not get noise at all of them."""
        async with QuicNode() as a:
            race = quic_punch._Race(QuicPunch(a.quic), BOB.peer_id, client=False, rtt=0.0)
            for port in range(places):
                race._heard(bytes(16), ("127.0.0.1", 1000 + port))
                race._heard(bytes(16), ("127.0.0.1", 1000 + port))
            assert len(race._tasks) == REFLEXIVE
            await race.stop()

    @pytest.mark.parametrize("part", [Part.PROBES, Part.OPENS])
    @aio
    async def test_many_peers_that_name_one_ip_get_no_more_for_it_than_one(
        self, part: Part, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whose it is, nobody knows: it is the IP that is defended, not the peer that is trusted."""
        monkeypatch.setattr(Opener, "_knock", lambda self: asyncio.sleep(0))  # it gets this far only here
        limits = PunchConfig(sockets=8, max_sockets=32, probes=50, probes_per_ip=120, probe_rate=5000.0)
        async with QuicNode() as a:
            with udp_socket(ipaddress.ip_address("127.0.0.1"), 0) as victim:
                sent = 0

                def count(remote: Any, data: bytes) -> None:
                    nonlocal sent
                    sent += len(data) == PROBE

                if part is Part.PROBES:
                    a.quic.socket_for(ipaddress.ip_address("127.0.0.1")).send_raw = count  # type: ignore[method-assign]
                punch = QuicPunch(a.quic, limits=limits, timeouts=replace(SHORT, punch=1.5))
                search = Search(part, victim.getsockname())
                failed = await asyncio.gather(
                    *(
                        punch(
                            Identity.generate().peer_id,
                            [self.NOWHERE],
                            time.monotonic_ns(),
                            role=SERVER,
                            rtt_ns=MS,
                            search=search,
                        )
                        for _ in range(8)
                    ),
                    return_exceptions=True,
                )
                assert all(isinstance(error, PunchFailed) for error in failed)
                if part is Part.OPENS:
                    with suppress(BlockingIOError):
                        while True:
                            sent += len(victim.recv(100)) == PROBE
                assert sent <= limits.probes_per_ip
                assert sent > limits.probes
                assert punch.sockets.held == 0

    @aio
    async def test_it_begins_after_what_was_told_had_its_chance(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            sent: list[float] = []
            b.quic.socket_for(ipaddress.ip_address("127.0.0.1")).send_raw = (  # type: ignore[method-assign]
                lambda remote, data: sent.append(time.monotonic()) if len(data) == PROBE else None
            )
            start = time.monotonic()
            with pytest.raises(PunchFailed):
                await QuicPunch(b.quic, limits=self.LIMITS, timeouts=replace(SHORT, punch=2.0))(
                    a.peer_id,
                    [self.NOWHERE],
                    time.monotonic_ns(),
                    role=SERVER,
                    rtt_ns=50 * MS,
                    search=Search(Part.PROBES, ("127.0.0.1", 9)),
                )
            assert 0 < len(sent) <= self.LIMITS.probes
            assert min(sent) - start >= quic_punch.SEARCH_AFTER + 0.05
