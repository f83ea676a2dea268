"""Circuits that have QUIC on one side or on both, through flare's, go-libp2p's and rust-libp2p's relay."""

from collections.abc import Iterator

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, through_quic

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

KINDS = ("flare", "go", "rust")
MEGABYTE = 1 << 20

Place = tuple[str, str, str]  # relay, listener, and the transport by which that came to the relay


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Addresses of a listener behind a relay, by the dialer's transport; all tests of a place share both."""
    relay, listener, transport = request.param
    with roles.relay_of_both(relay) as hop, roles.listener(listener, through=hop[transport]) as circuit:
        peer = circuit.rpartition("/")[2]
        yield {name: f"{addr}/p2p-circuit/p2p/{peer}" for name, addr in hop.items()}


def _circuits() -> list[tuple[Place, str, str]]:
    """Who listens behind whom by which transport, who dials, and by which."""
    circuits = []
    for relay in KINDS:
        for by in ("QUIC", "TCP"):
            for listener in KINDS:
                for dialer in KINDS:
                    if relay == "flare" or (listener != dialer and "flare" in (listener, dialer)):
                        circuits.append(((relay, listener, by), dialer, "QUIC"))
                    if by == "QUIC" and (relay == "flare" or listener == dialer == "flare"):
                        circuits.append(((relay, listener, by), dialer, "TCP"))
    return circuits


@pytest.mark.parametrize(("served", "dialer", "transport"), _circuits(), indirect=["served"])
def test_circuit(
    served: dict[str, str], dialer: str, transport: str, cell: Cell, request: pytest.FixtureRequest
) -> None:
    relay, listener, by = request.node.callspec.params["served"]
    row = f"{NAMES[listener]} listens by {by}"
    cell(through_quic(relay), row, f"{NAMES[dialer]} dials by {transport}")
    echoed = roles.echo(dialer, served[transport], MEGABYTE)
    assert (echoed["bytes"], echoed["path"]) == (MEGABYTE, "relayed")
