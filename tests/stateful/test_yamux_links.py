"""Two memory links against a model: bytes in order, none lost, windows, half-close, reset, many streams."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flare._core.engine import Engine
from flare._core.link import Link, LinkStream, PlainRecords
from flare.errors import ResourceLimit, StreamReset
from tests.support.mux import INITIAL, Heard, Limits, noise_keys, run

BACKLOG = 5
SIZES = st.sampled_from([1, 2, 11, 12, 13, 1000, 16_384, 65_507, 65_519, 70_000, 200_000, 400_000])
PATTERN = bytes(range(251)) * 2000


def pattern(start: int, n: int) -> bytes:
    """n bytes of an endless pattern, from byte `start`."""
    start %= 251
    return PATTERN[start : start + n]


class Way:
    """One direction of a stream, as the model has it."""

    def __init__(self) -> None:
        self.written = 0  # taken by write()
        self.read = 0
        self.closed = False  # close_write() was called
        self.ended = False  # b"" was read


class Stream:
    """One stream of the model: the ends that Python holds, and what went each way."""

    def __init__(self, opener: int, end: LinkStream) -> None:
        self.ends: dict[int, LinkStream | None] = {opener: end, 1 - opener: None}
        self.ways = {0: Way(), 1: Way()}  # by the side that writes
        self.reset = False  # somewhere


class LinksMachine(RuleBasedStateMachine):
    noise = False

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        keys = noise_keys() if self.noise else (PlainRecords(), PlainRecords())
        limits = Limits(keepalive=0.0, backlog=BACKLOG, send_high_water=512 * 1024, max_window=2 * INITIAL)
        self.links: list[Link] = [
            self.engine.attach_memory(record=keys[i], initiator=i == 0, limits=limits) for i in range(2)
        ]
        self.heard = [Heard(link) for link in self.links]
        self.wires = [b"", b""]  # by the side that sends
        self.streams: dict[int, Stream] = {}
        self.opened = [0, 0]

    def teardown(self) -> None:
        """All that was written arrives; then everything ends."""
        for _ in range(200):
            moved = [self.deliver(side, 1 << 20) for side in (0, 1)]
            for stream in self.streams.values():
                for side in (0, 1):
                    while self.read_some(stream, side, 1 << 20):
                        moved.append(1)
            if not any(moved):
                break
        for stream in self.streams.values():
            for side in (0, 1):
                if not stream.reset and stream.ends[1 - side] is not None:
                    way = stream.ways[side]
                    assert way.read == way.written, "bytes were lost"
                    assert way.ended == way.closed
        self.engine.close()

    def deliver(self, side: int, n: int) -> int:
        run(self.engine, passes=1)
        self.wires[side] += self.links[side].take_output()
        part, self.wires[side] = self.wires[side][:n], self.wires[side][n:]
        if part:
            self.links[1 - side].feed(part)
        run(self.engine, passes=1)
        heard = self.heard[1 - side]
        while heard.streams:
            end = heard.streams.pop(0)
            assert end.inbound
            assert self.streams[end.id].ends[1 - side] is None
            self.streams[end.id].ends[1 - side] = end
        return len(part)

    def read_some(self, stream: Stream, side: int, n: int) -> int:
        """Read at `side`; how much."""
        end, way = stream.ends[side], stream.ways[1 - side]
        if end is None:
            return 0
        try:
            data = end.read(n)
        except StreamReset:
            assert stream.reset
            return 0
        if data is None:
            return 0
        if data == b"":
            assert way.closed
            assert way.read == way.written or stream.reset
            way.ended = True
            return 0
        assert len(data) <= n
        assert data == pattern(way.read, len(data)), "bytes out of order"
        way.read += len(data)
        assert way.read <= way.written
        return len(data)

    def pick(self, index: int) -> Stream:
        return list(self.streams.values())[index % len(self.streams)]

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        waiting = self.links[side].stats.unacked_streams
        try:
            end = self.links[side].open_stream()
        except ResourceLimit:
            assert waiting == BACKLOG
            return
        assert waiting < BACKLOG
        assert end.id == 2 * self.opened[side] + (2 if side else 1)
        self.opened[side] += 1
        self.streams[end.id] = Stream(side, end)

    @precondition(lambda self: self.streams)
    @rule(index=st.integers(0, 50), side=st.integers(0, 1), n=SIZES)
    def write(self, index: int, side: int, n: int) -> None:
        stream = self.pick(index)
        end, way = stream.ends[side], stream.ways[side]
        if end is None or way.closed:
            return
        window = end.send_window
        try:
            taken = end.write(pattern(way.written, n))
        except StreamReset:
            assert stream.reset
            return
        assert taken <= min(n, window)
        assert end.send_window == window - taken
        way.written += taken
        assert way.written - way.read <= 2 * INITIAL, "more in flight than any window"

    @precondition(lambda self: self.streams)
    @rule(index=st.integers(0, 50), side=st.integers(0, 1), n=SIZES)
    def read(self, index: int, side: int, n: int) -> None:
        self.read_some(self.pick(index), side, n)

    @rule(side=st.integers(0, 1), n=st.sampled_from([1, 7, 12, 100, 5000, 70_000, 1 << 20]))
    def carry(self, side: int, n: int) -> None:
        self.deliver(side, n)

    @precondition(lambda self: self.streams)
    @rule(index=st.integers(0, 50), side=st.integers(0, 1))
    def close_write(self, index: int, side: int) -> None:
        stream = self.pick(index)
        end = stream.ends[side]
        if end is not None and not end.is_reset:
            end.close_write()
            stream.ways[side].closed = True

    @precondition(lambda self: self.streams)
    @rule(index=st.integers(0, 50), side=st.integers(0, 1), drop=st.booleans())
    def reset(self, index: int, side: int, drop: bool) -> None:
        """Reset, or let go of the last reference, which is the same."""
        stream = self.pick(index)
        end = stream.ends[side]
        if end is None:
            return
        if drop:
            stream.ends[side] = end = None
        else:
            end.reset()
        stream.reset = True

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        if self.links[side].stats.unsent < 1000:
            try:
                self.links[side].ping(lambda rtt: None)
            except ResourceLimit:
                return

    @invariant()
    def links_live_and_stay_within_bounds(self) -> None:
        for link, heard in zip(self.links, self.heard, strict=True):
            assert not link.closed, heard.closed
            stats = link.stats
            assert stats.unsent <= 512 * 1024 + 70_000
            assert stats.unacked_streams <= BACKLOG

    @invariant()
    def buffered_bytes_are_counted(self) -> None:
        for side, link in enumerate(self.links):
            ends = [stream.ends[side] for stream in self.streams.values()]
            held = sum(end.readable for end in ends if end is not None)
            assert held <= link.stats.buffered


class NoiseLinksMachine(LinksMachine):
    noise = True


@pytest.mark.parametrize("machine", [LinksMachine, NoiseLinksMachine])
def test_links_behave_as_the_model(machine: type[LinksMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None)
    )
