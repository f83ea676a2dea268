"""Identities of every kind that a peer can have: each side proves its own and checks the other's."""

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


@pytest.mark.parametrize(("peer", "key"), [(peer, key) for peer in PEER_KEYS for key in PEER_KEYS[peer]])
def test_peer_has(peer: str, key: str, cell: Cell) -> None:
    cell(IDENTITIES, f"the peer has {key}", NAMES[peer])
    with roles.listener(peer, key=key) as address:
        assert roles.ping("flare", address, count=1)
    with roles.listener("flare") as address:
        assert roles.ping(peer, address, count=1, key=key)


@pytest.mark.parametrize(("peer", "key"), [(peer, key) for peer in ACCEPTS for key in ACCEPTS[peer]])
def test_flare_has(peer: str, key: str, cell: Cell) -> None:
    cell(IDENTITIES, f"flare has {key}", NAMES[peer])
    with roles.listener("flare", key=key) as address:
        assert roles.ping(peer, address, count=1)
    with roles.listener(peer) as address:
        assert roles.ping("flare", address, count=1, key=key)
