"""Keeping a reservation on each of our relays: reserve, refresh early, come back after a loss.

One task per relay, straight down:

    dial -> reserve -> announce -> refresh ... until connection or reservation is lost -> back off -> dial

`expire` counts on the relay's clock, which may be off. Ours decides when to refresh: at 3/4 of what is left
by our clock or two minutes before its end, whichever is sooner, and never later than half an hour. A relay
whose clock runs so far behind that its reservations seem over already is refreshed at that half hour too.

A relay that restarts loses all its clients in one moment. So each waits for a time drawn from all of an
interval that doubles, the first attempt too: they come back in a stream, at a rate that the relay can bear.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from flare.config import ReservationConfig, Timeouts
from flare.errors import ConnectionClosed, FlareError, NoReservation, RelayRefused
from flare.events import ReservationAccepted, ReservationLost
from flare.protocols.relay import reserve as reserve_protocol
from flare.protocols.relay.reserve import RelayReservation
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

log = logging.getLogger("flare.nat.relays")

MAX_TOLD: Final = 16  # addresses of one relay that we tell others
OnTrouble = Callable[[FlareError, bool], None]
Dial = Callable[[Multiaddr], Awaitable["Connection"]]


@dataclass(frozen=True, slots=True)
class _Place:
    """What we hold on one relay now."""

    reservation: RelayReservation
    connection: Connection
    since: float  # of the last refresh, Unix seconds


class RelayClient:
    """Keeps a reservation on every relay it was given, until `close`.

    `dial` gives a connection to a relay (an existing one will do); `on_event` gets ReservationAccepted, also
    after each refresh, and ReservationLost; `on_change` is called when `addrs` changed.
    """

    def __init__(
        self,
        *,
        local_peer: PeerId,
        dial: Dial,
        on_event: Callable[[ReservationAccepted | ReservationLost], None] = lambda event: None,
        on_change: Callable[[], None] = lambda: None,
        reserve: Callable[..., Awaitable[RelayReservation]] = reserve_protocol.reserve,
        config: ReservationConfig | None = None,
        timeouts: Timeouts | None = None,
        unix: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._local_peer = local_peer
        self._dial = dial
        self._on_event = on_event
        self._on_change = on_change
        self._reserve = reserve
        self._config = config or ReservationConfig()
        self._timeouts = timeouts or Timeouts()
        self._unix = unix
        self._uniform = uniform
        self._tasks: dict[Multiaddr, asyncio.Task[None]] = {}
        self._places: dict[Multiaddr, _Place] = {}
        self._may_tell: dict[Multiaddr, Callable[[Multiaddr], bool]] = {}
        self._hurry = asyncio.Event()

    def add(
        self,
        relay: Multiaddr,
        *,
        dial: Dial | None = None,
        on_trouble: OnTrouble = lambda error, held: None,
        may_tell: Callable[[Multiaddr], bool] = lambda addr: True,
    ) -> None:
        """Keep a reservation on `relay` (an address with /p2p) from now on.

        `dial` gives a connection to this one. `on_trouble` gets each failure, and whether the reservation is
        held in spite of it. `may_tell` says which of the addresses that the relay calls its own are told.
        """
        if relay not in self._tasks:
            self._may_tell[relay] = may_tell
            self._tasks[relay] = asyncio.get_running_loop().create_task(
                self._keep(relay, dial or self._dial, on_trouble), name=f"relay {relay}"
            )

    async def remove(self, relay: Multiaddr) -> None:
        """Keep none there any more; the connection is left to its owner."""
        task = self._tasks.pop(relay, None)
        self._may_tell.pop(relay, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Keep none anywhere."""
        await asyncio.gather(*(self.remove(relay) for relay in list(self._tasks)))

    def hurry(self) -> None:
        """Our own network has changed: whoever waits to try again does so now."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    @property
    def relays(self) -> tuple[Multiaddr, ...]:
        """The relays it was given."""
        return tuple(self._tasks)

    @property
    def reservations(self) -> tuple[RelayReservation, ...]:
        """What is held now."""
        return tuple(place.reservation for place in self._places.values())

    @property
    def addrs(self) -> tuple[Multiaddr, ...]:
        """The circuit addresses to advertise: ADDR/p2p/RELAY/p2p-circuit/p2p/US for each relay address."""
        return tuple(
            dict.fromkeys(
                addr
                for relay, place in self._places.items()
                for addr in self._circuit_addrs(relay, place.reservation)
            )
        )

    def knows(self, peer: PeerId) -> bool:
        """`peer` is one of the relays we were given or hold a reservation on."""
        return any(relay.peer_id == peer for relay in self._tasks) or any(
            place.reservation.relay == peer for place in self._places.values()
        )

    def _circuit_addrs(self, relay: Multiaddr, reservation: RelayReservation) -> Iterable[Multiaddr]:
        ours = relay.without_peer().with_peer(reservation.relay)
        for addr in (ours, *reservation.addrs):
            yield Multiaddr(f"{addr}/p2p-circuit/p2p/{self._local_peer}")

    # -- one relay

    async def _keep(self, relay: Multiaddr, dial: Dial, on_trouble: OnTrouble) -> None:
        failures = 0
        lost_at = self._unix()
        while True:
            held_since: float | None = None
            try:
                connection = await dial(relay)
                await self._renew(relay, connection)
                held_since = self._unix()
                error = await self._hold(relay, connection, on_trouble)
            except FlareError as failure:
                error = failure
            finally:
                self._withdraw(relay)
            if held_since is not None:
                lost_at = self._unix()
            steady = held_since is not None and lost_at - held_since >= self._config.steady
            failures = 1 if steady else failures + 1
            delay = self._backoff(failures, lost_at, refused=isinstance(error, RelayRefused))
            self._on_event(ReservationLost(relay.peer_id, str(error), delay))
            on_trouble(error, False)
            log.info("no reservation on %s: %s; trying again in %.1f s", relay, error, delay)
            await self._wait(delay)

    async def _hold(self, relay: Multiaddr, connection: Connection, on_trouble: OnTrouble) -> FlareError:
        """Refresh for as long as that works; returns why it no longer does."""
        failures, refused = 0, False
        while True:
            place = self._places[relay]
            now = self._unix()
            left = place.reservation.expires - now
            delay = self.refresh_after(left)
            if failures:
                delay = min(self._backoff(failures, now, refused=refused), max(left, 1.0))
            hurry = self._hurry
            if await self._closed_within(connection, delay, hurry):
                return ConnectionClosed(
                    f"the connection to the relay was lost: {connection.close_reason or 'closed'}"
                )
            if hurry.is_set() and self._unix() - place.since < self._config.refresh_at_least:
                continue  # however often the network changes
            try:
                await self._renew(relay, connection)
                failures = 0
            except FlareError as error:
                failures += 1
                refused = isinstance(error, RelayRefused)
                over = self._unix() >= place.reservation.expires
                if over or (refused and not self._worth_retrying(place)):
                    return NoReservation(f"the reservation could not be refreshed: {error}")
                on_trouble(error, True)

    def _worth_retrying(self, place: _Place) -> bool:
        return place.reservation.expires - self._unix() > self._config.backoff_max

    async def _renew(self, relay: Multiaddr, connection: Connection) -> None:
        before = self.addrs
        reservation = await self._reserve(connection, timeout=self._timeouts.relay_message)
        told = tuple(filter(self._may_tell.get(relay), reservation.addrs))[:MAX_TOLD]
        reservation = replace(reservation, addrs=told)
        self._places[relay] = _Place(reservation, connection, self._unix())
        addrs = tuple(dict.fromkeys(self._circuit_addrs(relay, reservation)))
        self._on_event(ReservationAccepted(reservation.relay, reservation.expires, addrs, reservation.limit))
        if self.addrs != before:
            self._on_change()

    def _withdraw(self, relay: Multiaddr) -> None:
        if self._places.pop(relay, None) is not None:
            self._on_change()

    async def _closed_within(self, connection: Connection, seconds: float, hurry: asyncio.Event) -> bool:
        """Whether it closed; else `seconds` are over, or somebody is in a hurry."""
        closed = asyncio.ensure_future(connection.wait_closed())
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            await asyncio.wait((closed, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return connection.closed
        finally:
            closed.cancel()
            hurried.cancel()

    # -- times

    def refresh_after(self, left: float) -> float:
        """Seconds to wait before refreshing a reservation with `left` seconds to go by our clock."""
        config = self._config
        if left <= 0:
            wait = config.refresh_at_most
        elif left < 2 * config.refresh_before:
            wait = left / 2
        else:
            wait = min(left * config.refresh_share, left - config.refresh_before)
        wait = max(config.refresh_at_least, min(wait, config.refresh_at_most))
        return wait * self._uniform(1 - config.jitter, 1)

    def _backoff(self, failures: int, since: float, *, refused: bool) -> float:
        """Seconds to wait after so many failures in a row, the place being lost `since`."""
        config = self._config
        if refused:
            longest = config.backoff_refused
        elif self._unix() - since < config.restart:
            longest = config.backoff_restart
        else:
            longest = config.backoff_max
        most = min(longest, config.backoff_first * 2.0 ** min(failures - 1, 30))
        return self._uniform(min(config.backoff_least, most), most)

    async def _wait(self, delay: float) -> None:
        """Wait for `delay` seconds, or for a moment once somebody is in a hurry."""
        hurry = self._hurry
        try:
            async with asyncio.timeout(delay):
                await hurry.wait()
                await asyncio.sleep(self._uniform(0, self._config.hurry))
        except TimeoutError:
            pass
