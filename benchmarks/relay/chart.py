"""The chart of the README: an SVG that reads on light and on dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.relay import relays
from benchmarks.relay.results import Results
from benchmarks.relay.tables import PEERS, named, number

WIDTH, LABELS, VALUES = 760, 130, 70  # of the whole, of the names at the left, of what stands behind a bar
BAR, GAP, TITLE, MARGIN = 20, 8, 34, 16
STYLE = """
    text { font: 14px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #24292f }
    .title { font-weight: 600 }
    .small { font-size: 12px; fill: #57606a }
    .ours { fill: #d9480f }
    .name-ours { font-weight: 700 }
    .limit { fill: none; stroke: #57606a; stroke-dasharray: 4 3 }
    .peer { fill: #8c959f }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .ours { fill: #ff8a3d }
      .limit { stroke: #9198a1 }
      .peer { fill: #656c76 }
    }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars under a title, from the top in this order."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float]]  # relay, value

    @property
    def height(self) -> int:
        """In pixels."""
        return TITLE + len(self.bars) * (BAR + GAP) + MARGIN


def panels(results: Results) -> list[Panel]:
    """What is worth a picture: a relay's bytes, and its small messages."""
    wanted = (
        ("bytes", "noise/16384", "cpu_s_per_gb", "One circuit, 16 KiB messages: CPU seconds per GB", "s"),
        ("many", "1000/1", "cpu_us_per_message", "1,000 circuits, 1 KiB messages: CPU µs per message", "µs"),
    )
    made = []
    for part, case, name, title, unit in wanted:
        shown = [relay for relay in results.relays(part) if relay not in relays.BYTES_ONLY]
        found = [(relay, results.median(part, case, relay, name)) for relay in shown]
        bars = [(relay, value) for relay, value in found if value is not None]
        if bars:
            made.append(Panel(title, unit, sorted(bars, key=lambda bar: (bar[0] != relays.LIMIT, bar[1]))))
    return made


def draw(drawn: Sequence[Panel], caption: str) -> str:
    """The SVG."""
    height = sum(panel.height for panel in drawn) + MARGIN + 8
    body, top = [], 0
    for panel in drawn:
        body += _panel(panel, top)
        top += panel.height
    body.append(f'<text class="small" x="0" y="{height - 8}">{escape(caption)}</text>')
    title = "; ".join(panel.title for panel in drawn)
    lines = "\n  ".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img">\n  <title>{escape(title)}</title>\n  <style>{STYLE}  </style>\n'
        f"  {lines}\n</svg>\n"
    )


def _panel(panel: Panel, top: int) -> list[str]:
    most = max(value for _, value in panel.bars)
    made = [f'<text class="title" x="0" y="{top + 20}">{escape(panel.title)}</text>']
    for at, (relay, value) in enumerate(panel.bars):
        y = top + TITLE + at * (BAR + GAP)
        width = max(2.0, (WIDTH - LABELS - VALUES) * value / most)
        kind = {relays.FLARE: "ours", relays.LIMIT: "limit"}.get(relay, "peer")
        made += [
            f'<text class="name-{kind}" x="{LABELS - 10}" y="{y + 15}" text-anchor="end">'
            f"{escape(PEERS.get(relay, named(relay)))}</text>",
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LABELS + width + 8:.1f}" y="{y + 15}">{number(value)} {panel.unit}</text>',
        ]
    return made
