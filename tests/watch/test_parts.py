"""Samples, talkers and words: what the status is made of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.protocols.relay.book import Circuit
from flare.watch import pulse, talkers, words
from flare.watch.pulse import Pulse
from flare.watch.talkers import Talkers, rates
from flare.watch.tally import Histogram
from flare.wire.keys import Identity
from tests.support.aio import aio

ALICE, BOB, CAROL = (Identity.generate().peer_id for _ in range(3))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestPulse:
    def beat(self, made: Pulse, clock: Clock, *seconds: float) -> None:
        for pause in seconds:
            clock.now += pause
            made._tick()

    @aio
    async def test_rates_lag_and_how_much_is_kept(self) -> None:
        clock, totals = Clock(), [0, 0]
        made = Pulse(lambda: (totals[0], totals[1]), clock)
        assert (made.rate().sent, made.lag, made.rates()) == (0.0, 0.0, [])
        made.start()
        made.stop()
        assert made.rate().sent == 0.0, "one sample is no rate"
        for _ in range(3):
            totals[0] += 500
            totals[1] += 1000
            self.beat(made, clock, 1.0)
            made.stop()
        assert (made.rate().received, made.rate().sent) == pytest.approx((500.0, 1000.0))
        assert made.lag == 0.0
        self.beat(made, clock, 3.0)
        made.stop()
        assert made.lag == pytest.approx(2.0), "the loop was away for three seconds instead of one"
        assert made.rate().sent == 0.0, "nothing moved since the sample before"
        for _ in range(int(pulse.RECENT) + 1):
            self.beat(made, clock, 1.0)
            made.stop()
        assert made.lag == 0.0, "forgotten after a while"
        for _ in range(pulse.KEPT + 5):
            self.beat(made, clock, 1.0)
            made.stop()
        assert len(made.rates()) == pulse.KEPT - 1

    @aio
    async def test_stopped_it_leaves_the_loop_alone(self) -> None:
        made = Pulse(lambda: (0, 0))
        made.start()
        made.stop()
        made.stop()
        await asyncio.sleep(0)
        assert len(made.samples) == 1


@dataclass
class Carrying:
    bytes_a_to_b: int = 0
    bytes_b_to_a: int = 0

    def cancel(self) -> None: ...


class TestTalkers:
    def test_each_circuit_counts_for_both_ends(self) -> None:
        made = Talkers(Clock())
        running: dict[Circuit, Any] = {
            Circuit(ALICE, BOB, 0.0): Carrying(100, 10),
            Circuit(CAROL, ALICE, 0.0): Carrying(5, 0),
        }
        made.ended(ALICE, BOB, 1000, 0)
        count = made.count(running)
        use = {use.peer: (use.sent, use.received, use.circuits) for use in count.peers}
        assert use == {ALICE: (1100, 15, 2), BOB: (10, 1100, 1), CAROL: (5, 0, 1)}
        assert count.open_bytes == 115

    def test_rates_run_on_when_a_circuit_ends(self) -> None:
        clock = Clock()
        made = Talkers(clock)
        circuit = Circuit(ALICE, BOB, 0.0)
        running: dict[Circuit, Any] = {circuit: Carrying(100, 0)}
        first = made.count(running)
        clock.now += 2
        made.ended(ALICE, BOB, 300, 0)
        by_peer, by_circuit = rates(made.count({}), first)
        assert {use.peer: rate for use, rate in by_peer.items()} == {ALICE: 100.0, BOB: 100.0}
        assert by_circuit == {}

    def test_a_base_is_neither_too_young_nor_too_old(self) -> None:
        clock = Clock()
        made = Talkers(clock)
        assert made.base(10.0) is None
        first = made.count({})
        made.keep(first)
        assert made.base(10.0) is None, "too young"
        clock.now += talkers.MIN_SPAN
        assert made.base(10.0) is first
        second = made.count({})
        made.keep(second)
        assert made.base(10.0) is first, "the second is too young"
        made.keep(made.count({}))
        clock.now += talkers.MIN_SPAN
        assert made.base(10.0) is second
        clock.now += 10.0
        assert made.base(10.0) is None, "too old"

    def test_memory_is_bounded_and_keeps_those_that_moved_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(talkers, "KEPT", 4)
        made = Talkers(Clock())
        running: dict[Circuit, Any] = {Circuit(BOB, CAROL, 0.0): Carrying(1, 1)}
        made.count(running)
        for size in range(1000, 1020):
            made.ended(ALICE, Identity.generate().peer_id, size, 0)
            assert len(made) <= 2 * (4 + 1)
        uses = {use.peer: use for use in made.count(running).peers}
        assert uses[ALICE].sent == sum(range(1000, 1020))
        assert (uses[BOB].circuits, uses[CAROL].circuits) == (1, 1), "open circuits are never forgotten"


class TestWords:
    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_999, "1.00 MB"),
            (5e17, "500 PB"),
        ],
    )
    def test_sizes(self, count: float, text: str) -> None:
        assert words.size(count) == text

    @given(st.floats(0, 1e18))
    def test_sizes_are_short(self, count: float) -> None:
        assert len(words.size(count)) <= 7 or count > 999e15

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 s"),
            (59.9, "59 s"),
            (60, "1 min 0 s"),
            (3_700, "1 h 1 min"),
            (90_000, "1 d 1 h"),
            (-1, "0 s"),
        ],
    )
    def test_spans(self, seconds: float, text: str) -> None:
        assert words.span(seconds) == text

    @given(st.text())
    def test_strangers_words_are_safe_and_short(self, text: str) -> None:
        shown = words.printable(text, 10)
        assert shown.isprintable()
        assert len(shown) <= 10

    def test_cut_only_past_the_limit(self) -> None:
        assert words.printable("x" * 10, 10) == "x" * 10
        assert words.printable("x" * 11, 10) == "x" * 9 + "…"


@given(st.lists(st.floats(0, 100)))
def test_histograms_are_cumulative(values: list[float]) -> None:
    made = Histogram((1.0, 10.0))
    for value in values:
        made.observe(value)
    assert made.cumulative() == [
        ("1.0", sum(value <= 1 for value in values)),
        ("10.0", sum(value <= 10 for value in values)),
        ("+Inf", len(values)),
    ]
    assert made.count == len(values)
