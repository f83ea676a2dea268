"""AutoNAT in the lab: each asks the other, which dials back, whether it can be reached; both versions.

Every host has one address that looks public (go-libp2p refuses others), except the client behind a NAT, which
asks about its mapping at the router, and about an address of another host's: that costs it 30 to 100 kB
(autonat-v2.md, "Amplification Attack Prevention").
"""

import os
import tempfile
from collections.abc import Sequence

import pytest

from flare.lab.world import Lab, Program
from tests.interop import roles
from tests.interop.build import ROOT, program
from tests.interop.conftest import Cell
from tests.interop.peer import PeerFailed
from tests.interop.table import AUTONAT, NAMES

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.timeout(180)]

LISTEN = {"tcp": "/ip4/{}/tcp/4001", "quic": "/ip4/{}/udp/4001/quic-v1"}
PATIENCE = 60.0  # seconds: a server waits ten or fifteen for a dial that is dropped, and some ask only then
COLUMNS = {
    "public": "a public host",
    "private": "behind a port-restricted NAT",
    "elsewhere": "an address with another IP, paid for",
}


def _asks() -> list[tuple[str, int, str, str, str]]:
    """Over which transport, in which version, who asks whom, and where it is."""
    asks = []
    for transport, peers in (("tcp", ("go", "rust", "js")), ("quic", ("go", "rust"))):
        for peer in peers:
            for version in (1, 2) if peer != "js" else (2,):
                for client, server in (("flare", peer), (peer, "flare")):
                    places = ("public", "private") if version == 1 else tuple(COLUMNS)
                    asks += [(transport, version, client, server, where) for where in places]
    return asks


@pytest.mark.parametrize(("transport", "version", "client", "server", "where"), _asks())
def test_reach(transport: str, version: int, client: str, server: str, where: str, cell: Cell) -> None:
    """Public is what the server could dial; private is what it could not, which is no refusal."""
    cell(AUTONAT[transport], f"v{version}: {NAMES[client]} asks {NAMES[server]}", COLUMNS[where])
    hosts = {"server": "none", "client": "none" if where == "public" else "port", "other": "none"}
    with Lab(hosts) as lab, tempfile.TemporaryFile() as complaints:

        def start(host: str, command: Sequence[str]) -> Program:
            environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
            return lab.spawn(host, command, env=environment, stderr=complaints.fileno())

        def first(running: Program, name: str) -> dict[str, object]:
            lab.run(lambda: running.first(name, "error") is not None or running.done(), PATIENCE)
            event = running.first(name)
            if event is None:
                complaints.seek(0)
                raise PeerFailed(f"no {name} of {running.host}: {running.events}\n{complaints.read()!r}")
            return event

        public = LISTEN[transport].format(lab.hosts["server"].public)
        serving = start("server", [*program(server), *_serve(server), "--listen", public])
        listening = first(serving, "listening")["addrs"]
        assert isinstance(listening, list)
        (address,) = (addr for addr in listening if addr.startswith(public))
        about = LISTEN[transport].format(lab.hosts["other" if where == "elsewhere" else "client"].public)
        asking = [*(roles.EMBEDDED if client == "flare" else program(client)), "reach", address]
        asking += ["--version", str(version), "--external", about]
        asking += ["--listen", LISTEN[transport].format("0.0.0.0")]
        told = first(start("client", [*asking, "--timeout", f"{PATIENCE:g}"]), "reach")
    assert told["verdict"] == ("public" if where == "public" else "private"), told
    assert told["addr"] is None or str(told["addr"]).partition("/p2p/")[0] == about, told


def _serve(kind: str) -> list[str]:
    return ["relay", "--json"] if kind == "flare" else ["relay", "--autonat"]
