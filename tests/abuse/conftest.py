"""The report of `make abuse`, at the end of a run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.abuse.place import Measured, table

ROWS: list[Measured] = []


@pytest.fixture
def report() -> list[Measured]:
    """What is added here is in the table."""
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print it; FLARE_ABUSE_JSON names a file that gets it too."""
    if not ROWS:
        return
    terminalreporter.section("under abuse")
    terminalreporter.write_line(table(ROWS))
    below = [row.name for row in ROWS if row.kept < 0.9]
    terminalreporter.write_line(
        f"below 90 %: {', '.join(below)}" if below else "every circuit kept at least 90 % of its throughput"
    )
    if path := os.environ.get("FLARE_ABUSE_JSON"):
        Path(path).write_text(json.dumps([{"kept": row.kept, **asdict(row)} for row in ROWS]))
