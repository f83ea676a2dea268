"""A question on a stream of its own: the whole answer, or one error, and never both."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from flare.config import Config, Timeouts
from flare.errors import (
    ConnectionClosed,
    FlareError,
    FrameTooLarge,
    LimitedConnection,
    ProtocolNotSupported,
    StreamReset,
    TimedOut,
)
from flare.transport.connection import Connection
from flare.transport.stream import Stream
from flare.wire.messages import Limit
from tests.support.aio import aio
from tests.support.hosts import Node

QUICK = Config(timeouts=replace(Timeouts(), negotiate=0.2, close=0.5))
LIMIT = 100


async def asked(connection: Connection, protocol: str, timeout: float = 5.0) -> bytes | FlareError:
    """What comes of asking, exactly once."""
    answers: list[bytes | FlareError] = []
    arrived = asyncio.Event()

    def on_answer(answer: bytes | FlareError) -> None:
        answers.append(answer)
        arrived.set()

    connection.ask(protocol, on_answer, limit=LIMIT, timeout=timeout)
    await arrived.wait()
    await asyncio.sleep(0.02)
    assert len(answers) == 1
    return answers[0]


def answering(*pieces: bytes, pause: float = 0.0) -> object:
    async def handler(stream: Stream) -> None:
        for piece in pieces:
            await stream.write(piece)
            await asyncio.sleep(pause)

    return handler


class TestAnswers:
    @pytest.mark.parametrize("pause", [0.0, 0.01], ids=["at once", "in pieces"])
    @aio
    async def test_all_up_to_the_end(self, pause: float) -> None:
        async with Node() as a, Node() as b:
            b.handlers.add("/ask", answering(b"one", b"two", pause=pause))  # type: ignore[arg-type]
            near = await a.dial(b)
            assert await asked(near, "/ask") == b"onetwo"

    @aio
    async def test_an_empty_answer(self) -> None:
        async with Node() as a, Node() as b:
            b.handlers.add("/ask", answering())  # type: ignore[arg-type]
            assert await asked(await a.dial(b), "/ask") == b""

    @pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 5000])
    @aio
    async def test_at_the_limit_and_past_it(self, size: int) -> None:
        async with Node() as a, Node() as b:
            b.handlers.add("/ask", answering(bytes(size)))  # type: ignore[arg-type]
            answer = await asked(await a.dial(b), "/ask")
            assert answer == bytes(size) if size <= LIMIT else isinstance(answer, FrameTooLarge)


class TestErrors:
    @aio
    async def test_a_protocol_nobody_serves(self) -> None:
        async with Node() as a, Node() as b:
            assert isinstance(await asked(await a.dial(b), "/none"), ProtocolNotSupported)

    @aio
    async def test_silence(self) -> None:
        async def silent(stream: Stream) -> None:
            await asyncio.sleep(1)

        async with Node() as a, Node() as b:
            b.handlers.add("/ask", silent)
            assert isinstance(await asked(await a.dial(b), "/ask", timeout=0.05), TimedOut)

    @aio
    async def test_a_reset(self) -> None:
        async def resets(stream: Stream) -> None:
            stream.reset()

        async with Node() as a, Node() as b:
            b.handlers.add("/ask", resets)
            assert isinstance(await asked(await a.dial(b), "/ask"), StreamReset)

    @aio
    async def test_the_connection_ends(self) -> None:
        async with Node() as a, Node() as b:

            async def ends(stream: Stream) -> None:
                stream.connection.abort()

            b.handlers.add("/ask", ends)
            assert isinstance(await asked(await a.dial(b), "/ask"), ConnectionClosed)

    @aio
    async def test_nobody_hears_of_what_was_cancelled(self) -> None:
        async with Node() as a, Node() as b:
            b.handlers.add("/ask", answering(b"x"))  # type: ignore[arg-type]
            near = await a.dial(b)
            answers: list[bytes | FlareError] = []
            near.ask("/ask", answers.append, limit=LIMIT, timeout=5).cancel()
            await asyncio.sleep(0.05)
            assert answers == []

    @aio
    async def test_over_a_limited_connection_only_what_may(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            near.limit = Limit(data=1)
            with pytest.raises(LimitedConnection):
                near.ask("/ask", lambda answer: None, limit=LIMIT, timeout=5)
            await near.close()
            with pytest.raises(ConnectionClosed):
                near.ask("/ask", lambda answer: None, limit=LIMIT, timeout=5, allow_limited=True)


class TestServingAtOnce:
    @aio
    async def test_a_plain_function_serves_what_came_in_one_packet(self) -> None:
        async with Node() as a, Node() as b:

            def at_once(stream: Stream) -> None:
                assert stream.protocol == "/ask"
                assert stream.write_now(b"now") == b""

            b.handlers.add("/ask", at_once)
            assert await asked(await a.dial(b), "/ask") == b"now"

    @aio
    async def test_one_that_raises_costs_its_stream_only(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Node() as a, Node() as b:

            def broken(stream: Stream) -> None:
                raise ValueError("oops")

            b.handlers.add("/broken", broken)
            near = await a.dial(b)
            assert isinstance(await asked(near, "/broken"), StreamReset)
            assert "oops" in caplog.text
            async with near.open_stream("/echo") as stream:
                await stream.write(b"x")
                assert await stream.read_exactly(1) == b"x"

    @aio
    async def test_a_header_that_comes_alone_and_a_refusal_before_the_right_name(self) -> None:
        async with Node() as a, Node() as b:
            b.handlers.add("/ask", lambda stream: None)
            near = await a.dial(b)
            core = near.link.open_stream()
            stream = Stream(core, near)
            for message in (b"\x13/multistream/1.0.0\n", b"\x06/none\n", b"\x05/ask\n"):
                await stream.write(message)
                assert await stream.read_frame(64) == (message[1:] if message != b"\x06/none\n" else b"na\n")
            assert await stream.read() == b""
