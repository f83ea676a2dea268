"""Acts on what relay_choice decides: asks sources, probes, asks for places, measures what is held.

One task decides, and each thing that takes time has one of its own. What the host does comes in as callables,
so that all of this runs on virtual time too (benchmarks/herd.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from flare.config import AutoRelayConfig
from flare.errors import (
    FlareError,
    PermissionDenied,
    ProtocolNotSupported,
    ProtocolViolation,
    RelayConnectionFailed,
    RelayedMessageMalformed,
    RelayRefused,
    ReservationRefused,
    ResourceLimitExceeded,
)
from flare.events import RelayChosen, RelayDropped
from flare.nat.relay_candidate import Candidate, Leaving, Trouble
from flare.nat.relay_choice import RelayChoice
from flare.nat.relay_sources import RelaySource
from flare.transport.deadline import within
from flare.transport.tasks import Tasks

if TYPE_CHECKING:
    from flare.nat.relays import Dial, OnTrouble
    from flare.transport.connection import Connection
    from flare.wire.messages import Limit
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

log = logging.getLogger("flare.nat.relays")

_OUTCOMES: Final = {
    RelayConnectionFailed.status: "connection failed",
    RelayedMessageMalformed.status: "malformed message",
    ReservationRefused.status: "reservation refused",
    PermissionDenied.status: "permission denied",
    ResourceLimitExceeded.status: "resource limit exceeded",
}

RELEASES: Final = (1.0, 30.0, 300.0)  # seconds before each try to close what a probe has opened


class RelayHost(Protocol):
    """What a host does for us."""

    async def connect(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> Connection:
        """A direct connection to a relay: one that is open, or by its addresses. FlareError."""
        ...

    def connection(self, peer: PeerId) -> Connection | None:
        """The direct connection to a relay, if there is one."""
        ...

    async def release(self, connection: Connection) -> bool:
        """Close a connection that `connect` made, unless somebody else uses it; whether that is done with."""
        ...

    def keep(self, relay: Multiaddr, dial: Dial, on_trouble: OnTrouble, *, trusted: bool) -> bool:
        """Keep a place on a relay from now on; that there is one is told to `accepted`.

        False: somebody else keeps one there.
        """
        ...

    async def leave(self, relay: Multiaddr, *, hang_up: bool) -> None:
        """Keep none there any more; with `hang_up`, close its connection if nobody else uses it."""
        ...

    def emit(self, event: RelayChosen | RelayDropped) -> None:
        """Tell what happened."""
        ...


@dataclass(slots=True)
class KeepingCounters:
    """What it did since it was made. Outcomes are by "new" or "refresh", and in go-libp2p's words."""

    opened: int = 0  # places that were held
    closed: int = 0  # ... and no longer are
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    relays: int = 0  # candidates that turned out to relay
    no_relays: int = 0  # ... or not


class RelayKeeping:
    """Finds and keeps relays from `start` to `stop`."""

    def __init__(
        self,
        host: RelayHost,
        sources: Sequence[RelaySource],
        config: AutoRelayConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.config = config or AutoRelayConfig()
        self.choice = RelayChoice(self.config, uniform=uniform)
        self.counters = KeepingCounters()
        self._host = host
        self._sources = tuple(sources)
        self._clock = clock
        self._uniform = uniform
        self._tasks = Tasks()
        self._kept: dict[PeerId, Multiaddr] = {}  # where places are asked for and kept
        self._chosen: set[PeerId] = set()  # of those, who was told to hold a place
        self._watched: dict[PeerId, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether relays are looked for and kept."""
        return self._main is not None

    def start(self) -> None:
        """Look for relays and keep places on them. Again changes nothing."""
        if self._main is None:
            self._main = self._tasks.start(self._run(), "auto relay")

    async def stop(self, reason: str, *, hang_up: bool) -> None:
        """Want no relay any more; with `hang_up` their connections are closed too."""
        self._main = None
        await self._tasks.cancel()
        self._watched.clear()
        self.counters.closed += len(self.choice.held())
        self.choice.stopped(self._clock())
        await asyncio.gather(*(self._leave(peer, reason, hang_up=hang_up) for peer in list(self._kept)))

    # -- what happened

    def offer(self, peer: PeerId, addrs: Sequence[Multiaddr], source: str, *, trusted: bool) -> None:
        """A relay that was met."""
        if self.choice.offer(peer, addrs, source, trusted=trusted, now=self._clock()):
            self._news.set()

    def accepted(self, peer: PeerId, limit: Limit | None) -> None:
        """A relay keeps a place for us, or has refreshed it."""
        if peer not in self._kept:
            return
        fresh = self.choice.accepted(peer, limit, self._clock())
        self.counters.outcomes["new" if fresh else "refresh", "success"] += 1
        if not fresh:
            return
        self.counters.opened += 1
        self.counters.relays += 1
        self._watched[peer] = self._tasks.start(self._watch(peer), f"latency of relay {peer}")

    def drains(self, peer: PeerId) -> None:
        """A relay says that it relays no longer."""
        self._leaving(peer, Leaving.DRAINS)

    def hurry(self) -> None:
        """Our own network has changed, or was away."""
        self.choice.hurry(self._clock())
        self._news.set()

    def _leaving(self, peer: PeerId, why: Leaving) -> None:
        self.choice.leave(peer, why, self._clock())
        self._news.set()

    def _trouble(self, peer: PeerId, error: FlareError, held: bool) -> None:
        if held:
            self.counters.outcomes["refresh", outcome_of(error)] += 1
            if isinstance(error, RelayRefused):
                self._leaving(peer, Leaving.REFUSES)
            return
        self._unwatch(peer)
        if self.choice.failed(peer, trouble_of(error), self._clock()):
            self.counters.closed += 1
            log.info("the place on relay %s is lost: %s", peer, error)
        else:
            self.counters.outcomes["new", outcome_of(error)] += 1
            self.counters.no_relays += isinstance(error, ProtocolNotSupported)
        self._news.set()

    # -- what is done

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = self._clock()
            decision = self.choice.decide(now)
            for drop in decision.drop:
                self.counters.closed += drop.held
                self._tasks.start(self._leave(drop.peer, drop.reason), f"leaving relay {drop.peer}")
            for peer in decision.probe:
                if (candidate := self.choice.get(peer)) is not None:
                    self._tasks.start(self._probe(candidate), f"probing relay {peer}")
            for peer in decision.attempt:
                if (candidate := self.choice.get(peer)) is not None:
                    self._attempt(candidate)
            if decision.ask:
                self._tasks.start(self._ask(), "asking for relays")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decision.wake - now):
                    await self._news.wait()

    async def _probe(self, candidate: Candidate) -> None:
        """Learn its latency, and leave no connection that was not there."""
        peer, rtt = candidate.peer, None
        opened: Connection | None = None
        try:
            had = self._host.connection(peer) is not None
            try:
                async with within(self.config.probe_timeout, f"probing relay {peer}"):
                    connection = await self._host.connect(peer, candidate.addrs)
                    opened = None if had else connection
                    rtt = await connection.ping(self.config.probe_timeout)
            except (FlareError, OSError) as error:
                log.debug("probing relay %s: %s", peer, error)
            self.choice.probed(peer, rtt, self._clock())
            self._news.set()
            for pause in RELEASES if opened is not None else ():
                # if it is the one, it will be asked for a place at once: then its connection is wanted
                await asyncio.sleep(pause)
                if peer in self._kept or (opened is not None and await self._host.release(opened)):
                    return
        except asyncio.CancelledError:
            if opened is not None and peer not in self._kept:
                await self._host.release(opened)
            raise

    def _attempt(self, candidate: Candidate) -> None:
        """Have a place asked for, and kept from then on."""
        peer = candidate.peer
        if peer in self._kept:
            return
        addr = self._kept[peer] = candidate.addrs[0].without_peer().with_peer(peer)

        async def dial(_: Multiaddr) -> Connection:
            return await self._host.connect(peer, candidate.addrs)

        def trouble(error: FlareError, held: bool) -> None:
            self._trouble(peer, error, held)

        if not self._host.keep(addr, dial, trouble, trusted=candidate.trusted):
            del self._kept[peer]
            self.choice.failed(peer, Trouble.USELESS, self._clock())
            self._news.set()

    async def _leave(self, peer: PeerId, reason: str, *, hang_up: bool = True) -> None:
        self._unwatch(peer)
        addr = self._kept.pop(peer, None)
        if addr is None:
            return
        chosen = peer in self._chosen
        self._chosen.discard(peer)
        await self._host.leave(addr, hang_up=hang_up)
        if chosen:
            self._host.emit(RelayDropped(peer, reason))

    def _unwatch(self, peer: PeerId) -> None:
        task = self._watched.pop(peer, None)
        if task is not None:
            task.cancel()

    async def _watch(self, peer: PeerId) -> None:
        """Measure the latency of a relay that is held; end the connection of one that is dead."""
        config = self.config
        unanswered = 0
        while (connection := self._host.connection(peer)) is not None:
            try:
                self.choice.measured(peer, await connection.ping(config.ping_timeout), self._clock())
                unanswered = 0
            except TimeoutError:
                self.choice.measured(peer, config.ping_timeout, self._clock())
                unanswered += 1
                if unanswered >= config.ping_failures:
                    connection.abort(f"the relay answered none of {unanswered} pings")
                    return
            except FlareError as error:
                log.debug("a ping to relay %s: %s", peer, error)
                return
            candidate = self.choice.get(peer)
            if candidate is not None and peer not in self._chosen:
                self._chosen.add(peer)
                self._host.emit(RelayChosen(peer, candidate.source, candidate.rtt))
            self._news.set()
            if not unanswered:
                await asyncio.sleep(config.ping_every * self._uniform(0.75, 1.25))

    async def _ask(self) -> None:
        """One round of questions to all sources at once."""
        await asyncio.gather(*(self._ask_one(source) for source in self._sources))
        self.choice.asked(self._clock())
        self._news.set()

    async def _ask_one(self, source: RelaySource) -> None:
        try:
            async with within(self.config.ask_timeout, f"asking {source.name} for relays"):
                found = await source.find()
        except (FlareError, OSError) as error:
            log.info("asking %s for relays: %s", source.name, error)
            return
        except Exception:  # the edge: somebody else's source
            log.exception("asking %s for relays", source.name)
            return
        for relay in found[: self.config.max_candidates]:
            self.offer(relay.peer, relay.addrs, source.name, trusted=source.trusted)


def outcome_of(error: FlareError) -> str:
    """What became of a request for a place, in go-libp2p's words."""
    return _OUTCOMES.get(error.status if isinstance(error, RelayRefused) else 0, "err other")


def trouble_of(error: FlareError) -> Trouble:
    """What an error of a reservation says about the relay."""
    if isinstance(error, ProtocolNotSupported | ProtocolViolation | PermissionDenied):
        return Trouble.USELESS
    return Trouble.REFUSED if isinstance(error, RelayRefused) else Trouble.UNREACHABLE
