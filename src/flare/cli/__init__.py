"""The flare command: `flare id | relay | listen | connect | ping | check | status | lab`, one module each.

Every command has `--json`: one JSON object per line on stdout, logs on stderr. The exit code is 0 only when
what was asked for happened, 1 when it did not, 2 when the command line was wrong, and 130 when a signal came
before the end of what has one. The verdicts of `check` have codes of their own.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import FlareError, UsageError
from ..version import __version__
from .common import add_verbose
from .output import Output

COMMANDS = ("id", "relay", "listen", "connect", "ping", "check", "status", "lab")


class _Parser(argparse.ArgumentParser):
    """Mistakes are told in one line; the usage of a relay alone would be ten."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


def parser(*names: str) -> argparse.ArgumentParser:
    """The command line, of all commands or of those named: the others are not imported."""
    top = _Parser(
        prog="flare",
        description="Reach a peer behind a NAT: relayed at first, direct as soon as a hole is punched.",
        epilog="`flare COMMAND --help` says more. Exit codes: 0 it happened, 1 it did not, 2 a wrong command "
        "line, 130 a signal came first.",
    )
    top.add_argument("--version", action="version", version=f"flare {__version__}")
    add_verbose(top, default=0)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names or COMMANDS:
        importlib.import_module(f".{name}", __package__).add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    named = next((word for word in words if not word.startswith("-")), None)
    args = parser(*[named] if named in COMMANDS else []).parse_args(words)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        code: int = args.run(args)
    except (FlareError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return 1  # whoever read our output has gone
        reason = _sentence(error)
        print(f"flare {args.command}: {reason}", file=sys.stderr)
        if args.json and args.command != "connect":  # whose stdout is the stream's
            Output(True).fact("error", None, reason=reason)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    return code


def _sentence(error: FlareError | OSError) -> str:
    """What went wrong, without numbers that mean nothing to people."""
    if isinstance(error, FlareError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
