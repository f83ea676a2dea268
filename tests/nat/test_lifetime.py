"""nat/lifetime.py: how samples become a bracket. What sockets do is seen by `flare lab reach --lifetime`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flare.nat.behaviour import Lifetime
from flare.nat.lifetime import ECHOES, STOPPED, Sample, judge, longest_pause, pauses


def alive(*idle: float) -> list[Sample]:
    return [Sample(seconds, True) for seconds in idle]


def gone(*idle: float) -> list[Sample]:
    return [Sample(seconds, False) for seconds in idle]


def test_nothing_is_known() -> None:
    assert judge([]) is None
    assert judge(gone(5, 10)) is None, "perhaps nothing ever came through"


def test_it_lives() -> None:
    assert judge(alive(15)) == Lifetime(15, None, 0.5)
    assert judge(alive(12.8, 15, 25, 110)) == Lifetime(110, None, 0.8)


def test_it_goes() -> None:
    assert judge([*alive(15, 25), *gone(55, 110)]) == Lifetime(25, 55, 0.8)


def test_one_that_differs_costs_confidence() -> None:
    assert judge([*alive(15, 25, 55), *gone(20)]) == Lifetime(55, None, 0.6)
    assert judge([*alive(5, 110), *gone(15, 25, 55)]) == Lifetime(5, 15, 0.67)


def test_it_is_rounded_outwards() -> None:
    assert judge([*alive(6.29), *gone(12.41)]) == Lifetime(6.2, 12.5, 0.67)


def test_pauses() -> None:
    doubling = [0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 25.5]
    assert longest_pause(doubling) == 12.8
    assert pauses(doubling, 29.4) == alive(12.8), "the next would come after the end"
    stopped = doubling[:6]
    (lived, died) = pauses(stopped, 29.4)
    assert lived.alive
    assert not died.alive
    assert abs(lived.idle - 3.2) < 1e-9
    assert abs(died.idle - STOPPED * 3.2) < 1e-9
    assert pauses([], 29.4) == []


def test_how_many_echoes_it_takes_to_stop() -> None:
    echoes = [0.1 * 2**n for n in range(ECHOES)]
    assert len(pauses(echoes, 29.4)) == 2
    assert len(pauses(echoes[:-1], 29.4)) == 1


def test_when_echoes_have_stopped() -> None:
    """STOPPED times the longest pause must be over."""
    echoes = [1.0, 2.0, 4.0]
    due = 4.0 + STOPPED * 2.0
    assert len(pauses(echoes, due)) == 2
    assert len(pauses(echoes, due - 0.01)) == 1


@given(st.lists(st.builds(Sample, st.floats(0.1, 300), st.booleans()), max_size=12))
def test_a_bracket_is_one(samples: list[Sample]) -> None:
    life = judge(samples)
    if life is None:
        return
    assert 0 < life.confidence < 1
    assert life.at_most is None or life.at_least <= life.at_most
    agreeing = sum(s.alive == (s.idle <= life.at_least + 0.1) for s in samples)
    assert agreeing >= sum(not s.alive for s in samples), "as many as with any other bracket"


@given(st.floats(1, 200), st.lists(st.floats(0.1, 300), min_size=1, max_size=12))
def test_true_samples_give_a_true_bracket(lifetime: float, idle: list[float]) -> None:
    life = judge([Sample(seconds, seconds < lifetime) for seconds in idle])
    if life is None:
        assert min(idle) >= lifetime
    else:
        assert life.at_least <= lifetime
        assert life.at_most is None or life.at_most >= lifetime
