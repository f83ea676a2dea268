"""The table of outcomes: sections of rows and columns, each cell the verdict of one or several tests."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.build import version

NAMES = {"flare": "flare", "go": "go-libp2p", "rust": "rust-libp2p", "js": "js-libp2p"}

# The sections, in the order of the page.
DIRECT = "Directly"
QUIC = "Directly over QUIC"
COMMAND = "The `flare` command"
IDENTITIES = "Identities"
PUNCH = "Hole punching across two port-restricted NATs"


def through(kind: str) -> str:
    """The section of the circuits through a relay of `kind`."""
    return f"Through a {NAMES[kind]} relay"


SECTIONS = (DIRECT, QUIC, COMMAND, IDENTITIES, *(through(kind) for kind in NAMES), PUNCH)

HEAD = """# flare with its peers

What `make interop` saw, cell by cell: **yes** when every test of the cell passed, **NO** when one did not,
– where there is nothing to test. The peers are small programs of our own in `tests/interop` over the newest
releases: QUIC, and TCP with Noise and yamux, each a process of its own on loopback. Hole punching runs in
the lab, across two NATs.

"""

FOOT = """
js-libp2p cannot punch (Node has no SO_REUSEPORT for outgoing sockets), and has no peer ids of ECDSA keys.
rust-libp2p generates no RSA keys but verifies them. A rust-libp2p relay always announces a limit, so its
circuits are limited connections even where it enforces none.
"""


@dataclass(frozen=True, order=True)
class Place:
    """Where a test's verdict goes."""

    section: str
    row: str
    column: str


@dataclass
class Table:
    """Collects verdicts and renders them; rows and columns keep the order in which they first come."""

    verdicts: dict[Place, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, place: Place, passed: bool) -> None:
        """One more test of a cell."""
        self.verdicts[place].append(passed)

    def render(self) -> str:
        """The page; without times and dates, so that it changes only when an outcome does."""
        parts = [HEAD, _versions()]
        for section in SECTIONS:
            places = [place for place in self.verdicts if place.section == section]
            if not places:
                continue
            rows = list(dict.fromkeys(place.row for place in places))
            columns = list(dict.fromkeys(place.column for place in places))
            parts.append(f"\n## {section}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n")
            for row in rows:
                cells = " | ".join(self._cell(Place(section, row, column)) for column in columns)
                parts.append(f"| {row} | {cells} |\n")
        return "".join([*parts, FOOT])

    def _cell(self, place: Place) -> str:
        verdicts = self.verdicts.get(place)
        if not verdicts:
            return "–"
        return "yes" if all(verdicts) else "NO"

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        path.write_text(self.render())


def _versions(kinds: Iterable[str] = ("go", "rust", "js")) -> str:
    named = (f"{NAMES[kind]} {version(kind).removeprefix('v')}" for kind in kinds)
    return f"Versions: {', '.join(named)}.\n"
