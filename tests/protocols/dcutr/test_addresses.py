"""Which addresses are offered and which are tried (DCUtR.md)."""

from __future__ import annotations

import pytest

from flare.protocols.dcutr.addresses import choose_targets, connect_message, port_doubt
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.wire.messages import HolePunch, HolePunchType, PunchHint
from flare.wire.multiaddr import Multiaddr, is_public
from tests.support.linked import ALICE, ALICE_ADDR, BOB, BOB_ADDR, RELAY, RELAY_ADDR

HOME = Multiaddr("/ip4/192.168.1.7/tcp/4001")


def chosen(*theirs: str | Multiaddr, ours: Multiaddr = BOB_ADDR) -> tuple[str, ...]:
    targets = choose_targets([Multiaddr(a) for a in theirs], [ours], ALICE.peer_id, is_public=is_public)
    return tuple(str(addr) for addr in targets.addrs)


class TestOffer:
    def test_circuits_and_repetitions_are_left_out(self) -> None:
        circuit = Multiaddr(f"{RELAY_ADDR}/p2p/{RELAY.peer_id}/p2p-circuit")
        assert connect_message([ALICE_ADDR, circuit, HOME, ALICE_ADDR]).obs_addrs == (ALICE_ADDR, HOME)

    def test_as_many_as_fit_into_4_kib(self) -> None:
        addrs = [Multiaddr(f"/ip4/1.1.1.1/tcp/{1000 + i}") for i in range(500)]
        message = connect_message(addrs)
        one = len(HolePunch(type=message.type, obs_addrs=(addrs[0],)).encode()) - len(
            HolePunch(type=message.type).encode()
        )
        assert MESSAGE_LIMIT - one < len(message.encode()) <= MESSAGE_LIMIT
        assert len(message.obs_addrs) > 300
        assert HolePunch.decode(message.encode()) == message

    def test_a_hint_takes_its_part_of_the_4_kib(self) -> None:
        addrs = [Multiaddr(f"/ip4/1.1.1.1/tcp/{1000 + i}") for i in range(500)]
        message = connect_message(addrs, PunchHint(2, 3, 256, 512, 12))
        assert message.hint is not None
        assert len(message.encode()) <= MESSAGE_LIMIT
        assert len(connect_message(addrs).obs_addrs) - 2 <= len(message.obs_addrs)

    def test_without_one_the_message_is_as_it_always_was(self) -> None:
        plain = HolePunch(type=HolePunchType.CONNECT, obs_addrs=(ALICE_ADDR,))
        assert connect_message([ALICE_ADDR]).encode() == plain.encode()


class TestTargets:
    def test_public_first_and_without_the_peers_id(self) -> None:
        assert chosen(HOME, f"{ALICE_ADDR}/p2p/{ALICE.peer_id}", ours=ALICE_ADDR) == (
            str(ALICE_ADDR),
            str(HOME),
        )

    def test_private_addresses_are_for_peers_that_can_be_in_our_network(self) -> None:
        assert chosen(ALICE_ADDR, HOME) == (str(ALICE_ADDR),), "another public IP: another network"
        assert chosen(ALICE_ADDR, HOME, ours=ALICE_ADDR) == (str(ALICE_ADDR), str(HOME)), "the same public IP"
        assert chosen(HOME) == (str(HOME),), "no public address is known of the peer"
        assert chosen(ALICE_ADDR, HOME, ours=HOME)[1:] == (str(HOME),), "none of ours is"

    @pytest.mark.parametrize(
        "addr",
        [
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/0.0.0.0/tcp/4001",
            "/ip4/224.0.0.1/tcp/4001",
            "/ip4/1.2.3.4/tcp/0",
            "/ip6/fe80::1/tcp/4001",
            "/dns4/example.com/tcp/4001",
            f"/ip4/1.2.3.4/tcp/4001/p2p/{BOB.peer_id}",
            f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY.peer_id}/p2p-circuit",
        ],
    )
    def test_addresses_that_lead_nowhere(self, addr: str) -> None:
        targets = choose_targets([Multiaddr(addr)], [], ALICE.peer_id, is_public=is_public)
        assert (targets.addrs, targets.unusable) == ((), 1)
        assert "no address that can be reached" in targets.sentence

    def test_other_transports_are_counted(self) -> None:
        quic = Multiaddr("/ip4/1.2.3.4/udp/1/quic-v1")
        ws = Multiaddr("/ip4/1.2.3.4/tcp/1/ws")
        targets = choose_targets([quic, ws, ALICE_ADDR], [], ALICE.peer_id, is_public=is_public)
        assert (targets.addrs, targets.other_transports) == ((ALICE_ADDR,), 2)

    def test_sixteen_are_tried_and_a_seventeenth_is_not(self) -> None:
        many = [f"/ip4/1.2.3.4/tcp/{port}" for port in range(1, 18)]
        assert chosen(*many[:16]) == tuple(many[:16])
        assert chosen(*many) == tuple(many[:16])

    def test_nothing_offered(self) -> None:
        assert (
            choose_targets([], [], ALICE.peer_id, is_public=is_public).sentence
            == "the peer offers no address"
        )


class TestPortDoubt:
    """A public port that is none of the peer's own points to a NAT that gives out ports (RFC 4787, 4.1)."""

    @pytest.mark.parametrize(
        ("addrs", "doubted"),
        [
            (["/ip4/10.0.0.1/tcp/4001", "/ip4/1.2.3.4/tcp/53210"], True),
            (["/ip4/10.0.0.1/tcp/4001", "/ip4/1.2.3.4/tcp/4001"], False),
            (["/ip4/10.0.0.1/tcp/4001", "/ip4/1.2.3.4/tcp/53210", "/ip4/1.2.3.4/tcp/4001"], False),
            (["/ip4/1.2.3.4/tcp/53210"], False),
            (["/ip4/10.0.0.1/tcp/4001"], False),
            (["/ip4/127.0.0.1/tcp/4001", "/ip4/1.2.3.4/tcp/53210"], False),
            (["/ip4/10.0.0.1/tcp/4001", "/ip4/1.2.3.4/udp/53210/quic-v1"], False),
            ([], False),
        ],
    )
    def test_it_is_said_of_those_peers_only(self, addrs: list[str], doubted: bool) -> None:
        said = port_doubt([Multiaddr(addr) for addr in addrs], is_public=is_public)
        assert ("endpoint-dependent mapping" in said) == doubted
        assert not doubted or ("4001" in said and "1.2.3.4/tcp/53210" in said)
