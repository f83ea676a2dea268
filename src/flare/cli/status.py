"""`flare status`: what a running relay's status server tells, on one screen."""

from __future__ import annotations

import argparse
import http.client
import json
from typing import Any, Final

from ..errors import NetworkError, ProtocolViolation
from ..watch.http import parse_address
from ..watch.server import DEFAULT_ADDRESS
from ..watch.words import number, printable, rate, share, short, size, span
from .common import add_verbose
from .output import Output

TIMEOUT: Final = 10.0  # seconds for each step of the request
LIMIT: Final = 1 << 20  # bytes of an answer
ROWS: Final = 10  # of each list, so that it stays one screen


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "status",
        help="show what a relay on this machine is doing",
        description="Ask the status server of a running `flare relay --status` and show its answer.",
    )
    parser.add_argument(
        "address",
        metavar="IP:PORT",
        nargs="?",
        default=DEFAULT_ADDRESS,
        help=f"where it listens (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch, show, end."""
    status = fetch(args.address)
    try:
        text = None if args.json else screen(status)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolViolation(
            f"{args.address} answered, but not as a flare status server: {error!r}"
        ) from None
    Output(args.json).fact("status", text, **status)
    return 0


def fetch(address: str) -> dict[str, Any]:
    """/status.json of the server there. UsageError, NetworkError; ProtocolViolation when it is another's."""
    host, port = parse_address(address)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/status.json")
        answer = connection.getresponse()
        body = answer.read(LIMIT)
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(
            f"no status server answers at {address}: {error or type(error).__name__}"
        ) from None
    finally:
        connection.close()
    try:
        if answer.status != 200:
            raise ValueError(f"HTTP status {answer.status}")
        status = json.loads(body)
        if not isinstance(status, dict) or "wire" not in status:
            raise ValueError("no status in it")
    except ValueError as error:
        raise _not_ours(address, str(error)) from None
    return status


def _not_ours(address: str, why: str) -> ProtocolViolation:
    return ProtocolViolation(f"{address} answered, but not as a flare status server: {why}")


def screen(status: dict[str, Any]) -> str:
    """The status as text; nothing that a peer chose can steer the terminal."""
    relay, wire, process, health = status["relay"], status["wire"], status["process"], status["health"]
    lines = [
        f"{_word(status['agent'])}  {_word(status['peer'])}  up {span(status['uptime'])}",
        *(f"  {_word(addr)}" for addr in status["addrs"]),
        "healthy" if health["ok"] else "NOT HEALTHY: " + "; ".join(map(_word, health["reasons"])),
        "",
        f"sending      {rate(wire['send_rate'])}, receiving {rate(wire['receive_rate'])}; "
        f"{size(wire['sent'])} sent",
        f"connections  {number(status['connections'])}",
    ]
    if relay is not None:
        lines += [
            f"circuits     {_of(relay['circuits'], relay['max_circuits'])}, "
            f"{number(relay['circuits_opened'])} since start; carried {size(relay['bytes'])}",
            f"reservations {_of(relay['reservations'], relay['max_reservations'])}, "
            f"{number(relay['reservations_opened'])} since start",
        ]
    lines.append(
        f"process      {share(process['cpu_share'])} of a core, {size(process['memory'])} memory, "
        f"loop lag {process['lag'] * 1000:.0f} ms"
    )
    if relay is not None:
        lines += _lists(relay)
    return "\n".join(lines)


def _lists(relay: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if relay["talkers"]:
        lines += ["", f"{'top talkers':32} {'circuits':>8} {'sent':>9} {'received':>9} {'now':>11}"]
        for row in relay["talkers"][:ROWS]:
            who = f"{short(_word(row['peer']))} {printable(row['agent'], 20)}"
            lines.append(
                f"{who:32} {number(row['circuits']):>8} {size(row['sent']):>9} {size(row['received']):>9} "
                f"{rate(row['rate']):>11}"
            )
    if relay["longest"]:
        lines += ["", f"{'longest circuits':32} {'open for':>12} {'carried':>15} {'now':>11}"]
        for row in relay["longest"][:ROWS]:
            ends = f"{short(_word(row['source']))} > {short(_word(row['target']))}"
            lines.append(f"{ends:32} {span(row['age']):>12} {size(row['bytes']):>15} {rate(row['rate']):>11}")
    if relay["refusals"]:
        lines += ["", "refused"]
        lines += [
            f"{number(row['count']):>9}  {_word(row['request'])}: {_word(row['reason'])}"
            for row in relay["refusals"][:ROWS]
        ]
    return lines


def _of(value: int, limit: int | None) -> str:
    return f"{number(value)} of {number(limit)}" if limit else f"{number(value)}, no limit"


def _word(text: str) -> str:
    return printable(text, 200)
