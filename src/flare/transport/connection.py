"""A secured, multiplexed connection to one peer: opens streams, and hands inbound ones to their handlers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, Protocol
from weakref import ref

from flare.config import Config, Timeouts
from flare.errors import (
    ConnectionClosed,
    FlareError,
    LimitedConnection,
    ProtocolNotSupported,
    PunchFailed,
    ResourceLimit,
    TimedOut,
    UsageError,
)
from flare.transport import multistream
from flare.transport.ask import OnAnswer, Question
from flare.transport.conduct import Conduct
from flare.transport.deadline import within
from flare.transport.stream import Stream, StreamCore
from flare.transport.tasks import Tasks
from flare.wire.keys import PublicKey
from flare.wire.messages import Limit
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

log = logging.getLogger("flare.transport")

MAX_NEGOTIATING: Final = 4096  # inbound streams of one host, at once: defends memory. Beyond, a connection
NEGOTIATING_SHARE: Final = 16  # ... gets no more than so many

# It may do all there is to do when it is called, and return None: that costs no task.
StreamHandler = Callable[[Stream], Awaitable[None] | None]


class StreamHandlers:
    """Who answers inbound streams, by protocol. It is asked for each stream, so it may change at any time."""

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[StreamHandler, bool]] = {}
        self._terms: dict[str, tuple[float, int]] = {}
        self._hidden: set[str] = set()
        self.negotiating = 0  # streams of all connections that these handlers serve

    def add(
        self,
        protocol: str,
        handler: StreamHandler,
        *,
        allow_limited: bool = False,
        price: float = 0.0,
        at_once: int = 0,
    ) -> None:
        """Let `handler` answer `protocol`, with `allow_limited` also over limited connections.

        A connection may have `at_once` such streams being answered (0: no limit), and each costs it `price`
        (flare.transport.conduct). UsageError when the protocol has a handler, or cannot be a name.
        """
        if protocol in self._handlers:
            raise UsageError(f"{protocol} has a handler")
        multistream.encode(protocol)  # UsageError for what cannot be a name
        self._handlers[protocol] = (handler, allow_limited)
        if price or at_once:
            self._terms[protocol] = (price, at_once)

    def remove(self, protocol: str) -> None:
        """Answer it no more. Streams that are open go on."""
        self._handlers.pop(protocol, None)
        self._terms.pop(protocol, None)
        self._hidden.discard(protocol)

    def hide(self, protocol: str) -> None:
        """Answer it on, and tell nobody any more that it is spoken here."""
        self._hidden.add(protocol)

    def find(self, protocol: str, *, limited: bool) -> StreamHandler | None:
        """The handler of `protocol`; None without one, or when the connection is `limited` and it may not."""
        handler, allow_limited = self._handlers.get(protocol, (None, False))
        return handler if allow_limited or not limited else None

    def terms(self, protocol: str) -> tuple[float, int]:
        """The price of a stream, and how many at once (0: no limit)."""
        return self._terms.get(protocol, (0.0, 0))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Those to tell others, in the order they were added."""
        return tuple(name for name in self._handlers if name not in self._hidden)


class Upgrader(Protocol):
    """What leads from a relayed connection to a direct one (nat.punch)."""

    async def direct(self, connection: Connection, timeout: float) -> Connection: ...


class Session(Protocol):
    """What multiplexes the streams of a connection: a link (flare._core.link.Link) or a QUIC session."""

    on_stream: Any  # Callable[[StreamCore], object]
    on_close: Any  # Callable[[BaseException | None], object]

    def open_stream(self) -> StreamCore: ...
    def ping(self, callback: Callable[[int | None], object]) -> None: ...
    def close(self) -> None: ...
    def abort(self, reason: str) -> None: ...


class Secured(Protocol):
    """Who the peer is, and what the handshake agreed on."""

    @property
    def remote_peer(self) -> PeerId: ...
    @property
    def remote_key(self) -> PublicKey: ...
    @property
    def security(self) -> str: ...
    @property
    def muxer(self) -> str: ...


class Connection:
    """A connection that is up, until `close` or `abort` here, or the peer, ends it: then `closed` is true."""

    def __init__(
        self,
        link: Session,
        upgraded: Secured,
        *,
        local_peer: PeerId,
        local_addr: Multiaddr | None,
        remote_addr: Multiaddr,
        initiator: bool,
        config: Config,
        tasks: Tasks,
        limit: Limit | None = None,
        relay: PeerId | None = None,
    ) -> None:
        self.link = link
        self.local_peer = local_peer
        self.remote_peer = upgraded.remote_peer
        self.remote_key: PublicKey = upgraded.remote_key
        self.security = upgraded.security
        self.muxer = upgraded.muxer
        self.local_addr = local_addr
        self.remote_addr = remote_addr
        self.initiator = initiator  # we dialled it
        self.limit = limit  # what a relay allows on it; None: it is unlimited
        self.relay = relay  # which peer relays it; None: it is direct
        self.opened_at = time.time()  # Unix seconds
        self.closed = False
        self.close_reason: BaseException | None = None  # None also when it was closed in good order
        self.timeouts: Timeouts = config.timeouts
        self._max_negotiating = config.mux.backlog
        self.tasks = tasks  # what runs on behalf of the connection, handlers and circuits through it
        self._handlers: StreamHandlers | None = None
        self._unserved: list[StreamCore] | None = None  # streams that came before the handlers were known
        self.upgrader: Upgrader | None = None
        self.successor: Connection | None = (
            None  # the direct connection that took the place of this relayed one
        )
        self._streams: set[ref[Stream]] = set()
        self._negotiating = 0
        self._answering: dict[str, int] | None = None  # streams of protocols that have a limit
        self._conduct: Conduct | None = None
        self.misbehaved = False  # it was cut off for what the peer did
        self._ended: asyncio.Future[None] | None = None  # made for who waits
        self._on_closed: tuple[Callable[[Connection], None], ...] = ()
        link.on_close = self._link_closed
        link.on_stream = self._link_stream

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Connection {self.path}{state} with {self.remote_peer} at {self.remote_addr}>"

    @property
    def is_limited(self) -> bool:
        """A relay limits what it may carry: only protocols that allow it may run on it."""
        return self.limit is not None

    @property
    def is_relayed(self) -> bool:
        """It goes through a relay."""
        return self.relay is not None

    @property
    def path(self) -> str:
        """How it reaches the peer: "direct/tcp", "direct/quic-v1", "relayed"."""
        return "relayed" if self.is_relayed else f"direct/{self.remote_addr.transport}"

    @property
    def streams(self) -> list[Stream]:
        """The streams open on it now, those being negotiated included."""
        alive = [stream for known in tuple(self._streams) if (stream := known()) is not None]
        return [stream for stream in alive if not stream.finished]

    def serve(self, handlers: StreamHandlers) -> None:
        """Let `handlers` answer the peer's streams, also those that came with the handshake and waited."""
        self._handlers = handlers
        waiting, self._unserved = self._unserved, None
        for core in waiting or ():
            self._link_stream(core)

    def add_close_callback(self, callback: Callable[[Connection], None]) -> None:
        """Call `callback` when the connection is gone; at once if it is."""
        if self.closed:
            callback(self)
        else:
            self._on_closed += (callback,)

    # Streams of ours

    def open_stream(
        self, *protocols: str, allow_limited: bool = False, lazy: bool = False, timeout: float | None = None
    ) -> Opening:
        """A stream for the first of `protocols` that the peer takes: await it, or use it in `async with`.

        Once a direct connection has taken the place of this relayed one (`direct`), streams open on that.
        `lazy`, with one protocol: do not wait for the peer's answer; its refusal comes from the first read.
        Raises ProtocolNotSupported, LimitedConnection unless `allow_limited`, ConnectionClosed, ResourceLimit
        when too many wait for the peer, TimedOut after `timeout` seconds (Timeouts.negotiate).
        """
        if not protocols or (lazy and len(protocols) > 1):
            raise UsageError("name a protocol to open a stream for, and just one when lazy")
        successor = self.successor
        if successor is not None and not successor.closed:
            return successor.open_stream(*protocols, allow_limited=allow_limited, lazy=lazy, timeout=timeout)
        seconds = self.timeouts.negotiate if timeout is None else timeout
        return Opening(self._open(protocols, allow_limited, lazy, seconds))

    async def _open(
        self, protocols: tuple[str, ...], allow_limited: bool, lazy: bool, timeout: float
    ) -> Stream:
        self._check_open(protocols[0], allow_limited)
        stream = self._adopt(self.link.open_stream())
        try:
            if lazy:
                await stream.propose(protocols[0])
            else:
                stream.protocol = await multistream.select(
                    stream, protocols, timeout, f"peer {self.remote_peer}"
                )
        except ProtocolNotSupported:
            stream.reset()
            raise ProtocolNotSupported(protocols, self.remote_peer) from None
        except BaseException:
            stream.reset()
            raise
        return stream

    def _check_open(self, protocol: str, allow_limited: bool) -> None:
        if self.closed:
            raise ConnectionClosed(
                f"the connection with peer {self.remote_peer} is closed"
            ) from self.close_reason
        if self.is_limited and not allow_limited:
            raise LimitedConnection(
                f"{protocol} is not allowed on the limited connection "
                f"with peer {self.remote_peer} through {self.relay}"
            )

    def _adopt(self, core: StreamCore) -> Stream:
        stream = Stream(core, self)
        self._streams.add(ref(stream, self._streams.discard))
        return stream

    def ask(
        self, protocol: str, on_answer: OnAnswer, *, limit: int, timeout: float, allow_limited: bool = False
    ) -> Question:
        """Propose `protocol` on a stream of its own and hand over all that comes, without a task: see `ask`.

        Raises what `open_stream` raises at once.
        """
        self._check_open(protocol, allow_limited)
        return Question(self, protocol, limit=limit, timeout=timeout, on_answer=on_answer)

    # Streams of the peer

    def _link_stream(self, core: StreamCore) -> None:
        if self._negotiating + len(self._unserved or ()) >= self._max_negotiating or self._crowded():
            core.reset()
            self.charge(1, "streams that were never agreed on")
        elif self._handlers is None:
            self._unserved = [*(self._unserved or ()), core]
        else:
            self._serve_now(self._adopt(core), self._handlers)

    def _crowded(self) -> bool:
        """All connections together negotiate as many as they may, and this one has its share."""
        return (
            self._handlers is not None
            and self._handlers.negotiating >= MAX_NEGOTIATING
            and self._negotiating >= NEGOTIATING_SHARE
        )

    def charge(self, price: float, what: str) -> bool:
        """Let the peer pay for a fault (flare.transport.conduct). False: it is cut off, because of `what`."""
        if self._conduct is None:
            self._conduct = Conduct()
        if self._conduct.charge(price):
            return True
        if not self.closed:
            self.misbehaved = True
            log.debug("%r is cut off: too many %s", self, what, extra={"peer": str(self.remote_peer)})
            self.abort(f"too many {what}")
        return False

    def _serve_now(self, stream: Stream, handlers: StreamHandlers) -> None:
        """Negotiate an inbound stream and handle it, as far as that goes with what has come.

        Most peers send all they have to ask in one packet, and then no task is needed.
        """
        listening = multistream.Listening(
            lambda protocol: handlers.find(protocol, limited=self.is_limited) is not None
        )
        answer, unsent = b"", b""
        rest: Awaitable[None] | None = None
        try:
            while not stream.protocol and (message := stream.core.read_frame(multistream.MAX_MESSAGE)):
                said, agreed = listening.take(message)
                answer += said
                stream.protocol = agreed or ""
                if listening.exhausted:
                    break
            unsent = answer[stream.core.write(answer) :] if answer else b""
            if stream.protocol and not unsent:
                rest = self._handle(stream, handlers)
                if rest is None:
                    self._served(stream)
                    return
        except (FlareError, OSError) as error:
            self._failed(stream, error)
            return
        except Exception:  # the edge: somebody's handler
            log.exception("the handler of %s failed", stream.protocol, extra=self._context(stream))
            stream.reset()
            return
        self._negotiating += 1
        handlers.negotiating += 1
        self.tasks.start(
            self._serve(stream, handlers, listening, unsent, rest),
            f"stream {stream.core.id} of {self.remote_peer}",
        )

    async def _serve(
        self,
        stream: Stream,
        handlers: StreamHandlers,
        listening: multistream.Listening,
        unsent: bytes,
        rest: Awaitable[None] | None,
    ) -> None:
        """Go on where `_serve_now` could not; the stream ends with its handler, unless it is kept."""
        try:
            try:
                if rest is None:
                    rest = await self._negotiate(stream, handlers, listening, unsent)
            finally:
                self._negotiating -= 1
                handlers.negotiating -= 1
            if rest is not None:
                await rest
        except (FlareError, OSError) as error:
            self._failed(stream, error)
        except Exception:
            log.exception("the handler of %s failed", stream.protocol, extra=self._context(stream))
            stream.reset()
        except BaseException:
            stream.reset()
            raise
        else:
            self._served(stream)

    async def _negotiate(
        self, stream: Stream, handlers: StreamHandlers, listening: multistream.Listening, unsent: bytes
    ) -> Awaitable[None] | None:
        if unsent:
            async with within(self.timeouts.negotiate, "answering a proposal"):
                await stream.write(unsent)
        if not stream.protocol:
            stream.protocol = await multistream.resume(stream, listening, self.timeouts.negotiate)
        return self._handle(stream, handlers)

    def _handle(self, stream: Stream, handlers: StreamHandlers) -> Awaitable[None] | None:
        """Call the handler, if the protocol's terms allow it. ResourceLimit."""
        handler = handlers.find(stream.protocol, limited=self.is_limited)
        if handler is None:  # it is gone since the peer was told
            return None
        price, at_once = handlers.terms(stream.protocol)
        if price and not self.charge(price, f"requests of {stream.protocol}"):
            raise ResourceLimit(f"too many requests of {stream.protocol}")
        if at_once and self._answering is not None and self._answering.get(stream.protocol, 0) >= at_once:
            self.charge(1, f"streams of {stream.protocol} at once")
            raise ResourceLimit(f"{at_once} streams of {stream.protocol} are open")
        rest = handler(stream)
        if not at_once or rest is None:
            return rest
        if self._answering is None:
            self._answering = {}
        self._answering[stream.protocol] = self._answering.get(stream.protocol, 0) + 1
        return self._counted(rest, stream.protocol, self._answering)

    async def _counted(self, rest: Awaitable[None], protocol: str, answering: dict[str, int]) -> None:
        try:
            await rest
        finally:
            answering[protocol] -= 1

    def _served(self, stream: Stream) -> None:
        if not stream.kept:
            stream.close_now()

    def _failed(self, stream: Stream, error: FlareError | OSError) -> None:
        log.debug("%r failed: %s", stream, error, extra=self._context(stream))
        if not stream.protocol:
            self.charge(1, "streams that were never agreed on")
        if not stream.closed:  # closed in good order, with an answer that a reset would overtake
            stream.reset()

    def _context(self, stream: Stream) -> dict[str, object]:
        return {"peer": str(self.remote_peer), "connection": repr(self), "protocol": stream.protocol}

    async def direct(self, timeout: float = 30.0) -> Connection:
        """A direct connection to the peer: this one, or what hole punching makes in `timeout` seconds.

        PunchFailed says why there is none. Streams opened on this connection from then on open on the direct
        one, and this one closes after PunchConfig.grace (DCUtR.md).
        """
        if not self.is_relayed:
            return self
        if self.successor is not None and not self.successor.closed:
            return self.successor
        if self.upgrader is None:
            raise PunchFailed("this host does not punch holes")
        return await self.upgrader.direct(self, timeout)

    # Its health and its end

    async def ping(self, timeout: float | None = None) -> float:
        """The round trip in seconds, by the multiplexer's own ping. ConnectionClosed, TimedOut."""
        if self.closed:
            raise ConnectionClosed(
                f"the connection with peer {self.remote_peer} is closed"
            ) from self.close_reason
        answered: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def pong(rtt_ns: int | None) -> None:
            if not answered.done():
                answered.set_result(rtt_ns)

        self.link.ping(pong)
        async with within(
            self.timeouts.ping if timeout is None else timeout, f"a ping to peer {self.remote_peer}"
        ):
            rtt_ns = await answered
        if rtt_ns is None:
            raise ConnectionClosed(f"the connection with peer {self.remote_peer} closed under a ping")
        return rtt_ns / 1e9

    async def close(self) -> None:
        """End every stream, say goodbye and close; after Timeouts.close seconds without ado."""
        if not self.closed:
            self.link.close()
            try:
                async with within(
                    self.timeouts.close, f"closing the connection with peer {self.remote_peer}"
                ):
                    await self.wait_closed()
            except TimedOut:
                self.abort("it did not close in time")

    def abort(self, reason: object = "aborted") -> None:
        """Close at once; what was not sent is lost."""
        if not self.closed:
            self.link.abort(str(reason))

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        if self.closed:
            return
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._ended)

    def _link_closed(self, reason: BaseException | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.close_reason = reason
        if self._ended is not None:
            self._ended.set_result(None)
        log.debug("%r: %s", self, reason or "closed", extra={"peer": str(self.remote_peer)})
        callbacks, self._on_closed = self._on_closed, ()
        for callback in callbacks:
            callback(self)


class Opening:
    """A stream being opened: `await` it for the stream, or `async with` it to have it closed at the end."""

    __slots__ = ("_opening", "_stream")

    def __init__(self, opening: Coroutine[Any, Any, Stream]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, None, Stream]:
        return self._opening.__await__()

    async def __aenter__(self) -> Stream:
        self._stream = await self._opening
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)
