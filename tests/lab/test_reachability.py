"""One server only, which `flare lab reach` does not look at: `make lab` runs that on every kind of NAT."""

from __future__ import annotations

import pytest

from flare.lab.reach import Plan, look

pytestmark = pytest.mark.lab


def test_one_server_does_not_take_an_address_restricted_nat_for_public() -> None:
    finding = look(Plan("addr", servers=1, timeout=15))
    assert finding.reason == ""
    assert finding.verdict == "unknown"
    assert finding.rows["udp"].filtering == "unknown"


@pytest.mark.parametrize("over", ["tcp", "udp"])
def test_a_port_that_no_relay_of_ours_is_connected_to_is_found_all_the_same(over: str) -> None:
    finding = look(Plan("full", over=(over,), timeout=20))
    assert finding.surprises() == []


@pytest.mark.parametrize(("kind", "verdict"), [("port", "private"), ("none", "public")])
def test_what_one_server_knows(kind: str, verdict: str) -> None:
    """That the NAT keeps out whom we have sent to, or that it lets in whom we have not."""
    finding = look(Plan(kind, servers=1, timeout=15))
    assert finding.reason == ""
    assert finding.verdict == verdict
