"""`flare relay` under each attack: its memory, the honest circuit, and newcomers.

The share of its throughput that the circuit keeps is reported, with whether it is 90 %. What is asserted of
it is FLOOR, which no noise of a busy machine reaches: timings never fail a test.
"""

from __future__ import annotations

import time

import pytest

from tests.abuse.attacks import ATTACKS
from tests.abuse.place import LISTEN, LISTEN_QUIC, MIB, Measured, Place, place

pytestmark = [pytest.mark.abuse, pytest.mark.timeout(180)]

FLOOR = 0.5
NEWCOMER = 10.0  # seconds in which a new peer has its reservation, whatever goes on
NOISE = 24  # MiB: windows of the honest circuit that grow and shrink, and arenas of the interpreter
# MiB that an attack may cost besides; see docs/abuse.md
BUDGET = {
    "half-open-one-ip": 1,
    "half-open-many-ips": 12,
    "circuits-without-credit": 200,
    "circuits-never-read": 200,
    "circuits-of-a-byte-a-second": 32,
    "quic-half-open": 64,
}
OTHERS = 24


# what meets the data plane, once more with a thread that drives it
THREADED = (
    "one-byte-frames",
    "frames-of-nobody",
    "rapid-reset",
    "circuits-without-credit",
    "circuits-never-read",
)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, report: list[Measured]) -> None:
    with place("--no-limits", listen=LISTEN_QUIC if name.startswith("quic-") else LISTEN) as made:
        judge(name, made, report)


@pytest.mark.parametrize("name", THREADED)
def test_attack_on_data_threads(name: str, report: list[Measured]) -> None:
    with place("--no-limits", "--threads", "1") as made:
        judge(name, made, report, ", threads")


def judge(name: str, the_place: Place, report: list[Measured], how: str = "") -> None:
    """Let the attack loose, and hold what it cost against what it may."""
    descriptors = the_place.descriptors
    measured = the_place.attack(name, seconds=1.5, rounds=2)
    measured.name += how
    report.append(measured)
    assert not any(what.startswith("failed") for did in measured.did for what in did), measured.did
    assert measured.kept >= FLOOR, f"the honest circuit kept {measured.kept:.0%}"
    budget = NOISE + BUDGET.get(name, OTHERS)
    assert measured.grew <= budget * MIB, f"{measured.grew / MIB:.1f} MiB, the budget is {budget}"
    assert measured.newcomer is not None, measured.newcomer_error
    assert measured.newcomer <= NEWCOMER
    end = time.monotonic() + 20
    while the_place.descriptors > descriptors + 4 and time.monotonic() < end:
        time.sleep(0.2)
    assert the_place.descriptors <= descriptors + 4, "descriptors stayed behind"
