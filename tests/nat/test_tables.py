"""The tables at the top of nat/reachability.py and nat/behaviour.py are those of docs/reachability.md."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest

from flare.nat import behaviour, reachability

DOCS = Path(__file__).parent.parent.parent / "docs" / "reachability.md"


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table as its rows of cells, without the ruler below the head."""
    found = []
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if is_table:
            rows = [[" ".join(cell.split()) for cell in line.strip("|").split("|")] for line in lines]
            found.append([row for row in rows if set("".join(row)) != {"-"}])
    return found


@pytest.mark.parametrize(("module", "count"), [(reachability, 2), (behaviour, 3)])
def test_the_docs_have_them(module: ModuleType, count: int) -> None:
    shown = tables(DOCS.read_text())
    own = tables(module.__doc__ or "")
    assert len(own) == count
    for table in own:
        assert table in shown, f"docs/reachability.md lacks the table that begins with {table[0]}"
