"""/echo/1.0.0: send back what comes, until the other side half-closes. For tries; not part of libp2p."""

from __future__ import annotations

from ..transport.stream import Stream

PROTOCOL = "/echo/1.0.0"


async def serve(stream: Stream) -> None:
    """Echo one stream to its end."""
    while data := await stream.read():
        await stream.write(data)
    await stream.close_write()
