"""The data plane's engines on an asyncio loop.

One is driven by the loop: a reader, and a pass each time it is ready. With `threads` others make their passes
in threads of their own, and the loop only hears what concerns Python.
"""

from __future__ import annotations

import asyncio
from typing import Self
from weakref import WeakKeyDictionary

from flare._core.engine import Engine
from flare._core.link import Link, NoiseRecords, RecordKeys
from flare._core.records import TlsRecords
from flare.config import MuxLimits
from flare.errors import UsageError
from flare.transport.noise import RecordSecrets

_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, LoopEngine]] = WeakKeyDictionary()


class LoopEngine:
    """The engines of one loop, shared by all who want as many threads. `get` it, `release` it when done."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: int = 0) -> None:
        self.loop = loop
        self.engine = Engine()  # the loop's own
        self.threaded: tuple[Engine, ...] = ()
        self.threads = threads
        self._users = 0
        self.engine.on_wake = self._wake
        try:
            for number in range(threads):
                made = Engine(thread=f"flare-data-{number}", beside=self.engine)
                self.threaded = (*self.threaded, made)
        except BaseException:
            self._close()
            raise
        for engine in self.engines:
            loop.add_reader(engine.fileno(), engine.run_pass)

    @classmethod
    def get(cls, threads: int = 0) -> LoopEngine:
        """The running loop's engines with so many threads, made if there are none. UsageError below 0."""
        if threads < 0:
            raise UsageError(f"data threads: 0 or more, not {threads}")
        loop = asyncio.get_running_loop()
        of_loop = _engines.setdefault(loop, {})
        found = of_loop.get(threads)
        if found is None:
            found = of_loop[threads] = cls(loop, threads)
        found._users += 1
        return found

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What drives the links of this loop."""
        return (self.engine, *self.threaded)

    def release(self) -> None:
        """Give up one `get`; the last closes the engines and with them every link that is left."""
        self._users -= 1
        if self._users == 0:
            _engines[self.loop].pop(self.threads)
            for engine in self.engines:
                self.loop.remove_reader(engine.fileno())
            self._close()

    def _close(self) -> None:
        for engine in self.engines:
            engine.close()

    def _wake(self) -> None:
        """Python gave the engine work: the loop runs a pass soon, without a detour through the kernel."""
        self.loop.call_soon(self.engine.run_pass)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def attach(
        self,
        fd: int,
        secrets: RecordSecrets | TlsRecords,
        *,
        initiator: bool,
        leftover: bytes,
        limits: MuxLimits,
    ) -> Link:
        """A link over the connected socket `fd`, from now on an engine's: that of the least loaded thread."""
        engine = min(self.threaded, key=_load, default=self.engine)
        return engine.attach(
            fd, record=_records(secrets), initiator=initiator, leftover=leftover, limits=limits
        )

    def attach_memory(
        self, secrets: RecordSecrets | TlsRecords, *, initiator: bool, limits: MuxLimits
    ) -> Link:
        """A link without a socket: its bytes are fed to it and taken from it, so the loop drives it."""
        return self.engine.attach_memory(record=_records(secrets), initiator=initiator, limits=limits)


def _records(secrets: RecordSecrets | TlsRecords) -> RecordKeys:
    if isinstance(secrets, TlsRecords):
        return secrets
    return NoiseRecords(secrets.send_key, secrets.recv_key, secrets.send_nonce, secrets.recv_nonce)


def _load(engine: Engine) -> tuple[int, int]:
    return engine.load
