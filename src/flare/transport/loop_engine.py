"""The data plane's engine on an asyncio loop: one reader, and a pass each time it is ready."""

from __future__ import annotations

import asyncio
from typing import Self
from weakref import WeakKeyDictionary

from flare._core.engine import Engine
from flare._core.link import Link, NoiseRecords
from flare.config import MuxLimits
from flare.transport.noise import RecordSecrets

_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopEngine] = WeakKeyDictionary()


class LoopEngine:
    """The engine of one loop, shared by all who live on it. `get` it, and `release` it when done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.engine = Engine()
        self._users = 0
        self.engine.on_wake = self._wake
        loop.add_reader(self.engine.fileno(), self.engine.run_pass)

    @classmethod
    def get(cls) -> LoopEngine:
        """The running loop's engine, made if there is none."""
        loop = asyncio.get_running_loop()
        found = _engines.get(loop)
        if found is None:
            found = _engines[loop] = cls(loop)
        found._users += 1
        return found

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What drives the links of this loop."""
        return (self.engine,)

    def release(self) -> None:
        """Give up one `get`; the last closes the engine and with it every link that is left."""
        self._users -= 1
        if self._users == 0:
            _engines.pop(self.loop, None)
            self.loop.remove_reader(self.engine.fileno())
            self.engine.close()

    def _wake(self) -> None:
        """Python gave the engine work: the loop runs a pass soon, without a detour through the kernel."""
        self.loop.call_soon(self.engine.run_pass)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def attach(
        self, fd: int, secrets: RecordSecrets, *, initiator: bool, leftover: bytes, limits: MuxLimits
    ) -> Link:
        """A link over the connected socket `fd`, which is the engine's from now on."""
        return self.engine.attach(
            fd, record=_records(secrets), initiator=initiator, leftover=leftover, limits=limits
        )

    def attach_memory(self, secrets: RecordSecrets, *, initiator: bool, limits: MuxLimits) -> Link:
        """A link without a socket: its bytes are fed to it and taken from it."""
        return self.engine.attach_memory(record=_records(secrets), initiator=initiator, limits=limits)


def _records(secrets: RecordSecrets) -> NoiseRecords:
    return NoiseRecords(secrets.send_key, secrets.recv_key, secrets.send_nonce, secrets.recv_nonce)
