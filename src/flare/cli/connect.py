"""`flare connect`: join stdin and stdout to a stream of a peer, directly if that can be."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading

from ..errors import FlareError
from ..host import Host
from ..protocols import echo
from ..transport.stream import Stream
from .common import Output, add_common, address, identity_from, run_until_signal, unless_stopped

CHUNK = 64 * 1024
CHUNKS_AHEAD = 4  # read from stdin and not yet taken by the stream


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "connect",
        help="join stdin and stdout to a stream of a peer",
        description="Open a stream of PROTOCOL at the peer; stdin goes out, what comes back goes to stdout. "
        "With --json the facts go to stderr, since stdout carries the stream.",
    )
    parser.add_argument("address", metavar="ADDR", type=address, help="multiaddr of the peer")
    parser.add_argument(
        "protocol", metavar="PROTOCOL", nargs="?", default=echo.PROTOCOL, help="default: %(default)s"
    )
    parser.add_argument("--relayed", action="store_true", help="do not wait for a direct connection")
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=30.0, help="seconds for going direct (default 30)"
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Connect, go direct unless told otherwise, and copy until both sides have closed."""
    out = Output(args.json, sys.stderr)

    async def main(stop: asyncio.Event) -> int:
        async with Host(identity=identity_from(args.identity)) as host:
            return await unless_stopped(stop, _connect(args, host, out))

    return run_until_signal(main)


async def _connect(args: argparse.Namespace, host: Host, out: Output) -> int:
    connection = await host.connect(args.address, timeout=args.timeout)
    if not args.relayed:
        try:
            connection = await connection.direct(timeout=args.timeout)
        except FlareError as error:
            out.fact("relayed", f"relayed: {error}", reason=str(error))
    out.fact("connected", f"connected, {connection.path}", path=connection.path, peer=connection.remote_peer)
    async with connection.open_stream(args.protocol, allow_limited=True) as stream:
        sending = asyncio.ensure_future(_send(stream))
        try:
            while data := await stream.read():
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return 0


async def _send(stream: Stream) -> None:
    """Stdin to the stream, then a half-close."""
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(CHUNKS_AHEAD)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # a thread that may be left behind: a read from a terminal can't be cancelled, and must not keep us from ending
        while True:
            room.acquire()
            data = os.read(sys.stdin.fileno(), CHUNK)
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, data)
            except RuntimeError:
                return  # the loop has closed
            if not data:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await chunks.get():
        await stream.write(data)
        room.release()
    await stream.close_write()
