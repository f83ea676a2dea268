"""A scene whose target relays, a listener that reserved there, and relays that touch what they carry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from flare import relay_server
from flare._core.splice import SpliceResult
from flare.config import Config, RelayLimits
from flare.errors import FlareError
from flare.host import Host
from flare.protocols.relay import connect, stop
from flare.relay_server import RelayServer
from flare.transport.stream import Stream
from flare.wire.messages import Limit
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.adversity.scene import LOOPBACK, QUICK, Scene, scene
from tests.support.aio import eventually
from tests.support.proxy import Cut, Fault, Mangle, Plan, Stall


@dataclass
class Relayed:
    """`relay` is the scene's target; `listener` holds a reservation on it."""

    scene: Scene
    relay: Host
    server: RelayServer
    listener: Host

    @property
    def addr(self) -> Multiaddr:
        """The listener through the relay."""
        return Multiaddr(f"{self.relay.full_addrs[0]}/p2p-circuit/p2p/{self.listener.peer_id}")

    async def raw(self, dialler: Host) -> tuple[Stream, Limit | None]:
        """The bare circuit to the listener, without a handshake in it."""
        through = await dialler.connect(self.relay.full_addrs[0])
        return await connect.connect(through, self.listener.peer_id, timeout=5)


@asynccontextmanager
async def relayed(
    limits: RelayLimits | None = None, *, config: Config = QUICK, lanes: int = 0
) -> AsyncIterator[Relayed]:
    """A relay and a listener. At the end no circuit is left."""
    async with (
        scene(lanes=lanes, config=config) as the_scene,
        RelayServer(the_scene.target, limits) as server,
        Host(listen=[LOOPBACK], relays=the_scene.target.full_addrs, config=config, punch=False) as listener,
    ):
        await eventually(lambda: server.reservations == 1, "reserved")
        await eventually(lambda: any(addr.is_circuit for addr in listener.addrs), "and knows it")
        yield Relayed(the_scene, the_scene.target, server, listener)
        await eventually(lambda: server.circuits == 0, "circuits are over")


def serve_raw(listener: Host, handler: Callable[[Stream], Any]) -> None:
    """Let `handler` have the bare bytes of the circuits that come to `listener`."""

    async def accept(stream: Stream) -> None:
        incoming = await stop.accept(stream)
        await handler(incoming.stream)

    listener.unhandle(stop.PROTOCOL)
    listener.handle(stop.PROTOCOL, accept)


class TouchingSplice:
    """Copies between two streams as a relay does, and does to the bytes what `plan` says."""

    def __init__(self, a: Stream, b: Stream, plan: Plan, on_done: Callable[[SpliceResult], None]) -> None:
        self._on_done = on_done
        self.task = asyncio.ensure_future(self._run(a, b, plan))

    def cancel(self) -> None:
        self.task.cancel()

    async def _run(self, a: Stream, b: Stream, plan: Plan) -> None:
        up, down = self._way(a, b, plan.up), self._way(b, a, plan.down)
        ways = [asyncio.ensure_future(up), asyncio.ensure_future(down)]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
            for way in done:
                way.result()
            a.close_now()
            b.close_now()
        except FlareError:
            a.reset()
            b.reset()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._on_done(SpliceResult("closed", 0, 0))

    async def _way(self, source: Stream, sink: Stream, faults: Any) -> None:
        offset = 0
        fault: Fault | None = faults[0] if faults else None
        while chunk := await source.read():
            if fault is not None and isinstance(fault.at, int) and offset <= fault.at < offset + len(chunk):
                head, tail = chunk[: fault.at - offset], chunk[fault.at - offset :]
                match fault:
                    case Cut(reset=reset):
                        await sink.write(head)
                        if reset:
                            raise FlareError("cut")
                        await sink.close_write()
                        await source.close_write()
                        return
                    case Stall():
                        await sink.write(head)
                        while await source.read():
                            pass
                        return
                    case Mangle(bit=bit):
                        chunk = head + bytes((tail[0] ^ 1 << bit,)) + tail[1:]
            offset += len(chunk)
            await sink.write(chunk)
        await sink.close_write()


@contextlib.contextmanager
def touching(plans: dict[PeerId, Plan]) -> Any:
    """In here relays touch what they carry for these diallers."""
    honest = relay_server._splice

    def splice(a: Stream, b: Stream, **how: Any) -> Any:
        plan = plans.get(a.connection.remote_peer)
        return honest(a, b, **how) if plan is None else TouchingSplice(a, b, plan, how["on_done"])

    relay_server._splice = splice  # type: ignore[assignment]
    try:
        yield
    finally:
        relay_server._splice = honest
