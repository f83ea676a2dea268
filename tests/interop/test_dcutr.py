"""DCUtR across two port-restricted NATs in the lab: flare with go-libp2p and rust-libp2p, in both roles."""

import shlex

import pytest

from flare.lab.meeting import DIALER, LISTENER, RELAY, Plan, Result, meet
from tests.interop import roles
from tests.interop.build import program
from tests.interop.conftest import Cell
from tests.interop.table import NAMES, PUNCH

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.timeout(180)]

NAT = "port"
SETTLE = 2.0  # seconds in which what a hole punch made too much must have gone
PATHS = {"tcp": "direct/tcp", "quic": "direct/quic-v1"}


def _listener(kind: str, security: str) -> str:
    return f"{LISTENER if kind == 'flare' else f'{_command(kind)} {LISTEN}'} {security}"


def _dialer(kind: str, security: str) -> str:
    return f"{DIALER if kind == 'flare' else f'{_command(kind)} {PING}'} {security}"


def _relay(kind: str, security: str) -> str:
    return f"{RELAY if kind == 'flare' else f'{_command(kind)} relay --listen {{listen}}'} {security}"


def _command(kind: str) -> str:
    return _quoted(program(kind))


def _quoted(command: tuple[str, ...]) -> str:
    return shlex.join(command).replace("{", "{{").replace("}", "}}")


LISTEN = "listen --relay {relay} --listen {listen} --punch"
PING = "ping {target} --listen {listen} --timeout {timeout} --punch"


def _meetings() -> list[tuple[str, str, str]]:
    meetings = []
    for peer in ("go", "rust"):
        for relay in ("flare", peer):
            meetings += [(relay, peer, "flare"), (relay, "flare", peer)]
    return meetings


def _row(listener: str, dialer: str) -> str:
    peer = listener if dialer == "flare" else dialer
    role = "answers (it dialled)" if dialer == "flare" else "starts (it listened)"
    return f"flare {role}, {NAMES[peer]} opposite"


@pytest.mark.parametrize(("relay", "listener", "dialer"), _meetings())
@pytest.mark.parametrize(("transport", "security"), [("tcp", "tls"), ("tcp", "noise"), ("quic", "")])
def test_punch(transport: str, security: str, relay: str, listener: str, dialer: str, cell: Cell) -> None:
    """The listener starts DCUtR; who dialled the relayed connection answers."""
    cell(PUNCH[transport], _row(listener, dialer), f"{NAMES[relay]} relay", security=security)
    secured = f"--security {security}" if security else ""
    result = meet(
        Plan(
            a=NAT,
            b=NAT,
            transport=transport,
            relay_command=_relay(relay, secured),
            listener_command=_listener(listener, secured),
            dialer_command=_dialer(dialer, secured),
        )
    )
    assert (result.outcome, result.path) == ("direct", PATHS[transport]), _story(result)


@pytest.mark.parametrize(
    ("listener", "dialer"), [("go", "flare"), ("flare", "go"), ("rust", "flare"), ("flare", "rust")]
)
def test_one_connection_is_left(listener: str, dialer: str, cell: Cell) -> None:
    """Over TCP and QUIC at once: whatever came up, both sides are left with one direct connection."""
    cell(PUNCH["any"], _row(listener, dialer), "one connection is left, on both sides the same")

    def command(kind: str, arguments: str) -> str:
        return f"{_quoted(roles.EMBEDDED) if kind == 'flare' else _command(kind)} {arguments}"

    result = meet(
        Plan(
            a=NAT,
            b=NAT,
            transport="any",
            listener_command=command(listener, LISTEN),
            dialer_command=command(dialer, f"{PING} --settle {SETTLE:g}"),
        )
    )
    assert result.outcome == "direct", _story(result)
    (verdict,) = (event for event in result.log if event["host"] == "a" and event["event"] == "direct")
    told = [event for event in result.log if event["host"] == "b" and event["event"] == "connections"]
    relay = next(event["peer"] for event in result.log if event["host"] == "relay")
    theirs = [event["paths"] for event in told if event["peer"] != relay][-1]
    assert [_direct(verdict["connections"]), _direct(theirs)] == [[result.path]] * 2, _story(result)


def _direct(paths: list[str]) -> list[str]:
    return [path for path in paths if path != "relayed"]


def _story(result: Result) -> str:
    return "\n".join([result.reason, *map(str, result.log)])
