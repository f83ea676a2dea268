"""transport/stream.py over the memory core: reading, writing, ending, cancelling."""

from __future__ import annotations

import asyncio

import pytest

from flare.errors import DecodeError, FrameTooLarge, StreamClosed, StreamReset, UsageError
from tests.support.aio import aio, eventually
from tests.support.streams import stream_pair


@aio
async def test_bytes_arrive_in_order_and_then_the_end() -> None:
    near, far = stream_pair()
    await near.write(b"hello ")
    await near.write(b"world")
    await near.close_write()
    assert await far.read_exactly(11) == b"hello world"
    assert await far.read() == b""
    await far.write(b"still open this way")
    assert await near.read() == b"still open this way"


@aio
async def test_a_large_write_waits_for_the_reader() -> None:
    near, far = stream_pair(window=1000)
    data = bytes(range(256)) * 100
    writer = asyncio.create_task(near.write(data))
    await asyncio.sleep(0.01)
    assert not writer.done(), "a full window must hold the writer back"
    assert await far.read_exactly(len(data)) == data
    await writer


@aio
async def test_writers_take_turns() -> None:
    near, far = stream_pair(window=100)
    writers = [asyncio.create_task(near.write(bytes([i]) * 1000)) for i in range(5)]
    got = await far.read_exactly(5000)
    await asyncio.gather(*writers)
    assert got == b"".join(bytes([i]) * 1000 for i in range(5))


@aio
async def test_messages_of_two_writers_never_interleave() -> None:
    near, far = stream_pair(window=10)

    async def send(letter: bytes) -> None:
        for _ in range(20):
            await near.write(letter * 25)

    writers = [asyncio.create_task(send(letter)) for letter in (b"a", b"b")]
    got = await far.read_exactly(2 * 20 * 25)
    await asyncio.gather(*writers)
    messages = [got[at : at + 25] for at in range(0, len(got), 25)]
    assert all(message in (b"a" * 25, b"b" * 25) for message in messages)
    await asyncio.wait_for(near.write(b"c" * 10), 1)
    assert await far.read() == b"c" * 10


@aio
async def test_close_ends_a_writer_that_waits_for_its_turn() -> None:
    near, _far = stream_pair(window=10)
    writers = [asyncio.create_task(near.write(data)) for data in (b"a" * 100, b"b", b"")]
    await asyncio.sleep(0.01)
    near.close_now()
    for writer in writers:
        with pytest.raises(StreamClosed, match="was closed here"):
            await writer
    near.reset()


@aio
async def test_two_readers_at_once_are_a_usage_error() -> None:
    near, far = stream_pair()
    first = asyncio.create_task(far.read())
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="two tasks"):
        await far.read()
    await near.write(b"x")
    assert await first == b"x"


@aio
async def test_a_cancelled_read_loses_nothing() -> None:
    near, far = stream_pair(chunk=3)
    for read in (far.read(), far.read_exactly(10), far.read_frame(100)):
        task = asyncio.create_task(read)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    reader = asyncio.create_task(far.read_exactly(10))
    await near.write(b"01234")
    await asyncio.sleep(0.01)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await near.write(b"56789")
    assert await far.read_exactly(10) == b"0123456789"


@aio
async def test_a_frame_after_an_unfinished_read() -> None:
    near, far = stream_pair()
    await near.write(b"\x05he")
    reader = asyncio.create_task(far.read_exactly(100))
    await asyncio.sleep(0.01)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await near.write(b"llorest")
    assert await far.read_frame(5) == b"hello"
    assert await far.read() == b"rest"


@aio
@pytest.mark.parametrize("held", [False, True])
async def test_frame_limits(held: bool) -> None:
    for sent, limit, error in [
        (b"\x05hello", 5, None),
        (b"\x06hello!", 5, FrameTooLarge),
        (b"\x80" * 9 + b"\x01", 5, DecodeError),
    ]:
        near, far = stream_pair()
        await near.write(sent)
        if held:
            reader = asyncio.create_task(far.read_exactly(100))
            await asyncio.sleep(0.01)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if error is None:
            assert await far.read_frame(limit) == b"hello"
        else:
            with pytest.raises(error):
                await far.read_frame(limit)


@aio
async def test_write_frame_with_a_two_byte_length() -> None:
    near, far = stream_pair()
    await near.write_frame(b"x" * 300)
    assert await far.read_frame(300) == b"x" * 300


@aio
async def test_an_end_that_comes_too_early() -> None:
    near, far = stream_pair()
    await near.write(b"abc")
    await near.close_write()
    with pytest.raises(StreamClosed, match=r"3 of 4 bytes"):
        await far.read_exactly(4)
    assert await far.read() == b"abc"


@aio
async def test_reset_wakes_both_sides_with_the_peer_named() -> None:
    near, far = stream_pair("/test/1", window=10)
    reader = asyncio.create_task(far.read())
    writer = asyncio.create_task(near.write(b"x" * 100))
    await asyncio.sleep(0.01)
    far.reset()
    await asyncio.gather(reader, return_exceptions=True)
    with pytest.raises(StreamReset, match=r"/test/1 with peer b"):
        await writer
    with pytest.raises((StreamReset, StreamClosed)):
        await far.read()


@aio
async def test_close_discards_what_comes_and_does_not_reset() -> None:
    near, far = stream_pair(window=100)
    await near.write(b"request")
    await near.close()
    await far.write(b"y" * 1000)
    await far.close_write()
    assert await far.read() == b"request"
    assert await far.read() == b""
    await eventually(lambda: near.core.read_closed)
    assert not near.core.is_reset
    with pytest.raises(StreamClosed, match="closed here"):
        await near.read()
    with pytest.raises(StreamClosed, match="closed here"):
        await near.write(b"z")


@aio
async def test_close_wakes_a_reader_here() -> None:
    near, _far = stream_pair()
    reader = asyncio.create_task(near.read())
    await asyncio.sleep(0)
    await near.close()
    with pytest.raises(StreamClosed):
        await reader
    near.reset()


@aio
async def test_context_manager_closes_or_resets() -> None:
    near, far = stream_pair()
    async with near:
        await near.write(b"x")
    assert await far.read() == b"x"
    assert await far.read() == b""
    await far.close()
    near, far = stream_pair()
    with pytest.raises(KeyError):
        async with near:
            raise KeyError
    with pytest.raises(StreamReset):
        await far.read()


@aio
async def test_a_peer_that_never_closes_is_reset_after_the_linger() -> None:
    from dataclasses import replace

    from flare.config import Timeouts
    from tests.support.streams import FakeConnection

    near, far = stream_pair(near=FakeConnection(timeouts=replace(Timeouts(), linger=0.05)))
    await near.close()
    assert await far.read() == b""
    assert not far.core.is_reset
    await eventually(lambda: far.core.is_reset)
