"""py-libp2p: ping, echo and its own perf over TCP (Noise, TLS) and QUIC, and circuits in every role."""

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, PY

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PAIRS = [("flare", "py"), ("py", "flare")]
MEGABYTE = 1 << 20
WAYS = {  # how, where to listen, and what py-libp2p is told (it takes one security, flare the one of both)
    "TCP, Noise": (roles.LOOPBACK, ("--security", "noise")),
    "TCP, TLS": (roles.LOOPBACK, ("--security", "tls")),
    "QUIC": (roles.LOOPBACK_QUIC, ()),
}


def _arguments(kind: str, way: str) -> tuple[str, ...]:
    return WAYS[way][1] if kind == "py" else ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
def test_direct(dialer: str, listener: str, way: str, cell: Cell) -> None:
    """Ping, echo and perf; flare also learns who py-libp2p is (its pinger does not say what it learnt).

    When py-libp2p dials by QUIC, its streams lose the end of what comes, from its own listener too.
    """
    whole = (dialer, way) != ("py", "QUIC")
    cell(
        PY,
        f"{NAMES[dialer]} dials {NAMES[listener]}",
        f"{way}: ping, echo, perf" if whole else f"{way}: ping",
    )
    more = _arguments(dialer, way)
    with roles.listener(listener, listen=WAYS[way][0], more=_arguments(listener, way)) as address:
        told = roles.session(dialer, address, count=2, echoes=[MEGABYTE] if whole else [], more=more)
        assert len(told.named("pong")) == 2
        if whole:
            measured = roles.perf(dialer, address, 300_000, 500_001, more=more)
            assert (measured["upload"], measured["download"]) == (300_000, 500_001)
    if dialer == "flare":
        (identified,) = told.named("identified")
        assert identified["agent"].startswith("py-libp2p/")
        assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/echo/1.0.0"} <= set(identified["protocols"])


@pytest.mark.parametrize("relay", ["flare", "py"])
@pytest.mark.parametrize(("dialer", "listener"), [*PAIRS, ("flare", "flare")])
def test_circuit(dialer: str, listener: str, relay: str, cell: Cell) -> None:
    cell(PY, f"{NAMES[dialer]} dials {NAMES[listener]} through {NAMES[relay]}", "TCP, Noise")
    with roles.relay(relay) as hop, roles.listener(listener, through=hop) as address:
        assert roles.paths(roles.session(dialer, address, count=2, echoes=[100_000])) == {"relayed"}
