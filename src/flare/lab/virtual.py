"""Virtual time: an asyncio loop whose clock jumps to the next timer, so that an hour of back-off costs a
millisecond.

    from flare.lab import virtual
    virtual.run(main())                        # like asyncio.run
    loop.monotonic_ns(), loop.unix()           # the clocks to hand to what asks for one

Only timers make time pass. When nothing is ready and no timer is set, no event can come any more: that is a
deadlock of the program under test, and `Deadlock` says so instead of waiting for ever. Threads and foreign
sockets have no place in virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_750_000_000.0  # Unix seconds at virtual time 0


class Deadlock(RuntimeError):
    """Every task waits, and no timer is set that could wake one."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls its descriptors, and lets time pass instead of sleeping."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise Deadlock("every task waits, and no timer is set that could wake one")
        self._advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on virtual time, which starts at 0."""

    def __init__(self) -> None:
        self._now_ns = 0
        super().__init__(_JumpingSelector(self._advance))
        self._clock_resolution = 1e-9

    def _advance(self, seconds: float) -> None:
        self._now_ns += max(1, round(seconds * 1e9))

    def time(self) -> float:
        return self._now_ns / 1e9

    def monotonic_ns(self) -> int:
        """Virtual nanoseconds since the loop was made."""
        return self._now_ns

    def unix(self) -> float:
        """Virtual Unix seconds."""
        return EPOCH + self._now_ns / 1e9


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own; raises Deadlock when it can never end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def monotonic_ns() -> int:
    """The running VirtualLoop's clock in nanoseconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.monotonic_ns()


def unix() -> float:
    """The running VirtualLoop's Unix seconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.unix()
