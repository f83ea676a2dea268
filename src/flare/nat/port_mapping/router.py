"""One router: every protocol tried at once, then a mapping kept for each listener.

    probe all -> somebody answers -> for each listener: map -> hold (renew, check) until it is lost -> map ...
              -> nobody does      -> wait, longer each time, or for news

Probing changes nothing at the router, which is why all can be probed at once and one alone maps: a router
often keeps the mappings of all three protocols in one table, so that giving back what the second best of them
had made would take away what the best one made.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

from flare.config import PortMappingConfig
from flare.errors import FlareError, PortMappingRefused
from flare.events import PortMapped, PortMappingFailed, PortMappingLost
from flare.nat.port_mapping.lease import PERMANENT, Lease, Mapper, MappingGone
from flare.transport.tasks import Tasks
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr

logger = logging.getLogger("flare.nat.port_mapping")

PortMappingEvent = PortMapped | PortMappingLost | PortMappingFailed
FAILURES = (FlareError, OSError)

T = TypeVar("T")


class Router:
    """Keeps the wanted listeners mapped on the router at `gateway`, while `run` runs.

    `mappers` are its protocols, the best first. `on_change` is called when `leases` or `outside` changed.
    """

    def __init__(
        self,
        gateway: IpAddress,
        mappers: Sequence[Mapper],
        config: PortMappingConfig,
        *,
        on_event: Callable[[PortMappingEvent], None],
        on_change: Callable[[], None],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.gateway = gateway
        self.leases: dict[Multiaddr, Lease] = {}
        self.said: dict[str, str] = {}  # by protocol: why it could not be had, "" where it could
        self.outside: dict[str, IpAddress] = {}  # by protocol: what the router calls its own address
        self.troubles: dict[Multiaddr | None, str] = {}  # why a listener, or (None) all, is not mapped now
        self._mappers = list(mappers)
        self._config = config
        self._on_event = on_event
        self._on_change = on_change
        self._uniform = uniform
        self._loop = asyncio.get_running_loop()
        self._wanted: tuple[Multiaddr, ...] = ()
        self._holders: dict[Multiaddr, Mapper] = {}
        self._keepers: dict[Multiaddr, asyncio.Task[None]] = {}
        self._probes: dict[Mapper, asyncio.Task[bool]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._tasks = Tasks()
        self._serving = False
        self._silent = asyncio.Event()
        self._news = asyncio.Event()
        self._hushed = 0.0

    def want(self, listeners: Iterable[Multiaddr]) -> None:
        """These are to be mapped from now on, and no others."""
        self._wanted = tuple(dict.fromkeys(listeners))[: self._config.max_listeners]
        for listener in [known for known in self._keepers if known not in self._wanted]:
            self._keepers.pop(listener).cancel()
            self.troubles.pop(listener, None)
            if (lease := self.leases.get(listener)) is not None:
                self._start_returning(self._holders[listener], lease)
                self._lose(listener, "nobody listens there any more")
        if self._serving:
            for listener in self._wanted:
                if listener not in self._keepers:
                    self._keepers[listener] = self._tasks.start(self._keep(listener), f"map {listener}")

    @property
    def settled(self) -> bool:
        """Whether each listener is mapped now or has failed to be."""
        done = (*self.leases, *self.troubles)
        return None in self.troubles or (self._serving and all(wanted in done for wanted in self._wanted))

    def wake(self) -> None:
        """The router may have lost its mappings: look at all of them now, but not again and again."""
        now = self._loop.time()
        if now < self._hushed:
            return
        self._hushed = now + self._config.hush
        old, self._news = self._news, asyncio.Event()
        old.set()

    async def run(self) -> None:
        """Until it is cancelled; then `close`."""
        failures = 0
        while True:
            await self._probe()
            if any(_answered(task) for task in self._probes.values()):
                failures = 0
                self.troubles.clear()
                await self._serve()
                continue
            failures += 1
            delay = self._backoff(failures)
            reason = f"the router at {self.gateway} maps no ports: {'; '.join(map(str, self.said.values()))}"
            self.troubles = {None: reason}
            self._on_event(PortMappingFailed(None, reason, delay))
            await self._rest(delay)

    async def close(self) -> None:
        """Give everything back, what is still being asked for too, within PortMappingConfig.farewell."""
        held = [(self._holders[listener], lease) for listener, lease in self.leases.items()]
        await self._tasks.cancel()
        await _cancel(self._probes.values())
        giving = [self._loop.create_task(self._give_back(mapper, lease)) for mapper, lease in held]
        for listener in tuple(self.leases):
            self._lose(listener, "it was given back")
        if last := {*giving, *self._asking}:
            _, late = await asyncio.wait(last, timeout=self._config.farewell)
            await _cancel(late)

    # -- who speaks

    async def _probe(self) -> None:
        """Ask all protocols at once. Returns once the best answered, or a good one and time is up for better
        ones; those that are slower go on.
        """
        await _cancel(self._probes.values())
        self.said, self.outside = {}, {}
        self._probes = {
            mapper: self._loop.create_task(self._probe_one(mapper), name=f"probe {mapper.name}")
            for mapper in self._mappers
        }
        pending = set(self._probes.values())
        while pending and not any(map(_answered, self._probes.values())):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        end = self._loop.time() + self._config.preference
        while (better := self._better()) and (left := end - self._loop.time()) > 0:
            await asyncio.wait(better, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _better(self) -> list[asyncio.Task[bool]]:
        """The probes that are still out and better than the best that has answered."""
        out: list[asyncio.Task[bool]] = []
        for task in self._probes.values():
            if _answered(task):
                return out
            if not task.done():
                out.append(task)
        return []

    async def _probe_one(self, mapper: Mapper) -> bool:
        try:
            outside = await _carefully(mapper.probe())
        except FAILURES as error:
            self.said[mapper.name] = _told(mapper, error)
            return False
        self.said[mapper.name] = ""
        if outside is not None:
            self.outside[mapper.name] = outside
            self._on_change()
        return True

    async def _speakers(self) -> AsyncGenerator[Mapper, None]:
        """The protocols that the router speaks, the best first, then those found out later."""
        told: set[Mapper] = set()
        while True:
            for mapper, task in self._probes.items():
                if mapper not in told and _answered(task):
                    told.add(mapper)
                    yield mapper
                    break
            else:
                pending = [task for task in self._probes.values() if not task.done()]
                if not pending:
                    return
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    # -- one listener

    async def _serve(self) -> None:
        """Keep the listeners mapped until the router falls silent."""
        self._silent.clear()
        self._serving = True
        self.want(self._wanted)
        try:
            await self._silent.wait()
        finally:
            self._serving = False
            for keeper in self._keepers.values():
                keeper.cancel()
            self._keepers.clear()
        for listener in tuple(self.leases):
            self._lose(listener, f"the router at {self.gateway} does not answer any more")

    async def _keep(self, listener: Multiaddr) -> None:
        """Map, hold, and map again when it is lost."""
        failures = 0
        while True:
            try:
                mapper, lease = await self._map(listener)
            except FAILURES as error:
                failures += 1
                lasting = error.lasting if isinstance(error, PortMappingRefused) else 0.0
                delay = max(self._backoff(failures), min(lasting, self._config.backoff_max))
                self.troubles[listener] = str(error)
                self._on_event(PortMappingFailed(listener, str(error), delay))
                await self._rest(delay)
                continue
            self._have(mapper, lease)
            since = self._loop.time()
            reason = await self._hold(mapper, lease)
            self._lose(listener, reason)
            if self._silent.is_set():
                return
            if self._loop.time() - since >= self._config.steady:
                failures = 0
            elif failures:
                await self._rest(self._backoff(failures))
            failures += 1

    async def _map(self, listener: Multiaddr) -> tuple[Mapper, Lease]:
        refusals: list[str] = []
        lasting = 0.0
        async with aclosing(self._speakers()) as speakers:
            async for mapper in speakers:
                try:
                    return mapper, await self._ask(mapper, listener)
                except FAILURES as error:
                    refusals.append(_told(mapper, error))
                    if isinstance(error, PortMappingRefused):
                        lasting = max(lasting, error.lasting)
        raise PortMappingRefused("; ".join(refusals) or "nobody answers", code=0, lasting=lasting)

    async def _ask(self, mapper: Mapper, listener: Multiaddr) -> Lease:
        """Map. If nobody waits for it any more when the router has answered, it goes back."""
        wanted: asyncio.Future[Lease] = self._loop.create_future()
        task = self._loop.create_task(self._fetch(mapper, listener, wanted), name=f"map {listener}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        try:
            return await wanted
        except asyncio.CancelledError:
            if not wanted.cancelled() and wanted.exception() is None:  # it came in this very moment
                self._start_returning(mapper, wanted.result())
            raise

    async def _fetch(self, mapper: Mapper, listener: Multiaddr, wanted: asyncio.Future[Lease]) -> None:
        try:
            lease = await _carefully(mapper.map(listener, listener.port or 0))
        except FAILURES as error:
            if not wanted.done():
                wanted.set_exception(error)
            return
        if wanted.done():
            await self._give_back(mapper, lease)
        else:
            wanted.set_result(lease)

    async def _hold(self, mapper: Mapper, lease: Lease) -> str:
        """Renew and check for as long as that works; returns why it no longer does."""
        config = self._config
        failures = 0
        renewal = self._renewal(lease)
        while True:
            now = self._loop.time()
            if failures:
                wait = min(config.retry * 2.0 ** (failures - 1), max(0.0, lease.expires - now))
            else:
                wait = max(0.0, min(renewal - now, config.verify * self._uniform(1 - config.jitter, 1)))
            await self._rest(wait)
            due = self._loop.time() >= renewal
            try:
                fresh = await _carefully(mapper.renew(lease) if due else mapper.check(lease))
            except (MappingGone, PortMappingRefused) as error:
                return str(error)
            except FAILURES as error:
                failures += 1
                logger.info("mapping of %s by %s: %s", lease.listener, mapper.name, error)
                if failures >= config.tries or self._loop.time() >= lease.expires:
                    self._silent.set()
                    return _told(mapper, error)
                continue
            failures = 0
            if due or fresh.granted != lease.granted or fresh.lifetime < lease.lifetime:
                renewal = self._renewal(fresh)
            if fresh.addr != lease.addr:
                self._lose(lease.listener, f"the router forwards {fresh.addr} in its place now")
            if fresh.addr != lease.addr or due:
                self._have(mapper, fresh)
            lease = self.leases[lease.listener] = fresh

    def _renewal(self, lease: Lease) -> float:
        """When to renew: at half life, give or take some, on the loop's clock (RFC 6887, 11.2.1).

        When that is over already, since a renewal gave no more time, at half of what is left.
        """
        config = self._config
        now = self._loop.time()
        at = lease.granted + min(
            lease.lifetime / 2 * self._uniform(1 - config.jitter, 1), config.renew_at_most
        )
        if at <= now:
            at = now + min((lease.expires - now) / 2, config.renew_at_most)
        return max(at, now + config.renew_at_least)

    async def _rest(self, seconds: float) -> None:
        """Wait, or until there is news of the router."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

    def _backoff(self, failures: int) -> float:
        base = min(self._config.backoff_max, self._config.backoff_first * 2.0 ** min(failures - 1, 30))
        return self._uniform(base / 2, base)

    # -- what is had

    def _have(self, mapper: Mapper, lease: Lease) -> None:
        self.leases[lease.listener] = lease
        self.troubles.pop(lease.listener, None)
        self._holders[lease.listener] = mapper
        lifetime = None if lease.lifetime == PERMANENT else lease.lifetime
        self._on_event(PortMapped(lease.listener, lease.addr, lease.protocol, str(self.gateway), lifetime))
        self._on_change()

    def _lose(self, listener: Multiaddr, reason: str) -> None:
        lease = self.leases.pop(listener, None)
        self._holders.pop(listener, None)
        if lease is not None:
            self._on_event(PortMappingLost(listener, lease.addr, reason))
            self._on_change()

    def _start_returning(self, mapper: Mapper, lease: Lease) -> None:
        task = self._loop.create_task(self._give_back(mapper, lease), name=f"unmap {lease.listener}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _give_back(self, mapper: Mapper, lease: Lease) -> None:
        try:
            await _carefully(mapper.unmap(lease))
        except FAILURES as error:
            logger.info("giving back %s: %s", lease.addr, error)


def _answered(task: asyncio.Task[bool]) -> bool:
    return task.done() and not task.cancelled() and task.result()


async def _cancel(tasks: Iterable[asyncio.Task[T]]) -> None:
    """End tasks, and wait until they have ended."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _carefully(work: Awaitable[T]) -> T:
    """Whatever a router makes us fail at costs us that router's answer, and nothing else."""
    try:
        return await work
    except FAILURES:
        raise
    except Exception as error:  # the edge: what comes out of somebody else's box
        logger.exception("a router's answer was not understood")
        raise PortMappingRefused(f"its answer was not understood: {error!r}", code=0) from error


def _told(mapper: Mapper, error: BaseException) -> str:
    """What went wrong, with the protocol's name once."""
    text = str(error) or type(error).__name__
    return text if text.startswith(mapper.name) else f"{mapper.name}: {text}"
