"""Handshakes that strangers begin, secured in the loop's callbacks: without a task or a timer for each.

It is for the usual course, Noise at once over TCP, which flare._core.handshake does in C. Who wants something
else is handed back with the bytes that came, nothing answered.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

from flare._core import handshake
from flare.errors import ConnectionClosed, FlareError, TimedOut
from flare.transport import noise
from flare.transport.noise import NoiseSession
from flare.transport.sockets import abort
from flare.wire.keys import Identity

available: Final = handshake.available

Begun = bytes | tuple[NoiseSession, bytes]
OnEnd = Callable[[Begun | FlareError], None]


class Responses:
    """Runs the listener's side of many handshakes, each for at most `seconds` since its socket arrived."""

    def __init__(self, identity: Identity, seconds: float) -> None:
        self._key = noise.static_key(identity)
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._running: dict[socket.socket, tuple[handshake.Responder, float, OnEnd]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, sock: socket.socket, arrived: float, on_end: OnEnd) -> None:
        """Answer the peer behind `sock`, which came at `arrived` on the loop's clock and has said something.

        `on_end` is called once, maybe at once, and then `sock` is the caller's: with the session and what
        followed it, still encrypted; with the bytes that came, when this is no case for here; or with the
        error that ended it.
        """
        deadline = arrived + self._seconds
        self._running[sock] = handshake.Responder(sock.fileno(), self._key), deadline, on_end
        if not self._step(sock):
            self._loop.add_reader(sock, self._readable, sock)
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._sweep)

    def drop(self, sock: socket.socket) -> bool:
        """Close `sock`, if its handshake runs here."""
        if self._running.pop(sock, None) is None:
            return False
        self._loop.remove_reader(sock)
        abort(sock)
        return True

    def close(self) -> None:
        """Close all of them."""
        for sock in list(self._running):
            self.drop(sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self, sock: socket.socket) -> None:
        self._step(sock)

    def _step(self, sock: socket.socket) -> bool:
        """One packet of the peer's; whether it was the last."""
        responder, _, on_end = self._running[sock]
        outcome: Begun | FlareError
        try:
            state = responder.advance()
            if state == handshake.WAITS:
                return False
            outcome = responder.rest if state == handshake.ELSEWHERE else self._session(responder)
        except FlareError as error:
            outcome = error
        except EOFError:
            outcome = ConnectionClosed("the peer closed the connection during the handshake")
        except OSError as error:
            outcome = ConnectionClosed(os.strerror(error.errno) if error.errno else str(error))
        self._end(sock)
        on_end(outcome)
        return True

    def _session(self, responder: handshake.Responder) -> tuple[NoiseSession, bytes]:
        session = noise.secured(
            responder.payload, responder.remote_static, responder.send_key, responder.recv_key
        )
        return session, responder.rest

    def _end(self, sock: socket.socket) -> None:
        del self._running[sock]
        self._loop.remove_reader(sock)

    def _sweep(self) -> None:
        """End those whose time is over. They came in the order of their deadlines, or nearly."""
        self._timer = None
        now = self._loop.time()
        due = [sock for sock, (_, deadline, _) in self._running.items() if deadline <= now]
        for sock in due:
            _, _, on_end = self._running[sock]
            self._end(sock)
            on_end(TimedOut("the handshake", self._seconds))
        if self._running:
            first = min(deadline for _, deadline, _ in self._running.values())
            self._timer = self._loop.call_at(first, self._sweep)
