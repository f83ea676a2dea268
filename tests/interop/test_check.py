"""`flare check` with go-libp2p's relays: what they see and dial back makes the same verdict."""

import shlex

import pytest

from flare.lab.checkup import Plan, check
from tests.interop.build import program

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.timeout(180)]

RELAY = "relay --no-limits --autonat --listen {listen}"


@pytest.mark.parametrize(("kind", "verdict", "code"), [("none", "public", 0), ("port", "punched", 3)])
def test_go_relays(kind: str, verdict: str, code: int) -> None:
    go = shlex.join(program("go")).replace("{", "{{").replace("}", "}}")
    done = check(Plan(kind, relay_command=f"{go} {RELAY}", options="--json"))
    told = done.facts[-1]
    assert (told["verdict"], done.code) == (verdict, code)
    assert [relay["dials_back"] for relay in told["relays"]] == [True, True]
    assert (told["udp"], told["tcp"]) == (True, True)
