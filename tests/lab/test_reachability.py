"""AutoNat behind every kind of NAT: the right verdict and the right behaviour, from two servers at 50 ms."""

from __future__ import annotations

import os
import sys
from pathlib import Path as FilePath
from typing import Any

import pytest

from flare.lab.fabric import Path
from flare.lab.world import Lab

pytestmark = pytest.mark.lab

PROGRAM = str(FilePath(__file__).parent / "reach_node.py")
ROOT = FilePath(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
APD = "address-and-port-dependent"
EI = "endpoint-independent"

EXPECTED = {
    "none": ("public", "none", "unknown", "preserving"),
    "full": ("public", EI, EI, "preserving"),
    "addr": ("private", EI, "address-dependent", "preserving"),
    "port": ("private", EI, APD, "preserving"),
    "port-rst": ("private", EI, APD, "preserving"),
    "port-acc": ("private", EI, APD, "preserving"),
    "sym": ("private", APD, APD, "random"),
    "sym-seq": ("private", APD, APD, "sequential"),
    "adm": ("private", "address-dependent", APD, "random"),
    "cgn": ("private", EI, APD, "preserving"),
    "cgn-sym": ("private", APD, APD, "random"),
}


def look(kind: str, servers: int, seconds: float) -> dict[str, Any]:
    """What a host behind a NAT of `kind` finds out with so many servers."""
    names = [f"relay{number}" for number in range(servers)]
    with Lab({**dict.fromkeys(names, "none"), "host": kind}, default=Path(delay=0.05)) as lab:
        relays = [
            lab.spawn(name, [sys.executable, PROGRAM, "server", lab.hosts[name].public], env=ENV)
            for name in names
        ]
        assert lab.run(lambda: all(relay.first("up") for relay in relays), 30)
        addrs = [relay.events[0]["addr"] for relay in relays]
        host = lab.spawn("host", [sys.executable, PROGRAM, "client", str(seconds), *addrs], env=ENV)
        assert lab.run(host.done, seconds + 30)
        verdict = host.first("verdict")
        assert verdict is not None
        return verdict


@pytest.mark.parametrize("kind", EXPECTED)
def test_with_two_servers(kind: str) -> None:
    found = look(kind, 2, 30)
    assert (found["node"], found["mapping"], found["filtering"], found["allocation"]) == EXPECTED[kind]


def test_one_server_does_not_take_an_address_restricted_nat_for_public() -> None:
    assert look("addr", 1, 15)["node"] == "unknown"


def test_one_server_knows_a_port_restricted_nat() -> None:
    assert look("port", 1, 30)["node"] == "private"
