"""Ports that nobody can tell, across the lab's NATs and the kernel's, with the real commands."""

from __future__ import annotations

import pytest

from flare.lab.meeting import Plan, meet
from flare.lab.world import Make

pytestmark = pytest.mark.lab

MAKES: tuple[Make, ...] = ("user", "kernel")


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    ("a", "b", "transport"),
    [
        ("port", "sym", "quic"),
        ("sym", "port", "quic"),
        ("port-acc", "sym", "quic"),
        ("adm", "port-rst", "quic"),
        ("cgn", "cgn-sym", "any"),
        ("port", "sym-seq", "tcp"),
        ("sym-seq", "port", "tcp"),
        ("port-rst", "sym-seq", "any"),
        ("sym-seq", "port-acc", "quic"),
        ("sym-seq", "sym-seq", "quic"),
        ("sym-seq", "sym-seq", "any"),
    ],
)
def test_ports_that_nobody_was_told(a: str, b: str, transport: str, make: Make) -> None:
    """At the first attempt: predicted where the NAT counts, found by a search where it throws dice."""
    result = meet(Plan(a, b, make, transport))
    assert (result.outcome, result.attempts) == ("direct", 1), result.reason


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("skew", [0.3, -0.3])
@pytest.mark.parametrize(("a", "b"), [("port-acc", "port"), ("port", "port-acc"), ("port-acc", "port-acc")])
def test_a_nat_that_takes_early_packets_for_its_own(a: str, b: str, skew: float, make: Make) -> None:
    """Both knock before either may begin, with packets that do not get to the other's NAT."""
    result = meet(Plan(a, b, make, "quic", skew=skew))
    assert (result.outcome, result.attempts) == ("direct", 1), result.reason


@pytest.mark.parametrize("make", MAKES)
def test_two_random_nats_stay_relayed_and_say_why(make: Make) -> None:
    result = meet(Plan("sym", "adm", make, "quic"))
    assert result.outcome == "relayed"
    assert "both NATs give out ports of their own" in result.reason
