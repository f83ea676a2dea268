"""`flare relay`: run a Circuit Relay v2 server."""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..auto_nat import AutoNat
from ..config import Config, RelayLimits
from ..errors import FlareError, UsageError
from ..events import CircuitClosed, CircuitOpened, Event, ReservationMade
from ..host import Host
from ..port_mapper import PortMapper
from ..protocols.relay.access import AccessList, PeerList, parse_entry
from ..relay_server import RelayServer
from ..watch.server import DEFAULT_ADDRESS, NO_METRICS, StatusServer
from ..wire.multiaddr import Multiaddr
from . import relay_file, units
from .common import Stop, add_common, add_security, address, identity_from, number, run_until_signal
from .output import Output, PatientOutput
from .port_mapping import MappedPorts, add_map_ports
from .relay_file import FIXED, RelaySettings

DEFAULT_LISTEN = (
    "/ip4/0.0.0.0/udp/4001/quic-v1",
    "/ip6/::/udp/4001/quic-v1",
    "/ip4/0.0.0.0/tcp/4001",
    "/ip6/::/tcp/4001",
)

ENDS = {  # why a circuit ended, for people
    "closed": "both sides closed it",
    "reset": "one side broke it off",
    "limit": "its bytes were used up",
    "deadline": "its time was over",
    "link": "a connection was lost",
    "cancelled": "the relay ended it",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "relay",
        help="introduce peers to each other and carry what nothing else can",
        description="Run a relay: peers behind NATs reserve a place, others reach them through it and go "
        "direct. SIGTERM lets circuits end and then ends it, SIGINT and a second SIGTERM end it at once, "
        "SIGHUP reads --config again. What is said here comes after what the file says.",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file with any of the keys of docs/relay.md"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        type=address,
        action="append",
        help="multiaddr to listen on, may be given again (default: port 4001, QUIC and TCP, IPv4 and IPv6)",
    )
    parser.add_argument(
        "--announce",
        metavar="ADDR",
        type=address,
        action="append",
        help="public multiaddr to tell others, for a relay behind a port mapping; may be given again",
    )
    parser.add_argument(
        "--no-limits",
        action="store_true",
        help="circuits without byte or time limit, no rates, many reservations: for a relay among friends",
    )
    limits = parser.add_argument_group("limits")
    for option, metavar, kind, text in (
        ("--max-reservations", "N", number, "reservations in all"),
        ("--max-circuits", "N", number, "circuits in all, at once; 0: no limit"),
        (
            "--circuit-bytes",
            "SIZE",
            _of(units.size),
            'bytes of a circuit each way: "128 KiB", "none"',
        ),
        ("--circuit-duration", "TIME", _of(units.duration), 'how long a circuit may last: "2m", "none"'),
        ("--bandwidth", "RATE", _of(units.byte_rate), 'of all circuits together: "100 Mbit/s"'),
        ("--peer-bandwidth", "RATE", _of(units.byte_rate), "of all circuits of one peer together"),
    ):
        limits.add_argument(option, metavar=metavar, type=kind, help=text)
    for option, text in (
        ("--allow", "who may use the relay, when not everybody"),
        ("--deny", "who may not"),
        ("--unlimited", "whose circuits carry no limit, for your own peers"),
    ):
        limits.add_argument(
            option,
            metavar="PEER|NETWORK",
            type=_entry,
            action="append",
            help=f"{text}: a peer id or a network such as 192.0.2.0/24; may be given again",
        )
    parser.add_argument(
        "--drain-timeout",
        metavar="TIME",
        type=_of(relay_file.patience),
        help="how long SIGTERM lets circuits go on (default: 25s)",
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
        help="threads that carry circuits, or auto: one for each core that this process may use "
        "(default: 0, the event loop carries them)",
    )
    parser.add_argument(
        "--autonat",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="dial peers back that ask whether they can be reached, some dozen times a minute (default: yes)",
    )
    add_map_ports(parser)
    add_security(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def _of(convert: Callable[[object], object]) -> Callable[[str], object]:
    """An argparse type out of one for the file."""

    def kind(text: str) -> object:
        try:
            return convert(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return kind


def _entry(text: str) -> str:
    try:
        parse_entry(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _threads(text: str) -> object:
    return _of(relay_file.threads)(int(text) if text.isdecimal() else text)  # type: ignore[arg-type]


def settings_from(args: argparse.Namespace) -> RelaySettings:
    """What the file says, then what the command line does. UsageError, OSError."""
    settings = RelaySettings(limits=RelayLimits.unlimited() if args.no_limits else RelayLimits())
    if args.config is not None:
        settings = relay_file.load(args.config, settings)
    limits = {
        field: given
        for field, given in (
            ("max_reservations", args.max_reservations),
            ("max_circuits", args.max_circuits),
            ("circuit_bytes", args.circuit_bytes),
            ("circuit_duration", args.circuit_duration),
            ("byte_rate", args.bandwidth),
            ("byte_rate_per_peer", args.peer_bandwidth),
        )
        if given is not None
    }
    said = {
        field: given
        for field, given in (
            ("listen", args.listen and tuple(args.listen)),
            ("announce", args.announce and tuple(args.announce)),
            ("identity", args.identity),
            ("threads", args.threads),
            ("autonat", args.autonat),
            ("map_ports", args.map_ports),
            ("status", args.status),
            ("drain_timeout", args.drain_timeout),
        )
        if given is not None
    }
    lists = {
        name: (*getattr(settings, name), *(getattr(args, name) or ()))
        for name in ("allow", "deny", "unlimited")
    }
    changes: dict[str, Any] = {**said, **lists, "limits": replace(settings.limits, **limits)}
    return replace(settings, **changes)


def _access(settings: RelaySettings) -> AccessList:
    # whoever has no limits may come in: one list need not repeat the other
    allow = (*settings.allow, *settings.unlimited) if settings.allow else ()
    return AccessList(PeerList(allow), PeerList(settings.deny))


def run(args: argparse.Namespace) -> int:
    """Relay until SIGINT or SIGTERM."""
    settings = settings_from(args)
    with PatientOutput(args.json) as out:
        return _relay(args, settings, out)


def _relay(args: argparse.Namespace, settings: RelaySettings, out: Output) -> int:

    async def main(stop: Stop) -> int:
        async with AsyncExitStack() as serving:
            host = Host(
                identity=identity_from(settings.identity),
                listen=settings.listen or _default_listen(),
                announce=settings.announce,
                config=Config(data_threads=settings.threads, security=args.security),
            )
            host.on_event(lambda event: _show(out, event))
            await serving.enter_async_context(host)
            relay = RelayServer(
                host, settings.limits, acl=_access(settings), unlimited=PeerList(settings.unlimited)
            )
            await serving.enter_async_context(relay)
            if settings.autonat:
                await serving.enter_async_context(AutoNat(host, look=settings.map_ports))
            addrs = [str(addr) for addr in host.full_addrs]
            out.fact(
                "listening",
                "relay listening on\n  " + "\n  ".join(addrs),
                peer=str(host.peer_id),
                addrs=addrs,
            )
            if settings.status is not None:
                _tell(out, await serving.enter_async_context(StatusServer(relay, settings.status)))
            if settings.map_ports:
                host.on_event(MappedPorts(out).show)
                await serving.enter_async_context(PortMapper(host))
            live = _Live(args, settings, relay, out)
            if args.config is not None:
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, live.reload)
                serving.callback(loop.remove_signal_handler, signal.SIGHUP)
            gc.collect()
            gc.freeze()  # the collector need not walk through all of the program while peers wait
            await stop.wait()
            if stop.signal is signal.SIGTERM:
                await live.drain()
        return 0

    _allow_descriptors()
    return run_until_signal(main, out)


def _allow_descriptors() -> None:
    """As many descriptors as this process may ask for: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard >= 0 else max(soft, 1 << 20), hard))


class _Live:
    """A relay that runs, and what it was told last."""

    def __init__(
        self, args: argparse.Namespace, settings: RelaySettings, relay: RelayServer, out: Output
    ) -> None:
        self._args, self._settings, self._relay, self._out = args, settings, relay, out
        self._began = settings

    def reload(self) -> None:
        """Read the file again; a bad one changes nothing."""
        try:
            fresh = settings_from(self._args)
        except (FlareError, OSError) as error:
            self._out.fact("reload-failed", f"the configuration stays as it was: {error}", reason=str(error))
            return
        relisted = any(
            getattr(fresh, name) != getattr(self._settings, name) for name in ("allow", "deny", "unlimited")
        )
        self._relay.update(
            fresh.limits,
            acl=_access(fresh) if relisted else None,
            unlimited=PeerList(fresh.unlimited) if relisted else None,
        )
        self._settings = fresh
        restart = [name for name in FIXED if getattr(fresh, name) != getattr(self._began, name)]
        later = f"; a restart is needed for {', '.join(restart)}" if restart else ""
        self._out.fact("reloaded", f"configuration reloaded{later}", restart=restart)

    async def drain(self) -> None:
        """Let circuits end."""
        circuits, timeout = self._relay.circuits, self._settings.drain_timeout
        if circuits:
            self._out.fact("draining", f"draining: {circuits} circuits are open", circuits=circuits)
        cut = await self._relay.drain(timeout)
        if circuits:
            self._out.fact("drained", f"drained: {cut} circuits did not end by themselves", cut=cut)


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
            f"circuit {event.source.short()} -> {event.target.short()} ended: "
            f"{ENDS.get(event.reason, event.reason)}, {event.source_bytes} + {event.target_bytes} bytes",
            source=event.source,
            target=event.target,
            reason=event.reason,
            source_bytes=event.source_bytes,
            target_bytes=event.target_bytes,
        )
