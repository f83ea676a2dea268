"""Builds the peers before the first test; writes the table of outcomes where FLARE_INTEROP_TABLE says.

Under pytest-xdist each worker builds (a lock makes the others wait), and the table is the controller's.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import pytest

from tests.interop import build
from tests.interop.peer import Peer
from tests.interop.table import Place, Table


class Cell(Protocol):
    """Says which cell of the table a test's outcome belongs to."""

    def __call__(
        self, section: str, row: str, column: str, cannot: str = "", *, security: str = ""
    ) -> None: ...


HERE = Path(__file__).parent
SHARED = ("hop", "circuit", "listening", "session", "served")  # fixtures whose parameters are tuples

_table = Table()
_broken: dict[str, str] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build here, where no test's timeout counts. A failure is kept for the tests that need the peer."""
    ours = [item for item in session.items if HERE in item.path.parents]
    if not ours or session.config.option.collectonly:
        return
    for kind in (*build.PEERS, build.KUBO):
        if any(kind in _parameters(item) for item in ours):
            try:
                build.program(kind)
            except build.BuildFailed as error:
                _broken[kind] = str(error)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A test is named by what is in its tuples."""
    if argname not in SHARED or not isinstance(val, tuple):
        return None
    return "-".join("limits" if part is True else str(part) for part in val if part not in ("", False))


def _parameters(item: pytest.Item) -> set[object]:
    """The values of a test's parameters, and what lies in those that are tuples."""
    values: set[object] = set()
    for value in getattr(getattr(item, "callspec", None), "params", {}).values():
        values.update(value if isinstance(value, tuple) else (value,))
    return values


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """`cell(section, row, column)` says which cell of the table the test's outcome belongs to.

    `security`: tls or noise, where its section tells them apart. With `cannot`, the test passes when it
    sees fail what that says.

    Fails the test when a peer among its parameters could not be built, with the builder's words.
    """

    def note(section: str, row: str, column: str, cannot: str = "", *, security: str = "") -> None:
        named = {"tls": "TLS", "noise": "Noise"}.get(security, security)
        number = request.session.items.index(request.node)
        told = (section, row, column, named, cannot, number)  # plain: xdist sends it to its controller
        request.node.user_properties.append(("interop", told))
        parameters = _parameters(request.node)
        for kind, reason in _broken.items():
            if kind in parameters:
                pytest.fail(reason, pytrace=False)

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what the peers said that it shares with others."""
    report = yield
    if report.failed and HERE in item.path.parents:
        report.sections += [(f"peer {peer.name}", peer.story()) for peer in Peer.running]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take in the outcome of a test's body, or of its set-up when that failed."""
    if report.when == "call" or (report.when == "setup" and report.failed):
        for name, told in report.user_properties:
            if name == "interop":
                section, row, column, security, cannot, number = told  # type: ignore[misc]
                _table.add(Place(section, row, column, security, cannot), number, report.passed)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table where FLARE_INTEROP_TABLE says, if all that belongs into it was to run."""
    config = session.config
    path = os.environ.get("FLARE_INTEROP_TABLE")
    partial = config.option.keyword or getattr(config.option, "lf", False)
    if path and _table.verdicts and not partial and not hasattr(config, "workerinput"):
        _table.write(Path(path))
