"""A sample a second of what is cheap to read: for rates, for the last two minutes, for how late the loop is.

One timer on the loop: that it fires late is itself what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

PERIOD: Final = 1.0  # seconds between samples
KEPT: Final = 121  # samples: two minutes of rates
RECENT: Final = 10.0  # seconds over which the worst lag counts


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals at `at` (monotonic seconds): bytes on the wire and CPU seconds of the process.

    `lag` is by how many seconds this sample came late.
    """

    at: float
    received: int
    sent: int
    cpu: float
    lag: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Between two samples: bytes per second on the wire, and the share of one core."""

    received: float
    sent: float
    cpu: float


class Pulse:
    """Samples once a second from `start` to `stop`. `read` gives the bytes received and sent so far."""

    def __init__(
        self, read: Callable[[], tuple[int, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Take the first sample now, and the others by the running loop."""
        self._due = self._clock()
        self._tick()

    def stop(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        now = self._clock()
        received, sent = self._read()
        self._samples.append(Sample(now, received, sent, time.process_time(), max(0.0, now - self._due)))
        self._due = now + PERIOD
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._tick)

    @property
    def samples(self) -> Sequence[Sample]:
        """The oldest first, at most KEPT."""
        return self._samples

    @property
    def lag(self) -> float:
        """The most seconds that the loop came late by in the last RECENT ones."""
        now = self._clock()
        recent = [sample.lag for sample in self._samples if now - sample.at <= RECENT]
        return max(recent, default=0.0)

    def rates(self) -> list[Rate]:
        """Second by second, the oldest first."""
        samples = list(self._samples)
        return [_between(a, b) for a, b in pairwise(samples)]

    def rate(self, seconds: float = 3.0) -> Rate:
        """Over the last `seconds`, or what there is of them."""
        if len(self._samples) < 2:
            return Rate(0.0, 0.0, 0.0)
        newest = self._samples[-1]
        span = [sample for sample in self._samples if newest.at - sample.at <= seconds + PERIOD / 2]
        oldest = span[0] if len(span) > 1 else self._samples[-2]
        return _between(oldest, newest)


def _between(a: Sample, b: Sample) -> Rate:
    seconds = max(b.at - a.at, 1e-9)
    return Rate(
        max(0, b.received - a.received) / seconds,
        max(0, b.sent - a.sent) / seconds,
        max(0.0, b.cpu - a.cpu) / seconds,
    )
