"""A relay inside a program of one's own, with limits of one's own, that tells what it does.

Its status page, /healthz and /metrics are on a free port of loopback (docs/monitoring.md).
"""

import asyncio

import flare
from flare.events import CircuitClosed, CircuitOpened, ReservationMade


async def main() -> None:
    limits = flare.RelayLimits(circuit_bytes=1 << 20, circuit_duration=60, max_reservations=1000)
    async with (
        flare.Host(listen=["/ip4/127.0.0.1/tcp/0"]) as host,
        flare.RelayServer(host, limits) as relay,
        flare.StatusServer(relay, "127.0.0.1:0") as status,
    ):
        print("relay at", *host.full_addrs)
        print("status at", status.url)
        async for event in host.events():
            match event:
                case ReservationMade(peer):
                    print("a place for", peer)
                case CircuitOpened(source, target):
                    print("joined", source, "and", target)
                case CircuitClosed(source, target, reason, sent, received):
                    print(f"{source} and {target} parted ({reason}) after {sent} + {received} bytes")


if __name__ == "__main__":
    asyncio.run(main())
