"""A go-libp2p host of no options, as Kubo and most nodes have it: TLS first, QUIC, its resource manager."""

import pytest

from tests.interop import roles
from tests.interop.build import KUBO
from tests.interop.conftest import Cell
from tests.interop.table import DEFAULTS

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PAIRS = [("flare", KUBO), (KUBO, "flare")]
SECURITY = {"TCP": "/tls/1.0.0", "QUIC": "tls"}


@pytest.mark.parametrize("transport", roles.LISTEN)
@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
def test_direct(dialer: str, listener: str, transport: str, cell: Cell) -> None:
    """Ping, and identify by the pinger of the other; over TCP both choose TLS."""
    cell(DEFAULTS, f"ping and identify, {_who(dialer)} dials", transport)
    with roles.listener(listener, listen=roles.LISTEN[transport]) as address:
        told = roles.session(dialer, address)
    (identified,) = told.named("identified")
    assert identified["agent"].startswith("flare/" if listener == "flare" else "interop-go")
    assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/echo/1.0.0"} <= set(identified["protocols"])
    path = "direct/tcp" if transport == "TCP" else "direct/quic-v1"
    assert {pong["path"] for pong in told.named("pong")} == {path}
    if dialer == "flare":
        assert {pong["security"] for pong in told.named("pong")} == {SECURITY[transport]}


@pytest.mark.parametrize("transport", roles.LISTEN)
@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
def test_through_flare(dialer: str, listener: str, transport: str, cell: Cell) -> None:
    """It reserves on a flare relay as shipped and is dialled there; it dials a flare that does."""
    cell(DEFAULTS, f"through `flare relay` as shipped, {_who(dialer)} dials", transport)
    listen = roles.LISTEN[transport]
    with (
        roles.relay("flare", limits=True, listen=listen) as hop,
        roles.listener(listener, through=hop) as address,
    ):
        assert roles.paths(roles.session(dialer, address, count=2, echoes=[16_384])) == {"relayed"}


@pytest.mark.parametrize("transport", roles.LISTEN)
@pytest.mark.parametrize("peer", [KUBO])
def test_through_it(peer: str, transport: str, cell: Cell) -> None:
    """flare reserves on its relay, limits and resource manager as shipped, and dials there."""
    cell(DEFAULTS, "flare on both ends of its relay", transport)
    listen = roles.LISTEN[transport]
    with (
        roles.relay(peer, limits=True, listen=listen) as hop,
        roles.listener("flare", through=hop) as address,
    ):
        assert roles.paths(roles.session("flare", address, count=2, echoes=[16_384])) == {"relayed"}


def _who(kind: str) -> str:
    return "flare" if kind == "flare" else "it"
