from collections.abc import Callable
from typing import Any, Final, NamedTuple

from typing_extensions import Buffer

from flare._core.engine import Engine
from flare._core.records import NoiseRecords as NoiseRecords
from flare._core.records import PlainRecords as PlainRecords
from flare._core.records import RecordKeys as RecordKeys
from flare._core.records import TlsRecords as TlsRecords

READABLE: Final = 1
WRITABLE: Final = 2
CLOSED: Final = 4
PONG_LOST_NS: int

class LinkStats(NamedTuple):
    """Counters of one link, in bytes and streams."""

    bytes_in: int
    bytes_out: int
    unsent: int
    buffered: int
    windows: int
    streams: int
    inbound_streams: int
    unacked_streams: int
    refused_streams: int

class Link:
    """One secured, multiplexed connection, made by `Engine.attach` and kept by the engine until its end."""

    on_stream: Callable[[LinkStream], object] | None
    """An inbound stream. Without a handler, or if nobody keeps it, it is reset."""
    on_close: Callable[[BaseException | None], object] | None
    """Once, when the link is over: None when closed here, else why."""
    on_goaway: Callable[[int], object] | None
    """The peer opens and takes no more streams; the code is 0 normal, 1 protocol error, 2 internal error."""
    on_output: Callable[[None], object] | None
    """Memory links: `take_output` has something, or `paused` is over."""

    @property
    def engine(self) -> Engine: ...
    @property
    def peername(self) -> Any:
        """As `socket.getpeername`; None for memory links."""
    @property
    def initiator(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def rtt_ns(self) -> int:
        """Round trip by yamux ping; 0: not measured yet."""
    @property
    def paused(self) -> bool:
        """Holds as much as it may, unread or unsent: feed it no more until this ends (`on_output`)."""
    @property
    def ciphers(self) -> int:
        """Cipher contexts that it holds: an idle link has none."""
    @property
    def unsent(self) -> int:
        """Bytes in the output buffer."""
    @property
    def stats(self) -> LinkStats: ...
    def open_stream(self) -> LinkStream:
        """A new stream. Raises ResourceLimit while `backlog` are unacknowledged, else why the link ended."""
    def ping(self, callback: Callable[[int | None], object]) -> None:
        """Measure the round trip; the callback gets nanoseconds, or None if the link ended.

        Raises ResourceLimit while 8 are under way. One that had no answer in 10 s may be given up for a new
        one: then its callback gets None.
        """
    def close(self, goaway_code: int = 0) -> None:
        """End every stream, say go-away, send what is left; closed when the peer closes or `linger` ends."""
    def abort(self, reason: BaseException | str | None = None) -> None:
        """Close at once and drop what is unsent. `reason` is what streams raise and `on_close` gets."""
    def feed(self, data: Buffer) -> None:
        """Memory links: bytes from the peer."""
    def take_output(self) -> bytes:
        """Memory links: all bytes for the peer, whole records."""

class LinkStream:
    """One yamux stream. Dropping the last reference to one that is not closed resets it.

    No call blocks. `on_event` gets READABLE | WRITABLE | CLOSED after a pass: READABLE when bytes or the end
    came in, WRITABLE once after a `write` took less than all, CLOSED when the stream was reset or its link
    ended. Call `read` before waiting: what came before `on_event` was set is not announced again.
    """

    on_event: Callable[[int], object] | None

    @property
    def id(self) -> int: ...
    @property
    def link(self) -> Link: ...
    @property
    def inbound(self) -> bool: ...
    @property
    def readable(self) -> int:
        """Bytes that `read` has at once."""
    @property
    def read_closed(self) -> bool:
        """The peer half-closed; `readable` bytes may be left."""
    @property
    def write_closed(self) -> bool: ...
    @property
    def is_reset(self) -> bool: ...
    @property
    def send_window(self) -> int: ...
    @property
    def receive_window(self) -> int: ...
    def read(self, max_bytes: int = 65536) -> bytes | None:
        """Bytes; b"" at the peer's half-close; None when there is nothing yet.

        Raises StreamReset, or why the link ended, once what came before it was read.
        """
    def read_frame(self, limit: int) -> bytes | None:
        """One uvarint-delimited frame of at most `limit` bytes, nothing behind it; None until it is whole.

        Raises FrameTooLarge or DecodeError (the bytes stay), StreamClosed at the end, else as `read`.
        `limit` is at most 131,063.
        """
    def write(self, data: Buffer) -> int:
        """Take what the window, the link's buffer and this stream's turn allow; returns how many bytes."""
    def close_write(self) -> None:
        """Half-close: the peer reads to the end and may still write."""
    def reset(self) -> None:
        """End both directions at once and drop what was received."""
    def discard(self) -> None:
        """Drop what was and will be received.

        The peer gets no new window, so it is bounded; dropping the last reference then does not reset the
        stream, which ends when the peer ends it.
        """
    def set_priority(self, control: bool) -> None:
        """Control streams write before others and into a reserve of the link's buffer."""
