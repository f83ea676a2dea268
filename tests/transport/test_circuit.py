"""Connections inside circuits: two peers, a relay that splices, and what happens when any of the three goes
away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from flare._core.splice import SpliceResult, splice
from flare.config import Config, Timeouts
from flare.errors import FlareError, LimitedConnection, NetworkError, PeerMismatch, TimedOut
from flare.transport import circuit
from flare.transport.connection import Connection
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.messages import Limit
from flare.wire.peer_id import PeerId
from tests.support.aio import aio, eventually
from tests.support.hosts import Node

QUICK = Config(timeouts=replace(Timeouts(), negotiate=0.3, close=0.5, handshake=0.3, dial=0.3))


@dataclass
class Circuit:
    """Two ends of a circuit through `relay`, and what the relay knows of it."""

    a: Node
    b: Node
    relay: Node
    near: Stream
    far: Stream
    done: asyncio.Future[SpliceResult]

    async def secure(
        self, *, expected: PeerId | None = None, limit: Limit | None = None
    ) -> tuple[Connection, Connection]:
        """The connections of A and B inside the circuit, their handlers on them."""
        near, far = await asyncio.gather(
            circuit.secure(
                self.near,
                self.a.identity,
                self.a.engine,
                initiator=True,
                expected_peer=expected or self.b.peer_id,
                limit=limit,
                config=self.a.config,
            ),
            circuit.secure(
                self.far,
                self.b.identity,
                self.b.engine,
                initiator=False,
                expected_peer=self.a.peer_id,
                limit=limit,
                config=self.b.config,
            ),
        )
        near.serve(self.a.handlers)
        far.serve(self.b.handlers)
        return near, far


@contextlib.asynccontextmanager
async def circuit_through_a_relay(
    config: Config | None = None, *, limit_bytes: int = 0
) -> AsyncIterator[Circuit]:
    async with Node() as relay, Node(config, listen=None) as a, Node(config, listen=None) as b:
        incoming: asyncio.Queue[Stream] = asyncio.Queue()

        async def take(stream: Stream) -> None:
            stream.keep()
            incoming.put_nowait(stream)

        relay.handlers.add("/hop", take)
        b.handlers.add("/stop", take)
        near = await (await a.dial(relay)).open_stream("/hop")
        from_a = await incoming.get()
        to_b = await b.dial(relay)
        await relay.inbound.get()
        relayed = await (await relay.inbound.get()).open_stream("/stop")
        far = await incoming.get()
        assert to_b.remote_peer == relay.peer_id
        done: asyncio.Future[SpliceResult] = asyncio.get_running_loop().create_future()
        splice(
            from_a.core,  # type: ignore[arg-type]
            relayed.core,  # type: ignore[arg-type]
            limit_a_to_b=limit_bytes,
            limit_b_to_a=limit_bytes,
            on_done=done.set_result,
        )
        yield Circuit(a, b, relay, near, far, done)


class TestCircuit:
    @aio
    async def test_both_ends_know_what_it_is(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            assert (near.remote_peer, far.remote_peer) == (made.b.peer_id, made.a.peer_id)
            assert near.relay == far.relay == made.relay.peer_id
            assert near.path == far.path == "relayed"
            assert near.is_relayed
            assert not near.is_limited
            assert str(near.remote_addr) == f"{made.relay.addr}/p2p-circuit"
            assert near.initiator
            assert not far.initiator

    @aio
    async def test_streams_both_ways(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            data = random.Random(3).randbytes(2_000_000)
            for connection in (near, far):
                async with connection.open_stream("/echo") as stream:
                    sending = asyncio.create_task(stream.write(data))
                    assert await stream.read_exactly(len(data)) == data
                    await sending
            assert 0 < await near.ping() < 1

    @aio
    async def test_a_limited_one_carries_only_what_is_allowed(self) -> None:
        async with circuit_through_a_relay() as made:
            near, _ = await made.secure(limit=Limit(120, 1 << 17))
            assert near.is_limited
            with pytest.raises(LimitedConnection, match=str(made.relay.peer_id)):
                await near.open_stream("/echo")

    @aio
    async def test_closing_one_end_closes_the_other_and_the_circuit(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            await near.close()
            await far.wait_closed()
            result = await asyncio.wait_for(made.done, 5)
            assert result.reason == "closed", "in good order"
            await eventually(lambda: made.near.finished and made.far.finished)

    @aio
    async def test_aborting_one_end(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            near.abort("enough")
            await far.wait_closed()
            await asyncio.wait_for(made.done, 5)

    @aio
    async def test_the_relay_goes_away(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            stream = await near.open_stream("/echo")
            for connection in list(made.relay.tcp.connections):
                connection.abort("the relay is gone")
            for connection in (near, far):
                await connection.wait_closed()
                assert connection.close_reason is not None
            with pytest.raises(NetworkError):
                await stream.read()

    @aio
    async def test_the_relays_limit_ends_it(self) -> None:
        async with circuit_through_a_relay(limit_bytes=20_000) as made:
            near, far = await made.secure()
            stream = await near.open_stream("/echo")
            with contextlib.suppress(FlareError):
                await stream.write(bytes(100_000))
            await near.wait_closed()
            await far.wait_closed()
            assert (await made.done).reason == "limit"

    @aio
    async def test_somebody_else_at_the_other_end(self) -> None:
        async with circuit_through_a_relay() as made:
            with pytest.raises(PeerMismatch):
                await made.secure(expected=Identity.generate().peer_id)
            assert made.near.closed

    @aio
    @pytest.mark.parametrize("initiator", [True, False])
    async def test_an_end_that_says_nothing(self, initiator: bool) -> None:
        async with circuit_through_a_relay(QUICK) as made:
            stream, node = (made.near, made.a) if initiator else (made.far, made.b)
            with pytest.raises(TimedOut):
                await circuit.secure(
                    stream,
                    node.identity,
                    node.engine,
                    initiator=initiator,
                    expected_peer=None,
                    limit=None,
                    config=node.config,
                )
            assert stream.closed

    @aio
    async def test_bytes_that_are_no_handshake(self) -> None:
        async with circuit_through_a_relay(QUICK) as made:
            await made.far.write(random.Random(1).randbytes(1000))
            with pytest.raises(FlareError):
                await circuit.secure(
                    made.near,
                    made.a.identity,
                    made.a.engine,
                    initiator=True,
                    expected_peer=None,
                    limit=None,
                    config=made.a.config,
                )

    @aio
    async def test_garbage_after_the_handshake_ends_the_connection(self) -> None:
        async with circuit_through_a_relay() as made:
            near, _far = await made.secure()
            await made.far.write(b"\x00\x20\x00\x00\x20" + bytes(32))
            await near.wait_closed()
            assert "a record that is not encrypted" in str(near.close_reason)

    @aio
    async def test_back_pressure_reaches_the_writer_through_the_relay(self) -> None:
        release = asyncio.Event()

        async def stuck(stream: Stream) -> None:
            await release.wait()
            while await stream.read():
                pass

        async with circuit_through_a_relay() as made:
            made.b.handlers.add("/stuck", stuck)
            near, _ = await made.secure()
            stream = await near.open_stream("/stuck")
            writer = asyncio.create_task(stream.write(bytes(8 << 20)))
            await asyncio.sleep(0.1)
            assert not writer.done()
            release.set()
            await writer
            await stream.close()

    @aio
    async def test_a_host_that_closes_leaves_no_task(self) -> None:
        async with circuit_through_a_relay() as made:
            near, far = await made.secure()
            await near.open_stream("/echo")
            await made.a.tcp.close()
            await near.wait_closed()
            await far.wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @aio
    async def test_a_cancelled_handshake_resets_the_stream(self) -> None:
        async with circuit_through_a_relay() as made:
            securing: asyncio.Task[Any] = asyncio.create_task(made.secure())
            for _ in range(3):
                await asyncio.sleep(0)
            securing.cancel()
            await asyncio.gather(securing, return_exceptions=True)
            assert made.near.closed
            assert made.far.closed
