"""Meetings and matrices without a network: templates, results, tables and the demo's words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from flare.cli import lab
from flare.cli.lab import add_parser
from flare.lab import matrix, meeting
from flare.lab.matrix import Cell, fill, plans, table
from flare.lab.meeting import LabFailed, Plan, Result
from flare.lab.narrate import Narrator


def result(plan: Plan, outcome: str = "direct", **values: Any) -> Result:
    fields = {"path": "direct/tcp", "seconds": 1.25, "attempts": 1, "reason": "", **values}
    return Result(plan, outcome, **fields)


def test_plans_are_ordered_pairs_times_skews() -> None:
    made = list(plans(Plan("x", "x"), ["none", "port"], ["sym", "port"], [0.0, 0.3]))
    assert len(made) == 8
    assert (made[0].a, made[0].b, made[0].skew) == ("none", "sym", 0.0)
    assert (made[-1].a, made[-1].b, made[-1].skew) == ("port", "port", 0.3)


@pytest.mark.parametrize(
    ("a", "b", "outcomes", "right"),
    [
        ("port", "port", ["direct", "direct"], True),
        ("port", "port", ["direct", "relayed"], False),
        ("port", "sym", ["relayed"], True),
        ("port", "sym", ["failed"], False),
        ("port", "sym-seq", ["direct", "relayed"], False),
        ("sym-seq", "sym-seq", ["direct", "relayed"], True),
    ],
)
def test_a_cell_is_right_when_all_its_runs_are(a: str, b: str, outcomes: list[str], right: bool) -> None:
    plan = Plan(a, b)
    cell = Cell(plan, tuple(result(plan, outcome) for outcome in outcomes))
    assert bool(cell.wrong) is not right
    assert cell.text().endswith("!") is not right


def test_every_run_has_its_seed_and_a_lab_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def meet(plan: Plan) -> Result:
        seeds.append(plan.seed)
        if plan.seed == 8:
            raise LabFailed("b should reserve a place on the relay and did not")
        return result(plan)

    monkeypatch.setattr(matrix, "meet", meet)
    seen: list[Result] = []
    (cell,) = fill([Plan("port", "port", seed=7)], 3, seen.append)
    assert seeds == [7, 8, 9]
    assert [run.outcome for run in cell.results] == ["direct", "failed", "direct"]
    assert "did not" in seen[1].reason


def test_the_table_has_a_line_for_each_dialer() -> None:
    cells = [
        Cell(plan, (result(plan),))
        for plan in plans(Plan("x", "x"), ["none", "port"], ["none", "port"], [0.0])
    ]
    lines = table(cells, ["none", "port"], ["none", "port"]).splitlines()
    assert lines[0].startswith("NATs of the user make, skew 0 ms")
    assert lines[2].split() == ["none", "direct", "1.2s", "direct", "1.2s"]


def test_a_result_as_json() -> None:
    got = result(Plan("port", "sym", skew=0.3), "relayed", path="relayed", reason="why").as_json()
    assert got["event"] == "result"
    assert (got["a"], got["b"], got["nat"], got["outcome"], got["reason"]) == (
        "port",
        "sym",
        "user",
        "relayed",
        "why",
    )
    assert (got["delay_ms"], got["skew_ms"], got["attempts"]) == (20.0, 300.0, 1)
    assert "log" not in got


def test_the_demo_tells_each_thing_once() -> None:
    said: list[str] = []
    plan = Plan("port", "sym")
    narrator = Narrator(plan, said.append)
    narrator("lab", {"event": "built", "hosts": {"relay": "101.1.0.1", "a": "102.1.0.1", "b": "103.1.0.1"}})
    for _ in range(3):
        narrator("a", {"event": "pong", "rtt_ms": 82.4, "path": "relayed"})
    narrator("a", {"event": "pong", "rtt_ms": 41.0, "path": "direct/tcp"})
    narrator("a", {"event": "direct", "path": "direct/tcp", "seconds": 1.25, "attempts": 1})
    narrator("a", {"event": "something new"})
    narrator.result(result(plan))
    text = "\n".join(said)
    assert text.count("pong from Bob") == 2
    assert text.count("they talk directly: direct/tcp after 1.25 s, 1 attempt") == 1
    assert "Bob is behind 103.1.0.1: endpoint-dependent mapping" in text


def test_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["lab", "run", "port", "sym", "--skew-ms", "300", "--nat", "kernel", "--json"])
    assert (args.a, args.b, args.skew_ms, args.nat, args.json) == ("port", "sym", 300.0, "kernel", True)
    assert (args.peer_a, args.peer_b, args.peer_relay) == (meeting.DIALER, meeting.LISTENER, meeting.RELAY)
    args = parser.parse_args(["lab", "matrix", "port", "--with", "sym,adm"])
    assert (args.kinds, args.others) == (["port"], ("sym", "adm"))
    args = parser.parse_args(["lab", "matrix", "port", "--skew-ms", "0,300", "--runs", "2", "--expect"])
    assert (args.kinds, args.skew_ms, args.runs, args.expect) == (["port"], (0.0, 300.0), 2, True)
    with pytest.raises(SystemExit):
        parser.parse_args(["lab", "run", "port", "cone"])
    parser.format_help()


def test_kinds_that_meet_others_do_not_meet_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met: list[tuple[str, str]] = []

    def meet(plan: Plan) -> Result:
        met.append((plan.a, plan.b))
        return result(plan, "relayed")

    monkeypatch.setattr(matrix, "meet", meet)
    monkeypatch.setattr(lab, "become_able", lambda: None)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["lab", "matrix", "port", "cgn", "--with", "sym", "--expect"])
    assert lab.run(args) == 0
    assert met == [("port", "sym"), ("cgn", "sym"), ("sym", "port"), ("sym", "cgn")]
    assert capsys.readouterr().out.count("rows dial") == 2
    assert lab.run(parser.parse_args(["lab", "matrix", "port", "--with", "nothing"])) == 2


def test_a_matrix_with_a_log_prints_its_table_and_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def meet(plan: Plan) -> Result:
        wrong = (plan.a, plan.b) == ("none", "port")
        return result(plan, "failed" if wrong else "direct", reason="nobody came" if wrong else "")

    monkeypatch.setattr(matrix, "meet", meet)
    monkeypatch.setattr(lab, "become_able", lambda: None)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    log = tmp_path / "log"
    args = parser.parse_args(["lab", "matrix", "none", "port", "--expect", "--log", str(log)])
    assert args.run(args) == 1
    assert len(log.read_text().splitlines()) == 4
    printed, complaints = capsys.readouterr()
    assert printed.startswith("NATs of the user make")
    assert "not what must come out: none to port (user NATs): failed: nobody came" in printed
    assert complaints == ""
