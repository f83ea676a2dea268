"""What a relay needs for a traffic and a number of peers, computed from what was measured."""

from __future__ import annotations

from typing import Final

from benchmarks.relay.relays import FLARE
from benchmarks.relay.results import Results
from benchmarks.relay.tables import number, table

GBIT: Final = 0.125  # GB/s that circuits carry; the network sees it twice, once in and once out
PEERS: Final = 100_000
FLEET_PEERS, FLEET_GBIT, HALF = 1_000_000, 10, 0.5  # HALF: of a core at most, so that peaks have room


def sized(results: Results) -> str:
    """The table: a row for whatever has its figures."""
    rows = [*_traffic(results), *_reservations(results), *_fleet(results)]
    return table(("for", "needs", "computed from"), rows) if rows else "Not measured."


def _cost(results: Results, case: str) -> float | None:
    return results.median("bytes", case, FLARE, "cpu_s_per_gb")


def _per_peer(results: Results) -> float | None:
    return results.median("connections", "10000", FLARE, "rss_kib")


def _traffic(results: Results) -> list[tuple[str, str, str]]:
    rows = []
    for size, case in (("16 KiB", "noise/16384"), ("1 KiB", "noise/1024")):
        if cost := _cost(results, case):
            said = f"{number(cost)} CPU s/GB at 0.125 GB/s"
            rows.append((f"1 Gbit/s of circuits, {size} messages", f"{number(cost * GBIT)} of a core", said))
    if each := results.median("many", "1000/1", FLARE, "cpu_us_per_message"):
        cores = GBIT * 1e9 / 1024 * each / 1e6
        said = f"{number(each)} us per message, 122,070 messages/s"
        rows.append(("1 Gbit/s, 1,000 circuits, every message alone", f"{number(cores)} cores", said))
    return rows


def _reservations(results: Results) -> list[tuple[str, str, str]]:
    rows = []
    what = f"{PEERS:,} reservations"
    if each := _per_peer(results):
        rows.append(
            (f"{what}: memory", f"{number(each * PEERS / 2**20)} GiB", f"{number(each)} KiB each at 10,000")
        )
    if idle := results.median("connections", "10000", FLARE, "idle_cpu_s_per_min"):
        cores = idle / 60 * PEERS / 10_000
        rows.append((f"{what}: idle", f"{number(cores)} of a core", f"{number(idle)} CPU s/min at 10,000"))
    if rate := results.median("connections", "10000", FLARE, "handshakes_per_cpu_s"):
        rows.append(
            (
                f"{what}: all come back at once",
                f"{number(PEERS / rate)} s of one core",
                f"{number(rate)} handshakes per CPU s",
            )
        )
    return rows


def _fleet(results: Results) -> list[tuple[str, str, str]]:
    cost, each = _cost(results, "noise/16384"), _per_peer(results)
    if not cost or not each:
        return []
    cores = FLEET_GBIT * GBIT * cost / HALF
    memory = 2 * FLEET_PEERS * each / 2**20
    return [
        (
            f"a fleet for {FLEET_PEERS:,} peers with two reservations each and {FLEET_GBIT} Gbit/s",
            f"{number(cores)} cores, {number(memory)} GiB",
            "the rows above, cores half busy",
        )
    ]
