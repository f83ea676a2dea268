"""What the benchmark makes of its observations."""

from pathlib import Path

import pytest
from benchmarks.relay.results import Observation, Results, Spread, jain, percentile


def observed(
    relay: str, cost: float, run: int, part: str = "bytes", case: str = "noise/16384"
) -> Observation:
    return Observation(part, case, relay, {"cpu_s_per_gb": cost}, run=run)


def test_median_and_range() -> None:
    results = Results({}, tuple(observed("flare", cost, run) for run, cost in enumerate((1.0, 3.0, 1.5))))
    assert results.spread("bytes", "noise/16384", "flare", "cpu_s_per_gb") == Spread(1.5, 1.0, 3.0)
    assert results.spread("bytes", "noise/16384", "go", "cpu_s_per_gb") is None


def test_a_ratio_is_taken_run_by_run() -> None:
    """Each of them took twice as long in the second run: the ratio stays what it was."""
    results = Results(
        {},
        (
            observed("climit", 1, 1),
            observed("flare", 1.1, 1),
            observed("climit", 2, 2),
            observed("flare", 2.2, 2),
        ),
    )
    case = "noise/16384"
    ratio = results.ratio("bytes", "cpu_s_per_gb", (case, "flare"), (case, "climit"))
    assert ratio is not None
    assert ratio.low == ratio.high == pytest.approx(1.1)


def test_a_run_that_failed_has_no_ratio() -> None:
    failed = Observation("bytes", "noise/16384", "go", failure="the relay reset a circuit", run=1)
    results = Results({}, (observed("flare", 1, 1), failed, observed("flare", 1, 2), observed("go", 4, 2)))
    case = "noise/16384"
    assert results.ratio("bytes", "cpu_s_per_gb", (case, "go"), (case, "flare")) == Spread(4, 4, 4)
    assert results.failure("bytes", case, "go") == "the relay reset a circuit"


def test_results_survive_their_file(tmp_path: Path) -> None:
    failed = Observation("latency", "4 bulk", "py", failure='it said "no"', run=2)
    results = Results({"runs": 2, "versions": {"go": "v0.51.0"}}, (observed("flare", 1.25, 1), failed))
    results.save(tmp_path / "bench.json")
    assert Results.load(tmp_path / "bench.json") == results


@pytest.mark.parametrize(
    ("shares", "index"), [([5, 5, 5, 5], 1.0), ([1, 0, 0, 0], 0.25), ([2, 1], 0.9), ([0, 0], 0.0)]
)
def test_jain(shares: list[float], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


@pytest.mark.parametrize(("rank", "value"), [(50, 50), (99, 99), (99.5, 100), (100, 100), (1, 1), (0, 1)])
def test_percentile_is_the_nearest_rank(rank: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), rank) == value


def test_percentile_of_one() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
