"""`flare lab reach`: what a host behind a NAT of each kind finds out about itself."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..lab import reach
from ..lab.fabric import Path
from ..lab.jobs import each


def add_parser(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], jobs: Callable[[str], int]
) -> None:
    """Declare the subcommand; `jobs` is the type of its --jobs."""
    parser = actions.add_parser(
        "reach",
        help="let a host find out how it can be reached",
        description="A host behind a NAT of each kind, and two public relays that dial it back: is its "
        "verdict right, and does it name mapping, allocation, filtering and hairpinning as they are?",
    )
    parser.add_argument("kinds", metavar="KIND", nargs="*", help="kinds of NAT (default: all)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each kind (default: 1)")
    parser.add_argument("--nat", choices=("user", "kernel", "both"), default="user", help="make of the NATs")
    parser.add_argument("--jobs", type=jobs, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument(
        "--delay-ms", type=float, default=50.0, metavar="MS", help="one way between any two (default: 50)"
    )
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of packets lost, 0 to 1")
    parser.add_argument(
        "--servers", type=int, default=2, metavar="N", help="relays that dial back (default: 2)"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for all to be found out (default: 30)"
    )
    parser.add_argument(
        "--watch", type=float, default=0.0, metavar="S", help="for it to stay so afterwards (default: 0)"
    )
    parser.add_argument(
        "--lifetime",
        action="store_true",
        help="wait until it has measured how long UDP mappings live: half a minute, or four where the NAT "
        "gives out ports of its own or lets others in",
    )
    parser.add_argument(
        "--within", type=float, default=0.0, metavar="S", help="a first verdict later than this is a surprise"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the NATs' and the wires' chance")
    parser.add_argument("--expect", action="store_true", help="exit code 1 on a surprise")
    parser.add_argument(
        "--server",
        metavar="CMD",
        default=reach.SERVER,
        help="command in place of the relays': {flare} {listen}",
    )
    parser.add_argument(
        "--client",
        metavar="CMD",
        default=reach.CLIENT,
        help="command in place of the host's: {flare} {relays} {listen}",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")


def run(args: argparse.Namespace) -> int:
    """Look, print, and say whether all came out as it must."""
    kinds = tuple(args.kinds) or tuple(reach.TRUTH)
    unknown = [kind for kind in kinds if kind not in reach.TRUTH]
    if unknown:
        print(
            f"flare lab: no NAT of kind {unknown[0]!r}: choose from {', '.join(reach.TRUTH)}", file=sys.stderr
        )
        return 2
    surprised = False
    for make in ("user", "kernel") if args.nat == "both" else (args.nat,):
        base = reach.Plan(
            kinds[0],
            make=make,
            path=Path(delay=args.delay_ms / 1000, loss=args.loss),
            servers=args.servers,
            timeout=args.timeout,
            watch=args.watch,
            within=args.within,
            lifetime=args.lifetime,
            seed=args.seed,
            server_command=args.server,
            client_command=args.client,
        )
        lines = _look(base, kinds, args.runs, args.jobs, args.json)
        if not args.json:
            print(f"NATs of the {make} make\n{reach.table(lines)}\n", flush=True)
        surprised |= any(line.right < len(line.findings) for line in lines)
    return 1 if surprised and args.expect else 0


def _look(base: reach.Plan, kinds: Sequence[str], runs: int, jobs: int, as_json: bool) -> list[reach.Line]:
    plans = [replace(base, kind=kind, seed=base.seed + run) for kind in kinds for run in range(runs)]
    coming = each(reach.look, plans, jobs)
    lines = []
    for kind in kinds:
        findings = []
        for finding in itertools.islice(coming, runs):
            findings.append(finding)
            _show(finding, as_json)
        lines.append(reach.Line(kind, tuple(findings)))
    for _ in coming:
        pass  # so that its processes end in good order
    return lines


def _show(finding: reach.Finding, as_json: bool) -> None:
    if as_json:
        print(json.dumps(finding.as_json()), flush=True)
        return
    surprises = finding.surprises()
    seconds = "" if finding.seconds is None else f" after {finding.seconds:.1f} s"
    said = "; ".join(surprises) if surprises else "as it must be"
    print(
        f"{finding.plan.kind} ({finding.plan.make} NATs): {finding.verdict}{seconds}: {said}",
        file=sys.stderr,
        flush=True,
    )
