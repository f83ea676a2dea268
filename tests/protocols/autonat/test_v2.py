"""AutoNAT v2, our client and our server against each other and against liars, on virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from flare._core.wire import encode_uvarint
from flare.errors import NetworkError, ProtocolViolation, ResourceLimit, StreamReset
from flare.protocols.autonat import DATA_FIRST, DATA_LAST, DIAL_BACK_PROTOCOL, DIAL_PROTOCOL, REQUEST_LIMIT
from flare.protocols.autonat.dialling import DialBacks
from flare.protocols.autonat.limiter import DialBackLimiter, DialBackLimits
from flare.protocols.autonat.v2_client import AT_ONCE, DIAL_BACK_LIMIT, MAX_ASKED, DialBackClient, Verdict
from flare.protocols.autonat.v2_server import HERD_WAIT, LEAST_PIECE, DialBackServer
from flare.transport.stream import Stream
from flare.wire.autonat_messages import (
    DialBack,
    DialDataRequest,
    DialDataResponse,
    DialMessage,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.linked import ALICE, ALICE_ADDR, BOB, End, linked, now, relayed, simulated

SERVER = Identity.generate()  # as it dials back: nobody whom Alice knows
ELSEWHERE = Multiaddr("/ip4/100.64.0.1/tcp/4001")
FOREIGN = Multiaddr("/ip4/11.22.33.44/tcp/4001")


class Scene:
    """Alice asks, Bob dials back; `come` is how Alice's side of the dial-back looks, None for nobody home."""

    def __init__(self, *, latency: float = 0.05, limits: DialBackLimits | None = None, **server: Any) -> None:
        self.alice, self.bob = linked(ALICE, BOB, latency=latency)
        self.latency = latency
        self.home: Multiaddr | None = Multiaddr("/ip4/192.168.1.2/tcp/4001")
        self.drops = False
        self.client = DialBackClient()
        self.dialled: list[Multiaddr] = []
        self.server = DialBackServer(
            DialBacks(
                dial=self.dial,
                limiter=DialBackLimiter(limits or DialBackLimits(), clock=now),
                can_dial=lambda addr: addr.transport == "tcp",
            ),
            chance=random.Random(1),
            **server,
        )
        self.bob.handlers[DIAL_PROTOCOL] = self.server.serve

    async def dial(self, addr: Multiaddr, peer: PeerId) -> Any:
        assert peer == ALICE.peer_id
        self.dialled.append(addr)
        if self.drops:
            await asyncio.sleep(3600)
        if self.home is None:
            raise NetworkError("nobody home")
        server, alice = linked(SERVER, ALICE, latency=self.latency)
        alice.local_addr = self.home
        alice.handlers[DIAL_BACK_PROTOCOL] = self.client.serve
        return server

    async def check(self, addr: Multiaddr = ALICE_ADDR) -> Verdict:
        return await self.client.check(self.alice, addr)  # type: ignore[arg-type]

    def serve_with(self, handler: Any) -> None:
        self.bob.handlers[DIAL_PROTOCOL] = handler


@simulated
async def test_a_reachable_address() -> None:
    scene = Scene()
    verdict = await scene.check()
    assert verdict.reachable is True
    assert scene.dialled == [ALICE_ADDR]
    assert now() < 1


@simulated
async def test_an_address_where_nobody_is() -> None:
    scene = Scene()
    scene.home = None
    assert (await scene.check()).reachable is False


@simulated
async def test_a_dial_that_a_nat_drops_is_told_of_before_rust_libp2p_gives_up() -> None:
    """Its client waits ten seconds for a whole request; a foreign IP takes some of them first."""
    scene = Scene()
    scene.drops = True
    assert (await scene.check()).reachable is False
    assert now() + HERD_WAIT < 9.5


@simulated
async def test_a_foreign_ip_costs_data_and_a_wait_and_then_is_dialled() -> None:
    scene = Scene(latency=0)
    got = 0
    original = scene.server.serve

    async def counting(stream: Stream) -> None:
        nonlocal got
        read = stream.read_frame

        async def counted(limit: int) -> bytes:
            nonlocal got
            frame = await read(limit)
            got += len(frame)
            return frame

        stream_any: Any = type("Counting", (), {"read_frame": staticmethod(counted)})()
        stream_any.connection, stream_any.write_frame, stream_any.close = (
            stream.connection,
            stream.write_frame,
            stream.close,
        )
        await original(stream_any)

    scene.serve_with(counting)
    assert (await scene.check(FOREIGN)).reachable is True
    assert DATA_FIRST <= got <= DATA_LAST + 4096
    assert scene.dialled == [FOREIGN]
    assert 0 < now() <= 3.1


@simulated
async def test_addresses_that_are_not_dialled() -> None:
    scene = Scene()
    for addr in (
        Multiaddr("/ip4/192.168.1.2/tcp/4001"),
        Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1"),  # this server has no QUIC
        ALICE_ADDR / f"p2p/{BOB.peer_id}" / "p2p-circuit",
    ):
        verdict = await scene.check(addr)
        assert verdict.reachable is None
        assert "does not dial such an address" in verdict.reason
    assert scene.dialled == []


@simulated
async def test_the_first_that_can_be_dialled_is_and_no_other() -> None:
    scene = Scene()
    async with scene.alice.open_stream(DIAL_PROTOCOL) as stream:
        addrs = (b"\xff\x00junk", bytes(Multiaddr("/ip4/10.0.0.1/tcp/1")), bytes(ALICE_ADDR), bytes(FOREIGN))
        await stream.write_frame(DialMessage(request=DialRequest(addrs, 7)).encode())
        answer = DialMessage.decode(await stream.read_frame(8192)).response
    assert answer == DialResponse(ResponseStatus.OK, 2, DialStatus.OK)
    assert scene.dialled == [ALICE_ADDR]


@pytest.mark.parametrize(("count", "status"), [(49, ResponseStatus.OK), (50, ResponseStatus.DIAL_REFUSED)])
def test_how_many_addresses_are_looked_at(count: int, status: ResponseStatus) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()
        async with scene.alice.open_stream(DIAL_PROTOCOL) as stream:
            addrs = (b"junk",) * count + (bytes(ALICE_ADDR),)
            await stream.write_frame(DialMessage(request=DialRequest(addrs, 7)).encode())
            answer = DialMessage.decode(await stream.read_frame(8192)).response
        assert answer is not None
        assert answer.status == status

    run()


@simulated
async def test_over_a_relay_nothing_is_dialled() -> None:
    scene = Scene()
    scene.alice, scene.bob = relayed(ALICE, BOB)
    scene.bob.handlers[DIAL_PROTOCOL] = scene.server.serve
    verdict = await scene.check()
    assert (verdict.reachable, verdict.reason) == (None, "the server is too busy")
    assert scene.dialled == []


@simulated
async def test_a_peer_has_twelve_requests_a_minute() -> None:
    scene = Scene()
    for _ in range(12):
        assert (await scene.check()).reachable is True
    assert "too busy" in (await scene.check()).reason


async def _pay(scene: Scene, sizes: list[int]) -> DialMessage | None:
    """Ask for a foreign address and pay in pieces of `sizes`."""
    stream = await scene.alice.open_stream(DIAL_PROTOCOL)
    await stream.write_frame(DialMessage(request=DialRequest((bytes(FOREIGN),), 1)).encode())
    asked = DialMessage.decode(await stream.read_frame(8192)).data_request
    assert asked is not None
    assert asked.index == 0
    assert DATA_FIRST <= asked.size <= DATA_LAST
    try:
        for size in sizes:
            await stream.write_frame(DialMessage(data_response=DialDataResponse(bytes(size))).encode())
        return DialMessage.decode(await stream.read_frame(8192))
    except StreamReset:
        return None
    finally:
        stream.reset()


@simulated
async def test_data_in_crumbs_is_refused() -> None:
    assert await _pay(Scene(), [LEAST_PIECE - 1]) is None
    assert await _pay(Scene(), [LEAST_PIECE] * 1001) is not None
    assert await _pay(Scene(), [4096] * 25) is not None, "and the last piece may be too large"


@simulated
async def test_foreign_dials_have_a_limit_of_their_own() -> None:
    scene = Scene(limits=DialBackLimits(foreign=1))
    assert (await scene.check(FOREIGN)).reachable is True
    assert "too busy" in (await scene.check(FOREIGN)).reason
    assert (await scene.check(ALICE_ADDR)).reachable is True


@simulated
async def test_a_request_that_is_none() -> None:
    scene = Scene()
    stream = await scene.alice.open_stream(DIAL_PROTOCOL)
    await stream.write_frame(DialMessage(response=DialResponse()).encode())
    with pytest.raises(StreamReset):
        await stream.read_frame(8192)


# -- a client and servers that lie


def _answering(response: DialMessage, *more: DialMessage) -> Any:
    async def serve(stream: Stream) -> None:
        await stream.read_frame(8192)
        for message in (response, *more):
            await stream.write_frame(message.encode())
        await stream.close()

    return serve


@simulated
async def test_a_server_that_only_says_that_it_dialled() -> None:
    scene = Scene()
    scene.serve_with(_answering(DialMessage(response=DialResponse(ResponseStatus.OK, 0, DialStatus.OK))))
    verdict = await scene.check()
    assert (verdict.reachable, verdict.lied) == (None, True)
    assert 5 <= now() < 6


@simulated
async def test_a_server_that_connected_and_could_not_speak() -> None:
    scene = Scene()
    scene.serve_with(
        _answering(DialMessage(response=DialResponse(ResponseStatus.OK, 0, DialStatus.DIAL_BACK_ERROR)))
    )
    verdict = await scene.check()
    assert (verdict.reachable, verdict.lied) == (None, False)


@simulated
async def test_a_dial_back_to_another_transport_proves_nothing() -> None:
    scene = Scene()
    scene.home = Multiaddr("/ip6/fd00::2/tcp/4001")
    verdict = await scene.check()
    assert (verdict.reachable, verdict.lied) == (None, True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (DialResponse(ResponseStatus.INTERNAL_ERROR), "failed"),
        (DialResponse(777), "answered 777"),
        (DialResponse(ResponseStatus.OK, 0, DialStatus.UNUSED), "unknown dial status 0"),
        (DialResponse(ResponseStatus.OK, 0, 555), "unknown dial status 555"),
    ],
)
def test_answers_that_are_no_evidence(answer: DialResponse, words: str) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()
        scene.serve_with(_answering(DialMessage(response=answer)))
        verdict = await scene.check()
        assert verdict.reachable is None
        assert words in verdict.reason

    run()


@pytest.mark.parametrize(
    "answer",
    [
        DialMessage(),
        DialMessage(response=DialResponse(ResponseStatus.OK, 1, DialStatus.OK)),
        DialMessage(data_request=DialDataRequest(1, 30_000)),
        DialMessage(data_request=DialDataRequest(0, DATA_LAST + 1)),
    ],
)
def test_answers_that_break_the_protocol(answer: DialMessage) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()
        scene.serve_with(_answering(answer))
        with pytest.raises(ProtocolViolation):
            await scene.check()

    run()


@simulated
async def test_the_most_data_that_is_paid() -> None:
    scene = Scene()
    got = 0

    async def greedy(stream: Stream) -> None:
        nonlocal got
        await stream.read_frame(8192)
        await stream.write_frame(DialMessage(data_request=DialDataRequest(0, DATA_LAST)).encode())
        while got < DATA_LAST:
            piece = DialMessage.decode(await stream.read_frame(4104)).data_response
            assert piece is not None
            assert len(piece.data) <= 4096
            got += len(piece.data)
        await stream.write_frame(DialMessage(response=DialResponse(ResponseStatus.REQUEST_REJECTED)).encode())
        await stream.close()

    scene.serve_with(greedy)
    assert (await scene.check()).reachable is None
    assert got == DATA_LAST


@simulated
async def test_a_nonce_that_nobody_asked_for() -> None:
    client = DialBackClient()
    stranger, alice = linked(SERVER, ALICE)
    alice.handlers[DIAL_BACK_PROTOCOL] = client.serve
    stream = await stranger.open_stream(DIAL_BACK_PROTOCOL)
    await stream.write_frame(DialBack(1).encode())
    with pytest.raises(StreamReset):
        await stream.read_frame(100)


@simulated
async def test_a_silent_server_ends_in_time() -> None:
    async def silent(stream: Stream) -> None:
        await stream.read(1 << 20)
        await stream.read(1)

    scene = Scene()
    scene.serve_with(silent)
    with pytest.raises(TimeoutError, match="a dial-back by peer"):
        await scene.check()
    assert 30 <= now() < 31


@simulated
async def test_a_dial_back_answered_by_reset_counts() -> None:
    """go's client resets its stream after it has answered."""
    scene = Scene()

    async def rude(stream: Stream) -> None:
        await stream.read_frame(100)
        stream.reset()

    async def dial(addr: Multiaddr, peer: PeerId) -> Any:
        server, alice = linked(SERVER, ALICE)
        alice.handlers[DIAL_BACK_PROTOCOL] = rude
        return server

    server = DialBackServer(
        DialBacks(dial=dial, limiter=DialBackLimiter(DialBackLimits(), clock=now), can_dial=lambda addr: True)
    )
    scene.serve_with(server.serve)
    async with scene.alice.open_stream(DIAL_PROTOCOL) as stream:
        await stream.write_frame(DialMessage(request=DialRequest((bytes(ALICE_ADDR),), 7)).encode())
        answer = DialMessage.decode(await stream.read_frame(8192)).response
    assert answer == DialResponse(ResponseStatus.OK, 0, DialStatus.OK)
    assert isinstance(scene.alice, End)


class TestNonces:
    """A server that lies: it says that it dialled, and has the nonce told otherwise than by dialling."""

    @staticmethod
    def scene(tell: Any) -> Scene:
        """Bob answers OK at once, and `tell(scene, nonce)` is what he does before."""
        scene = Scene()

        async def serve(stream: Stream) -> None:
            request = DialMessage.decode(await stream.read_frame(8192)).request
            assert request is not None
            await tell(scene, request.nonce)
            await stream.write_frame(
                DialMessage(response=DialResponse(ResponseStatus.OK, 0, DialStatus.OK)).encode()
            )
            await stream.close()

        scene.serve_with(serve)
        return scene

    @staticmethod
    async def say(connection: Any, nonce: int) -> bool:
        """Whether the nonce was taken."""
        stream = await connection.open_stream(DIAL_BACK_PROTOCOL)
        await stream.write_frame(DialBack(nonce).encode())
        try:
            await stream.read_frame(100)
        except StreamReset:
            return False
        return True

    @simulated
    async def test_another_nonce(self) -> None:
        async def tell(scene: Scene, nonce: int) -> None:
            assert not await self.say(await scene.dial(ALICE_ADDR, ALICE.peer_id), nonce ^ 1)

        verdict = await self.scene(tell).check()
        assert (verdict.reachable, verdict.lied) == (None, True)

    @simulated
    async def test_twice(self) -> None:
        async def tell(scene: Scene, nonce: int) -> None:
            dialled = await scene.dial(ALICE_ADDR, ALICE.peer_id)
            assert await self.say(dialled, nonce)
            assert not await self.say(dialled, nonce), "it is known already"

        assert (await self.scene(tell).check()).reachable is True

    @simulated
    async def test_on_the_connection_that_we_asked_on(self) -> None:
        async def tell(scene: Scene, nonce: int) -> None:
            scene.alice.handlers[DIAL_BACK_PROTOCOL] = scene.client.serve
            await self.say(scene.bob, nonce)

        verdict = await self.scene(tell).check()
        assert (verdict.reachable, verdict.lied) == (None, True)
        assert "used a connection that was there" in verdict.reason

    @simulated
    async def test_on_an_inbound_connection_from_before(self) -> None:
        before: list[Any] = []

        async def tell(scene: Scene, nonce: int) -> None:
            await self.say(before[0], nonce)

        scene = self.scene(tell)
        before.append(await scene.dial(ALICE_ADDR, ALICE.peer_id))
        before[0].other.opened_at -= 1
        verdict = await scene.check()
        assert (verdict.reachable, verdict.lied) == (None, True)

    @simulated
    async def test_through_a_relay(self) -> None:
        async def tell(scene: Scene, nonce: int) -> None:
            server, alice = relayed(SERVER, ALICE)
            alice.handlers[DIAL_BACK_PROTOCOL] = scene.client.serve
            await self.say(server, nonce)

        verdict = await self.scene(tell).check()
        assert (verdict.reachable, verdict.lied) == (None, True)

    @simulated
    async def test_at_another_transport(self) -> None:
        async def tell(scene: Scene, nonce: int) -> None:
            await self.say(await scene.dial(ALICE_ADDR, ALICE.peer_id), nonce)

        quic = Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")
        scene = self.scene(tell)
        verdict = await scene.check(quic)
        assert (verdict.reachable, verdict.lied) == (None, True)
        scene.home = Multiaddr("/ip4/192.168.1.2/udp/4001/quic-v1")
        assert (await scene.check(quic)).reachable is True


@simulated
async def test_a_server_that_answers_twice() -> None:
    scene = Scene()
    no = DialMessage(response=DialResponse(ResponseStatus.OK, 0, DialStatus.DIAL_ERROR))
    scene.serve_with(_answering(no, DialMessage(response=DialResponse(ResponseStatus.OK, 0, DialStatus.OK))))
    assert (await scene.check()).reachable is False, "the first answer counts"


@simulated
async def test_a_third_request_to_a_server_waits_for_its_turn() -> None:
    scene = Scene()
    open_now = most = 0

    async def slow(stream: Stream) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(1)
        await stream.read_frame(8192)
        open_now -= 1
        await stream.write_frame(DialMessage(response=DialResponse(ResponseStatus.REQUEST_REJECTED)).encode())
        await stream.close()

    scene.serve_with(slow)
    await asyncio.gather(*(scene.check() for _ in range(AT_ONCE + 1)))
    assert most == AT_ONCE
    assert 2 <= now() < 3


@simulated
async def test_how_many_requests_are_under_way() -> None:
    client = DialBackClient()
    servers = [Identity.generate() for _ in range(MAX_ASKED // AT_ONCE + 1)]

    async def silent(stream: Stream) -> None:
        await asyncio.sleep(20)
        await stream.write_frame(DialMessage(response=DialResponse(ResponseStatus.REQUEST_REJECTED)).encode())
        await stream.close()

    asks = []
    for server in servers:
        alice, bob = linked(ALICE, server)
        bob.handlers[DIAL_PROTOCOL] = silent
        asks += [client.check(alice, ALICE_ADDR) for _ in range(AT_ONCE)]  # type: ignore[arg-type]
    running = [asyncio.ensure_future(ask) for ask in asks[:MAX_ASKED]]
    await asyncio.sleep(1)
    with pytest.raises(ResourceLimit):
        await asks[MAX_ASKED]
    asks[MAX_ASKED + 1].close()
    assert {verdict.reachable for verdict in await asyncio.gather(*running)} == {None}


@pytest.mark.parametrize(("size", "taken"), [(REQUEST_LIMIT, True), (REQUEST_LIMIT + 1, False)])
def test_how_long_a_request_may_be(size: int, taken: bool) -> None:
    @simulated
    async def run() -> None:
        scene = Scene()
        stream = await scene.alice.open_stream(DIAL_PROTOCOL)
        empty = len(DialMessage(request=DialRequest((bytes(ALICE_ADDR), bytes(8000)), 7)).encode()) - 8000
        addrs = (bytes(ALICE_ADDR), bytes(size - empty))
        filled = DialMessage(request=DialRequest(addrs, 7)).encode()
        assert len(filled) == size
        await stream.write_frame(filled)
        if taken:
            answer = DialMessage.decode(await stream.read_frame(8192)).response
            assert answer == DialResponse(ResponseStatus.OK, 0, DialStatus.OK)
        else:
            with pytest.raises(StreamReset):
                await stream.read_frame(8192)

    run()


@pytest.mark.parametrize(("size", "taken"), [(DIAL_BACK_LIMIT, True), (DIAL_BACK_LIMIT + 1, False)])
def test_how_long_a_dial_back_may_be(size: int, taken: bool) -> None:
    @simulated
    async def run() -> None:
        client = DialBackClient()
        heard = client._asked[7] = asyncio.get_running_loop().create_future()
        stranger, alice = linked(SERVER, ALICE)
        alice.handlers[DIAL_BACK_PROTOCOL] = client.serve
        stream = await stranger.open_stream(DIAL_BACK_PROTOCOL)
        nonce = DialBack(7).encode()
        await stream.write_frame(
            nonce + b"\x7a" + encode_uvarint(size - len(nonce) - 3) + bytes(size - len(nonce) - 3)
        )
        if taken:
            await stream.read_frame(100)
        else:
            with pytest.raises(StreamReset):
                await stream.read_frame(100)
        assert heard.done() == taken

    run()
