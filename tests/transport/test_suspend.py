"""A machine that was suspended: two clocks that drift apart."""

from __future__ import annotations

import asyncio

from flare.transport.suspend import EVERY, GAP, SuspendWatch, _slept
from tests.support.linked import simulated


@simulated
async def test_it_is_told_once_with_how_long_it_was() -> None:
    slept = 100.0
    told: list[float] = []
    watch = SuspendWatch(told.append, slept=lambda: slept)
    watch.start()
    await asyncio.sleep(3 * EVERY + 0.1)
    assert told == []
    slept += 3600
    await asyncio.sleep(EVERY)
    assert told == [3600]
    slept += GAP
    await asyncio.sleep(3 * EVERY)
    assert told == [3600], "clocks that are set a little are no sleep"
    watch.close()
    watch.close()


def test_the_real_clocks_do_not_drift() -> None:
    first = _slept()
    assert abs(_slept() - first) < GAP
