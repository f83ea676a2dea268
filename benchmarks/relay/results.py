"""What a run of the benchmark leaves: observations, how they come together, and the file they are kept in."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Observation:
    """One run of one relay in one case of a part: named values, or why there are none."""

    part: str  # bytes, many, latency, connections, cores
    case: str
    relay: str
    values: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    run: int = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Results:
    """All observations of one run, and where and how it was made."""

    about: dict[str, Any]
    observations: tuple[Observation, ...]

    def spread(self, part: str, case: str, relay: str, name: str) -> Spread | None:
        """A value's median and range over the runs; None when there is none."""
        values = [each.values[name] for each in self._of(part, case, relay) if name in each.values]
        return Spread.of(values) if values else None

    def median(self, part: str, case: str, relay: str, name: str) -> float | None:
        """A value's median over the runs."""
        found = self.spread(part, case, relay, name)
        return found.median if found else None

    def ratio(self, part: str, name: str, above: tuple[str, str], below: tuple[str, str]) -> Spread | None:
        """One (case, relay) over another, run by run: what drifts meanwhile drifts for both."""
        divisors = {each.run: each.values for each in self._of(part, *below) if name in each.values}
        ratios = [
            each.values[name] / divisors[each.run][name]
            for each in self._of(part, *above)
            if name in each.values and divisors.get(each.run, {}).get(name)
        ]
        return Spread.of(ratios) if ratios else None

    def failure(self, part: str, case: str, relay: str) -> str:
        """Why there is no value, or nothing."""
        return next((each.failure for each in self._of(part, case, relay) if each.failure), "")

    def cases(self, part: str) -> list[str]:
        """The cases of a part, in the order of the run."""
        return list(dict.fromkeys(each.case for each in self.observations if each.part == part))

    def relays(self, part: str) -> list[str]:
        """The relays of a part, in the order of the run."""
        return list(dict.fromkeys(each.relay for each in self.observations if each.part == part))

    def _of(self, part: str, case: str, relay: str) -> Iterable[Observation]:
        wanted = (part, case, relay)
        return (each for each in self.observations if (each.part, each.case, each.relay) == wanted)

    def save(self, path: Path) -> None:
        """Write them as JSON, an observation per line."""
        lines = ",\n  ".join(json.dumps(_plain(each)) for each in self.observations)
        about = json.dumps(self.about, indent=2)
        path.write_text(f'{{"about": {about},\n"observations": [\n  {lines}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        read = json.loads(path.read_text())
        return cls(read["about"], tuple(Observation(**each) for each in read["observations"]))


def _plain(observation: Observation) -> dict[str, Any]:
    fields = asdict(observation)
    fields["values"] = {name: float(f"{value:.5g}") for name, value in observation.values.items()}
    if not observation.failure:
        del fields["failure"]
    return fields


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all have the same, 1/n when one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def percentile(values: Sequence[float], rank: float) -> float:
    """The value that `rank` per cent of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * rank // 100).__int__() - 1)]
