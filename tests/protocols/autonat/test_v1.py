"""AutoNAT v1: our client and our server, on virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from flare.errors import NetworkError, ProtocolViolation, StreamReset
from flare.protocols.autonat import V1_PROTOCOL
from flare.protocols.autonat.dialling import DialBacks
from flare.protocols.autonat.limiter import DialBackLimiter, DialBackLimits
from flare.protocols.autonat.v1_client import NodeVerdict, ask
from flare.protocols.autonat.v1_server import MAX_ADDRS, V1Server
from flare.protocols.exchange import TIMEOUTS
from flare.transport.stream import Stream
from flare.wire.autonat_messages import (
    DialResponseV1,
    DialStatusV1,
    DialV1,
    MessageTypeV1,
    MessageV1,
    PeerInfoV1,
)
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.linked import ALICE, ALICE_ADDR, BOB, linked, now, relayed, simulated

LISTEN = Multiaddr("/ip4/192.168.1.2/tcp/5555")


class Scene:
    """Alice, seen at ALICE_ADDR, asks Bob, who reaches the addresses in `open`."""

    def __init__(self, **limits: int) -> None:
        self.alice, self.bob = linked(ALICE, BOB, latency=0.05)
        self.open: set[Multiaddr] = set()
        self.dialled: list[Multiaddr] = []
        self.server = V1Server(
            DialBacks(
                dial=self.dial,
                limiter=DialBackLimiter(DialBackLimits(**limits), clock=now),
                can_dial=lambda addr: addr.transport == "tcp",
            )
        )
        self.bob.handlers[V1_PROTOCOL] = self.server.serve

    async def dial(self, addr: Multiaddr, peer: PeerId) -> Any:
        self.dialled.append(addr)
        if addr not in self.open:
            raise NetworkError("refused")
        near, _ = linked(BOB, ALICE)
        return near

    async def ask(self, *addrs: Multiaddr) -> NodeVerdict:
        return await ask(self.alice, addrs)  # type: ignore[arg-type]


@simulated
async def test_a_reachable_node() -> None:
    scene = Scene()
    there = Multiaddr("/ip4/1.2.3.4/tcp/5555")
    scene.open = {there}
    assert await scene.ask(LISTEN) == NodeVerdict(True, "the server connected", there)
    assert set(scene.dialled) == {ALICE_ADDR, there}, "at the observed IP, whatever was told"


@simulated
async def test_a_failure_takes_as_long_as_a_time_out() -> None:
    scene = Scene()
    assert (await scene.ask(LISTEN)).reachable is False
    assert TIMEOUTS.dial_back <= now() < TIMEOUTS.dial_back + 0.5


@simulated
async def test_what_is_not_dialled() -> None:
    scene = Scene()
    circuit = ALICE_ADDR / f"p2p/{BOB.peer_id}" / "p2p-circuit"
    await scene.ask(circuit, Multiaddr("/dns/example.com/tcp/1"), Multiaddr("/ip4/9.9.9.9/udp/1/quic-v1"))
    assert scene.dialled == [ALICE_ADDR]


@simulated
async def test_how_many_are_dialled() -> None:
    scene = Scene()
    await scene.ask(*(Multiaddr(f"/ip4/1.2.3.4/tcp/{port}") for port in range(1, 40)))
    assert len(scene.dialled) == MAX_ADDRS


@simulated
async def test_refusals_are_no_evidence() -> None:
    scene = Scene(per_peer=1)
    scene.open = {ALICE_ADDR}
    assert (await scene.ask(LISTEN)).reachable is True
    refused = await scene.ask(LISTEN)
    assert (refused.reachable, refused.reason) == (
        None,
        "the server refused with status 101: too many requests",
    )
    scene.alice, scene.bob = relayed(ALICE, BOB)
    scene.bob.handlers[V1_PROTOCOL] = scene.server.serve
    assert (await scene.ask(LISTEN)).reachable is None
    private, bob = linked(ALICE, BOB)
    bob.remote_addr = LISTEN
    bob.handlers[V1_PROTOCOL] = scene.server.serve
    assert (await ask(private, [LISTEN])).reachable is None  # type: ignore[arg-type]
    assert len(scene.dialled) == 2


@pytest.mark.parametrize("info", [None, PeerInfoV1(bytes(BOB.peer_id)), PeerInfoV1(b"junk")])
def test_requests_for_others_are_refused(info: PeerInfoV1 | None) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()
        async with scene.alice.open_stream(V1_PROTOCOL) as stream:
            await stream.write_frame(MessageV1(MessageTypeV1.DIAL, DialV1(info)).encode())
            answer = MessageV1.decode(await stream.read_frame(4096)).response
        assert answer is not None
        assert answer.status == DialStatusV1.BAD_REQUEST
        assert scene.dialled == []

    run()


@simulated
async def test_a_request_that_is_none() -> None:
    scene = Scene()
    stream = await scene.alice.open_stream(V1_PROTOCOL)
    await stream.write_frame(MessageV1(MessageTypeV1.DIAL_RESPONSE).encode())
    with pytest.raises(StreamReset):
        await stream.read_frame(4096)


@pytest.mark.parametrize(
    ("answer", "reachable"),
    [
        (DialResponseV1(DialStatusV1.OK, None, ALICE_ADDR), True),
        (DialResponseV1(DialStatusV1.OK), None),
        (DialResponseV1(DialStatusV1.INTERNAL_ERROR), None),
        (DialResponseV1(None), None),
        (DialResponseV1(DialStatusV1.DIAL_ERROR), False),
    ],
)
def test_how_answers_are_read(answer: DialResponseV1, reachable: bool | None) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()

        async def serve(stream: Stream) -> None:
            await stream.read_frame(4096)
            await stream.write_frame(MessageV1(MessageTypeV1.DIAL_RESPONSE, None, answer).encode())

        scene.bob.handlers[V1_PROTOCOL] = serve
        assert (await scene.ask()).reachable is reachable

    run()


@simulated
async def test_an_answer_that_is_none() -> None:
    scene = Scene()

    async def serve(stream: Stream) -> None:
        await stream.read_frame(4096)
        await stream.write_frame(MessageV1(MessageTypeV1.DIAL).encode())

    scene.bob.handlers[V1_PROTOCOL] = serve
    with pytest.raises(ProtocolViolation):
        await scene.ask()
