"""When this machine was suspended: the loop's clock stands still meanwhile, so that all timers are late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

EVERY: Final = 5.0  # seconds between two looks
GAP: Final = 2.0  # seconds that the clocks may drift apart in one of them


def _slept() -> float:
    """Seconds that grow only while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return (
        time.time() - time.monotonic()
    )  # jumps when the clock is set too, which costs a check of connections


class SuspendWatch:
    """Calls `on_resume` with the seconds that the machine was away, soon after it is back."""

    def __init__(self, on_resume: Callable[[float], None], *, slept: Callable[[], float] = _slept) -> None:
        self._on_resume = on_resume
        self._slept = slept
        self._seen = slept()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch from now on."""
        self._seen = self._slept()
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._look)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._look)
        before, self._seen = self._seen, self._slept()
        if self._seen - before > GAP:
            self._on_resume(self._seen - before)
