"""What a peer may do on one connection that is of no use to anybody: so much at once, and so much a second.

Each fault has a price: a stream that was never agreed on, one past a limit, a request that was refused, and
a little for the questions that we answer ourselves. Honest peers pay a handful in a connection's life.
Whoever spends more is cut off, and fewer newcomers come in from its address (flare.transport.admission).
What an application's own protocols do costs nothing here.
"""

from __future__ import annotations

import time
from typing import Final

BURST: Final = 256.0
RATE: Final = 10.0  # a second


class Conduct:
    """One connection's account."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = BURST
        self._at = time.monotonic()

    def charge(self, price: float) -> bool:
        """Pay. False: the account is overdrawn."""
        now = time.monotonic()
        self._left = min(BURST, self._left + (now - self._at) * RATE) - price
        self._at = now
        return self._left >= 0
