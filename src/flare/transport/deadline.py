"""Waits with a limit and a name: `async with within(10, "the handshake")` raises TimedOut that has both."""

from __future__ import annotations

import asyncio
from types import TracebackType

from flare.errors import TimedOut


class within:
    """Bound the body to `seconds`, of which `spent` are over. `what` completes "... took longer than N s"."""

    __slots__ = ("_seconds", "_timeout", "_what")

    def __init__(self, seconds: float, what: str, spent: float = 0.0) -> None:
        self._seconds = seconds
        self._what = what
        self._timeout = asyncio.timeout(seconds - spent)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            if late is error:
                raise
            raise TimedOut(self._what, self._seconds) from None
