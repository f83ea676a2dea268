"""Tasks: nothing outlives its owner, and ending them ends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from flare.transport.tasks import Tasks, to_the_end
from tests.support.aio import aio


class TestTasks:
    @aio
    async def test_cancel_ends_all_and_waits_for_them(self) -> None:
        tasks, ended = Tasks(), []

        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0.01)
                ended.append(1)

        for _ in range(3):
            tasks.start(work(), "work")
        await asyncio.sleep(0)
        await tasks.cancel()
        assert len(ended) == 3
        await asyncio.sleep(0)
        assert len(tasks) == 0

    @aio
    async def test_cancel_returns_when_a_task_is_done_and_the_loop_does_not_know_yet(self) -> None:
        """With Python 3.14 gather does not yield for tasks that are done: waiting for them never ended."""
        tasks = Tasks()

        async def work() -> None:
            return

        task = tasks.start(work(), "work")
        await task
        tasks._running.add(task)  # as if its callback were still to come
        async with asyncio.timeout(5):
            await tasks.cancel()

    @aio
    async def test_a_task_may_cancel_the_others(self) -> None:
        tasks = Tasks()
        other = tasks.start(asyncio.sleep(1000), "other")
        await tasks.start(tasks.cancel(), "closer")
        assert other.cancelled()

    @aio
    async def test_what_a_task_raises_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        tasks = Tasks()

        async def work() -> None:
            raise ZeroDivisionError

        with caplog.at_level(logging.ERROR):
            await asyncio.wait([tasks.start(work(), "the one that fails")])
            await asyncio.sleep(0)
        assert "the one that fails" in caplog.text


class TestToTheEnd:
    @aio
    async def test_who_is_cancelled_while_cleaning_up_has_cleaned_up(self) -> None:
        steps: list[str] = []
        begun = asyncio.Event()

        async def clean_up() -> None:
            steps.append("begun")
            begun.set()
            await asyncio.sleep(0.01)
            steps.append("done")

        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await to_the_end(clean_up())

        task = asyncio.get_running_loop().create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert steps == ["begun", "done"]
