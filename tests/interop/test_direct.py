"""Directly: ping, identify and megabytes of echo, flare with each peer, both ways, over TCP and QUIC.

All that two peers do over one transport is one session, which each test looks at for its part.
"""

from collections.abc import Iterator
from functools import cached_property

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.peer import Peer, PeerFailed
from tests.interop.table import DIRECT, NAMES, QUIC

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PEERS = {"TCP": ("go", "rust", "js"), "QUIC": ("go", "rust")}
SECTIONS = {"TCP": DIRECT, "QUIC": QUIC}
MEGABYTE = 1 << 20
SIZES = (0, 1, 65_537, 4 * MEGABYTE)

Place = tuple[str, str, str]  # who listens, over which transport, with which security


class Session:
    """What a dialer saw, once somebody asks."""

    def __init__(self, dialer: str, address: str, security: str) -> None:
        self.dialer, self.address, self.security = dialer, address, security

    @cached_property
    def _outcome(self) -> Peer | PeerFailed:
        try:
            return roles.session(self.dialer, self.address, count=3, echoes=SIZES, security=self.security)
        except PeerFailed as error:
            return error

    @property
    def told(self) -> Peer:
        """The dialer, which ended well. Raises PeerFailed."""
        if isinstance(self._outcome, PeerFailed):
            raise self._outcome
        return self._outcome


@pytest.fixture(scope="module")
def listening(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a listener that all dialers share."""
    listener, transport, security = request.param
    with roles.listener(listener, listen=roles.LISTEN[transport], security=security) as address:
        yield address


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest, listening: str) -> Session:
    """The session of a dialer there."""
    dialer, security = request.param
    return Session(dialer, listening, security)


def _sessions() -> list[tuple[Place, tuple[str, str]]]:
    sessions = []
    for transport, security in (("TCP", "tls"), ("TCP", "noise"), ("QUIC", "")):
        peers = PEERS[transport]
        pairs = [*(("flare", peer) for peer in peers), *((peer, "flare") for peer in peers)]
        sessions += [((listener, transport, security), (dialer, security)) for dialer, listener in pairs]
    return sessions


every = pytest.mark.parametrize(("listening", "session"), _sessions(), indirect=True)


def _note(cell: Cell, row: str, session: Session, place: Place) -> None:
    listener, transport, security = place
    column = f"{NAMES[session.dialer]} dials {NAMES[listener]}"
    cell(SECTIONS[transport], row, column, security=security)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """Who listens, over which transport, with which security."""
    found: Place = request.node.callspec.params["listening"]
    return found


@every
def test_ping(session: Session, place: Place, cell: Cell) -> None:
    _note(cell, "ping", session, place)
    pongs = session.told.named("pong")
    assert len(pongs) == 3
    assert {pong["path"].partition("/")[0] for pong in pongs} == {"direct"}
    assert all(0 < pong["rtt_ms"] < 5000 for pong in pongs), pongs


@every
def test_identify(session: Session, place: Place, cell: Cell) -> None:
    """Each side reads what the other says of itself."""
    _note(cell, "identify", session, place)
    (identified,) = session.told.named("identified")
    agent = "flare/" if place[0] == "flare" else f"interop-{place[0]}"
    assert identified["agent"].startswith(agent)
    assert session.address.endswith(identified["peer"])
    assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/echo/1.0.0"} <= set(identified["protocols"])


@every
def test_echo(session: Session, place: Place, cell: Cell) -> None:
    """Nothing, a byte, more than a window, and megabytes, compared by the dialer."""
    _note(cell, "echo, up to 4 MiB, half-closed", session, place)
    echoed = session.told.named("echoed")
    assert [event["bytes"] for event in echoed] == list(SIZES)
    assert roles.paths(session.told) == {"direct/quic-v1" if place[1] == "QUIC" else "direct/tcp"}


@pytest.mark.parametrize("key", ["ecdsa", "secp256k1"])
@pytest.mark.parametrize("peer", PEERS["QUIC"])
def test_identities_over_quic(peer: str, key: str, cell: Cell) -> None:
    """The certificate's extension carries every kind of identity (tls.md)."""
    cell(QUIC, f"identity: {key}", f"{NAMES[peer]} dials {NAMES['flare']}")
    with roles.listener("flare", listen=roles.LOOPBACK_QUIC) as address:
        assert len(roles.ping(peer, address, count=1, key=key)) == 1
    with roles.listener("flare", listen=roles.LOOPBACK_QUIC, key=key) as address:
        assert len(roles.ping(peer, address, count=1)) == 1
