"""The peer book is bounded, and news that is older than what was signed changes nothing."""

from __future__ import annotations

import pytest

from flare.peer_book import MAX_ADDRS, MAX_AGENT, MAX_BYTES, MAX_RECORD, MAX_SHARED, PeerBook
from flare.wire.envelope import PeerRecord
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


class TestSignedRecords:
    def record(self, identity: Identity, seq: int, *addrs: Multiaddr) -> bytes:
        return PeerRecord(identity.peer_id, seq, addrs).seal(identity)

    def test_a_record_goes_before_what_nobody_signed(self) -> None:
        book, me = PeerBook(), Identity.generate()
        book.update(me.peer_id, addrs=[OTHER], record=self.record(me, 5, ADDR))
        assert book.get(me.peer_id).told == 1
        assert book.get(me.peer_id).addrs == (ADDR,)
        assert book.get(me.peer_id).seq == 5
        assert book.get(me.peer_id).told == 1

    def test_an_older_one_changes_nothing_opened_or_not(self) -> None:
        book, me = PeerBook(), Identity.generate()
        for seq, addr in ((5, ADDR), (4, OTHER)):
            book.update(me.peer_id, addrs=[addr], record=self.record(me, seq, addr))
        assert book.get(me.peer_id).addrs == (ADDR,)
        book.update(me.peer_id, addrs=[OTHER], record=self.record(me, 6, OTHER))
        assert book.get(me.peer_id).addrs == (OTHER,)

    def test_somebody_elses_counts_as_none(self) -> None:
        book, me, other = PeerBook(), Identity.generate(), Identity.generate()
        book.update(me.peer_id, addrs=[OTHER], record=self.record(other, 9, ADDR))
        assert (book.get(me.peer_id).addrs, book.get(me.peer_id).seq) == ((OTHER,), -1)

    def test_nor_does_junk_displace_what_was_signed(self) -> None:
        book, me = PeerBook(), Identity.generate()
        book.update(me.peer_id, record=self.record(me, 5, ADDR))
        book.update(me.peer_id, addrs=[OTHER], record=b"junk")
        assert book.get(me.peer_id).addrs == (ADDR,)

    @pytest.mark.parametrize("size", [MAX_RECORD, MAX_RECORD + 1])
    def test_a_long_one_is_not_kept_as_it_came(self, size: int) -> None:
        book, me = PeerBook(), Identity.generate()
        info = book.update(me.peer_id, addrs=[OTHER], record=b"\0" * size)
        assert (info._record is None) == (size > MAX_RECORD)
        assert info.addrs == (OTHER,)


class TestBytes:
    def test_addresses_are_cut_at_the_limit(self) -> None:
        book, peer = PeerBook(), Identity.generate().peer_id
        addrs = [Multiaddr(f"/dns4/{'x' * (MAX_BYTES // 4 - 5)}{i}") for i in range(6)]
        assert len(bytes(addrs[0])) * 4 <= MAX_BYTES < len(bytes(addrs[0])) * 5
        book.update(peer, addrs=addrs)
        assert book.get(peer).addrs == tuple(addrs[:4])

    @pytest.mark.parametrize("size", [MAX_BYTES, MAX_BYTES + 1])
    def test_protocols_at_the_limit_and_one_past_it(self, size: int) -> None:
        book, peer = PeerBook(), Identity.generate().peer_id
        book.update(peer, protocols=["/a", "x" * (size - 2)])
        assert len(book.get(peer).protocols) == (2 if size == MAX_BYTES else 1)

    def test_an_agent_is_cut(self) -> None:
        book, peer = PeerBook(), Identity.generate().peer_id
        assert len(book.update(peer, agent="x" * (MAX_AGENT + 1)).agent) == MAX_AGENT

    def test_peers_that_speak_the_same_share_one_tuple(self) -> None:
        book = PeerBook()
        first, second = (
            book.update(Identity.generate().peer_id, protocols=["/a", "/b"]).protocols for _ in range(2)
        )
        assert first is second

    def test_what_is_shared_is_bounded(self) -> None:
        book = PeerBook()
        for number in range(MAX_SHARED + 1):
            book.shared([f"/{number}"])
        assert len(book._shared) == MAX_SHARED
