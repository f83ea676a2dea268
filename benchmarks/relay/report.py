"""Tables, chart and documents from a run that was kept.

    python -m benchmarks.relay.report docs/bench.json [--publish]

prints the tables. --publish puts them between the markers of docs/performance.md and README.md
(<!-- bench:NAME --> and <!-- /bench -->), and draws docs/relay-cost.svg.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.relay import relays
from benchmarks.relay.chart import draw, panels
from benchmarks.relay.goals import judged
from benchmarks.relay.results import Results
from benchmarks.relay.sizing import sized
from benchmarks.relay.tables import PEERS, Writer, number

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "docs" / "relay-cost.svg"
DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "README.md")
MARKED = re.compile(r"(?P<open><!-- bench:(?P<name>\w+) -->\n).*?(?P<close><!-- /bench -->)", re.DOTALL)


def sections(results: Results) -> dict[str, str]:
    """Everything that a document may ask for, by name."""
    return Writer(results).written() | {
        "goals": judged(results),
        "sizing": sized(results),
        "about": about(results),
        "summary": summary(results),
    }


def about(results: Results) -> str:
    """Where, with what, how often: a sentence or three."""
    said = results.about
    versions = ", ".join(
        f"{PEERS[relay]} {version.removeprefix('v')}"
        for relay, version in said["versions"].items()
        if relay in PEERS
    )
    return (
        f"{said['when']}; {said['cores']} cores of {said['processor']}, Linux {said['kernel']}, "
        f"Python {said['python']}, {said['records']}; {versions}. "
        f"TCP {said['congestion']}; {said['runs']} runs of {said['seconds']:g} s each, interleaved: medians, "
        f"the range in brackets, the ratio to the C limit in bold."
    )


def summary(results: Results) -> str:
    """The README's sentence."""
    case = "noise/16384"

    def times(above: str, below: str) -> str:
        found = results.ratio("bytes", "cpu_s_per_gb", (case, above), (case, below))
        return number(found.median) if found else ""

    rate = results.median("bytes", case, relays.FLARE, "mb_per_s")
    said = [f"{times(relay, relays.FLARE)} times less than {PEERS[relay]}" for relay in PEERS]
    said = [each for each in said if not each.startswith(" ")]
    if not said or rate is None or not times(relays.FLARE, relays.LIMIT):
        return "Not measured."
    *others, last = said
    return (
        f"A flare relay passes {number(rate)} MB/s on one core of the machine that measured. For each GB it "
        f"spends {', '.join(others)}{' and ' if others else ''}{last}, and "
        f"{times(relays.FLARE, relays.LIMIT)} times what a C loop does that only decrypts and encrypts."
    )


def filled(text: str, found: dict[str, str]) -> str:
    """A document with its marked places filled; those of parts that were not measured stay as they are."""

    def place(match: re.Match[str]) -> str:
        inside = found.get(match["name"])
        return match[0] if inside is None else f"{match['open']}{inside}\n{match['close']}"

    return MARKED.sub(place, text)


def publish(results: Results) -> list[Path]:
    """Rewrite the documents and the chart; gives what was written."""
    found = sections(results)
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(), found))
    drawn = panels(results)
    if not drawn:
        return list(DOCUMENTS)
    said = results.about
    caption = f"Less is better. {said['processor']}, one core for the relay; {said['when']}, make bench"
    CHART.write_text(draw(drawn, caption))
    return [*DOCUMENTS, CHART]


def shown(results: Results) -> str:
    """All tables, as the terminal gets them."""
    found = sections(results)
    parts = [f"## {name}\n\n{text}" for name, text in found.items() if name not in ("about", "summary")]
    return "\n\n".join((*parts, found["about"]))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.relay.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="what --json of benchmarks.relay wrote")
    parser.add_argument("--publish", action="store_true", help="into the documents")
    args = parser.parse_args()
    results = Results.load(args.file)
    print(shown(results))
    if args.publish:
        for path in publish(results):
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
