"""A TCP proxy on loopback that breaks what passes through it, at a byte of one's choice.

    async with FaultProxy(target) as proxy:
        proxy.plan = Plan(up=[Cut(at=17)], down=[Split(1)])
        ...connect to proxy.host, proxy.port...
        proxy.runs[-1].up.data          # what the dialler sent

"up" is from the dialler to the target. Every connection runs by the plan that was set when it was accepted,
and is recorded: a test runs once without a fault and then once for each byte that it saw. A fault's `at`
counts bytes from the start of its direction, or is `Chunk(n)`: the first byte of the n-th read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

READ = 64 * 1024


@dataclass(frozen=True)
class Chunk:
    """The first byte of the n-th read from the sender, counted from 0."""

    n: int


@dataclass(frozen=True)
class Fault:
    """What happens once the byte at `at` is next."""

    at: int | Chunk = 0


@dataclass(frozen=True)
class Cut(Fault):
    """Both sides see the end of the connection: FIN, or RST with `reset`."""

    reset: bool = False


@dataclass(frozen=True)
class Stall(Fault):
    """From here on this direction delivers nothing, not even the end; the connection stays open."""


@dataclass(frozen=True)
class Mangle(Fault):
    """Flip one bit of the byte."""

    bit: int = 0


@dataclass(frozen=True)
class Delay(Fault):
    """Hold the byte and what follows for a while."""

    seconds: float = 0.05


@dataclass(frozen=True)
class Duplicate(Fault):
    """Deliver `n` bytes twice."""

    n: int = 1


@dataclass(frozen=True)
class Truncate(Fault):
    """Leave out `n` bytes."""

    n: int = 1


@dataclass(frozen=True)
class Split:
    """Deliver in pieces of `sizes` bytes in turn; with `upto`, random ones from a seed. Each is a packet."""

    sizes: Sequence[int] = (1,)
    upto: int = 0
    seed: int = 0

    def pieces(self) -> Iterable[int]:
        """Sizes without end."""
        chance = random.Random(self.seed)
        while True:
            if self.upto:
                yield chance.randint(1, self.upto)
            else:
                yield from self.sizes


@dataclass(frozen=True)
class Plan:
    """What is done to each direction."""

    up: Sequence[Fault | Split] = ()
    down: Sequence[Fault | Split] = ()


@dataclass
class Recording:
    """One direction as the sender sent it: all bytes, and where each read began."""

    data: bytearray = field(default_factory=bytearray)
    chunks: list[int] = field(default_factory=list)
    struck: bool = False  # a fault happened


@dataclass
class Run:
    """One connection through the proxy."""

    up: Recording = field(default_factory=Recording)
    down: Recording = field(default_factory=Recording)


class _Ended(Exception):
    """A cut."""


class FaultProxy:
    """Listens on loopback and connects each connection on to `target`, a host and port."""

    def __init__(self, target: tuple[str, int], plan: Plan | None = None) -> None:
        self.target = target
        self.plan = plan or Plan()
        self.runs: list[Run] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._socks: set[socket.socket] = set()

    async def __aenter__(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()
        self._start(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        for sock in list(self._socks):
            self._close(sock)

    @property
    def open(self) -> int:
        """How many sockets are open, two for each connection."""
        return len(self._socks)

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            self._socks.add(near)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve(near, self.plan))

    async def _serve(self, near: socket.socket, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        far = socket.socket()
        self._socks.add(far)
        far.setblocking(False)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        run = Run()
        self.runs.append(run)
        ways: list[asyncio.Task[None]] = []
        try:
            await loop.sock_connect(far, self.target)
            ways = [
                asyncio.ensure_future(_Way(near, far, plan.up, run.up).carry()),
                asyncio.ensure_future(_Way(far, near, plan.down, run.down).carry()),
            ]
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            for way in done:
                way.result()
        except _Ended as cut:
            await _cancel(ways)
            if cut.args[0]:
                _reset_on_close(near, far)
            else:
                await asyncio.gather(_drain(near), _drain(far))
        except OSError:
            pass  # the target is gone, or one side reset: the other sees the end
        finally:
            await _cancel(ways)
            self._close(near)
            self._close(far)

    def _close(self, sock: socket.socket) -> None:
        self._socks.discard(sock)
        sock.close()


class _Way:
    """One direction of one connection."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, plan: Sequence[Fault | Split], recording: Recording
    ) -> None:
        self._source = source
        self._sink = sink
        self._recording = recording
        self._faults = [item for item in plan if isinstance(item, Fault)]
        self._pieces = next((iter(item.pieces()) for item in plan if isinstance(item, Split)), None)
        self._loop = asyncio.get_running_loop()
        self._stalled = False

    async def carry(self) -> None:
        while data := await self._loop.sock_recv(self._source, READ):
            start = len(self._recording.data)
            self._recording.chunks.append(start)
            self._recording.data += data
            await self._deliver(start, data)
        if not self._stalled:
            self._sink.shutdown(socket.SHUT_WR)

    async def _deliver(self, start: int, data: bytes) -> None:
        while data:
            due = self._next_fault(start, len(data))
            if due is None:
                await self._send(data)
                return
            at, fault = due
            await self._send(data[: at - start])
            data = await self._strike(fault, data[at - start :])
            if isinstance(fault, Truncate):  # bytes of later reads are left out too
                missing = fault.n - (len(self._recording.data) - at)
                if missing > 0:
                    self._faults.append(Truncate(len(self._recording.data), missing))
            start = len(self._recording.data) - len(data)

    def _next_fault(self, start: int, size: int) -> tuple[int, Fault] | None:
        """The first fault of those that remain within these bytes, and its offset."""
        due: list[tuple[int, Fault]] = []
        for fault in self._faults:
            at = fault.at
            if isinstance(at, Chunk):
                if at.n >= len(self._recording.chunks):
                    continue
                at = self._recording.chunks[at.n]
            if start <= at < start + size:
                due.append((at, fault))
        if not due:
            return None
        found = min(due, key=lambda item: item[0])
        self._faults.remove(found[1])
        return found

    async def _strike(self, fault: Fault, data: bytes) -> bytes:
        """Do it; gives what is left to deliver."""
        self._recording.struck = True
        match fault:
            case Cut(reset=reset):
                raise _Ended(reset)
            case Stall():
                self._stalled = True
            case Mangle(bit=bit):
                return bytes((data[0] ^ 1 << bit,)) + data[1:]
            case Delay(seconds=seconds):
                await asyncio.sleep(seconds)
            case Duplicate(n=n):
                await self._send(data[:n])
            case Truncate(n=n):
                return data[n:]
        return data

    async def _send(self, data: bytes) -> None:
        if self._stalled or not data:
            return
        if self._pieces is None:
            await self._loop.sock_sendall(self._sink, data)
            return
        while data:
            size = next(self._pieces)  # type: ignore[call-overload]
            await self._loop.sock_sendall(self._sink, data[:size])
            data = data[size:]
            await asyncio.sleep(0)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reset_on_close(*socks: socket.socket) -> None:
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def _drain(sock: socket.socket) -> None:
    """Say FIN, and read until the other side is gone (a second at most): a close with unread bytes is RST."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(1):
            while await loop.sock_recv(sock, READ):
                pass
