"""What a NAT will give next, and who searches for whom (flare.nat.prediction)."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.lab.nat import Dependence, Nat, NatConfig
from flare.lab.packet import address, udp_packet
from flare.lab.ports import PortAllocation, Random, Sequential
from flare.nat.behaviour import MAX_STEP, STRANGERS, Sight
from flare.nat.prediction import (
    AHEAD,
    HIGH,
    LOW,
    SEQUENCE,
    SHARED,
    WINDOW,
    Part,
    Tellable,
    attempts_worth,
    counting,
    forecast,
    meeting,
    misses,
    parts,
    random_ports,
    step_of,
    upcoming,
)
from flare.wire.messages import PunchHint

VANTAGE = ("9.8.7.6", 4001)
OPENS, PROBES, NOTHING = Part.OPENS, Part.PROBES, Part.NOTHING
YES, DOUBTFUL, NO = Tellable


def sights(*ports: int) -> list[Sight]:
    """Fresh local ports, seen as these."""
    return [Sight(VANTAGE, 1 + number, ("1.2.3.4", port)) for number, port in enumerate(ports)]


def hint(
    mapping: Tellable, attempt: int = 1, *, sockets: int = 256, probes: int = 512, predicted: int = 0
) -> PunchHint:
    return PunchHint(mapping, attempt, sockets, probes, predicted)


class TestStep:
    @given(
        st.integers(LOW, 60000),
        st.integers(1, MAX_STEP),
        st.lists(st.integers(1, STRANGERS), min_size=2, max_size=5),
    )
    def test_a_sequence_is_recognised_in_any_order_and_with_strangers_between(
        self, first: int, step: int, gaps: list[int]
    ) -> None:
        ports = [first, *(first + step * total for total in itertools.accumulate(gaps))]
        if 1 in gaps:
            assert step_of(sights(*ports)) == step
            assert step_of(sights(*reversed(ports))) == step

    @pytest.mark.parametrize(
        ("ports", "step"),
        [
            ((20000, 20001, 20002), 1),
            ((20000, 20002, 20004), 2),
            ((20000, 20000 + MAX_STEP, 20000 + 2 * MAX_STEP), MAX_STEP),
            ((20000, 20001 + MAX_STEP, 20002 + 2 * MAX_STEP), 0),  # a step longer than the longest
            ((20000, 20001, 20001 + STRANGERS), 1),
            ((20000, 20001, 20002 + STRANGERS), 0),  # one stranger more
            ((20000, 20002, 20005), 0),  # no multiple
            ((20000, 20001), 0),  # too few to tell
            ((20000, 20000, 20000), 0),
            ((), 0),
        ],
    )
    def test_at_the_limits(self, ports: tuple[int, ...], step: int) -> None:
        assert step_of(sights(*ports)) == step

    def test_ports_that_the_nat_keeps_are_no_sequence(self) -> None:
        assert step_of([Sight(VANTAGE, port, ("1.2.3.4", port)) for port in (5000, 5001, 5002)]) == 0

    @given(st.integers(0, 10_000))
    def test_chance_is_hardly_ever_taken_for_one(self, seed: int) -> None:
        """Three random ports within 128 of each other: one NAT in 30,000."""
        ports = random.Random(seed).sample(range(LOW, HIGH + 1), 3)
        assert step_of(sights(*ports)) == 0 or max(ports) - min(ports) <= 2 * MAX_STEP * STRANGERS


class TestForecast:
    @given(st.integers(LOW, HIGH), st.integers(1, MAX_STEP), st.integers(0, 20))
    def test_what_follows_is_real_ports_in_order(self, last: int, step: int, window: int) -> None:
        ports = upcoming(last, step, window)
        assert len(ports) <= window
        assert all(LOW <= port <= HIGH for port in ports)
        assert list(ports) == [last + step * n for n in range(1, len(ports) + 1)]
        assert len(ports) == window or last + step * (len(ports) + 1) > HIGH

    def test_two_transports_that_draw_from_one_sequence(self) -> None:
        found = forecast({"quic-v1": 1, "tcp": 1}, {"quic-v1": 20003, "tcp": 20007})
        assert found == {"quic-v1": (20008, 20009, 20010, 20011, 20012, 20013), "tcp": found["quic-v1"]}

    def test_and_two_that_do_not(self) -> None:
        found = forecast({"quic-v1": 2, "tcp": 1}, {"quic-v1": 20000, "tcp": 50000}, 2)
        assert found == {"quic-v1": (20002, 20004), "tcp": (50001, 50002)}

    @pytest.mark.parametrize(("apart", "shared"), [(SHARED, True), (SHARED + 1, False)])
    def test_how_far_apart_they_may_be(self, apart: int, shared: bool) -> None:
        found = forecast({"quic-v1": 1, "tcp": 0}, {"quic-v1": 20000, "tcp": 20000 + apart})
        assert found["quic-v1"][0] == 20001 + apart * shared
        assert "tcp" not in found

    def test_the_sequence_keeps_its_step(self) -> None:
        assert forecast({"quic-v1": 4}, {"quic-v1": 20000, "tcp": 20005}, 2) == {"quic-v1": (20012, 20016)}

    @given(st.integers(0, 3000), st.integers(1, 3), st.integers(0, WINDOW - 1))
    def test_it_comes_true_on_a_nat_that_counts(self, before: int, step: int, strangers: int) -> None:
        """Other flows between the look and the punch may be WINDOW - 1."""
        allocation = Sequential(start=20000, step=step, count=4000)
        ports = iter([20000 + n * step for n in range(before, before + 4 + strangers)])
        seen = [next(ports) for _ in range(3)]
        for _ in range(strangers):
            next(ports)
        assert allocation.step == step_of(sights(*seen)) == step
        assert next(ports) in upcoming(seen[-1], step)


def rendezvous(seed: int, allocation: PortAllocation, *, sockets: int, probes: int, rounds: int) -> bool:
    """A search on the lab's NATs, without a network: whether a packet of either came through to the other."""
    apd, chance = Dependence.ADDRESS_AND_PORT_DEPENDENT, random.Random(-seed - 1_000)
    opener, prober = address("1.2.3.4"), address("5.6.7.8")
    near = Nat(NatConfig(apd, apd, allocation=allocation), opener, address("10.1.0.1"), seed)
    far = Nat(NatConfig(), prober, address("10.2.0.1"), seed)
    home, away = address("10.1.0.2"), address("10.2.0.2")
    asked = random_ports(probes, chance)
    for port in asked:
        far.from_inside(udp_packet((away, 4001), (opener, port), b"probe"), 0.0)
    for number in range(sockets * rounds):
        for _, out in near.from_inside(udp_packet((home, 30000 + number), (prober, 4001), b"open"), 0.1):
            if far.from_outside(out, 0.1):
                return True
    return False


def two_sequences(opener_gave: int, prober_gave: int, *, steps: tuple[int, int] = (1, 1)) -> bool:
    """A meeting on the lab's NATs, which gave some ports to others since the two hints."""
    apd = Dependence.ADDRESS_AND_PORT_DEPENDENT
    ips, homes = (address("1.2.3.4"), address("5.6.7.8")), (address("10.1.0.2"), address("10.2.0.2"))
    near, far = (
        Nat(NatConfig(apd, apd, allocation=Sequential(step=step)), ip, address("10.9.0.1"))
        for ip, step in zip(ips, steps, strict=True)
    )
    hints = [replace(hint(NO), port=20000, step=step) for step in steps]
    for nat, home, gave in ((near, homes[0], opener_gave), (far, homes[1], prober_gave)):
        for number in range(gave):
            nat.from_inside(udp_packet((home, 1), (address("9.9.9.9"), 1 + number), b"x"), 0.0)
    met, aims = meeting(hints[0], hints[1])
    for port in aims:
        far.from_inside(udp_packet((homes[1], 4001), (ips[0], port), b"probe"), 0.1)
    for number in range(SEQUENCE):
        for _, out in near.from_inside(udp_packet((homes[0], 30000 + number), (ips[1], met), b"open"), 0.2):
            if far.from_outside(out, 0.2):
                return True
    return False


class TestMeeting:
    """Two sequences."""

    @given(st.integers(0, AHEAD), st.data(), st.integers(1, 3), st.integers(1, 3))
    @settings(max_examples=30)
    def test_they_meet_whatever_both_gave_to_others_up_to_a_sum(
        self, opener_gave: int, data: st.DataObject, one: int, other: int
    ) -> None:
        prober_gave = data.draw(st.integers(0, AHEAD - opener_gave))
        assert two_sequences(opener_gave, prober_gave, steps=(one, other))

    def test_and_past_it_do_not(self) -> None:
        assert two_sequences(AHEAD, 0)
        assert two_sequences(0, AHEAD)
        assert not two_sequences(AHEAD + 1, 0)
        assert not two_sequences(0, AHEAD + 1)

    @given(
        st.builds(PunchHint, *[st.integers(0, 2**32 - 1)] * 7),
        st.builds(PunchHint, *[st.integers(0, 2**32 - 1)] * 7),
    )
    def test_whatever_a_peer_says_ports_are_ports_and_few(self, one: PunchHint, other: PunchHint) -> None:
        met, aims = meeting(one, other)
        assert bool(met) is bool(aims)
        assert len(aims) in (0, SEQUENCE)
        assert all(LOW <= port <= HIGH for port in (met, *aims) if met)

    def test_who_counts_and_can_be_aimed_at_is_not_searched_for(self) -> None:
        counts = replace(hint(DOUBTFUL), port=20000, step=1)
        assert parts(counts, replace(counts, mapping=YES)) == (OPENS, PROBES)
        assert counting(counts, replace(counts, mapping=NO))
        assert not counting(counts, replace(counts, mapping=YES))
        assert not counting(counts, hint(NO))

    @pytest.mark.parametrize("attempt", [1, 2, 3])
    def test_both_take_turns(self, attempt: int) -> None:
        counts = replace(hint(NO, attempt), port=20000, step=1)
        assert parts(counts, counts) == ((PROBES, OPENS) if attempt == 2 else (OPENS, PROBES))


class TestChance:
    @given(st.integers(0, 2000), st.integers(0, 1000))
    def test_it_is_a_probability_that_falls_with_effort(self, sockets: int, probes: int) -> None:
        chance = misses(sockets, probes)
        assert 0 <= chance <= 1
        assert misses(sockets + 1, probes) <= chance
        assert misses(sockets, probes + 1) <= chance

    def test_the_figures_of_the_lab(self) -> None:
        """256 sockets: 174 probes for a half, 1,024 for 98.3 %; ours are 4 times 256, and 512."""
        assert misses(256, 174) == pytest.approx(0.5, abs=0.005)
        assert misses(256, 1024) == pytest.approx(0.017, abs=0.001)
        assert misses(1024, 512) < 0.0003

    @given(st.integers(0, 3000), st.integers(0, 99))
    def test_random_ports_are_different_ones_of_the_range(self, count: int, seed: int) -> None:
        ports = random_ports(count, random.Random(seed))
        assert len(set(ports)) == len(ports) == count
        assert all(LOW <= port <= HIGH for port in ports)

    @pytest.mark.parametrize("allocation", [Random(), Random(30000, 49999)], ids=["sym", "adm"])
    def test_on_the_labs_nats_it_works(self, allocation: PortAllocation) -> None:
        """Ten pairs of NATs; one in 3,000 fails."""
        assert all(rendezvous(seed, allocation, sockets=256, probes=512, rounds=4) for seed in range(10))

    def test_and_with_less_effort_about_as_often_as_foretold(self) -> None:
        """128 sockets and 256 probes: 40 %."""
        found = sum(rendezvous(seed, Random(), sockets=128, probes=256, rounds=1) for seed in range(60))
        assert found / 60 == pytest.approx(1 - misses(128, 256), abs=0.2)


class TestParts:
    """The table of the module."""

    @pytest.mark.parametrize(
        ("b", "a", "attempt", "expected"),
        [
            (NO, YES, 1, (OPENS, PROBES)),
            (DOUBTFUL, YES, 3, (OPENS, PROBES)),
            (YES, NO, 1, (PROBES, OPENS)),
            (YES, DOUBTFUL, 2, (PROBES, OPENS)),
            (NO, DOUBTFUL, 1, (OPENS, PROBES)),
            (DOUBTFUL, NO, 1, (PROBES, OPENS)),
            (DOUBTFUL, DOUBTFUL, 1, (OPENS, PROBES)),
            (DOUBTFUL, DOUBTFUL, 2, (PROBES, OPENS)),
            (DOUBTFUL, DOUBTFUL, 3, (NOTHING, NOTHING)),
            (NO, NO, 1, (NOTHING, NOTHING)),
            (YES, YES, 1, (NOTHING, NOTHING)),
        ],
    )
    def test_who_opens(self, b: Tellable, a: Tellable, attempt: int, expected: tuple[Part, Part]) -> None:
        assert parts(hint(b, attempt), hint(a, attempt)) == expected

    @given(
        st.sampled_from(Tellable), st.sampled_from(Tellable), st.integers(0, 5), st.booleans(), st.booleans()
    )
    def test_both_or_neither_and_never_the_same(
        self, b: Tellable, a: Tellable, attempt: int, opens: bool, probes: bool
    ) -> None:
        mine, theirs = parts(hint(b, attempt), hint(a, attempt, sockets=256 * opens, probes=512 * probes))
        assert (mine is NOTHING) is (theirs is NOTHING)
        assert mine is NOTHING or mine is not theirs
        assert theirs is not OPENS or opens
        assert theirs is not PROBES or probes

    @pytest.mark.parametrize("value", [2, 3, 2**32 - 1])
    def test_what_a_later_flare_may_say(self, value: int) -> None:
        assert Tellable.of(value) is NO

    @pytest.mark.parametrize(
        ("b", "a", "worth"),
        [
            (hint(YES), hint(NO), 3),
            (hint(DOUBTFUL), hint(NO), 3),
            (hint(NO), hint(NO), 1),
            (hint(DOUBTFUL), hint(DOUBTFUL), 2),
            (hint(DOUBTFUL, predicted=6), hint(DOUBTFUL), 3),
            (hint(NO), hint(NO, predicted=6), 3),
            (hint(NO, sockets=0), hint(NO), 3),  # no UDP: then TCP's attempts are as they were
            (hint(DOUBTFUL), hint(DOUBTFUL, probes=0), 3),
        ],
    )
    def test_attempts_that_try_something_new(self, b: PunchHint, a: PunchHint, worth: int) -> None:
        assert attempts_worth(b, a, 3) == worth
        assert attempts_worth(b, a, 1) == 1
