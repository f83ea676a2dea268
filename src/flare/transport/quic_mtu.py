"""How large datagrams may be on a path: found out by probes, as RFC 8899 has it (DPLPMTUD).

A probe is a padded PING. One that is acknowledged shows that its size passes; one that is lost TRIES times,
that it does not. The largest size is tried first, since most paths carry it, and then halves of what is left.
"""

from __future__ import annotations

from typing import Final

TRIES: Final = 3  # a probe may be lost for other reasons (RFC 8899, 5.1.2: MAX_PROBES)
CLOSE_ENOUGH: Final = 20  # bytes: nothing is gained between sizes that are as close
PAUSE: Final = 5  # round trips between two probes: they must not fill a slow path
RAISE: Final = 600.0  # seconds until it is asked again whether more passes (5.1.1: PMTU_RAISE_TIMER)


class PathMtu:
    """The search for one path's size, between `base`, which every path carries, and `most`."""

    __slots__ = ("_base", "_candidate", "_failed", "_high", "_most", "_next", "_probing", "size")

    def __init__(self, base: int, most: int) -> None:
        self.size = self._base = base  # bytes of UDP payload that pass
        self._most = self._high = self._candidate = max(base, most)  # above _high nothing passes
        self._failed = 0
        self._probing = 0  # the size of the probe that is under way
        self._next = 0.0

    def limit(self, most: int) -> None:
        """The peer takes no more than `most` bytes (RFC 9000, 18.2: max_udp_payload_size)."""
        self._most = self._high = self._candidate = max(self._base, min(self._most, most))

    def probe(self, now: float, rtt: float) -> int | None:
        """The size of a probe to send now, or None."""
        if self._probing or now < self._next or self.size >= self._most:
            return None
        if self._candidate <= self.size:  # the last search is over, RAISE seconds ago
            self._high = self._candidate = self._most
        self._probing = self._candidate
        self._next = now + PAUSE * rtt
        return self._probing

    def passed(self, size: int, now: float) -> None:
        """The probe of `size` bytes was acknowledged."""
        if size == self._probing:
            self._probing = self._failed = 0
            self.size = size
            self._choose(now)

    def lost(self, size: int, now: float) -> None:
        """It was not."""
        if size == self._probing:
            self._probing = 0
            self._failed += 1
            if self._failed == TRIES:
                self._failed = 0
                self._high = size - 1
                self._choose(now)

    def begin_again(self) -> None:
        """The path is another, or swallows what once passed (RFC 8899, 4.3)."""
        self.size = self._base
        self._high = self._candidate = self._most
        self._failed = self._probing = 0

    def _choose(self, now: float) -> None:
        if self._high - self.size < CLOSE_ENOUGH:
            self._candidate = self.size
            self._next = now + RAISE
        else:
            self._candidate = (self.size + self._high + 1) // 2
