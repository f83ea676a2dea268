"""A py-libp2p peer behind the command line that the other peers share: TCP with Noise or TLS, QUIC, relay v2.

    peer.py relay  [--listen ADDR]... [--limits | --no-limits]
    peer.py listen [--listen ADDR]... [--relay ADDR]...
    peer.py ping ADDR [--count N] [--echo N[,N]...] [--timeout S]
    peer.py echo ADDR [--bytes N] [--timeout S]
    peer.py perf ADDR [--upload N] [--download N] [--timeout S]
    common: [--security noise|tls]

It runs in a virtual environment of its own (requirements.txt), which tests/interop/build.py makes.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
import traceback

import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.perf.perf_service import PerfService
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.protocol import (
    DEFAULT_RELAY_LIMITS,
    PROTOCOL_ID,
    CircuitV2Protocol,
)
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.security.tls.transport import TLSTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

MANY = 1 << 20
UNLIMITED = RelayLimits(  # 0 bytes are none
    duration=MANY, data=1 << 60, max_circuit_conns=MANY, max_reservations=MANY
)
ECHO = TProtocol("/echo/1.0.0")


def emit(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def host(args: argparse.Namespace) -> IHost:
    """A host that speaks QUIC, and TCP with one security and yamux; without limits none of the library's."""
    identity = generate_new_ed25519_identity()
    static = create_new_key_pair().private_key
    security = (
        {TLS: TLSTransport(identity)}
        if args.security == "tls"
        else {NOISE: NoiseTransport(identity, noise_privkey=static)}
    )
    lifted = {}
    if getattr(args, "no_limits", False):
        lifted = {
            "resource_manager": ResourceManager(
                ResourceLimits(max_connections=MANY, max_memory_mb=MANY, max_streams=MANY)
            ),
            "connection_config": ConnectionConfig(
                max_connections=MANY, high_watermark=MANY, low_watermark=0, min_connections=0
            ),
        }
    quic = "/quic-v1" in f"{getattr(args, 'target', '')} {args.listen}"
    return new_host(key_pair=identity, sec_opt=security, muxer_preference="YAMUX", enable_quic=quic, **lifted)


async def read(stream: INetStream) -> bytes:
    """What has come; nothing at the end, which py-libp2p's streams tell in two ways."""
    try:
        return await stream.read(65_536)
    except StreamEOF:
        return b""


async def serve_echo(stream: INetStream) -> None:
    """Everything back, until the peer half-closes."""
    while data := await read(stream):
        await stream.write(data)
    await stream.close_write()


async def serve(args: argparse.Namespace, served: IHost, signals: trio.abc.ReceiveChannel) -> None:
    """Relay or listen until SIGINT or SIGTERM."""
    limits = UNLIMITED if getattr(args, "no_limits", False) else DEFAULT_RELAY_LIMITS
    protocol = CircuitV2Protocol(served, limits=limits, allow_hop=args.command == "relay")
    served.set_stream_handler(ECHO, serve_echo)
    await PerfService(served).start()
    async with background_trio_service(protocol), trio.open_nursery() as nursery:
        await protocol.event_started.wait()
        addrs = [str(addr) for addr in served.get_addrs()]
        emit("listening", peer=str(served.get_id()), addrs=addrs)
        for text in getattr(args, "relay", None) or []:
            await reserve(served, protocol, text, nursery)
        async for _ in signals:
            nursery.cancel_scope.cancel()
            return


async def reserve(served: IHost, protocol: CircuitV2Protocol, text: str, nursery: trio.Nursery) -> None:
    """Take a place on the relay."""
    config = RelayConfig(roles=RelayRole.STOP | RelayRole.CLIENT)
    transport = CircuitV2Transport(served, protocol, config)
    relay = info_from_p2p_addr(Multiaddr(text))
    await served.connect(relay)
    stream = await served.new_stream(relay.peer_id, [PROTOCOL_ID])
    if not await transport.reserve(stream, relay.peer_id, nursery):
        raise SystemExit("no reservation")
    emit("reserved", relay=str(relay.peer_id), addrs=[f"{text}/p2p-circuit/p2p/{served.get_id()}"])


async def call(args: argparse.Namespace, caller: IHost) -> None:
    """Ping, echo or perf, over a circuit if the address says so."""
    target = ID.from_string(args.target.rpartition("/")[2])
    path = "relayed" if "/p2p-circuit" in args.target else "direct"
    if args.command == "perf":
        async for result in PerfService(caller).measure_performance(
            Multiaddr(args.target), args.upload, args.download
        ):
            if result["type"] == "final":
                emit("perf", upload=result["upload_bytes"], download=result["download_bytes"], path=path)
        return
    if path == "relayed":
        relay = info_from_p2p_addr(Multiaddr(args.target.partition("/p2p-circuit")[0]))
        await caller.connect(relay)
        protocol = CircuitV2Protocol(caller, allow_hop=False)
        transport = CircuitV2Transport(caller, protocol, RelayConfig(roles=RelayRole.CLIENT))
        await transport.dial(Multiaddr(args.target))
    else:
        await caller.connect(info_from_p2p_addr(Multiaddr(args.target)))
    if args.command == "ping":
        service = PingService(caller)
        for _ in range(args.count):
            (rtt,) = await service.ping(target, ping_amt=1)
            emit("pong", rtt_ms=rtt, path=path)
        for size in args.echo:
            await echo(caller, target, size, path)
        emit("done")
    else:
        await echo(caller, target, args.bytes, path)


async def echo(caller: IHost, target: ID, size: int, path: str) -> None:
    """Random bytes there and back, compared."""
    sent = os.urandom(size)
    received = bytearray()
    start = time.perf_counter()
    stream = await caller.new_stream(target, [ECHO])

    async def write() -> None:
        for begin in range(0, len(sent), 65_536):
            await stream.write(sent[begin : begin + 65_536])
        await stream.close_write()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while data := await read(stream):
            received += data
    if received != sent:
        raise SystemExit(f"echo: {len(sent)} bytes sent, {len(received)} other bytes received")
    emit("echoed", bytes=size, seconds=time.perf_counter() - start, path=path)


async def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    running = host(args)
    listen = [Multiaddr(addr) for addr in args.listen or ["/ip4/127.0.0.1/tcp/0"]]
    if args.command in ("ping", "echo", "perf"):
        listen = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with running.run(listen_addrs=listen):
            if args.command in ("relay", "listen"):
                await serve(args, running, signals)
            else:
                with trio.fail_after(args.timeout):
                    await call(args, running)


def sizes(text: str) -> list[int]:
    """Numbers of bytes, as in 0,1,65537."""
    return [int(size) for size in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="peer.py")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("relay", "listen", "ping", "echo", "perf"):
        command = commands.add_parser(name)
        if name in ("ping", "echo", "perf"):
            command.add_argument("target", metavar="ADDR")
        command.add_argument("--listen", action="append", metavar="ADDR")
        command.add_argument("--security", choices=("noise", "tls"), default="noise")
        command.add_argument("--timeout", type=float, default=30.0)
        if name == "relay":
            limited = command.add_mutually_exclusive_group()
            limited.add_argument("--limits", action="store_true", help="the limits as shipped (the default)")
            limited.add_argument("--no-limits", action="store_true")
        command.add_argument("--relay", action="append", metavar="ADDR")
        command.add_argument("--count", type=int, default=1)
        command.add_argument("--echo", type=sizes, default=[], metavar="N,...")
        command.add_argument("--bytes", type=int, default=65_536)
        command.add_argument("--upload", type=int, default=1 << 20)
        command.add_argument("--download", type=int, default=1 << 20)
    args = parser.parse_args()
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    try:
        trio.run(run, args)
    except Exception as error:  # noqa: BLE001 - the edge of the program
        emit("error", reason="".join(traceback.format_exception(error))[-2000:])
        sys.exit(1)


if __name__ == "__main__":
    main()
