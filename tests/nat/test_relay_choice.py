"""Choosing relays: states, scores, slowness, rest, room. All pure; `now` is the test's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.config import AutoRelayConfig
from flare.nat.relay_candidate import (
    FAILURE,
    LIMITED,
    SAME_IP,
    SAME_NETWORK,
    STRANGER,
    TIGHT,
    UNMEASURED,
    Candidate,
    Leaving,
    State,
    Trouble,
    score,
)
from flare.nat.relay_choice import _TRANSITIONS, Decision, RelayChoice
from flare.wire.keys import Identity
from flare.wire.messages import Limit
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

CONFIG = AutoRelayConfig()
PEERS = [Identity.generate().peer_id for _ in range(70)]
A, B, C, D, E = PEERS[:5]


def at(number: int, net: int = 0) -> list[Multiaddr]:
    return [Multiaddr(f"/ip4/{net or number + 1}.{number + 1}.0.1/tcp/4001")]


def choice(config: AutoRelayConfig = CONFIG, *, share: float = 1.0) -> RelayChoice:
    """One whose chance is always `share` of the interval."""
    return RelayChoice(config, uniform=lambda low, high: low + share * (high - low))


def offered(
    *peers: PeerId, trusted: bool = True, config: AutoRelayConfig = CONFIG, share: float = 1.0
) -> RelayChoice:
    made = choice(config, share=share)
    for number, peer in enumerate(peers):
        made.offer(peer, at(number), "test", trusted=trusted, now=0)
    return made


def settled(made: RelayChoice, rtts: Sequence[tuple[PeerId, float]], now: float = 0) -> None:
    """Measure, then let it choose, and accept whom it asks."""
    for peer, rtt in rtts:
        made.measured(peer, rtt, now)
    for peer in made.decide(now).attempt:
        assert made.accepted(peer, None, now)


def held(made: RelayChoice) -> set[PeerId]:
    return {candidate.peer for candidate in made.held()}


def known(made: RelayChoice, peer: PeerId) -> Candidate:
    found = made.get(peer)
    assert found is not None
    return found


class TestChoosing:
    def test_two_are_asked_at_once_when_there_are_no_more(self) -> None:
        made = offered(A, B)
        decision = made.decide(0)
        assert set(decision.attempt) == {A, B}
        assert not decision.probe
        assert made.decide(0.1).attempt == (), "they are being asked"

    def test_with_a_choice_latency_is_measured_first(self) -> None:
        made = offered(A, B, C, D, E)
        first = made.decide(0)
        assert first.attempt == ()
        assert len(first.probe) == CONFIG.probes
        assert made.decide(0.1).attempt == (), "nothing before the probes are back"
        for peer, rtt in zip(first.probe, (0.3, 0.1, 0.2, None), strict=True):
            made.probed(peer, rtt, 0.5)
        assert set(made.decide(0.5).attempt) == {first.probe[1], first.probe[2]}

    def test_relays_of_our_own_are_not_measured_against_strangers(self) -> None:
        made = offered(A)
        for number, peer in enumerate(PEERS[1:5]):
            made.offer(peer, at(number + 1), "test", trusted=False, now=0)
        assert made.decide(0).attempt[0] == A

    def test_the_third_gives_way(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.5)])
        assert held(made) == {A, B}
        assert made.failed(A, Trouble.UNREACHABLE, 10)
        later = 10 + CONFIG.patience + CONFIG.spread
        assert made.decide(later).attempt == (C,)
        made.accepted(C, None, later)
        made.accepted(A, None, later)  # it is back at the same time
        decision = made.decide(later)
        assert [drop.peer for drop in decision.drop] == [C]
        assert held(made) == {A, B}

    def test_one_that_is_slow_to_answer_is_not_waited_for_alone(self) -> None:
        made = offered(A, B, C)
        for peer, rtt in ((A, 0.1), (B, 0.2), (C, 0.3)):
            made.measured(peer, rtt, 0)
        first = made.decide(0)
        assert set(first.attempt) == {A, B}
        assert first.wake <= CONFIG.try_patience
        made.accepted(A, None, 0)
        assert made.decide(CONFIG.try_patience - 0.1).attempt == ()
        assert made.decide(CONFIG.try_patience).attempt == (C,)


class TestScores:
    def cost(self, made: RelayChoice, peer: PeerId, now: float = 0, beside: Sequence[PeerId] = ()) -> float:
        return score(known(made, peer), now, [known(made, other) for other in beside])

    def test_latency(self) -> None:
        made = offered(A, B)
        made.measured(A, 0.04, 0)
        assert self.cost(made, A) == pytest.approx(0.04)
        assert self.cost(made, B) == UNMEASURED

    def test_strangers(self) -> None:
        assert self.cost(offered(A, trusted=False), A) == UNMEASURED + STRANGER

    @pytest.mark.parametrize(
        ("limit", "cost"),
        [
            (None, 0),
            (Limit(duration=120, data=128 * 1024), LIMITED),
            (Limit(duration=0, data=0), LIMITED),
            (Limit(duration=119, data=0), LIMITED + TIGHT),
            (Limit(duration=120, data=128 * 1024 - 1), LIMITED + TIGHT),
        ],
    )
    def test_limits(self, limit: Limit | None, cost: float) -> None:
        made = offered(A)
        made.decide(0)
        made.accepted(A, limit, 0)
        assert self.cost(made, A) == pytest.approx(UNMEASURED + cost)

    def test_failures_fade(self) -> None:
        made = offered(A)
        made.decide(0)
        made.failed(A, Trouble.UNREACHABLE, 0)
        assert self.cost(made, A) == pytest.approx(UNMEASURED + FAILURE)
        assert self.cost(made, A, 600) == pytest.approx(UNMEASURED + FAILURE / 2)

    def test_failures_count_up_to_a_bound(self) -> None:
        made = offered(A)
        for now in range(100):
            made.decide(now)
            made.accepted(A, None, now)
            made.failed(A, Trouble.UNREACHABLE, now)
        assert self.cost(made, A, 99) == pytest.approx(UNMEASURED + 8 * FAILURE)

    def test_what_would_die_together(self) -> None:
        made = choice()
        for peer, addr in ((A, "1.2.0.1"), (B, "1.2.0.1"), (C, "1.2.9.9"), (D, "1.3.0.1")):
            made.offer(peer, [Multiaddr(f"/ip4/{addr}/tcp/4001")], "test", trusted=True, now=0)
        assert self.cost(made, B, beside=[A]) == UNMEASURED + SAME_IP
        assert self.cost(made, C, beside=[A]) == UNMEASURED + SAME_NETWORK
        assert self.cost(made, D, beside=[A]) == UNMEASURED
        assert self.cost(made, A, beside=[A]) == UNMEASURED
        for peer, rtt in ((A, 0.1), (B, 0.1), (C, 0.15), (D, 0.3)):
            made.measured(peer, rtt, 0)
        assert set(made.decide(0).attempt) == {A, C}


class TestLoss:
    def test_clients_of_a_lost_relay_are_spread_over_time(self) -> None:
        for share in (0.0, 0.5, 1.0):
            made = offered(A, B, C, share=share)
            settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
            made.failed(A, Trouble.UNREACHABLE, 100)
            due = 100 + CONFIG.patience + share * CONFIG.spread
            assert made.decide(due - 0.01).attempt == ()
            assert made.decide(100).wake <= due
            assert made.decide(due).attempt == (C,)

    def test_without_another_they_wait_less(self) -> None:
        made = offered(A, B, C, config=AutoRelayConfig(wanted=1))
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
        made.failed(A, Trouble.UNREACHABLE, 100)
        assert made.decide(100 + CONFIG.spread).attempt == (B,)

    def test_it_is_asked_on_until_another_is_held(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
        made.failed(A, Trouble.UNREACHABLE, 0)
        later = CONFIG.patience + CONFIG.spread
        assert made.decide(later).drop == ()
        made.accepted(C, None, later)
        assert [drop.peer for drop in made.decide(later).drop] == [A]
        assert known(made, A).state is State.KNOWN
        assert known(made, A).rest_until > 0

    def test_one_that_has_moved_is_asked_where_it_is_now(self) -> None:
        made = offered(A, config=AutoRelayConfig(wanted=1))
        settled(made, [(A, 0.1)])
        made.failed(A, Trouble.UNREACHABLE, 10)
        assert made.offer(A, at(9), "test", trusted=True, now=20)
        decision = made.decide(20)
        assert [drop.reason for drop in decision.drop] == ["it has moved"]
        assert decision.attempt == (A,)

    @pytest.mark.parametrize("why", [Leaving.DRAINS, Leaving.REFUSES])
    def test_one_that_is_left_is_held_until_there_is_another(self, why: Leaving) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
        made.leave(A, why, 10)
        assert made.decide(10).attempt == (), "its clients are spread too"
        decision = made.decide(10 + CONFIG.spread)
        assert decision.attempt == (C,)
        assert held(made) == {A, B}
        made.accepted(C, None, 16)
        assert [(drop.peer, drop.reason) for drop in made.decide(16).drop] == [(A, why.value)]

    def test_one_that_refreshes_again_after_a_refusal_is_kept(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
        made.leave(A, Leaving.REFUSES, 10)
        made.accepted(A, None, 11)
        assert made.decide(20).attempt == ()
        made.leave(A, Leaving.DRAINS, 30)
        made.accepted(A, None, 31)
        assert made.decide(40).attempt == (C,), "a relay that drains goes, whatever it grants"

    def test_strangers_that_fail_at_first_are_not_asked_on(self) -> None:
        made = offered(A, trusted=False)
        made.decide(0)
        made.failed(A, Trouble.UNREACHABLE, 1)
        assert [drop.peer for drop in made.decide(1).drop] == [A]
        assert made.decide(1 + CONFIG.rest_first).attempt == (A,)

    def test_our_own_that_fail_at_first_are_asked_on(self) -> None:
        made = offered(A)
        made.decide(0)
        made.failed(A, Trouble.UNREACHABLE, 1)
        assert made.decide(1).drop == ()
        assert known(made, A).state is State.LOST
        assert made.accepted(A, None, 2)

    def test_no_more_are_asked_on_in_vain_than_are_wanted(self) -> None:
        made = offered(*PEERS[:6])
        for now in range(200):
            for peer in (decision := made.decide(now)).probe:
                made.probed(peer, 0.1, now)
            for peer in decision.attempt:
                made.failed(peer, Trouble.UNREACHABLE, now)
            assert len([c for c in made.candidates if c.state is State.LOST]) <= 2 * CONFIG.wanted

    def test_rest_doubles_up_to_an_hour(self) -> None:
        made = offered(A, trusted=False)
        now, rests = 0.0, []
        for _ in range(12):
            made.decide(now)
            made.failed(A, Trouble.UNREACHABLE, now)
            made.decide(now)
            rests.append(known(made, A).rest_until - now)
            now += rests[-1]
            made.offer(A, at(0), "test", trusted=False, now=now)
        assert rests[:4] == [30, 60, 120, 240]
        assert max(rests) == CONFIG.rest_max

    @pytest.mark.parametrize(
        ("trouble", "rest"),
        [(Trouble.REFUSED, CONFIG.rest_refused), (Trouble.USELESS, CONFIG.rest_max)],
    )
    def test_how_long_others_rest(self, trouble: Trouble, rest: float) -> None:
        made = offered(A, trusted=False)
        made.decide(0)
        made.failed(A, trouble, 0)
        made.decide(0)
        assert known(made, A).rest_until == rest

    @pytest.mark.parametrize(
        ("trouble", "tried"),
        [(Trouble.UNREACHABLE, True), (Trouble.REFUSED, False), (Trouble.USELESS, False)],
    )
    def test_a_change_of_our_own_network_ends_the_rest_of_who_was_not_reached(
        self, trouble: Trouble, tried: bool
    ) -> None:
        made = offered(A, trusted=False)
        made.decide(0)
        made.failed(A, trouble, 0)
        assert made.decide(1).attempt == ()
        made.hurry(2)
        assert made.decide(2).attempt == ((A,) if tried else ())

    def test_a_change_of_our_own_network_ends_all_waits(self) -> None:
        made = offered(A, B, C, config=AutoRelayConfig(wanted=1))
        settled(made, [(A, 0.1), (B, 0.2), (C, 0.3)])
        made.failed(A, Trouble.UNREACHABLE, 10)
        made.hurry(11)
        assert made.decide(11).attempt == (B,)


class TestLatency:
    """A relay is left for a better one after a while, and not to and fro."""

    def slow(
        self, made: RelayChoice, start: float, seconds: float, rtts: dict[PeerId, float]
    ) -> float | None:
        """When within `seconds` it leaves a relay, with these latencies measured every 15 s."""
        now = start
        while now < start + seconds:
            for candidate in made.candidates:
                if candidate.state in (State.HELD, State.LEAVING) and candidate.peer in rtts:
                    made.measured(candidate.peer, rtts[candidate.peer], now)
            decision = made.decide(now)
            for peer in decision.probe:
                made.probed(peer, rtts[peer], now)
            for peer in decision.attempt:
                made.accepted(peer, None, now)
                return now
            now += 15
        return None

    def test_one_that_becomes_slow(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.05), (B, 0.05), (C, 0.06)])
        left = self.slow(made, 1000, 600, {A: 0.6, B: 0.05, C: 0.06})
        assert left is not None
        assert CONFIG.slow_for <= left - 1000 <= CONFIG.slow_for + 120
        assert [drop.reason for drop in made.decide(left).drop] == [Leaving.SLOW.value]
        assert held(made) == {B, C}

    @pytest.mark.parametrize(
        "other",
        [
            0.101,  # not by the factor
            0.3,
        ],
    )
    def test_not_for_one_that_is_hardly_better(self, other: float) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.05), (B, 0.05), (C, 0.06)])
        assert self.slow(made, 1000, 3600, {A: 0.2, B: 0.05, C: other}) is None

    def test_not_for_a_small_margin(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.005), (B, 0.005), (C, 0.006)])
        assert self.slow(made, 1000, 3600, {A: 0.1, B: 0.005, C: 0.006}) is None
        assert self.slow(made, 5000, 600, {A: 0.11, B: 0.005, C: 0.006}) is not None

    def test_not_for_a_stranger_that_is_a_little_nearer(self) -> None:
        made = offered(A, B)
        made.offer(C, at(5), "test", trusted=False, now=0)
        settled(made, [(A, 0.05), (B, 0.05)])
        assert self.slow(made, 100, 1500, {A: 0.5, B: 0.05, C: 0.02}) is None

    def test_a_bad_minute_is_forgiven(self) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.05), (B, 0.05), (C, 0.06)])
        for start in range(0, 3600, 120):
            assert self.slow(made, start, 30, {A: 0.9, B: 0.05, C: 0.06}) is None
            assert self.slow(made, start + 30, 90, {A: 0.05, B: 0.05, C: 0.06}) is None

    @given(st.lists(st.tuples(*[st.floats(0.01, 1.0)] * 3), min_size=20, max_size=20))
    def test_whatever_the_latencies_do_it_moves_at_most_once_in_a_while(
        self, rounds: list[tuple[float, float, float]]
    ) -> None:
        made = offered(A, B, C)
        settled(made, [(A, 0.05), (B, 0.05), (C, 0.06)])
        moves, now = [], 0.0
        for rtts, _ in itertools.product(rounds, range(4)):
            for peer, rtt in zip((A, B, C), rtts, strict=True):
                made.measured(peer, rtt, now)
            decision = made.decide(now)
            for peer in decision.probe:
                made.probed(peer, rtts[(A, B, C).index(peer)], now)
            for peer in decision.attempt:
                made.accepted(peer, None, now)
                moves.append(now)
            now += 15
        assert all(b - a >= CONFIG.settle for a, b in itertools.pairwise(moves))

    def test_a_far_relay_is_compared_with_those_that_came_later(self) -> None:
        made = offered(A, B)
        settled(made, [(A, 0.25), (B, 0.05)])
        assert made.decide(1).probe == ()
        made.offer(C, at(7), "test", trusted=True, now=2)
        assert made.decide(2).probe == (C,)
        made.probed(C, 0.02, 3)
        assert self.slow(made, 400, 300, {A: 0.25, B: 0.05, C: 0.02}) is not None
        assert held(made) == {A, B, C}

    def test_latency_is_smoothed(self) -> None:
        made = offered(A)
        made.measured(A, 0.1, 0)
        made.measured(A, 0.5, 1)
        assert known(made, A).rtt == pytest.approx(0.2)
        made.measured(A, 0.5, 1 + CONFIG.probe_fresh + 1)
        assert known(made, A).rtt == 0.5, "what was measured long ago says nothing"


class TestAsking:
    def test_sources_are_asked_at_first_and_later_and_later_while_nothing_is_new(self) -> None:
        made = choice()
        assert made.decide(0).ask
        assert not made.decide(0).ask, "they are being asked"
        asked = []
        now = 0.0
        made.asked(0)
        while now < 20_000:
            now = made.decide(now).wake
            if made.decide(now).ask:
                asked.append(now)
                made.asked(now)
        gaps = [round(b - a) for a, b in itertools.pairwise([0.0, *asked])]
        assert gaps[0] == 75  # the first round was in vain: twice 30 s, and a quarter by chance
        assert gaps[-1] == 2250

    def test_not_while_there_are_enough(self) -> None:
        made = offered(*PEERS[:6])
        assert not made.decide(0).ask

    def test_after_a_loss_soon(self) -> None:
        made = offered(A, B)
        settled(made, [(A, 0.1), (B, 0.1)])
        made.asked(0)
        made.asked(0)
        made.asked(0)
        made.failed(A, Trouble.UNREACHABLE, 10)
        assert made.decide(10 + CONFIG.patience + CONFIG.spread).ask


class TestRoom:
    def test_addresses_at_the_limit_and_one_past(self) -> None:
        made = choice()
        many = [Multiaddr(f"/ip4/1.2.3.4/tcp/{port}") for port in range(1, 10)]
        made.offer(A, many[:8], "test", trusted=True, now=0)
        assert len(known(made, A).addrs) == 8
        made.offer(B, many, "test", trusted=True, now=0)
        assert len(known(made, B).addrs) == CONFIG.max_addrs == 8

    def test_candidates_at_the_limit_and_one_past(self) -> None:
        made = offered(*PEERS[: CONFIG.max_candidates], trusted=False)
        assert len(made.candidates) == CONFIG.max_candidates
        assert not made.offer(PEERS[64], at(64), "test", trusted=False, now=0)
        assert len(made.candidates) == CONFIG.max_candidates
        assert made.offer(PEERS[64], at(64), "test", trusted=True, now=0), "our own have room"
        assert len(made.candidates) == CONFIG.max_candidates

    def test_our_own_have_no_room_beyond_it_either(self) -> None:
        made = offered(*PEERS[: CONFIG.max_candidates])
        assert not made.offer(PEERS[64], at(64), "test", trusted=True, now=0)

    def test_who_failed_makes_room(self) -> None:
        config = AutoRelayConfig(max_candidates=2)
        made = offered(A, B, trusted=False, config=config)
        for peer in made.decide(0).attempt:
            made.failed(peer, Trouble.UNREACHABLE, 0)
        made.decide(0)
        assert made.offer(C, at(3), "test", trusted=False, now=1)
        assert len(made.candidates) == 2

    def test_strangers_that_nobody_tells_of_are_forgotten(self) -> None:
        made = offered(A, B, trusted=False)
        settled(made, [(A, 0.1)])
        made.offer(C, at(2), "test", trusted=False, now=0)
        made.offer(D, at(3), "test", trusted=True, now=0)
        made.decide(CONFIG.forget)
        assert made.get(C) is not None
        made.decide(CONFIG.forget + 1)
        assert made.get(C) is None
        assert made.get(D) is not None
        assert held(made) == {A, B}, "those that are held are not"

    def test_a_stranger_does_not_redirect_us(self) -> None:
        made = offered(A)
        assert not made.offer(A, at(30), "test", trusted=False, now=0)
        assert known(made, A).addrs == tuple(at(0))

    def test_what_has_no_address_is_none(self) -> None:
        assert not choice().offer(A, [], "test", trusted=True, now=0)


class TestTable:
    def test_the_docstring_has_every_transition(self) -> None:
        from flare.nat import relay_choice

        text = relay_choice.__doc__ or ""
        for (event, before), after in _TRANSITIONS.items():
            lines = [line.split() for line in text.splitlines() if line.split()[:1] == [event]]
            assert any(after.name in line for line in lines), (event, before, after)

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.floats(0.01, 400)), max_size=60))
    def test_whatever_happens_it_goes_on(self, steps: list[tuple[int, int, float]]) -> None:
        """Never more is asked than wanted, nothing is dropped below what is wanted, and time goes on."""
        made = offered(A, B, C, D)
        now = 0.0
        for what, who, seconds in steps:
            peer = PEERS[who]
            now += seconds
            match what:
                case 0:
                    made.accepted(peer, None, now)
                case 1:
                    made.failed(peer, Trouble.UNREACHABLE, now)
                case 2:
                    made.failed(peer, Trouble.REFUSED, now)
                case 3:
                    made.failed(peer, Trouble.USELESS, now)
                case 4:
                    made.leave(peer, Leaving.DRAINS, now)
                case 5:
                    made.probed(peer, seconds / 400, now)
                case 6:
                    made.probed(peer, None, now)
                case 7:
                    made.measured(peer, seconds / 100, now)
                case 8:
                    made.hurry(now)
                case _:
                    made.asked(now)
            before = len(held(made))
            decision: Decision = made.decide(now)
            assert decision.wake > now
            assert len(decision.attempt) <= CONFIG.wanted
            assert len(held(made)) >= min(before, CONFIG.wanted)
