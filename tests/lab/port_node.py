"""One host of tests/lab/test_port_mapping.py.

port_node.py server IP                                 relays, and dials others back
port_node.py map [--only NAME] [--lifetime N] [--autonat] [--listen IP] [RELAY ...]
                                                       maps its ports and prints what happens, until SIGTERM
port_node.py dial ADDR ...                             dials each and prints the path
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import flare
from flare.events import as_json
from flare.nat.port_mapping.lease import Mapper
from flare.nat.port_mapping.mapping import mappers_of


def say(**event: object) -> None:
    print(json.dumps(event, default=str), flush=True)


async def serve(ip: str) -> None:
    listen = [f"/ip4/{ip}/tcp/4001", f"/ip4/{ip}/tcp/4002", f"/ip4/{ip}/udp/4001/quic-v1"]
    async with flare.Host(listen=listen) as host, flare.RelayServer(host), flare.AutoNat(host, look=False):
        say(event="up", addr=str(host.full_addrs[0]))
        await asyncio.Event().wait()


async def map_ports(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    version = 6 if ":" in arguments.listen else 4
    base = f"/ip{version}/{arguments.listen}"

    def only(*how: Any) -> Sequence[Mapper]:
        return [mapper for mapper in mappers_of(*how) if arguments.only in (None, mapper.name)]

    limits = flare.PortMappingConfig(lifetime=arguments.lifetime, verify=arguments.verify)
    async with AsyncExitStack() as running:
        host = flare.Host(
            listen=[f"{base}/tcp/4001", f"{base}/udp/4001/quic-v1"],
            relays=arguments.relay,
            config=flare.Config(port_mapping=limits),
        )
        await running.enter_async_context(host)

        def hear(event: Any) -> None:
            told = as_json(event)
            say(**told, told=[str(addr) for addr in host.addrs])

        host.on_event(hear)
        await running.enter_async_context(flare.PortMapper(host, mappers=only))
        if arguments.autonat:
            await running.enter_async_context(flare.AutoNat(host, serve=False))
        say(event="up", peer=host.peer_id, addrs=host.full_addrs)
        await stop.wait()
    say(event="closed")


async def dial(addrs: list[str]) -> None:
    for addr in addrs:
        async with flare.Host(listen=[]) as host:
            try:
                connection = await host.connect(addr, timeout=10)
                say(event="dialled", addr=addr, path=connection.path)
            except (flare.FlareError, TimeoutError) as error:
                say(event="dialled", addr=addr, path="", reason=str(error))
    say(event="done")


def main() -> None:
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("server").add_argument("ip")
    mapping = roles.add_parser("map")
    mapping.add_argument("--only")
    mapping.add_argument("--lifetime", type=float, default=7200.0)
    mapping.add_argument("--verify", type=float, default=300.0)
    mapping.add_argument("--autonat", action="store_true")
    mapping.add_argument("--listen", default="0.0.0.0")
    mapping.add_argument("relay", nargs="*")
    roles.add_parser("dial").add_argument("addr", nargs="+")
    arguments = parser.parse_args(sys.argv[1:])
    match arguments.role:
        case "server":
            asyncio.run(serve(arguments.ip))
        case "map":
            asyncio.run(map_ports(arguments))
        case "dial":
            asyncio.run(dial(arguments.addr))


if __name__ == "__main__":
    main()
