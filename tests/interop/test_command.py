"""The `flare` command itself with each peer: ping, listen, connect, relay."""

import os
import subprocess

import pytest

from tests.interop import roles
from tests.interop.build import ROOT, program
from tests.interop.conftest import Cell
from tests.interop.peer import Peer
from tests.interop.table import COMMAND, NAMES

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

PEERS = ("go", "rust", "js")


@pytest.mark.parametrize("peer", PEERS)
def test_ping_direct(peer: str, cell: Cell) -> None:
    """A direct path is what it looks for: it says so and ends with 0."""
    cell(COMMAND, "`flare ping` a listener", NAMES[peer])
    with roles.listener(peer) as address, Peer("flare", "ping", address, "--json") as flare:
        flare.finish()
    assert flare.named("pong")[0]["path"] == "direct/tcp"
    assert flare.named("direct")[0]["path"] == "direct/tcp"


@pytest.mark.parametrize("peer", PEERS)
def test_ping_relayed(peer: str, cell: Cell) -> None:
    """With a peer that does not punch it stays relayed, says why, and ends with 1."""
    cell(COMMAND, "`flare ping` through `flare relay`, and the reason for staying relayed", NAMES[peer])
    with (
        roles.relay("flare") as hop,
        roles.listener(peer, through=hop) as address,
        Peer("flare", "ping", address, "--timeout", "2", "--json") as flare,
    ):
        flare.finish(code=1)
    assert {pong["path"] for pong in flare.named("pong")} == {"relayed"}
    (relayed,) = flare.named("relayed")
    assert relayed["reason"]


@pytest.mark.parametrize("peer", PEERS)
def test_listen(peer: str, cell: Cell) -> None:
    cell(COMMAND, "dials `flare listen`, directly and through `flare relay`", NAMES[peer])
    with roles.relay("flare") as hop:
        arguments = ("listen", "--listen", roles.LOOPBACK, "--relay", hop, "--no-punch", "--json")
        with Peer("flare", *arguments) as flare:
            direct = flare.expect("listening")["addrs"][0]
            circuit = flare.expect("reserved")["addrs"][0]
            assert roles.paths(roles.session(peer, direct, echoes=[100_000])) == {"direct/tcp"}
            assert roles.paths(roles.session(peer, circuit, echoes=[100_000])) == {"relayed"}


@pytest.mark.parametrize("peer", PEERS)
def test_connect(peer: str, cell: Cell) -> None:
    """A stream between two pipes: what goes in at stdin comes out at stdout."""
    cell(COMMAND, "`flare connect` to its echo", NAMES[peer])
    sent = os.urandom(300_000)
    with roles.listener(peer) as address:
        done = subprocess.run(
            [*program("flare"), "connect", address, "/echo/1.0.0"],
            input=sent,
            capture_output=True,
            timeout=30,
            check=False,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout == sent
