"""Ranking, happy eyeballs under a virtual clock, and names (RFC 8305)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from flare.errors import ConnectionClosed, DialFailed, NetworkError, TimedOut
from flare.lab import virtual
from flare.transport.black_hole import TRIES, BlackHoles
from flare.transport.dial import (
    MAX_ADDRESSES,
    MAX_DNSADDR_DEPTH,
    MAX_FAILURES,
    MAX_IN_FLIGHT,
    dial_any,
    resolve,
)
from flare.transport.ranking import RELAY_DELAY
from flare.transport.sockets import IpAddress
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

PEER = Identity.generate().peer_id
OTHER = Identity.generate().peer_id
PUBLIC4 = Multiaddr("/ip4/203.0.114.1/tcp/4001")
PUBLIC4B = Multiaddr("/ip4/203.0.114.2/tcp/4002")
PUBLIC6 = Multiaddr("/ip6/2600::1/tcp/4001")
PUBLIC6B = Multiaddr("/ip6/2600::2/tcp/4002")
QUIC4 = Multiaddr("/ip4/203.0.114.1/udp/4001/quic-v1")
PRIVATE = Multiaddr("/ip4/192.168.1.2/tcp/4001")
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/4001")
RELAYED = Multiaddr(f"/ip4/203.0.114.9/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{PEER}")


class Dialer:
    """Answers each address after a time with a value or an error, and notes when it was asked."""

    def __init__(self) -> None:
        self._start = asyncio.get_running_loop().time()
        self.answers: dict[Multiaddr, tuple[float, str | BaseException]] = {}
        self.asked: list[tuple[float, Multiaddr]] = []
        self.cancelled: list[Multiaddr] = []
        self.running = self.most = 0

    async def __call__(self, addr: Multiaddr) -> str:
        loop = asyncio.get_running_loop()
        self.asked.append((round(loop.time() - self._start, 3), addr))
        seconds, answer = self.answers[addr]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(addr)
            raise
        finally:
            self.running -= 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


def on_virtual_time(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    def run(self: Any) -> None:
        virtual.run(test(self))

    run.__name__ = test.__name__
    return run


class TestHappyEyeballs:
    @on_virtual_time
    async def test_a_quick_first_address_is_the_only_one_tried(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC6: (0.2, "six"), PUBLIC4: (0.0, "four")}
        assert await dial_any([PUBLIC4, PUBLIC6], dialer) == "six"
        assert dialer.asked == [(0.0, PUBLIC6)]

    @on_virtual_time
    async def test_the_next_starts_250_ms_later_and_the_slower_is_cancelled(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC6: (10.0, "six"), PUBLIC4: (0.1, "four")}
        assert await dial_any([PUBLIC4, PUBLIC6], dialer) == "four"
        assert dialer.asked == [(0.0, PUBLIC6), (0.25, PUBLIC4)]
        assert dialer.cancelled == [PUBLIC6]
        assert dialer.running == 0

    @on_virtual_time
    async def test_a_failure_starts_the_next_at_once(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC6: (0.05, ConnectionClosed("refused")), PUBLIC4: (0.1, "four")}
        assert await dial_any([PUBLIC4, PUBLIC6], dialer) == "four"
        assert dialer.asked == [(0.0, PUBLIC6), (0.05, PUBLIC4)]

    @on_virtual_time
    async def test_private_addresses_give_way_quickly(self) -> None:
        dialer = Dialer()
        dialer.answers = {PRIVATE: (10.0, "private"), LOOPBACK: (10.0, "loopback"), PUBLIC4: (0.1, "public")}
        assert await dial_any([LOOPBACK, PRIVATE, PUBLIC4], dialer) == "public"
        assert dialer.asked == [(0.0, LOOPBACK), (0.0, PUBLIC4), (0.03, PRIVATE)]

    @on_virtual_time
    async def test_relayed_addresses_wait_for_direct_ones(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (0.4, "direct"), RELAYED: (0.0, "relayed")}
        assert await dial_any([RELAYED, PUBLIC4], dialer) == "direct"
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (9.0, "direct"), RELAYED: (0.0, "relayed")}
        assert await dial_any([RELAYED, PUBLIC4], dialer) == "relayed"
        assert dialer.asked[1] == (RELAY_DELAY, RELAYED)

    @on_virtual_time
    async def test_a_failed_direct_address_does_not_hurry_the_relay_while_another_is_tried(self) -> None:
        dialer = Dialer()
        dialer.answers = {
            PUBLIC4: (0.26, NetworkError("no")),
            PUBLIC4B: (0.2, "direct"),
            RELAYED: (0.0, "relayed"),
        }
        assert await dial_any([PUBLIC4, PUBLIC4B, RELAYED], dialer) == "direct"
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (0.1, NetworkError("no")), RELAYED: (0.0, "relayed")}
        assert await dial_any([PUBLIC4, RELAYED], dialer) == "relayed"
        assert dialer.asked[-1] == (0.1, RELAYED), "with no direct address left there is nothing to wait for"

    @on_virtual_time
    async def test_quic_wins_over_tcp_that_answers_sooner(self) -> None:
        dialer = Dialer()
        dialer.answers = {QUIC4: (0.2, "quic"), PUBLIC4: (0.0, "tcp")}
        assert await dial_any([PUBLIC4, QUIC4], dialer) == "quic"
        assert dialer.asked == [(0.0, QUIC4)]

    @on_virtual_time
    async def test_what_the_network_swallows_is_left_out_and_named(self) -> None:
        holes = BlackHoles()
        dialer = Dialer()
        dialer.answers = {QUIC4: (0.1, NetworkError("silence")), PUBLIC4: (0.1, "tcp")}
        for _ in range(TRIES):
            await dial_any([QUIC4, PUBLIC4], dialer, black_holes=holes)
        dialer.asked.clear()
        assert await dial_any([QUIC4, PUBLIC4], dialer, black_holes=holes) == "tcp"
        assert [addr for _, addr in dialer.asked] == [PUBLIC4]
        with pytest.raises(DialFailed, match="lets none of its kind through"):
            await dial_any([QUIC4], dialer, black_holes=holes)

    @on_virtual_time
    async def test_every_attempt_is_in_the_error(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC6: (0.1, NetworkError("unreachable")), PUBLIC4: (0.1, OSError("refused"))}
        with pytest.raises(DialFailed, match=f"could not dial {PEER}: .*unreachable.*refused") as failure:
            await dial_any([PUBLIC4, PUBLIC6], dialer, target=PEER)
        assert [addr for addr, _ in failure.value.attempts] == [PUBLIC6, PUBLIC4]
        with pytest.raises(DialFailed, match="no address to dial"):
            await dial_any([], dialer, target=PEER)

    @on_virtual_time
    async def test_only_so_many_at_once(self) -> None:
        dialer = Dialer()
        many = [Multiaddr(f"/ip4/203.0.114.1/tcp/{port}") for port in range(1, 21)]
        dialer.answers = {addr: (60.0, NetworkError("timeout")) for addr in many}
        with pytest.raises(DialFailed) as failure:
            await dial_any(many, dialer)
        assert len(failure.value.attempts) == 20
        assert dialer.most == MAX_IN_FLIGHT

    @on_virtual_time
    async def test_a_bug_in_the_dialer_comes_through(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (0.0, KeyError("bug")), PUBLIC6: (9.0, "never")}
        with pytest.raises(KeyError):
            await dial_any([PUBLIC4, PUBLIC6], dialer)
        assert dialer.cancelled == [PUBLIC6]

    @on_virtual_time
    async def test_cancelling_ends_every_attempt(self) -> None:
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (9.0, "never"), PUBLIC6: (9.0, "never")}
        dialling = asyncio.create_task(dial_any([PUBLIC4, PUBLIC6], dialer))
        await asyncio.sleep(1)
        dialling.cancel()
        await asyncio.gather(dialling, return_exceptions=True)
        assert dialer.cancelled == [PUBLIC6, PUBLIC4]


class FakeResolver:
    """Answers from two tables."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.records: dict[str, list[str]] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []

    async def addresses(self, name: str, version: int) -> list[IpAddress]:
        self.asked.append(name)
        if name in self.silent:
            raise TimedOut(name, 5)
        if name not in self.hosts:
            raise NetworkError(f"{name}: no such name")
        found = [ipaddress.ip_address(text) for text in self.hosts[name]]
        return [ip for ip in found if version in (0, ip.version)]

    async def texts(self, name: str) -> list[str]:
        self.asked.append(name)
        if name not in self.records:
            raise NetworkError(f"{name}: no such name")
        return self.records[name]


class TestNames:
    @on_virtual_time
    async def test_dns_dns4_and_dns6(self) -> None:
        resolver = FakeResolver()
        resolver.hosts["example.com"] = ["203.0.114.1", "2600::1"]
        for name, expected in [
            ("dns", ["/ip4/203.0.114.1", "/ip6/2600::1"]),
            ("dns4", ["/ip4/203.0.114.1"]),
            ("dns6", ["/ip6/2600::1"]),
        ]:
            found = await resolve([Multiaddr(f"/{name}/example.com/tcp/4001/p2p/{PEER}")], resolver)
            assert found == [Multiaddr(f"{ip}/tcp/4001/p2p/{PEER}") for ip in expected]

    @on_virtual_time
    async def test_the_relay_of_a_circuit_address_has_a_name(self) -> None:
        resolver = FakeResolver()
        resolver.hosts["relay.example"] = ["203.0.114.9"]
        addr = Multiaddr(f"/dns4/relay.example/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{PEER}")
        assert await resolve([addr], resolver) == [RELAYED]

    @on_virtual_time
    async def test_dnsaddr_keeps_what_ends_as_asked(self) -> None:
        resolver = FakeResolver()
        resolver.records["_dnsaddr.example.com"] = [
            f"dnsaddr=/ip4/203.0.114.1/tcp/4001/p2p/{PEER}",
            f"dnsaddr=/ip4/203.0.114.2/tcp/4001/p2p/{OTHER}",
            "dnsaddr=/no/multiaddr",
            "v=spf1 -all",
            f"dnsaddr=/dns4/b.example/tcp/4001/p2p/{PEER}",
        ]
        resolver.hosts["b.example"] = ["203.0.114.5"]
        found = await resolve([Multiaddr(f"/dnsaddr/example.com/p2p/{PEER}")], resolver)
        assert [str(addr.ip) for addr in found] == ["203.0.114.1", "203.0.114.5"]

    @on_virtual_time
    async def test_a_dead_name_among_the_records_does_not_cost_the_others(self) -> None:
        resolver = FakeResolver()
        resolver.silent.add("silent.example")
        resolver.records["_dnsaddr.example.com"] = [
            "dnsaddr=/dns4/none.example/tcp/1",
            "dnsaddr=/dns4/silent.example/tcp/1",
            "dnsaddr=/dnsaddr/none.example",
            f"dnsaddr={PUBLIC4}",
            "dnsaddr=/dns4/none.example/tcp/2",
        ]
        assert await resolve([Multiaddr("/dnsaddr/example.com")], resolver) == [PUBLIC4]
        resolver.records["_dnsaddr.example.com"] = [
            "dnsaddr=/dns4/silent.example/tcp/1",
            "dnsaddr=/dns4/none.example/tcp/1",
        ]
        with pytest.raises(TimedOut, match=r"silent\.example"):
            await resolve([Multiaddr("/dnsaddr/example.com")], resolver)

    @on_virtual_time
    async def test_dead_names_below_one_dnsaddr_are_bounded(self) -> None:
        resolver = FakeResolver()
        dead = [f"dnsaddr=/dns4/none{i}.example/tcp/1" for i in range(MAX_FAILURES + 1)]
        resolver.records["_dnsaddr.example.com"] = dead
        with pytest.raises(NetworkError, match=r"none0\.example"):
            await resolve([Multiaddr("/dnsaddr/example.com")], resolver)
        assert len(resolver.asked) == 1 + MAX_FAILURES
        resolver.asked.clear()
        resolver.records["_dnsaddr.example.com"] = [*dead[: MAX_FAILURES - 1], f"dnsaddr={PUBLIC4}", *dead]
        assert await resolve([Multiaddr("/dnsaddr/example.com")], resolver) == [PUBLIC4]
        assert len(resolver.asked) == 1 + MAX_FAILURES

    @on_virtual_time
    async def test_a_tree_of_dead_names_is_bounded_as_a_whole(self) -> None:
        resolver = FakeResolver()
        resolver.records["_dnsaddr.a.example"] = ["dnsaddr=/dnsaddr/a.example"] * 30
        with pytest.raises(NetworkError, match="more than 4 times"):
            await resolve([Multiaddr("/dnsaddr/a.example")], resolver)
        assert len(resolver.asked) == MAX_DNSADDR_DEPTH

    @on_virtual_time
    async def test_a_failure_deep_in_the_tree_counts_once(self) -> None:
        resolver = FakeResolver()
        resolver.records["_dnsaddr.a.example"] = ["dnsaddr=/dnsaddr/b.example"]
        resolver.records["_dnsaddr.b.example"] = ["dnsaddr=/dnsaddr/c.example"]
        resolver.records["_dnsaddr.c.example"] = ["dnsaddr=/dns4/none.example/tcp/1"]
        resolver.records["_dnsaddr.example.com"] = ["dnsaddr=/dnsaddr/a.example"] * 7 + [f"dnsaddr={PUBLIC4}"]
        assert await resolve([Multiaddr("/dnsaddr/example.com")], resolver) == [PUBLIC4]

    @on_virtual_time
    async def test_dnsaddr_that_leads_in_circles(self) -> None:
        resolver = FakeResolver()
        resolver.records["_dnsaddr.a.example"] = ["dnsaddr=/dnsaddr/a.example"] * 2
        with pytest.raises(NetworkError, match="more than 4 times"):
            await resolve([Multiaddr("/dnsaddr/a.example")], resolver)

    @on_virtual_time
    async def test_one_name_that_fails_does_not_cost_the_others(self) -> None:
        assert await resolve([Multiaddr("/dns4/none.example/tcp/1"), PUBLIC4], FakeResolver()) == [PUBLIC4]
        with pytest.raises(NetworkError, match=r"none\.example"):
            await resolve([Multiaddr("/dns4/none.example/tcp/1")], FakeResolver())

    @on_virtual_time
    async def test_dial_any_resolves_and_reports_names_that_fail(self) -> None:
        resolver = FakeResolver()
        resolver.hosts["example.com"] = ["203.0.114.1"]
        dialer = Dialer()
        dialer.answers = {PUBLIC4: (0.0, "found")}
        assert await dial_any([Multiaddr("/dns/example.com/tcp/4001")], dialer, resolver=resolver) == "found"
        with pytest.raises(DialFailed, match="no such name"):
            await dial_any([Multiaddr("/dns/none.example/tcp/4001")], dialer, resolver=resolver)

    @on_virtual_time
    async def test_a_flood_of_records(self) -> None:
        resolver = FakeResolver()
        resolver.records["_dnsaddr.example.com"] = [
            f"dnsaddr=/ip4/203.0.114.1/tcp/{port}" for port in range(1, 200)
        ]
        assert len(await resolve([Multiaddr("/dnsaddr/example.com")], resolver)) == MAX_ADDRESSES
