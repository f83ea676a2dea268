"""`flare check`: can I be reached, by whom, and how."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

from ...config import Config, PortMappingConfig
from ..common import (
    Stop,
    add_common,
    add_security,
    address,
    identity_from,
    run_until_signal,
    seconds,
    unless_stopped,
)
from ..output import Output
from .ink import ink_for
from .look import Look
from .screen import screen

ROUTER_PATIENCE = 3.0  # seconds for a router to say that it maps ports


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="find out whether you can be reached, by whom, and how",
        description="Look at this machine and the NAT before it with the help of relays, which see it from "
        "outside and dial it back, and say which peers will reach it directly, which by prediction and which "
        "only by relay. Two relays on different IPs see most.",
        epilog="Exit codes: 0 public, everybody reaches you; 3 private, and hole punching works; 4 private, "
        "and most peers reach you only by relay; 1 it could not be found out; 2 a wrong command line.",
    )
    parser.add_argument(
        "--relay",
        metavar="ADDR",
        type=address,
        action="append",
        default=[],
        help="relay to look from, may be given again; without one only this machine is looked at",
    )
    parser.add_argument(
        "--no-map", action="store_true", help="do not ask the router to map ports, not even for these seconds"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=20.0, help="seconds for all of it (default 20)"
    )
    add_security(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, say what was found, and return the code of the verdict."""
    out = Output(args.json)

    async def main(stop: Stop) -> int:
        return await unless_stopped(stop, _check(args, out))

    return run_until_signal(main, out)


async def _check(args: argparse.Namespace, out: Output) -> int:
    with _Progress(quiet=args.json) as progress:

        def tell(event: str, **fields: Any) -> None:
            out.fact(event, None, **fields)
            progress.heard(event)

        async with Look(
            args.relay,
            identity=identity_from(args.identity),
            config=Config(security=args.security, port_mapping=PortMappingConfig(patience=ROUTER_PATIENCE)),
            tell=tell,
            maps=not args.no_map,
        ) as look:
            await look.run(args.timeout)
            found = look.findings()
            progress.end()
            # before the good-byes, for which a relay that is gone lets us wait
            out.fact("verdict", None if args.json else screen(found, ink_for(out.to)), **found.as_json())
    return found.code


class _Progress:
    """One quiet line on a terminal's stderr while it takes time; nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._doing = "asking the relays"
        self._ticking: asyncio.Task[None] | None = None

    def __enter__(self) -> _Progress:
        if self._shown:
            self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="progress")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def heard(self, event: str) -> None:
        """A fact became known."""
        if event == "relay":
            self._doing = "looking at the NAT"
        elif event == "nat":
            self._doing = "being dialled back"

    def end(self) -> None:
        """Wipe the line."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    async def _tick(self) -> None:
        while True:
            sys.stderr.write(f"\r\x1b[K{self._doing} ... {time.monotonic() - self._began:.0f} s")
            sys.stderr.flush()
            await asyncio.sleep(0.5)
