"""The flare command: `flare id | relay | listen | connect | ping | lab`, one module each.

Every command has `--json`: one JSON object per line on stdout, logs on stderr. The exit code is 0 only when what was
asked for happened, 1 when it did not, 2 when the command line was wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..errors import FlareError
from ..version import __version__
from . import connect, id, lab, listen, ping, relay

COMMANDS = (id, relay, listen, connect, ping, lab)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="flare",
        description="Reach a peer behind a NAT: relayed at first, direct as soon as a hole is punched.",
    )
    top.add_argument("--version", action="version", version=f"flare {__version__}")
    top.add_argument(
        "-v", "--verbose", action="count", default=0, help="more on stderr; twice for everything"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(args.verbose, 2)]
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        code: int = args.run(args)
    except FlareError as error:
        print(f"flare {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone
        return 1
    except KeyboardInterrupt:
        return 130
    return code
