"""The NAT machine against RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP), kind by kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flare.lab.kinds import KINDS
from flare.lab.nat import Dependence, Nat, NatConfig, Side, Unsolicited
from flare.lab.packet import (
    ACK,
    ECHO_REQUEST,
    RST,
    SYN,
    TIME_EXCEEDED,
    UNREACHABLE,
    Packet,
    icmp_error,
    icmp_packet,
    tcp_packet,
    udp_packet,
)
from flare.lab.ports import Block, Random, Sequential
from flare.lab.tracking import RstPolicy
from tests.lab.wire import (
    GATEWAY,
    HOST,
    OTHER_HOST,
    PEER,
    PEER_OTHER_PORT,
    PUBLIC,
    STRANGER,
    only,
    out,
    passes,
    public_port,
    router,
)

ONE_ROUTER = [name for name, k in KINDS.items() if len(k.routers) == 1 and k.routers[0].passes_udp]
TRANSPORTS = ["udp", "tcp"]


def first(transport: str, source: tuple[int, int], destination: tuple[int, int]) -> bytes:
    """The packet that opens a flow."""
    return (
        udp_packet(source, destination, b"x")
        if transport == "udp"
        else tcp_packet(source, destination, SYN, seq=1)
    )


def flags(transport: str) -> int | None:
    return None if transport == "udp" else SYN


class TestMapping:
    """RFC 4787 section 4.1, RFC 5382 section 4.1."""

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("kind", ONE_ROUTER)
    def test_port_per_remote(self, kind: str, transport: str) -> None:
        nat = router(kind)
        ports = [
            public_port(nat, first(transport, HOST, remote)) for remote in (PEER, PEER_OTHER_PORT, STRANGER)
        ]
        mapping = KINDS[kind].routers[0].mapping
        if mapping is Dependence.ENDPOINT_INDEPENDENT:
            assert ports == [HOST[1]] * 3, "one port for all, and the host's own"
        elif mapping is Dependence.ADDRESS_DEPENDENT:
            assert ports[0] == ports[1] != ports[2], "one port for each address"
        else:
            assert len(set(ports)) == 3, "a port for each remote endpoint"

    @pytest.mark.parametrize("kind", ONE_ROUTER)
    def test_a_flow_keeps_its_port(self, kind: str) -> None:
        nat = router(kind)
        assert len({public_port(nat, first("udp", HOST, PEER), now) for now in (0.0, 1.0, 20.0)}) == 1

    def test_two_hosts_on_one_port_do_not_share_it(self) -> None:
        nat = router("port")
        assert public_port(nat, first("udp", HOST, PEER)) == 4001
        other = public_port(nat, first("udp", OTHER_HOST, PEER))
        assert other != 4001
        answer = only(nat.from_outside(udp_packet(PEER, (PUBLIC, other), b"y"), 0.1), Side.INSIDE)
        assert (answer.dst, answer.dport) == OTHER_HOST

    def test_udp_and_tcp_are_apart(self) -> None:
        nat = router("full")
        public_port(nat, first("udp", HOST, PEER))
        assert not passes(nat, PEER, 4001, flags=SYN), "a UDP mapping opens nothing for TCP"


class TestFiltering:
    """RFC 4787 section 5, RFC 5382 section 4.3."""

    @pytest.mark.parametrize("transport", TRANSPORTS)
    @pytest.mark.parametrize("kind", ONE_ROUTER)
    def test_who_gets_in(self, kind: str, transport: str) -> None:
        nat = router(kind)
        port = public_port(nat, first(transport, HOST, PEER))
        got = tuple(
            passes(nat, who, port, flags=flags(transport)) for who in (PEER, PEER_OTHER_PORT, STRANGER)
        )
        filtering = KINDS[kind].routers[0].filtering
        assert (
            got
            == {
                Dependence.ENDPOINT_INDEPENDENT: (True, True, True),
                Dependence.ADDRESS_DEPENDENT: (True, True, False),
                Dependence.ADDRESS_AND_PORT_DEPENDENT: (True, False, False),
            }[filtering]
        )

    @pytest.mark.parametrize("kind", ONE_ROUTER)
    def test_nobody_before_the_host_has_spoken(self, kind: str) -> None:
        assert not passes(router(kind), PEER, 4001, flags=SYN)

    def test_an_opener_from_outside_may_be_answered(self) -> None:
        nat = router("full")
        public_port(nat, first("tcp", HOST, PEER))
        assert passes(nat, STRANGER, 4001, flags=SYN)
        answer = out(nat, tcp_packet(HOST, STRANGER, SYN | ACK, seq=5, ack=10))
        assert (answer.src, answer.sport) == (PUBLIC, 4001)

    def test_others_addresses_are_not_this_routers(self) -> None:
        nat = router("full")
        public_port(nat, first("udp", HOST, PEER))
        assert nat.from_outside(udp_packet(PEER, (PUBLIC + 1, 4001)), 0.0) == []
        assert nat.last_drop == "not for this router"


class TestUnsolicited:
    """RFC 5382 section 4.3: what a stranger's packet gets."""

    def test_drop(self) -> None:
        nat = router("port")
        assert nat.from_outside(first("tcp", PEER, (PUBLIC, 4001)), 0.0) == []
        assert nat.from_outside(first("udp", PEER, (PUBLIC, 4001)), 0.0) == []
        assert nat.dropped["unsolicited"] == 2

    @pytest.mark.parametrize("kind", ["port-rst", "port-acc"])
    def test_syn_is_reset(self, kind: str) -> None:
        reset = only(
            router(kind).from_outside(tcp_packet(PEER, (PUBLIC, 4001), SYN, seq=7), 0.0), Side.OUTSIDE
        )
        assert reset.flags == RST | ACK
        assert (reset.ack, reset.src, reset.dst, reset.dport) == (8, PUBLIC, *PEER)

    @pytest.mark.parametrize("kind", ["port-rst", "port-acc"])
    def test_a_reset_is_not_answered(self, kind: str) -> None:
        assert router(kind).from_outside(tcp_packet(PEER, (PUBLIC, 4001), RST, seq=7), 0.0) == []

    @pytest.mark.parametrize("kind", ["port-rst", "port-acc"])
    def test_datagram_is_unreachable(self, kind: str) -> None:
        error = only(router(kind).from_outside(udp_packet(PEER, (PUBLIC, 4001), b"x"), 0.0), Side.OUTSIDE)
        assert error.icmp_type == UNREACHABLE
        quote = error.embedded()
        assert quote is not None
        assert (quote.src, quote.sport) == PEER

    def test_accepting_costs_the_port_over_udp(self) -> None:
        """nat-lab note 1: the peer's datagram comes first, and takes our port for half a minute."""
        nat = router("port-acc")
        nat.from_outside(udp_packet(PEER, (PUBLIC, 4001), b"x"), 0.0)
        assert public_port(nat, udp_packet(HOST, PEER), 0.1) != 4001
        assert public_port(nat, udp_packet(HOST, STRANGER), 0.1) == 4001, "towards others nothing is taken"

    def test_the_port_is_free_again_after_the_timeout(self) -> None:
        nat = router("port-acc")
        nat.from_outside(udp_packet(PEER, (PUBLIC, 4001), b"x"), 0.0)
        assert public_port(nat, udp_packet(HOST, PEER), 30.0) == 4001

    def test_rejecting_costs_nothing(self) -> None:
        nat = router("port-rst")
        nat.from_outside(udp_packet(PEER, (PUBLIC, 4001), b"x"), 0.0)
        assert public_port(nat, udp_packet(HOST, PEER), 0.1) == 4001

    def test_accepting_costs_nothing_over_tcp(self) -> None:
        """The router's own RST is the first answer and removes the entry."""
        nat = router("port-acc")
        nat.from_outside(tcp_packet(PEER, (PUBLIC, 4001), SYN, seq=7), 0.0)
        assert public_port(nat, tcp_packet(HOST, PEER, SYN, seq=1), 0.1) == 4001


class TestAllocation:
    """RFC 4787 section 4.2."""

    def test_sequential(self) -> None:
        nat = router(NatConfig(Dependence.ADDRESS_AND_PORT_DEPENDENT, allocation=Sequential(30000, 2, 3)))
        ports = [public_port(nat, udp_packet(HOST, (PEER[0], port))) for port in (1, 2, 3)]
        assert ports == [30000, 30002, 30004]

    def test_random_stays_in_range_and_never_repeats(self) -> None:
        nat = router(NatConfig(Dependence.ADDRESS_AND_PORT_DEPENDENT, allocation=Random(40000, 40009)))
        ports = [public_port(nat, udp_packet(HOST, (PEER[0], port))) for port in range(10)]
        assert sorted(ports) == list(range(40000, 40010))

    def test_the_same_seed_gives_the_same_ports(self) -> None:
        ports = [public_port(router("sym", seed), udp_packet(HOST, PEER)) for seed in (1, 1, 2)]
        assert ports[0] == ports[1] != ports[2]

    @pytest.mark.parametrize("size", [1, 8])
    def test_a_block_runs_out(self, size: int) -> None:
        nat = router(NatConfig(Dependence.ADDRESS_AND_PORT_DEPENDENT, allocation=Block(40000, size)))
        for port in range(size):
            assert public_port(nat, udp_packet(HOST, (PEER[0], port))) == 40000 + port
        assert nat.from_inside(udp_packet(HOST, (PEER[0], 99)), 0.0) == []
        assert nat.last_drop == "ports exhausted"
        assert public_port(nat, udp_packet(HOST, (PEER[0], 99)), 30.0) == 40000, "free after the timeout"


class TestTimeouts:
    """RFC 4787 section 4.3, with Linux's values."""

    def test_an_unanswered_flow(self) -> None:
        nat = router("sym")
        port = public_port(nat, udp_packet(HOST, PEER))
        assert passes(nat, PEER, port, 29.99)
        nat = router("sym")
        port = public_port(nat, udp_packet(HOST, PEER))
        assert not passes(nat, PEER, port, 30.0)

    def test_an_answered_flow_lives_longer(self) -> None:
        nat = router("sym")
        port = public_port(nat, udp_packet(HOST, PEER))
        assert passes(nat, PEER, port, 3.0)
        assert passes(nat, PEER, port, 122.99)
        nat.expire(122.99 + 120.0)
        assert not passes(nat, PEER, port, 122.99 + 120.0)

    def test_a_cone_remembers_whom_it_spoke_to(self) -> None:
        nat = router("addr")
        public_port(nat, tcp_packet(HOST, PEER, SYN, seq=1))
        nat.from_outside(tcp_packet(PEER, (PUBLIC, 4001), RST | ACK, ack=2), 0.1)
        assert passes(nat, PEER_OTHER_PORT, 4001, 0.2, flags=SYN)
        nat.expire(301.0)
        assert not passes(nat, PEER_OTHER_PORT, 4001, 301.0, flags=SYN)


class TestTcp:
    """RFC 5382 section 4: what a punch meets."""

    def test_simultaneous_open(self) -> None:
        nat = router("port")
        out(nat, tcp_packet(HOST, PEER, SYN, seq=1))
        assert passes(nat, PEER, 4001, flags=SYN)
        out(nat, tcp_packet(HOST, PEER, SYN | ACK, seq=1, ack=10))
        assert passes(nat, PEER, 4001, flags=SYN | ACK)
        out(nat, tcp_packet(HOST, PEER, ACK, seq=2, ack=10))
        assert passes(nat, PEER, 4001, flags=ACK)

    def test_a_refused_syn_closes_its_hole(self) -> None:
        nat = router("port")
        out(nat, tcp_packet(HOST, PEER, SYN, seq=1))
        reset = tcp_packet(PEER, (PUBLIC, 4001), RST | ACK, ack=2)
        assert only(nat.from_outside(reset, 0.1), Side.INSIDE).flags == RST | ACK, "the host learns of it"
        assert not passes(nat, PEER, 4001, 0.2, flags=SYN)
        assert public_port(nat, tcp_packet(HOST, PEER, SYN, seq=5), 0.3) == 4001
        assert passes(nat, PEER, 4001, 0.4, flags=SYN)

    def test_symmetric_changes_the_port_after_a_refusal(self) -> None:
        nat = router("sym")
        port = public_port(nat, tcp_packet(HOST, PEER, SYN, seq=1))
        nat.from_outside(tcp_packet(PEER, (PUBLIC, port), RST | ACK, ack=2), 0.1)
        assert public_port(nat, tcp_packet(HOST, PEER, SYN, seq=5), 0.3) != port

    def test_late_reset_of_an_open_connection(self) -> None:
        nat = router("port")
        self.establish(nat)
        assert not passes(nat, PEER, 4001, 0.1, flags=RST), "out of its window: not translated"
        out(nat, tcp_packet(HOST, PEER, ACK, seq=2, ack=11))

    @pytest.mark.parametrize(
        ("policy", "open_after"),
        [(RstPolicy.TRACK, False), (RstPolicy.KILL, False), (RstPolicy.IGNORE, True)],
    )
    def test_reset_policies(self, policy: RstPolicy, open_after: bool) -> None:
        nat = router(replace(KINDS["port"].routers[0], rst=policy))
        self.establish(nat)
        reset = tcp_packet(PEER, (PUBLIC, 4001), RST, seq=10)
        assert only(nat.from_outside(reset, 0.1), Side.INSIDE).flags == RST
        assert passes(nat, PEER, 4001, 20.0, flags=ACK) is open_after

    def test_a_killing_router_forgets_the_mapping_too(self) -> None:
        nat = router(replace(KINDS["full"].routers[0], rst=RstPolicy.KILL))
        self.establish(nat)
        nat.from_outside(tcp_packet(PEER, (PUBLIC, 4001), RST, seq=10), 0.1)
        assert not passes(nat, STRANGER, 4001, 0.2, flags=SYN)

    def test_segments_of_no_connection(self) -> None:
        nat = router("port")
        for odd in (SYN | ACK, RST, 0):
            assert nat.from_inside(tcp_packet(HOST, PEER, odd, seq=1), 0.0) == []

    @staticmethod
    def establish(nat: Nat) -> None:
        out(nat, tcp_packet(HOST, PEER, SYN, seq=1))
        assert passes(nat, PEER, 4001, flags=SYN | ACK)
        out(nat, tcp_packet(HOST, PEER, ACK, seq=2, ack=10))


class TestHairpin:
    """RFC 4787 section 6."""

    def test_on(self) -> None:
        nat = router(replace(KINDS["full"].routers[0], hairpin=True))
        public_port(nat, udp_packet(HOST, PEER))
        got = only(nat.from_inside(udp_packet(OTHER_HOST, (PUBLIC, 4001), b"x"), 0.1), Side.INSIDE)
        assert (got.dst, got.dport) == HOST
        assert got.src == PUBLIC, "external source address and port"
        back = only(nat.from_inside(udp_packet(HOST, (PUBLIC, got.sport), b"y"), 0.2), Side.INSIDE)
        assert (back.dst, back.dport, back.src, back.sport) == (*OTHER_HOST, PUBLIC, 4001)

    def test_off(self) -> None:
        nat = router("full")
        public_port(nat, udp_packet(HOST, PEER))
        refused = only(nat.from_inside(udp_packet(OTHER_HOST, (PUBLIC, 4001), b"x"), 0.1), Side.INSIDE)
        assert refused.icmp_type == UNREACHABLE


class TestNoUdp:
    def test_only_tcp_passes(self) -> None:
        nat = router("noudp")
        assert nat.from_inside(udp_packet(HOST, PEER, b"x"), 0.0) == []
        assert nat.last_drop == "udp"
        assert public_port(nat, first("tcp", HOST, PEER)) == HOST[1]


class TestIcmp:
    """RFC 5508."""

    @pytest.mark.parametrize("kind", ["port", "sym"])
    def test_error_from_outside_reaches_the_host(self, kind: str) -> None:
        nat = router(kind)
        sent = out(nat, udp_packet(HOST, PEER, b"hello"))
        error = icmp_error(STRANGER[0], sent, TIME_EXCEEDED)
        assert error is not None
        got = only(nat.from_outside(error, 0.1), Side.INSIDE)
        quote = got.embedded()
        assert quote is not None
        assert (got.dst, quote.src, quote.sport) == (HOST[0], *HOST)

    @pytest.mark.parametrize("kind", ["port", "sym"])
    def test_error_from_the_host_reaches_the_peer(self, kind: str) -> None:
        nat = router(kind)
        port = public_port(nat, udp_packet(HOST, PEER))
        asked = only(nat.from_outside(udp_packet(PEER, (PUBLIC, port), b"x"), 0.1), Side.INSIDE)
        error = icmp_error(HOST[0], asked, UNREACHABLE, 3)
        assert error is not None
        got = out(nat, error, 0.2)
        quote = got.embedded()
        assert quote is not None
        assert (got.src, quote.dst, quote.dport) == (PUBLIC, PUBLIC, port)

    def test_error_about_nothing_is_dropped(self) -> None:
        nat = router("full")
        stray = Packet.parse(udp_packet((PUBLIC, 4001), PEER))
        assert stray is not None
        error = icmp_error(PEER[0], stray, UNREACHABLE, 3)
        assert error is not None
        assert nat.from_outside(error, 0.0) == []

    def test_echo(self) -> None:
        nat = router("sym")
        asked = out(nat, icmp_packet(HOST[0], PEER[0], ECHO_REQUEST, 0, b"\0\7\0\1", b"data"))
        assert asked.sport != 7, "the identifier is the port of ICMP"
        reply = icmp_packet(PEER[0], PUBLIC, 0, 0, asked.sport.to_bytes(2, "big") + b"\0\1", b"data")
        got = only(nat.from_outside(reply, 0.1), Side.INSIDE)
        assert (got.dst, got.dport) == (HOST[0], 7)

    def test_the_router_answers_echo_on_both_sides(self) -> None:
        nat = router("port")
        ask = b"\0\7\0\1"
        assert (
            only(nat.from_outside(icmp_packet(PEER[0], PUBLIC, 8, 0, ask, b""), 0.0), Side.OUTSIDE).dst
            == PEER[0]
        )
        assert (
            only(nat.from_inside(icmp_packet(HOST[0], GATEWAY, 8, 0, ask, b""), 0.0), Side.INSIDE).dst
            == HOST[0]
        )


class TestTtl:
    """RFC 1812 section 5.3.1; low-TTL packets open a hole and die before the peer's NAT (nat-lab note 1)."""

    def test_two_passes_and_opens_one_dies(self) -> None:
        nat = router("port")
        assert out(nat, udp_packet(HOST, PEER, b"x", ttl=2)).ttl == 1
        assert passes(nat, PEER, 4001)
        nat = router("port")
        error = only(nat.from_inside(udp_packet(HOST, PEER, b"x", ttl=1), 0.0), Side.INSIDE)
        assert (error.icmp_type, error.src) == (TIME_EXCEEDED, GATEWAY)
        assert not passes(nat, PEER, 4001), "what dies here opens nothing"

    def test_inbound(self) -> None:
        nat = router("port")
        out(nat, udp_packet(HOST, PEER))
        error = only(nat.from_outside(udp_packet(PEER, (PUBLIC, 4001), b"x", ttl=1), 0.1), Side.OUTSIDE)
        assert error.icmp_type == TIME_EXCEEDED


def test_policies_can_be_combined() -> None:
    """Every mapping, filtering and policy together: the first flow goes out and its answer comes in."""
    for mapping in Dependence:
        for filtering in Dependence:
            for unsolicited in Unsolicited:
                nat = router(NatConfig(mapping, filtering, unsolicited=unsolicited))
                assert passes(nat, PEER, public_port(nat, udp_packet(HOST, PEER))), (
                    mapping,
                    filtering,
                    unsolicited,
                )
