"""The router's clock: it counts the seconds since the router last knew of no mapping at all.

When it lags behind ours, the router has forgotten what it promised, and everything has to be asked for anew.
"""

from __future__ import annotations

from collections.abc import Callable


class RouterClock:
    """The epochs of one router's answers; `now` is our clock, in seconds.

    `two_sided` is PCP's rule (RFC 6887, 8.5), which minds a clock that has run ahead too, NAT-PMP's
    (RFC 6886, 3.6) one that lags.
    """

    def __init__(self, now: Callable[[], float], *, two_sided: bool) -> None:
        self._now = now
        self._two_sided = two_sided
        self._last: tuple[float, int] | None = None  # our clock, and the router's

    def forgot(self, epoch: int) -> bool:
        """Take in the epoch of an answer; whether the router lost its mappings since the last one."""
        now = self._now()
        last, self._last = self._last, (now, epoch)
        if last is None:
            return False
        ours, theirs = now - last[0], epoch - last[1]
        if self._two_sided:
            return theirs < -1 or ours + 2 < theirs * 15 / 16 or theirs + 2 < ours * 15 / 16
        return theirs + 2 < ours * 7 / 8
