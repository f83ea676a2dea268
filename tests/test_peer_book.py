"""The peer book is bounded, and news that is older than what was signed changes nothing."""

from __future__ import annotations

import pytest

from flare.peer_book import MAX_ADDRS, PeerBook
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

ADDR = Multiaddr("/ip4/1.2.3.4/tcp/1")
OTHER = Multiaddr("/ip4/1.2.3.4/tcp/2")


def test_unknown_peers_are_empty_and_not_kept() -> None:
    book = PeerBook()
    assert book.get(Identity.generate().peer_id).addrs == ()
    assert len(book) == 0


def test_signed_addresses_are_replaced_by_later_ones_only() -> None:
    book, peer = PeerBook(), Identity.generate().peer_id
    book.update(peer, addrs=[ADDR], seq=5)
    book.update(peer, addrs=[OTHER], seq=4)
    assert book.get(peer).addrs == (ADDR,)
    book.update(peer, addrs=[OTHER])
    assert book.get(peer).addrs == (ADDR,), "unsigned news must not displace signed news"
    book.update(peer, addrs=[OTHER], seq=6)
    assert book.get(peer).addrs == (OTHER,)


@pytest.mark.parametrize("count", [MAX_ADDRS, MAX_ADDRS + 1])
def test_addresses_at_the_limit_and_one_past_it(count: int) -> None:
    book, peer = PeerBook(), Identity.generate().peer_id
    book.update(peer, addrs=[Multiaddr(f"/ip4/1.2.3.4/tcp/{port + 1}") for port in range(count)])
    assert len(book.get(peer).addrs) == MAX_ADDRS


def test_the_least_recently_used_peer_goes_first() -> None:
    book = PeerBook(max_peers=2)
    first, second, third = (Identity.generate().peer_id for _ in range(3))
    book.update(first, agent="1")
    book.update(second, agent="2")
    assert book.get(first).agent == "1"
    book.update(third, agent="3")
    assert book.get(second).agent == ""
    assert book.get(first).agent == "1"
    assert len(book) == 2
