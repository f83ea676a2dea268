"""Identities of every kind that a peer can have: each side proves its own and checks the other's."""

from collections.abc import Iterator

import pytest

from tests.interop import roles
from tests.interop.conftest import Cell
from tests.interop.table import IDENTITIES, NAMES

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

FLARE_KEYS = ("ed25519", "ecdsa", "secp256k1", "rsa")

# rust-libp2p generates no RSA keys; js-libp2p has no peer ids of ECDSA keys, neither its own nor others'.
PEER_KEYS = {
    "go": FLARE_KEYS,
    "rust": ("ed25519", "ecdsa", "secp256k1"),
    "js": ("ed25519", "secp256k1", "rsa"),
}
ACCEPTS = {"go": FLARE_KEYS, "rust": FLARE_KEYS, "js": PEER_KEYS["js"]}


@pytest.fixture(scope="module")
def flare() -> Iterator[str]:
    """The address of a flare that all peers dial."""
    with roles.listener("flare") as address:
        yield address


@pytest.fixture(scope="module")
def theirs(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A peer and its address, for flare with whatever key."""
    with roles.listener(request.param) as address:
        yield request.param, address


@pytest.mark.parametrize(("peer", "key"), [(peer, key) for peer in PEER_KEYS for key in PEER_KEYS[peer]])
def test_peer_has(peer: str, key: str, flare: str, cell: Cell) -> None:
    cell(IDENTITIES, f"the peer has {key}", NAMES[peer])
    with roles.listener(peer, key=key) as address:
        assert roles.ping("flare", address, count=1)
    assert roles.ping(peer, flare, count=1, key=key)


@pytest.mark.parametrize(
    ("theirs", "key"), [(peer, key) for peer in ACCEPTS for key in ACCEPTS[peer]], indirect=["theirs"]
)
def test_flare_has(theirs: tuple[str, str], key: str, cell: Cell) -> None:
    peer, listening = theirs
    cell(IDENTITIES, f"flare has {key}", NAMES[peer])
    with roles.listener("flare", key=key) as address:
        assert roles.ping(peer, address, count=1)
    assert roles.ping("flare", listening, count=1, key=key)
