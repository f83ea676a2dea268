"""HOP, the relay's side, on virtual time: a service, its clients, and a splice that carries nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flare.config import RelayLimits
from flare.lab import virtual
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL, stop
from flare.protocols.relay.hop import HopService, RelayEvent
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.messages import HopMessage, HopType, RelayPeer, Status
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE_ADDR, BOB_ADDR, RELAY, RELAY_ADDR, End, linked

RESERVE = HopMessage(type=HopType.RESERVE)


def connect_to(peer: Identity) -> HopMessage:
    return HopMessage(type=HopType.CONNECT, peer=RelayPeer(id=peer.peer_id))


@dataclass
class Result:
    reason: str
    bytes_a_to_b: int = 0
    bytes_b_to_a: int = 0


class FakeSplice:
    """Stands in for the core's splice: records what it was told, and ends when the test says so."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.cancelled = 0

    def __call__(self, a: Stream, b: Stream, **told: Any) -> FakeJoint:
        self.calls.append({"a": a, "b": b, **told})
        return FakeJoint(self, told["on_done"])

    def end(self, reason: str = "closed", sent: int = 0, received: int = 0, *, which: int = -1) -> None:
        self.calls[which]["on_done"](Result(reason, sent, received))


class FakeJoint:
    """One pair of streams that a FakeSplice joined."""

    bytes_a_to_b = bytes_b_to_a = 0

    def __init__(self, owner: FakeSplice, on_done: Callable[[Result], None]) -> None:
        self.owner, self.on_done = owner, on_done

    def cancel(self) -> None:
        self.owner.cancelled += 1
        self.on_done(Result("cancelled"))


class Bench:
    """A relay, and clients connected to it."""

    def __init__(self, limits: RelayLimits | None = None, **values: Any) -> None:
        self.splice = FakeSplice()
        self.events: list[RelayEvent] = []
        self.addrs = [RELAY_ADDR]
        self.service = HopService(
            identity=RELAY,
            addrs=lambda: self.addrs,
            splice=self.splice,
            limits=limits,
            on_event=self.events.append,
            unix=virtual.unix,
            clock_ns=virtual.monotonic_ns,
            **values,
        )
        self.at_relay: list[End] = []

    def client(self, identity: Identity, addr: Multiaddr = ALICE_ADDR, **values: Any) -> End:
        near, far = linked(identity, RELAY, **values)
        far.remote_addr, far.local_addr = addr, RELAY_ADDR
        far.handlers[HOP_PROTOCOL] = self.service.serve
        self.at_relay.append(far)
        return near

    def target(self, identity: Identity, answer: Status | Callable[[Stream], Any] = Status.OK) -> End:
        """A client that answers STOP."""
        end = self.client(identity, BOB_ADDR)

        async def handle(stream: Stream) -> None:
            if callable(answer):
                await answer(stream)
            elif answer is Status.OK:
                (await stop.accept(stream)).stream.keep()
            else:
                await stop._answer(stream, answer)

        end.handlers[STOP_PROTOCOL] = handle
        return end

    async def ask(self, client: End, request: HopMessage) -> tuple[HopMessage, Stream]:
        stream = await client.open_stream(HOP_PROTOCOL)
        await stream.write_frame(request.encode())
        return HopMessage.decode(await stream.read_frame(MESSAGE_LIMIT)), stream

    async def reserve(self, client: End) -> HopMessage:
        answer, stream = await self.ask(client, RESERVE)
        await stream.close()
        return answer

    async def status(self, client: End, request: HopMessage) -> int | None:
        answer, stream = await self.ask(client, request)
        await stream.close()
        await asyncio.sleep(0.01)
        return answer.status
