"""The figures to reach, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.relay.relays import FLARE, FLARE_NEWER, LIMIT
from benchmarks.relay.results import Results, Spread
from benchmarks.relay.tables import number, table

AT_MOST, AT_LEAST = "<=", ">="
FAST_GCM: Final = (3, 1)  # the libcrypto whose AES-GCM uses VAES
SPARE_CORES: Final = 3  # two for the relay, one for the load


@dataclass(frozen=True, slots=True)
class Goal:
    """What, how far, and how it is read from results: pairs of a word and a value, the worst decides."""

    what: str
    sense: str
    reach: float
    unit: str
    read: Callable[[Results], list[tuple[str, Spread | None]]]
    beside: Callable[[Results], str] = lambda _: ""
    tested: Callable[[Results], bool] = lambda _: True  # whether this machine can tell

    def measured(self, results: Results) -> str:
        """Every value, or that there is none."""
        found = [(word, value) for word, value in self.read(results) if value]
        if not found:
            return "not measured"
        texts = [f"{_exact(value.median)}{self.unit}{' at ' if word else ''}{word}" for word, value in found]
        return ", ".join(texts) + (f"; {beside}" if (beside := self.beside(results)) else "")

    def reached(self, results: Results) -> str:
        """yes or no; not measured when any value is missing, not tested where the goal does not apply."""
        values = [value for _, value in self.read(results)]
        medians = [value.median for value in values if value]
        if len(medians) < len(values) or not medians:
            return "not measured"
        if not self.tested(results):
            return "not tested"
        kept = max(medians) <= self.reach if self.sense == AT_MOST else min(medians) >= self.reach
        return "yes" if kept else "no"


def _exact(value: float) -> str:
    return f"{value:.3f}" if value < 10 else number(value)


def _limit(*sizes: int) -> Callable[[Results], list[tuple[str, Spread | None]]]:
    def read(results: Results) -> list[tuple[str, Spread | None]]:
        return [(f"{size // 1024} KiB", _cost(results, f"noise/{size}", FLARE, LIMIT)) for size in sizes]

    return read


def _cost(results: Results, case: str, above: str, below: str) -> Spread | None:
    return results.ratio("bytes", "cpu_s_per_gb", (case, above), (case, below))


def _beyond(relay: str) -> Callable[[Results], list[tuple[str, Spread | None]]]:
    return lambda results: [("16 KiB", _cost(results, "noise/16384", relay, FLARE))]


def _gcm_relay(results: Results) -> str:
    """flare with the libcrypto of --libcrypto, if there was one."""
    return FLARE_NEWER if FLARE_NEWER in results.relays("bytes") else FLARE


def _tls(results: Results) -> list[tuple[str, Spread | None]]:
    relay = _gcm_relay(results)
    pair = ("tls/16384", relay), ("noise/16384", relay)
    return [("16 KiB", results.ratio("bytes", "cpu_s_per_gb", *pair))]


def _records(results: Results) -> str:
    """Whose cipher that relay uses: "libcrypto 3.5.8"."""
    return str(results.about.get("newer" if _gcm_relay(results) == FLARE_NEWER else "records", "what?"))


def _libcrypto(results: Results) -> str:
    return f"with {_records(results)}"


def _fast_gcm(results: Results) -> bool:
    version = _records(results).removeprefix("libcrypto ")
    return version[:1].isdigit() and tuple(map(int, version.split(".")[:2])) >= FAST_GCM


def _handshakes(results: Results) -> list[tuple[str, Spread | None]]:
    name = "handshakes_per_cpu_s"
    cases = results.cases("connections")[:1]
    return [("", results.ratio("connections", name, (case, FLARE), (case, "go"))) for case in cases]


def _per_second(results: Results) -> str:
    found = results.median("connections", "1000", FLARE, "handshakes_per_cpu_s")
    return f"{number(found)} per CPU s" if found else ""


def _memory(results: Results) -> list[tuple[str, Spread | None]]:
    return [("", results.spread("connections", "10000", FLARE, "rss_kib"))]


def _pingpong(results: Results) -> list[tuple[str, Spread | None]]:
    return [("", results.spread("latency", "4 bulk", FLARE, "p99_ms"))]


def _floor(results: Results) -> str:
    found = results.median("latency", "4 bulk", LIMIT, "p99_ms")
    return f"the C limit's {number(found)}" if found else ""


def _many(results: Results) -> list[tuple[str, Spread | None]]:
    return [
        (
            f"{case.partition('/')[2]} under way",
            results.ratio("many", "cpu_us_per_message", (case, FLARE), (case, LIMIT)),
        )
        for case in results.cases("many")
        if case.startswith("1000/")
    ]


def _threads(results: Results) -> list[tuple[str, Spread | None]]:
    return [("", results.ratio("cores", "mb_per_s", ("2", FLARE), ("1", FLARE)))]


def _shared(results: Results) -> str:
    return "" if _spare(results) else f"on {results.about.get('cores')} cores that the load is on too"


def _spare(results: Results) -> bool:
    return int(results.about.get("cores", 0)) >= SPARE_CORES


GOALS: Final = (
    Goal("CPU s/GB against the C limit, Noise, large", AT_MOST, 1.10, "", _limit(16384, 65536)),
    Goal("CPU s/GB against the C limit, Noise, small", AT_MOST, 1.0, "", _limit(1024, 4096)),
    Goal("CPU s/GB: go-libp2p's over flare's", AT_LEAST, 4, "x", _beyond("go")),
    Goal("CPU s/GB: rust-libp2p's over flare's", AT_LEAST, 2, "x", _beyond("rust")),
    Goal(
        "CPU s/GB: TLS's AES-GCM (libcrypto 3.1) over Noise",
        AT_MOST,
        0.65,
        "",
        _tls,
        _libcrypto,
        _fast_gcm,
    ),
    Goal("handshakes with RESERVE per CPU s over go-libp2p's", AT_LEAST, 1.5, "x", _handshakes, _per_second),
    Goal("memory per idle reserved connection at 10,000", AT_MOST, 12, " KiB", _memory),
    Goal("p99 of 1 KiB to and fro beside 4 bulk circuits", AT_MOST, 1, " ms", _pingpong, _floor),
    Goal("1,000 circuits, CPU us per message against the C limit", AT_MOST, 1.3, "", _many),
    Goal("MB/s of two data threads over one", AT_LEAST, 1.7, "x", _threads, _shared, _spare),
)


def judged(results: Results) -> str:
    """The table of goals."""
    rows = [
        (goal.what, f"{goal.sense} {goal.reach:g}{goal.unit}", goal.measured(results), goal.reached(results))
        for goal in GOALS
    ]
    return table(("what", "to reach", "measured", "reached"), rows)
