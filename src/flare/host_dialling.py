"""A host's dials: whom and where, one dial per peer at a time, through relays where an address says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .config import Config
from .errors import DialFailed, NetworkError, PeerMismatch, UsageError
from .protocols.relay import connect as relay_connect
from .transport import circuit, dial
from .transport.black_hole import BlackHoles
from .transport.connection import Connection
from .transport.loop_engine import LoopEngine
from .transport.quic import QuicTransport
from .transport.tcp import TcpTransport
from .wire.keys import Identity
from .wire.multiaddr import Multiaddr, is_public
from .wire.peer_id import PeerId

Address = str | Multiaddr


def whom_and_where(targets: Sequence[Address | PeerId]) -> tuple[PeerId | None, list[Multiaddr]]:
    """The one peer that `targets` name, if they do, and the addresses among them. UsageError."""
    peers: dict[PeerId, None] = {}
    addrs: list[Multiaddr] = []
    for target in targets:
        if isinstance(target, PeerId):
            peers[target] = None
            continue
        addr = Multiaddr(target)
        if addr.is_circuit and (addr.relay is None or addr.relay.peer_id is None or addr.peer_id is None):
            raise UsageError(f"{addr} is no whole circuit address: it needs /p2p/RELAY/p2p-circuit/p2p/PEER")
        if addr.peer_id is not None:
            peers[addr.peer_id] = None
        if addr.transport is not None or addr.host is not None:
            addrs.append(addr)
        elif addr.peer_id is None:
            raise UsageError(f"{addr} names neither a place to dial nor a peer")
    if not targets:
        raise UsageError("connect() needs an address or a peer id")
    if len(peers) > 1:
        raise UsageError(
            f"one call connects to one peer, and these are {len(peers)}: {', '.join(map(str, peers))}"
        )
    return next(iter(peers), None), addrs


@dataclass(slots=True)
class _Dial:
    """One that is under way, and how many wait for it."""

    task: asyncio.Task[Connection]
    addrs: frozenset[Multiaddr]
    waiting: int = 0


class Dialling:
    """Dials for one host. `on_connection` takes in each new connection, `direct_to` is an open direct one to
    a peer.
    """

    def __init__(
        self,
        tcp: TcpTransport,
        quic: QuicTransport,
        engine: LoopEngine,
        identity: Identity,
        config: Config,
        *,
        on_connection: Callable[[Connection], None],
        direct_to: Callable[[PeerId], Connection | None],
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        self._tcp = tcp
        self._quic = quic
        self._engine = engine
        self._identity = identity
        self._config = config
        self._black_holes = BlackHoles(is_public=is_public)
        self._on_connection = on_connection
        self._direct_to = direct_to
        self._under_way: dict[object, _Dial] = {}  # by peer; a dial to whoever answers has a key of its own
        self._tasks: set[asyncio.Task[Connection]] = set()
        self._closed = False

    async def connect(
        self, peer: PeerId | None, addrs: Sequence[Multiaddr], *, key: object = None
    ) -> Connection:
        """Dial, or join the dial to the same peer that is under way and then try what that one did not.

        DialFailed; PeerMismatch when all that answered were others. A dial ends when nobody waits for it
        any more.
        """
        if key is None:
            key = peer if peer is not None else object()
        under_way = self._under_way.get(key) or self._start(key, peer, addrs)
        try:
            return await self._wait(key, under_way)
        except (DialFailed, PeerMismatch):
            more = [addr for addr in addrs if addr not in under_way.addrs]
            if not more:
                raise
        return await self.connect(peer, more, key=key)

    async def relay(self, relay: Multiaddr) -> Connection:
        """A direct connection to a relay: circuits do not stack."""
        peer = relay.peer_id
        existing = self._direct_to(peer) if peer is not None else None
        # never joined with a dial that may go through a relay: that one could be waiting for this
        return existing or await self.connect(peer, [relay], key=("relay", peer))

    async def anew(self, addr: Multiaddr) -> Connection:
        """A further connection to `addr`, whatever is open to its peer, from the port that we listen on."""
        connection = await self._address(addr, addr.peer_id)
        self._on_connection(connection)
        return connection

    async def plainly(self, addr: Multiaddr, peer: PeerId) -> Connection:
        """For the hole puncher:

        no relay, whatever is open already, and not from the port that a punch will use.
        """
        connection = await self._transport(addr).dial(addr, expected_peer=peer, reuse=False)
        self._on_connection(connection)
        return connection

    async def close(self) -> None:
        """Give up on every dial; who waits for one gets NetworkError."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one dial

    def _start(self, key: object, peer: PeerId | None, addrs: Sequence[Multiaddr]) -> _Dial:
        if self._closed:
            raise UsageError("this host is closed")
        task = asyncio.get_running_loop().create_task(
            self._dial(peer, addrs), name=f"dial {peer or addrs[0]}"
        )
        self._tasks.add(task)
        made = self._under_way[key] = _Dial(task, frozenset(addrs))

        def ended(task: asyncio.Task[Connection]) -> None:
            self._tasks.discard(task)
            self._forget(key, made)

        task.add_done_callback(ended)
        return made

    async def _wait(self, key: object, under_way: _Dial) -> Connection:
        task = under_way.task
        under_way.waiting += 1
        try:
            # not shield: since Python 3.14 it reports what the task raises when its own waiter has gone
            await asyncio.wait((task,))
            if task.cancelled() and self._closed:
                raise NetworkError("the host closed before the dial came to an end")
            return task.result()
        finally:
            under_way.waiting -= 1
            if not under_way.waiting and not task.done():
                self._forget(key, under_way)  # at once: nobody may join a dial that ends by cancellation
                task.cancel()

    def _forget(self, key: object, gone: _Dial) -> None:
        if self._under_way.get(key) is gone:
            del self._under_way[key]

    async def _dial(self, peer: PeerId | None, addrs: Sequence[Multiaddr]) -> Connection:
        if not addrs:
            raise DialFailed(peer, ())
        try:
            connection = await dial.dial_any(
                addrs,
                lambda addr: self._address(addr, peer),
                target=peer or addrs[0],
                black_holes=self._black_holes,
            )
        except DialFailed as failed:
            errors = [error for _, error in failed.attempts]
            if errors and all(isinstance(error, PeerMismatch) for error in errors):
                raise errors[0] from failed
            raise
        self._on_connection(connection)
        return connection

    async def _address(self, addr: Multiaddr, peer: PeerId | None) -> Connection:
        if peer is not None and addr.peer_id not in (None, peer):
            raise PeerMismatch(peer, addr.peer_id)  # told by the peer itself, or by DNS
        if addr.is_circuit:
            return await self._circuit(addr)
        connection = await self._transport(addr).dial(addr, expected_peer=addr.peer_id or peer)
        if connection.remote_peer == self._identity.peer_id:
            connection.abort("this host dialled itself")
            raise NetworkError(f"{addr} is this host itself")
        return connection

    def _transport(self, addr: Multiaddr) -> TcpTransport | QuicTransport:
        return self._quic if addr.transport == "quic-v1" else self._tcp

    async def _circuit(self, addr: Multiaddr) -> Connection:
        relay, target = addr.relay, addr.peer_id
        if relay is None or target is None:
            raise UsageError(f"{addr} is no circuit address")
        if relay.peer_id == target:
            raise UsageError(f"{addr} leads through {target} to itself")
        through = await self.relay(relay)
        stream, limit = await relay_connect.connect(
            through, target, timeout=self._config.timeouts.relay_connect
        )
        return await circuit.secure(
            stream,
            self._identity,
            self._engine,
            initiator=True,
            expected_peer=target,
            limit=limit,
            config=self._config,
        )
