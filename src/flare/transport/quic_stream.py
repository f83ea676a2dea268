"""One stream of a QUIC connection, as Stream wants it: what a link's streams do, by QUIC's means."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from flare._core.wire import decode_uvarint
from flare.errors import FrameTooLarge, StreamClosed, StreamReset

if TYPE_CHECKING:
    from flare.transport.quic_session import QuicSession

READABLE: Final = 1
WRITABLE: Final = 2
CLOSED: Final = 4

_PREFIX: Final = 9  # bytes of the longest length prefix


class QuicStream:
    """One stream. See StreamCore: what a link's streams do, by QUIC's means."""

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_chunks",
        "_discarding",
        "_fin",
        "_reset_in",
        "_stopped",
        "_wrote_fin",
        "id",
        "inbound",
        "is_reset",
        "on_event",
        "readable",
        "session",
    )

    def __init__(self, session: QuicSession, id: int, inbound: bool) -> None:
        self.session = session
        self.id = id
        self.inbound = inbound
        self.on_event: Callable[[int], object] | None = None
        self.readable = 0  # bytes that `read` has at once
        self.is_reset = False
        self._chunks: deque[bytes] = deque()
        self._fin = False  # the peer's side ended, after what is in _chunks
        self._reset_in = False  # the peer gave up sending, or nobody is told of more
        self._stopped = False  # the peer reads no more
        self._wrote_fin = False
        self._blocked = False
        self._discarding = False

    @property
    def read_closed(self) -> bool:
        """The peer half-closed; `readable` bytes may be left."""
        return self._fin

    @property
    def write_closed(self) -> bool:
        """`close_write` was called, or the peer reads no more."""
        return self._wrote_fin or self._stopped

    # Reading

    def read(self, max_bytes: int) -> bytes | None:
        """Bytes; b"" at the half-close; None when there is nothing yet. StreamReset, ConnectionClosed."""
        chunks = self._chunks
        if not chunks:
            return self._nothing()
        if len(chunks) == 1 and len(chunks[0]) <= max_bytes:
            data = chunks.popleft()
        else:
            taken, size = [], 0
            while chunks and size < max_bytes:
                chunk = chunks.popleft()
                if size + len(chunk) > max_bytes:
                    chunks.appendleft(chunk[max_bytes - size :])
                    chunk = chunk[: max_bytes - size]
                taken.append(chunk)
                size += len(chunk)
            data = b"".join(taken)
        self._read(len(data))
        return data

    def read_frame(self, limit: int) -> bytes | None:
        """One uvarint-delimited frame, never past it. FrameTooLarge, DecodeError, StreamClosed, as `read`."""
        if not self._chunks:
            if self._nothing() is not None:
                raise StreamClosed(f"stream {self.id} ended before a frame")
            return None
        if len(self._chunks) > 1:
            self._chunks = deque((b"".join(self._chunks),))
        data = self._chunks[0]
        head = data[:_PREFIX]
        if head[-1] >= 0x80 and len(head) < _PREFIX and all(byte >= 0x80 for byte in head):
            self._check_unfinished()
            return None
        size, at = decode_uvarint(head)
        if size > limit:
            raise FrameTooLarge(size, limit)
        end = at + size
        if len(data) < end:
            self._check_unfinished()
            return None
        if len(data) == end:
            self._chunks.popleft()
        else:
            self._chunks[0] = data[end:]
        self._read(end)
        return data[at:end]

    def _check_unfinished(self) -> None:
        if self._fin:
            raise StreamClosed(f"stream {self.id} ended within a frame")
        if self.is_reset or self.session.closed:
            self._nothing()

    def _nothing(self) -> bytes | None:
        if self._fin and not self.is_reset:
            return b""
        if self.is_reset:
            raise StreamReset(f"stream {self.id} was reset")
        if self.session.closed:
            raise self.session.why_closed()
        return None

    def _read(self, size: int) -> None:
        self.readable -= size
        if not self._reset_in:
            self.session.consumed(self.id, size, again=not self._fin)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for; returns how many. StreamReset, ConnectionClosed, StreamClosed."""
        self._check_open()
        taken = self.session.write(self.id, data)
        if taken < len(data):
            self._blocked = True
            self.session.blocked(self)
        return taken

    def close_write(self) -> None:
        """Half-close: the peer reads to the end and may still write."""
        if self._wrote_fin or self._stopped:
            return
        self._check_open()
        self._wrote_fin = True
        self.session.finish(self)

    def _check_open(self) -> None:
        if self.is_reset:
            raise StreamReset(f"stream {self.id} was reset")
        if self._stopped and not self._wrote_fin:
            raise StreamReset(f"the peer reads no more from stream {self.id}")
        if self.session.closed or self.session.closing:
            raise self.session.why_closed()
        if self._wrote_fin:
            raise StreamClosed(f"stream {self.id} was half-closed here")

    def reset(self) -> None:
        """End both directions at once and drop what was received."""
        if self.is_reset:
            return
        self.is_reset = True
        self._drop()
        self.session.reset(self)
        self._event(CLOSED)

    def discard(self) -> None:
        """Drop what was and will be received; the peer gets no new window for it."""
        self._discarding = True
        self._drop()
        self.session.keep_discarding(self)

    def set_priority(self, control: bool) -> None:
        """QUIC's streams do not wait for one another."""

    def _drop(self) -> None:
        self._chunks.clear()
        dropped, self.readable = self.readable, 0
        if dropped and not self._reset_in:
            self.session.consumed(self.id, dropped, again=False)

    def __del__(self) -> None:
        """Whoever drops a stream without closing it resets it, as a link's streams do."""
        if not (self.is_reset or (self.write_closed and self._fin)):
            self.session.dropped(self.id)

    # From the session

    def feed(self, data: bytes, fin: bool) -> None:
        """What the peer sent."""
        if data:
            if self.is_reset or self._discarding:
                self.session.consumed(self.id, len(data), again=False)
            else:
                self._chunks.append(data)
                self.readable += len(data)
        if fin:
            self._fin = True
        self._event(READABLE)

    def stop(self) -> None:
        """The peer reads no more; what it sends may still come (go-libp2p says so with each close)."""
        self._stopped = True
        self._blocked = False
        self._event(WRITABLE)

    def end(self) -> None:
        """The peer gave up sending: for libp2p that ends the stream."""
        self._reset_in = True
        if not self.is_reset:
            self.is_reset = True
            self._event(READABLE | CLOSED)

    def wake(self) -> None:
        """There may be room again."""
        if self._blocked:
            self._blocked = False
            self._event(WRITABLE)

    def session_closed(self) -> None:
        """The connection is gone."""
        self._reset_in = True
        self._event(READABLE | WRITABLE | CLOSED)

    def _event(self, flags: int) -> None:
        if self.on_event is not None:
            self.on_event(flags)
