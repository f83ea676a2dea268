"""flare.lab.reach: what is so behind each kind of NAT, and what counts as a surprise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flare.lab.kinds import KINDS
from flare.lab.nat import NatConfig
from flare.lab.ports import Preserving, Sequential
from flare.lab.reach import APD, EI, TRUTH, Finding, Line, Plan, Row, table

TCP, UDP = "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1/quic-v1"


def right(kind: str, **changes: Any) -> Finding:
    """What must come out behind a NAT of `kind`."""
    truth = TRUTH[kind]
    finding = Finding(
        Plan(kind),
        (("unknown", 0.1), (truth.verdict, 2.5)),
        dict.fromkeys((TCP, UDP), truth.verdict),
        {"tcp": truth.tcp, "udp": truth.udp},
    )
    return replace(finding, **changes)


@pytest.mark.parametrize("kind", TRUTH)
def test_the_truth_is_no_surprise(kind: str) -> None:
    assert right(kind).surprises() == []


def test_every_kind_has_a_truth() -> None:
    assert set(TRUTH) == set(KINDS)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if len(kind.routers) == 1])
def test_the_truth_is_the_router_s(kind: str) -> None:
    (config,) = KINDS[kind].routers
    rows = [TRUTH[kind].tcp] if not config.passes_udp else [TRUTH[kind].tcp, TRUTH[kind].udp]
    for row in rows:
        assert (row.mapping, row.filtering) == (config.mapping.value, config.filtering.value)
        allocation = config.allocation
        names = {Preserving: "preserving", Sequential: "sequential"}
        assert row.allocation == names.get(type(allocation), "random")
        assert row.step == (allocation.step if isinstance(allocation, Sequential) else 0)
        assert row.hairpin is config.hairpin
    assert (TRUTH[kind].verdict == "public") == (config.filtering.value == EI)
    if config.passes_udp:
        lifetime = config.mapping_timeout or config.udp_stream_timeout
        assert TRUTH[kind].lifetime == lifetime
        assert lifetime >= NatConfig().udp_stream_timeout or kind == "short"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reason": "the relay did not start"}, "the relay did not start"),
        ({"verdicts": (("unknown", 1.0),)}, "no verdict"),
        ({"verdicts": (("public", 1.0), ("private", 5.0))}, "called itself public"),
        ({"verdicts": (("private", 1.0), ("unknown", 5.0), ("public", 9.0))}, "called itself public"),
        ({"addrs": {TCP: "public"}}, "public over tcp, and it is over nothing"),
        ({"rows": {"tcp": TRUTH["port"].tcp}}, "nothing was found out about udp"),
        ({"rows": {"tcp": TRUTH["port"].tcp, "udp": TRUTH["sym"].udp}}, "udp is Row"),
    ],
)
def test_surprises(changes: dict[str, Any], words: str) -> None:
    assert any(words in surprise for surprise in right("port", **changes).surprises())


def test_a_public_address_for_one_transport_only_is_one() -> None:
    assert right("full", addrs={TCP: "public", UDP: "private"}).surprises()
    assert right("noudp", addrs={TCP: "private"}).surprises() == []


def test_a_verdict_that_comes_too_late() -> None:
    for seconds, late in ((6.0, False), (6.01, True)):
        finding = right("port", verdicts=(("private", seconds),), plan=Plan("port", within=6.0))
        assert bool(finding.surprises()) is late
        assert finding.seconds == seconds


def measured(kind: str, least: float, most: float | None) -> Finding:
    truth = TRUTH[kind]
    return right(kind, rows={"tcp": truth.tcp, "udp": replace(truth.udp, lifetime=(least, most))})


def test_lifetimes() -> None:
    assert measured("short", 6, 13).surprises() == []
    assert measured("short", 6, None).surprises() == [], "it may not have been seen to go"
    assert measured("short", 15, None).surprises()
    assert measured("short", 3, 6).surprises()
    assert measured("none", 15, None).surprises(), "there is nothing to forget"
    waited = replace(right("short"), plan=Plan("short", lifetime=True))
    assert waited.surprises()
    assert replace(right("none"), plan=Plan("none", lifetime=True)).surprises() == []


def test_the_table() -> None:
    sym = replace(right("sym"), verdicts=(("private", 3.5),))
    lines = [
        Line("full", (right("full"), right("full"))),
        Line("noudp", (right("noudp"),)),
        Line("sym-seq", (right("sym-seq"),)),
        Line("sym", (right("sym"), sym, replace(sym, verdicts=(("public", 4.5),)))),
        Line("short", (measured("short", 6.2, 13.0),)),
        Line("port", (Finding(Plan("port"), reason="it did not start"),)),
    ]
    head, ruler, *rows = table(lines).splitlines()
    assert set(ruler) == {"|", "-"}
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["full", "public", "EI", "preserving", "EI", "no", "-", "2.5 / 2.5", "2/2"]
    assert cells[1][2:6] == ["EI / blocked", "preserving / blocked", "APD / blocked", "no / blocked"]
    assert cells[2][3] == "sequential +1"
    assert cells[3] == ["sym", "private !", "APD", "random", "APD", "no", "-", "3.5 / 4.5", "2/3"]
    assert cells[4][6] == "6.2 - 13 s"
    assert cells[5] == ["port", "unknown", "?", "?", "?", "?", "-", "-", "0/1"]
    assert len({len(row) for row in (head, ruler, *rows)}) == 1


def test_as_json() -> None:
    said = right("short", plan=Plan("short", make="kernel")).as_json()
    assert said["kind"] == "short"
    assert said["nat"] == "kernel"
    assert said["surprises"] == []
    assert said["udp"]["filtering"] == APD
    assert isinstance(Row(EI, APD, "preserving"), Row)
