"""Run by `make wheel` with the wheel's own interpreter: it is whole, typed, and two hosts talk."""

import asyncio
import importlib.metadata
from pathlib import Path

import flare
from flare._core import aead


async def echo() -> bytes:
    """One round trip between two hosts."""
    async with flare.Host(listen=["/ip4/127.0.0.1/tcp/0"]) as server, flare.Host(listen=[]) as client:

        @server.handle("/shout/1.0.0")
        async def shout(stream: flare.Stream) -> None:
            await stream.write((await stream.read()).upper())

        connection = await client.connect(*server.full_addrs)
        async with connection.open_stream("/shout/1.0.0") as stream:
            await stream.write(b"hello")
            return await stream.read()


package = Path(flare.__file__).parent
assert "site-packages" in str(package), f"this is not the installed wheel: {package}"
assert (package / "py.typed").exists(), "py.typed is missing"
modules = {path.name.split(".")[0] for path in package.glob("_core/*.so")}
stubs = {path.stem for path in package.glob("_core/*.pyi")}
assert modules, "no compiled module"
assert modules == stubs, f"modules and stubs differ: {modules ^ stubs}"
assert not list(package.glob("_core/*.c")), "generated C is in the wheel"
assert asyncio.run(asyncio.wait_for(echo(), 20)) == b"HELLO"
version = importlib.metadata.version("flare-p2p")
print(f"wheel {version}: {len(modules)} compiled modules, records by {aead.backend()}")
