"""Two ends of a connection without a network: what one end opens, the other handles, after `latency`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from flare.config import Timeouts
from flare.errors import ConnectionClosed, FlareError, LimitedConnection, ProtocolNotSupported
from flare.lab import virtual
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.streams import MemoryCore

ALICE, BOB, CAROL, RELAY = (Identity.generate() for _ in range(4))
ALICE_ADDR = Multiaddr("/ip4/1.2.3.4/tcp/4001")
BOB_ADDR = Multiaddr("/ip4/5.6.7.8/tcp/4002")
RELAY_ADDR = Multiaddr("/ip4/9.8.7.6/tcp/4003")

Handler = Callable[[Stream], Awaitable[None]]


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Decorate an `async def test_...`: it runs on virtual time, from second 0, and must leave no task."""

    @functools.wraps(test)
    def on_virtual_time(*args: Any, **kwargs: Any) -> None:
        async def supervised() -> None:
            await test(*args, **kwargs)
            await asyncio.sleep(0.1)
            leaked = {t for t in asyncio.all_tasks() if t is not asyncio.current_task()}
            assert not leaked, f"tasks left running: {leaked}"

        virtual.run(supervised())

    on_virtual_time.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return on_virtual_time


def now() -> float:
    """Seconds on the running loop's clock."""
    return asyncio.get_running_loop().time()


class LatentCore(MemoryCore):
    """A MemoryCore whose bytes travel for `latency` seconds."""

    latency = 0.0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if not self.latency:
            return super().write(data)
        self._check()
        room = self.window - len(self.other._inbox) - self._in_flight
        taken = bytes(data[: max(0, room)])
        self._in_flight += len(taken)
        asyncio.get_running_loop().call_later(self.latency, self._deliver, taken)
        return len(taken)

    def close_write(self) -> None:
        if not self.latency:
            super().close_write()
        elif not self.write_closed:
            self.write_closed = True
            asyncio.get_running_loop().call_later(self.latency, self._deliver_fin)


class End:
    """One end of a connection, as far as a protocol sees it. `handlers` answer what the other end opens."""

    other: End

    def __init__(self, local: PeerId, remote: PeerId, *, initiator: bool, **values: Any) -> None:
        self.local_peer = local
        self.remote_peer = remote
        self.remote_key = next(
            (known.public_key for known in (ALICE, BOB, CAROL, RELAY) if known.peer_id == remote), None
        )
        self.local_addr: Multiaddr | None = None
        self.remote_addr: Multiaddr = RELAY_ADDR
        self.initiator = initiator
        self.limit: Any = None
        self.relay: PeerId | None = None
        self.path = "direct/tcp"
        self.timeouts = Timeouts()
        self.opened_at = time.time()
        self.closed = False
        self.close_reason: BaseException | None = None
        self.handlers: dict[str, Handler] = {}
        self.opened: list[str] = []
        self.charged: list[tuple[float, str]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.latency = 0.0
        self._gone = asyncio.Event()
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def is_limited(self) -> bool:
        return self.limit is not None

    @property
    def is_relayed(self) -> bool:
        return self.relay is not None

    def charge(self, price: float, what: str) -> bool:
        self.charged.append((price, what))
        return True

    def open_stream(
        self, *protocols: str, allow_limited: bool = False, lazy: bool = False, timeout: float | None = None
    ) -> Any:
        return _Opening(self, protocols, allow_limited)

    def _handle(self, handler: Handler, stream: Stream) -> None:
        async def run() -> None:
            try:
                await handler(stream)
            except (FlareError, OSError):
                if not stream.closed:
                    stream.reset()
            else:
                if not stream.kept:
                    stream.close_now()

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        self.abort()

    def abort(self, reason: object = None) -> None:
        for end in (self, self.other):
            end.closed = True
            end._gone.set()

    async def wait_closed(self) -> None:
        await self._gone.wait()


class _Opening:
    """Opens at await time, as a real connection does."""

    def __init__(self, end: End, protocols: tuple[str, ...], allow_limited: bool) -> None:
        self._end, self._protocols, self._allow_limited = end, protocols, allow_limited
        self._stream: Stream

    def __await__(self) -> Any:
        return self._open().__await__()

    async def __aenter__(self) -> Stream:
        self._stream = await self._open()
        return self._stream

    async def __aexit__(self, *exc: Any) -> None:
        await self._stream.__aexit__(*exc)

    async def _open(self) -> Stream:
        end, protocol = self._end, self._protocols[0]
        if end.closed:
            raise ConnectionClosed("the connection is closed")
        if end.is_limited and not self._allow_limited:
            raise LimitedConnection(f"{protocol} is not allowed on a limited connection")
        if end.latency:
            await asyncio.sleep(2 * end.latency)
        handler = end.other.handlers.get(protocol)
        if handler is None:
            raise ProtocolNotSupported(self._protocols, end.remote_peer)
        near, far = LatentCore(False), LatentCore(True)
        near.other, far.other = far, near
        near.latency = far.latency = end.latency
        end.opened.append(protocol)
        stream = Stream(near, end, protocol)  # type: ignore[arg-type]
        end.other._handle(handler, Stream(far, end.other, protocol))  # type: ignore[arg-type]
        return stream


def linked(
    dialler: Identity = ALICE, listener: Identity = BOB, *, latency: float = 0.0, **values: Any
) -> tuple[End, End]:
    """Both ends of a connection: the dialler's, the listener's. `values` are set on both."""
    near = End(dialler.peer_id, listener.peer_id, initiator=True, latency=latency, **values)
    far = End(listener.peer_id, dialler.peer_id, initiator=False, latency=latency, **values)
    near.other, far.other = far, near
    near.local_addr, near.remote_addr = ALICE_ADDR, BOB_ADDR
    far.local_addr, far.remote_addr = BOB_ADDR, ALICE_ADDR
    return near, far


def relayed(
    dialler: Identity = ALICE, listener: Identity = BOB, *, latency: float = 0.0, limit: Any = None
) -> tuple[End, End]:
    """Both ends of a connection through RELAY."""
    near, far = linked(dialler, listener, latency=latency, relay=RELAY.peer_id, limit=limit, path="relayed")
    circuit = Multiaddr(f"{RELAY_ADDR}/p2p/{RELAY.peer_id}/p2p-circuit")
    for end in (near, far):
        end.local_addr, end.remote_addr = None, circuit
    return near, far
