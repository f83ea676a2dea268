"""`flare lab check`: what `flare check` says behind a NAT."""

from __future__ import annotations

import argparse

from ..lab import checkup
from ..lab.fabric import Path
from ..lab.kinds import KINDS


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = actions.add_parser(
        "check",
        help="see what `flare check` says behind a NAT",
        description="A host behind a NAT runs `flare check` with two public relays; its screen and its exit "
        "code are passed on.",
    )
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=f"kind of NAT: {', '.join(KINDS)}")
    parser.add_argument("--relays", type=int, default=2, metavar="N", help="relays to look from (default: 2)")
    parser.add_argument(
        "--nat", choices=("user", "kernel"), default="user", help="make of the NAT (default: user)"
    )
    parser.add_argument(
        "--upnpd", action="store_true", help="miniupnpd maps ports on its router (only with --nat kernel)"
    )
    parser.add_argument(
        "--delay-ms", type=float, default=50.0, metavar="MS", help="one way between any two (default: 50)"
    )
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of packets lost, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the NAT's and the wires' chance")
    parser.add_argument("--json", action="store_true", help="have the command print JSON")


def run(args: argparse.Namespace) -> int:
    """Pass on what the command prints and how it ends."""
    plan = checkup.Plan(
        args.kind,
        make=args.nat,
        path=Path(delay=args.delay_ms / 1000, loss=args.loss),
        relays=args.relays,
        options="--json" if args.json else "",
        seed=args.seed,
        upnpd=args.upnpd,
    )
    done = checkup.check(plan)
    for line in done.lines:
        print(line, flush=True)
    return done.code
