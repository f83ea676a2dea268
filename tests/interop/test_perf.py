"""/perf/1.0.0: flare measures and is measured, over TCP and QUIC."""

from collections.abc import Iterator

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.peer import Peer
from tests.interop.table import NAMES, PERF

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PEERS = ("go", "rust")
UPLOAD, DOWNLOAD = 3_000_000, 5_000_001  # bytes; no multiple of anything, and not the same


@pytest.fixture(scope="module", params=["TCP", "QUIC"])
def flare(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """`flare listen --perf`: the transport and the address."""
    arguments = ("listen", "--perf", "--json", "--listen", roles.LISTEN[request.param])
    with Peer("flare", *arguments) as peer:
        yield request.param, peer.expect("listening")["addrs"][0]


@pytest.mark.parametrize("peer", PEERS)
def test_flare_serves(peer: str, flare: tuple[str, str], cell: Cell) -> None:
    transport, address = flare
    cell(PERF, f"{NAMES[peer]} asks `flare listen --perf`", transport)
    measured = roles.perf(peer, address, UPLOAD, DOWNLOAD)
    assert (measured["upload"], measured["download"]) == (UPLOAD, DOWNLOAD)


@pytest.mark.parametrize("transport", roles.LISTEN)
@pytest.mark.parametrize("peer", PEERS)
def test_flare_asks(peer: str, transport: str, cell: Cell) -> None:
    cell(PERF, f"flare asks {NAMES[peer]}", transport)
    with roles.listener(peer, listen=roles.LISTEN[transport]) as address:
        assert roles.perf("flare", address, UPLOAD, DOWNLOAD)["path"].startswith("direct")
        assert roles.perf("flare", address, 0, 0)["download"] == 0
