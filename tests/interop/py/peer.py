"""A py-libp2p relay for flare's benchmark: the `relay` of the command line that the other peers share.

    peer.py relay [--listen ADDR]... [--limits | --no-limits] [--security noise|tls]

It runs in a virtual environment of its own (requirements.txt), which tests/interop/build.py makes.
"""

import argparse
import json
import logging
import signal

import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.abc import IHost
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.relay.circuit_v2.protocol import DEFAULT_RELAY_LIMITS, CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.security.tls.transport import TLSTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

MANY = 1 << 20
UNLIMITED = RelayLimits(duration=0, data=0, max_circuit_conns=MANY, max_reservations=MANY)


def emit(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def host(args: argparse.Namespace) -> IHost:
    """A host that speaks TCP, one security and yamux. Without limits the library's own are lifted too."""
    identity = generate_new_ed25519_identity()
    static = create_new_key_pair().private_key
    security = (
        {TLS: TLSTransport(identity)}
        if args.security == "tls"
        else {NOISE: NoiseTransport(identity, noise_privkey=static)}
    )
    lifted = {}
    if args.no_limits:
        lifted = {
            "resource_manager": ResourceManager(
                ResourceLimits(max_connections=MANY, max_memory_mb=MANY, max_streams=MANY)
            ),
            "connection_config": ConnectionConfig(
                max_connections=MANY, high_watermark=MANY, low_watermark=0, min_connections=0
            ),
        }
    return new_host(key_pair=identity, sec_opt=security, muxer_preference="YAMUX", **lifted)


async def relay(args: argparse.Namespace) -> None:
    """Serve circuit relay v2 until SIGINT or SIGTERM."""
    served = host(args)
    limits = UNLIMITED if args.no_limits else DEFAULT_RELAY_LIMITS
    protocol = CircuitV2Protocol(served, limits=limits, allow_hop=True)
    listen = [Multiaddr(addr) for addr in args.listen or ["/ip4/127.0.0.1/tcp/0"]]
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with served.run(listen_addrs=listen), background_trio_service(protocol):
            await protocol.event_started.wait()
            addrs = [str(addr) for addr in served.get_addrs()]
            emit("listening", peer=str(served.get_id()), addrs=addrs)
            async for _ in signals:
                return


def main() -> None:
    parser = argparse.ArgumentParser(prog="peer.py")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("relay", help="serve circuit relay v2")
    command.add_argument("--listen", action="append", metavar="ADDR")
    limited = command.add_mutually_exclusive_group()
    limited.add_argument("--limits", action="store_true", help="the limits as shipped (the default)")
    limited.add_argument("--no-limits", action="store_true")
    command.add_argument("--security", choices=("noise", "tls"), default="noise")
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    trio.run(relay, parser.parse_args())


if __name__ == "__main__":
    main()
