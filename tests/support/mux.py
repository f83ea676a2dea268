"""yamux by hand: frames as bytes, memory links in pairs, and a peer that says whatever a test wants."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flare._core.engine import Engine
from flare._core.link import Link, LinkStream, NoiseRecords, PlainRecords

DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL = 256 * 1024
KEYS = bytes(range(32)), bytes(range(32, 64))


SETTLE = 10.0  # seconds that threaded engines get to come to rest
_threads = False
_numbers = itertools.count()


@contextmanager
def driven_by(what: str) -> Iterator[None]:
    """Let `new_engine` make engines of which `what` makes the passes: "calls" of run_pass, or "threads"."""
    global _threads
    _threads = what == "threads"
    try:
        yield
    finally:
        _threads = False


def new_engine(beside: Engine | None = None) -> Engine:
    """An engine, driven as the test asks for."""
    return Engine(thread=f"test-{next(_numbers)}" if _threads else None, beside=beside)


class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    length: int
    payload: bytes = b""


def frame(type: int, flags: int, stream: int, length: int | bytes = 0, *, version: int = 0) -> bytes:
    """One frame; `length` given as bytes is the payload."""
    payload = length if isinstance(length, bytes) else b""
    size = len(payload) if isinstance(length, bytes) else length
    return struct.pack(">BBHII", version, type, flags, stream, size) + payload


def frames(data: bytes) -> list[Frame]:
    """All frames of `data`, which must be whole."""
    found = []
    while data:
        version, type_, flags, stream, length = struct.unpack_from(">BBHII", data)
        assert version == 0, f"flare sent version {version}"
        payload = data[12 : 12 + length] if type_ == DATA else b""
        assert type_ != DATA or len(payload) == length, "flare sent half a frame"
        found.append(Frame(type_, flags, stream, length, payload))
        data = data[12 + len(payload) :]
    return found


class Limits:
    """MuxLimits for a test: what is not given has the default."""

    def __init__(self, **limits: float) -> None:
        vars(self).update(limits)


class Heard:
    """What a link told Python."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.streams: list[LinkStream] = []
        self.closed: list[BaseException | None] = []
        self.goaways: list[int] = []
        link.on_stream = self.streams.append
        link.on_close = self.closed.append
        link.on_goaway = self.goaways.append


class Bare:
    """A memory link under test, facing a peer that is written by hand in plain frames."""

    def __init__(self, *, initiator: bool = False, **limits: float) -> None:
        self.engine = new_engine()
        self.link = self.engine.attach_memory(
            record=PlainRecords(), initiator=initiator, limits=Limits(**({"keepalive": 0.0} | limits))
        )
        self.heard = Heard(self.link)

    def say(self, *data: bytes) -> list[Frame]:
        """Feed what the peer sends, run, and return the frames that came back."""
        for part in data:
            self.link.feed(part)
        return self.hear()

    def hear(self) -> list[Frame]:
        run(self.engine)
        return frames(self.link.take_output())

    def stream(self, id: int = 1) -> LinkStream:
        """An inbound stream that the peer opened and Python accepted."""
        self.say(frame(WINDOW, SYN, id))
        return self.heard.streams[-1]

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()


def run(*engines: Engine, passes: int = 3) -> None:
    """So many passes; of engines that threads drive, until none has anything to do."""
    for _ in range(passes):
        for engine in engines:
            engine.run_pass(0)
    if any(engine.threaded for engine in engines):
        settle(*engines)


def settle(*engines: Engine) -> None:
    """Deliver until nothing moves any more."""
    end = time.monotonic() + SETTLE
    before: list[int] | None = None
    while True:
        idle = all(engine.idle for engine in engines)
        passes = [engine.counters["passes"] for engine in engines]
        if idle and passes == before:  # twice: one may have given another work after that was asked
            return
        before = passes if idle else None
        assert time.monotonic() < end, "the engines do not come to rest"
        if not idle:
            for engine in engines:
                engine.run_pass(0)


def run_until(condition: Callable[[], Any], *engines: Engine, passes: int = 20_000) -> None:
    end = time.monotonic() + SETTLE
    for number in itertools.count():
        if condition():
            return
        if number > passes and time.monotonic() > end:
            break
        for engine in engines:
            engine.run_pass(0)
    raise AssertionError(f"not true after {passes} passes")


def noise_keys() -> tuple[NoiseRecords, NoiseRecords]:
    a, b = os.urandom(32), os.urandom(32)
    return NoiseRecords(a, b), NoiseRecords(b, a)


class Pair:
    """Two links joined by a socket pair, on one engine or two: `a` is the initiator."""

    def __init__(
        self,
        first: Engine,
        second: Engine | None = None,
        *,
        noise: bool = True,
        sndbuf: int = 0,
        **limits: float,
    ) -> None:
        x, y = socket.socketpair()
        if sndbuf:
            x.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            y.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        keys = noise_keys() if noise else (PlainRecords(), PlainRecords())
        chosen = Limits(**({"keepalive": 0.0} | limits))
        self.engines = (first, second or first)
        self.a = first.attach(x.detach(), record=keys[0], initiator=True, limits=chosen)
        self.b = self.engines[1].attach(y.detach(), record=keys[1], initiator=False, limits=chosen)
        self.heard_a, self.heard_b = Heard(self.a), Heard(self.b)

    def open(self, first: bytes = b"hello") -> tuple[LinkStream, LinkStream]:
        """A stream from a to b, with its first bytes read."""
        near = self.a.open_stream()
        assert near.write(first) == len(first)
        run(*self.engines)
        far = self.heard_b.streams.pop()
        assert far.read() == first
        run(*self.engines)
        return near, far


def exchange(a: Link, b: Link, *engines: Engine, rounds: int = 4) -> None:
    """Carry the output of memory links to each other."""
    for _ in range(rounds):
        run(*engines, passes=1)
        for source, sink in ((a, b), (b, a)):
            if data := source.take_output():
                sink.feed(data)
    run(*engines, passes=1)


def drain(stream: LinkStream, size: int = 1 << 20) -> bytes:
    """All that can be read now."""
    parts = []
    while data := stream.read(size):
        parts.append(data)
    return b"".join(parts)
