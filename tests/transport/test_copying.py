"""transport/copying.py: what the compiled splice promises holds for streams that are not the engine's."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from flare._core.shaper import Bucket
from flare._core.splice import SpliceResult
from flare.errors import StreamReset
from flare.transport.copying import Copying
from flare.transport.stream import CLOSED, READABLE, Stream
from tests.support.aio import aio, eventually
from tests.support.streams import stream_pair


class Circuit:
    """Alice and Bob, and what joins them."""

    def __init__(self, *, window: int = 256 * 1024, **how: Any) -> None:
        self.alice, a = stream_pair(window=window)
        self.bob, b = stream_pair(window=window)
        self.relay: tuple[Stream, Stream] = (a, b)
        self.results: list[SpliceResult] = []
        self.copying = Copying(a, b, on_done=self.results.append, **how)

    async def ended(self) -> SpliceResult:
        await eventually(lambda: self.results != [])
        (result,) = self.results
        assert self.copying.done
        return result


@aio
async def test_bytes_and_ends_go_both_ways() -> None:
    circuit = Circuit()
    data = os.urandom(1_000_000)

    async def send() -> None:
        await circuit.alice.write(data)
        await circuit.alice.close_write()

    sending = asyncio.create_task(send())
    assert await circuit.bob.read_exactly(len(data)) == data
    assert await circuit.bob.read() == b""
    await sending
    assert not circuit.results, "the other way is open"
    await circuit.bob.write(b"answer")
    await circuit.bob.close_write()
    assert await circuit.alice.read_exactly(6) == b"answer"
    assert await circuit.alice.read() == b""
    assert await circuit.ended() == SpliceResult("closed", len(data), 6)


@pytest.mark.parametrize("size", [999, 1000])
@aio
async def test_up_to_the_limit(size: int) -> None:
    circuit = Circuit(limit_a_to_b=1000)
    await circuit.alice.write(bytes(size))
    assert len(await circuit.bob.read_exactly(size)) == size
    await circuit.bob.write(bytes(5000))
    assert len(await circuit.alice.read_exactly(5000)) == 5000, "the limit of one way is not the other's"
    assert not circuit.results
    circuit.copying.cancel()


@aio
async def test_one_past_the_limit() -> None:
    circuit = Circuit(limit_b_to_a=1000)
    await circuit.bob.write(bytes(1001))
    result = await circuit.ended()
    assert result == SpliceResult("limit", 0, 1000)
    for end in (circuit.alice, circuit.bob):
        with pytest.raises(StreamReset):
            await end.read_exactly(2000)


@aio
async def test_a_reset_goes_on() -> None:
    circuit = Circuit()
    circuit.alice.reset()
    assert (await circuit.ended()).reason == "reset"
    with pytest.raises(StreamReset):
        await circuit.bob.read()


@aio
async def test_what_was_said_before_a_reset_is_not_lost_once_it_ended() -> None:
    circuit = Circuit()
    await circuit.alice.write(b"all of it")
    await circuit.alice.close_write()
    await eventually(lambda: circuit.copying.bytes_a_to_b == 9)
    await asyncio.sleep(0.01)
    circuit.alice.reset()
    assert (await circuit.ended()).reason == "reset"
    assert await circuit.bob.read_exactly(9) == b"all of it"
    assert await circuit.bob.read() == b""


@aio
async def test_a_connection_that_is_lost_right_after_an_end() -> None:
    """The end and the loss are one event: the other way must not wait for a peer that says nothing more."""
    circuit = Circuit()
    core: Any = circuit.relay[0].core
    core._inbox += b"the last"
    core._fin = True
    core.on_event(READABLE | CLOSED)
    assert (await circuit.ended()).reason == "link"
    assert await circuit.bob.read_exactly(8) == b"the last"
    assert await circuit.bob.read() == b""


@aio
async def test_the_deadline() -> None:
    circuit = Circuit(deadline_ns=time.monotonic_ns() + 50_000_000)
    assert (await circuit.ended()).reason == "deadline"
    with pytest.raises(StreamReset):
        await circuit.bob.read()


@aio
async def test_cancel() -> None:
    circuit = Circuit()
    circuit.copying.cancel()
    assert (await circuit.ended()).reason == "cancelled"
    circuit.copying.cancel()
    assert len(circuit.results) == 1


@aio
async def test_a_reader_that_waits_holds_the_sender_back() -> None:
    circuit = Circuit(window=1000)
    sending = asyncio.create_task(circuit.alice.write(bytes(100_000)))
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert circuit.copying.bytes_a_to_b <= 1000
    assert len(await circuit.bob.read_exactly(100_000)) == 100_000
    await sending
    circuit.copying.cancel()


@aio
async def test_buckets() -> None:
    bucket = Bucket(1_000_000, 100_000)
    circuit = Circuit(buckets=(bucket,))
    start = time.monotonic()
    sending = asyncio.create_task(circuit.alice.write(bytes(300_000)))
    await circuit.bob.read_exactly(300_000)
    await sending
    assert time.monotonic() - start > 0.15, "100 kB at once and the rest at 1 MB/s"
    circuit.copying.cancel()


@aio
async def test_a_rate_that_is_raised_counts_at_once() -> None:
    bucket = Bucket(1, 1)
    circuit = Circuit(buckets=(bucket,))
    sending = asyncio.create_task(circuit.alice.write(bytes(50_000)))
    await asyncio.sleep(0.05)
    bucket.change(1 << 30)
    assert len(await circuit.bob.read_exactly(50_000)) == 50_000
    await sending
    circuit.copying.cancel()
