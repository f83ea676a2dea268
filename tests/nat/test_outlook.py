"""The outlook agrees with physics (flare.lab.expect), and says what it does not know."""

from __future__ import annotations

import itertools

import pytest

from flare.lab.expect import expected
from flare.nat.behaviour import Allocation, Behaviour, Filtering, Mapping
from flare.nat.outlook import BEFORE_PEER, Before, Outcome, Peer, Way, before_us, meet, outlook
from flare.nat.reachability import Reachable

EI = Mapping.ENDPOINT_INDEPENDENT
APDM = Mapping.ADDRESS_AND_PORT_DEPENDENT
APD = Filtering.ADDRESS_AND_PORT_DEPENDENT
PUBLIC, PRIVATE, UNKNOWN = Reachable.PUBLIC, Reachable.PRIVATE, Reachable.UNKNOWN

# What AutoNat finds out before each kind of NAT of the lab (tests/lab/test_reachability.py)
FOUND = {
    "none": (Behaviour("tcp", Mapping.NONE), PUBLIC),
    "full": (Behaviour("tcp", EI, Filtering.ENDPOINT_INDEPENDENT, Allocation.PRESERVING), PUBLIC),
    "addr": (Behaviour("tcp", EI, Filtering.ADDRESS_DEPENDENT, Allocation.PRESERVING), PRIVATE),
    "port": (Behaviour("tcp", EI, APD, Allocation.PRESERVING), PRIVATE),
    "port-rst": (Behaviour("tcp", EI, APD, Allocation.PRESERVING), PRIVATE),
    "port-acc": (Behaviour("tcp", EI, APD, Allocation.PRESERVING), PRIVATE),
    "cgn": (Behaviour("tcp", EI, APD, Allocation.PRESERVING), PRIVATE),
    "sym": (Behaviour("tcp", APDM, APD, Allocation.RANDOM), PRIVATE),
    "sym-seq": (Behaviour("tcp", APDM, APD, Allocation.SEQUENTIAL, 1), PRIVATE),
    "adm": (Behaviour("tcp", Mapping.ADDRESS_DEPENDENT, APD, Allocation.RANDOM), PRIVATE),
    "cgn-sym": (Behaviour("tcp", APDM, APD, Allocation.RANDOM), PRIVATE),
}
LAB = {
    Peer.NONE: "none",
    Peer.FULL_CONE: "full",
    Peer.ADDRESS_RESTRICTED: "addr",
    Peer.PORT_RESTRICTED: "port",
    Peer.SYMMETRIC_SEQUENTIAL: "sym-seq",
    Peer.SYMMETRIC_RANDOM: "sym",
}
TRANSPORTS = {"udp": "quic", "tcp": "tcp"}  # the lab's names


@pytest.mark.parametrize(("kind", "transport"), list(itertools.product(FOUND, TRANSPORTS)))
def test_every_kind_of_nat_has_the_outlook_that_physics_allows(kind: str, transport: str) -> None:
    behaviour, reachable = FOUND[kind]
    found = outlook({transport: before_us(behaviour, reachable)})
    for peer, theirs in LAB.items():
        right = expected(kind, theirs, TRANSPORTS[transport])
        way = found.best(peer)
        assert way is not Way.UNKNOWN
        if way is Way.RELAYED:
            assert "relayed" in right, f"{peer} gets through"
        else:
            assert "direct" in right, f"{peer} does not get through"
        if way is Way.DIRECTLY:
            assert right == {"direct"}, f"{peer} gets through by chance only"
        if right == {"direct"}:
            assert way in (Way.DIRECTLY, Way.PREDICTED)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("none", Outcome.PUBLIC),
        ("full", Outcome.PUBLIC),
        ("addr", Outcome.PUNCHED),
        ("port", Outcome.PUNCHED),
        ("cgn", Outcome.PUNCHED),
        ("sym-seq", Outcome.PUNCHED),
    ],
)
def test_the_verdict_of_a_kind(kind: str, outcome: Outcome) -> None:
    before = before_us(*FOUND[kind])
    assert outlook({"udp": before, "tcp": before}).outcome is outcome
    assert outlook({"tcp": before}).outcome is outcome


def test_a_symmetric_nat_with_random_ports_is_punched_over_udp_only() -> None:
    before = before_us(*FOUND["sym"])
    assert outlook({"udp": before, "tcp": before}).outcome is Outcome.PUNCHED
    assert outlook({"tcp": before}).outcome is Outcome.RELAYED


def test_the_table_is_the_same_in_either_order() -> None:
    for transport, ours, theirs in itertools.product(TRANSPORTS, Before, Before):
        assert meet(ours, theirs, transport) is meet(theirs, ours, transport)


def test_every_kind_of_peer_is_in_the_table() -> None:
    assert set(BEFORE_PEER) == set(Peer)
    assert set(BEFORE_PEER.values()) == set(Before)


class TestWhatMayStandBeforeUs:
    def test_nothing_is_known(self) -> None:
        assert before_us(Behaviour()) == set(Before)
        assert before_us(Behaviour(), PRIVATE) == set(Before) - {Before.OPEN}
        assert before_us(Behaviour(), PUBLIC) == {Before.OPEN}

    def test_an_address_of_our_own_is_open_or_behind_a_firewall(self) -> None:
        none = Behaviour("tcp", Mapping.NONE)
        assert before_us(none) == {Before.OPEN, Before.PORT}
        assert before_us(none, PUBLIC) == {Before.OPEN}
        assert before_us(none, PRIVATE) == {Before.PORT}

    def test_filtering_without_mapping(self) -> None:
        """As seen from one relay with two ports, say."""
        assert before_us(Behaviour("tcp", filtering=APD)) == {Before.PORT, Before.SEQ, Before.SYM}

    def test_mapping_without_filtering(self) -> None:
        assert before_us(Behaviour("tcp", EI)) == {Before.OPEN, Before.ADDR, Before.PORT}
        assert before_us(Behaviour("tcp", EI), PRIVATE) == {Before.ADDR, Before.PORT}
        assert before_us(Behaviour("tcp", Mapping.ENDPOINT_DEPENDENT)) == {Before.SEQ, Before.SYM}

    def test_a_forwarded_port_is_open_whatever_the_nat_does_to_others(self) -> None:
        assert before_us(FOUND["port"][0], PUBLIC) == {Before.OPEN}

    def test_behind_a_full_cone_where_dials_fail_nothing_is_open(self) -> None:
        assert before_us(FOUND["full"][0], PRIVATE) == {Before.PORT}


class TestOutlook:
    def test_what_all_that_may_be_agree_on_is_known(self) -> None:
        found = outlook({"tcp": before_us(Behaviour(), PRIVATE)})
        assert found.best(Peer.NONE) is Way.DIRECTLY
        assert found.best(Peer.ADDRESS_RESTRICTED) is Way.DIRECTLY
        assert found.best(Peer.PORT_RESTRICTED) is Way.UNKNOWN
        assert found.outcome is Outcome.UNKNOWN

    def test_one_transport_that_is_known_is_enough(self) -> None:
        found = outlook({"udp": before_us(Behaviour()), "tcp": before_us(*FOUND["port"])})
        assert found.outcome is Outcome.PUNCHED
        assert found.best(Peer.PORT_RESTRICTED) is Way.DIRECTLY
        assert found.best(Peer.SYMMETRIC_RANDOM) is Way.UNKNOWN

    def test_the_better_transport_counts(self) -> None:
        found = outlook({"udp": before_us(*FOUND["sym"]), "tcp": before_us(*FOUND["full"])})
        assert found.outcome is Outcome.PUBLIC
        assert {found.best(peer) for peer in Peer} == {Way.DIRECTLY}
        assert found.over("udp", Peer.SYMMETRIC_RANDOM) is Way.RELAYED

    def test_nothing_to_go_by(self) -> None:
        found = outlook({})
        assert found.outcome is Outcome.UNKNOWN
        assert found.best(Peer.NONE) is Way.UNKNOWN
        assert found.over("udp", Peer.NONE) is None
