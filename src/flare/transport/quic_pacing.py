"""When a QUIC connection may send next (RFC 9002, 7.7): aioquic's pacer, for a program that wakes up late.

aioquic's lets 16 datagrams out at once, however long the last ones are ago. A loop in Python has other things
to do, and its timers are a millisecond coarse: then these 16 are all that a wake-up sends, 20 kB, and the
congestion window stays empty on every path that is faster than that.
"""

from __future__ import annotations

from typing import Final

GAIN: Final = 1.25  # of the window's own rate, so that pacing is not what limits (RFC 9002, 7.7)
LATENESS: Final = 0.010  # seconds that a late wake-up makes up for
LEAST_BURST: Final = 16  # datagrams
MOST_BURST: Final = 256  # less than what a socket's buffer holds
GRANULARITY: Final = 0.001  # seconds: timers are no finer, and each datagram its own wake-up costs too much


class Pacer:
    """A bucket of datagrams that fills at GAIN times the congestion window in each round trip.

    It takes the place of aioquic's QuicPacketPacer, and has its methods.
    """

    __slots__ = ("_at", "_burst", "_credit", "_rate", "_size")

    def __init__(self, datagram_size: int) -> None:
        self._size = datagram_size
        self._rate = 0.0  # datagrams a second; 0: the round trip is not known yet, and nothing is paced
        self._burst = float(LEAST_BURST)
        self._credit = float(LEAST_BURST)
        self._at = 0.0

    def next_send_time(self, now: float) -> float | None:
        """When to ask again; None: a datagram may be sent now."""
        if not self._rate:
            return None
        self._fill(now)
        if self._credit >= 1:
            return None
        return now + max((1 - self._credit) / self._rate, GRANULARITY)

    def update_after_send(self, now: float) -> None:
        """A datagram was made."""
        self.spend(1, now)

    def allowed(self, now: float) -> int:
        """How many datagrams may be sent now."""
        if not self._rate:
            return MOST_BURST
        self._fill(now)
        return max(0, int(self._credit))

    def spend(self, datagrams: int, now: float) -> None:
        """So many were made."""
        if self._rate:
            self._fill(now)
            self._credit -= datagrams

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """The window (bytes) or the round trip (seconds) is another."""
        self._rate = GAIN * congestion_window / self._size / max(smoothed_rtt, 1e-6)
        window = congestion_window / self._size
        self._burst = min(max(self._rate * LATENESS, LEAST_BURST), MOST_BURST, max(window, 2))
        self._credit = min(self._credit, self._burst)

    def resize(self, datagram_size: int) -> None:
        """Datagrams have another size from now on; `update_rate` follows."""
        self._size = datagram_size

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._credit = min(self._credit + (now - self._at) * self._rate, self._burst)
            self._at = now
