"""Circuit relay v2: every listener and dialer through a flare relay, flare with every peer through theirs."""

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, through

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

KINDS = ("flare", "go", "rust", "js")
MEGABYTE = 1 << 20


def _circuits() -> list[tuple[str, str, str]]:
    return [
        (relay, listener, dialer)
        for relay in KINDS
        for listener in KINDS
        for dialer in KINDS
        if "flare" in (relay, listener, dialer)
    ]


@pytest.mark.parametrize("security", ["tls", "noise"])
@pytest.mark.parametrize(("relay", "listener", "dialer"), _circuits())
def test_circuit(relay: str, listener: str, dialer: str, security: str, cell: Cell) -> None:
    """To the relay and, end to end, inside the circuit."""
    cell(through(relay), f"{NAMES[listener]} listens", f"{NAMES[dialer]} dials", security=security)
    with (
        roles.relay(relay, security=security) as hop,
        roles.listener(listener, through=hop, security=security) as address,
    ):
        pongs = roles.ping(dialer, address, count=2, security=security)
        assert [pong["path"] for pong in pongs] == ["relayed", "relayed"]
        echoed = roles.echo(dialer, address, MEGABYTE, security=security)
        assert (echoed["bytes"], echoed["path"]) == (MEGABYTE, "relayed")


@pytest.mark.parametrize("relay", KINDS)
@pytest.mark.parametrize("dialer", ["go", "rust", "js"])
def test_limited_circuit_to_flare(relay: str, dialer: str, cell: Cell) -> None:
    """With limits as shipped the connection is a limited one, on which ping and what allows it still work."""
    cell(through(relay), "flare listens, limits as shipped", f"{NAMES[dialer]} dials")
    with roles.relay(relay, limits=True) as hop, roles.listener("flare", through=hop) as address:
        assert roles.ping(dialer, address, count=1)[0]["path"] == "relayed"
        assert roles.echo(dialer, address, 16_384)["path"] == "relayed"


@pytest.mark.parametrize("relay", KINDS)
@pytest.mark.parametrize("listener", ["go", "rust", "js"])
def test_limited_circuit_from_flare(relay: str, listener: str, cell: Cell) -> None:
    cell(through(relay), f"{NAMES[listener]} listens, limits as shipped", "flare dials")
    with roles.relay(relay, limits=True) as hop, roles.listener(listener, through=hop) as address:
        assert roles.ping("flare", address, count=1)[0]["path"] == "relayed"
        assert roles.echo("flare", address, 16_384)["path"] == "relayed"
