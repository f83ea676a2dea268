"""From a relayed connection to a direct one: who starts, what is tried, and what is said when nothing works.

    we accepted the relayed connection (B):  wait for identify -> plain dial, if the peer has public addresses
                                             -> soon DCUtR as its initiator too, up to three attempts
    we dialled it (A):                       wait for B's streams, answer each, connect as the client

There is one upgrade per peer at a time. It ends with a direct connection, however it came, or with a reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flare.config import Config
from flare.errors import FlareError, PunchFailed
from flare.events import PlainDialFailed, PunchGaveUp, PunchStarted, PunchSucceeded
from flare.nat.foresight import Foresight, Plan
from flare.nat.observed import Mapping
from flare.nat.punch_race import PunchRace
from flare.nat.quic_punch import PunchQuic, QuicPunch
from flare.nat.simultaneous import PunchTransport, TcpPunch
from flare.protocols import dcutr
from flare.protocols.dcutr import CLIENT, SERVER, initiator, responder
from flare.protocols.dcutr.addresses import TCP_ONLY, Targets, choose_targets, port_doubt
from flare.transport.dial import dial_any
from flare.wire.multiaddr import Multiaddr, is_public
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream

log = logging.getLogger("flare.nat.punch")

SPENT: Final = 4  # times PunchConfig.attempts: what a peer may have us try on one relayed connection
OWN_AGENT: Final = "flare/"
PunchEvent = PunchStarted | PlainDialFailed | PunchSucceeded | PunchGaveUp


class Handlers(Protocol):
    """Where protocols are registered."""

    def add(
        self, protocol: str, handler: Callable[[Stream], Awaitable[None]], *, allow_limited: bool = False
    ) -> None: ...


class _Upgrade:
    """One peer's way from relayed to direct."""

    def __init__(self, relayed: Connection, clock_ns: Callable[[], int]) -> None:
        self.relayed = relayed
        self.peer: PeerId = relayed.remote_peer
        self.started_ns = clock_ns()
        self.outcome: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(_retrieved)
        self.attempts = 0
        self.errors: list[str] = []
        self.tried: dict[Multiaddr, None] = {}  # the peer's addresses that attempts aimed at, in their order
        self.plan = Plan()  # what both know of their NATs
        self.doubt = ""  # what the peer's addresses say of its NAT's mapping
        self.task: asyncio.Task[None] | None = None  # B's whole work
        self.punching: asyncio.Task[Connection] | None = None  # A's current attempt
        self.waiting: asyncio.TimerHandle | None = None  # A's patience for another one
        self.next: Connection | None = None  # a newer relayed connection, which waits for this to end
        self.lost = False  # the relayed connection is gone
        self.again = False  # the direct connection of an earlier upgrade was lost before the relayed one

    @property
    def running(self) -> bool:
        """Something is under way that may still end well, even without the relayed connection."""
        return self.punching is not None or (self.task is not None and not self.task.done())

    @property
    def failed(self) -> bool:
        """It ended without a direct connection."""
        return self.outcome.done() and self.outcome.exception() is not None

    @property
    def fell_through(self) -> bool:
        """It led to a direct connection, and that is gone."""
        return self.outcome.done() and self.outcome.exception() is None and self.outcome.result().closed


class HolePuncher:
    """Takes relayed connections to direct ones.

    `own_addrs` are ours that a peer may aim at, `peer_addrs` those that identify told of a peer, `agent` what
    it runs; `dial` dials one address plainly, best not from the listening port, since a SYN that failed there
    stays in the NATs' way; `direct_to` is an open direct connection to a peer, if any; `on_connection` takes
    in each punched one. `foresight` is what can be told of the ports that our NAT will give.
    """

    def __init__(
        self,
        *,
        tcp: PunchTransport | None = None,
        quic: PunchQuic | None = None,
        own_addrs: Callable[[], Sequence[Multiaddr]],
        peer_addrs: Callable[[PeerId], Sequence[Multiaddr]] = lambda peer: (),
        agent: Callable[[PeerId], str] = lambda peer: "",
        mapping: Callable[[], Mapping] = lambda: Mapping("unknown", ""),
        foresight: Foresight | None = None,
        dial: Callable[[Multiaddr, PeerId], Awaitable[Connection]] | None = None,
        direct_to: Callable[[PeerId], Connection | None] = lambda peer: None,
        on_connection: Callable[[Connection], None] = lambda connection: None,
        on_event: Callable[[PunchEvent], None] = lambda event: None,
        config: Config | None = None,
        is_public: Callable[[Multiaddr], bool] = is_public,
        punch: Callable[..., Awaitable[Connection]] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._config = config or Config()
        self._own_punch: PunchRace | None = None
        if punch is None:
            assert tcp is not None, "a HolePuncher needs a transport, or a punch of yours"
            tcp_punch = TcpPunch(
                tcp,
                timeouts=self._config.timeouts,
                max_active=self._config.punch.max_active,
                left_over=on_connection,
                clock_ns=clock_ns,
            )
            quic_punch = (
                QuicPunch(
                    quic,
                    timeouts=self._config.timeouts,
                    limits=self._config.punch,
                    left_over=on_connection,
                    clock_ns=clock_ns,
                )
                if quic is not None
                else None
            )
            knock = quic_punch.knock if quic_punch is not None else None
            punch = self._own_punch = PunchRace(tcp_punch, quic_punch, knock=knock, left_over=on_connection)
        self._raw_punch = punch
        self._own_addrs = own_addrs
        self._peer_addrs = peer_addrs
        self._agent = agent
        self._mapping = mapping
        self._foresight = foresight
        self._dial = dial
        self._direct_to = direct_to
        self._on_connection = on_connection
        self._on_event = on_event
        self._is_public = is_public
        self._clock_ns = clock_ns
        self._upgrades: dict[PeerId, _Upgrade] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    def register(self, handlers: Handlers) -> None:
        """Serve /libp2p/dcutr, over limited connections too."""
        handlers.add(dcutr.PROTOCOL, self.serve, allow_limited=True)

    # -- what the host tells

    def connected(self, connection: Connection) -> None:
        """A connection is identified: a relayed one that we accepted starts an upgrade, a direct ends it."""
        peer = connection.remote_peer
        if not connection.is_relayed:
            if self._foresight is not None:
                self._foresight.met(connection)
            upgrade = self._upgrades.get(peer)
            if upgrade is not None:
                if upgrade.failed and not upgrade.lost:
                    later = self._upgrades[peer] = _Upgrade(upgrade.relayed, self._clock_ns)
                    later.attempts = upgrade.attempts
                    upgrade = later
                self._succeed(upgrade, connection)
            return
        upgrade = self._upgrade(connection)
        if upgrade.relayed is not connection:
            upgrade.next = connection
        if connection.initiator and self._foresight is not None:
            self._foresight.refresh()
        self._begin(upgrade)

    def disconnected(self, connection: Connection) -> None:
        """A connection is gone; an upgrade that rode on it ends with what is under way now."""
        upgrade = self._upgrades.get(connection.remote_peer)
        if upgrade is not None and upgrade.relayed is connection:
            upgrade.lost = True
            if not upgrade.running:
                self._fail(upgrade, "the relayed connection closed before there was a direct one")
                self._forget(upgrade)

    async def direct(self, connection: Connection, timeout: float) -> Connection:
        """The direct connection to the peer of `connection`, or PunchFailed with the reason."""
        if not connection.is_relayed:
            return connection
        existing = self._direct_to(connection.remote_peer)
        if existing is not None:
            return existing
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            upgrade = self._upgrade(connection)
            if upgrade.again:
                self._begin(upgrade)
            await asyncio.wait((upgrade.outcome,), timeout=end - loop.time())
            if not upgrade.outcome.done():
                raise PunchFailed(self._so_far(upgrade, timeout), attempts=upgrade.attempts)
            if not upgrade.failed or self._upgrades.get(upgrade.peer, upgrade) is upgrade:
                return upgrade.outcome.result()
            # that was of an earlier connection: ours has one of its own now

    async def close(self) -> None:
        """Give up on everything."""
        self._closed = True
        tasks: list[asyncio.Task[Any]] = [*self._retiring]
        for upgrade in self._upgrades.values():
            tasks += [task for task in (upgrade.task, upgrade.punching) if task is not None]
        for upgrade in list(self._upgrades.values()):
            self._fail(upgrade, "the host is closing")
        self._upgrades.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._own_punch is not None:
            self._own_punch.close()
        if self._foresight is not None:
            await self._foresight.close()

    # -- B

    def _begin(self, upgrade: _Upgrade) -> None:
        """Start it where that is for us to do: who accepted the relayed connection initiates."""
        if not upgrade.relayed.initiator and upgrade.task is None and not upgrade.outcome.done():
            upgrade.task = asyncio.get_running_loop().create_task(
                self._initiate(upgrade), name=f"punch {upgrade.peer}"
            )

    async def _initiate(self, upgrade: _Upgrade) -> None:
        """We accepted the relayed connection: dial the peer if it seems public, and soon agree on a punch."""
        try:
            connection = self._direct_to(upgrade.peer) or await self._race(upgrade)
        except PunchFailed as error:
            self._fail(upgrade, "; ".join([*upgrade.errors, error.reason]))
        except Exception as error:  # a task's edge
            log.exception(
                "the upgrade of the connection to %s broke", upgrade.peer, extra={"peer": str(upgrade.peer)}
            )
            self._fail(upgrade, f"an error in flare: {error!r}")
        else:
            self._succeed(upgrade, connection)

    async def _race(self, upgrade: _Upgrade) -> Connection:
        """The plain dial and, after its head start, the punch: what looks public is often a NAT's."""
        loop = asyncio.get_running_loop()
        reversing = loop.create_task(self._reverse(upgrade), name=f"dial {upgrade.peer}")
        punching: asyncio.Task[initiator.Upgraded] | None = None
        try:
            await asyncio.wait((reversing,), timeout=self._config.punch.head_start)
            if reversing.done() and (reversed_connection := reversing.result()) is not None:
                return reversed_connection
            self._on_event(PunchStarted(upgrade.peer, "initiator"))
            punching = loop.create_task(self._agree(upgrade), name=f"punch with {upgrade.peer}")
            await asyncio.wait((reversing, punching), return_when=asyncio.FIRST_COMPLETED)
            if not punching.done() and (reversed_connection := reversing.result()) is not None:
                return reversed_connection
            try:
                return (await punching).connection
            except PunchFailed:
                reversed_connection = await reversing
                if reversed_connection is None:
                    raise
                return reversed_connection
        finally:
            tasks = [task for task in (reversing, punching) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _agree(self, upgrade: _Upgrade) -> initiator.Upgraded:
        # Others may have the roles reversed (go-libp2p before 0.41 does): meet them at last.
        own_kind = self._agent(upgrade.peer).startswith(OWN_AGENT)
        upgrade.plan = Plan(self._foresight, tells=own_kind)
        return await initiator.upgrade(
            upgrade.relayed,
            addrs=self._offered,
            choose=partial(self._choose, upgrade.peer),
            punch=partial(self._attempt, upgrade),
            attempts=self._config.punch.attempts,
            last_role=SERVER if own_kind else CLIENT,
            timeout=self._config.timeouts.dcutr_message,
            clock_ns=self._clock_ns,
            plan=upgrade.plan,
        )

    async def _reverse(self, upgrade: _Upgrade) -> Connection | None:
        """A plain dial of a peer that says it is public; None without such an address or an answer."""
        public = [
            addr
            for addr in self._peer_addrs(upgrade.peer)
            if addr.transport in self._transports and not addr.is_circuit and self._is_public(addr)
        ][: self._config.punch.max_targets]
        dial = self._dial
        if not public or dial is None:
            return None
        try:
            async with asyncio.timeout(self._config.punch.reversal):
                return await dial_any(public, lambda addr: dial(addr, upgrade.peer), target=upgrade.peer)
        except TimeoutError:
            reason = f"a plain dial had no answer within {self._config.punch.reversal:g} s"
        except FlareError as error:
            reason = f"a plain dial failed: {error}"
        upgrade.errors.append(reason)
        self._on_event(PlainDialFailed(upgrade.peer, reason))
        return None

    async def _attempt(
        self, upgrade: _Upgrade, addrs: Sequence[Multiaddr], deadline_ns: int, *, role: str, rtt_ns: int
    ) -> Connection:
        """One punch; a direct connection that came up otherwise is as good. Raises only PunchFailed."""
        upgrade.attempts += 1
        upgrade.tried.update(dict.fromkeys(addrs))
        own_ips = frozenset(str(addr.ip) for addr in self._own_addrs())
        search = upgrade.plan.search(addrs, is_public=self._is_public, own_ips=own_ips)
        more = {"search": search} if search is not None else {}
        try:
            connection = await self._raw_punch(
                upgrade.peer, addrs, deadline_ns, role=role, rtt_ns=rtt_ns, **more
            )
        except FlareError as error:
            existing = self._direct_to(upgrade.peer)
            if existing is not None:
                return existing
            raise error if isinstance(error, PunchFailed) else PunchFailed(str(error)) from error
        self._on_connection(connection)
        return connection

    # -- A

    async def serve(self, stream: Stream) -> None:
        """One /libp2p/dcutr stream of the peer that accepted our relayed connection."""
        peer = stream.connection.remote_peer
        known = self._upgrades.get(peer)
        # a peer that goes on and on has us knock at doors of its choice; an attempt that failed counts twice
        used_up = (
            known is not None
            and known.relayed is stream.connection
            and known.attempts + len(known.errors) >= SPENT * self._config.punch.attempts
        )
        if (
            self._closed
            or used_up
            or (peer not in self._upgrades and len(self._active()) >= self._config.punch.max_active)
        ):
            stream.reset()
            return
        with ExitStack() as expecting:
            await self._serve(stream, expecting)

    async def _serve(self, stream: Stream, expecting: ExitStack) -> None:
        """`expecting` holds what makes the peer's early sockets wait for our punch."""
        connection = stream.connection
        peer = connection.remote_peer
        plan = Plan(self._foresight, initiating=False)

        def prepare(targets: Targets) -> None:
            if self._own_punch is not None:
                expecting.enter_context(self._own_punch.expect(peer, targets.addrs))

        try:
            agreed = await responder.respond(
                stream,
                addrs=self._offered,
                choose=partial(self._choose, peer),
                prepare=prepare,
                hint=plan.answer,
                timeout=self._config.timeouts.dcutr_message,
                clock_ns=self._clock_ns,
            )
        except FlareError as error:
            stream.reset()
            log.debug(
                "a hole punch that %s began came to nothing: %s", peer, error, extra={"peer": str(peer)}
            )
            known = self._upgrades.get(peer)
            if known is not None:
                known.errors.append(str(error))
            return
        upgrade = self._upgrade(connection)
        if not upgrade.attempts:
            self._on_event(PunchStarted(peer, "responder"))
        upgrade.plan = plan
        await self._answer(upgrade, agreed)
        await stream.close()

    async def _answer(self, upgrade: _Upgrade, agreed: responder.Agreed) -> None:
        """Connect now. An earlier attempt that still runs is over: the peer has given it up."""
        if upgrade.punching is not None:
            upgrade.punching.cancel()
        if upgrade.waiting is not None:
            upgrade.waiting.cancel()
        loop = asyncio.get_running_loop()
        punching = upgrade.punching = loop.create_task(
            self._punch_now(upgrade, agreed), name=f"punch {upgrade.peer}"
        )
        await asyncio.wait([punching])
        if punching.cancelled():
            return
        upgrade.punching = None
        error = punching.exception()
        if error is None:
            self._succeed(upgrade, punching.result())
        elif isinstance(error, FlareError):
            upgrade.errors.append(f"attempt {upgrade.attempts}: {error}")
            no_more = upgrade.attempts >= self._config.punch.attempts
            if upgrade.lost or no_more or not upgrade.plan.worth(upgrade.attempts + 1):
                self._fail(upgrade, "; ".join(upgrade.errors))
            else:
                if self._foresight is not None:
                    self._foresight.refresh()
                patience = self._config.timeouts.dcutr_message + self._config.timeouts.punch
                upgrade.waiting = loop.call_later(patience, self._lost_patience, upgrade)
        else:
            raise error

    async def _punch_now(self, upgrade: _Upgrade, agreed: responder.Agreed) -> Connection:
        if not agreed.targets.addrs:
            upgrade.attempts += 1
            raise PunchFailed(agreed.targets.sentence)
        return await self._attempt(
            upgrade, agreed.targets.addrs, agreed.deadline_ns, role=CLIENT, rtt_ns=agreed.rtt_ns
        )

    def _lost_patience(self, upgrade: _Upgrade) -> None:
        self._fail(upgrade, "; ".join([*upgrade.errors, "the peer made no further attempt"]))

    # -- both

    def _upgrade(self, relayed: Connection) -> _Upgrade:
        """The peer's upgrade: the one under way, or a new one on this relayed connection."""
        upgrade = self._upgrades.get(relayed.remote_peer)
        again = upgrade is not None and upgrade.relayed is relayed and upgrade.fell_through
        if upgrade is None or again or (upgrade.outcome.done() and upgrade.relayed is not relayed):
            full = len(self._active()) >= self._config.punch.max_active
            upgrade = self._upgrades[relayed.remote_peer] = _Upgrade(relayed, self._clock_ns)
            upgrade.again = again
            if full:
                self._fail(
                    upgrade,
                    f"{self._config.punch.max_active} hole punches are under way already (max_active)",
                )
        return upgrade

    def _active(self) -> list[_Upgrade]:
        return [u for u in self._upgrades.values() if not u.outcome.done() and (u.task or u.attempts)]

    def _forget(self, upgrade: _Upgrade) -> None:
        if upgrade.lost and self._upgrades.get(upgrade.peer) is upgrade:
            del self._upgrades[upgrade.peer]

    def _offered(self) -> Sequence[Multiaddr]:
        """Ours that go into a CONNECT: those that our NAT will give next, then those that we know of.

        In that order, since they are tried in it: two NATs that count meet, port by port, as long as neither
        gives a port to anything else first.
        """
        return [*(self._foresight.addrs if self._foresight is not None else ()), *self._own_addrs()]

    @property
    def _transports(self) -> frozenset[str]:
        """What a punch can use: the transports that we listen on, for it leaves from those ports."""
        mine = {addr.transport for addr in self._own_addrs()}
        able = self._own_punch.transports if self._own_punch is not None else TCP_ONLY
        return frozenset(able & mine) or TCP_ONLY

    def _choose(self, peer: PeerId, theirs: Sequence[Multiaddr]) -> Targets:
        upgrade = self._upgrades.get(peer)
        if upgrade is not None:
            upgrade.doubt = port_doubt(theirs, is_public=self._is_public)
        return choose_targets(
            theirs,
            self._own_addrs(),
            peer,
            is_public=self._is_public,
            limit=self._config.punch.max_targets,
            transports=self._transports,
        )

    def _succeed(self, upgrade: _Upgrade, direct: Connection) -> None:
        if upgrade.outcome.done():
            self._forget(upgrade)
            return
        upgrade.outcome.set_result(direct)
        if upgrade.waiting is not None:
            upgrade.waiting.cancel()
        seconds = (self._clock_ns() - upgrade.started_ns) / 1e9
        self._on_event(
            PunchSucceeded(upgrade.peer, direct.path, upgrade.attempts, seconds, tuple(upgrade.tried))
        )
        self._forget(upgrade)
        if not self._closed:
            task = asyncio.get_running_loop().create_task(
                self._retire(upgrade.relayed, direct), name=f"retire {upgrade.peer}"
            )
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retire(self, relayed: Connection, direct: Connection) -> None:
        """Close the relayed connection after its grace; new streams go direct (DCUtR.md, step 6)."""
        await asyncio.sleep(self._config.punch.grace)
        if not direct.closed:
            await relayed.close()

    def _fail(self, upgrade: _Upgrade, reason: str) -> None:
        if upgrade.outcome.done():
            self._forget(upgrade)
            return
        if upgrade.plan.hopeless:
            reason = f"{reason}; {upgrade.plan.hopeless}"
        mapping = self._mapping()
        if mapping.kind in ("endpoint-dependent", "doubtful"):
            reason = f"{reason}; {mapping.sentence}"
        if upgrade.doubt:
            reason = f"{reason}; {upgrade.doubt}"
        if upgrade.waiting is not None:
            upgrade.waiting.cancel()
        upgrade.outcome.set_exception(PunchFailed(reason, attempts=upgrade.attempts))
        seconds = (self._clock_ns() - upgrade.started_ns) / 1e9
        self._on_event(PunchGaveUp(upgrade.peer, reason, upgrade.attempts, seconds, tuple(upgrade.tried)))
        self._forget(upgrade)
        if upgrade.lost and not self._closed and upgrade.next is not None and not upgrade.next.closed:
            self.connected(upgrade.next)  # the peer came back meanwhile

    def _so_far(self, upgrade: _Upgrade, timeout: float) -> str:
        """Why there is no direct connection yet."""
        if upgrade.errors:
            return f"no direct connection within {timeout:g} s: " + "; ".join(upgrade.errors)
        if upgrade.attempts or upgrade.task is not None:
            return f"no direct connection within {timeout:g} s: attempt {max(1, upgrade.attempts)} still runs"
        return f"the peer, which accepted the relayed connection, began no hole punch within {timeout:g} s"


def _retrieved(outcome: asyncio.Future[Connection]) -> None:
    """An outcome that nobody asks for is no error."""
    if not outcome.cancelled():
        outcome.exception()
