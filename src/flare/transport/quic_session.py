"""One QUIC connection on a UDP socket: the engine's events become streams, its wishes timers and datagrams.

A session is to a Connection what a link is for TCP, and its streams are what a link's streams are: nothing
here blocks. It is written to by tasks of the loop at any time; it sends when the socket flushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from flare.config import QuicLimits
from flare.errors import ConnectionClosed, ResourceLimit
from flare.transport.quic_engine import NO_ERROR, Address, EngineConnection
from flare.transport.quic_stream import QuicStream

if TYPE_CHECKING:
    from flare.transport.udp import UdpSocket

PINGS: Final = 8  # under way at once, as for a link
_KEEPALIVE: Final = 0  # the uid of pings that nobody waits for


class QuicSession:
    """One connection; implements Session for `Connection` and Events for the engine."""

    def __init__(
        self, socket: UdpSocket, limits: QuicLimits, *, initiator: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.socket = socket
        self.initiator = initiator
        self._on_stream: Callable[[QuicStream], object] | None = None
        self.on_close: Callable[[BaseException | None], object] | None = None
        self.on_established: Callable[[], object] | None = None
        self.closed = False
        self.closing = False
        self.is_established = False
        self.bytes_in = self.bytes_out = 0
        self.keepalive = limits.keepalive  # seconds without a packet before a ping
        self._limits = limits
        self._loop = loop
        self._engine: EngineConnection
        self._reason: BaseException | None = None
        self._streams: WeakValueDictionary[int, QuicStream] = WeakValueDictionary()
        self._kept: dict[int, QuicStream] = {}  # discarding: nobody else holds them
        self._unseen: list[QuicStream] = []  # inbound streams of before `on_stream` was set
        self._highest = -4 + (1 if initiator else 0)  # the last inbound stream (RFC 9000, 2.1)
        self._skipped: set[int] = (
            set()
        )  # inbound streams up to it of which nothing has come; the engine's limit bounds them
        self._blocked: dict[int, QuicStream] = {}
        self._cids: set[bytes] = set()
        self._tokens: set[bytes] = set()
        self._pings: dict[int, tuple[float, Callable[[int | None], object]]] = {}
        self._next_ping = 1
        self._heard = time.monotonic()
        self._closing_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def start(self, engine: EngineConnection) -> None:
        """Begin with the engine's connection."""
        self._engine = engine
        for cid in engine.cids:
            self.cid_issued(cid)
        self.flush_soon()

    @property
    def on_stream(self) -> Callable[[QuicStream], object] | None:
        """Who gets each inbound stream, also those that came before it was set."""
        return self._on_stream

    @on_stream.setter
    def on_stream(self, on_stream: Callable[[QuicStream], object]) -> None:
        self._on_stream = on_stream
        waiting, self._unseen = self._unseen, []
        for stream in waiting:
            on_stream(stream)

    @property
    def remote(self) -> Address:
        """Where the peer is now: it changes when a client migrates."""
        return self._engine.remote

    @property
    def rtt_ns(self) -> int:
        """The smoothed round trip; 0: not measured yet."""
        return int(self._engine.rtt * 1e9)

    @property
    def idle_timeout(self) -> float:
        """Seconds after which either side gives up when nothing comes."""
        return self._engine.idle_timeout

    # Datagrams and time

    def receive(self, datagrams: Sequence[bytes], remote: Address, now: float) -> None:
        """Datagrams for this connection, all from one place; the socket flushes afterwards."""
        if self.closed:
            return
        self._heard = now
        self.bytes_in += sum(map(len, datagrams))
        if self.initiator:
            remote = remote[:2]  # whichever address of ours the kernel chose
        self._engine.receive(datagrams, remote, now)

    def collect(self, now: float) -> list[tuple[bytes, Address]]:
        """What to send; the socket asks when it flushes."""
        if self.closed:
            return []
        if self.closing and (now >= self._drained_at() or not self._engine.in_flight):
            self._engine.close(NO_ERROR, "")
        made = self._engine.datagrams(now)
        if self._blocked:
            self._wake_writers()
        if self.closed:
            self.socket.linger(self._cids, [data for data, _ in made], 9 * self._engine.rtt)
        else:
            self._arm(now)
        for data, _ in made:
            self.bytes_out += len(data)
        return made

    def flush_soon(self) -> None:
        """Something is to be sent, or a deadline has changed."""
        if not self.closed:
            self.socket.flush_soon(self)

    def _wake_writers(self) -> None:
        for stream in list(self._blocked.values()):
            if self._engine.writable(stream.id):
                del self._blocked[stream.id]
                stream.wake()

    def _arm(self, now: float) -> None:
        at = self._heard + self.keepalive
        engine_at = self._engine.deadline()
        if engine_at is not None and engine_at < at:
            at = engine_at
        if self.closing:
            at = min(at, self._drained_at())
        if self._timer is not None:
            if self._timer_at <= at:
                return  # it looks again then
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), self._expired)

    def _drained_at(self) -> float:
        """When a close stops waiting for a peer that says nothing."""
        return max(self._heard, self._closing_since) + self._limits.drain

    def _expired(self) -> None:
        self._timer = None
        if self.closed:
            return
        now = time.monotonic()
        due = self._engine.deadline()
        if due is not None and due <= now:
            self._engine.expire(now)
        if self.is_established and now - self._heard >= self.keepalive:
            self._heard = now
            self._engine.ping(_KEEPALIVE)
        self.flush_soon()

    # What a Connection asks

    def open_stream(self) -> QuicStream:
        """A new stream. ResourceLimit while too many wait for the peer to allow them, ConnectionClosed."""
        if self.closed or self.closing:
            raise self.why_closed()
        stream = QuicStream(self, self._engine.open_stream(), inbound=False)
        self._streams[stream.id] = stream
        return stream

    def ping(self, callback: Callable[[int | None], object]) -> None:
        """Measure the round trip; the callback gets nanoseconds, or None if the connection ended."""
        if self.closed:
            raise self.why_closed()
        if len(self._pings) >= PINGS:
            raise ResourceLimit(f"{PINGS} pings are under way")
        self._pings[self._next_ping] = (time.monotonic(), callback)
        self._engine.ping(self._next_ping)
        self._next_ping += 1
        self.flush_soon()

    def close(self) -> None:
        """Take nothing more, send what was taken, and close when the peer has it."""
        if not self.closed and not self.closing:
            self.closing = True
            self._closing_since = time.monotonic()
            self.flush_soon()

    def abort(self, reason: BaseException | str | None = None) -> None:
        """Close at once; the peer is told, and what was not sent is lost."""
        if self.closed:
            return
        self._reason = reason if isinstance(reason, BaseException) else ConnectionClosed(reason or "aborted")
        self._engine.close(NO_ERROR, "")
        self.socket.flush_now(self)
        if not self.closed:
            self._finish()

    def why_closed(self) -> BaseException:
        """What the streams of a connection that is closed raise."""
        return ConnectionClosed(str(self._reason)) if self._reason else ConnectionClosed("closed here")

    # What streams ask

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> int:
        """See EngineConnection.write."""
        taken = self._engine.write(stream, data)
        if taken:
            self.socket.flush_soon(self)
        return taken

    def blocked(self, stream: QuicStream) -> None:
        """Wake it when there is room."""
        self._blocked[stream.id] = stream
        self.flush_soon()

    def finish(self, stream: QuicStream) -> None:
        """See EngineConnection.finish."""
        self._engine.finish(stream.id)
        self.flush_soon()

    def consumed(self, stream: int, size: int, *, again: bool) -> None:
        """See EngineConnection.consumed."""
        if not self.closed:
            self._engine.consumed(stream, size, again=again)
            self.socket.flush_soon(self)

    def reset(self, stream: QuicStream) -> None:
        """End both sides."""
        self._blocked.pop(stream.id, None)
        self._give_up(stream.id)

    def keep_discarding(self, stream: QuicStream) -> None:
        """Hold it until the peer closes its side: nobody else does."""
        if not stream.read_closed and not self.closed:
            self._kept[stream.id] = stream

    def dropped(self, stream: int) -> None:
        """The last reference to a stream is gone; possibly in another thread, by the collector."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the connection, soon
            self._loop.call_soon_threadsafe(self._give_up, stream)

    def _give_up(self, stream: int) -> None:
        if not self.closed:
            self._engine.reset(stream, NO_ERROR)
            self._engine.stop(stream, NO_ERROR)
            self.flush_soon()

    # What the engine tells

    def established(self) -> None:
        """See Events."""
        self.is_established = True
        if self.on_established is not None:
            self.on_established()

    def stream_data(self, stream: int, data: bytes, fin: bool) -> None:
        """See Events."""
        found = self._streams.get(stream) or self._inbound(stream)
        if found is not None:
            found.feed(data, fin)
            if fin:
                self._kept.pop(stream, None)
        elif data:
            self._engine.consumed(stream, len(data), again=False)

    def _inbound(self, stream: int) -> QuicStream | None:
        self._skip_to(stream)
        if stream not in self._skipped:
            return None  # of ours, or of before: nobody holds it any more
        self._skipped.remove(stream)
        made = self._streams[stream] = QuicStream(self, stream, inbound=True)
        if self._on_stream is not None:
            self._on_stream(made)
        else:
            self._unseen.append(made)
        return made

    def _skip_to(self, stream: int) -> None:
        """A stream opens all below it too (RFC 9000, 2.1); datagrams come in any order."""
        if stream & 3 == self._highest & 3 and stream > self._highest:
            self._skipped.update(range(self._highest + 4, stream + 1, 4))
            self._highest = stream

    def stream_reset(self, stream: int, code: int) -> None:
        """See Events."""
        self._ended(stream)

    def stop_sending(self, stream: int, code: int) -> None:
        """See Events."""
        self._blocked.pop(stream, None)
        found = self._streams.get(stream) or self._inbound(stream)
        if found is not None:
            found.stop()

    def _ended(self, stream: int) -> None:
        self._blocked.pop(stream, None)
        self._kept.pop(stream, None)
        self._skip_to(stream)
        self._skipped.discard(stream)
        found = self._streams.get(stream)
        if found is None or not found.is_reset:
            self._give_up(stream)
        if found is not None:
            found.end()

    def pong(self, uid: int) -> None:
        """See Events."""
        waiting = self._pings.pop(uid, None)
        if waiting is not None:
            sent, callback = waiting
            callback(int((time.monotonic() - sent) * 1e9))

    def cid_issued(self, cid: bytes) -> None:
        """See Events."""
        self._cids.add(cid)
        self.socket.routes[cid] = self

    def cid_retired(self, cid: bytes) -> None:
        """See Events."""
        self._cids.discard(cid)
        self.socket.routes.pop(cid, None)

    def token_learned(self, token: bytes) -> None:
        """See Events."""
        self._tokens.add(token)
        self.socket.tokens[token] = self

    def was_forgotten(self) -> None:
        """A stateless reset came: the peer knows nothing of this connection."""
        self.terminated(
            ConnectionClosed("the peer knows nothing of the connection any more (stateless reset)")
        )

    def terminated(self, reason: BaseException | None) -> None:
        """See Events."""
        if not self.closed:
            self._reason = self._reason or reason
            self._finish()

    def _finish(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for cid in self._cids:
            if self.socket.routes.get(cid) is self:
                del self.socket.routes[cid]
        for token in self._tokens:
            self.socket.tokens.pop(token, None)
        self.socket.forget(self)
        self._blocked.clear()
        for stream in list(self._streams.values()):
            stream.session_closed()
        self._kept.clear()
        self._unseen.clear()
        for _, callback in self._pings.values():
            callback(None)
        self._pings.clear()
        if self.on_close is not None:
            self.on_close(self._reason)
