"""One attack as a process: `python -m tests.abuse.attacker NAME RELAY`; "go" on stdin starts it, "stop" ends
it.

What it did is one line of JSON: counts by name.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks import ATTACKS


async def main(name: str, relay: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    did: Counter[str] = Counter()
    print(json.dumps({"ready": name}), flush=True)
    await reader.readline()
    attack = loop.create_task(ATTACKS[name](Multiaddr(relay), did))
    print(json.dumps({}), flush=True)
    await reader.readline()
    if attack.done() and not attack.cancelled() and (error := attack.exception()) is not None:
        did[f"failed: {error!r}"] += 1
    attack.cancel()
    await asyncio.wait([attack])
    print(json.dumps(did), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
