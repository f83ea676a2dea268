"""Events to whoever listens: callbacks at once, iterators through bounded queues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from .events import Event

logger = logging.getLogger("flare.host")

QUEUE = 4096  # events kept for an iterator that does not keep up; then the oldest go, and that is logged


class EventHub:
    """One host's events."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Event], None]] = []
        self._queues: list[asyncio.Queue[Event | None]] = []
        self._closed = False

    def emit(self, event: Event) -> None:
        """Tell everybody. A callback that raises is logged and costs nobody else anything."""
        for callback in tuple(self._callbacks):
            try:
                callback(event)
            except Exception:  # the edge: somebody else's code
                logger.exception("an event callback failed on %s", type(event).__name__)
        for queue in self._queues:
            if queue.qsize() >= QUEUE:
                queue.get_nowait()
                logger.warning(
                    "an events() iterator lags by more than %d events: the oldest are dropped", QUEUE
                )
            queue.put_nowait(event)

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call `callback` with each event from now on; returns how to stop that."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def iterate(self) -> AsyncIterator[Event]:
        """Every event from this call on, until the hub closes."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if self._closed:
            queue.put_nowait(None)
        else:
            self._queues.append(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[Event | None]) -> AsyncIterator[Event]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            if queue in self._queues:
                self._queues.remove(queue)

    def close(self) -> None:
        """End every iterator."""
        self._closed = True
        for queue in self._queues:
            queue.put_nowait(None)
