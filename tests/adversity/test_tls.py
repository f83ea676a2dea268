"""TLS on a wire that cuts, mangles and stalls, and hosts that strangers speak something else to.

The wire, from the dialler ("up"): multistream, ClientHello, then its certificate, Finished and yamux. From
the target ("down"): multistream, one flight that ends with its Finished, then yamux. Every record has its
length in the clear before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    FlareError,
    ProtocolNotSupported,
    ProtocolViolation,
    TimedOut,
)
from flare.transport import multistream
from tests.adversity.scene import PATIENCE, QUICK, SLACK, Outcome, Scene, scene
from tests.support.aio import eventually, run
from tests.support.hostile import ends, raw
from tests.support.proxy import Cut, Fault, Mangle, Plan, Split, Stall

TLS = replace(QUICK, security=("tls",))
MULTISTREAM = 20 + 12  # bytes: header and "/tls/1.0.0", each with its length and newline
STEP = 17  # of the offsets tried: no divisor of any length on this wire
HELLO = multistream.proposal("/tls/1.0.0")

STRANGERS: dict[str, bytes] = {
    "nothing more": HELLO,
    "HTTP": HELLO + b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "Noise": HELLO + b"\0\x20" + bytes(32),
    "half a ClientHello": HELLO + b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),
    "a ClientHello of zeros": HELLO + b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(508),
    "the largest record": HELLO + b"\x16\x03\x01\x41\x00" + bytes(16640),
    "a record too large": HELLO + b"\x16\x03\x01\x41\x01" + bytes(16641),
    "a message of 16 MiB": HELLO + b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16380),
    "empty records": HELLO + b"\x16\x03\x01\x00\x00" * 1000,
    "alerts": HELLO + b"\x15\x03\x03\x00\x02\x01\x5a" * 1000,
    "change_cipher_specs": HELLO + b"\x14\x03\x03\x00\x01\x01" * 1000,
    "encrypted data": HELLO + b"\x17\x03\x03\x00\x20" + bytes(32),
}


async def offsets(the_scene: Scene, direction: str, step: int = STEP) -> list[int]:
    """Where faults are put: through the handshake and the first frames, without the goodbye."""
    (outcome,) = await the_scene.attempts([Plan()])
    assert outcome.identified
    assert outcome.run is not None
    total = len(getattr(outcome.run, direction).data)
    return [*range(0, MULTISTREAM + 12, 3), *range(MULTISTREAM + 12, total - 60, step)]


async def under(the_scene: Scene, direction: str, make: Callable[..., Fault], **how: Any) -> list[Outcome]:
    """An attempt for each offset."""
    at = await offsets(the_scene, direction)
    return await the_scene.attempts([Plan(**{direction: [make(at=offset, **how)]}) for offset in at])


def judge(outcome: Outcome, allowed: tuple[type[FlareError], ...], seconds: float) -> None:
    """The dialler was told in time, by one of `allowed`."""
    assert outcome.seconds < seconds + SLACK, f"{outcome} took too long"
    if not outcome.identified:
        assert isinstance(outcome.error, allowed), f"{outcome.plan}: {outcome.error!r}"
        assert str(outcome.error)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_cut_anywhere(direction: str, reset: bool) -> None:
    async def main() -> None:
        async with scene(config=TLS) as the_scene:
            for outcome in await under(the_scene, direction, Cut, reset=reset):
                judge(outcome, (ConnectionClosed,), 0)

    run(main(), timeout=50)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_bit_flipped_anywhere(direction: str) -> None:
    """Nobody is ever believed to be somebody: a flip is refused, waited for in vain, or without effect."""

    async def main() -> None:
        async with scene(lanes=16, config=TLS) as the_scene:
            outcomes = await under(the_scene, direction, Mangle, bit=2)
            for outcome in outcomes:
                judge(
                    outcome,
                    (ProtocolViolation, ProtocolNotSupported, ConnectionClosed, TimedOut),
                    2 * PATIENCE + 1,
                )
            refusals = [outcome.error for outcome in outcomes] + the_scene.log.handshakes
            assert any(isinstance(error, ProtocolViolation) for error in refusals)

    run(main(), timeout=50)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_stalls_end_within_their_timeout(direction: str) -> None:
    async def main() -> None:
        async with scene(lanes=24, config=TLS) as the_scene:
            every = await offsets(the_scene, direction, 101)
            plans = [Plan(**{direction: [Stall(at=at)]}) for at in every]
            for outcome in await the_scene.attempts(plans):
                judge(outcome, (TimedOut, ConnectionClosed), 2 * PATIENCE + 1)

    run(main(), timeout=50)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_pieces_of_any_size(size: int) -> None:
    async def main() -> None:
        async with scene(
            lanes=1, config=replace(TLS, timeouts=replace(TLS.timeouts, dial=10, handshake=10))
        ) as s:
            (outcome,) = await s.attempts([Plan(up=[Split(sizes=(size,))], down=[Split(sizes=(size,))])])
            assert outcome.identified

    run(main())


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_cut_off_in_time(name: str) -> None:
    async def main() -> None:
        async with scene(lanes=0, config=TLS) as the_scene, raw(the_scene.target.full_addrs[0]) as sock:
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(sock, STRANGERS[name])
            assert await ends(sock, PATIENCE + SLACK)
            await eventually(lambda: the_scene.log.handshakes)
            assert isinstance(
                the_scene.log.handshakes[0],
                ProtocolViolation | AuthenticationFailed | TimedOut | ConnectionClosed,
            )

    run(main())
