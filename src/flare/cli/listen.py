"""`flare listen`: be reachable, directly and through relays, and answer ping, identify and echo."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack

from ..auto_nat import AutoNat
from ..auto_relay import AutoRelay
from ..config import Config
from ..events import (
    AddressesChanged,
    AddressReachability,
    ConnectionLost,
    ConnectionOpened,
    Event,
    NatBehaviourChanged,
    NetworkChanged,
    PunchGaveUp,
    PunchStarted,
    PunchSucceeded,
    ReachabilityChanged,
    RelayChosen,
    RelayDropped,
    ReservationAccepted,
    ReservationLost,
)
from ..host import Host
from ..port_mapper import PortMapper
from ..protocols import echo, perf
from ..wire.peer_id import PeerId
from .common import add_common, add_security, address, identity_from, run_until_signal
from .output import Output, PatientOutput
from .port_mapping import MappedPorts, add_map_ports

_ANSWER = {"public": "yes", "private": "no", "unknown": "that is not known"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "listen",
        help="be reachable through relays and go direct when somebody comes",
        description="Reserve a place on each relay, print the addresses to dial, and answer ping and "
        "/echo/1.0.0, until SIGINT or SIGTERM.",
    )
    parser.add_argument(
        "--relay",
        metavar="ADDR",
        type=address,
        action="append",
        default=[],
        help="relay to reserve on, may be given again",
    )
    parser.add_argument(
        "--auto-relay",
        action="store_true",
        help="hold places on the best two of the relays that are found, for as long as strangers cannot dial "
        "this host: those of --relay and --relay-source, and connected peers that relay",
    )
    parser.add_argument(
        "--relay-source",
        metavar="SOURCE",
        action="append",
        default=[],
        help="where to find relays, with --auto-relay implied: /dnsaddr/NAME, the URL of a delegated routing "
        "service, or a relay's address",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        type=address,
        action="append",
        help="multiaddr to listen on, may be given again (default: any port, QUIC and TCP, IPv4 and IPv6)",
    )
    parser.add_argument("--no-punch", action="store_true", help="stay relayed")
    parser.add_argument(
        "--perf",
        action="store_true",
        help=f"serve {perf.PROTOCOL}, for measurements: whoever comes gets as many bytes as he asks for",
    )
    parser.add_argument(
        "--reachability",
        action="store_true",
        help="find out where strangers can dial this host and how its NAT behaves, and say so",
    )
    add_map_ports(parser)
    add_security(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Listen until SIGINT or SIGTERM."""
    with PatientOutput(args.json) as out:
        return _listen(args, out)


def _listen(args: argparse.Namespace, out: Output) -> int:
    finds = args.auto_relay or bool(args.relay_source)

    async def main(stop: asyncio.Event) -> int:
        began = time.monotonic()
        async with (
            Host(
                identity=identity_from(args.identity),
                listen=args.listen,
                relays=() if finds else args.relay,
                punch=not args.no_punch,
                config=Config(security=args.security),
            ) as host,
            AsyncExitStack() as more,
        ):
            host.handle(echo.PROTOCOL, echo.serve, allow_limited=True)
            if args.perf:
                host.handle(perf.PROTOCOL, perf.serve)
            addrs = [str(addr) for addr in host.full_addrs]
            out.fact(
                "listening", "listening on\n  " + "\n  ".join(addrs), peer=str(host.peer_id), addrs=addrs
            )
            told: dict[PeerId, list[str]] = {}
            host.on_event(lambda event: _show(out, event, told))
            if args.reachability or finds:
                nat = await more.enter_async_context(AutoNat(host, serve=False))
            if args.reachability:
                host.on_event(lambda event: _show_reachability(out, event, nat, time.monotonic() - began))
            if args.map_ports:
                host.on_event(MappedPorts(out).show)
                await more.enter_async_context(PortMapper(host))
            if finds:
                host.on_event(lambda event: _show_relays(out, event))
                await more.enter_async_context(AutoRelay(host, [*args.relay, *args.relay_source]))
            await stop.wait()
        return 0

    return run_until_signal(main, out)


def _show_relays(out: Output, event: Event) -> None:
    match event:
        case RelayChosen(relay, source, latency):
            away = "" if latency is None else f", {latency * 1000:.0f} ms away"
            out.fact(
                "relay-chosen",
                f"chose relay {relay.short()} from {source}{away}",
                relay=relay,
                source=source,
                latency=None if latency is None else round(latency, 4),
            )
        case RelayDropped(relay, reason):
            out.fact("relay-dropped", f"left relay {relay.short()}: {reason}", relay=relay, reason=reason)
        case _:
            pass


def _show_reachability(out: Output, event: Event, nat: AutoNat, seconds: float) -> None:
    match event:
        case ReachabilityChanged(state):
            out.fact(
                "reachability",
                f"strangers can dial this host: {_ANSWER[state]}",
                state=state,
                seconds=round(seconds, 3),
            )
        case AddressReachability(addr, state):
            words = next((verdict.words for verdict in nat.verdicts if verdict.addr == addr), ())
            why = f": {words[0].reason}" if words else ""
            out.fact("address", f"{addr} is {state}{why}", addr=addr, state=state, seconds=round(seconds, 3))
        case NatBehaviourChanged(transport):
            behaviour = nat.behaviours[transport]
            out.fact("nat", behaviour.sentence, **behaviour.as_json(), seconds=round(seconds, 3))
        case _:
            pass


def _show(out: Output, event: Event, told: dict[PeerId, list[str]]) -> None:
    """`told` are the addresses through each relay that people have read already: refreshing is no news."""
    match event:
        case ReservationAccepted(relay, expires, addrs, limit):
            listed = [str(addr) for addr in addrs]
            text = f"reserved on {relay.short()}: reach me at\n  " + "\n  ".join(listed)
            limits = {"duration": limit.duration, "data": limit.data} if limit else None
            out.fact(
                "reserved",
                None if told.get(relay) == listed else text,
                relay=str(relay),
                addrs=listed,
                expires=expires,
                limit=limits,
            )
            told[relay] = listed
        case ReservationLost(lost, reason, retry_in):
            who = lost.short() if lost is not None else "relay"
            if lost is not None:
                told.pop(lost, None)
            out.fact(
                "reservation-lost",
                f"no place on {who}: {reason}; trying again in {retry_in:.1f} s",
                relay=lost,
                reason=reason,
                retry_in=round(retry_in, 3),
            )
        case NetworkChanged(reason, gone):
            out.fact("network", f"{reason}: checking connections", reason=reason, gone=gone)
        case AddressesChanged(changed):
            out.fact("addresses", None, addrs=[str(addr) for addr in changed])
        case ConnectionOpened(peer, addr, path, True, _):
            out.fact("connection", f"{peer.short()} is here, {path}", peer=peer, addr=addr, path=path)
        case ConnectionLost(peer, addr, path, reason):
            out.fact(
                "connection-lost", f"{peer.short()} has gone, {path}", peer=peer, path=path, reason=reason
            )
        case PunchStarted(peer, role):
            out.fact("punch", f"going direct with {peer.short()} ...", peer=peer, role=role)
        case PunchSucceeded(peer, path, attempts, seconds):
            out.fact(
                "direct",
                f"direct with {peer.short()}: {path} after {seconds:.2f} s",
                peer=peer,
                path=path,
                attempts=attempts,
                seconds=round(seconds, 4),
            )
        case PunchGaveUp(peer, reason, attempts, seconds):
            out.fact(
                "relayed",
                f"still relayed with {peer.short()}: {reason}",
                peer=peer,
                reason=reason,
                attempts=attempts,
                seconds=round(seconds, 4),
            )
        case _:
            pass
