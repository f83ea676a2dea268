"""The memory of all links together: what waits to be read, and what windows grow by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flare._core.engine import Engine
from flare._core.yamux import memory
from tests.support.mux import DATA, RST, SYN, WINDOW, Bare, Pair, drain, frame, run

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def test_what_waits_is_counted_and_forgotten_with_its_link(engine: Engine) -> None:
    before, _ = memory()
    pair = Pair(engine)
    near, far = pair.open()
    sent = near.write(bytes(100_000))
    run(engine)
    assert memory()[0] - before == far.readable == sent
    drain(far)
    run(engine)
    assert memory()[0] == before
    near.write(bytes(100_000))
    run(engine)
    pair.b.abort("test")
    del far
    run(engine)
    assert memory()[0] == before


def test_a_first_window_is_everybodys(engine: Engine) -> None:
    pair = Pair(engine, max_receive_all=1)
    near, far = pair.open()
    near.write(bytes(200 * KIB))
    run(engine)
    assert far.readable == 200 * KIB
    assert not pair.b.closed


def test_a_link_with_more_than_is_left_for_all_is_ended(engine: Engine) -> None:
    before, _ = memory()
    pair = Pair(engine, max_receive_all=before + MIB)
    kept = []
    for _ in range(2):
        near, far = pair.open()
        kept += [near, far]
        while near.write(bytes(64 * KIB)):
            run(engine, passes=1)
        run(engine)
    assert not pair.heard_b.closed, "half of all waits on it, and half is left"
    near, far = pair.open()
    near.write(bytes(64 * KIB))
    run(engine)
    assert pair.heard_b.closed
    del kept, near, far
    run(engine)
    assert memory()[0] == before


def test_windows_grow_into_what_is_left_and_give_it_back(engine: Engine) -> None:
    _, before = memory()
    pair = Pair(engine, max_growth_all=before + 4 * MIB)
    near, far = pair.open()
    for _ in range(400):
        near.write(bytes(64 * KIB))
        run(engine, passes=1)
        drain(far)
    grown = memory()[1] - before
    assert 0 < grown <= MIB, "a quarter of what is left, and no more"
    near.reset()
    run(engine)
    assert memory()[1] == before


@pytest.mark.parametrize("distance", [2, 8192, 1 << 20])
def test_ids_at_any_distance_are_found(distance: int) -> None:
    with Bare() as bare:
        ids = [1 + distance * n for n in range(200)]
        bare.say(*(frame(WINDOW, SYN, i) for i in ids))
        assert sorted(stream.id for stream in bare.heard.streams) == ids
        bare.say(*(frame(DATA, 0, i, i.to_bytes(4, "big")) for i in reversed(ids)))
        assert [stream.read(10) for stream in bare.heard.streams] == [i.to_bytes(4, "big") for i in ids]
        bare.say(*(frame(WINDOW, RST, i) for i in ids[::2]))
        assert [stream.is_reset for stream in bare.heard.streams] == [True, False] * 100
