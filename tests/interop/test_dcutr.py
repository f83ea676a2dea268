"""DCUtR across two port-restricted NATs in the lab: flare with go-libp2p and rust-libp2p, in both roles."""

import shlex

import pytest

from flare.lab.meeting import DIALER, LISTENER, RELAY, Plan, meet
from tests.interop.build import program
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, PUNCH

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.timeout(180)]

NAT = "port"


def _listener(kind: str) -> str:
    arguments = "listen --relay {relay} --listen {listen} --punch"
    return LISTENER if kind == "flare" else f"{_command(kind)} {arguments}"


def _dialer(kind: str) -> str:
    arguments = "ping {target} --listen {listen} --timeout {timeout} --punch"
    return DIALER if kind == "flare" else f"{_command(kind)} {arguments}"


def _relay(kind: str) -> str:
    return RELAY if kind == "flare" else f"{_command(kind)} " + "relay --listen {listen}"


def _command(kind: str) -> str:
    return shlex.join(program(kind)).replace("{", "{{").replace("}", "}}")


def _meetings() -> list[tuple[str, str, str]]:
    meetings = []
    for peer in ("go", "rust"):
        for relay in ("flare", peer):
            meetings += [(relay, peer, "flare"), (relay, "flare", peer)]
    return meetings


@pytest.mark.parametrize(("relay", "listener", "dialer"), _meetings())
def test_punch(relay: str, listener: str, dialer: str, cell: Cell) -> None:
    """The listener starts DCUtR; who dialled the relayed connection answers."""
    peer = listener if dialer == "flare" else dialer
    role = "answers (it dialled)" if dialer == "flare" else "starts (it listened)"
    cell(PUNCH, f"flare {role}, {NAMES[peer]} opposite", f"{NAMES[relay]} relay")
    result = meet(
        Plan(
            a=NAT,
            b=NAT,
            relay_command=_relay(relay),
            listener_command=_listener(listener),
            dialer_command=_dialer(dialer),
        )
    )
    log = "\n".join(str(event) for event in result.log)
    assert (result.outcome, result.path) == ("direct", "direct/tcp"), f"{result.reason}\n{log}"
