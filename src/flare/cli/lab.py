"""`flare lab`: a small internet on this machine, to see what two peers behind NATs make of each other."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path as FilePath
from typing import Any

from flare.lab import matrix, meeting
from flare.lab.fabric import Path
from flare.lab.kinds import KINDS
from flare.lab.meeting import LabFailed, Plan, Result
from flare.lab.namespace import become_able
from flare.lab.narrate import Narrator
from flare.lab.trace import Capture, Tracer

from . import lab_check, lab_reach

MAX_JOBS = 16


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its own subcommands."""
    parser = commands.add_parser(
        "lab",
        help="two peers behind NATs on a small internet of this machine",
        description="Build relay, NATs and hosts in network namespaces, run the real commands on them, say "
        "what came of it, and leave nothing behind. Needs /dev/net/tun, and root or user namespaces.",
    )
    add_subcommands(parser)
    parser.set_defaults(run=run)


def add_subcommands(parser: argparse.ArgumentParser) -> None:
    """`run`, `matrix`, `reach` and `check`, on a parser of any program."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    kinds = "; ".join(f"{kind.name}: {kind.title}" for kind in KINDS.values())
    one = actions.add_parser(
        "run", help="let one pair meet", epilog=f"Kinds of NAT: {kinds}.",
        description="Host A dials, host B waits. Exit code 0 when they got a connection, direct or relayed.",
    )  # fmt: skip
    one.add_argument("a", metavar="A", choices=KINDS, help="kind of NAT before the dialer")
    one.add_argument("b", metavar="B", choices=KINDS, help="kind of NAT before the listener")
    one.add_argument(
        "--skew-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="B starts to punch this much after A: its way from the relay is slower by twice that",
    )
    one.add_argument(
        "--nat", choices=("user", "kernel"), default="user", help="make of the NATs (default: user)"
    )
    one.add_argument("--demo", action="store_true", help="tell what happens while it happens")
    one.add_argument("--attempts-log", action="store_true", help="add every event of the peers to the result")
    one.add_argument("--capture", metavar="FILE", type=FilePath, help="write the packets to a pcapng file")
    one.add_argument(
        "--trace", metavar="FILE", type=FilePath, help="write a line for each packet, `-`: stderr"
    )
    _add_common(one)
    many = actions.add_parser(
        "matrix", help="let every pair meet", epilog=f"Kinds of NAT: {kinds}.",
        description="Every kind dials every kind; rows dial, columns listen.",
    )  # fmt: skip
    main_kinds = ", ".join(matrix.MAIN_KINDS)
    many.add_argument("kinds", metavar="KIND", nargs="*", help=f"kinds of NAT (default: {main_kinds})")
    many.add_argument(
        "--with",
        dest="others",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="KIND,...",
        help="let the kinds meet these, in both roles, and not each other",
    )
    many.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each pair")
    many.add_argument(
        "--skew-ms", type=_numbers, default=(0.0,), metavar="MS,...", help="skews to try (default: 0)"
    )
    many.add_argument("--nat", choices=("user", "kernel", "both"), default="user", help="make of the NATs")
    many.add_argument(
        "--log", metavar="FILE", type=FilePath, help="write each meeting's outcome there (default: stderr)"
    )
    many.add_argument("--jobs", type=_jobs, default=1, metavar="N", help="meetings at once (default: 1)")
    many.add_argument(
        "--expect", action="store_true", help="exit code 1 when a pair comes out as it must not"
    )
    _add_common(many)
    lab_reach.add_parser(actions, _jobs)
    lab_check.add_parser(actions)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--transport", choices=tuple(meeting.TRANSPORTS), default="tcp", help="what to punch with"
    )
    parser.add_argument(
        "--delay-ms", type=float, default=20.0, metavar="MS", help="one way between any two hosts"
    )
    parser.add_argument(
        "--jitter-ms", type=float, default=0.0, metavar="MS", help="up to this much more delay"
    )
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of packets lost, 0 to 1")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for the dialer to reach a verdict"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the NATs' and the wires' chance")
    fields = "{flare} {relay} {target} {listen} {timeout}"
    template = "command of the {} in place of flare's; filled in: " + fields.replace("{", "{{").replace(
        "}", "}}"
    )
    parser.add_argument("--peer-a", metavar="CMD", default=meeting.DIALER, help=template.format("dialer"))
    parser.add_argument("--peer-b", metavar="CMD", default=meeting.LISTENER, help=template.format("listener"))
    parser.add_argument("--peer-relay", metavar="CMD", default=meeting.RELAY, help=template.format("relay"))
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")


def _jobs(text: str) -> int:
    jobs = int(text)
    if not 1 <= jobs <= MAX_JOBS:
        raise argparse.ArgumentTypeError(f"1 to {MAX_JOBS} meetings at once")
    return jobs


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    """Do what `args.action` says and return the exit code."""
    become_able()
    action: Callable[[argparse.Namespace], int] = {
        "run": _run,
        "matrix": _matrix,
        "reach": lab_reach.run,
        "check": lab_check.run,
    }[args.action]
    with _interruptible():
        return action(args)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the lab as Ctrl-C does: through its clean-up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _plan(args: argparse.Namespace, a: str, b: str, make: Any, skew_ms: float) -> Plan:
    path = Path(delay=args.delay_ms / 1000, jitter=args.jitter_ms / 1000, loss=args.loss)
    return Plan(
        a=a,
        b=b,
        make=make,
        transport=args.transport,
        path=path,
        skew=skew_ms / 1000,
        timeout=args.timeout,
        seed=args.seed,
        relay_command=args.peer_relay,
        listener_command=args.peer_b,
        dialer_command=args.peer_a,
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _run(args: argparse.Namespace) -> int:
    plan = _plan(args, args.a, args.b, args.nat, args.skew_ms)
    narrator = Narrator(plan, _say) if args.demo else None
    try:
        result = meeting.meet(plan, tracer=_tracer(args), on_event=narrator)
    except LabFailed as error:
        result = Result(plan, "failed", "", 0.0, None, str(error))
    if narrator is not None:
        narrator.result(result)
    if args.json:
        _say(json.dumps(result.as_json(log=args.attempts_log)))
    elif narrator is None:
        _say(_sentence(result))
        for event in result.log if args.attempts_log else ():
            facts = {key: value for key, value in event.items() if key not in ("t", "host")}
            _say(f"  {event['t']:8.3f} s  {event['host']:6} {json.dumps(facts)}")
    return 0 if result.outcome in ("direct", "relayed") else 1


def _sentence(result: Result) -> str:
    head = f"{result.plan.a} to {result.plan.b} ({result.plan.make} NATs): {result.outcome}"
    if result.outcome == "direct":
        return f"{head}, {result.path} after {result.seconds:.2f} s and {result.attempts} attempts"
    return f"{head}: {result.reason}"


def _tracer(args: argparse.Namespace) -> Tracer | None:
    if args.capture is None and args.trace is None:
        return None
    capture = Capture(args.capture.open("wb")) if args.capture is not None else None
    text = None
    if args.trace is not None:
        text = sys.stderr if str(args.trace) == "-" else args.trace.open("w")
    return Tracer(capture, text)


def _matrix(args: argparse.Namespace) -> int:
    kinds = tuple(args.kinds) or matrix.MAIN_KINDS
    unknown = [kind for kind in (*kinds, *args.others) if kind not in KINDS]
    if unknown:
        print(f"flare lab: no NAT of kind {unknown[0]!r}: choose from {', '.join(KINDS)}", file=sys.stderr)
        return 2
    makes = ("user", "kernel") if args.nat == "both" else (args.nat,)

    sides = [(kinds, args.others), (args.others, kinds)] if args.others else [(kinds, kinds)]
    skews = [ms / 1000 for ms in args.skew_ms]
    wrong: list[Result] = []
    with args.log.open("w") if args.log is not None else nullcontext(sys.stderr) as log:

        def show(result: Result) -> None:
            if args.json:
                _say(json.dumps(result.as_json()))
            else:
                print(_sentence(result), file=log, flush=True)

        for rows, columns in sides:
            cells = []
            for make in makes:
                base = _plan(args, rows[0], columns[0], make, 0.0)
                plans = matrix.plans(base, rows, columns, skews)
                cells += list(matrix.fill(plans, args.runs, show, args.jobs))
            if not args.json:
                _say(matrix.table(cells, rows, columns))
            wrong += [result for cell in cells for result in cell.wrong]
    for result in wrong:
        surprise = f"not what must come out: {_sentence(result)}"
        print(surprise, file=sys.stderr if args.json else sys.stdout, flush=True)
    return 1 if wrong and args.expect else 0
