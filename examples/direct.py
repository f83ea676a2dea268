"""Reach a peer through a relay and go direct: `python examples/direct.py CIRCUIT-ADDRESS`."""

import asyncio
import sys

import flare


async def main(address: str) -> None:
    async with flare.Host() as host:
        connection = await host.connect(address)
        print("connected,", connection.path)
        try:
            direct = await connection.direct(timeout=10)
        except flare.PunchFailed as failure:
            print("still relayed:", failure.reason)
        else:
            print("direct,", direct.path)
            async with direct.open_stream("/echo/1.0.0") as stream:
                await stream.write(b"hello across two NATs")
                await stream.close_write()
                print(await stream.read())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
