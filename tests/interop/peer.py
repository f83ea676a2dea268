"""A peer as a process: its events as they come, its end, and nothing left behind."""

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.interop.build import OPTIONS, ROOT, program

Event = dict[str, Any]

# Seconds.
STARTUP = 30.0
SHUTDOWN = 5.0


class PeerFailed(AssertionError):
    """A peer ended, stalled or reported an error; carries its events and the end of its stderr."""


class Peer:
    """One running program; a context manager that ends it by SIGTERM and insists that it obeys.

    `Peer.running` are those that are entered, for the report of a test that failed beside them.
    """

    running: ClassVar["list[Peer]"] = []

    def __init__(self, kind: str, *arguments: str, command: Sequence[str] | None = None) -> None:
        self.kind = kind
        self.name = f"{kind} {' '.join(arguments)}"
        self.events: list[Event] = []
        self._incoming: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the peer
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [*(command or program(kind)), *arguments, *OPTIONS.get(kind, ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._incoming.put(json.loads(line))
            except ValueError:
                self._incoming.put({"event": "garbage", "line": line.decode(errors="replace")})
        self._incoming.put(None)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def expect(self, name: str, timeout: float = STARTUP) -> Event:
        """The next event of that name, within `timeout` seconds. Raises PeerFailed."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self._incoming.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._failure(f"no {name!r} event within {timeout:g} s") from None
            if event is None:
                self._incoming.put(None)
                raise self._failure(f"ended before a {name!r} event")
            self.events.append(event)
            if event.get("event") == name:
                return event
            if event.get("event") == "garbage":
                raise self._failure(f"printed something that is not JSON: {event['line']!r}")

    def finish(self, timeout: float = 30.0, *, code: int = 0) -> list[Event]:
        """Waits for the program to end by itself with that exit code; all its events. Raises PeerFailed."""
        try:
            ended = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"still running after {timeout:g} s") from None
        self._drain()
        if ended != code:
            raise self._failure(f"exit code {ended}, not {code}")
        return self.events

    def named(self, name: str) -> list[Event]:
        """The events of that name so far."""
        return [event for event in self.events if event.get("event") == name]

    def _drain(self) -> None:
        self._reader.join(SHUTDOWN)
        while not self._incoming.empty():
            event = self._incoming.get()
            if event is not None:
                self.events.append(event)

    def story(self) -> str:
        """Its events and the end of its stderr so far."""
        return str(self._failure("so far"))

    def _failure(self, reason: str) -> PeerFailed:
        self._drain_now()
        self._stderr.seek(0)
        errors = self._stderr.read().decode(errors="replace")[-3000:]
        events = "\n  ".join(json.dumps(event) for event in self.events)
        return PeerFailed(f"{self.name}: {reason}\nevents:\n  {events}\nstderr:\n{errors}")

    def _drain_now(self) -> None:
        while not self._incoming.empty():
            event = self._incoming.get()
            if event is None:
                self._incoming.put(None)
                return
            self.events.append(event)

    def __enter__(self) -> Self:
        Peer.running.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Peer.running.remove(self)
        running = self._process.poll() is None
        obeyed = True
        try:
            if running:
                self._process.terminate()
                try:
                    self._process.wait(SHUTDOWN)
                except subprocess.TimeoutExpired:
                    obeyed = False
                    self._process.kill()
                    self._process.wait()
            if error is None and running and not obeyed:
                raise self._failure(f"still running {SHUTDOWN:g} s after SIGTERM")
            if error is None and running and self._process.returncode != 0:
                raise self._failure(f"exit code {self._process.returncode} after SIGTERM")
            if error is not None and hasattr(error, "add_note"):
                error.add_note(str(self._failure("was running" if running else "had ended")))
        finally:
            self._reader.join(SHUTDOWN)
            for pipe in (self._process.stdin, self._process.stdout, self._stderr):
                if pipe is not None:
                    pipe.close()
