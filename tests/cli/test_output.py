"""Output that nobody reads holds no server up, and says what it dropped."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

import flare
from flare.cli import output
from flare.cli.output import MAX_WAITING, PatientOutput
from tests.cli.command import LOOPBACK, TIMEOUT, environment, run
from tests.support.aio import run as aio_run

PIPE = 4096  # bytes that the kernel holds for a reader, at the least


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Where to read, and where to print."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    file = os.fdopen(writing, "w")
    try:
        yield reading, file
    finally:
        os.close(reading)
        file.close()


def read_all(reading: int) -> list[dict[str, Any]]:
    """What is there, up to an end or a pause."""
    os.set_blocking(reading, False)
    data, quiet = b"", 0
    while quiet < 50:
        try:
            piece = os.read(reading, 1 << 16)
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
            continue
        if not piece:
            break
        data, quiet = data + piece, 0
    return [json.loads(line) for line in data.splitlines()]


def test_lines_come_in_their_order(pipe: tuple[int, TextIO]) -> None:
    reading, writing = pipe
    with PatientOutput(True, writing) as out:
        for number in range(20):
            out.fact("line", None, number=number)
    assert [fact["number"] for fact in read_all(reading)] == list(range(20))


def test_what_nobody_reads_is_dropped_past_the_limit_and_counted(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MAX_WAITING", 20_000)
    reading, writing = pipe
    with PatientOutput(True, writing) as out:
        for number in range(1000):
            out.fact("line", None, number=number)
        before = read_all(reading)
        out.fact("line", None, number=1000)
        after = read_all(reading)
    seen = [fact["number"] for fact in before]
    assert seen == list(range(len(seen)))
    assert 0 < len(seen) < 1000
    assert after == [{"event": "dropped", "count": 1000 - len(seen)}, {"event": "line", "number": 1000}]


def test_a_line_at_the_limit_waits_and_one_past_it_is_dropped(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MAX_WAITING", 10)
    reading, writing = pipe
    with PatientOutput(False, writing) as out:
        out.fact("line", "x" * 10)  # and its end
        out.fact("line", "x" * 9)
    assert os.read(reading, 100) == b"(1 lines were dropped since nobody read them)\n" + b"x" * 9 + b"\n"


def test_the_limit_is_more_than_a_pipe_holds() -> None:
    assert MAX_WAITING >= 1 << 20


def test_whose_reader_has_gone_is_told_in_the_loop(pipe: tuple[int, TextIO]) -> None:
    _, writing = pipe
    reading, gone = os.pipe()
    os.dup2(gone, writing.fileno())
    os.close(gone)
    os.close(reading)

    async def main() -> None:
        told = asyncio.Event()
        out.on_broken = told.set
        out.fact("line", "who reads this?")
        await asyncio.wait_for(told.wait(), TIMEOUT)
        assert out.broken

    with PatientOutput(False, writing) as out:
        aio_run(main())


def test_a_relay_whose_output_nobody_reads_goes_on() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    relay = subprocess.Popen(
        [sys.executable, "-m", "flare", "relay", "--listen", LOOPBACK, "--no-limits", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(writing)

    async def reserve(addr: str, times: int) -> None:
        for _ in range(times):
            async with flare.Host(listen=[LOOPBACK], relays=[addr]) as host:
                async for event in host.events():
                    if isinstance(event, flare.events.ReservationAccepted):
                        break

    try:
        addr = json.loads(os.read(reading, PIPE))["addrs"][0]
        aio_run(reserve(addr, 2 * PIPE // 100))  # each of which is a line of more than 100 bytes
        assert run("ping", addr, "--count", "1").returncode == 0
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(TIMEOUT) == 0
        assert relay.stderr is not None
        assert relay.stderr.read() == b""
    finally:
        relay.kill()
        relay.wait()
        os.close(reading)
        if relay.stderr is not None:
            relay.stderr.close()
