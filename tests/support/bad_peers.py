"""Peers that send what is no message: each a name and what it does with its end of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from flare._core.wire import encode_uvarint
from flare.errors import NetworkError
from flare.transport.stream import Stream

Misbehave = Callable[[Stream], Awaitable[None]]


async def garbage(stream: Stream) -> None:
    """A whole frame that is no protobuf."""
    await stream.write(b"\x05\xff\xff\xff\xff\xff")


async def empty(stream: Stream) -> None:
    """A frame of nothing, which lacks the required type."""
    await stream.write(b"\x00")


async def unknown_type(stream: Stream) -> None:
    """A message whose type nobody knows."""
    await stream.write(b"\x02\x08\x63")


async def oversized(stream: Stream) -> None:
    """A frame one byte above the limit."""
    await stream.write(encode_uvarint(4097) + bytes(4097))


async def endless_length(stream: Stream) -> None:
    """A length that never ends."""
    await stream.write(b"\xff" * 12)


async def truncated(stream: Stream) -> None:
    """A frame cut in the middle, and the end of the stream."""
    await stream.write(b"\x0a\x08\x00\x12")
    await stream.close_write()


async def nothing(stream: Stream) -> None:
    """The end of the stream at once."""
    await stream.close_write()


async def silent(stream: Stream) -> None:
    """Nothing, for ever."""


async def slow(stream: Stream) -> None:
    """A byte a second of a frame that never gets whole."""
    try:
        await stream.write(b"\xff\x1f")
        for _ in range(100):
            await asyncio.sleep(1)
            await stream.write(b"\x00")
    except NetworkError:
        return


async def reset(stream: Stream) -> None:
    """A reset."""
    stream.reset()


MALFORMED: list[Misbehave] = [garbage, empty, unknown_type, oversized, endless_length, truncated, nothing]
STUCK: list[Misbehave] = [silent, slow]
EVERY: list[Misbehave] = [*MALFORMED, *STUCK, reset]


def name(misbehave: Misbehave) -> str:
    """For parametrised test ids."""
    return misbehave.__name__  # type: ignore[attr-defined, no-any-return]
