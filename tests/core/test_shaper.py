"""Token buckets: exact to the byte, fair among those that wait, and nothing is lost while they do."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core.engine import Engine
from flare._core.link import LinkStream
from flare._core.shaper import MAX_BURST, MAX_RATE, Bucket
from flare._core.splice import Splice, SpliceResult, splice
from flare.errors import UsageError
from tests.support.mux import Pair, drain, run

SECOND = 1_000_000_000
NEVER = 1  # bytes a second: a test does not live to see the next one


class Relay:
    """One engine with circuits whose ends are here: `ends` are the near and far of each."""

    def __init__(self, *, sndbuf: int = 0) -> None:
        self.engine = Engine()
        self.left = Pair(self.engine, noise=False, sndbuf=sndbuf)
        self.right = Pair(self.engine, noise=False, sndbuf=sndbuf)
        self.ends: list[tuple[LinkStream, LinkStream]] = []
        self.results: list[SpliceResult] = []

    def join(self, *buckets: Bucket, **limits: int) -> Splice:
        near, a = self.left.open()
        b, far = self.right.open()
        self.ends.append((near, far))
        return splice(a, b, buckets=buckets, on_done=self.results.append, **limits)

    def carry(self, seconds: float, *, until: int = 1 << 62, piece: int = 65_536) -> list[int]:
        """Keep every circuit full for so long; bytes that arrived on each."""
        got = [0] * len(self.ends)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and sum(got) < until:
            for i, (near, far) in enumerate(self.ends):
                near.write(bytes(piece))
                got[i] += len(drain(far))
            self.engine.run_pass(1_000_000)
        return got


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.engine.close()


class TestBucket:
    def test_a_new_one_has_its_burst_and_not_one_byte_more(self) -> None:
        bucket = Bucket(NEVER, 1000)
        assert (bucket.rate, bucket.burst, bucket.available, bucket.full) == (1, 1000, 1000, True)
        assert bucket.spend(1000) == 0
        assert bucket.available == 0
        assert not bucket.full
        assert 0 < bucket.spend(1) <= SECOND

    def test_what_is_owed_adds_up(self) -> None:
        bucket = Bucket(NEVER, 1)
        bucket.spend(1)
        waits = [bucket.spend(1) for _ in range(10)]
        for i, wait in enumerate(waits, 1):
            assert (i - 1) * SECOND < wait <= i * SECOND

    def test_without_a_burst_it_has_a_quarter_second_and_64_kib_at_least(self) -> None:
        assert Bucket(4 << 20).burst == 1 << 20
        assert Bucket(1000).burst == 64 * 1024

    def test_what_is_owed_and_a_turn(self) -> None:
        bucket = Bucket(NEVER, 1)
        assert bucket.owed_ns == 0
        bucket.spend(11)
        assert 9 * SECOND < bucket.owed_ns <= 10 * SECOND
        turns = [Bucket(rate).turn for rate in (1, 500_000, 1 << 30, 0)]
        assert turns == [2048, 10_000, 65_536, 65_536]

    def test_rate_zero_is_no_limit(self) -> None:
        bucket = Bucket(0)
        assert bucket.spend(1 << 50) == 0
        assert bucket.full

    def test_a_changed_rate_keeps_what_is_owed_in_bytes(self) -> None:
        bucket = Bucket(NEVER, 1)
        bucket.spend(1001)
        bucket.change(1000, 1)
        assert 0.8 * SECOND < bucket.spend(1) <= 1.001 * SECOND
        bucket.change(0)
        assert bucket.spend(1) == 0

    @pytest.mark.parametrize(("rate", "burst"), [(-1, 0), (MAX_RATE + 1, 0), (1, -1), (1, MAX_BURST + 1)])
    def test_out_of_range(self, rate: int, burst: int) -> None:
        with pytest.raises(UsageError, match="bytes a second"):
            Bucket(rate, burst)

    def test_the_largest_there_can_be(self) -> None:
        for rate in (1024, MAX_RATE):
            bucket = Bucket(rate, MAX_BURST)
            assert bucket.available == MAX_BURST
            for _ in range(5):
                assert bucket.spend(MAX_BURST) >= 0
            assert bucket.available < MAX_BURST

    @settings(deadline=None)
    @given(
        st.integers(1, MAX_RATE), st.integers(1, MAX_BURST), st.lists(st.integers(0, 1 << 30), max_size=20)
    )
    def test_never_more_than_the_burst_and_what_time_brings(
        self, rate: int, burst: int, takes: list[int]
    ) -> None:
        began = time.monotonic_ns()
        bucket = Bucket(rate, burst)
        taken = 0
        for n in takes:
            if n <= bucket.available:
                bucket.spend(n)
                taken += n
        elapsed = time.monotonic_ns() - began
        assert taken <= burst + elapsed * rate / SECOND + 1


class TestOneSplice:
    @pytest.mark.parametrize("burst", [1, 1000, 70_000, 300_001])
    def test_exactly_the_burst_passes(self, relay: Relay, burst: int) -> None:
        relay.join(Bucket(NEVER, burst))
        near, far = relay.ends[0]
        got = 0
        while got < burst:
            piece = min(burst - got, 1500)
            assert near.write(bytes(piece)) == piece
            run(relay.engine)
            assert far.readable == piece
            got += len(drain(far))
        near.write(b"x")
        run(relay.engine, passes=8)
        assert not far.readable, "one past the burst"
        assert relay.results == []

    def test_both_directions_draw_from_one_bucket(self, relay: Relay) -> None:
        relay.join(Bucket(NEVER, 10))
        near, far = relay.ends[0]
        near.write(bytes(6))
        run(relay.engine)
        far.write(bytes(4))
        run(relay.engine)
        assert (far.readable, near.readable) == (6, 4)
        near.write(b"x")
        far.write(b"x")
        run(relay.engine)
        assert (far.readable, near.readable) == (6, 4)

    def test_the_poorest_of_several_buckets_decides(self, relay: Relay) -> None:
        rich, poor = Bucket(NEVER, 5000), Bucket(NEVER, 1000)
        relay.join(rich, poor, Bucket(0))
        near, far = relay.ends[0]
        near.write(bytes(1000))
        run(relay.engine)
        near.write(bytes(1000))
        run(relay.engine)
        assert far.readable == 1000
        assert rich.available == 4000, "what waits for one is not charged to the others"

    def test_what_waits_comes_when_the_rate_is_raised(self, relay: Relay) -> None:
        bucket = Bucket(NEVER, 10)
        relay.join(bucket)
        near, far = relay.ends[0]
        near.write(bytes(100_000))
        near.close_write()
        run(relay.engine)
        assert bucket.waiting == 1
        bucket.change(0)
        got = b""
        deadline = time.monotonic() + 20
        while not (far.read_closed and not far.readable) and time.monotonic() < deadline:
            relay.engine.run_pass(SECOND)
            got += drain(far)
        assert len(got) == 100_000
        assert bucket.waiting == 0

    @settings(max_examples=15, deadline=None)
    @given(
        st.lists(st.binary(min_size=1, max_size=30_000), min_size=1, max_size=12),
        st.lists(st.tuples(st.integers(1 << 20, 1 << 24), st.integers(1, 20_000)), max_size=6),
    )
    def test_every_byte_in_order(self, pieces: list[bytes], buckets: list[tuple[int, int]]) -> None:
        relay = Relay(sndbuf=16_384)
        relay.join(*(Bucket(rate, burst) for rate, burst in buckets))
        near, far = relay.ends[0]
        left, got = b"".join(pieces), b""
        deadline = time.monotonic() + 30
        while not far.read_closed or far.readable:
            left = left[near.write(left) :] if left else left
            if not left and not near.write_closed:
                near.close_write()
            relay.engine.run_pass(1_000_000)
            got += drain(far)
            assert time.monotonic() < deadline, "the circuit does not get on"
        assert got == b"".join(pieces)
        relay.engine.close()

    def test_back_pressure_reaches_the_sender(self, relay: Relay) -> None:
        relay.join(Bucket(NEVER, 1))
        near, _far = relay.ends[0]
        sent = 0
        for _ in range(100):
            sent += near.write(bytes(100_000))
            run(relay.engine, passes=2)
        assert near.write(b"x") == 0
        assert sent <= 1 << 20, "a window, and what lies in sockets"

    def test_a_deadline_and_a_cancel_reach_one_that_waits(self, relay: Relay) -> None:
        bucket = Bucket(NEVER, 1)
        waits = relay.join(bucket)
        relay.join(bucket, deadline_ns=time.monotonic_ns() + 20_000_000)
        for near, _far in relay.ends:
            near.write(bytes(100))
        run(relay.engine)
        assert bucket.waiting == 2
        waits.cancel()
        deadline = time.monotonic() + 20
        while len(relay.results) < 2 and time.monotonic() < deadline:
            relay.engine.run_pass(SECOND)
        assert sorted(r.reason for r in relay.results) == ["cancelled", "deadline"]
        assert bucket.waiting == 0

    def test_what_was_paid_for_one_that_left_comes_back(self, relay: Relay) -> None:
        bucket = Bucket(NEVER, 10)
        waits = relay.join(bucket)
        relay.ends[0][0].write(bytes(50_000))
        run(relay.engine)
        assert bucket.available == 0 or bucket.waiting == 1
        waits.cancel()
        assert bucket.available == 10

    def test_a_limit_in_bytes_holds_beside_a_bucket(self, relay: Relay) -> None:
        relay.join(Bucket(1 << 30), limit_a_to_b=1000)
        near, far = relay.ends[0]
        near.write(bytes(1000))
        run(relay.engine)
        assert relay.results == []
        near.write(b"x")
        run(relay.engine)
        assert (far.readable, relay.results) == (1000, [SpliceResult("limit", 1000, 0)])

    def test_closing_the_engine_frees_what_waits(self) -> None:
        bucket = Bucket(NEVER, 1)
        relay = Relay()
        relay.join(bucket)
        relay.ends[0][0].write(bytes(1000))
        run(relay.engine)
        assert bucket.waiting == 1
        relay.engine.close()
        assert bucket.waiting == 0

    def test_too_many_buckets(self, relay: Relay) -> None:
        relay.join(*[Bucket(0)] * 6)
        with pytest.raises(UsageError, match="6 buckets"):
            relay.join(*[Bucket(0)] * 7)

    def test_what_is_no_bucket(self, relay: Relay) -> None:
        with pytest.raises(TypeError):
            relay.join(object())  # type: ignore[arg-type]


def jain(shares: list[int]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))


class TestSharing:
    def test_those_that_wait_have_equal_shares(self, relay: Relay) -> None:
        bucket = Bucket(8 << 20, 1)
        for _ in range(10):
            relay.join(bucket)
        got = relay.carry(20, until=4 << 20)
        assert sum(got) >= 4 << 20
        assert jain(got) > 0.98, got

    def test_a_circuit_of_small_messages_has_its_share_beside_bulk(self, relay: Relay) -> None:
        bucket = Bucket(8 << 20, 1)
        for _ in range(3):
            relay.join(bucket)
        small, far = relay.ends.pop()
        got = 0
        deadline = time.monotonic() + 20
        others = [0, 0]
        while sum(others) < 2 << 20 and time.monotonic() < deadline:
            for _ in range(64):
                small.write(bytes(500))
            got += len(drain(far))
            for i, (near, end) in enumerate(relay.ends):
                near.write(bytes(65_536))
                others[i] += len(drain(end))
            relay.engine.run_pass(1_000_000)
        assert jain([got, *others]) > 0.95, (got, others)

    def test_a_poor_peer_does_not_hold_up_the_rest_of_the_relay(self, relay: Relay) -> None:
        total = Bucket(32 << 20, 1)
        for _ in range(2):
            relay.join(Bucket(NEVER, 1000), total)
        relay.join(Bucket(64 << 20), total)
        got = relay.carry(20, until=4 << 20)
        assert got[0] <= 1100
        assert got[1] <= 1100
        assert got[2] > 3 << 20

    def test_two_circuits_of_one_peer_share_with_a_third_of_another(self, relay: Relay) -> None:
        total, one, other = Bucket(8 << 20, 1), Bucket(2 << 20, 1), Bucket(1 << 30)
        relay.join(one, total)
        relay.join(one, total)
        relay.join(other, total)
        got = relay.carry(20, until=3 << 20)
        assert jain(got[:2]) > 0.95, got
        assert got[2] > 2 * (got[0] + got[1]), "what one may not use, the other has"

    def test_it_takes_as_long_as_the_rate_says(self, relay: Relay) -> None:
        bucket = Bucket(4 << 20, 1)
        for _ in range(4):
            relay.join(bucket)
        began = time.monotonic()
        got = sum(relay.carry(20, until=2 << 20))
        assert got <= (time.monotonic() - began) * (4 << 20) + 4 * 65_536

    def test_a_gate_has_one_timer_however_many_wait(self, relay: Relay) -> None:
        bucket = Bucket(1 << 20, 1)
        for _ in range(100):
            relay.join(bucket)
        for near, _far in relay.ends:
            near.write(bytes(65_536))
            run(relay.engine, passes=2)
        assert bucket.waiting == 100
        began, passes = time.monotonic(), relay.engine.counters["passes"]
        while time.monotonic() < began + 0.5:
            relay.engine.run_pass(SECOND)
        rounds = (time.monotonic() - began) * 50
        assert relay.engine.counters["passes"] - passes <= 8 * (rounds + 2)

    def test_two_engines_share_a_bucket(self) -> None:
        bucket = Bucket(8 << 20, 1)
        relays = [Relay(), Relay()]
        for relay, circuits in zip(relays, (4, 1), strict=True):
            for _ in range(circuits):
                relay.join(bucket)
        got = [0] * 5
        began = time.monotonic()
        while sum(got) < 4 << 20 and time.monotonic() < began + 20:
            got = [x + y for x, y in zip(got, relays[0].carry(0.002) + relays[1].carry(0.002), strict=True)]
        assert sum(got) <= (time.monotonic() - began) * (8 << 20) + 5 * 65_536
        assert jain(got) > 0.85, got
        for relay in relays:
            relay.engine.close()
        assert bucket.waiting == 0
