"""The splice: every byte in order, limits exact, back-pressure from end to end, each way to end."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core.link import LinkStream, PlainRecords
from flare._core.splice import Splice, SpliceResult, splice
from flare.errors import ConnectionClosed, StreamReset, UsageError
from tests.support.mux import (
    DATA,
    FIN,
    INITIAL,
    SYN,
    WINDOW,
    Heard,
    Limits,
    Pair,
    drain,
    frame,
    new_engine,
    run,
    run_until,
)

DRIVEN = ("calls", "threads")


class Circuit:
    """A -> relay -> B with a splice in the relay: `near` at A, `far` at B, each on an engine of its own or on
    one.
    """

    def __init__(
        self, *, noise: bool = True, one_engine: bool = False, sndbuf: int = 0, **limits: float
    ) -> None:
        self.relay = new_engine()
        self.ends = self.relay if one_engine else new_engine()
        self.engines = (self.relay,) if one_engine else (self.ends, self.relay)
        self.left = Pair(self.ends, self.relay, noise=noise, sndbuf=sndbuf, **limits)
        self.right = Pair(self.relay, self.ends, noise=noise, sndbuf=sndbuf, **limits)
        self.near, self.a = self.left.open()
        self.b, self.far = self.right.open()
        self.results: list[SpliceResult] = []

    def join(self, **limits: int) -> Splice:
        return splice(self.a, self.b, on_done=self.results.append, **limits)

    def run(self, passes: int = 6) -> None:
        run(*self.engines, passes=passes)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@pytest.fixture
def circuit() -> Iterator[Circuit]:
    made = Circuit()
    yield made
    made.close()


def pump(circuit: Circuit, payload: bytes, *, back: bool = False, ends: bool = True) -> bytes:
    """Carry `payload`, half-close, and read to the end."""
    source, sink = (circuit.far, circuit.near) if back else (circuit.near, circuit.far)
    got = bytearray()
    for _ in range(100_000):
        if payload:
            payload = payload[source.write(payload) :]
            if not payload and ends:
                source.close_write()
        circuit.run(1)
        got += drain(sink)
        if not payload and (sink.read_closed if ends else not sink.readable):
            circuit.run()
            got += drain(sink)
            return bytes(got)
    raise AssertionError("the circuit does not get on")


class TestBytes:
    @pytest.mark.parametrize("noise", [True, False])
    @pytest.mark.parametrize("one_engine", [True, False])
    def test_all_of_them_in_order_both_ways(self, noise: bool, one_engine: bool) -> None:
        circuit = Circuit(noise=noise, one_engine=one_engine)
        circuit.join()
        there = bytes(range(256)) * 20_000
        back = there[::-1][:1_000_001]
        assert pump(circuit, there) == there
        assert pump(circuit, back, back=True) == back
        assert circuit.results == [SpliceResult("closed", len(there), len(back))]
        circuit.close()

    def test_what_was_buffered_goes_first(self, circuit: Circuit) -> None:
        circuit.near.write(b"early ")
        circuit.far.write(b"also early ")
        circuit.run()
        assert circuit.a.readable == 6
        done = circuit.join()
        circuit.near.write(b"late")
        circuit.run()
        assert circuit.far.read() == b"early late"
        assert circuit.near.read() == b"also early "
        assert (done.bytes_a_to_b, done.bytes_b_to_a) == (10, 11)

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.tuples(st.booleans(), st.binary(min_size=1, max_size=3000), st.integers(0, 3)), max_size=12
        )
    )
    def test_any_interleaving(self, writes: list[tuple[bool, bytes, int]]) -> None:
        circuit = Circuit(noise=False, one_engine=True)
        joined = False
        got = {True: b"", False: b""}
        for i, (forward, data, passes) in enumerate(writes):
            if i == len(writes) // 2:
                circuit.join()
                joined = True
            assert (circuit.near if forward else circuit.far).write(data) == len(data)
            circuit.run(passes)
        if not joined:
            circuit.join()
        circuit.near.close_write()
        circuit.far.close_write()
        circuit.run(10)
        for forward, end in ((True, circuit.far), (False, circuit.near)):
            got[forward] = drain(end)
            assert got[forward] == b"".join(d for f, d, _ in writes if f == forward)
            assert end.read() == b""
        assert circuit.results[0].reason == "closed"
        circuit.close()

    def test_many_circuits_over_two_links(self) -> None:
        circuit = Circuit(one_engine=True, sndbuf=20_000)
        circuit.join()
        ends = [(circuit.near, circuit.far)]
        for _ in range(20):
            near, a = circuit.left.open()
            b, far = circuit.right.open()
            splice(a, b, on_done=circuit.results.append)
            ends.append((near, far))
        waiting = [bytes([i]) * 300_000 for i in range(len(ends))]
        got = [b""] * len(ends)
        for _ in range(20_000):
            for i, (near, far) in enumerate(ends):
                waiting[i] = waiting[i][near.write(waiting[i]) :]
                got[i] += drain(far)
            circuit.run(1)
            if all(len(g) == 300_000 for g in got):
                break
        assert [(len(g), set(g)) for g in got] == [(300_000, {i}) for i in range(len(ends))]
        circuit.close()

    def test_a_link_may_be_spliced_to_itself(self) -> None:
        engine = new_engine()
        pair = Pair(engine)
        near, a = pair.open()
        far, b = pair.open()
        splice(a, b, on_done=None)
        payload = bytes(range(256)) * 5000
        left, got = payload, b""
        for _ in range(5000):
            left = left[near.write(left) :]
            run(engine, passes=1)
            got += drain(far)
        assert got == payload
        engine.close()


class TestBackPressure:
    def test_a_slow_reader_stops_the_writer_and_memory_stays_bounded(self) -> None:
        window, high_water, sockets = 256 * 1024, 256 * 1024, 64 * 1024
        circuit = Circuit(sndbuf=sockets // 4, send_high_water=high_water)
        circuit.join()
        sent = 0
        for _ in range(3000):
            sent += circuit.near.write(bytes(100_000))
            circuit.run(1)
        relay_in, relay_out = circuit.left.b.stats, circuit.right.a.stats
        assert relay_in.buffered <= window
        assert relay_out.unsent <= high_water
        assert sent <= 2 * window + high_water + 4 * sockets, "two windows and what sits in buffers"
        assert circuit.near.write(b"x") == 0
        got = 0
        for _ in range(3000):
            got += len(drain(circuit.far))
            circuit.run(1)
        assert got == sent

    def test_a_stuck_circuit_leaves_others_on_its_links_alone(self) -> None:
        circuit = Circuit(sndbuf=16_384)
        circuit.join()
        near, a = circuit.left.open()
        b, far = circuit.right.open()
        splice(a, b, on_done=None)
        for _ in range(500):
            circuit.near.write(bytes(100_000))
            circuit.run(1)
        assert circuit.near.write(b"x") == 0, "nobody reads circuit.far"
        near.write(b"through")
        circuit.run()
        assert far.read() == b"through"
        circuit.close()

    def test_a_trickle_is_not_held_up_by_bulk(self) -> None:
        circuit = Circuit(sndbuf=32_768)
        circuit.join()
        near, a = circuit.left.open()
        b, far = circuit.right.open()
        splice(a, b, on_done=None)
        got = 0
        for i in range(100):
            for _ in range(4):
                circuit.near.write(bytes(1 << 18))
                got += len(drain(circuit.far))
                circuit.run(1)
            before, word = got, b"%3d" % i
            for _ in range(200):
                circuit.near.write(bytes(1 << 18))
                word = word[near.write(word) :]
                got += len(drain(circuit.far))
                circuit.run(1)
                if far.readable:
                    break
            assert far.read() == b"%3d" % i
            assert got - before <= 1 << 20
        circuit.close()


class TestLimits:
    @pytest.mark.parametrize("back", [False, True])
    @pytest.mark.parametrize("limit", [1, 1000, 128 * 1024, 300_001])
    def test_exactly_the_limit_passes(self, circuit: Circuit, limit: int, back: bool) -> None:
        circuit.join(**{"limit_b_to_a" if back else "limit_a_to_b": limit})
        assert len(pump(circuit, bytes(limit), back=back, ends=False)) == limit
        circuit.run()
        assert circuit.results == []
        other, sink = (circuit.near, circuit.far) if back else (circuit.far, circuit.near)
        other.write(b"the other direction is not limited")
        circuit.run()
        assert sink.readable

    @pytest.mark.parametrize("back", [False, True])
    @pytest.mark.parametrize("limit", [1, 1000, 128 * 1024, 300_001])
    def test_one_byte_more_resets_both(self, circuit: Circuit, limit: int, back: bool) -> None:
        circuit.join(**{"limit_b_to_a" if back else "limit_a_to_b": limit})
        source, sink = (circuit.far, circuit.near) if back else (circuit.near, circuit.far)
        left, got = bytes(limit + 1), 0
        for _ in range(10_000):
            if left and not source.is_reset:
                left = left[source.write(left) :]
            circuit.run(1)
            if sink.is_reset and not sink.readable:
                break
            while sink.readable:
                got += len(sink.read() or b"")
        assert got == limit, "all of the limit arrives before the reset"
        with pytest.raises(StreamReset):
            source.write(b"x")
        expected = (0, limit) if back else (limit, 0)
        assert circuit.results == [SpliceResult("limit", *expected)]

    def test_half_closing_at_the_limit_is_a_clean_end(self, circuit: Circuit) -> None:
        circuit.join(limit_a_to_b=10, limit_b_to_a=10)
        circuit.near.write(bytes(10))
        circuit.near.close_write()
        circuit.far.write(bytes(10))
        circuit.far.close_write()
        circuit.run()
        assert circuit.results == [SpliceResult("closed", 10, 10)]

    def test_bytes_buffered_before_the_splice_count(self, circuit: Circuit) -> None:
        circuit.near.write(bytes(11))
        circuit.run()
        circuit.join(limit_a_to_b=10)
        circuit.run()
        assert circuit.results == [SpliceResult("limit", 10, 0)]

    def test_the_deadline_resets_both(self, circuit: Circuit) -> None:
        start = time.monotonic_ns()
        circuit.join(deadline_ns=start + 200_000_000)
        circuit.near.write(b"x")
        while not circuit.results and time.monotonic_ns() < start + 5_000_000_000:
            circuit.ends.run_pass(0)
            circuit.relay.run_pass(1_000_000_000)
        late = time.monotonic_ns() - start - 200_000_000
        assert circuit.results == [SpliceResult("deadline", 1, 0)]
        assert 0 <= late < 1_000_000_000
        circuit.run()
        for end in (circuit.near, circuit.far):
            if end.readable:
                end.read()
            with pytest.raises(StreamReset):
                end.read()


class TestEnds:
    def test_half_close_goes_through_and_leaves_the_other_direction(self, circuit: Circuit) -> None:
        circuit.join()
        circuit.near.write(b"request")
        circuit.near.close_write()
        circuit.run()
        assert (circuit.far.read(), circuit.far.read()) == (b"request", b"")
        assert circuit.results == []
        circuit.far.write(b"response")
        circuit.run()
        assert circuit.near.read() == b"response"
        circuit.far.close_write()
        circuit.run()
        assert circuit.near.read() == b""
        assert circuit.results == [SpliceResult("closed", 7, 8)]

    def test_half_close_before_the_splice(self, circuit: Circuit) -> None:
        circuit.near.write(b"all")
        circuit.near.close_write()
        circuit.run()
        circuit.join()
        circuit.run()
        assert (circuit.far.read(), circuit.far.read()) == (b"all", b"")

    @pytest.mark.parametrize("which", ["near", "far"])
    def test_reset_goes_through(self, circuit: Circuit, which: str) -> None:
        circuit.join()
        one, other = (circuit.near, circuit.far) if which == "near" else (circuit.far, circuit.near)
        one.reset()
        circuit.run()
        with pytest.raises(StreamReset):
            other.read()
        assert circuit.results == [SpliceResult("reset", 0, 0)]

    @pytest.mark.parametrize("which", ["left", "right"])
    def test_a_lost_link_resets_the_other_side(self, circuit: Circuit, which: str) -> None:
        circuit.join()
        (circuit.left.a if which == "left" else circuit.right.b).abort()
        circuit.run()
        other = circuit.far if which == "left" else circuit.near
        with pytest.raises(StreamReset):
            other.read()
        assert circuit.results == [SpliceResult("link", 0, 0)]

    @pytest.mark.parametrize("how", ["reset", "lost", "cancelled"])
    def test_what_waits_is_dropped_though_somebody_holds_the_streams(self, how: str) -> None:
        circuit = Circuit(send_high_water=64 * 1024, sndbuf=16_384)
        splicing = circuit.join()
        for _ in range(300):
            circuit.near.write(bytes(64 * 1024))
            circuit.run(1)
        assert circuit.left.b.stats.buffered > 0, "nobody reads, and the relay holds a window"
        if how == "reset":
            circuit.near.reset()
        elif how == "lost":
            circuit.left.a.abort("gone")
        else:
            splicing.cancel()
        circuit.run()
        assert circuit.left.b.stats.buffered == 0
        assert circuit.results[0].reason in ("reset", "link", "cancelled")
        circuit.close()

    def test_a_sender_that_half_closed_and_left_is_delivered_in_full(self) -> None:
        circuit = Circuit(sndbuf=16_384)
        circuit.join()
        payload = bytes(range(256)) * 900
        assert circuit.near.write(payload) == len(payload)
        circuit.near.close_write()
        for _ in range(200):
            circuit.run(1)
        circuit.left.a.close()
        for _ in range(20):
            circuit.run(1)
        got = b""
        for _ in range(2000):
            got += drain(circuit.far)
            circuit.run(1)
        assert got == payload
        assert circuit.far.read() == b""
        assert circuit.results[0].reason in ("link", "reset")
        assert circuit.results[0].bytes_a_to_b == len(payload)
        circuit.close()

    def test_what_waits_for_a_sender_that_left_outlasts_the_half_close_of_its_receiver(self) -> None:
        circuit = Circuit(sndbuf=16_384)
        circuit.join()
        window = circuit.b.send_window
        payload = bytes(range(256)) * 1500
        left = payload
        for _ in range(300):
            left = left[circuit.near.write(left) :]
            circuit.run(1)
        assert not left
        circuit.near.close_write()
        circuit.run()
        circuit.left.a.close()
        circuit.run(20)
        assert circuit.left.b.closed
        assert circuit.far.readable == window < len(payload), "the rest waits for a window"
        circuit.far.close_write()
        circuit.run()
        got = b""
        for _ in range(500):
            got += drain(circuit.far)
            circuit.run(1)
        assert got == payload
        assert circuit.far.read() == b""
        assert circuit.results == [SpliceResult("link", len(payload), 0)]
        circuit.close()

    @pytest.mark.timeout(20, method="thread")
    def test_a_link_that_dies_under_a_splice_of_two_of_its_streams(self) -> None:
        engine = new_engine()
        x, y = socket.socketpair()
        limits = Limits(keepalive=0.0, send_high_water=64 * 1024)
        link = engine.attach(y.detach(), record=PlainRecords(), initiator=False, limits=limits)
        heard = Heard(link)
        results: list[SpliceResult] = []
        with x:
            x.sendall(frame(WINDOW, SYN, 1) + frame(WINDOW, SYN, 3))
            run(engine)
            source, target = heard.streams
            splice(source, target, on_done=results.append)
            x.setblocking(False)
            got = b""
            piece = 16 * 1024
            waiting = [frame(DATA, 0, 1, bytes(piece))] * ((INITIAL + 98_304) // piece)
            for said in [*waiting, frame(DATA, FIN, 1)]:
                assert x.send(said) == len(said)
                run(engine)
                with suppress(BlockingIOError):
                    while True:
                        got += x.recv(1 << 20)
            assert len(got) > INITIAL
            assert target.send_window == 0
            assert source.readable == 98_304
            x.send(frame(WINDOW, 0, 3, 1 << 20))
        run(engine)
        assert len(heard.closed) == 1
        assert [r.reason for r in results] == ["link"]
        engine.close()

    def test_cancel_resets_both(self, circuit: Circuit) -> None:
        joined = circuit.join()
        joined.cancel()
        joined.cancel()
        circuit.run()
        for end in (circuit.near, circuit.far):
            with pytest.raises(StreamReset):
                end.read()
        assert circuit.results == [SpliceResult("cancelled", 0, 0)]
        assert joined.done

    def test_resetting_a_spliced_stream_ends_it(self, circuit: Circuit) -> None:
        circuit.join()
        circuit.a.reset()
        circuit.run()
        assert circuit.results == [SpliceResult("reset", 0, 0)]

    def test_it_lives_without_anybody_holding_it(self, circuit: Circuit) -> None:
        circuit.join()
        del circuit.a, circuit.b
        gc.collect()
        circuit.near.write(b"held by the engine")
        circuit.run()
        assert circuit.far.read() == b"held by the engine"
        assert len(circuit.relay.splices) == 1
        circuit.near.reset()
        circuit.run()
        assert circuit.relay.splices == set()

    def test_closing_the_engine_ends_it(self, circuit: Circuit) -> None:
        circuit.join()
        circuit.relay.close()
        assert circuit.results == [SpliceResult("link", 0, 0)]


class TestMisuse:
    def test_a_spliced_stream_is_not_read_or_written(self, circuit: Circuit) -> None:
        circuit.join()
        for stream in (circuit.a, circuit.b):
            for call in (
                lambda s: s.read(),
                lambda s: s.write(b"x"),
                lambda s: s.read_frame(1),
                LinkStream.close_write,
            ):
                with pytest.raises(UsageError, match="spliced"):
                    call(stream)
        with pytest.raises(UsageError, match="spliced"):
            circuit.join()

    def test_it_has_no_events_for_python(self, circuit: Circuit) -> None:
        events: list[int] = []
        circuit.a.on_event = events.append
        circuit.join()
        circuit.near.write(b"x")
        circuit.run()
        assert events == []

    def test_streams_of_two_engines(self, circuit: Circuit) -> None:
        with pytest.raises(UsageError, match="beside each other"):
            splice(circuit.near, circuit.a, on_done=None)

    def test_a_stream_with_itself(self, circuit: Circuit) -> None:
        with pytest.raises(UsageError, match="itself"):
            splice(circuit.a, circuit.a, on_done=None)

    def test_dead_streams(self, circuit: Circuit) -> None:
        circuit.near.reset()
        circuit.run()
        with pytest.raises(StreamReset):
            circuit.join()
        circuit.right.a.abort()
        _near, a = circuit.left.open()
        with pytest.raises(ConnectionClosed):
            splice(a, circuit.b, on_done=None)

    def test_a_stream_closed_for_writing(self, circuit: Circuit) -> None:
        circuit.a.close_write()
        with pytest.raises(UsageError, match="closed for writing"):
            circuit.join()


def test_no_python_object_per_byte() -> None:
    """Events per megabyte that passes a relay: none for its own Python."""
    circuit = Circuit()
    circuit.join()
    before = circuit.relay.counters["events"]
    pump(circuit, bytes(4 << 20), ends=False)
    assert circuit.relay.counters["events"] - before <= 2
    run_until(lambda: True, circuit.relay)
    circuit.close()
