"""Every kind of NAT with every other: run, compare with what must come out, and print as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flare.lab.expect import expected
from flare.lab.jobs import each
from flare.lab.meeting import LabFailed, Plan, Result, meet

MAIN_KINDS = ("none", "full", "addr", "port", "port-rst", "port-acc", "sym")


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of one pair under one make and one skew."""

    plan: Plan
    results: tuple[Result, ...]

    @property
    def wrong(self) -> tuple[Result, ...]:
        """The runs that came out as they must not."""
        good = expected(self.plan.a, self.plan.b, self.plan.transport)
        return tuple(result for result in self.results if result.outcome not in good)

    def text(self) -> str:
        """As in a table: the outcome and the median of its seconds, `!` when it is not what must come out."""
        outcomes = Counter(result.outcome for result in self.results)
        words = "/".join(
            f"{name}{f' x{n}' if len(outcomes) > 1 else ''}" for name, n in outcomes.most_common()
        )
        seconds = sorted(result.seconds for result in self.results)[len(self.results) // 2]
        return f"{words} {seconds:.1f}s{' !' if self.wrong else ''}"


def plans(base: Plan, rows: Iterable[str], columns: Sequence[str], skews: Sequence[float]) -> Iterator[Plan]:
    """One plan for each ordered pair and skew: rows dial, columns listen."""
    for a in rows:
        for b in columns:
            for skew in skews:
                yield replace(base, a=a, b=b, skew=skew)


def fill(
    all_plans: Iterable[Plan], runs: int, on_result: Callable[[Result], None], jobs: int = 1
) -> Iterator[Cell]:
    """Run each plan `runs` times with seeds of its own; what cannot even start counts as failed.

    `jobs` meetings are held at once, each in a process of its own: most of their time is spent waiting.
    """
    wanted = list(all_plans)
    seeded = [replace(plan, seed=plan.seed + run) for plan in wanted for run in range(runs)]
    coming = each(attempt, seeded, jobs)
    for plan in wanted:
        results = []
        for _ in range(runs):
            results.append(next(coming))
            on_result(results[-1])
        yield Cell(plan, tuple(results))
    for _ in coming:
        pass  # so that its processes end in good order


def attempt(plan: Plan) -> Result:
    """One meeting, whatever becomes of it."""
    try:
        return meet(plan)
    except LabFailed as error:
        return Result(plan, "failed", "", 0.0, None, str(error))


def table(cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str]) -> str:
    """The cells as text, one table for each make and skew."""
    out = []
    for make, skew in dict.fromkeys((cell.plan.make, cell.plan.skew) for cell in cells):
        texts = {(c.plan.a, c.plan.b): c.text() for c in cells if (c.plan.make, c.plan.skew) == (make, skew)}
        out.append(f"NATs of the {make} make, skew {skew * 1000:g} ms; rows dial, columns listen")
        lines = [["", *columns]] + [[a, *(texts.get((a, b), "") for b in columns)] for a in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
        out += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        out.append("")
    return "\n".join(out)
