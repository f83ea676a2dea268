"""nat/servers.py: who is asked next, whatever comes and goes."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.nat.servers import MAX_SERVERS, Servers
from flare.wire.keys import Identity
from flare.wire.peer_id import PeerId

PEERS = [Identity.generate().peer_id for _ in range(12)]


def first(servers: Servers, count: int) -> list[PeerId]:
    return list(islice(servers.in_turn(), count))


def test_a_network_s_in_turn() -> None:
    servers = Servers()
    for peer in PEERS[:3]:
        servers.add(peer, "1.0")
    servers.add(PEERS[3], "2.0")
    assert {peer in PEERS[:3] for peer in first(servers, 2)} == {True, False}
    assert set(first(servers, 9)) == set(PEERS[:4])


def test_who_was_asked_longest_ago() -> None:
    servers = Servers()
    for number, peer in enumerate(PEERS[:3]):
        servers.add(peer, f"{number}.0")
    order = first(servers, 3)
    servers.asked(order[0])
    assert first(servers, 3) == [*order[1:], order[0]]
    servers.add(PEERS[3], "9.0")
    assert first(servers, 1) == [PEERS[3]], "it was never asked"


def test_trusted_ones_come_first() -> None:
    servers = Servers()
    servers.add(PEERS[0], "1.0")
    servers.add(PEERS[1], "1.0", trusted=True)
    servers.add(PEERS[2], "1.0", trusted=True)
    assert first(servers, 3) == [PEERS[2], PEERS[1], PEERS[0]]
    servers.asked(PEERS[2])
    assert first(servers, 3) == [PEERS[1], PEERS[2], PEERS[0]]


def test_news() -> None:
    servers = Servers()
    assert servers.add(PEERS[0], "1.0")
    assert not servers.add(PEERS[0], "1.0")
    assert PEERS[0] in servers
    assert servers.discard(PEERS[0])
    assert not servers.discard(PEERS[0])
    assert PEERS[0] not in servers
    assert servers.add(PEERS[0], "1.0", trusted=True)
    assert servers.discard(PEERS[0])
    assert len(servers) == 0
    servers.asked(PEERS[0])
    assert first(servers, 1) == []


@pytest.mark.parametrize("count", [3, MAX_SERVERS])
def test_how_many_are_kept(count: int) -> None:
    servers = Servers(3) if count == 3 else Servers()
    peers: list[Any] = [object() for _ in range(count + 1)]
    for number, peer in enumerate(peers[:-1]):
        assert servers.add(peer, str(number % 7))
    assert not servers.overflowed
    assert not servers.add(peers[-1], "0")
    assert servers.overflowed
    assert len(servers) == count
    assert servers.add(peers[-1], "0", trusted=True), "there is always room for our own"
    assert len(servers) == count + 1


class Counting(OrderedDict[Any, Any]):
    """Counts what is taken from it."""

    taken = 0

    def __iter__(self) -> Any:
        for key in super().__iter__():
            Counting.taken += 1
            yield key

    def values(self) -> Any:
        for value in super().values():
            Counting.taken += 1
            yield value


def test_asking_costs_the_same_however_many_there_are() -> None:
    servers = Servers()
    for number in range(MAX_SERVERS):
        peer: Any = object()
        servers.add(peer, str(number % 100))
    servers._by_network = Counting(
        {network: Counting(peers) for network, peers in servers._by_network.items()}
    )
    Counting.taken = 0
    assert len(first(servers, 4)) == 4
    assert Counting.taken <= 2 * 4, "a network and a peer for each"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "trust", "discard", "asked"]), st.integers(0, 11), st.integers(0, 2)
        )
    )
)
def test_it_holds_what_was_added_and_not_discarded(steps: list[tuple[str, int, int]]) -> None:
    servers = Servers(6)
    held: set[PeerId] = set()
    for what, who, network in steps:
        peer = PEERS[who]
        if what in ("add", "trust"):
            if servers.add(peer, str(network), trusted=what == "trust"):
                held.add(peer)
        elif what == "discard":
            assert servers.discard(peer) == (peer in held)
            held.discard(peer)
        else:
            servers.asked(peer)
        order = list(servers.in_turn())
        assert len(order) == len(set(order)) == len(servers)
        assert set(order) == held
