"""1,000 clients of a restarted relay are back within 30 s, and never more at once than it can bear."""

from __future__ import annotations

from typing import Any

import pytest

from flare.lab.herd import CAPACITY, Outcome, Scenario, peak, run

QUARTER: dict[str, Any] = {
    "clients": 250,
    "sites": 250,
    "capacity": CAPACITY / 4,
}  # as much for each


def bearable(outcome: Outcome) -> None:
    """All are back in time, and the door was never crowded."""
    scenario = outcome.scenario
    assert outcome.back == scenario.clients
    assert outcome.last_back <= 30
    assert max(outcome.peak_rate.values()) < scenario.capacity / 2, "handshakes begun within a second"
    assert outcome.longest_queue < 0.2
    assert not outcome.refused, "none was turned away at the door or refused a place"


def test_the_only_relay_restarts() -> None:
    bearable(run(Scenario(relays=1, wanted=1, down=1, seed=7)))


@pytest.mark.parametrize("down", [0.0, 30.0, 240.0])
def test_whenever_it_is_back(down: float) -> None:
    bearable(run(Scenario(relays=1, wanted=1, down=down, seed=7, **QUARTER)))


def test_one_of_two_relays_restarts_and_nobody_is_without_one() -> None:
    outcome = run(Scenario(relays=2, wanted=2, down=5, seed=7, **QUARTER))
    bearable(outcome)
    assert outcome.without_any == 0


def test_the_others_bear_it_when_one_of_three_goes() -> None:
    outcome = run(Scenario(relays=3, wanted=1, down=60, seed=7, **QUARTER))
    bearable(outcome)
    assert outcome.without_any <= 10


def test_a_relay_that_drains_is_left_before_it_goes_and_without_a_herd() -> None:
    outcome = run(Scenario(relays=3, wanted=1, drain=25, seed=7, **QUARTER))
    bearable(outcome)
    assert outcome.without_any == 0


def test_its_machine_dies_without_a_word() -> None:
    bearable(run(Scenario(relays=1, wanted=1, down=30, silent=True, seed=7, **QUARTER)))


def test_a_seed_gives_the_same_again() -> None:
    small = Scenario(clients=50, relays=3, seed=3)
    assert run(small) == run(small)
    assert run(small) != run(Scenario(clients=50, relays=3, seed=4))


def test_without_the_spread_there_is_a_herd() -> None:
    """What the simulation is worth: it shows the herd that a short first wait makes."""
    outcome = run(Scenario(relays=1, wanted=1, down=0, first_wait=0.5, seed=7, **QUARTER))
    assert max(outcome.peak_rate.values()) > outcome.scenario.capacity


@pytest.mark.parametrize(
    ("times", "most"), [([], 0), ([1.0], 1), ([0.0, 0.99, 1.0], 2), ([2.0, 0.5, 0.6, 1.2], 3)]
)
def test_the_most_in_a_second(times: list[float], most: int) -> None:
    assert peak(times) == most
