"""Accepted sockets whose other end has said nothing yet.

Whoever wants something of a listener speaks first. Until then a socket costs a reader on the loop and no
task, so that a flood of half-open connections stays cheap in memory and leaves nothing for the garbage
collector to walk through.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from flare.transport.sockets import abort

Speaks = Callable[[float], object]


class Doorstep:
    """Waits on many sockets for at most `seconds` each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[socket.socket, tuple[float, Speaks, Callable[[], object]]] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sock: socket.socket, speaks: Speaks, late: Callable[[], object]) -> None:
        """Call `speaks` with the time of arrival when `sock` has something to read, with `sock` the caller's.

        After `seconds` it is closed, and then `late` is called.
        """
        now = self._loop.time()
        if _readable(sock):
            speaks(now)
            return
        self._waiting[sock] = now, speaks, late
        self._loop.add_reader(sock, self._ready, sock)
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._seconds, self._sweep)

    def drop(self, sock: socket.socket) -> bool:
        """Close `sock`, if it waits here."""
        if sock not in self._waiting:
            return False
        self._take(sock)
        abort(sock)
        return True

    def close(self) -> None:
        """Close all that wait."""
        for sock in list(self._waiting):
            self.drop(sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, sock: socket.socket) -> tuple[float, Speaks]:
        arrived, speaks, _ = self._waiting.pop(sock)
        self._loop.remove_reader(sock)
        return arrived, speaks

    def _ready(self, sock: socket.socket) -> None:
        arrived, speaks = self._take(sock)
        speaks(arrived)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting:
            sock, (arrived, _, late) = next(iter(self._waiting.items()))
            if arrived + self._seconds > now:
                self._timer = self._loop.call_at(arrived + self._seconds, self._sweep)
                return
            self.drop(sock)
            late()


def _readable(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        pass  # whoever reads it will see why
    return True
