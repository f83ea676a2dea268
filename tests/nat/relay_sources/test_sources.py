"""The sources that need no service: configuration, DNS, connected peers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from flare.auto_relay import sources_from
from flare.errors import NetworkError, UsageError
from flare.nat.relay_sources.connected import ConnectedRelays
from flare.nat.relay_sources.dnsaddr import DnsaddrRelays
from flare.nat.relay_sources.routing import RoutingRelays
from flare.nat.relay_sources.static import StaticRelays
from flare.protocols.relay import HOP_PROTOCOL
from flare.transport.sockets import IpAddress
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio

A, B = (Identity.generate().peer_id for _ in range(2))


class Records:
    """A resolver that knows some TXT records."""

    def __init__(self, *texts: str) -> None:
        self.answers = texts

    async def addresses(self, name: str, version: int) -> list[IpAddress]:
        raise NetworkError("no address")

    async def texts(self, name: str) -> list[str]:
        assert name == "_dnsaddr.relays.example"
        if not self.answers:
            raise NetworkError("no such name")
        return list(self.answers)


class TestStatic:
    @aio
    async def test_the_ways_of_a_relay_are_one(self) -> None:
        source = StaticRelays(
            [f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{A}", f"/ip4/1.2.3.4/tcp/1/p2p/{A}", f"/dns/b/tcp/1/p2p/{B}"]
        )
        found = await source.find()
        assert [(relay.peer, len(relay.addrs)) for relay in found] == [(A, 2), (B, 1)]
        assert source.trusted

    @pytest.mark.parametrize(
        "addr", ["/ip4/1.2.3.4/tcp/1", f"/ip4/1.2.3.4/tcp/1/p2p/{A}/p2p-circuit/p2p/{B}"]
    )
    def test_what_names_no_relay(self, addr: str) -> None:
        with pytest.raises(UsageError, match="ADDR/p2p/PEER"):
            StaticRelays([addr])


class TestDnsaddr:
    @aio
    async def test_records(self) -> None:
        records = Records(
            f"dnsaddr=/ip4/1.2.3.4/tcp/1/p2p/{A}",
            f"dnsaddr=/ip4/1.2.3.4/udp/1/quic-v1/p2p/{A}",
            f"dnsaddr=/ip4/10.0.0.1/tcp/1/p2p/{B}",
            "dnsaddr=/ip4/1.2.3.4/tcp/1",
            "v=spf1 -all",
            "dnsaddr=junk",
        )
        found = await DnsaddrRelays("/dnsaddr/relays.example", records).find()
        assert [(relay.peer, len(relay.addrs)) for relay in found] == [(A, 2), (B, 1)]

    @aio
    async def test_one_relay_of_a_name(self) -> None:
        records = Records(f"dnsaddr=/ip4/1.2.3.4/tcp/1/p2p/{A}", f"dnsaddr=/ip4/1.2.3.5/tcp/1/p2p/{B}")
        (found,) = await DnsaddrRelays(f"/dnsaddr/relays.example/p2p/{B}", records).find()
        assert found.peer == B

    @aio
    async def test_a_name_that_is_none(self) -> None:
        with pytest.raises(NetworkError):
            await DnsaddrRelays("/dnsaddr/relays.example", Records()).find()

    @pytest.mark.parametrize("addr", ["/dns/relays.example", "/ip4/1.2.3.4/tcp/1", ""])
    def test_what_is_no_dnsaddr(self, addr: str) -> None:
        with pytest.raises(UsageError):
            DnsaddrRelays(addr)


class TestConnected:
    PUBLIC = Multiaddr("/ip4/8.8.8.8/tcp/4001")

    def found(self, protocols: Sequence[str], addrs: Sequence[Multiaddr]) -> Sequence[Multiaddr] | None:
        source = ConnectedRelays(list, lambda addr: str(addr.ip).startswith("8."))
        relay = source.judge(A, protocols, addrs)
        return None if relay is None else relay.addrs

    def test_who_speaks_hop_at_a_public_address(self) -> None:
        assert self.found([HOP_PROTOCOL], [self.PUBLIC]) == (self.PUBLIC,)
        assert self.found(["/ipfs/ping/1.0.0"], [self.PUBLIC]) is None
        assert self.found([HOP_PROTOCOL], [Multiaddr("/ip4/10.0.0.1/tcp/1")]) is None
        assert self.found([HOP_PROTOCOL], []) is None

    @aio
    async def test_all_of_them(self) -> None:
        peers = [(A, [HOP_PROTOCOL], [self.PUBLIC]), (B, [], [self.PUBLIC])]
        source = ConnectedRelays(lambda: peers, lambda addr: True)
        assert [relay.peer for relay in await source.find()] == [A]
        assert not source.trusted


class TestAsUsersWriteThem:
    def test_what_each_is(self) -> None:
        made = sources_from(
            [
                f"/ip4/1.2.3.4/tcp/1/p2p/{A}",
                "https://routing.example",
                Multiaddr(f"/ip4/1.2.3.4/tcp/1/p2p/{B}"),
                "/dnsaddr/relays.example",
                own := StaticRelays([]),
            ],
            lambda addr: True,
        )
        assert [type(source) for source in made] == [StaticRelays, RoutingRelays, DnsaddrRelays, StaticRelays]
        assert made[3] is own
        assert sources_from([], lambda addr: True) == []

    @pytest.mark.parametrize("text", ["relays.example", "/ip4/1.2.3.4/tcp/1", "/dnsaddr/", "https://"])
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(UsageError):
            sources_from([text], lambda addr: True)
