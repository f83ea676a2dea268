"""`flare id`: show, and make, an identity."""

from __future__ import annotations

import argparse

from .common import add_common, identity_from
from .output import Output


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "id",
        help="print a peer id; with --identity FILE, make the file when it is missing",
        description="Print the peer id of an identity file, which is made when it is missing.",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the peer id."""
    identity = identity_from(args.identity)
    Output(args.json).fact(
        "id", str(identity.peer_id), peer=str(identity.peer_id), key=identity.public_key.kind
    )
    return 0
