"""What every exchange shares: the default times, a deadline with a name, and the size of a message."""

from typing import Final

from flare.config import PunchConfig, Timeouts
from flare.transport.deadline import within

__all__ = ["MESSAGE_LIMIT", "PUNCH", "TIMEOUTS", "within"]

MESSAGE_LIMIT: Final = (
    4096  # bytes of one relay or DCUtR message without its length (DCUtR.md, "RPC messages")
)
TIMEOUTS: Final = Timeouts()
PUNCH: Final = PunchConfig()
