"""What measuring a NAT's memory asks of QUIC: keep-alives as often as need be, a socket that falls silent."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from flare.config import Config, QuicLimits
from flare.transport.quic_session import QuicSession
from tests.support.aio import aio, eventually
from tests.support.quic_nodes import QuicNode


def session_of(connection: object) -> QuicSession:
    session = connection.link  # type: ignore[attr-defined]
    assert isinstance(session, QuicSession)
    return session


@aio
async def test_the_keepalive_can_be_shortened_for_what_is_open_and_what_comes() -> None:
    async with QuicNode() as a, QuicNode() as b:
        assert a.quic.keepalive == QuicLimits().keepalive
        early = await a.dial(b)
        here = session_of(await b.inbound.get())
        a.quic.keepalive = 0.05
        late = await a.dial(b)
        there = session_of(await b.inbound.get())
        assert session_of(early).keepalive == session_of(late).keepalive == 0.05
        before = here.bytes_in, there.bytes_in
        await eventually(lambda: here.bytes_in > before[0] + 200 and there.bytes_in > before[1] + 200)


@aio
@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(30.0, 10.0, 10.0), (5.0, 10.0, 5.0)])
async def test_the_shorter_idle_timeout_counts(ours: float, theirs: float, agreed: float) -> None:
    near, far = (Config(quic=replace(QuicLimits(), idle_timeout=seconds)) for seconds in (ours, theirs))
    async with QuicNode(near) as a, QuicNode(far) as b:
        assert session_of(await a.dial(b)).idle_timeout == agreed


@aio
async def test_an_abandoned_socket_says_nothing_and_still_hears() -> None:
    async with QuicNode() as a, QuicNode() as b:
        await a.dial(b)
        far = await b.inbound.get()
        port = a.port
        socket = a.quic.listeners[0].socket
        bound = socket.abandon()
        try:
            assert socket.closed
            assert bound.getsockname()[1] == port
            sent = socket.datagrams.sent
            stream = await far.open_stream("/echo", lazy=True)
            await stream.write(b"hello?")
            heard: list[bytes] = []

            def readable() -> None:
                with contextlib.suppress(BlockingIOError):
                    heard.append(bound.recv(2048))

            asyncio.get_running_loop().add_reader(bound, readable)
            await eventually(lambda: len(heard) >= 2)  # it is said again, since nobody acknowledges it
            asyncio.get_running_loop().remove_reader(bound)
            assert socket.datagrams.sent == sent
        finally:
            bound.close()
