"""The table of outcomes: sections of rows and columns, each cell the verdict of one or several tests."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.build import version

NAMES = {"flare": "flare", "go": "go-libp2p", "rust": "rust-libp2p", "js": "js-libp2p", "py": "py-libp2p"}

# The sections, in the order of the page.
DIRECT = "Directly"
QUIC = "Directly over QUIC"
DEFAULTS = "go-libp2p with its defaults, as Kubo uses it"
PERF = "/perf/1.0.0"
AUTONAT = {"tcp": "AutoNAT over TCP", "quic": "AutoNAT over QUIC"}
PY = "py-libp2p"
COMMAND = "The `flare` command"
IDENTITIES = "Identities"
PUNCH = {
    "tcp": "Hole punching across two port-restricted NATs, over TCP",
    "quic": "Hole punching across two port-restricted NATs, over QUIC",
    "any": "Hole punching across two port-restricted NATs, both transports at once",
}


def through(kind: str) -> str:
    """The section of the circuits through a relay of `kind`."""
    return f"Through a {NAMES[kind]} relay"


def through_quic(kind: str) -> str:
    """The section of the circuits through a relay of `kind` that have QUIC on a side."""
    return f"Through a {NAMES[kind]} relay, over QUIC"


SECTIONS = (
    DIRECT,
    QUIC,
    DEFAULTS,
    COMMAND,
    IDENTITIES,
    PERF,
    *(section(kind) for kind in NAMES for section in (through, through_quic)),
    *PUNCH.values(),
    *AUTONAT.values(),
    PY,
)

HEAD = """# flare with its peers

What `make interop` saw, cell by cell: **yes** when every test of the cell passed, **NO** when one did not,
**cannot** where a test saw it fail as it does in the peer's release, – where there is nothing to test. The
peers are small programs of our own in `tests/interop` over the newest releases: QUIC, and TCP with TLS or
Noise (as the two agree, unless it says which) and yamux, each a process of its own on loopback. Hole punching
runs in the lab, across two NATs, and so does AutoNAT: who asks is on a public host, or behind a NAT, or asks
about an address of another host, which costs it 30 to 100 kB.

"""

FOOT = """
go-libp2p has no /perf/1.0.0 any more, and rust-libp2p's (libp2p-perf) is not released for the newest libp2p:
what speaks it there is a few lines of our peers' own over their streams. js-libp2p cannot punch (Node has no
SO_REUSEPORT for outgoing sockets), and has no peer ids of ECDSA keys. When py-libp2p 0.8.1 dials by QUIC, its
streams lose the end of what comes, from its own listener too: only ping is tried. Its perf is its own.
rust-libp2p generates no RSA keys but verifies them. A rust-libp2p relay always announces a limit, so its
circuits are limited connections even where it enforces none. rust-libp2p gives an AutoNAT server's dial ten
seconds and its whole answer ten, so that a client never hears of a dial that was dropped: our peer's dials
end after six. A new go-libp2p refuses to dial back over UDP until it has dialled so itself with success; our
peer does as one that has. js-libp2p has no AutoNAT v1 any more.
"""


@dataclass(frozen=True, order=True)
class Place:
    """Where a test's verdict goes."""

    section: str
    row: str
    column: str
    security: str = ""  # "TLS" or "Noise" alone: a column of its own, where a section knows it
    cannot: str = field(default="", compare=False)  # why a test that passes saw it fail


@dataclass
class Table:
    """Collects verdicts and renders them; rows and columns are in the order of their first tests."""

    verdicts: dict[Place, list[str]] = field(default_factory=lambda: defaultdict(list))
    first: dict[Place, int] = field(default_factory=dict)

    def add(self, place: Place, number: int, passed: bool) -> None:
        """One more test of a cell; its `number` among all, since they may end in any order."""
        good = f"cannot: {place.cannot}" if place.cannot else "yes"
        self.verdicts[place].append(good if passed else "NO")
        self.first[place] = min(number, self.first.get(place, number))

    def render(self) -> str:
        """The page; without times and dates, so that it changes only when an outcome does."""
        parts = [HEAD, _versions()]
        for section in SECTIONS:
            places = [place for place in self.verdicts if place.section == section]
            places.sort(key=lambda place: self.first[place])
            if not places:
                continue
            rows = list(dict.fromkeys((place.row, place.security) for place in places))
            columns = list(dict.fromkeys(place.column for place in places))
            told = any(place.security for place in places)
            heads = ["", *(["security"] if told else []), *columns]
            parts.append(f"\n## {section}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n")
            for row, security in rows:
                cells = [self._cell(Place(section, row, column, security)) for column in columns]
                parts.append(f"| {' | '.join([row, *([security or 'either'] if told else []), *cells])} |\n")
        return "".join([*parts, FOOT])

    def _cell(self, place: Place) -> str:
        verdicts = self.verdicts.get(place)
        if not verdicts:
            return "–"
        return "NO" if "NO" in verdicts else "; ".join(dict.fromkeys(verdicts))

    def write(self, path: Path) -> None:
        """Write the page to `path`."""
        path.write_text(self.render())


def _versions(kinds: Iterable[str] = ("go", "rust", "js", "py")) -> str:
    named = (f"{NAMES[kind]} {version(kind).removeprefix('v')}" for kind in kinds)
    return f"Versions: {', '.join(named)}.\n"
