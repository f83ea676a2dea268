"""/perf/1.0.0: so many bytes up, then so many down, timed (perf.md). Not for hosts open to strangers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.config import KIB
from flare.errors import ProtocolViolation, StreamClosed
from flare.protocols.exchange import TIMEOUTS, within

if TYPE_CHECKING:
    from flare.transport.stream import Stream

PROTOCOL: Final = "/perf/1.0.0"
CHUNK: Final = 64 * KIB
_ZEROS: Final = bytes(CHUNK)


@dataclass(frozen=True, slots=True)
class PerfResult:
    """Bytes and seconds each way. The upload is over when the answer's first byte, or its end, is here."""

    upload: int
    download: int
    upload_seconds: float
    download_seconds: float


async def run(
    stream: Stream,
    upload: int,
    download: int,
    *,
    idle: float = TIMEOUTS.perf_idle,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> PerfResult:
    """Send `upload` bytes, then receive `download`. TimedOut when nothing moves for `idle` seconds."""
    started = clock_ns()
    async with within(idle, "perf"):
        await stream.write(download.to_bytes(8, "big"))
    await _send(stream, upload, idle)
    uploaded = received = 0
    while True:
        async with within(idle, "perf"):
            data = await stream.read(CHUNK)
        uploaded = uploaded or clock_ns()
        received += len(data)
        if received > download:
            raise ProtocolViolation(f"more than the {download} bytes asked for", protocol=PROTOCOL)
        if not data:
            break
    if received < download:
        raise StreamClosed(f"the peer sent {received} of {download} bytes")
    return PerfResult(upload, download, (uploaded - started) / 1e9, (clock_ns() - uploaded) / 1e9)


async def serve(stream: Stream, *, idle: float = TIMEOUTS.perf_idle) -> None:
    """Take what comes, then send as many bytes as were asked for. TimedOut after `idle` silent seconds."""
    async with within(idle, "perf"):
        wanted = int.from_bytes(await stream.read_exactly(8), "big")
    while True:
        async with within(idle, "perf"):
            if not await stream.read(CHUNK):
                break
    await _send(stream, wanted, idle)


async def _send(stream: Stream, size: int, idle: float) -> None:
    while size:
        async with within(idle, "perf"):
            await stream.write(_ZEROS if size >= CHUNK else _ZEROS[:size])
        size -= min(size, CHUNK)
    await stream.close_write()
