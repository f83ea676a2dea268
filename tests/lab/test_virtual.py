"""flare.lab.virtual: time that passes only by timers."""

from __future__ import annotations

import asyncio
import time

import pytest

from flare.lab import virtual


def test_an_hour_takes_no_time() -> None:
    async def main() -> tuple[float, int]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - before, virtual.monotonic_ns()

    started = time.monotonic()
    elapsed, ns = virtual.run(main())
    assert time.monotonic() - started < 1.0
    assert elapsed == pytest.approx(3600, abs=1e-6)
    assert ns == pytest.approx(3600e9, abs=1e3)


def test_timers_fire_in_order_at_their_times() -> None:
    async def main() -> list[tuple[str, float]]:
        log: list[tuple[str, float]] = []
        start = virtual.unix()

        async def tick(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            log.append((name, round(virtual.unix() - start, 6)))

        async with asyncio.TaskGroup() as group:
            for name, delay in (("late", 2.5), ("early", 0.001), ("middle", 1.0)):
                group.create_task(tick(name, delay))
        return log

    assert virtual.run(main()) == [("early", 0.001), ("middle", 1.0), ("late", 2.5)]


def test_asyncio_timeout_runs_on_virtual_time() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await asyncio.sleep(2000)
        assert asyncio.get_running_loop().time() == pytest.approx(1000)

    virtual.run(main())


def test_a_program_that_can_never_go_on_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual.Deadlock):
        virtual.run(main())
