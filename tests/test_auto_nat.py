"""AutoNat on real hosts on loopback, which here counts as the public internet."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import flare
from flare.auto_nat import AT_ONCE, FEW, VANTAGES
from flare.events import (
    AddressReachability,
    ConnectionLost,
    NatBehaviourChanged,
    PeerIdentified,
    PortMapped,
    ReachabilityChanged,
)
from flare.nat.behaviour import Filtering, Mapping
from flare.nat.reachability import Reachable, Weighing
from flare.nat.servers import MAX_SERVERS
from flare.protocols.autonat import DIAL_BACK_PROTOCOL, DIAL_PROTOCOL, V1_PROTOCOL, v1_client
from flare.protocols.autonat.v2_client import DialBackClient
from flare.transport.stream import Stream
from flare.wire.autonat_messages import DialMessage, DialResponse, DialStatus, ResponseStatus
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.aio import aio
from tests.support.linked import ALICE, linked
from tests.support.loopback import Seen, host


def public(addr: Multiaddr) -> bool:
    return True


def node(number: int, **how: Any) -> flare.Host:
    """A host at an address of its own."""
    return host(listen=[f"/ip4/127.0.0.{number}/tcp/0"], is_public=public, **how)


@aio
async def test_a_public_host_learns_that_it_is() -> None:
    async with node(2) as server, flare.AutoNat(server), node(3, relays=[server.full_addrs[0]]) as client:
        seen = Seen(client)
        async with flare.AutoNat(client) as nat:
            changed = await seen.first(ReachabilityChanged)
            assert changed.state == "public"
            assert nat.reachability.node is Reachable.PUBLIC
            assert client.reachability is nat.reachability
            assert nat.behaviours["tcp"].mapping is Mapping.NONE
            assert nat.behaviours["tcp"].filtering is Filtering.ENDPOINT_INDEPENDENT
            assert nat.behaviours["udp"].mapping is Mapping.UNKNOWN, "nobody listens there"
            assert [v.addr for v in nat.verdicts] == list(client.listen_addrs)
            (word,) = nat.verdicts[0].words
            assert word.server == server.peer_id
            assert word.trusted
            assert seen.of(AddressReachability)[0].addr == client.listen_addrs[0]


@aio
async def test_an_address_that_leads_nowhere_is_private() -> None:
    nowhere = "/ip4/127.0.0.9/tcp/9"
    async with (
        node(2) as server,
        flare.AutoNat(server),
        node(3, relays=[server.full_addrs[0]], announce=[nowhere]) as client,
    ):
        seen = Seen(client)
        async with flare.AutoNat(client, serve=False) as nat:
            verdict = await seen.first(AddressReachability, lambda event: event.addr == Multiaddr(nowhere))
            assert verdict.state == "private"
            await seen.first(ReachabilityChanged)
            assert nat.reachability.node is Reachable.PUBLIC, "the other address is"


@aio
async def test_two_strangers_are_needed() -> None:
    async with (
        node(2) as one,
        flare.AutoNat(one),
        host(listen=["/ip4/127.9.0.2/tcp/0"], is_public=public) as two,
        node(3) as client,
    ):
        seen = Seen(client)
        async with flare.AutoNat(client) as nat:
            await client.connect(one.full_addrs[0])
            await asyncio.sleep(1)
            assert nat.reachability.node is Reachable.UNKNOWN
            async with flare.AutoNat(two):
                await client.connect(two.full_addrs[0])
                assert (await seen.first(ReachabilityChanged)).state == "public"


@aio
async def test_it_serves_version_1_too() -> None:
    async with node(2) as server, flare.AutoNat(server), node(3) as client:
        connection = await client.connect(server.full_addrs[0])
        verdict = await v1_client.ask(connection, client.addrs)
        assert verdict.reachable is True


@aio
async def test_it_takes_its_protocols_away_again() -> None:
    async with node(2) as server:
        async with flare.AutoNat(server):
            assert {DIAL_PROTOCOL, V1_PROTOCOL} <= set(server.handlers.protocols)
        assert not {DIAL_PROTOCOL, V1_PROTOCOL} & set(server.handlers.protocols)
        async with flare.AutoNat(server, serve=False):
            assert not {DIAL_PROTOCOL, V1_PROTOCOL} & set(server.handlers.protocols)


@aio
async def test_it_may_serve_and_ask_nothing() -> None:
    async with node(2) as server, node(3) as client:
        async with flare.AutoNat(server, look=False):
            assert DIAL_PROTOCOL in server.handlers.protocols
            assert DIAL_BACK_PROTOCOL not in server.handlers.protocols
            connection = await client.connect(server.full_addrs[0])
            assert (await v1_client.ask(connection, client.addrs)).reachable is True
        assert DIAL_PROTOCOL not in server.handlers.protocols


@aio
async def test_a_server_that_dialled_us_back_as_itself_and_serves_nobody_there_is_still_asked() -> None:
    """rust-libp2p takes requests only on connections that it accepted, and tells of them only there."""
    async with node(2) as server, flare.AutoNat(server), node(3, relays=[server.full_addrs[0]]) as client:
        seen = Seen(client)
        async with flare.AutoNat(client, serve=False, weighing=Weighing(recheck=0.2)) as nat:
            await seen.first(AddressReachability)
            async with node(4, identity=server.identity) as dialling:
                await dialling.connect(client.full_addrs[0])
                await seen.first(PeerIdentified, lambda event: not event.dialled)
                since = time.monotonic()
                while not any(word.at > since for word in nat.verdicts[0].words):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


def over_quic(number: int, **how: Any) -> flare.Host:
    """A host at an address of its own that speaks QUIC only."""
    return host(listen=[f"/ip4/127.0.0.{number}/udp/0/quic-v1"], is_public=public, **how)


@aio
async def test_quic_addresses_have_verdicts_of_their_own() -> None:
    listen = ["/ip4/127.0.0.3/udp/0/quic-v1", "/ip4/127.0.0.3/tcp/0"]
    async with (
        host(listen=["/ip4/127.0.0.2/udp/0/quic-v1", "/ip4/127.0.0.2/tcp/0"], is_public=public) as server,
        flare.AutoNat(server),
        host(listen=listen, is_public=public, relays=[server.full_addrs[0]]) as client,
    ):
        seen = Seen(client)
        async with flare.AutoNat(client) as nat:
            for addr in client.listen_addrs:
                found = await seen.first(AddressReachability, lambda event, addr=addr: event.addr == addr)
                assert found.state == "public"
            for transport in ("tcp", "udp"):
                assert nat.behaviours[transport].mapping is Mapping.NONE
                assert nat.behaviours[transport].filtering is Filtering.ENDPOINT_INDEPENDENT
            assert {event.transport for event in seen.of(NatBehaviourChanged)} == {"tcp", "udp"}
        assert client.reachability.node is Reachable.UNKNOWN, "nobody asks any more"


@aio
async def test_it_serves_version_1_over_quic() -> None:
    async with over_quic(2) as server, flare.AutoNat(server), over_quic(3) as client:
        connection = await client.connect(server.full_addrs[0])
        verdict = await v1_client.ask(connection, client.addrs)
        assert verdict.reachable is True
        assert verdict.addr in client.listen_addrs


@aio
async def test_a_dial_back_comes_from_a_port_that_nobody_knows() -> None:
    async with over_quic(2) as server, flare.AutoNat(server), over_quic(3) as client:
        asker = DialBackClient()
        client.handle(DIAL_BACK_PROTOCOL, asker.serve)
        connection = await client.connect(server.full_addrs[0])
        verdict = await asker.check(connection, client.listen_addrs[0])
        assert verdict.reachable is True
        assert verdict.source is not None
        assert verdict.source.port not in {addr.port for addr in server.listen_addrs}


@aio
async def test_what_a_router_forwards_is_asked_about_and_anew_when_it_begins_to() -> None:
    """A mapping's address is no listener's here: a dead one first, and then one that leads to us."""
    async with node(2) as server, flare.AutoNat(server), node(3, relays=[server.full_addrs[0]]) as client:
        seen = Seen(client)
        async with flare.AutoNat(client, serve=False):
            dead = Multiaddr("/ip4/127.0.0.9/tcp/9")
            mapped = PortMapped(client.listen_addrs[0], dead, "PCP", "127.0.0.1", 7200.0)
            client.emit(mapped)
            client.map_addrs([dead], [])
            found = await seen.first(AddressReachability, lambda event: event.addr == dead)
            assert found.state == "private"
            client.map_addrs([], [])
            client.emit(mapped)  # mapped again, after it was lost
            assert client.reachability.state(dead) is Reachable.UNKNOWN
            client.map_addrs([dead], [])
            client.emit(mapped)  # only renewed


class BusyHost(flare.Host):
    """Has thousands of connections to servers, which are fakes, and counts who looks at them."""

    def __init__(self, crowd: int, **how: Any) -> None:
        super().__init__(**how)
        self.crowd: dict[PeerId, Any] = {}
        self.looks = self.scans = 0
        for number in range(crowd):
            connection, _ = linked(ALICE, Identity.generate())
            connection.remote_addr = Multiaddr(f"/ip4/11.{number % 200}.{number // 200}.1/tcp/4001")
            self.crowd[connection.remote_peer] = connection

    @property
    def connections(self) -> tuple[Any, ...]:
        self.scans += 1
        return (*self.crowd.values(), *super().connections)

    def connections_to(self, peer: PeerId) -> tuple[Any, ...]:
        self.looks += 1
        return (self.crowd[peer],) if peer in self.crowd else super().connections_to(peer)


@aio
async def test_a_round_costs_the_same_however_many_connections_there_are() -> None:
    crowd = 1500
    async with (
        BusyHost(crowd, listen=["/ip4/127.0.0.3/tcp/0"], is_public=public) as busy,
        flare.AutoNat(busy, serve=False) as nat,
    ):
        assert busy.scans == 1, "one survey"
        looking = nat._looking
        assert looking is not None
        looking.consider = lambda *args: None  # type: ignore[assignment]
        before = busy.looks
        for peer in busy.crowd:
            busy.emit(PeerIdentified(peer, "", (DIAL_PROTOCOL,), None))
        assert busy.looks - before <= crowd, "once for each that is told of"
        assert len(nat._servers) == MAX_SERVERS < crowd
        nat.reachability.hurry()
        before = busy.looks
        nat._round(looking)
        (candidate,) = nat.verdicts
        assert candidate.addr == busy.listen_addrs[0]
        asked = busy.looks - before
        assert 0 < asked <= VANTAGES + 2 * AT_ONCE, "a round looks at those whom it asks"
        for peer in list(busy.crowd)[: crowd // 2]:
            del busy.crowd[peer]
            before = busy.looks
            busy.emit(ConnectionLost(peer, Multiaddr("/ip4/11.0.0.1/tcp/4001"), "direct/tcp", ""))
            assert busy.looks - before <= 2
        assert busy.scans == 1


@aio
async def test_servers_that_were_too_many_are_looked_for_when_few_are_left() -> None:
    crowd = MAX_SERVERS + FEW + 4
    async with (
        BusyHost(crowd, listen=["/ip4/127.0.0.3/tcp/0"], is_public=public) as busy,
        flare.AutoNat(busy, serve=False) as nat,
    ):
        looking = nat._looking
        assert looking is not None
        looking.consider = lambda *args: None  # type: ignore[assignment]
        for peer in busy.crowd:
            busy.peers.update(peer, protocols=(DIAL_PROTOCOL,))
            busy.emit(PeerIdentified(peer, "", (DIAL_PROTOCOL,), None))
        assert nat._servers.overflowed
        for peer in list(nat._servers.in_turn())[: MAX_SERVERS - FEW + 1]:
            nat._servers.discard(peer)
            del busy.crowd[peer]
        scans = busy.scans
        nat._round(looking)
        assert busy.scans == scans + 1
        assert len(nat._servers) == len(busy.crowd)
        nat._round(looking)
        assert busy.scans == scans + 1


async def says_no(stream: Stream) -> None:
    """A server that cannot dial out, and blames its clients."""
    await stream.read_frame(8192)
    answer = DialResponse(ResponseStatus.OK, 0, DialStatus.DIAL_ERROR)
    await stream.write_frame(DialMessage(response=answer).encode())


async def says_yes(stream: Stream) -> None:
    """A server that dials nobody and says that it did."""
    await stream.read_frame(8192)
    answer = DialResponse(ResponseStatus.OK, 0, DialStatus.OK)
    await stream.write_frame(DialMessage(response=answer).encode())


@aio
async def test_a_relay_of_our_own_that_says_no_to_everybody_is_outweighed_by_two_strangers() -> None:
    async with (
        node(2) as broken,
        host(listen=["/ip4/127.8.0.2/tcp/0"], is_public=public) as one,
        host(listen=["/ip4/127.9.0.2/tcp/0"], is_public=public) as two,
        node(3, relays=[broken.full_addrs[0]]) as client,
    ):
        broken.handle(DIAL_PROTOCOL, says_no)
        seen = Seen(client)
        async with flare.AutoNat(client, serve=False), flare.AutoNat(one), flare.AutoNat(two):
            private = await seen.first(AddressReachability)
            assert private.state == "private", "it is believed while there is nobody else"
            await client.connect(one.full_addrs[0])
            await client.connect(two.full_addrs[0])
            await seen.first(ReachabilityChanged, lambda event: event.state == "public")
            assert [event.state for event in seen.of(AddressReachability)] == ["private", "public"]


@aio
async def test_a_relay_of_our_own_that_says_yes_to_everybody_proves_nothing() -> None:
    nowhere = Multiaddr("/ip4/127.0.0.9/tcp/9")
    async with (
        node(2) as liar,
        node(4) as honest,
        flare.AutoNat(honest),
        node(3, announce=[nowhere], relays=[honest.full_addrs[0], liar.full_addrs[0]]) as client,
    ):
        liar.handle(DIAL_PROTOCOL, says_yes)
        seen = Seen(client)
        async with flare.AutoNat(client, serve=False) as nat:
            found = await seen.first(AddressReachability, lambda event: event.addr == nowhere)
            assert found.state == "private"
            words = [word for v in nat.verdicts if v.addr == nowhere for word in v.words]
            assert liar.peer_id not in {word.server for word in words}


@aio
async def test_ipv6_has_behaviours_of_its_own() -> None:
    listen = ["/ip6/::1/udp/0/quic-v1", "/ip6/::1/tcp/0"]
    async with (
        host(listen=listen, is_public=public) as server,
        flare.AutoNat(server),
        host(listen=listen, is_public=public, relays=[server.full_addrs[0]]) as client,
    ):
        seen = Seen(client)
        # one machine: the server's network is our own, whose word counts for nothing, but it sees us
        async with flare.AutoNat(client, serve=False) as nat:
            for transport in ("tcp6", "udp6"):
                await seen.first(NatBehaviourChanged, lambda event, name=transport: event.transport == name)
                assert nat.behaviours[transport].mapping is Mapping.NONE
                assert nat.behaviours[transport].filtering is Filtering.ENDPOINT_INDEPENDENT
            assert nat.behaviours["udp"].mapping is Mapping.UNKNOWN
            assert {verdict.state for verdict in nat.verdicts} == {Reachable.UNKNOWN}
