"""The size of a path, found by probes (RFC 8899)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.transport.quic_mtu import CLOSE_ENOUGH, PAUSE, RAISE, TRIES, PathMtu

BASE, MOST = 1200, 1452


def search(path: int, mtu: PathMtu | None = None, now: float = 0.0, steps: int = 200) -> tuple[PathMtu, int]:
    """A search on a path that carries `path` bytes; how many probes it took."""
    mtu = mtu or PathMtu(BASE, MOST)
    probes = 0
    for _ in range(steps):
        now += 1.0
        size = mtu.probe(now, 0.1)
        if size is not None:
            probes += 1
            (mtu.passed if size <= path else mtu.lost)(size, now)
    return mtu, probes


@pytest.mark.parametrize("path", [MOST, MOST + 1, 65_000])
def test_the_largest_is_tried_first(path: int) -> None:
    mtu, probes = search(path)
    assert (mtu.size, probes) == (MOST, 1)


@given(st.integers(BASE, MOST))
def test_any_path(path: int) -> None:
    mtu, probes = search(path)
    assert mtu.size <= path
    assert path - mtu.size < CLOSE_ENOUGH or path == MOST
    assert probes <= 8 * TRIES


def test_one_loss_says_nothing() -> None:
    mtu = PathMtu(BASE, MOST)
    for now in range(1, TRIES):
        assert mtu.probe(float(now), 0.1) == MOST
        mtu.lost(MOST, float(now))
    assert mtu.probe(float(TRIES), 0.1) == MOST
    mtu.passed(MOST, float(TRIES))
    assert mtu.size == MOST


def test_one_probe_at_a_time_and_not_too_often() -> None:
    mtu = PathMtu(BASE, MOST)
    assert mtu.probe(10.0, 0.1) == MOST
    assert mtu.probe(20.0, 0.1) is None
    mtu.lost(MOST, 20.0)
    assert mtu.probe(20.0, 0.1) == MOST
    mtu.lost(MOST, 20.1)
    assert mtu.probe(20.0 + PAUSE * 0.1 - 0.01, 0.1) is None
    assert mtu.probe(20.0 + PAUSE * 0.1, 0.1) == MOST


def test_it_is_asked_again_after_a_while() -> None:
    mtu, _ = search(1300)
    small = mtu.size
    assert mtu.probe(RAISE - 10, 0.1) is None
    mtu, probes = search(MOST, mtu, now=RAISE + 300, steps=3)
    assert (mtu.size, probes) == (MOST, 1)
    assert small < MOST


def test_a_path_that_swallows_what_once_passed() -> None:
    mtu, _ = search(MOST)
    mtu.begin_again()
    assert mtu.size == BASE
    mtu, _ = search(1300, mtu, now=1000.0)
    assert 1280 < mtu.size <= 1300


def test_a_late_word_of_an_earlier_search_counts_for_nothing() -> None:
    mtu = PathMtu(BASE, MOST)
    assert mtu.probe(1.0, 0.1) == MOST
    mtu.begin_again()
    mtu.passed(MOST, 1.5)
    assert mtu.size == BASE


@pytest.mark.parametrize(
    ("told", "size"), [(MOST + 1, MOST), (MOST, MOST), (1300, 1300), (1200, BASE), (500, BASE)]
)
def test_the_peer_has_a_limit_too(told: int, size: int) -> None:
    mtu = PathMtu(BASE, MOST)
    mtu.limit(told)
    assert search(65_000, mtu)[0].size == size


def test_no_search_where_there_is_nothing_to_find() -> None:
    assert search(65_000, PathMtu(BASE, BASE))[1] == 0
