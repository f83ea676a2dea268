"""The wires: delay, order, loss, rate and hops, under virtual time."""

from __future__ import annotations

import pytest

from flare.errors import UsageError
from flare.lab.expect import expected
from flare.lab.fabric import Fabric, Path
from flare.lab.kinds import KINDS
from flare.lab.packet import Packet, udp_packet
from flare.lab.world import Lab

A, B = (1, 10), (2, 20)


def datagram(payload: bytes = b"", ttl: int = 64) -> Packet:
    packet = Packet.parse(udp_packet(A, B, payload, ttl=ttl))
    assert packet is not None
    return packet


def arrivals(fabric: Fabric) -> list[tuple[float, bytes]]:
    got = []
    while (when := fabric.next_arrival) is not None:
        got += [(when, packet.payload) for packet in fabric.arrived(when)]
    return got


def test_delay() -> None:
    fabric = Fabric(Path(delay=0.02))
    assert fabric.send(datagram(), 1.0)
    assert fabric.next_arrival == 1.02
    assert not list(fabric.arrived(1.0199))
    assert len(list(fabric.arrived(1.02))) == 1


def test_each_direction_has_its_own_path() -> None:
    fabric = Fabric(Path(delay=0.02))
    fabric.set_path(A[0], B[0], Path(delay=0.5))
    assert (fabric.path(A[0], B[0]).delay, fabric.path(B[0], A[0]).delay) == (0.5, 0.02)


def test_jitter_keeps_the_order() -> None:
    fabric = Fabric(Path(delay=0.01, jitter=0.1))
    for n in range(50):
        fabric.send(datagram(bytes([n])), n * 0.001)
    got = arrivals(fabric)
    assert [payload[0] for _, payload in got] == list(range(50))
    assert all(0.01 <= when - n * 0.001 <= 0.16 for n, (when, _) in enumerate(got))


def test_reordering_changes_it() -> None:
    fabric = Fabric(Path(delay=0.01, reorder=0.2))
    for n in range(50):
        fabric.send(datagram(bytes([n])), n * 0.001)
    got = [payload[0] for _, payload in arrivals(fabric)]
    assert sorted(got) == list(range(50)) != got


def test_loss() -> None:
    fabric = Fabric(Path(loss=0.25), seed=7)
    sent = sum(fabric.send(datagram(), 0.0) for _ in range(1000))
    assert 700 < sent < 800
    assert fabric.lost["loss"] == 1000 - sent


def test_rate_and_queue() -> None:
    fabric = Fabric(Path(rate=10_000, queue=0.1))
    results = [fabric.send(datagram(b"x" * 72), 0.0) for _ in range(20)]
    assert results == [True] * 11 + [False] * 9, (
        "100 bytes take 10 ms each; what would wait longer than 0.1 s is lost"
    )
    assert [round(when, 3) for when, _ in arrivals(fabric)][:3] == [0.01, 0.02, 0.03]


@pytest.mark.parametrize(("ttl", "arrives"), [(3, True), (2, False)])
def test_each_hop_costs_a_ttl(ttl: int, arrives: bool) -> None:
    assert Fabric(Path(hops=2)).send(datagram(ttl=ttl), 0.0) is arrives


def test_same_seed_same_world() -> None:
    def world(seed: int) -> list[tuple[float, bytes]]:
        fabric = Fabric(Path(delay=0.01, jitter=0.05, loss=0.3, reorder=0.1), seed)
        for n in range(40):
            fabric.send(datagram(bytes([n])), n * 0.001)
        return arrivals(fabric)

    assert world(3) == world(3) != world(4)


def test_expectations_cover_every_pair_and_are_symmetric() -> None:
    for transport in ("tcp", "udp"):
        for a in KINDS:
            for b in KINDS:
                assert expected(a, b, transport) == expected(b, a, transport)
    assert expected("port", "port-acc") == {"direct"}
    assert expected("sym", "addr") == {"direct"}
    assert expected("sym", "port") == {"relayed"}
    assert expected("sym", "port", "quic") == expected("sym-seq", "port") == {"direct"}
    assert expected("sym", "adm", "quic") == expected("sym", "sym-seq", "quic") == {"relayed"}
    assert expected("sym-seq", "sym-seq", "quic") == {"direct"}


def test_unknown_kind() -> None:
    with pytest.raises(UsageError, match="no NAT of kind 'cone'"):
        Lab({"a": "cone"})
