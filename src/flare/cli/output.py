"""What commands print: facts, a line each, for people or as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TextIO

MAX_WAITING: Final = 1 << 20  # bytes of lines that nobody has read yet
LAST_WORDS: Final = 1.0  # seconds at the end for what waits to be read


class Output:
    """Prints facts: JSON objects with `--json`, sentences without. Each line is flushed.

    When nobody reads any more, `broken` is true, `on_broken` is called, and the rest is dropped.
    """

    def __init__(self, as_json: bool, to: TextIO | None = None) -> None:
        self.as_json = as_json
        self.to = to or sys.stdout
        self.broken = False
        self.on_broken: Callable[[], None] = lambda: None

    def fact(self, event: str, text: str | None, **fields: Any) -> None:
        """One fact. `text` is its sentence for people; None: only with `--json`."""
        if self.as_json:
            line = json.dumps({"event": event, **fields}, separators=(", ", ": "), default=str)
        elif text is None:
            return
        else:
            line = text
        if not self.broken:
            self.write(line)

    def write(self, line: str) -> None:
        """Hand one line on."""
        try:
            self.to.write(line + "\n")
            self.to.flush()
        except BrokenPipeError:
            self.broken = True
            silence(self.to)
            self.on_broken()


class PatientOutput(Output):
    """For servers, which must not stand still because a reader does: a thread writes.

    Past MAX_WAITING bytes that nobody read, lines are dropped; once there is room, the fact "dropped" says
    how many. Use it as `with PatientOutput(...) as out`, around the event loop: at the end what waits has
    LAST_WORDS seconds to be read.
    """

    def __init__(self, as_json: bool, to: TextIO | None = None) -> None:
        super().__init__(as_json, to)
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._ended = False
        self._news = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="output", daemon=True)

    def __enter__(self) -> Self:
        self.to.flush()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._news:
            self._ended = True
            self._news.notify()
        self._thread.join(LAST_WORDS)

    def write(self, line: str) -> None:
        """Hand one line to the thread, or drop it."""
        if self._loop is None:
            with contextlib.suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
        data = f"{line}\n".encode()
        with self._news:
            if self._size + len(data) > MAX_WAITING:
                self._dropped += 1
                return
            if self._dropped:
                data = f"{self._lost(self._dropped)}\n".encode() + data
                self._dropped = 0
            self._waiting.append(data)
            self._size += len(data)
            self._news.notify()

    def _lost(self, count: int) -> str:
        if self.as_json:
            return json.dumps({"event": "dropped", "count": count})
        return f"({count} lines were dropped since nobody read them)"

    def _work(self) -> None:
        """Write, by descriptor: what blocks in a buffered file at exit would keep the interpreter from it."""
        descriptor = self.to.fileno()
        while (data := self._next()) is not None:
            left = memoryview(data)
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError:
                self._break()
                return
            with self._news:
                self._size -= len(data)

    def _next(self) -> bytes | None:
        with self._news:
            while not self._waiting and not self._ended:
                self._news.wait()
            return self._waiting.popleft() if self._waiting else None

    def _break(self) -> None:
        self.broken = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: all is over anyway
                self._loop.call_soon_threadsafe(lambda: self.on_broken())


def silence(to: TextIO) -> None:
    """Let what is written from now on, and what is still to be flushed, vanish."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, to.fileno())
    os.close(nowhere)
