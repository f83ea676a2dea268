"""What can be told of the ports that our NAT will give us, and what that makes of a punch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping as Map
from collections.abc import Sequence
from typing import Any

import pytest

from flare.config import PunchConfig
from flare.errors import NetworkError
from flare.events import AddressesChanged, NatBehaviourChanged
from flare.nat.behaviour import Sight
from flare.nat.birthday import Search
from flare.nat.foresight import AGAIN, FAR, FRESH, PATIENCE, SAMPLES, Foresight, Plan
from flare.nat.observed import Mapping
from flare.nat.prediction import AHEAD, SEQUENCE, WINDOW, Part, Tellable
from flare.wire.messages import PunchHint
from flare.wire.multiaddr import Multiaddr, is_public
from tests.support.linked import ALICE, RELAY, linked, now, simulated

AT_RELAY = Multiaddr("/ip4/9.8.7.6/udp/4001/quic-v1")
AT_RELAY_TCP = Multiaddr("/ip4/9.8.7.6/tcp/4001")
OURS = "5.6.7.8"
LISTENING = Multiaddr("/ip4/0.0.0.0/udp/4001/quic-v1"), Multiaddr("/ip4/0.0.0.0/tcp/4001")
DOUBTFUL = Mapping("doubtful", "one observer saw another port")
DEPENDENT = Mapping("endpoint-dependent", "two observers saw two ports")
FINE = Mapping("endpoint-independent", "all saw one port")


class Nat:
    """A relay that sees fresh ports of ours as a NAT gives them."""

    def __init__(self, step: int = 1, first: int = 20000) -> None:
        self.next, self.step = first, step
        self.takes = 0.05
        self.looks: list[tuple[tuple[str, ...], int]] = []
        self.error: Exception | None = None

    async def __call__(
        self, peer: Any, addrs: Map[str, Multiaddr], samples: int
    ) -> Map[str, Sequence[Sight]]:
        assert peer == RELAY.peer_id
        self.looks.append((tuple(addrs), samples))
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return {
            name: [Sight(("9.8.7.6", 4001), n, (OURS, self._give())) for n in range(samples)]
            for name in addrs
        }

    def _give(self) -> int:
        port, self.next = self.next, (self.next + self.step - 1024) % 64512 + 1024
        return port


def scattered() -> Nat:
    return Nat(step=20011)


def foresight(nat: Nat, mapping: Mapping = DOUBTFUL, **values: Any) -> Foresight:
    return Foresight(
        **{
            "mapping": lambda: mapping,
            "listen_addrs": lambda: LISTENING,
            "look": nat,
            "addrs_of": lambda peer: (AT_RELAY, AT_RELAY_TCP),
            **values,
        }
    )


def relay_connection(**values: Any) -> Any:
    near, _ = linked(ALICE, RELAY)
    near.remote_addr = AT_RELAY
    for name, value in values.items():
        setattr(near, name, value)
    return near


class TestLooking:
    @simulated
    async def test_a_nat_that_counts_is_foretold_for_both_transports(self) -> None:
        nat = Nat()
        seen = foresight(nat)
        seen.met(relay_connection())
        await seen.ready()
        assert nat.looks == [(("quic-v1",), SAMPLES), (("tcp",), SAMPLES)], "few connections at once"
        upcoming = range(nat.next, nat.next + WINDOW)
        assert seen.addrs == (
            *(Multiaddr(f"/ip4/{OURS}/udp/{port}/quic-v1") for port in upcoming),
            *(Multiaddr(f"/ip4/{OURS}/tcp/{port}") for port in upcoming),
        )
        assert seen.hint(1) == PunchHint(1, 1, 256, 512, predicted=2 * WINDOW, port=upcoming[0], step=1)

    @simulated
    async def test_right_before_an_attempt_one_more_look_suffices(self) -> None:
        nat = Nat()
        seen = foresight(nat)
        seen.met(relay_connection())
        await seen.ready()
        await asyncio.sleep(FRESH)
        nat.next += 500  # others' flows
        await seen.ready()
        assert nat.looks[-1] == (("quic-v1", "tcp"), 1)
        assert seen.addrs[0].port == nat.next

    @pytest.mark.parametrize(("moved", "believed"), [(FAR, True), (FAR + 1, False), (-50, False)])
    @simulated
    async def test_one_that_is_somewhere_else_is_looked_at_again(self, moved: int, believed: bool) -> None:
        nat = Nat()
        seen = foresight(nat, addrs_of=lambda peer: (AT_RELAY,))
        seen.met(relay_connection())
        await seen.ready()
        nat.next += moved - 1
        await asyncio.sleep(FRESH)
        await seen.ready()
        assert bool(seen.addrs) is believed
        await asyncio.sleep(FRESH)
        await seen.ready()
        assert nat.looks[-1][1] == (1 if believed else SAMPLES)
        assert seen.addrs

    @simulated
    async def test_one_that_does_not_count_foretells_nothing_and_costs_punches_no_time(self) -> None:
        nat = scattered()
        seen = foresight(nat)
        seen.met(relay_connection())
        await seen.ready()
        assert seen.addrs == ()
        before = now()
        await seen.ready()
        assert (now(), len(nat.looks)) == (before, 2)
        await asyncio.sleep(AGAIN)
        seen.refresh()
        await seen.ready()
        assert len(nat.looks) == 4, "a network changes"

    @simulated
    async def test_many_punches_at_once_take_one_look(self) -> None:
        nat = Nat()
        seen = foresight(nat, addrs_of=lambda peer: (AT_RELAY,))
        seen.met(relay_connection())
        await seen.ready()
        await asyncio.sleep(FRESH)
        await asyncio.gather(*(seen.ready() for _ in range(20)))
        assert [samples for _, samples in nat.looks] == [SAMPLES, 1]
        await seen.ready()
        assert len(nat.looks) == 2, "that is not long ago"

    @simulated
    async def test_a_transport_that_only_the_next_relay_has(self) -> None:
        nat, told = Nat(), [AT_RELAY]
        seen = foresight(nat, addrs_of=lambda peer: told)
        seen.met(relay_connection())
        await seen.ready()
        told.append(AT_RELAY_TCP)
        await asyncio.sleep(FRESH)
        seen.met(relay_connection())
        await seen.ready()
        assert nat.looks[-1] == (("quic-v1", "tcp"), 1)
        assert {addr.transport for addr in seen.addrs} == {"quic-v1"}, "of the other one sight is not enough"

    @simulated
    async def test_in_another_network_it_looks_anew(self) -> None:
        here = list(LISTENING)
        nat = scattered()
        seen = foresight(nat, listen_addrs=lambda: here)
        seen.met(relay_connection())
        await seen.ready()
        here.append(Multiaddr("/ip4/10.0.0.7/tcp/4001"))
        nat.step = 1
        seen.met(relay_connection())
        await seen.ready()
        assert [samples for _, samples in nat.looks] == [SAMPLES] * 4
        assert seen.addrs

    @simulated
    async def test_a_slow_relay_holds_a_punch_up_for_a_second(self) -> None:
        nat = Nat()
        nat.takes = 100
        seen = foresight(nat)
        seen.met(relay_connection())
        await seen.ready()
        assert now() == pytest.approx(PATIENCE)
        assert seen.addrs == ()
        await seen.close()

    @simulated
    async def test_a_relay_that_fails_says_nothing(self) -> None:
        nat = Nat()
        nat.error = NetworkError("the relay is gone")
        seen = foresight(nat)
        seen.met(relay_connection())
        await seen.ready()
        assert seen.addrs == ()

    @pytest.mark.parametrize(
        ("mapping", "values", "connection"),
        [
            (FINE, {}, {}),
            (DOUBTFUL, {"relay": lambda peer: False}, {}),
            (DOUBTFUL, {"listen_addrs": lambda: (Multiaddr("/ip6/::/udp/4001/quic-v1"),)}, {}),
            (DOUBTFUL, {}, {"remote_addr": Multiaddr("/ip6/2001:db8::1/udp/1/quic-v1")}),
        ],
        ids=["nothing to find out", "a stranger", "nothing listens on IPv4", "IPv6"],
    )
    @simulated
    async def test_when_nobody_is_asked(self, mapping: Mapping, values: Any, connection: Any) -> None:
        nat = Nat()
        seen = foresight(nat, mapping, **values)
        seen.met(relay_connection(**connection))
        await seen.ready()
        assert nat.looks == []
        assert seen.addrs == ()

    @simulated
    async def test_a_relay_cannot_make_an_ip_ours(self) -> None:
        """Else it would have our peers knock there."""
        nat = Nat()
        seen = foresight(nat, believed=lambda peer, ip: ip != OURS)
        seen.met(relay_connection())
        await seen.ready()
        assert len(nat.looks) == 2
        assert seen.addrs == ()
        assert seen.hint(1).port == 0

    @simulated
    async def test_only_addresses_of_the_ip_that_we_are_connected_to_are_asked(self) -> None:
        """Others may be anybody's."""
        elsewhere = Multiaddr("/ip4/7.7.7.7/tcp/1")
        nat = Nat()
        seen = foresight(nat, addrs_of=lambda peer: (elsewhere, AT_RELAY_TCP))
        seen.met(relay_connection(initiator=False))
        await seen.ready()
        assert [transports for transports, _ in nat.looks] == [("tcp",)]


class TestAutoNat:
    """Whoever looked thoroughly knows better."""

    @pytest.mark.parametrize(
        ("mapping", "tellable"),
        [
            ("none", Tellable.YES),
            ("endpoint-independent", Tellable.YES),
            ("address-dependent", Tellable.NO),
            ("address-and-port-dependent", Tellable.NO),
            ("endpoint-dependent", Tellable.NO),
            ("unknown", Tellable.DOUBTFUL),
        ],
    )
    def test_its_word_on_udp_counts(self, mapping: str, tellable: Tellable) -> None:
        seen = foresight(Nat(), DOUBTFUL)
        seen.hear(NatBehaviourChanged("udp", mapping, "", "", None, ""))
        assert seen.tellable is tellable
        assert seen.difficult, "of TCP it said nothing"

    def test_its_word_on_tcp_says_nothing_of_udp(self) -> None:
        seen = foresight(Nat(), FINE)
        seen.hear(NatBehaviourChanged("tcp", "address-dependent", "", "", None, ""))
        seen.hear(AddressesChanged(()))
        assert seen.tellable is Tellable.YES


class TestHint:
    @pytest.mark.parametrize(
        ("mapping", "tellable"),
        [(FINE, 0), (Mapping("none", ""), 0), (Mapping("unknown", ""), 0), (DOUBTFUL, 1), (DEPENDENT, 2)],
    )
    def test_what_is_told(self, mapping: Mapping, tellable: int) -> None:
        assert foresight(Nat(), mapping).hint(2) == PunchHint(tellable, 2, 256, 512, 0)

    def test_without_quic_there_is_no_search(self) -> None:
        hint = foresight(Nat(), DEPENDENT, listen_addrs=lambda: LISTENING[1:]).hint(1)
        assert (hint.sockets, hint.probes) == (0, 0)

    @pytest.mark.parametrize("limits", [PunchConfig(sockets=0, probes=0), PunchConfig(probe_rate=0)])
    def test_what_is_switched_off(self, limits: PunchConfig) -> None:
        hint = foresight(Nat(), DEPENDENT, limits=limits).hint(1)
        assert (hint.sockets, hint.probes) == (0, 0)


def agreed(mine: Mapping, theirs: Tellable, *, initiating: bool = True) -> Plan:
    plan = Plan(foresight(Nat(), mine), initiating=initiating, tells=True)
    hint = PunchHint(theirs, 1, 256, 512)
    if initiating:
        plan._ours = foresight(Nat(), mine).hint(1)
        plan.agreed(hint)
    else:
        plan.answer(hint)
    return plan


class TestPlan:
    QUIC = Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")

    def search(
        self, plan: Plan, *addrs: str | Multiaddr, own_ips: frozenset[str] = frozenset()
    ) -> Search | None:
        return plan.search([Multiaddr(a) for a in addrs], is_public=is_public, own_ips=own_ips)

    @pytest.mark.parametrize("initiating", [True, False])
    def test_whoever_has_the_difficult_nat_opens(self, initiating: bool) -> None:
        ours, theirs = agreed(DEPENDENT, Tellable.YES, initiating=initiating), agreed(FINE, Tellable.NO)
        assert self.search(ours, self.QUIC) == Search(Part.OPENS, ("1.2.3.4", 4001))
        assert self.search(theirs, self.QUIC) == Search(Part.PROBES, ("1.2.3.4", 4001))

    @pytest.mark.parametrize(
        "addr",
        [
            "/ip4/192.168.1.7/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/ip4/1.2.3.4/tcp/4001",
            "/ip6/2606:4700::1111/udp/4001/quic-v1",
        ],
    )
    def test_only_a_public_ipv4_address_for_quic_is_searched(self, addr: str) -> None:
        assert self.search(agreed(FINE, Tellable.NO), addr) is None

    def test_our_own_ip_is_not(self) -> None:
        plan = agreed(FINE, Tellable.NO)
        assert self.search(plan, self.QUIC, own_ips=frozenset({"1.2.3.4"})) is None

    def test_one_ip_however_many_are_told(self) -> None:
        found = self.search(agreed(FINE, Tellable.NO), self.QUIC, "/ip4/8.8.8.8/udp/1/quic-v1")
        assert found is not None
        assert found.remote[0] == "1.2.3.4"

    @pytest.mark.parametrize("initiating", [True, False])
    def test_two_sequences_meet(self, initiating: bool) -> None:
        plan = Plan(foresight(Nat()), initiating=initiating)
        b, a = PunchHint(1, 1, 256, 512, 6, 20000, 1), PunchHint(2, 1, 256, 512, 6, 30000, 2)
        plan._hints = b, a
        aims = tuple(range(20000, 20000 + SEQUENCE))
        if initiating:
            assert self.search(plan, self.QUIC) == Search(Part.OPENS, ("1.2.3.4", 30000 + 2 * AHEAD), aims)
        else:
            assert self.search(plan, self.QUIC) == Search(Part.PROBES, ("1.2.3.4", 4001), aims)

    def test_unless_one_ends_before(self) -> None:
        plan = Plan(foresight(Nat()))
        plan._hints = PunchHint(1, 1, 256, 512, 6, 20000, 1), PunchHint(2, 1, 256, 512, 6, 65530, 1)
        assert self.search(plan, self.QUIC) is None

    def test_with_nothing_to_search_for_there_is_none(self) -> None:
        assert self.search(agreed(FINE, Tellable.YES), self.QUIC) is None
        assert self.search(Plan(), self.QUIC) is None

    @simulated
    async def test_only_a_flare_is_told(self) -> None:
        assert await Plan(foresight(Nat()), tells=False).prepare(1) is None
        assert await Plan(foresight(Nat()), tells=True).prepare(2) == PunchHint(1, 2, 256, 512, 0)
        assert await Plan(tells=True).prepare(1) is None

    @simulated
    async def test_a_peer_that_tells_nothing_leaves_all_as_it_was(self) -> None:
        plan = Plan(foresight(Nat(), DEPENDENT), tells=True)
        await plan.prepare(1)
        plan.agreed(None)
        assert plan.worth(3)
        assert self.search(plan, self.QUIC) is None
        assert plan.hopeless == ""

    def test_two_random_nats_give_up_early_and_say_why(self) -> None:
        plan = agreed(DEPENDENT, Tellable.NO)
        assert not plan.worth(2)
        assert "54,000 probes" in plan.hopeless
        assert agreed(DOUBTFUL, Tellable.DOUBTFUL).worth(2)
        assert not agreed(DOUBTFUL, Tellable.DOUBTFUL).worth(3)
        assert agreed(FINE, Tellable.NO).hopeless == ""

    @simulated
    async def test_two_of_which_one_counts_say_that_it_did_not_come_true(self) -> None:
        seen = foresight(Nat())
        seen.met(relay_connection())
        plan = Plan(seen, tells=True)
        await plan.prepare(1)
        plan.agreed(PunchHint(Tellable.NO, 1, 256, 512))
        assert plan.worth(3)
        assert "did not meet" in plan.hopeless
