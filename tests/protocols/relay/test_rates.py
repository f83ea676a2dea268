"""Token buckets by name: at the rate and one past it, and bounded whatever names come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core.shaper import Bucket
from flare.config import Rate, RelayLimits
from flare.errors import ResourceLimit
from flare.protocols.relay.rates import Buckets, Pace
from flare.protocols.relay.shaping import Shaping
from flare.wire.keys import Identity

PEERS = sorted(Identity.generate().peer_id for _ in range(12))


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def take(buckets: Buckets, key: object) -> bool:
    if not buckets.has(key):  # type: ignore[arg-type]
        return False
    buckets.take(key)  # type: ignore[arg-type]
    return True


class TestBuckets:
    def test_the_burst_and_one_past_it_and_what_time_brings(self) -> None:
        clock = Clock()
        buckets = Buckets(Rate(0.5, 3), 10, clock)
        assert [take(buckets, "a") for _ in range(4)] == [True, True, True, False]
        assert take(buckets, "b"), "each has its own"
        clock.now = 1.9
        assert not take(buckets, "a")
        clock.now = 2.0
        assert [take(buckets, "a") for _ in range(2)] == [True, False]
        clock.now = 1000.0
        assert [take(buckets, "a") for _ in range(4)] == [True, True, True, False], "no more than the burst"

    def test_no_rate_is_no_limit_and_no_memory(self) -> None:
        buckets = Buckets(Rate(), 10, Clock())
        assert all(take(buckets, "a") for _ in range(1000))
        assert len(buckets) == 0

    @pytest.mark.parametrize(("per_second", "burst"), [(0.1, 1), (1.0, 1), (7.5, 7)])
    def test_without_a_burst_it_is_a_second_and_one_at_least(self, per_second: float, burst: int) -> None:
        buckets = Buckets(Rate(per_second), 10, Clock())
        assert [take(buckets, "a") for _ in range(burst + 1)] == [True] * burst + [False]

    def test_full_ones_are_forgotten_as_new_ones_come(self) -> None:
        clock = Clock()
        buckets = Buckets(Rate(1.0, 5), 1000, clock)
        for name in range(1000):
            clock.now += 1.0
            assert take(buckets, name)
        assert len(buckets) <= 6, "a bucket with one token taken is full after a second"

    def test_it_is_bounded_even_when_none_is_full(self) -> None:
        buckets = Buckets(Rate(0.001, 1), 100, Clock())
        for name in range(1000):
            assert take(buckets, name)
        assert len(buckets) == 100
        assert not take(buckets, 999), "the newest are remembered"
        assert take(buckets, 0), "the oldest are not"

    def test_another_rate_counts_at_once(self) -> None:
        clock = Clock()
        buckets = Buckets(Rate(1.0, 1), 10, clock)
        assert [take(buckets, "a") for _ in range(2)] == [True, False]
        buckets.change(Rate(1.0, 3), 10)
        assert not take(buckets, "a"), "what was spent stays spent"
        clock.now = 2.0
        assert [take(buckets, "a") for _ in range(3)] == [True, True, False]
        for name in range(20):
            take(buckets, name)
        buckets.change(Rate(1.0, 3), 5)
        assert len(buckets) == 5
        buckets.change(Rate(), 5)
        assert len(buckets) == 0

    @given(
        st.floats(0.01, 100),
        st.integers(1, 50),
        st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5)), max_size=60),
    )
    def test_never_more_than_the_burst_and_the_rate_allow(
        self, per_second: float, burst: int, asks: list[tuple[str, float]]
    ) -> None:
        clock = Clock(1e6)
        buckets = Buckets(Rate(per_second, burst), 100, clock)
        taken = dict.fromkeys("abc", 0)
        for key, pause in asks:
            clock.now += pause
            taken[key] += take(buckets, key)
        most = burst + (clock.now - 1e6) * per_second + 1e-3
        assert all(count <= most for count in taken.values())


class TestPace:
    def test_who_is_refused_pays_nothing(self) -> None:
        pace = Pace("circuit", Clock())
        pace.change(Rate(1.0, 2), Rate(1.0, 3), 100)
        pace.draw("alice", "net")
        pace.draw("alice", "net")
        for _ in range(5):
            with pytest.raises(ResourceLimit, match="circuit_rate_per_peer: alice") as refused:
                pace.draw("alice", "net")
            assert refused.value.limit == "circuit_rate_per_peer"
        pace.draw("bob", "net")
        with pytest.raises(ResourceLimit, match="circuit_rate_per_ip: net"):
            pace.draw("carol", "net")
        pace.draw("carol", "elsewhere")
        pace.draw("bob", "elsewhere")
        assert pace.remembered == 5


class TestShaping:
    def limits(self, **rates: object) -> RelayLimits:
        return RelayLimits(**rates)  # type: ignore[arg-type]

    def test_no_rate_no_bucket(self) -> None:
        shaping = Shaping(RelayLimits())
        assert shaping.buckets([(PEERS[0], "a"), (PEERS[1], "b")]) == ()
        assert shaping.remembered == 0

    def test_both_ends_both_prefixes_and_the_relays_own_in_one_order(self) -> None:
        shaping = Shaping(
            self.limits(
                byte_rate_per_peer=Rate(1000, 500),
                byte_rate_per_ip=Rate(2000),
                byte_rate=Rate(1 << 20, 1 << 21),
            )
        )
        there = shaping.buckets([(PEERS[0], "a"), (PEERS[1], "b")])
        back = shaping.buckets([(PEERS[1], "b"), (PEERS[0], "a")])
        assert there == back
        assert [(b.rate, b.burst) for b in there] == [
            (1000, 500),
            (1000, 500),
            (2000, 65_536),
            (2000, 65_536),
            (1 << 20, 1 << 21),
        ]
        assert len(shaping.buckets([(PEERS[0], "a"), (PEERS[2], "a")])) == 4, "one bucket for one prefix"

    def test_peers_that_do_not_count_draw_from_the_relays_own_only(self) -> None:
        shaping = Shaping(self.limits(byte_rate_per_peer=Rate(1000), byte_rate=Rate(5000)))
        (total,) = shaping.buckets([])
        assert total.rate == 5000

    def test_a_changed_rate_is_the_running_circuits_too(self) -> None:
        shaping = Shaping(self.limits(byte_rate_per_peer=Rate(1000), byte_rate=Rate(5000)))
        one, _, total = shaping.buckets([(PEERS[0], "a"), (PEERS[1], "b")])
        shaping.change(self.limits(byte_rate_per_peer=Rate(1 << 20), byte_rate=Rate()))
        assert (one.rate, total.rate) == (1 << 20, 0)
        assert len(shaping.buckets([(PEERS[0], "a")])) == 1

    def test_a_circuit_that_is_idle_keeps_its_bucket(self) -> None:
        shaping = Shaping(self.limits(byte_rate_per_peer=Rate(1, 1)))
        mine = shaping.buckets([(PEERS[0], "")])
        for peer in PEERS[1:]:
            shaping.buckets([(peer, "")])
        assert shaping.remembered <= 5
        assert shaping.buckets([(PEERS[0], "")]) == mine
        shaping.change(self.limits(byte_rate_per_peer=Rate(7, 1)))
        assert mine[0].rate == 7

    def test_full_buckets_are_forgotten_and_used_ones_are_not(self) -> None:
        shaping = Shaping(self.limits(byte_rate_per_peer=Rate(1, 1)))
        (used,) = shaping.buckets([(PEERS[0], "")])
        used.spend(1000)
        for _ in range(50):
            for peer in PEERS[1:]:
                shaping.buckets([(peer, "")])
        assert shaping.remembered <= 5
        assert shaping.buckets([(PEERS[0], "")]) == (used,)

    def test_the_tables_are_bounded(self) -> None:
        shaping = Shaping(
            self.limits(byte_rate_per_peer=Rate(1, 1), byte_rate_per_ip=Rate(1, 1), max_buckets=4)
        )
        kept: list[Bucket] = []
        for i, peer in enumerate(PEERS):
            for bucket in shaping.buckets([(peer, f"net {i}")]):
                bucket.spend(1000)
                kept.append(bucket)
        assert shaping.remembered == 8
        shaping.change(self.limits(byte_rate_per_peer=Rate(1, 1), max_buckets=1))
        assert shaping.remembered == 1
