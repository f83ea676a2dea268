"""flare as a peer of the tests: the command line that the go, rust and js peers have, over the Python API.

    flare_peer.py listen [--listen ADDR]... [--relay ADDR]... [--punch]
    flare_peer.py ping ADDR [--count N] [--echo N[,N]...] [--punch] [--settle S] [--listen ADDR]...
                       [--timeout S]
    flare_peer.py echo ADDR [--bytes N] [--streams N] [--timeout S]
    flare_peer.py perf ADDR [--upload N] [--download N] [--timeout S]
    flare_peer.py reach ADDR --external ADDR [--version 1|2] [--listen ADDR]... [--timeout S]
    common: [--key ed25519|ecdsa|secp256k1|rsa] [--security tls|noise]

What the `flare` command does is tested with the command itself; this serves an echo and perf, and can stay
after a hole punch to see which connections are left.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time

import flare
from flare.config import SECURITY, Config
from flare.events import ConnectionLost, ConnectionOpened, PeerIdentified, ReservationAccepted
from flare.protocols import perf, ping
from flare.protocols.autonat import v1_client

ECHO = "/echo/1.0.0"


def emit(event: str, **fields: object) -> None:
    """One JSON line."""
    print(json.dumps({"event": event, **fields}), flush=True)


def sizes(text: str) -> list[int]:
    """Numbers of bytes, as in 0,1,65537."""
    return [int(size) for size in text.split(",")]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("listen", "ping", "echo", "perf", "reach"):
        command = commands.add_parser(name)
        if name != "listen":
            command.add_argument("target")
        command.add_argument("--listen", action="append", default=[])
        command.add_argument("--relay", action="append", default=[])
        command.add_argument("--count", type=int, default=1)
        command.add_argument("--echo", type=sizes, default=[], metavar="N,...")
        command.add_argument("--bytes", type=int, default=65_536)
        command.add_argument("--streams", type=int, default=1)
        command.add_argument("--upload", type=int, default=1 << 20)
        command.add_argument("--download", type=int, default=1 << 20)
        command.add_argument("--punch", action="store_true")
        command.add_argument("--settle", type=float, default=0.0)
        command.add_argument("--timeout", type=float, default=30.0)
        command.add_argument("--key", default="ed25519")
        command.add_argument("--security", choices=SECURITY)
        command.add_argument("--version", type=int, choices=(1, 2), default=2)
        command.add_argument("--external", metavar="ADDR")
    return parser.parse_args()


async def serve_echo(stream: flare.Stream) -> None:
    """Everything back, until the peer half-closes."""
    while data := await stream.read():
        await stream.write(data)
    await stream.close_write()


async def listen(host: flare.Host) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    host.handle(ECHO, serve_echo, allow_limited=True)
    host.handle(perf.PROTOCOL, perf.serve)
    host.on_event(report)
    host.on_event(lambda event: report_connections(host, event))
    emit(
        "listening",
        peer=str(host.peer_id),
        addrs=[str(addr) for addr in host.full_addrs if not addr.is_circuit],
    )
    await stopped.wait()


def report(event: object) -> None:
    """Print a reservation."""
    if isinstance(event, ReservationAccepted):
        emit("reserved", relay=str(event.relay), addrs=[str(addr) for addr in event.addrs])


def report_connections(host: flare.Host, event: object) -> None:
    """Print the paths to a peer when a connection comes or goes."""
    if isinstance(event, ConnectionOpened | ConnectionLost):
        emit("connections", peer=str(event.peer), paths=paths_to(host, event.peer))


def paths_to(host: flare.Host, peer: flare.PeerId) -> list[str]:
    """How each connection to the peer runs."""
    return sorted(connection.path for connection in host.connections_to(peer))


async def send_pings(connection: flare.Connection, count: int, told: asyncio.Future[PeerIdentified]) -> None:
    """`count` pings one after the other, once identify has told of the peer."""
    identified = await told
    emit(
        "identified", peer=str(identified.peer), agent=identified.agent, protocols=list(identified.protocols)
    )
    for _ in range(count):
        seconds = await ping.ping(connection)
        emit("pong", rtt_ms=seconds * 1000, path=connection.path, security=connection.security)


async def go_direct(host: flare.Host, connection: flare.Connection, args: argparse.Namespace) -> None:
    """Wait for a direct connection, and `--settle` seconds for what is surplus to go."""
    direct = await connection.direct(args.timeout)
    await ping.ping(direct)
    await asyncio.sleep(args.settle)
    emit("direct", path=direct.path, connections=paths_to(host, direct.remote_peer))


async def send_perf(connection: flare.Connection, upload: int, download: int) -> None:
    """`upload` bytes there, `download` bytes back."""
    async with connection.open_stream(perf.PROTOCOL) as stream:
        result = await perf.run(stream, upload, download)
    seconds = result.upload_seconds + result.download_seconds
    emit("perf", upload=result.upload, download=result.download, seconds=seconds, path=connection.path)


async def send_echo(connection: flare.Connection, size: int, count: int) -> None:
    """`size` random bytes there and back on each of `count` streams, writing and reading at once."""
    sent = os.urandom(size)
    streams = [await connection.open_stream(ECHO, allow_limited=True) for _ in range(count)]
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(exchange(stream, sent))
    seconds = time.perf_counter() - start
    emit("echoed", bytes=size, streams=count, seconds=seconds, path=connection.path)


async def exchange(stream: flare.Stream, sent: bytes) -> None:
    """All of `sent` there and back."""
    received = bytearray()

    async def write() -> None:
        await stream.write(sent)
        await stream.close_write()

    async with stream, asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        while data := await stream.read():
            received += data
    if received != sent:
        raise SystemExit(f"echo: {len(sent)} bytes sent, {len(received)} other bytes received")


async def reach(host: flare.Host, connection: flare.Connection, args: argparse.Namespace) -> None:
    """What the target, a relay of our configuration, finds out about `--external`."""
    addr = flare.Multiaddr(args.external)
    if args.version == 1:
        told = await v1_client.ask(connection, [addr])
        verdict = {True: "public", False: "private", None: "unknown"}[told.reachable]
        emit("reach", addr=str(told.addr or addr), verdict=verdict, reason=told.reason)
        return
    async with flare.AutoNat(host, serve=False) as nat:
        while True:
            for about in nat.verdicts:
                for word in about.words:
                    if about.addr == addr and word.server == connection.remote_peer:
                        emit("reach", addr=str(addr), verdict=about.state.value, reason=word.reason)
                        return
            await asyncio.sleep(0.05)


async def main(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    identity = flare.Identity.generate(kind=args.key)
    config = Config(security=(args.security,) if args.security else SECURITY)
    relays = [args.target] if args.command == "reach" else args.relay
    announce = [args.external] if args.external else []
    async with flare.Host(
        identity=identity,
        listen=args.listen,
        relays=relays,
        announce=announce,
        punch=args.punch,
        config=config,
    ) as host:
        if args.command == "listen":
            await listen(host)
            return
        told: asyncio.Future[PeerIdentified] = asyncio.get_running_loop().create_future()

        def note(event: object) -> None:
            target = isinstance(event, PeerIdentified) and args.target.endswith(f"/p2p/{event.peer}")
            if target and not told.done():
                told.set_result(event)

        host.on_event(note)
        async with asyncio.timeout(args.timeout):
            connection = await host.connect(args.target)
            if args.command == "ping":
                await send_pings(connection, args.count, told)
                for size in args.echo:
                    await send_echo(connection, size, 1)
                if args.punch:
                    await go_direct(host, connection, args)
                emit("done")
            elif args.command == "perf":
                await send_perf(connection, args.upload, args.download)
            elif args.command == "reach":
                await reach(host, connection, args)
            else:
                await send_echo(connection, args.bytes, args.streams)


if __name__ == "__main__":
    try:
        asyncio.run(main(parse()))
    except (flare.FlareError, TimeoutError) as error:
        emit("error", reason=f"{type(error).__name__}: {error}")
        sys.exit(1)
