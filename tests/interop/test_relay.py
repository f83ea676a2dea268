"""Circuit relay v2: every listener and dialer through a flare relay, flare with every peer through theirs.

A relay serves all that listen and dial through it, and a listener all who dial it.
"""

from collections.abc import Iterator

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, through

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

KINDS = ("flare", "go", "rust", "js")
PEERS = KINDS[1:]
MEGABYTE = 1 << 20

Hop = tuple[str, str, bool]  # whose relay, the security alone or none, and whether its limits are as shipped


@pytest.fixture(scope="module")
def hop(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a relay."""
    relay, security, limits = request.param
    with roles.relay(relay, security=security, limits=limits) as address:
        yield address


@pytest.fixture(scope="module")
def circuit(request: pytest.FixtureRequest, hop: str) -> Iterator[str]:
    """The address of a listener behind the relay."""
    listener, security = request.param
    with roles.listener(listener, through=hop, security=security) as address:
        yield address


def _circuits() -> list[tuple[Hop, tuple[str, str], str]]:
    return [
        ((relay, security, False), (listener, security), dialer)
        for relay in KINDS
        for security in ("tls", "noise")
        for listener in KINDS
        for dialer in KINDS
        if "flare" in (relay, listener, dialer)
    ]


def _limited() -> list[tuple[Hop, tuple[str, str], str]]:
    pairs = [*(("flare", peer) for peer in PEERS), *((peer, "flare") for peer in PEERS)]
    return [((relay, "", True), (listener, ""), dialer) for relay in KINDS for listener, dialer in pairs]


@pytest.mark.parametrize(("hop", "circuit", "dialer"), _circuits(), indirect=["hop", "circuit"])
def test_circuit(circuit: str, dialer: str, request: pytest.FixtureRequest, cell: Cell) -> None:
    """To the relay and, end to end, inside the circuit."""
    relay, security, _ = request.node.callspec.params["hop"]
    listener, _ = request.node.callspec.params["circuit"]
    cell(through(relay), f"{NAMES[listener]} listens", f"{NAMES[dialer]} dials", security=security)
    told = roles.session(dialer, circuit, count=2, echoes=[MEGABYTE], security=security)
    assert len(told.named("pong")) == 2
    assert roles.paths(told) == {"relayed"}


@pytest.mark.parametrize(("hop", "circuit", "dialer"), _limited(), indirect=["hop", "circuit"])
def test_limited_circuit(circuit: str, dialer: str, request: pytest.FixtureRequest, cell: Cell) -> None:
    """With limits as shipped the connection is a limited one, on which ping and what allows it still work."""
    relay, *_ = request.node.callspec.params["hop"]
    listener, _ = request.node.callspec.params["circuit"]
    cell(through(relay), f"{NAMES[listener]} listens, limits as shipped", f"{NAMES[dialer]} dials")
    assert roles.paths(roles.session(dialer, circuit, echoes=[16_384])) == {"relayed"}
