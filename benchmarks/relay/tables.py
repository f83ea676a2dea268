"""The tables of a run, in Markdown that is readable as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.relay import relays
from benchmarks.relay.results import Results, Spread

PEERS = {"go": "go-libp2p", "rust": "rust-libp2p", "js": "js-libp2p", "py": "py-libp2p"}
SIZES = {"1024": "1 KiB", "4096": "4 KiB", "16384": "16 KiB", "65536": "64 KiB"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((lines[0], rule, *lines[1:]))


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(found: Spread) -> str:
    """Median and range."""
    if found.low == found.high:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)}-{number(found.high)})"


def named(relay: str) -> str:
    """A relay as readers know it."""
    return relays.NAMES.get(relay, relay)


class Notes:
    """Why cells are empty, said once below the table."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        """What stands in the cell."""
        return f"failed [{self._seen.setdefault(reason, len(self._seen) + 1)}]" if reason else ""

    def __iter__(self) -> Iterator[str]:
        return (f"[{count}] {reason}" for reason, count in self._seen.items())


class Writer:
    """Tables of one run's results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.notes = Notes()

    def cell(self, part: str, case: str, relay: str, name: str, base: str = "") -> str:
        """Median, range, and behind them the ratio to relay `base`."""
        found = self.results.spread(part, case, relay, name)
        if found is None:
            return self.notes.mark(self.results.failure(part, case, relay))
        ratio = (
            self.results.ratio(part, name, (case, relay), (case, base)) if base not in ("", relay) else None
        )
        return spread(found) + (f" **{ratio.median:.2f}**" if ratio else "")

    def bytes(self) -> str:
        """CPU s/GB and MB/s: a table for each security."""
        results, parts = self.results, []
        for security in dict.fromkeys(case.partition("/")[0] for case in results.cases("bytes")):
            cases = [case for case in results.cases("bytes") if case.startswith(f"{security}/")]
            shown = results.relays("bytes")
            title = {"noise": "Noise", "tls": "TLS"}[security]
            rows = [
                (SIZES.get(case.partition("/")[2], case), *(self._cost(case, relay) for relay in shown))
                for case in cases
            ]
            parts.append(f"{title}, CPU s/GB:\n\n" + table(("message", *map(named, shown)), rows))
            rows = [
                (SIZES.get(case.partition("/")[2], case), *(self._rate(case, relay) for relay in shown))
                for case in cases
            ]
            parts.append(f"{title}, MB/s:\n\n" + table(("message", *map(named, shown)), rows))
        return self._with_notes(parts)

    def _cost(self, case: str, relay: str) -> str:
        return self.cell("bytes", case, relay, "cpu_s_per_gb", relays.LIMIT)

    def _rate(self, case: str, relay: str) -> str:
        found = self.results.median("bytes", case, relay, "mb_per_s")
        return (
            number(found)
            if found is not None
            else self.notes.mark(self.results.failure("bytes", case, relay))
        )

    def many(self) -> str:
        """Messages per second, what one costs, fairness: of everybody; then how flare's cost grows."""
        parts = []
        cases = self.results.cases("many")
        most = max((int(case.partition("/")[0]) for case in cases), default=0)
        for case in cases:
            circuits, _, cap = case.partition("/")
            if int(circuits) < most:
                continue
            rows = [
                (
                    named(relay),
                    self.cell("many", case, relay, "messages_per_s"),
                    self._per_message(case, relay),
                    self.cell("many", case, relay, "jain"),
                    self.cell("many", case, relay, "busy"),
                )
                for relay in self.results.relays("many")
            ]
            under_way = "1 message" if cap == "1" else f"up to {cap} messages"
            head = ("relay", "messages/s", "CPU us per message", "Jain's index", "cores busy")
            parts.append(
                f"{int(circuits):,} circuits, {under_way} of 1 KiB under way on each:\n\n" + table(head, rows)
            )
        if len(cases) > len({case.partition("/")[2] for case in cases}):
            parts.append("CPU us per message as circuits become more:\n\n" + self._growth(cases))
        return self._with_notes(parts)

    def _growth(self, cases: Sequence[str]) -> str:
        counts = dict.fromkeys(case.partition("/")[0] for case in cases)
        caps = dict.fromkeys(case.partition("/")[2] for case in cases)
        columns = [(cap, relay) for cap in caps for relay in (relays.LIMIT, relays.FLARE)]
        rows = [
            (f"{int(count):,}", *(self._per_message(f"{count}/{cap}", relay) for cap, relay in columns))
            for count in counts
        ]
        return table(("circuits", *(f"{named(relay)}, {cap} under way" for cap, relay in columns)), rows)

    def _per_message(self, case: str, relay: str) -> str:
        return self.cell("many", case, relay, "cpu_us_per_message", relays.LIMIT)

    def latency(self) -> str:
        """Round trips of the small circuit."""
        cases = self.results.cases("latency")
        rows = [
            (
                named(relay),
                *(self.cell("latency", case, relay, name) for case in cases for name in ("p50_ms", "p99_ms")),
            )
            for relay in self.results.relays("latency")
        ]
        beside = {"0 bulk": "idle", "1 bulk": "1 bulk", "4 bulk": "4 bulk"}
        head = [f"{beside.get(case, case)}, {rank}" for case in cases for rank in ("p50", "p99")]
        return self._with_notes(["Round trip of 1 KiB, ms:\n\n" + table(("relay", *head), rows)])

    def connections(self) -> str:
        """Handshakes, and what idle connections keep."""
        columns = {
            "handshakes_per_cpu_s": "handshakes per CPU s",
            "rss_kib": "KiB each (Rss)",
            "socket_kib": "socket buffers, KiB",
            "idle_cpu_s_per_min": "idle, CPU s/min",
        }
        parts = []
        for case in self.results.cases("connections"):
            rows = [
                (named(relay), *(self.cell("connections", case, relay, name) for name in columns))
                for relay in self.results.relays("connections")
            ]
            head = f"{int(case):,} connections, each with a reservation:\n\n"
            parts.append(head + table(("relay", *columns.values()), rows))
        return self._with_notes(parts)

    def cores(self) -> str:
        """Data threads."""
        rows = [
            (
                case,
                *(
                    self.cell("cores", case, relay, name)
                    for name in ("mb_per_s", "cpu_s_per_gb", "busy", "load")
                ),
            )
            for relay in self.results.relays("cores")
            for case in self.results.cases("cores")
        ]
        head = ("data threads", "MB/s", "CPU s/GB", "cores busy", "cores of the load")
        return self._with_notes([table(head, rows)])

    def _with_notes(self, parts: list[str]) -> str:
        notes = list(self.notes)
        self.notes = Notes()
        return "\n\n".join((*parts, *notes))

    def written(self) -> dict[str, str]:
        """Every part that was measured."""
        writers: dict[str, Callable[[], str]] = {
            "bytes": self.bytes,
            "many": self.many,
            "latency": self.latency,
            "connections": self.connections,
            "cores": self.cores,
        }
        return {part: write() for part, write in writers.items() if self.results.cases(part)}
