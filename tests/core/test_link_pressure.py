"""Links whose peer or whose reader is slow: what is held is bounded, and streams take turns."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core.engine import Engine
from flare._core.link import WRITABLE, PlainRecords
from flare.errors import ResourceLimit
from tests.support.mux import (
    DATA,
    FIN,
    RST,
    SYN,
    WINDOW,
    Bare,
    Limits,
    Pair,
    drain,
    frame,
    new_engine,
    run,
    run_until,
)

DRIVEN = ("calls", "threads")


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = new_engine()
    yield made
    made.close()


class TestBackPressure:
    def test_a_slow_reader_holds_the_writer_and_bounds_memory(self, engine: Engine) -> None:
        pair = Pair(engine, sndbuf=32 * 1024, send_high_water=256 * 1024)
        near, far = pair.open()
        events: list[int] = []
        near.on_event = events.append
        sent = 0
        for _ in range(200):
            sent += near.write(bytes(50_000))
            run(engine, passes=1)
        assert sent == 256 * 1024 - 5, "one window less the first 5 bytes"
        assert far.readable == sent
        assert pair.b.stats.buffered <= 256 * 1024
        assert WRITABLE not in events
        drain(far)
        run(engine)
        assert WRITABLE in events

    def test_a_peer_that_does_not_read_its_socket_bounds_the_output(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        y.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        link = engine.attach(
            y.detach(),
            record=PlainRecords(),
            initiator=True,
            limits=Limits(keepalive=0.0, send_high_water=64 * 1024),
        )
        with x:
            streams = [link.open_stream() for _ in range(10)]
            for _ in range(20):
                for stream in streams:
                    stream.write(bytes(10_000))
                run(engine, passes=1)
            bulk = 64 * 1024 // 4 + 64 * 1024 // 32
            assert bulk <= link.unsent <= bulk + 2048, "bulk has a quarter of the high-water mark"
            control = link.open_stream()
            control.set_priority(True)
            assert control.write(bytes(40_000)) == 40_000, "control streams have the rest of it"
            assert control.write(bytes(40_000)) < 10_000

    def test_a_peer_that_floods_and_reads_nothing_is_not_read_from(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        link = engine.attach(
            y.detach(), record=PlainRecords(), initiator=False,
            limits=Limits(keepalive=0.0, send_high_water=4096, max_streams=0),
        )  # fmt: skip
        x.setblocking(False)
        refused = b"".join(frame(WINDOW, SYN, 1 + 2 * i) for i in range(5000))
        stuck = 0
        with x:
            for _ in range(2000):
                try:
                    x.send(refused)
                except BlockingIOError:
                    stuck += 1
                run(engine, passes=1)
                if stuck > 5:
                    break
            assert stuck > 5, "the peer's own sending blocks"
            assert link.unsent < 4096 + 256 * 1024 + 70_000

    def test_links_hold_no_buffers_when_idle(self, engine: Engine) -> None:
        pair = Pair(engine)
        near, far = pair.open()
        near.write(bytes(200_000))
        run(engine)
        drain(far)
        run(engine)
        assert pair.a.stats.unsent == pair.b.stats.unsent == pair.b.stats.buffered == 0

    def test_the_cap_of_a_link_stops_its_reading(self, engine: Engine) -> None:
        pair = Pair(engine, noise=False, max_receive=300_000, send_high_water=1 << 22)
        opened = [pair.open() for _ in range(4)]
        for _ in range(50):
            for near, _far in opened:
                near.write(bytes(64 * 1024))
            run(engine, passes=1)
        assert 300_000 <= pair.b.stats.buffered <= 300_000 + 256 * 1024
        got = 0
        for _ in range(100):
            for _near, far in opened:
                got += len(drain(far))
            run(engine, passes=1)
        assert got >= 4 * 256 * 1024 - 20, "and reading goes on when Python read"

    @pytest.mark.parametrize("flag", [0, FIN, RST])
    def test_reading_goes_on_when_the_streams_were_dropped_unread(self, flag: int) -> None:
        with Bare(max_receive=100_000) as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, bytes(100_000)), frame(WINDOW, flag, 1))
            assert peer.link.paused
            assert stream.readable == 100_000
            peer.heard.streams.clear()
            del stream
            run(peer.engine)
            assert peer.link.stats.buffered == 0
            assert not peer.link.paused


class TestTurns:
    def test_streams_of_a_full_link_take_turns(self, engine: Engine) -> None:
        pair = Pair(engine, sndbuf=16 * 1024, send_high_water=128 * 1024)
        opened = [pair.open() for _ in range(4)]
        payload = bytes(1 << 20)
        for near, _far in opened:
            # type: ignore[misc]
            near.on_event = lambda flags, near=near: near.write(payload) if flags == WRITABLE else 0
            near.write(payload)
        got = [0] * 4
        for _ in range(3000):
            run(engine, passes=1)
            for i, (_near, far) in enumerate(opened):
                got[i] += len(drain(far))
            if min(got) > 1 << 20:
                break
        assert min(got) > 1 << 20
        assert max(got) - min(got) <= 1 << 20, f"nobody is far ahead: {got}"

    def test_a_turn_that_is_not_used_holds_nobody_up(self) -> None:
        with Bare(initiator=True, send_high_water=64 * 1024) as peer:
            idle, other = peer.link.open_stream(), peer.link.open_stream()
            assert 0 < idle.write(bytes(100_000)) < 100_000
            taken: list[int] = []
            events: list[int] = []
            idle.on_event = lambda flags: taken.append(other.write(b"hello")) if flags & WRITABLE else None
            other.on_event = events.append
            run(peer.engine)
            peer.link.take_output()
            run(peer.engine)
            assert taken == [0], "the turn is another's"
            run(peer.engine)
            assert events == [WRITABLE]
            assert other.write(b"hello") == 5

    def test_control_streams_go_first(self, engine: Engine) -> None:
        pair = Pair(engine, sndbuf=16 * 1024)
        bulk, _bulk_far = pair.open()
        control, far = pair.open()
        control.set_priority(True)
        bulk.write(bytes(1 << 20))
        run(engine, passes=1)
        bulk.write(bytes(1 << 20))
        queued = pair.a.unsent
        assert control.write(b"urgent") == 6
        run_until(lambda: far.readable == 6, engine)
        assert queued <= 256 * 1024 + 2048


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from((1, 1024, 3071, 3072, 3073, 16_384, 65_507, 65_508, 100_000)),
            st.sampled_from(("", "ping", "pass", "read")),
        ),
        max_size=14,
    ),
    st.sampled_from((0, 8192)),
)
def test_large_and_small_frames_share_records(writes: list[tuple[int, int, str]], sndbuf: int) -> None:
    """Large ones are encrypted where they go, small ones joined first: in whatever order, all arrives."""
    engine = new_engine()
    pair = Pair(engine, sndbuf=sndbuf)
    streams = [pair.open(b"0"), pair.open(b"1")]
    sent, got = [b"", b""], [b"", b""]
    for number, (which, size, then) in enumerate(writes):
        data = bytes([number]) * size
        sent[which] += data[: streams[which][0].write(data)]
        if then == "ping":
            with contextlib.suppress(ResourceLimit):
                pair.a.ping(lambda rtt: None)
        elif then:
            run(engine, passes=1)
        if then == "read":
            got[which] += drain(streams[which][1])
    for _ in range(200):
        run(engine, passes=1)
        got = [before + drain(far) for before, (_, far) in zip(got, streams, strict=True)]
    assert got == sent
    assert not pair.b.closed
    engine.close()
