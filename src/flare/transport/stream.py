"""The stream that users and protocols hold: awaited, over a multiplexer's stream that never blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from flare._core.wire import frame
from flare.errors import (
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    NetworkError,
    ProtocolNotSupported,
    StreamClosed,
    StreamReset,
    UsageError,
)
from flare.transport import multistream
from flare.transport.deadline import within

if TYPE_CHECKING:
    from flare.transport.connection import Connection

READABLE: Final = 1
WRITABLE: Final = 2
CLOSED: Final = 4

READ_SIZE: Final = 64 * 1024
_AT_ONCE: Final = (
    64 * 1024
)  # read_exactly takes more than this in pieces, so that the sender's window never has to hold it


class StreamCore(Protocol):
    """What a multiplexer gives for one stream (flare._core.link.LinkStream). Nothing here blocks."""

    on_event: Callable[[int], object] | None

    @property
    def id(self) -> int: ...
    @property
    def inbound(self) -> bool: ...
    @property
    def readable(self) -> int: ...
    @property
    def read_closed(self) -> bool: ...
    @property
    def write_closed(self) -> bool: ...
    @property
    def is_reset(self) -> bool: ...
    def read(self, max_bytes: int) -> bytes | None: ...
    def read_frame(self, limit: int) -> bytes | None: ...
    def write(self, data: bytes | bytearray | memoryview) -> int: ...
    def close_write(self) -> None: ...
    def reset(self) -> None: ...
    def set_priority(self, control: bool) -> None: ...


class Stream:
    """A two-way byte stream to a peer, within a connection.

    One task may read while another writes; two readers at once are a UsageError, writers take turns. A
    cancelled read loses nothing; a cancelled write may have sent a part, and then only `reset` is left.
    Errors: StreamReset, ConnectionClosed, and StreamClosed for an end that came too early.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_discard_timer",
        "_held",
        "_reader",
        "_reading",
        "_unconfirmed",
        "_writer",
        "_writers",
        "_writing",
        "connection",
        "core",
        "kept",
        "protocol",
    )

    def __init__(self, core: StreamCore, connection: Connection, protocol: str = "") -> None:
        self.core = core
        self.connection = connection
        self.protocol = protocol
        self.kept = False
        self._held = bytearray()  # taken from the core by a read that then did not finish
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._reading = False
        self._writing: asyncio.Lock | None = None
        self._writers = 0  # who hold the lock or wait for it: it is unlocked while the next one wakes up
        self._unconfirmed: multistream.Answer | None = None  # what the first read must find (see `propose`)
        self._closed = False
        self._discard_timer: asyncio.TimerHandle | None = None
        core.on_event = self._on_event

    def __repr__(self) -> str:
        direction = "from" if self.inbound else "to"
        name = self.protocol or "(negotiating)"
        return f"<Stream {self.core.id} {name} {direction} {self.connection.remote_peer}>"

    @property
    def inbound(self) -> bool:
        """The peer opened it."""
        return self.core.inbound

    @property
    def closed(self) -> bool:
        """Closed or reset here, or reset by the peer."""
        return self._closed or self.core.is_reset

    @property
    def finished(self) -> bool:
        """Over in both directions."""
        core = self.core
        return core.is_reset or (core.write_closed and core.read_closed) or self.connection.closed

    def keep(self) -> None:
        """The stream outlives its handler: the handler's return does not close it."""
        self.kept = True

    async def propose(self, protocol: str) -> None:
        """Name `protocol` to the peer without waiting for its answer, which the first read checks.

        Then that read raises ProtocolNotSupported, or TimedOut after Timeouts.negotiate seconds.
        """
        self.protocol = protocol
        self._unconfirmed = multistream.Answer(protocol)
        await self.write(multistream.proposal(protocol))

    # Reading

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        """What has come, up to `max_bytes`; waits when that is nothing. b"" once the peer closed its side."""
        self._begin_read()
        try:
            if self._unconfirmed is not None:
                await self._confirm(self._unconfirmed)
            if self._held:
                data = bytes(self._held[:max_bytes])
                del self._held[:max_bytes]
                return data
            while (chunk := self._take(max_bytes)) is None:
                await self._wait_readable()
            return chunk
        finally:
            self._reading = False

    async def read_exactly(self, n: int) -> bytes:
        """Exactly `n` bytes. StreamClosed when the peer's side ends before; what came stays readable."""
        self._begin_read()
        try:
            if self._unconfirmed is not None:
                await self._confirm(self._unconfirmed)
            while len(self._held) < n:
                chunk = self._take(min(n - len(self._held), _AT_ONCE))
                if chunk is None:
                    await self._wait_readable()
                elif not chunk:
                    raise StreamClosed(
                        self._about(f"closed by the peer after {len(self._held)} of {n} bytes")
                    )
                elif len(chunk) == n:
                    return chunk
                else:
                    self._held += chunk
            data = bytes(self._held[:n])
            del self._held[:n]
            return data
        finally:
            self._reading = False

    async def read_frame(self, limit: int) -> bytes:
        """One frame with a uvarint length before it, nothing past it. FrameTooLarge above `limit` bytes."""
        self._begin_read()
        try:
            if self._unconfirmed is not None:
                await self._confirm(self._unconfirmed)
            if self._held:
                return await self._read_frame_held(limit)
            while (payload := self._take_frame(limit)) is None:
                await self._wait_readable()
            return payload
        finally:
            self._reading = False

    async def _read_frame_held(self, limit: int) -> bytes:
        """read_frame after an unfinished read_exactly left bytes here: rare, so byte by byte."""
        size = at = 0
        while True:
            if at == 9:
                raise DecodeError("length prefix longer than 9 bytes", protocol=self.protocol)
            await self._hold(at + 1)
            byte = self._held[at]
            size |= (byte & 0x7F) << (7 * at)
            at += 1
            if byte < 0x80:
                break
        if at > 1 and byte == 0:
            raise DecodeError("length prefix is not minimal", protocol=self.protocol)
        if size > limit:
            raise FrameTooLarge(size, limit, protocol=self.protocol)
        await self._hold(at + size)
        payload = bytes(self._held[at : at + size])
        del self._held[: at + size]
        return payload

    async def _confirm(self, answer: multistream.Answer) -> None:
        async with within(self.connection.timeouts.negotiate, self._about("the peer's answer")):
            while answer.awaited:
                while (message := self._take_frame(multistream.MAX_MESSAGE)) is None:
                    await self._wait_readable()
                if not answer.accepts(message):
                    self.reset()
                    raise ProtocolNotSupported((self.protocol,), self.connection.remote_peer)
        self._unconfirmed = None

    async def _hold(self, n: int) -> None:
        while len(self._held) < n:
            chunk = self._take(min(n - len(self._held), _AT_ONCE))
            if chunk is None:
                await self._wait_readable()
            elif not chunk:
                raise StreamClosed(self._about("closed by the peer in the middle of a frame"))
            else:
                self._held += chunk

    def _begin_read(self) -> None:
        if self._reading:
            raise UsageError(self._about("two tasks read it at once"))
        if self._closed:
            raise StreamClosed(self._about("was closed here"))
        self._reading = True

    def _take(self, n: int) -> bytes | None:
        try:
            return self.core.read(n)
        except NetworkError as error:
            raise self._with_peer(error) from None

    def _take_frame(self, limit: int) -> bytes | None:
        try:
            return self.core.read_frame(limit)
        except NetworkError as error:
            raise self._with_peer(error) from None

    # Writing

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the peer's window or the connection is full."""
        if self._closed:
            raise StreamClosed(self._about("was closed here"))
        if not self._writers:
            taken = self._give(data)
            if taken == len(data):
                return
        else:
            taken = 0
        lock = self._writing
        if lock is None:
            lock = self._writing = asyncio.Lock()
        rest = memoryview(data)[taken:]
        self._writers += 1
        try:
            async with lock:
                if self._closed:
                    raise StreamClosed(self._about("was closed here"))
                while rest:
                    taken = self._give(rest)
                    rest = rest[taken:]
                    if rest and not taken:
                        await self._wait_writable()
        finally:
            self._writers -= 1

    def write_now(self, data: bytes) -> bytes:
        """Send what can go without waiting; the result is the rest, which `write` takes."""
        if self._closed:
            raise StreamClosed(self._about("was closed here"))
        return data if self._writers else data[self._give(data) :]

    def read_frame_now(self, limit: int) -> bytes | None:
        """As `read_frame`, but None when it is not all here yet."""
        if self._reading or self._held or self._unconfirmed is not None:
            return None
        return self._take_frame(limit)

    async def write_frame(self, payload: bytes) -> None:
        """Send `payload` with its length as a uvarint before it."""
        await self.write(frame(payload))

    def _give(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self.core.write(data)
        except NetworkError as error:
            raise self._with_peer(error) from None

    # Ending

    async def close_write(self) -> None:
        """No more from here; the peer reads b"" after what was written. Reading goes on."""
        if not self.core.write_closed and not self.core.is_reset:
            self.core.close_write()

    async def close(self) -> None:
        """Done with it: close our side, and throw away what still comes.

        Returns at once. A peer that still reads is not reset, unless its side is open past Timeouts.linger.
        """
        self.close_now()

    def close_now(self) -> None:
        """`close` for callers that cannot await."""
        if self._closed:
            return
        self._closed = True
        self._held.clear()
        self._wake(self._reader)
        self._wake(self._writer)
        if self.core.is_reset:
            return
        try:
            if not self.core.write_closed:
                self.core.close_write()
            self.core.on_event = self._discard
            self._discard(READABLE)
        except (StreamReset, ConnectionClosed):
            return
        if not self.core.read_closed:
            linger = self.connection.timeouts.linger
            self._discard_timer = asyncio.get_running_loop().call_later(linger, self.reset)

    def reset(self) -> None:
        """End it at once in both directions; the peer sees StreamReset and may lose bytes on their way."""
        self._closed = True
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
        if not self.core.is_reset:
            self.core.reset()
        self._wake(self._reader)
        self._wake(self._writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close_now()
        else:
            self.reset()

    def _discard(self, flags: int) -> None:
        """After `close`: drop what comes, until the peer has closed its side too."""
        try:
            while chunk := self.core.read(READ_SIZE):
                pass
        except (StreamReset, ConnectionClosed):
            chunk = b""
        if chunk is not None or flags & CLOSED:
            self.core.on_event = None
            if self._discard_timer is not None:
                self._discard_timer.cancel()
                self._discard_timer = None

    # Waiting

    def _on_event(self, flags: int) -> None:
        if flags & (READABLE | CLOSED):
            self._wake(self._reader)
        if flags & (WRITABLE | CLOSED):
            self._wake(self._writer)

    async def _wait_readable(self) -> None:
        waiter = self._reader = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._reader = None
        if self._closed and not self.core.is_reset:
            raise StreamClosed(self._about("was closed here"))

    async def _wait_writable(self) -> None:
        waiter = self._writer = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._writer = None
        if self._closed and not self.core.is_reset:
            raise StreamClosed(self._about("was closed here"))

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _about(self, what: str) -> str:
        return f"stream {self.protocol or self.core.id} with peer {self.connection.remote_peer}: {what}"

    def _with_peer(self, error: NetworkError) -> NetworkError:
        if isinstance(error, StreamReset | ConnectionClosed | StreamClosed):
            return type(error)(self._about(str(error) or type(error).__name__))
        return error
