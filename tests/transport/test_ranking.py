"""The order and the delays of dials, beside go-libp2p's (p2p/net/swarm/dial_ranker.go)."""

from __future__ import annotations

import pytest

from flare.transport.ranking import MAX_ADDRESSES, Planned, plan, rank
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

RELAY, PEER = Identity.generate().peer_id, Identity.generate().peer_id


def quic(ip: str, port: int = 4001) -> Multiaddr:
    return Multiaddr(f"/ip{6 if ':' in ip else 4}/{ip}/udp/{port}/quic-v1")


def tcp(ip: str, port: int = 4001) -> Multiaddr:
    return Multiaddr(f"/ip{6 if ':' in ip else 4}/{ip}/tcp/{port}")


def relayed(addr: Multiaddr) -> Multiaddr:
    return Multiaddr(f"{addr}/p2p/{RELAY}/p2p-circuit/p2p/{PEER}")


FOUR, FOUR_B, SIX, SIX_B = "1.2.3.4", "1.2.3.5", "2600::1", "2600::2"

# go-libp2p's own table (dial_ranker_test.go), in seconds: addresses in their order, and when each is dialled
CASES = {
    "quic alone": [(quic(FOUR), 0.0)],
    "quic, IPv4 only: the lowest port, then the rest": [
        (quic(FOUR, 1), 0.0),
        (quic(FOUR, 2), 0.25),
        (quic(FOUR_B, 3), 0.25),
    ],
    "quic, both families: six, four, the rest": [
        (quic(SIX, 1), 0.0),
        (quic(FOUR, 1), 0.25),
        (quic(SIX, 2), 0.5),
        (quic(FOUR, 2), 0.5),
    ],
    "quic, then tcp": [(quic(FOUR), 0.0), (tcp(FOUR), 0.25), (tcp(FOUR_B, 4002), 0.5)],
    "both of both": [
        (quic(SIX), 0.0),
        (quic(FOUR), 0.25),
        (tcp(SIX), 0.5),
        (tcp(FOUR), 0.75),
        (tcp(SIX_B, 4002), 1.0),
        (tcp(FOUR_B, 4002), 1.0),
    ],
    "tcp alone": [(tcp(SIX), 0.0), (tcp(FOUR), 0.25), (tcp(SIX_B, 4002), 0.5), (tcp(FOUR_B, 4002), 0.5)],
    "private in smaller steps": [
        (quic("192.168.0.1"), 0.0),
        (tcp("192.168.0.1"), 0.03),
        (tcp("192.168.0.1", 4002), 0.06),
    ],
    "private beside public": [
        (quic("192.168.0.1"), 0.0),
        (quic(FOUR), 0.0),
        (tcp("192.168.0.1"), 0.03),
        (tcp(FOUR), 0.25),
    ],
    "relays wait for public addresses": [
        (quic(FOUR), 0.0),
        (tcp(FOUR), 0.25),
        (relayed(quic(FOUR_B)), 0.5),
        (relayed(tcp(FOUR_B)), 0.75),
    ],
    "relays do not wait for private ones": [(tcp("10.0.0.1"), 0.0), (relayed(tcp(FOUR)), 0.0)],
    "what we do not speak comes last": [
        (quic(FOUR), 0.0),
        (tcp(FOUR), 0.25),
        (Multiaddr("/ip4/1.2.3.4/udp/1/webrtc-direct"), 1.25),
    ],
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_order_and_delays(case: str) -> None:
    expected = [Planned(addr, delay) for addr, delay in CASES[case]]
    made = plan(reversed([planned.addr for planned in expected]))
    assert sorted(made, key=lambda planned: (planned.delay, str(planned.addr))) == sorted(
        expected, key=lambda planned: (planned.delay, str(planned.addr))
    )
    assert [planned.delay for planned in made] == [planned.delay for planned in expected]


def test_each_once_and_low_ports_first() -> None:
    high = tcp(FOUR, 50_000)
    assert rank([high, tcp(FOUR), high]) == [tcp(FOUR), high]


def test_a_limit() -> None:
    many = [tcp(FOUR, port) for port in range(1, MAX_ADDRESSES + 2)]
    assert rank(many[:-1]) == many[:-1]
    assert rank(many) == many[:-1]
