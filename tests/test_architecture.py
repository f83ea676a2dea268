"""The rooms of docs/design.md: imports go one way, files stay readable, the package root holds names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "flare"

ORDER = ["_core", "wire", "transport", "protocols", "nat", "host", "watch", "cli"]
LEAVES = {"errors", "events", "config", "version", "__init__"}
HOST_ROOM = {
    "host",
    "host_dialling",
    "host_events",
    "peer_book",
    "relay_server",
    "auto_nat",
    "auto_relay",
    "host_network",
    "port_mapper",
    "host_places",
    "host_punching",
}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, by its path below src/flare: its folder, or its own name at the top level."""
    name = parts[0].removesuffix(".py")
    return "host" if name in HOST_ROOM else name


def imported_rooms(source: str, parts: tuple[str, ...]) -> set[str]:
    """Rooms of flare that a module imports at run time (imports under TYPE_CHECKING do not count)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    package = ("flare", *parts[:-1])
    rooms: set[str] = set()
    for node in ast.walk(tree):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = (*base, *(node.module.split(".") if node.module else ()))
            names = [whole] if len(whole) > 1 else [(*whole, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        rooms |= {room_of(name[1:]) for name in names if name[0] == "flare" and len(name) > 1}
    return rooms


def upward(source: str, parts: tuple[str, ...]) -> set[str]:
    """The rooms that a module imports and must not."""
    room = room_of(parts)
    others = imported_rooms(source, parts) - LEAVES - {room}
    if room in LEAVES:
        return others
    if room == "lab":
        return others & {"host", "watch", "cli"}
    rank = ORDER.index(room)
    return {o for o in others if (o == "lab" and room != "cli") or (o != "lab" and ORDER.index(o) > rank)}


MODULES = [
    path.relative_to(SRC).parts for path in sorted(SRC.rglob("*.py")) if path.name not in ("__main__.py",)
]


@pytest.mark.parametrize("parts", MODULES, ids="/".join)
def test_imports_go_one_way(parts: tuple[str, ...]) -> None:
    if parts == ("__init__.py",):
        return  # the public names come from everywhere
    bad = upward((SRC / Path(*parts)).read_text(), parts)
    assert not bad, f"{'/'.join(parts)} imports upward, from {bad}"


def test_the_walk_sees_upward_imports() -> None:
    source = (
        "from ..transport import stream\nimport flare.host\n"
        "from ..errors import DecodeError\nfrom .. import cli\n"
    )
    assert upward(source, ("wire", "envelope.py")) == {"transport", "host", "cli"}
    assert upward("from ..lab import nat", ("nat", "observed.py")) == {"lab"}
    assert upward("from ..host import Host", ("lab", "run.py")) == {"host"}
    assert upward("from .wire import peer_id", ("errors.py",)) == {"wire"}


@pytest.mark.parametrize("suffix", [".py", ".pyx", ".pxd", ".pyi"])
def test_no_file_is_too_long(suffix: str) -> None:
    lengths = {str(p.relative_to(SRC)): len(p.read_text().splitlines()) for p in SRC.rglob(f"*{suffix}")}
    long = {name: lines for name, lines in lengths.items() if lines > 600}
    assert not long, f"past 600 lines, ask what two things they are: {long}"


def test_the_root_holds_names_only() -> None:
    tree = ast.parse((SRC / "__init__.py").read_text())
    assert all(
        isinstance(n, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.Expr) for n in tree.body
    )


def test_every_compiled_module_has_a_stub() -> None:
    sources = list((SRC / "_core").glob("*.pyx"))
    assert sources
    assert [s.name for s in sources if not s.with_suffix(".pyi").exists()] == []
