"""Host: a peer of the libp2p network in one object.

It owns the sockets, the connections, and the places it keeps on relays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from ._core.engine import Engine
from .config import Config
from .errors import FlareError, TimedOut, UsageError
from .events import (
    AddressesChanged,
    AddressReachability,
    ConnectionLost,
    ConnectionOpened,
    Event,
    Listening,
    PeerIdentified,
    ReachabilityChanged,
)
from .host_dialling import Address, Dialling, whom_and_where
from .host_events import EventHub
from .host_network import HostNetwork
from .host_places import Places
from .host_punching import make_puncher
from .nat.observed import ObservedAddresses
from .nat.punch import HolePuncher
from .nat.reachability import Reachability, Reachable
from .peer_book import PeerBook
from .protocols import identify, ping
from .protocols.exchange import last_words, within
from .transport.admission import Admission
from .transport.ask import Question
from .transport.connection import Connection, StreamHandlers
from .transport.loop_engine import LoopEngine
from .transport.quic import QuicTransport
from .transport.stream import Stream
from .transport.tasks import Tasks
from .transport.tcp import TcpTransport
from .version import __version__
from .wire.keys import Identity
from .wire.messages import Identify
from .wire.multiaddr import Multiaddr
from .wire.multiaddr import is_public as addr_is_public
from .wire.peer_id import PeerId

logger = logging.getLogger("flare.host")

AGENT: Final = f"flare/{__version__}"
DEFAULT_LISTEN: Final = (
    "/ip4/0.0.0.0/udp/0/quic-v1",
    "/ip6/::/udp/0/quic-v1",
    "/ip4/0.0.0.0/tcp/0",
    "/ip6/::/tcp/0",
)

AsyncHandler = Callable[[Stream], Awaitable[None]]
Handler = TypeVar("Handler", bound=AsyncHandler)


class Host:
    """A peer: it listens, dials, keeps places on relays, and goes direct where it can.

    Use it as `async with Host(...) as host`.

    `listen` are multiaddrs to listen on (default: any port, QUIC and TCP, IPv4 and IPv6), `relays` relays to
    keep a reservation on, `announce` public addresses to tell others besides those that are found out,
    `punch=False` stays relayed. `is_public` decides which addresses are worth dialling from outside; tests
    and private networks hand in their own.
    """

    def __init__(
        self,
        *,
        identity: Identity | None = None,
        listen: Sequence[Address] | None = None,
        relays: Iterable[Address] = (),
        announce: Iterable[Address] = (),
        config: Config | None = None,
        punch: bool = True,
        agent: str = AGENT,
        is_public: Callable[[Multiaddr], bool] = addr_is_public,
    ) -> None:
        self.identity = identity or Identity.generate()
        self.peer_id: PeerId = self.identity.peer_id
        self.config = config or Config()
        self.agent = agent
        self.handlers = StreamHandlers()
        self.peers = PeerBook()
        self._listen_default = listen is None
        self._listen_on = [Multiaddr(addr) for addr in (DEFAULT_LISTEN if listen is None else listen)]
        self._relay_addrs = [_relay_address(addr) for addr in relays]
        self._announce = [Multiaddr(addr) for addr in announce]
        self._mapped: tuple[tuple[Multiaddr, ...], tuple[Multiaddr, ...]] = (), ()  # all, and those told
        self._punch = punch
        self.is_public = is_public
        self._events = EventHub()
        self.reachability = Reachability(on_change=self._reachable)  # Unknown until an AutoNat runs on it
        self._connections: dict[PeerId, list[Connection]] = {}
        self._tasks = Tasks()
        # their word on our address is believed at once
        self._trusted = {relay.peer_id for relay in self._relay_addrs if relay.peer_id is not None}
        self._closed_hooks: list[Callable[[Connection], None]] = []
        self._record_seq = time.time_ns() // 1_000_000  # grows over restarts too, as signed records must
        self._told: tuple[Multiaddr, ...] = ()
        self._addrs: tuple[tuple[Multiaddr, ...], tuple[Multiaddr, ...]] = (), ()  # with repetitions, without
        self._description = identify.Description(self.identity)
        self._questions: set[Question] = set()  # identify that was asked and not answered yet
        self._open = False
        self._started = False

    # -- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen and begin to reserve. NetworkError when an address given cannot be listened on."""
        if self._open:
            raise UsageError("this host is running already")
        if self._started:
            raise UsageError("this host was closed: make a new one, with the same identity if need be")
        self._started = True
        self._engine = LoopEngine.get(self.config.data_threads)
        self._tcp = TcpTransport(
            self._engine, self.identity, self.config, on_connection=self._adopt, tasks=self._tasks
        )
        self._quic = QuicTransport(self.identity, self.config, on_connection=self._adopt, tasks=self._tasks)
        self._dialling = Dialling(
            self._tcp,
            self._quic,
            self._engine,
            self.identity,
            self.config,
            on_connection=self._adopt,
            direct_to=self.direct_to,
            is_public=self.is_public,
        )
        self._observed = ObservedAddresses(
            listeners=lambda: self.listen_addrs,
            trusted=self._trusted.__contains__,
        )
        self.places = Places(
            self.identity,
            self._engine,
            self.config,
            self.handlers,
            dial=self._dialling.relay,
            trusted=self._trusted,
            on_event=self._events.emit,
            on_change=self._addrs_changed,
            on_connection=self._adopt,
            is_public=self.is_public,
        )
        self._puncher = self._make_puncher() if self._punch else None
        self._network = HostNetwork(self, look_again=self._look_again, hurry=self.places.hurry)
        self._open = True
        try:
            await self._start_listening()
        except BaseException:
            await self.close()
            raise
        self._register_own_protocols()
        for relay in self._relay_addrs:
            self.places.keep(relay)
        self._network.start()
        self._told = self.addrs
        self._events.emit(Listening(self.peer_id, self._told))

    def _make_puncher(self) -> HolePuncher:
        return make_puncher(
            self,
            tcp=self._tcp,
            quic=self._quic,
            dialling=self._dialling,
            observed=self._observed,
            places=self.places,
            trusted=self._trusted,
            events=self._events,
            own_addrs=self._punch_addrs,
            on_connection=self._adopt,
        )

    async def _start_listening(self) -> None:
        failures: list[OSError] = []
        for addr in self._listen_on:
            transport = self._quic if addr.transport == "quic-v1" else self._tcp
            try:
                await transport.listen(addr)
            except OSError as error:
                if not self._listen_default:
                    raise
                failures.append(error)  # no IPv6 here, or no IPv4
        if failures and len(failures) == len(self._listen_on):
            raise failures[0]

    def _register_own_protocols(self) -> None:
        own = self.handlers.add
        own(
            ping.PROTOCOL,
            ping.PingServer(idle=self.config.timeouts.ping_idle).serve,
            allow_limited=True,
            price=1,
        )
        own(identify.PROTOCOL, self._serve_identify, allow_limited=True, price=1, at_once=8)
        own(identify.PUSH_PROTOCOL, self._serve_identify_push, allow_limited=True, price=16, at_once=2)
        if self._puncher is not None:
            self._puncher.register(self.handlers)

    async def close(self) -> None:
        """Close everything: relays, connections, listeners. Idempotent."""
        if not self._open:
            return
        self._open = False
        for question in self._questions:
            question.cancel()
        self._questions.clear()
        await self._network.close()
        await self.places.close()
        if self._puncher is not None:
            await self._puncher.close()
        await self._dialling.close()
        # circuits first, while what carries them can still take their good-bye
        await asyncio.gather(
            *(connection.close() for connection in self.connections if connection.is_relayed)
        )
        await asyncio.gather(self._tcp.close(), self._quic.close())
        await self._tasks.cancel()
        self._engine.release()
        self._events.close()

    # -- what users see

    @property
    def engine(self) -> LoopEngine:
        """What drives this host's links. UsageError before `start`."""
        if not self._started:
            raise UsageError("this host is not running: use it as `async with Host(...) as host`")
        return self._engine

    @property
    def announced(self) -> tuple[Multiaddr, ...]:
        """The public addresses that it was told to tell others."""
        return tuple(self._announce)

    @property
    def mapped_addrs(self) -> tuple[Multiaddr, ...]:
        """Where a router forwards to us (PortMapper), if what it says holds."""
        return self._mapped[0]

    def map_addrs(self, mapped: Iterable[Multiaddr], told: Iterable[Multiaddr]) -> None:
        """Set `mapped_addrs`; of these, `told` are among `addrs` from now on."""
        self._mapped = tuple(mapped), tuple(told)
        self._addrs_changed()

    @property
    def listen_addrs(self) -> tuple[Multiaddr, ...]:
        """Where it listens; none before `start`."""
        return self._quic.listen_addrs + self._tcp.listen_addrs if self._started else ()

    def trusts(self, peer: PeerId) -> bool:
        """Whether `peer` is a relay of our own choice, whose word on our addresses is believed at once."""
        return peer in self._trusted

    @property
    def addrs(self) -> tuple[Multiaddr, ...]:
        """The addresses to tell others, best first: announced, mapped, listened on, through relays.

        None before `start`. What others see of us (`observed_addrs`) is not among them: behind a NAT nobody
        can dial it, and whoever tried would lose seconds before the hole punch.
        """
        if not self._started:
            return ()
        parts = (*self._announce, *self._mapped[1], *self.listen_addrs, *self.places.addrs)
        if parts != self._addrs[0]:  # which is asked for each connection
            self._addrs = parts, tuple(dict.fromkeys(parts))
        return self._addrs[1]

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What drives this host's links, shared with the other hosts of its loop: for their counters."""
        return self._engine.engines if self._started else ()

    @property
    def admissions(self) -> Mapping[str, Admission]:
        """Who watches over newcomers on each transport: for their counters."""
        return {"tcp": self._tcp.admission, "quic-v1": self._quic.admission} if self._started else {}

    @property
    def observed_addrs(self) -> tuple[Multiaddr, ...]:
        """Our addresses as others see them, where that can be believed: what a hole punch offers the peer."""
        if not self._started:
            return ()
        return self._observed.addrs("quic-v1") + self._observed.addrs("tcp")

    @property
    def full_addrs(self) -> tuple[Multiaddr, ...]:
        """`addrs`, each with /p2p and our peer id at its end: what somebody else can dial."""
        return tuple(addr if addr.is_circuit else addr.with_peer(self.peer_id) for addr in self.addrs)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All open connections."""
        return tuple(c for some in self._connections.values() for c in some)

    def connections_to(self, peer: PeerId) -> tuple[Connection, ...]:
        """The open connections to a peer, the best first: direct before relayed, unlimited before limited."""
        some = self._connections.get(peer, ())
        return tuple(sorted(some, key=lambda c: (c.is_relayed, c.is_limited, -c.opened_at)))

    @overload
    def handle(self, protocol: str, *, allow_limited: bool = ...) -> Callable[[Handler], Handler]: ...
    @overload
    def handle(self, protocol: str, handler: Handler, *, allow_limited: bool = ...) -> Handler: ...
    def handle(
        self, protocol: str, handler: AsyncHandler | None = None, *, allow_limited: bool = False
    ) -> Any:
        """Serve a protocol: `host.handle(name, handler)`, or `@host.handle(name)` on the handler.

        The handler gets each inbound stream in a task of its own; the stream is closed when it returns and
        reset when it raises. Over relayed connections with limits it is served only with `allow_limited`.
        UsageError when the protocol has a handler.
        """

        def add(function: Handler) -> Handler:
            self.handlers.add(protocol, function, allow_limited=allow_limited)
            return function

        return add if handler is None else add(handler)

    def unhandle(self, protocol: str) -> None:
        """Serve it no more; streams that are open go on."""
        self.handlers.remove(protocol)

    def events(self) -> AsyncIterator[Event]:
        """What happens from this call on, until the host closes."""
        return self._events.iterate()

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call `callback` with each event; returns how to stop that."""
        return self._events.subscribe(callback)

    def keep_quic_alive(self, every: float) -> None:
        """Have QUIC connections ping after `every` seconds of silence, not after QuicLimits.keepalive: a NAT
        before us forgets sooner."""
        self._quic.keepalive = every

    def on_connection_closed(self, callback: Callable[[Connection], None]) -> Callable[[], None]:
        """Call `callback` with each connection once it is gone; returns how to stop that."""
        self._closed_hooks.append(callback)

        def unsubscribe() -> None:
            if callback in self._closed_hooks:
                self._closed_hooks.remove(callback)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Report an event of a part that stands on this host (RelayServer)."""
        self._events.emit(event)

    async def connect(self, *targets: Address | PeerId, timeout: float | None = None) -> Connection:
        """A connection to a peer: one that is open, or by its addresses, or through our relays.

        `targets` are addresses of one peer, or its id alone (/p2p/... too) when it was met before or has a
        reservation on one of our relays. Dials that run at the same time to one peer are one. A relayed
        connection goes direct by itself: await `connection.direct()` for that. Raises DialFailed, which
        lists what was tried, PeerMismatch when only others answered, TimedOut after `timeout` seconds
        (default: twice Timeouts.dial).
        """
        if not self._open:
            raise UsageError("this host is not running: use it as `async with Host(...) as host`")
        peer, addrs = whom_and_where(targets)
        if peer == self.peer_id:
            raise UsageError(f"{peer} is this host itself")
        relays = (addr.relay for addr in addrs)
        self._trusted |= {
            relay.peer_id for relay in relays if relay is not None and relay.peer_id is not None
        }
        if peer is not None:
            open_already = self.connections_to(peer)
            if open_already and (not open_already[0].is_relayed or all(addr.is_circuit for addr in addrs)):
                return open_already[0]
            addrs = addrs or self._ways(peer)
        limit = timeout if timeout is not None else 2 * self.config.timeouts.dial
        try:
            async with asyncio.timeout(limit) as patience:
                return await self._dialling.connect(peer, addrs)
        except TimeoutError:
            if not patience.expired():
                raise
            raise TimedOut(f"dialling {peer or addrs[0]}", limit) from None

    async def dial(self, addr: Address) -> Connection:
        """A further connection, to just this address, whatever is open to its peer already.

        So a peer can be seen over each of its transports. NetworkError, TimedOut, PeerMismatch.
        """
        if not self._open:
            raise UsageError("this host is not running: use it as `async with Host(...) as host`")
        return await self._dialling.anew(Multiaddr(addr))

    def _ways(self, peer: PeerId) -> list[Multiaddr]:
        """Where to look for a peer that was named without an address: where it was met, and on our relays."""
        relays = self.places.relays
        own = [relay for relay in relays if relay.peer_id == peer]
        circuits = [relay / f"/p2p-circuit/p2p/{peer}" for relay in relays if relay.peer_id != peer]
        return [*own, *self.peers.get(peer).addrs, *circuits]

    def direct_to(self, peer: PeerId) -> Connection | None:
        """The best direct connection to a peer, if there is one."""
        return next((c for c in self.connections_to(peer) if not c.is_relayed), None)

    # -- connections come and go

    def _adopt(self, connection: Connection) -> None:
        """Take a new connection in: serve its streams, identify it, tell of it, and see it off."""
        if connection.closed:
            return
        peer = connection.remote_peer
        if not self._open or peer == self.peer_id:
            connection.abort("the host is closing" if not self._open else "this host dialled itself")
            return
        if connection in self._connections.setdefault(peer, []):
            return
        self._connections[peer].append(connection)
        connection.upgrader = self._puncher
        connection.serve(self.handlers)
        direct = self.direct_to(peer)
        for other in self._connections[peer]:
            if other.is_relayed:
                other.successor = direct
        self._events.emit(
            ConnectionOpened(
                peer, connection.remote_addr, connection.path, not connection.initiator, connection
            )
        )
        connection.add_close_callback(self._see_off)
        self._identify(connection)

    def _see_off(self, connection: Connection) -> None:
        peer = connection.remote_peer
        some = self._connections.get(peer, [])
        if connection in some:
            some.remove(connection)
        if not some:
            self._connections.pop(peer, None)
        self._observed.forget(connection)
        if self._puncher is not None:
            self._puncher.disconnected(connection)
        for hook in tuple(self._closed_hooks):
            hook(connection)
        reason = str(connection.close_reason or "")
        self._events.emit(ConnectionLost(peer, connection.remote_addr, connection.path, reason))

    def _identify(self, connection: Connection) -> None:
        def answered(answer: Identify | FlareError) -> None:
            self._questions.discard(question)
            if isinstance(answer, FlareError):
                self._not_identified(connection, answer)
                return
            self._learn(connection, answer)
            if self._puncher is not None and not connection.closed:
                self._puncher.connected(connection)

        try:
            question = identify.ask(connection, answered, timeout=self.config.timeouts.identify)
        except FlareError as error:
            self._not_identified(connection, error)
        else:
            self._questions.add(question)

    def _not_identified(self, connection: Connection, error: FlareError) -> None:
        peer = connection.remote_peer
        logger.info("identify with %s failed: %s", peer, error, extra={"peer": str(peer)})
        if self._puncher is not None and not connection.closed:
            self._puncher.connected(connection)

    def _learn(self, connection: Connection, message: Identify, *, pushed: bool = False) -> None:
        peer = connection.remote_peer
        learned = identify.learn(message, connection)
        known = self.peers.update(
            peer,
            addrs=learned.addrs,
            protocols=learned.protocols,
            agent=learned.agent,
            record=learned.record,
        )
        self._observed.record(connection, learned.observed)
        protocols = known.protocols if learned.protocols else ()
        told = learned.agent or "", protocols, learned.observed, pushed, connection.initiator
        self._events.emit(PeerIdentified(peer, *told))

    # -- what we tell

    def _serve_identify(self, stream: Stream) -> Awaitable[None] | None:
        told = self._described(stream.connection)
        return last_words(stream, told, self.config.timeouts.identify, "telling a peer who we are")

    def _described(self, connection: Connection) -> bytes:
        return self._description.encoded(
            connection,
            agent=self.agent,
            addrs=self.addrs,
            protocols=self.handlers.protocols,
            sequence=self._record_seq,
        )

    async def _serve_identify_push(self, stream: Stream) -> None:
        message = await identify.receive(stream, timeout=self.config.timeouts.identify)
        self._learn(stream.connection, message, pushed=True)

    def _punch_addrs(self) -> Sequence[Multiaddr]:
        """Our addresses that a peer may aim at when punching; loopback only when there is nothing else."""
        found = [*self._announce, *self._mapped[1], *self.observed_addrs]
        found += [*self._observed.guesses(), *self.listen_addrs]
        return [addr for addr in found if not addr.is_loopback] or found

    def _reachable(self, addr: Multiaddr | None, state: Reachable) -> None:
        self._events.emit(
            ReachabilityChanged(state.value) if addr is None else AddressReachability(addr, state.value)
        )

    def _look_again(self) -> None:
        self._tcp.look_again()
        self._addrs_changed()

    def _addrs_changed(self) -> None:
        addrs = self.addrs
        if not self._open or addrs == self._told:
            return
        self._told = addrs
        self._record_seq += 1
        self._events.emit(AddressesChanged(addrs))
        self.tell()

    def tell(self) -> None:
        """Tell everybody who is connected, and wants to know, what has changed of us (identify push)."""
        for connection in self.connections:
            if not connection.is_limited:
                self.spawn(self._push(connection), f"identify push to {connection.remote_peer}")

    async def _push(self, connection: Connection) -> None:
        if identify.PUSH_PROTOCOL not in self.peers.get(connection.remote_peer).protocols:
            return
        with contextlib.suppress(FlareError):
            async with (
                connection.open_stream(identify.PUSH_PROTOCOL) as stream,
                within(self.config.timeouts.identify, f"telling {connection.remote_peer} what changed"),
            ):
                await stream.write(self._described(connection))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something for as long as the host lives; a FlareError ends it quietly."""

        async def guarded() -> None:
            try:
                await work
            except FlareError as error:
                logger.info("%s: %s", name, error)

        self._tasks.start(guarded(), name)


def _relay_address(addr: Address) -> Multiaddr:
    relay = Multiaddr(addr)
    if relay.peer_id is None or relay.is_circuit:
        raise UsageError(f"a relay is given as ADDR/p2p/PEER, not {relay}")
    return relay
