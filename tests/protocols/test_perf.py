"""/perf/1.0.0 (perf.md, "Protocol")."""

from __future__ import annotations

import asyncio

import pytest

from flare.errors import ProtocolViolation, StreamClosed, TimedOut
from flare.protocols import perf
from tests.support.aio import aio
from tests.support.linked import simulated
from tests.support.streams import stream_pair


@pytest.mark.parametrize(
    ("up", "down"), [(0, 0), (1, 0), (0, 1), (1_000_000, 300_001), (perf.CHUNK, perf.CHUNK)]
)
@aio
async def test_so_many_bytes_up_and_down(up: int, down: int) -> None:
    near, far = stream_pair()
    serving = asyncio.create_task(perf.serve(far))
    result = await perf.run(near, up, down)
    await serving
    assert (result.upload, result.download) == (up, down)
    assert result.upload_seconds >= 0
    assert result.download_seconds >= 0


@aio
async def test_the_server_sends_nothing_before_the_upload_has_ended() -> None:
    near, far = stream_pair()
    serving = asyncio.create_task(perf.serve(far))
    await near.write((10).to_bytes(8, "big") + b"up")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await near.read()
    await near.close_write()
    assert await near.read_exactly(10) == bytes(10)
    await serving


@aio
async def test_a_server_that_sends_too_much_or_too_little_is_found_out() -> None:
    for sent, error in ((11, ProtocolViolation), (9, StreamClosed)):
        near, far = stream_pair()
        running = asyncio.create_task(perf.run(near, 0, 10))
        await far.read_exactly(8)
        await far.write(bytes(sent))
        await far.close_write()
        with pytest.raises(error):
            await running


@simulated
async def test_either_side_gives_up_when_nothing_moves() -> None:
    for silent in (lambda near: perf.run(near, 0, 1), perf.serve):
        near, _ = stream_pair()
        with pytest.raises(TimedOut, match="perf took longer than 30 s"):
            await silent(near)
