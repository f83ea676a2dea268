from collections.abc import Callable, Sequence
from typing import NamedTuple

from flare._core.link import LinkStream
from flare._core.shaper import Bucket

class SpliceResult(NamedTuple):
    """How a splice ended and what it carried."""

    reason: str
    """closed, reset, limit, deadline, link or cancelled"""
    bytes_a_to_b: int
    bytes_b_to_a: int

class Splice:
    """Two streams joined. The engine keeps it until it is done."""

    @property
    def a(self) -> LinkStream: ...
    @property
    def b(self) -> LinkStream: ...
    @property
    def bytes_a_to_b(self) -> int: ...
    @property
    def bytes_b_to_a(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def cancel(self) -> None:
        """Reset both streams; `on_done` still comes."""

def splice(
    a: LinkStream,
    b: LinkStream,
    *,
    limit_a_to_b: int = 0,
    limit_b_to_a: int = 0,
    deadline_ns: int = 0,
    buckets: Sequence[Bucket] = (),
    on_done: Callable[[SpliceResult], object] | None,
) -> Splice:
    """Join two streams until both directions end (circuit-v2.md); bytes that wait go first.

    Limits are bytes (0: none); the byte after the last one allowed resets both streams, as does the deadline,
    in monotonic nanoseconds. Both directions draw from all of `buckets` (6 at most), in that order, and wait
    where one has no tokens. Meanwhile the streams cannot be read or written and have no events. Raises
    UsageError for streams of engines not beside each other or closed for writing, StreamReset and
    ConnectionClosed for dead ones.
    """
