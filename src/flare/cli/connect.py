"""`flare connect`: join stdin and stdout to a stream of a peer, directly if that can be."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from ..config import Config
from ..errors import FlareError, ProtocolNotSupported
from ..host import Host
from ..protocols import echo
from ..transport.connection import Connection
from ..transport.stream import Stream
from .common import (
    add_common,
    add_security,
    address,
    identity_from,
    run_until_signal,
    seconds,
    somewhere,
    unless_stopped,
)
from .output import Output, silence

CHUNK = 64 * 1024

T = TypeVar("T")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "connect",
        help="join stdin and stdout to a stream of a peer",
        description="Open a stream of PROTOCOL at the peer; stdin goes out, what comes back goes to stdout, "
        "until the peer closes its side. With --json the facts go to stderr: stdout carries the stream.",
    )
    parser.add_argument("address", metavar="ADDR", type=address, help="multiaddr of the peer")
    parser.add_argument(
        "protocol", metavar="PROTOCOL", nargs="?", default=echo.PROTOCOL, help="default: %(default)s"
    )
    parser.add_argument("--relayed", action="store_true", help="do not wait for a direct connection")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=30.0, help="seconds for going direct (default 30)"
    )
    add_security(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Connect, go direct unless told otherwise, and copy until the peer closes its side."""
    out = Output(args.json, sys.stderr)

    async def main(stop: asyncio.Event) -> int:
        config = Config(security=args.security)
        async with Host(identity=identity_from(args.identity), config=config) as host:
            return await unless_stopped(stop, _connect(args, host, out))

    return run_until_signal(main, out)


async def _connect(args: argparse.Namespace, host: Host, out: Output) -> int:
    somewhere([args.address], "give an address of the peer, which may be one on a relay")
    connection = await host.connect(args.address, timeout=args.timeout)
    if not args.relayed:
        try:
            connection = await connection.direct(timeout=args.timeout)
        except FlareError as error:
            out.fact("relayed", f"relayed: {error}", reason=str(error))
    out.fact("connected", f"connected, {connection.path}", path=connection.path, peer=connection.remote_peer)
    async with await _open(connection, args.protocol) as stream:
        sending = asyncio.ensure_future(_send(stream))
        try:
            while data := await stream.read():
                await _detached(lambda data=data: _write(data))  # type: ignore[misc]
        except BrokenPipeError:
            silence(sys.stdout)
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return 0


async def _open(connection: Connection, protocol: str) -> Stream:
    try:
        return await connection.open_stream(protocol, allow_limited=True)
    except ProtocolNotSupported as error:
        if connection.is_limited:
            words = f"{error} over a relayed connection with limits; it may over a direct one"
            raise FlareError(words) from error
        raise


async def _send(stream: Stream) -> None:
    """Stdin to the stream, then a half-close."""
    while sys.stdin is not None and (data := await _detached(lambda: os.read(0, CHUNK))):
        await stream.write(data)
    await stream.close_write()


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


async def _detached(function: Callable[[], T]) -> T:
    """Run `function` in a thread that may be left behind.

    A read from a terminal and a write to a pipe that nobody empties can't be cancelled, and must keep neither
    the connection waiting nor us from ending.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value: T | None = None
        failure: OSError | None = None
        try:
            value = function()
        except OSError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=work, name="stdio", daemon=True).start()
    return await result
