"""The tasks that a host's transports started, so that all can be ended: nothing outlives its owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("flare.transport")


class Tasks:
    """A set of running tasks. What one raises is logged: a task that can fail handles its own failures."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in a task of its own, until it ends or `cancel` is called."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """Cancel all and wait until they have ended."""
        while others := self._unfinished():
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def _unfinished(self) -> list[asyncio.Task[Any]]:
        # One that is done stays in the set until the loop calls _ended. Since 3.14 gather does not yield
        # for such: it must not be asked to wait for it again and again.
        return [task for task in self._running if not task.done() and task is not asyncio.current_task()]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` wholly, though the task is cancelled meanwhile: what cleans up is not left half done."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
