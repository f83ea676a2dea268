"""Directly: ping, identify and megabytes of echo, flare with each peer, both ways."""

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import DIRECT, NAMES

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PEERS = ("go", "rust", "js")
both = pytest.mark.parametrize("security", ["tls", "noise"])
MEGABYTE = 1 << 20


def _pairs() -> list[tuple[str, str]]:
    return [("flare", peer) for peer in PEERS] + [(peer, "flare") for peer in PEERS]


@both
@pytest.mark.parametrize(("dialer", "listener"), _pairs())
def test_ping(dialer: str, listener: str, security: str, cell: Cell) -> None:
    cell(DIRECT, "ping", f"{NAMES[dialer]} dials {NAMES[listener]}", security=security)
    with roles.listener(listener, security=security) as address:
        pongs = roles.ping(dialer, address, count=3, security=security)
    assert len(pongs) == 3
    assert {pong["path"].partition("/")[0] for pong in pongs} == {"direct"}
    assert all(0 < pong["rtt_ms"] < 5000 for pong in pongs), pongs


@both
@pytest.mark.parametrize(("dialer", "listener"), _pairs())
def test_identify(dialer: str, listener: str, security: str, cell: Cell) -> None:
    """Each side reads what the other says of itself."""
    cell(DIRECT, "identify", f"{NAMES[dialer]} dials {NAMES[listener]}", security=security)
    with roles.listener(listener, security=security) as address:
        identified = roles.identify(dialer, address, security=security)
    agent = "flare/" if listener == "flare" else f"interop-{listener}"
    assert identified["agent"].startswith(agent)
    assert address.endswith(identified["peer"])
    assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/echo/1.0.0"} <= set(identified["protocols"])


@both
@pytest.mark.parametrize(("dialer", "listener"), _pairs())
@pytest.mark.parametrize("size", [0, 1, 65_537, 4 * MEGABYTE])
def test_echo(dialer: str, listener: str, size: int, security: str, cell: Cell) -> None:
    cell(
        DIRECT,
        "echo, up to 4 MiB, half-closed",
        f"{NAMES[dialer]} dials {NAMES[listener]}",
        security=security,
    )
    with roles.listener(listener, security=security) as address:
        echoed = roles.echo(dialer, address, size, security=security)
    assert echoed["bytes"] == size
    assert echoed["path"].startswith("direct")
