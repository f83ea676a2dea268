"""The router's clock (RFC 6887, 8.5; RFC 6886, 3.6)."""

from __future__ import annotations

import pytest

from flare.nat.port_mapping.router_clock import RouterClock


def forgot(*steps: tuple[float, int], two_sided: bool = True) -> list[bool]:
    """What each (our seconds, the router's) tells."""
    time = 0.0
    clock = RouterClock(lambda: time, two_sided=two_sided)
    said = []
    for at, epoch in steps:
        time = at
        said.append(clock.forgot(epoch))
    return said


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_first_word_tells_nothing(two_sided: bool) -> None:
    assert forgot((5.0, 10**9), two_sided=two_sided) == [False]


@pytest.mark.parametrize("two_sided", [True, False])
def test_clocks_that_run_together(two_sided: bool) -> None:
    assert forgot((0, 1000), (60, 1060), (3660, 4660), two_sided=two_sided) == [False] * 3


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_restart(two_sided: bool) -> None:
    assert forgot((0, 1000), (60, 3), (120, 63), two_sided=two_sided) == [False, True, False]


@pytest.mark.parametrize(("back", "is_restart"), [(1, False), (2, True)])
def test_8_5_one_second_back_is_rounding(back: int, is_restart: bool) -> None:
    assert forgot((0, 1000), (0.1, 1000 - back))[1] is is_restart


@pytest.mark.parametrize(("theirs", "is_restart"), [(148, False), (147, True), (172, False), (174, True)])
def test_8_5_a_sixteenth_and_two_seconds_of_drift(theirs: int, is_restart: bool) -> None:
    assert forgot((0, 0), (160, theirs))[1] is is_restart


@pytest.mark.parametrize(("theirs", "is_restart"), [(138, False), (137, True), (10**6, False)])
def test_3_6_an_eighth_and_two_seconds_and_only_behind(theirs: int, is_restart: bool) -> None:
    assert forgot((0, 0), (160, theirs), two_sided=False)[1] is is_restart
