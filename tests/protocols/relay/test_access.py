"""Lists of peers and networks, and what counts as one address."""

from __future__ import annotations

import pytest

from flare.errors import UsageError
from flare.protocols.relay.access import AccessList, PeerList, parse_entry, prefix_of
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE, ALICE_ADDR, BOB, BOB_ADDR, CAROL


def at(ip: str) -> Multiaddr:
    return Multiaddr(f"/ip{6 if ':' in ip else 4}/{ip}/tcp/4001")


class TestPeerList:
    def test_by_id_and_by_network(self) -> None:
        peers = PeerList([str(ALICE.peer_id), "5.6.0.0/16", "2001:db8::/32", "192.0.2.7"])
        assert len(peers) == 4
        assert peers.lists(ALICE.peer_id, at("9.9.9.9"))
        assert peers.lists(BOB.peer_id, at("5.6.255.255"))
        assert not peers.lists(BOB.peer_id, at("5.7.0.0"))
        assert peers.lists(BOB.peer_id, at("2001:db8:ffff::1"))
        assert not peers.lists(BOB.peer_id, at("2001:db9::1"))
        assert peers.lists(BOB.peer_id, at("192.0.2.7"))
        assert not peers.lists(BOB.peer_id, at("192.0.2.8"))

    def test_everything_and_nothing(self) -> None:
        assert PeerList(["0.0.0.0/0"]).lists(BOB.peer_id, at("1.2.3.4"))
        assert not PeerList(["0.0.0.0/0"]).lists(BOB.peer_id, at("::1"))
        assert not PeerList().lists(BOB.peer_id, at("1.2.3.4"))

    def test_an_ipv4_address_inside_ipv6_is_ipv4(self) -> None:
        assert PeerList(["1.2.3.0/24"]).lists(BOB.peer_id, at("::ffff:1.2.3.4"))

    def test_an_address_without_an_ip_is_in_no_network(self) -> None:
        assert not PeerList(["0.0.0.0/0", "::/0"]).lists(BOB.peer_id, Multiaddr("/dns4/x.example/tcp/1"))

    def test_ids_and_networks_as_objects(self) -> None:
        peers = PeerList([BOB.peer_id, parse_entry("10.0.0.0/8")])
        assert peers.lists(BOB.peer_id, at("1.1.1.1"))
        assert peers.lists(ALICE.peer_id, at("10.1.1.1"))

    @pytest.mark.parametrize(
        ("entry", "what"),
        [
            ("12D3KooWnonsense", "neither a peer id nor a network"),
            ("10.0.0.1/8", "host bits set"),
            ("10.0.0.0/33", "neither a peer id nor a network"),
            ("300.0.0.1", "neither a peer id nor a network"),
            ("", "neither a peer id nor a network"),
        ],
    )
    def test_what_is_neither(self, entry: str, what: str) -> None:
        with pytest.raises(UsageError, match=what):
            PeerList([entry])


class TestAccessList:
    def test_empty_lists_allow_everybody(self) -> None:
        access = AccessList()
        assert access.allow_reserve(ALICE.peer_id, ALICE_ADDR)
        assert access.allow_connect(ALICE.peer_id, ALICE_ADDR, BOB.peer_id)

    def test_who_is_denied_is_whatever_else_is_said(self) -> None:
        access = AccessList(PeerList([ALICE.peer_id, BOB.peer_id]), PeerList([BOB.peer_id]))
        assert access.allow_reserve(ALICE.peer_id, ALICE_ADDR)
        assert not access.allow_reserve(BOB.peer_id, BOB_ADDR)
        assert not access.allow_reserve(CAROL.peer_id, BOB_ADDR), "not on the list of those allowed"
        assert not access.allow_connect(ALICE.peer_id, ALICE_ADDR, BOB.peer_id), "nor may it be called"
        assert access.allow_connect(ALICE.peer_id, ALICE_ADDR, CAROL.peer_id)

    def test_networks(self) -> None:
        access = AccessList(PeerList(["1.0.0.0/8"]), PeerList(["1.2.3.4/32"]))
        assert not access.allow_reserve(ALICE.peer_id, at("1.2.3.4"))
        assert access.allow_reserve(ALICE.peer_id, at("1.2.3.5"))
        assert not access.allow_reserve(ALICE.peer_id, at("2.2.3.5"))


@pytest.mark.parametrize(
    ("ip", "v4", "v6", "expected"),
    [
        ("192.0.2.77", 32, 64, "192.0.2.77"),
        ("192.0.2.77", 24, 64, "192.0.2.0/24"),
        ("192.0.2.77", 0, 64, "0.0.0.0/0"),
        ("2001:db8:1:2:3::4", 32, 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", 32, 48, "2001:db8:1::/48"),
        ("2001:db8:1:2:3::4", 32, 128, "2001:db8:1:2:3::4"),
        ("::ffff:192.0.2.77", 24, 64, "192.0.2.0/24"),
    ],
)
def test_what_counts_as_one(ip: str, v4: int, v6: int, expected: str) -> None:
    assert prefix_of(at(ip), v4, v6) == expected


def test_an_address_without_an_ip_counts_with_its_like() -> None:
    assert prefix_of(Multiaddr("/dns4/x.example/tcp/1"), 32, 64) == "nowhere"
