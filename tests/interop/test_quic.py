"""Over QUIC: ping, identify and megabytes of echo, flare with go-libp2p (quic-go) and rust-libp2p (quinn)."""

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, QUIC

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PAIRS = [("flare", "go"), ("flare", "rust"), ("go", "flare"), ("rust", "flare")]
MEGABYTE = 1 << 20


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
def test_ping(dialer: str, listener: str, cell: Cell) -> None:
    cell(QUIC, "ping", f"{NAMES[dialer]} dials {NAMES[listener]}")
    with roles.listener(listener, listen=roles.LOOPBACK_QUIC) as address:
        assert "/quic-v1/" in address
        pongs = roles.ping(dialer, address, count=3)
    assert len(pongs) == 3
    assert {pong["path"].partition("/")[0] for pong in pongs} == {"direct"}


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
def test_identify(dialer: str, listener: str, cell: Cell) -> None:
    """Each side reads what the other says of itself."""
    cell(QUIC, "identify", f"{NAMES[dialer]} dials {NAMES[listener]}")
    with roles.listener(listener, listen=roles.LOOPBACK_QUIC) as address:
        identified = roles.identify(dialer, address)
    agent = "flare/" if listener == "flare" else f"interop-{listener}"
    assert identified["agent"].startswith(agent)
    assert address.endswith(identified["peer"])
    assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/echo/1.0.0"} <= set(identified["protocols"])


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
@pytest.mark.parametrize("size", [0, 1, 65_537, 4 * MEGABYTE])
def test_echo(dialer: str, listener: str, size: int, cell: Cell) -> None:
    cell(QUIC, "echo, up to 4 MiB, half-closed", f"{NAMES[dialer]} dials {NAMES[listener]}")
    with roles.listener(listener, listen=roles.LOOPBACK_QUIC) as address:
        echoed = roles.echo(dialer, address, size)
    assert echoed["bytes"] == size
    assert echoed["path"].startswith("direct")


@pytest.mark.parametrize("key", ["ecdsa", "secp256k1"])
@pytest.mark.parametrize("peer", ["go", "rust"])
def test_identities(peer: str, key: str, cell: Cell) -> None:
    """The certificate's extension carries every kind of identity (tls.md)."""
    cell(QUIC, f"identity: {key}", f"{NAMES[peer]} dials {NAMES['flare']}")
    with roles.listener("flare", listen=roles.LOOPBACK_QUIC) as address:
        assert len(roles.ping(peer, address, count=1, key=key)) == 1
    with roles.listener("flare", listen=roles.LOOPBACK_QUIC, key=key) as address:
        assert len(roles.ping(peer, address, count=1)) == 1
