"""`flare ping`: reach a peer, print each pong with its path, and stop when the path is direct."""

from __future__ import annotations

import argparse
import asyncio
import time

from ..config import Config
from ..errors import FlareError, PunchFailed, UsageError
from ..events import PunchSucceeded
from ..host import Host
from ..protocols import ping
from ..transport.connection import Connection
from .common import (
    add_common,
    add_security,
    address,
    identity_from,
    number,
    run_until_signal,
    seconds,
    somewhere,
    unless_stopped,
)
from .output import Output

MAX_MISSES = 5  # pings without an answer


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "ping",
        help="reach a peer and go direct; exit code 0 when that worked",
        description="Dial the peer, through a relay if need be, ping it, and stop when the connection is "
        "direct (exit code 0) or when it is clear why it cannot be (exit code 1).",
    )
    parser.add_argument("address", metavar="ADDR", type=address, nargs="+", help="multiaddr(s) of one peer")
    parser.add_argument(
        "--relay",
        metavar="ADDR",
        type=address,
        action="append",
        default=[],
        help="relay to look for the peer on, may be given again",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        type=address,
        action="append",
        help="multiaddr to listen on and dial from, may be given again (default: any port, QUIC and TCP, "
        "IPv4 and IPv6)",
    )
    parser.add_argument(
        "--count", metavar="N", type=number, default=0, help="stop after N pongs, whatever the path"
    )
    parser.add_argument(
        "--interval", metavar="S", type=seconds, default=0.5, help="seconds between pings (default 0.5)"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=30.0, help="seconds for going direct (default 30)"
    )
    add_security(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ping until direct, until it is clear that it can't be, or until N pongs."""
    out = Output(args.json)

    async def main(stop: asyncio.Event) -> int:
        # a dialer has no reservation of its own: --relay only adds ways to the peer
        config = Config(security=args.security)
        async with Host(identity=identity_from(args.identity), listen=args.listen, config=config) as host:
            return await unless_stopped(stop, _ping(args, host, out))

    return run_until_signal(main, out)


async def _ping(args: argparse.Namespace, host: Host, out: Output) -> int:
    started = time.monotonic()
    targets = list(args.address)
    peer = next((addr.peer_id for addr in targets if addr.peer_id is not None), None)
    if peer is not None:
        targets += [relay / f"/p2p-circuit/p2p/{peer}" for relay in args.relay]
    somewhere(targets, "give an address of the peer, or --relay ADDR to look for it there")
    punched: list[PunchSucceeded] = []
    host.on_event(lambda event: punched.append(event) if isinstance(event, PunchSucceeded) else None)
    try:
        connection = await host.connect(*targets, timeout=args.timeout)
    except UsageError:
        raise
    except FlareError as error:
        out.fact("failed", str(error), reason=str(error))
        return 1
    direct = asyncio.ensure_future(connection.direct(timeout=args.timeout))
    await asyncio.sleep(0)  # a connection that is direct already says so at once
    try:
        code = await _until_direct(args, out, connection, direct)
        if code is not None:
            return code
        attempts = punched[0].attempts if punched else 0
        return _verdict(out, connection, direct, attempts, time.monotonic() - started)
    finally:
        direct.cancel()
        await asyncio.gather(direct, return_exceptions=True)


async def _until_direct(
    args: argparse.Namespace,
    out: Output,
    connection: Connection,
    direct: asyncio.Future[Connection],
) -> int | None:
    """Ping on; the exit code, or None once `direct` is decided."""
    pongs = misses = 0
    while True:
        if connection.closed and not direct.done():
            await asyncio.wait((direct,))  # a punch that is under way may outlive the relayed connection
        decided = direct.done()
        current = direct.result() if decided and direct.exception() is None else connection
        if current.closed and decided and not args.count:
            return None
        if await _pong(out, current):
            pongs += 1
        else:
            misses += 1
        if args.count and pongs >= args.count:
            return 0
        if decided and not args.count:
            return None
        if current.closed and decided:
            return _gone(out, current)
        if misses >= MAX_MISSES:
            reason = f"{misses} pings had no answer"
            out.fact("failed", reason, reason=reason)
            return 1
        if decided:
            await asyncio.sleep(args.interval)
        else:
            await asyncio.wait((direct,), timeout=args.interval)


async def _pong(out: Output, connection: Connection) -> bool:
    """One ping; whether it was answered."""
    try:
        rtt = await ping.ping(connection)
    except FlareError as error:
        out.fact("no-pong", f"no pong: {error}", reason=str(error), path=connection.path)
        return False
    out.fact(
        "pong",
        f"pong from {connection.remote_peer.short()}: {rtt * 1000:.2f} ms, {connection.path}",
        peer=connection.remote_peer,
        rtt_ms=round(rtt * 1000, 3),
        path=connection.path,
    )
    return True


def _gone(out: Output, connection: Connection) -> int:
    reason = f"the connection is gone: {connection.close_reason or 'it was closed'}"
    out.fact("failed", reason, reason=reason)
    return 1


def _verdict(
    out: Output, connection: Connection, direct: asyncio.Future[Connection], attempts: int, seconds: float
) -> int:
    error = direct.exception()
    if error is None:
        path = direct.result().path
        out.fact("direct", f"direct: {path}", path=path, attempts=attempts, seconds=round(seconds, 4))
        return 0
    if not isinstance(error, FlareError):
        raise error
    if connection.closed:
        return _gone(out, connection)
    attempts = error.attempts if isinstance(error, PunchFailed) else 0
    out.fact("relayed", f"relayed: {error}", reason=str(error), attempts=attempts, seconds=round(seconds, 4))
    return 1
