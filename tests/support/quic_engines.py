"""Two QUIC engines that are joined by nothing but a list, on a clock of their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from flare.config import QuicLimits
from flare.transport.quic_aioquic import AioquicConnection, AioquicEngine
from flare.transport.quic_engine import Address
from flare.wire.keys import Identity

CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)
Path = Callable[[list[bytes]], list[bytes]]


class Sink:
    """Events: what came on each stream, and which streams ended. All of it counts as read."""

    def __init__(self) -> None:
        self.received: Counter[int] = Counter()
        self.data: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.pongs: list[int] = []
        self.ended: set[int] = set()
        self.is_established = False
        self.connection: AioquicConnection

    def established(self) -> None:
        self.is_established = True

    def stream_data(self, stream: int, data: bytes, fin: bool) -> None:
        self.received[stream] += len(data)
        self.data[stream] += data
        if fin:
            self.ended.add(stream)
        self.connection.consumed(stream, len(data), again=not fin)

    def pong(self, uid: int) -> None:
        self.pongs.append(uid)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class EnginePair:
    """A client and a server that run by turns, `wake` seconds apart. `path` is what happens on the way."""

    def __init__(
        self, *, wake: float = 0.010, limits: QuicLimits | None = None, path: Path | None = None
    ) -> None:
        limits = limits or QuicLimits()
        self.path: Path = path or (lambda datagrams: datagrams)
        self.address: Address = CLIENT  # where the server sees the client
        self.now, self.wake = 1000.0, wake
        self.here, self.there = Sink(), Sink()
        engine = AioquicEngine(Identity.generate(), limits)
        self.client = AioquicEngine(Identity.generate(), limits).connect(
            SERVER, lambda chain: None, self.here, self.now
        )
        self._flying = self.client.datagrams(self.now)
        initial = engine.initial(self._flying[0][0])
        assert initial is not None
        self.server = engine.accept(initial, None, lambda chain: None, self.there)
        self.here.connection, self.there.connection = self.client, self.server

    def handshake(self) -> None:
        for _ in range(20):
            self.turn()
        assert self.here.is_established
        assert self.there.is_established

    def turn(self) -> int:
        """What flies to the server, its answers back; how many datagrams the client sent then."""
        self._flying += self._run(self.client)
        sent = len(self._flying)
        self.now += self.wake / 2
        if there := self.path([data for data, _ in self._flying]):
            self.server.receive(there, self.address, self.now)
        back = self._run(self.server)
        self.now += self.wake / 2
        if here := self.path([data for data, _ in back]):
            self.client.receive(here, SERVER, self.now)
        self._flying = []
        return sent

    def _run(self, connection: AioquicConnection) -> list[tuple[bytes, Address]]:
        """What a session does when it wakes up."""
        due = connection.deadline()
        if due is not None and due <= self.now:
            connection.expire(self.now)
        return connection.datagrams(self.now)
