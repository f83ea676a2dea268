"""`flare check` behind NATs: the real command, two relays, 50 ms one way; the verdict and the exit code."""

from __future__ import annotations

import os
import re
from pathlib import Path as FilePath

import pytest

from flare.lab.checkup import Plan, check

pytestmark = pytest.mark.lab

DOCS = FilePath(__file__).parent.parent.parent / "docs" / "check.md"

EI = "endpoint-independent"
APD = "address-and-port-dependent"

# verdict, exit code, UDP, mapping over TCP, and how who is port-restricted reaches us over UDP and at best
EXPECTED = {
    "none": ("public", 0, True, "none", "directly", "directly"),
    "full": ("public", 0, True, EI, "directly", "directly"),
    "addr": ("punched", 3, True, EI, "directly", "directly"),
    "port": ("punched", 3, True, EI, "directly", "directly"),
    "sym": ("punched", 3, True, APD, "by prediction", "by prediction"),
    "sym-seq": ("punched", 3, True, APD, "by prediction", "by prediction"),
    "noudp": ("punched", 3, False, EI, None, "directly"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_two_relays_tell_all(kind: str) -> None:
    done = check(Plan(kind, options="--json"))
    verdict = done.facts[-1]
    usual = verdict["peers"]["port-restricted"]
    mapping = verdict["nat"]["tcp"]["mapping"]
    found = (verdict["verdict"], done.code, verdict["udp"], mapping, usual["udp"], usual["best"])
    assert found == EXPECTED[kind], verdict
    assert verdict["code"] == done.code
    assert not verdict["cut"]


@pytest.mark.parametrize("kind", ["port", "noudp"])
def test_the_kernels_nat_too(kind: str) -> None:
    done = check(Plan(kind, make="kernel", options="--json"))
    verdict = done.facts[-1]
    assert (verdict["verdict"], done.code, verdict["udp"]) == EXPECTED[kind][:3]


def test_one_relay_does_not_take_an_address_restricted_nat_for_public() -> None:
    done = check(Plan("addr", relays=1, options="--json"))
    assert done.facts[-1]["verdict"] == "unknown"
    assert done.code == 1


def alike(screen: str) -> list[str]:
    """Lines without what differs from run to run: ids, ports and times, and who said a thing first."""
    screen = re.sub(r"\u2026\w{10}(, \u2026\w{10})?", "PEER", screen)
    return re.sub(r"\d+ ms|(tcp|udp)/\d+", "N", screen).splitlines()


def test_a_router_that_maps_ports_makes_public() -> None:
    done = check(Plan("port", make="kernel", upnpd=True, options="--json"))
    verdict = done.facts[-1]
    assert (verdict["verdict"], verdict["by_mapping"], done.code) == ("public", True, 0)
    assert {mapped["gateway"] for mapped in verdict["port_mapping"]["mapped"]} == {"10.3.0.1"}


def test_no_port_is_mapped_when_told_not_to() -> None:
    done = check(Plan("port", make="kernel", upnpd=True, options="--no-map --json"))
    verdict = done.facts[-1]
    assert (verdict["verdict"], verdict["port_mapping"]["asked"], done.code) == ("punched", False, 3)


@pytest.mark.parametrize("kind", ["none", "port", "sym", "noudp"])
def test_the_screens_in_the_docs(kind: str) -> None:
    """UPDATE_SCREENS=1 writes them anew."""
    done = check(Plan(kind, make="kernel"))
    shown = "\n".join(done.lines)
    assert done.facts == ()
    docs, begin, end = DOCS.read_text(), f"<!-- screen: {kind} -->\n", "<!-- /screen -->"
    before, _, rest = docs.partition(begin)
    inside, _, after = rest.partition(end)
    if os.environ.get("UPDATE_SCREENS"):
        DOCS.write_text(f"{before}{begin}```\n{shown}\n```\n{end}{after}")
        return
    assert alike(inside.strip("`\n")) == alike(shown)
