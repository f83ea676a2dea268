"""1,000 clients of a relay that restarts: how soon all are back, and how many come at once.

python -m benchmarks.herd                 the table of docs/autorelay.md
python -m benchmarks.herd --seeds 20      the worst of so many seeds
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from flare.lab.herd import CAPACITY, Outcome, Scenario, run

SCENARIOS = {
    "one relay, back at once": Scenario(relays=1, wanted=1, down=0),
    "one relay, back after 1 s": Scenario(relays=1, wanted=1, down=1),
    "one relay, back after 5 s": Scenario(relays=1, wanted=1, down=5),
    "one relay, back after 30 s": Scenario(relays=1, wanted=1, down=30),
    "one relay, back after 4 min": Scenario(relays=1, wanted=1, down=240),
    "two relays, both held": Scenario(),
    "three relays, two held": Scenario(relays=3),
    "three relays, one held": Scenario(relays=3, wanted=1),
    "three relays, one held; it drains for 25 s": Scenario(relays=3, wanted=1, drain=25),
    "its machine dies silently for 30 s": Scenario(relays=1, wanted=1, down=30, silent=True),
    "its clients are four at each of 250 addresses": Scenario(relays=1, wanted=1, sites=250),
    "its clients are 50 at each of 20 addresses": Scenario(relays=1, wanted=1, sites=20),
    "its clients are 250 at each of 4 addresses": Scenario(relays=1, wanted=1, sites=4),
    "one relay, back at once, if the first wait were 1 s": Scenario(
        relays=1, wanted=1, down=0, first_wait=1.0
    ),
}


def worst(name: str, scenario: Scenario, seeds: int) -> tuple[str, list[Outcome]]:
    return name, [run(replace(scenario, seed=seed)) for seed in range(1, seeds + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--capacity", type=float, default=CAPACITY)
    parser.add_argument("only", nargs="*", help="scenarios whose name has this in it")
    args = parser.parse_args()
    print(f"1,000 clients, {args.capacity:g} handshakes a second, the worst of {args.seeds} seeds")
    print("| what happens | all back after | half | most in a second | queue | without any relay |")
    print("|---|---|---|---|---|---|")
    began = time.monotonic()
    for name, scenario in SCENARIOS.items():
        if args.only and not any(part in name for part in args.only):
            continue
        _, outcomes = worst(name, replace(scenario, capacity=args.capacity), args.seeds)
        missing = max(outcome.scenario.clients - outcome.back for outcome in outcomes)
        print(
            f"| {name} | {max(o.last_back for o in outcomes):.1f} s"
            f"{f', {missing} not' if missing else ''}"
            f" | {max(o.half_back for o in outcomes):.1f} s"
            f" | {max(max(o.peak_rate.values()) for o in outcomes)}"
            f" | {max(o.longest_queue for o in outcomes) * 1000:.0f} ms"
            f" | {max(o.without_any for o in outcomes):.1f} s |",
            flush=True,
        )
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
