"""Every byte of a handshake cut and mangled; directions that stall, split, stutter and skip.

The wire, from the dialler ("up"): multistream with Noise's first message, Noise's third, then yamux with
identify both ways. From the target ("down"): multistream with Noise's second message, then yamux.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from flare.config import Config
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    FlareError,
    ProtocolNotSupported,
    ProtocolViolation,
    TimedOut,
)
from tests.adversity.scene import PATIENCE, SLACK, Outcome, Scene, scene
from tests.support.aio import aio, run
from tests.support.proxy import Chunk, Cut, Delay, Duplicate, Fault, Mangle, Plan, Split, Stall, Truncate

MULTISTREAM = 28  # bytes: header and "/noise"
MESSAGE_1 = MULTISTREAM + 2 + 32
STEP = 24  # of the offsets that are tried past the handshake, where records protect every byte alike

PATIENT = Config(security=("noise",))  # for what has to work, however busy the machine is

Make = Callable[..., Fault]


@dataclass
class Wire:
    """Where the parts of an undisturbed handshake end."""

    up: int  # the end of Noise's third message
    down: int  # the end of Noise's second message
    up_total: int
    down_total: int

    @classmethod
    async def of(cls, the_scene: Scene) -> Wire:
        (outcome,) = await the_scene.attempts([Plan()])
        assert outcome.identified
        assert outcome.run is not None
        up, down = outcome.run.up, outcome.run.down
        assert up.chunks[1] == MESSAGE_1, "the dialler waits for Noise's second message"
        size = int.from_bytes(up.data[MESSAGE_1 : MESSAGE_1 + 2], "big")
        answer = int.from_bytes(down.data[MULTISTREAM : MULTISTREAM + 2], "big")
        return cls(MESSAGE_1 + 2 + size, MULTISTREAM + 2 + answer, len(up.data), len(down.data))

    def offsets(self, direction: str) -> list[int]:
        """Every byte of the handshake and of the first yamux frames, then one in STEP; no goodbye."""
        every, total = (self.up, self.up_total) if direction == "up" else (self.down, self.down_total)
        first_frames = every + 2 + 12 + 2
        return [*range(first_frames), *range(first_frames, total - 40, STEP)]


def plans(direction: str, offsets: Sequence[int], make: Make, **how: Any) -> list[Plan]:
    """One plan for each offset."""
    return [Plan(**{direction: [make(at=at, **how)]}) for at in offsets]


def judge(outcome: Outcome, allowed: tuple[type[FlareError], ...], *, seconds: float) -> None:
    """The dialler was told in time, by one of `allowed`; it never believed in a connection that is dead."""
    assert outcome.seconds < seconds + SLACK, f"{outcome} took too long"
    if not outcome.connected or not outcome.identified:
        assert isinstance(outcome.error, allowed), f"{outcome.plan}: {outcome.error!r}"
        assert str(outcome.error), "an error says what happened"


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_cut_at_every_byte(direction: str, reset: bool) -> None:
    async def main() -> None:
        async with scene() as the_scene:
            wire = await Wire.of(the_scene)
            outcomes = await the_scene.attempts(plans(direction, wire.offsets(direction), Cut, reset=reset))
            for outcome in outcomes:
                judge(outcome, (ConnectionClosed,), seconds=0)
            before = [o for o in outcomes if _at(o) < (wire.up if direction == "up" else wire.down)]
            assert not any(outcome.identified for outcome in before)

    run(main(), timeout=50)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_bit_flipped_in_every_byte(direction: str) -> None:
    async def main() -> None:
        async with scene(lanes=16) as the_scene:
            wire = await Wire.of(the_scene)
            offsets = wire.offsets(direction)
            flips = [Plan(**{direction: [Mangle(at=at, bit=at * 5 % 8)]}) for at in offsets]
            for outcome in await the_scene.attempts(flips):
                judge(outcome, _errors_of_a_flip(direction, _at(outcome), wire), seconds=2 * PATIENCE + 1)
            seen = {type(error) for error in the_scene.log.handshakes}
            if direction == "up":
                assert AuthenticationFailed in seen, "the target refuses a third message that was touched"

    run(main(), timeout=50)


def _at(outcome: Outcome) -> int:
    (fault,) = (*outcome.plan.up, *outcome.plan.down)
    assert isinstance(fault, Fault)
    assert isinstance(fault.at, int)
    return fault.at


def _errors_of_a_flip(direction: str, at: int, wire: Wire) -> tuple[type[FlareError], ...]:
    """What the dialler may be told of a bit flipped in the byte `at`."""
    lengths = {0, 20, MULTISTREAM, MULTISTREAM + 1, MESSAGE_1, MESSAGE_1 + 1}
    if at < MULTISTREAM or at in lengths:
        # a name or a length: refused, not understood, or waited for in vain
        return (ProtocolViolation, ProtocolNotSupported, ConnectionClosed, TimedOut)
    if (direction == "down" and at < wire.down) or (direction == "up" and at < MESSAGE_1):
        return (AuthenticationFailed,)  # the transcripts differ
    # From here the dialler is done: either it sees a bad record, or the target's goodbye.
    return (AuthenticationFailed, ConnectionClosed)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_stalls_end_within_their_timeout(direction: str) -> None:
    async def main() -> None:
        async with scene(lanes=24) as the_scene:
            wire = await Wire.of(the_scene)
            end = wire.up if direction == "up" else wire.down
            offsets = [0, 1, 20, 27, 28, 29, 30, 61, 62, 63, 100, end - 1, end, end + 1, end + 30, end + 70]
            for outcome in await the_scene.attempts(plans(direction, offsets, Stall)):
                judge(outcome, (TimedOut, ConnectionClosed), seconds=2 * PATIENCE + 1)
                if _at(outcome) < (MESSAGE_1 if direction == "up" else wire.down):
                    assert isinstance(outcome.error, TimedOut), f"{outcome}: the dialler waits in vain"
                    assert f"longer than {PATIENCE:g} s" in str(outcome.error)

    run(main())


@aio
async def test_split_at_every_size() -> None:
    async with scene(lanes=4, config=PATIENT) as the_scene:
        sizes = [(1,), (2,), (3,), (1, 11), (2, 17, 1), (13,), (64,), (255,), (1000, 1)]
        splits = [Split(size) for size in sizes] + [Split(upto=40, seed=seed) for seed in range(6)]
        every = [Plan(up=[split], down=[split]) for split in splits]
        for outcome in await the_scene.attempts(every):
            assert outcome.identified, f"{outcome.plan}: {outcome.error!r}"


def test_split_once_at_every_byte() -> None:
    """Two packets, wherever the border falls."""

    async def main() -> None:
        async with scene(lanes=8, config=PATIENT) as the_scene:
            wire = await Wire.of(the_scene)
            last = max(wire.up, wire.down) + 80
            every = [Plan(up=[Split((at, 1 << 20))], down=[Split((at, 1 << 20))]) for at in range(1, last, 2)]
            for outcome in await the_scene.attempts(every):
                assert outcome.identified, f"{outcome.plan}: {outcome.error!r}"

    run(main())


@aio
async def test_a_slow_wire_is_no_broken_one() -> None:
    async with scene(lanes=8, config=PATIENT) as the_scene:
        every = [Plan(**{way: [Delay(Chunk(n), 0.15)]}) for way in ("up", "down") for n in range(4)]
        for outcome in await the_scene.attempts(every):
            assert outcome.identified, f"{outcome.plan}: {outcome.error!r}"


def test_bytes_twice_and_bytes_missing() -> None:
    async def main() -> None:
        async with scene(lanes=24) as the_scene:
            wire = await Wire.of(the_scene)
            ends = {"up": wire.up, "down": wire.down}
            every: list[Plan] = []
            for direction, end in ends.items():
                offsets = [0, 1, 19, 20, 27, 28, 30, 40, MESSAGE_1 - 1, MESSAGE_1, MESSAGE_1 + 30]
                offsets += [end - 1, end, end + 20]
                for size in (1, 12):
                    every += plans(direction, offsets, Duplicate, n=size)
                    every += plans(direction, offsets, Truncate, n=size)
            for outcome in await the_scene.attempts(every):
                allowed = (ProtocolViolation, ProtocolNotSupported, ConnectionClosed, TimedOut)
                judge(outcome, allowed, seconds=2 * PATIENCE + 1)
                end = ends["up" if outcome.plan.up else "down"]
                assert not outcome.identified or _at(outcome) >= end, outcome.plan

    run(main())
