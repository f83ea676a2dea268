"""nat/vantage.py: who may be dialled, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from flare.nat.vantage import PORTS, Vantage, endpoint, vantages
from flare.wire.multiaddr import Multiaddr, is_public
from tests.support.linked import ALICE, BOB, CAROL, linked

HERE = "/ip4/5.6.7.8/tcp/4002"
FURTHER = ["/ip4/5.6.7.8/tcp/4003", "/ip4/5.6.7.8/udp/4002/quic-v1", "/ip4/5.6.7.8/udp/4003/quic-v1"]


def server(who: Any = BOB, remote: str = HERE, **values: Any) -> Any:
    connection, _ = linked(ALICE, who)
    connection.remote_addr = Multiaddr(remote)
    for name, value in values.items():
        setattr(connection, name, value)
    return connection


def found(
    connection: Any, told: Sequence[str], transport: str = "tcp", *, trusted: bool = False
) -> list[tuple[str, ...]]:
    servers = [(connection, list(map(Multiaddr, told)), trusted)]
    return [tuple(map(str, one.addrs)) for one in vantages(servers, transport, is_public)]


def test_where_it_was_dialled_and_a_second_port() -> None:
    assert found(server(), FURTHER) == [(HERE, FURTHER[0])]
    assert found(server(), FURTHER, "udp") == [tuple(FURTHER[1:])]
    assert found(server(), []) == [(HERE,)]
    assert found(server(), [], "udp") == []


def test_no_more_ports_than_two() -> None:
    ports = [f"/ip4/5.6.7.8/tcp/{port}" for port in range(1, 9)]
    ((*addrs,),) = found(server(), ports)
    assert len(addrs) == PORTS


def test_who_came_to_us_is_dialled_where_it_says_that_it_listens() -> None:
    assert found(server(initiator=False), FURTHER) == [(FURTHER[0],)]


def test_a_stranger_cannot_send_us_to_others() -> None:
    """Only a server of our own choice is believed about another IP of its."""
    elsewhere = ["/ip4/9.9.9.9/udp/4001/quic-v1"]
    assert found(server(), elsewhere, "udp") == []
    assert found(server(), elsewhere, "udp", trusted=True) == [tuple(elsewhere)]


def test_who_is_not_on_the_internet_sees_nothing() -> None:
    assert found(server(remote="/ip4/192.168.1.9/tcp/1"), ["/ip4/192.168.1.9/udp/1/quic-v1"], "udp") == []


@pytest.mark.parametrize(
    "addr", ["/ip4/5.6.7.8/tcp/1/ws", "/ip4/5.6.7.8/udp/1/quic-v1/webtransport", "/ip4/5.6.7.8/udp/1"]
)
def test_other_transports_are_of_no_use(addr: str) -> None:
    assert found(server(initiator=False), [addr]) == found(server(initiator=False), [addr], "udp") == []


def test_ipv6() -> None:
    six = ["/ip6/2a00::1/udp/1/quic-v1", "/ip6/2a00::1/tcp/1"]
    assert found(server(), six, "udp6", trusted=True) == [(six[0],)]
    assert found(server(), six, "tcp6", trusted=True) == [(six[1],)]


def test_one_for_each_ip() -> None:
    servers = [(server(who), [], False) for who in (BOB, CAROL)]
    assert len(vantages(servers, "tcp", is_public)) == 1, "two programs on one machine see the same"


def test_the_port_of_ours_is_where_the_server_sees_us() -> None:
    connection = server(local_addr=Multiaddr("/ip4/192.168.1.2/tcp/4001"))
    assert str(Vantage(BOB.peer_id, (Multiaddr(HERE),), connection).any_port()) == "/ip4/192.168.1.2/tcp/0"
    quic = Vantage(BOB.peer_id, (Multiaddr(FURTHER[1]),), connection)
    assert str(quic.any_port()) == "/ip4/192.168.1.2/udp/0/quic-v1"
    six = Vantage(BOB.peer_id, (Multiaddr("/ip6/2a00::1/tcp/1"),), connection)
    assert str(six.any_port()) == "/ip6/::/tcp/0"
    connection.local_addr = None
    assert str(quic.any_port()) == "/ip4/0.0.0.0/udp/0/quic-v1"


def test_endpoint() -> None:
    assert endpoint(Multiaddr(HERE)) == ("5.6.7.8", 4002)
    assert endpoint(Multiaddr("/ip4/5.6.7.8")) is None
    assert endpoint(Multiaddr("/dns/example.com/tcp/1")) is None
    assert endpoint(None) is None
