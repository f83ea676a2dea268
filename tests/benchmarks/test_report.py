"""Tables, goals and chart from observations, and how they get into documents."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from benchmarks.relay import report
from benchmarks.relay.chart import draw, panels
from benchmarks.relay.goals import GOALS, judged
from benchmarks.relay.parts import PARTS
from benchmarks.relay.results import Observation, Results, Spread
from benchmarks.relay.sizing import sized
from benchmarks.relay.tables import Writer, number, spread, table

ABOUT = {
    "when": "2026-11-23",
    "processor": "A <fast> one & cheap",
    "cores": 4,
    "kernel": "6.18",
    "python": "3.11.7",
    "records": "libcrypto 3.5.2",
    "congestion": "reno",
    "runs": 2,
    "seconds": 0.8,
    "versions": {"flare": "0.1", "go": "v0.51.0"},
}
COSTS = {"climit": 1.0, "flare": 1.05, "go": 6.3, "rust": 4.2, "js": 14.0}


def observations(costs: dict[str, float]) -> list[Observation]:
    made = []
    for run in (1, 2):
        for relay, cost in costs.items():
            for case in ("noise/1024", "noise/4096", "noise/16384", "noise/65536", "tls/16384"):
                at = cost * run * (0.6 if case.startswith("tls") else 1)
                values = {"cpu_s_per_gb": at, "mb_per_s": 1000 / at}
                made.append(Observation("bytes", case, relay, values, run=run))
    made.append(Observation("bytes", "noise/16384", "py", failure="nothing arrived"))
    return made


def results(costs: dict[str, float] = COSTS, more: list[Observation] | None = None) -> Results:
    return Results(ABOUT, tuple(observations(costs) + (more or [])))


def goal(what: str, found: Results) -> str:
    (line,) = [line for line in judged(found).splitlines() if what in line]
    return line.strip("| ").split("|")[-1].strip()


def test_a_table_lines_up() -> None:
    made = table(("relay", "x"), (("flare", "1.00"), ("C", "12")))
    assert made.splitlines() == [
        "| relay | x    |",
        "|-------|------|",
        "| flare | 1.00 |",
        "| C     | 12   |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.12"), (9.99, "9.99"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_spread_of_one_has_no_range() -> None:
    assert spread(Spread(1, 1, 1)) == "1.00"
    assert spread(Spread(2, 1, 30)) == "2.00 (1.00-30.0)"


def test_bytes_show_ratio_and_why_a_relay_failed() -> None:
    made = Writer(results()).bytes()
    assert "1.58 (1.05-2.10) **1.05**" in made, "median, range, ratio run by run"
    assert "failed [1]" in made
    assert "[1] nothing arrived" in made


def test_goals_are_judged_at_the_limit_and_past_it() -> None:
    assert goal("Noise, large", results({**COSTS, "flare": 1.10})) == "yes"
    assert goal("Noise, large", results({**COSTS, "flare": 1.11})) == "no"
    assert goal("go-libp2p's over", results({**COSTS, "flare": 1.0, "go": 4.0})) == "yes"
    assert goal("go-libp2p's over", results({**COSTS, "flare": 1.0, "go": 3.99})) == "no"
    assert goal("rust-libp2p's over", results()) == "yes"


def test_a_goal_without_a_figure_is_not_reached() -> None:
    assert {goal(each.what, Results(ABOUT, ())) for each in GOALS} == {"not measured"}
    only = [each for each in observations(COSTS) if each.case == "noise/16384"]
    assert goal("Noise, large", Results(ABOUT, tuple(only))) == "not measured", "64 KiB is part of it"


def test_the_goal_for_aes_holds_where_libcrypto_is_new() -> None:
    assert goal("AES-GCM", results()) == "yes"
    old = Results({**ABOUT, "records": "libcrypto 3.0.19"}, results().observations)
    assert goal("AES-GCM", old) == "not tested"
    newer = tuple(observations({"flare": 2.0, "flare-newer": 1.0}))
    beside = Results({**ABOUT, "records": "libcrypto 3.0.19", "newer": "libcrypto 3.5.9"}, newer)
    assert goal("AES-GCM", beside) == "yes"
    assert "with libcrypto 3.5.9" in judged(beside)


def test_two_threads_are_judged_where_there_are_cores_for_them() -> None:
    runs = [Observation("cores", str(count), "flare", {"mb_per_s": 900.0 * count}) for count in (1, 2)]
    assert goal("two data threads", results(more=runs)) == "yes"
    small = Results({**ABOUT, "cores": 2}, results(more=runs).observations)
    assert goal("two data threads", small) == "not tested"


def test_every_part_has_its_table() -> None:
    more = [
        Observation("many", "1000/1", "flare", {"messages_per_s": 5e4, "cpu_us_per_message": 20, "jain": 1}),
        Observation("latency", "4 bulk", "flare", {"p50_ms": 0.5, "p99_ms": 0.9}),
        Observation("connections", "1000", "flare", {"handshakes_per_cpu_s": 700, "rss_kib": 9}),
        Observation("cores", "2", "flare", {"mb_per_s": 900, "cpu_s_per_gb": 1, "busy": 1.5, "load": 0.5}),
    ]
    shown = report.shown(results(more=more))
    for part in ("bytes", "many", "latency", "connections", "cores", "goals"):
        assert f"## {part}\n" in shown
    assert "1,000 circuits, 1 message of 1 KiB under way on each" in shown
    assert "go-libp2p 0.51.0" in shown


def test_the_chart_is_xml_and_its_bars_are_to_scale() -> None:
    drawn = draw(panels(results()), "Less is better & cheap.")
    root = ElementTree.fromstring(drawn)
    found = root.iter("{http://www.w3.org/2000/svg}rect")
    bars = {bar.get("class"): float(bar.get("width", 0)) for bar in found}
    assert bars["ours"] / bars["limit"] == pytest.approx(1.05, rel=0.01)
    assert "prefers-color-scheme: dark" in drawn


def test_documents_are_filled_between_markers() -> None:
    text = "a\n<!-- bench:bytes -->\nold\n<!-- /bench -->\n<!-- bench:many -->\nkept\n<!-- /bench -->\n"
    filled = report.filled(text, {"bytes": "new"})
    assert filled == text.replace("old", "new")
    assert report.filled(filled, {"bytes": "new"}) == filled


def test_the_documents_ask_for_all_there_is() -> None:
    texts = [path.read_text() for path in report.DOCUMENTS]
    asked = {match["name"] for text in texts for match in report.MARKED.finditer(text)}
    assert asked == {*PARTS, "goals", "about", "summary", "sizing"}


def test_publishing_writes_documents_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, chart = tmp_path / "page.md", tmp_path / "chart.svg"
    document.write_text("<!-- bench:summary -->\n<!-- /bench -->\n")
    monkeypatch.setattr(report, "DOCUMENTS", (document,))
    monkeypatch.setattr(report, "CHART", chart)
    assert report.publish(results()) == [document, chart]
    assert "6.00 times less than go-libp2p" in document.read_text()
    assert chart.read_text().startswith("<svg")


def test_sizes_follow_from_figures() -> None:
    idle = {"rss_kib": 10.0, "idle_cpu_s_per_min": 6.0, "handshakes_per_cpu_s": 500.0}
    made = sized(results({"flare": 1.0}, [Observation("connections", "10000", "flare", idle)]))
    assert "| 0.19 of a core" in made, "1.5 CPU s/GB, the median of two runs, at 0.125 GB/s"
    assert "| 0.95 GiB" in made, "100,000 of 10 KiB"
    assert "| 1.00 of a core" in made, "0.1 of a core at 10,000"
    assert "| 200 s of one core" in made
    assert sized(Results(ABOUT, ())) == "Not measured."
