"""What every exchange shares: the default times, a deadline with a name, and the size of a message."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from flare.config import PunchConfig, Timeouts
from flare.errors import NetworkError
from flare.transport.deadline import within

if TYPE_CHECKING:
    from flare.transport.stream import Stream

__all__ = ["MESSAGE_LIMIT", "PUNCH", "TIMEOUTS", "last_words", "within"]

MESSAGE_LIMIT: Final = (
    4096  # bytes of one relay or DCUtR message without its length (DCUtR.md, "RPC messages")
)
TIMEOUTS: Final = Timeouts()
PUNCH: Final = PunchConfig()


def last_words(stream: Stream, data: bytes, timeout: float, what: str) -> Awaitable[None] | None:
    """Send `data` and close our side: at once where it all goes (None), else by awaiting the result.

    A peer that is gone, or takes no more within `timeout` seconds, costs only the stream.
    """
    try:
        rest = stream.write_now(data)
    except NetworkError:
        stream.reset()
        return None
    if rest:
        return _rest(stream, rest, timeout, what)
    stream.close_now()
    return None


async def _rest(stream: Stream, data: bytes, timeout: float, what: str) -> None:
    try:
        async with within(timeout, what):
            await stream.write(data)
        stream.close_now()
    except (NetworkError, TimeoutError):
        stream.reset()
