"""Relay copying for streams that are not both the engine's: a circuit with QUIC on a side (circuit-v2.md).

What flare._core.splice does without the GIL for two streams of links, two tasks do here, with the same
limits, buckets and results. A byte is read from one side only once there was room for the one before it on
the other, so that back-pressure runs from end to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from flare._core.shaper import Bucket
from flare._core.splice import SpliceResult
from flare.errors import NetworkError, StreamReset
from flare.transport.stream import CLOSED, Stream

PIECE: Final = 64 * 1024  # bytes read at once
_LOOK: Final = 1.0  # seconds after which a rate is looked at again


@dataclass(slots=True)
class _Way:
    """One direction."""

    source: Stream
    target: Stream
    limit: int
    carried: int = 0
    ended: bool = False  # its FIN went on
    lost: str = ""  # what became of its source, told perhaps before all was read from it


class Copying:
    """Two streams joined. The parameters are those of flare._core.splice.splice."""

    def __init__(
        self,
        a: Stream,
        b: Stream,
        *,
        limit_a_to_b: int = 0,
        limit_b_to_a: int = 0,
        deadline_ns: int = 0,
        buckets: Sequence[Bucket] = (),
        on_done: Callable[[SpliceResult], object] | None = None,
    ) -> None:
        self._ways = (_Way(a, b, limit_a_to_b), _Way(b, a, limit_b_to_a))
        self._buckets = tuple(buckets)
        self._on_done = on_done
        self._reason = ""
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if deadline_ns:
            left = (deadline_ns - time.monotonic_ns()) / 1e9
            self._timer = loop.call_later(max(0.0, left), self._finish, "deadline")
        for way in self._ways:
            way.source.core.on_event = partial(self._event, way, way.source.core.on_event)
        self._tasks = [loop.create_task(self._carry(way), name=f"circuit {way.source}") for way in self._ways]

    @property
    def bytes_a_to_b(self) -> int:
        """Carried so far."""
        return self._ways[0].carried

    @property
    def bytes_b_to_a(self) -> int:
        """Carried so far."""
        return self._ways[1].carried

    @property
    def done(self) -> bool:
        """It has ended."""
        return bool(self._reason)

    def cancel(self) -> None:
        """End it now: both streams are reset."""
        self._finish("cancelled")

    def _event(self, way: _Way, forward: Callable[[int], object] | None, flags: int) -> None:
        if forward is not None:
            forward(flags)
        if flags & CLOSED:
            way.lost = "reset" if way.source.core.is_reset else "link"
            if way.ended:  # else whoever reads it will see
                self._finish(way.lost)

    async def _carry(self, way: _Way) -> None:
        try:
            while data := await way.source.read(PIECE):
                if way.limit and way.carried + len(data) > way.limit:
                    await self._send(way, data[: way.limit - way.carried])
                    self._finish("limit")
                    return
                await self._send(way, data)
            way.ended = True
            await way.target.close_write()
            if way.lost:  # after its FIN, and before that was read
                self._finish(way.lost)
        except StreamReset:
            self._finish("reset")
        except NetworkError:
            self._finish("link")
        else:
            if all(other.ended for other in self._ways):
                self._finish("closed")

    async def _send(self, way: _Way, data: bytes) -> None:
        while data:
            n = min((bucket.turn for bucket in self._buckets), default=len(data))
            await self._pay(min(n, len(data)))
            await way.target.write(data[:n])
            way.carried += len(data[:n])
            data = data[n:]

    async def _pay(self, n: int) -> None:
        """Take tokens for n bytes, and wait until they are there; a rate that is raised counts meanwhile."""
        wait = max((bucket.spend(n) for bucket in self._buckets), default=0)
        due = time.monotonic_ns() + wait
        while wait > 0:
            await asyncio.sleep(min(wait / 1e9, _LOOK))
            owed = max(bucket.owed_ns for bucket in self._buckets)
            wait = min(due - time.monotonic_ns(), owed)

    def _finish(self, reason: str) -> None:
        if self._reason:
            return
        self._reason = reason
        if self._timer is not None:
            self._timer.cancel()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        for way in self._ways:
            # who has been told the end keeps what is on its way to it, whatever became of the other side
            if way.ended and reason in ("closed", "reset", "link"):
                way.target.close_now()
            else:
                way.target.reset()
        if self._on_done is not None:
            self._on_done(SpliceResult(reason, self.bytes_a_to_b, self.bytes_b_to_a))
