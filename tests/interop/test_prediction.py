"""flare behind a NAT that counts, go-libp2p and rust-libp2p behind a port-restricted one: predicted ports are
addresses like any other to them (DCUtR.md, "The Protocol")."""

import shlex

import pytest

from flare.lab.meeting import DIALER, LISTENER, Plan, meet
from tests.interop.build import program

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.timeout(180)]

PATHS = {"tcp": "direct/tcp", "quic": "direct/quic-v1"}
LISTEN = "listen --relay {relay} --listen {listen} --punch"
PING = "ping {target} --listen {listen} --timeout {timeout} --punch"


@pytest.mark.parametrize("transport", PATHS)
@pytest.mark.parametrize("flare_listens", [True, False], ids=["flare starts", "flare answers"])
@pytest.mark.parametrize("peer", ["go", "rust"])
def test_a_port_that_flare_foretells(peer: str, flare_listens: bool, transport: str) -> None:
    command = shlex.join(program(peer)).replace("{", "{{").replace("}", "}}")
    result = meet(
        Plan(
            a="port" if flare_listens else "sym-seq",
            b="sym-seq" if flare_listens else "port",
            transport=transport,
            listener_command=LISTENER if flare_listens else f"{command} {LISTEN}",
            dialer_command=f"{command} {PING}" if flare_listens else DIALER,
        )
    )
    assert (result.outcome, result.path) == ("direct", PATHS[transport]), result.reason
