"""The flare command as a process, read line by line, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flare

TIMEOUT = 30.0  # seconds for anything to happen
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def environment(**more: str) -> dict[str, str]:
    """This one, in which `-m flare` is the flare under test."""
    assert flare.__file__ is not None
    return {**os.environ, "PYTHONPATH": str(Path(flare.__file__).parent.parent), **more}


def run(*words: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "flare", *words],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=TIMEOUT,
        env=environment(**env),
        check=False,
    )


def facts(output: bytes) -> list[dict[str, Any]]:
    """What `--json` printed: every line is one object."""
    return [json.loads(line) for line in output.splitlines()]


class Command:
    """One that runs until it is told to end; its lines are waited for."""

    def __init__(self, *words: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flare", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**env),
        )
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def line(self) -> str:
        """The next line."""
        line = self._news.get(timeout=TIMEOUT)
        assert line is not None, f"it ended: {self.complaint()}"
        self.lines.append(line)
        return line

    def fact(self, event: str) -> dict[str, Any]:
        """The next fact of that name."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            fact: dict[str, Any] = json.loads(self.line())
            if fact["event"] == event:
                return fact
        raise AssertionError(f"no {event} in {TIMEOUT} s, but {self.lines}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(TIMEOUT)

    def complaint(self) -> str:
        """Its stderr, once it has ended."""
        assert self.process.stderr is not None
        self.process.wait(TIMEOUT)
        return self.process.stderr.read()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def running(*words: str, **env: str) -> Iterator[Command]:
    """A command for the length of a block."""
    command = Command(*words, **env)
    try:
        yield command
    finally:
        command.end()


@contextlib.contextmanager
def meeting(*relay: str, listen: tuple[str, ...] = ()) -> Iterator[tuple[str, Command, Command]]:
    """A relay and a listener with a place on it: the listener's circuit address, and both."""
    with running("relay", "--listen", LOOPBACK, "--json", *relay) as relaying:
        addr = relaying.fact("listening")["addrs"][0]
        with running("listen", "--relay", addr, "--listen", LOOPBACK, "--json", *listen) as listening:
            yield listening.fact("reserved")["addrs"][0], relaying, listening


SIGNALS = [signal.SIGINT, signal.SIGTERM]
