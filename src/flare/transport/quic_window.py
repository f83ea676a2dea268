"""How far a QUIC peer may send before somebody reads (RFC 9000, 4.1 and 4.2)."""

from __future__ import annotations


class Window:
    """A receive window: it opens when half was read, and doubles when that took less than two round trips."""

    __slots__ = ("at", "consumed", "most", "size")

    def __init__(self, size: int, most: int) -> None:
        self.size, self.most = size, max(size, most)
        self.consumed = 0
        self.at = 0.0

    def limit(self, allowed: int, now: float, rtt: float) -> int:
        """How far the peer may send, where it may send as far as `allowed` now."""
        if allowed - self.consumed > self.size // 2:
            return allowed
        if now - self.at < 2 * rtt:
            self.size = min(2 * self.size, self.most)
        self.at = now
        return self.consumed + self.size
