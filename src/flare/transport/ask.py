"""One question on a stream of its own, answered to the end of the peer's side, without a task for it.

Identify is asked of every peer that connects. As a task it would cost a coroutine, timers and futures; here
the stream's own events drive it, and one timer bounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from flare._core.wire import decode_uvarint
from flare.errors import (
    ConnectionClosed,
    DecodeError,
    FlareError,
    FrameTooLarge,
    ProtocolNotSupported,
    StreamReset,
    TimedOut,
)
from flare.transport import multistream

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import StreamCore

READ_SIZE: Final = 64 * 1024

OnAnswer = Callable[[bytes | FlareError], None]


class Question:
    """`protocol` proposed on a new stream of `connection`; `on_answer` gets all that comes, or why not.

    It is called once: with the bytes up to the peer's end of the stream, or with ProtocolNotSupported,
    StreamReset, ConnectionClosed, FrameTooLarge above `limit`, DecodeError, ProtocolViolation, or TimedOut
    after `timeout` seconds. Raises what opening a stream raises.
    """

    __slots__ = ("_answer", "_connection", "_core", "_data", "_limit", "_on_answer", "_timer", "_unsent")

    def __init__(
        self, connection: Connection, protocol: str, *, limit: int, timeout: float, on_answer: OnAnswer
    ) -> None:
        self._connection = connection
        self._answer = multistream.Answer(protocol)
        self._data = bytearray()
        self._limit = limit
        self._on_answer: OnAnswer | None = on_answer
        self._core: StreamCore = connection.link.open_stream()
        proposal = multistream.proposal(protocol)
        self._unsent = proposal[self._core.write(proposal) :]
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout, self._late, protocol, timeout)
        self._core.on_event = self._on_event

    def cancel(self) -> None:
        """Nobody wants the answer any more; `on_answer` is not called."""
        self._on_answer = None
        self._end()
        if not self._core.is_reset:
            self._core.reset()

    def _on_event(self, flags: int) -> None:
        if self._on_answer is None:
            return
        core = self._core
        try:
            if self._unsent:
                self._unsent = self._unsent[core.write(self._unsent) :]
            while chunk := core.read(READ_SIZE):
                self._data += chunk
                if len(self._data) > self._limit + 2 * multistream.MAX_MESSAGE:
                    raise FrameTooLarge(len(self._data), self._limit)
            if self._answer.awaited:
                self._confirm()
            if chunk is None:
                return
            if self._answer.awaited:
                raise DecodeError("the stream ended before an answer")
            if len(self._data) > self._limit:
                raise FrameTooLarge(len(self._data), self._limit)
            if not core.write_closed:
                core.close_write()
        except FlareError as error:
            if not core.is_reset:
                core.reset()
            self._tell(error)
        else:
            self._tell(bytes(self._data))

    def _confirm(self) -> None:
        """Take the answer to our proposal off the front, as far as it is there."""
        while self._answer.awaited and self._data:
            try:
                size, at = decode_uvarint(self._data)
            except DecodeError:
                if len(self._data) < 2:
                    return
                raise
            if size > multistream.MAX_MESSAGE:
                raise FrameTooLarge(size, multistream.MAX_MESSAGE)
            if len(self._data) < at + size:
                return
            message = bytes(self._data[at : at + size])
            del self._data[: at + size]
            if not self._answer.accepts(message):
                raise ProtocolNotSupported((self._answer.protocol,), self._connection.remote_peer)

    def _late(self, protocol: str, timeout: float) -> None:
        if not self._core.is_reset:
            self._core.reset()
        self._tell(TimedOut(f"{protocol} of {self._connection.remote_peer}", timeout))

    def _tell(self, what: bytes | FlareError) -> None:
        self._end()
        told, self._on_answer = self._on_answer, None
        if told is not None:
            if isinstance(what, StreamReset | ConnectionClosed):
                what = type(what)(f"{self._answer.protocol} of {self._connection.remote_peer}: {what}")
            told(what)

    def _end(self) -> None:
        self._timer.cancel()
        self._core.on_event = None
