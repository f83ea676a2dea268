"""Two hosts in one program: a server that shouts back, and a client: `python examples/echo.py`."""

import asyncio

import flare


async def main() -> None:
    async with flare.Host() as server, flare.Host() as client:

        @server.handle("/shout/1.0.0")
        async def shout(stream: flare.Stream) -> None:
            await stream.write((await stream.read()).upper())

        connection = await client.connect(*server.full_addrs)
        async with connection.open_stream("/shout/1.0.0") as stream:
            await stream.write(b"hello")
            print(await stream.read())  # b'HELLO'


asyncio.run(main())
