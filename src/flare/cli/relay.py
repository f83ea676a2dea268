"""`flare relay`: run a Circuit Relay v2 server."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from contextlib import AsyncExitStack

from ..config import Config, RelayLimits
from ..events import CircuitClosed, CircuitOpened, Event, ReservationMade
from ..host import Host
from ..relay_server import RelayServer
from ..watch.server import DEFAULT_ADDRESS, NO_METRICS, StatusServer
from ..wire.multiaddr import Multiaddr
from .common import Output, add_common, address, identity_from, run_until_signal

MAX_THREADS = 1024
DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "relay",
        help="introduce peers to each other and carry what nothing else can",
        description="Run a relay: peers behind NATs reserve a place, others reach them through it and go "
        "direct. Ends with SIGINT or SIGTERM.",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        type=address,
        action="append",
        help=f"multiaddr to listen on, may be given again (default: {' and '.join(DEFAULT_LISTEN)})",
    )
    parser.add_argument(
        "--announce",
        metavar="ADDR",
        type=address,
        action="append",
        default=[],
        help="public multiaddr to tell others, for a relay behind a port mapping; may be given again",
    )
    parser.add_argument(
        "--no-limits",
        action="store_true",
        help="circuits without byte or time limit, a million reservations: for a relay among friends",
    )
    parser.add_argument(
        "--status",
        metavar="IP:PORT",
        nargs="?",
        const=DEFAULT_ADDRESS,
        help="serve a status page, /status.json, /healthz and /metrics over HTTP there "
        f"(default: {DEFAULT_ADDRESS}); there is no password, so keep it on loopback",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_threads,
        default=0,
        help="threads that carry circuits, or auto: one for each core that this process may use "
        "(default: 0, the event loop carries them)",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Relay until SIGINT or SIGTERM."""
    out = Output(args.json)

    async def main(stop: asyncio.Event) -> int:
        listen = args.listen or _default_listen()
        limits = RelayLimits.unlimited() if args.no_limits else RelayLimits()
        identity = identity_from(args.identity)
        async with Host(
            identity=identity, listen=listen, announce=args.announce, config=Config(data_threads=args.threads)
        ) as host:
            host.on_event(lambda event: _show(out, event))
            async with RelayServer(host, limits) as relay, AsyncExitStack() as serving:
                addrs = [str(addr) for addr in host.full_addrs]
                out.fact(
                    "listening",
                    "relay listening on\n  " + "\n  ".join(addrs),
                    peer=str(host.peer_id),
                    addrs=addrs,
                )
                if args.status is not None:
                    _tell(out, await serving.enter_async_context(StatusServer(relay, args.status)))
                await stop.wait()
        return 0

    return run_until_signal(main, out)


def _threads(text: str) -> int:
    """A number of threads; auto: the cores that this process may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"auto, or 0 to {MAX_THREADS}, not {text}")
    return number


def _default_listen() -> list[Multiaddr]:
    """DEFAULT_LISTEN, without the family that this machine does not speak."""
    listen = [Multiaddr(text) for text in DEFAULT_LISTEN]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return [addr for addr in listen if not addr.has("ip6")]
    return listen


def _tell(out: Output, status: StatusServer) -> None:
    lacking = "" if status.has_metrics else f"; {NO_METRICS}"
    out.fact("status", f"status at {status.url}{lacking}", url=status.url, metrics=status.has_metrics)


def _show(out: Output, event: Event) -> None:
    if isinstance(event, ReservationMade):
        out.fact("reservation", f"reserved for {event.peer}", peer=event.peer, expires=event.expires)
    elif isinstance(event, CircuitOpened):
        out.fact(
            "circuit-opened",
            f"circuit {event.source.short()} -> {event.target.short()}",
            source=event.source,
            target=event.target,
        )
    elif isinstance(event, CircuitClosed):
        out.fact(
            "circuit-closed",
            f"circuit {event.source.short()} -> {event.target.short()} ended: {event.reason}, "
            f"{event.source_bytes} + {event.target_bytes} bytes",
            source=event.source,
            target=event.target,
            reason=event.reason,
            source_bytes=event.source_bytes,
            target_bytes=event.target_bytes,
        )
