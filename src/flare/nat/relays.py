"""Keeping a reservation on each of our relays: reserve, refresh early, come back after a loss.

One task per relay, straight down:

    dial -> reserve -> announce -> refresh ... until connection or reservation is lost -> back off -> dial

`expire` counts on the relay's clock, which may be off. Ours decides when to refresh: at 3/4 of what is left
by our clock or two minutes before its end, whichever is sooner, and never later than half an hour. A relay
whose clock runs so far behind that its reservations seem over already is refreshed at that half hour too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.config import ReservationConfig, Timeouts
from flare.errors import FlareError, RelayRefused
from flare.events import ReservationAccepted, ReservationLost
from flare.protocols.relay import reserve as reserve_protocol
from flare.protocols.relay.reserve import RelayReservation
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

log = logging.getLogger("flare.nat.relays")


@dataclass(frozen=True, slots=True)
class _Place:
    """What we hold on one relay now."""

    reservation: RelayReservation
    connection: Connection


class RelayClient:
    """Keeps a reservation on every relay it was given, until `close`.

    `dial` gives a connection to a relay (an existing one will do); `on_event` gets ReservationAccepted, also
    after each refresh, and ReservationLost; `on_change` is called when `addrs` changed.
    """

    def __init__(
        self,
        *,
        local_peer: PeerId,
        dial: Callable[[Multiaddr], Awaitable[Connection]],
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

    def add(self, relay: Multiaddr) -> None:
        """Keep a reservation on `relay` (an address with /p2p) from now on."""
        if relay not in self._tasks:
            self._tasks[relay] = asyncio.get_running_loop().create_task(
                self._keep(relay), name=f"relay {relay}"
            )

    async def remove(self, relay: Multiaddr) -> None:
        """Keep none there any more; the connection is left to its owner."""
        task = self._tasks.pop(relay, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """Keep none anywhere."""
        await asyncio.gather(*(self.remove(relay) for relay in list(self._tasks)))

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

    async def _keep(self, relay: Multiaddr) -> None:
        failures = 0
        while True:
            held_since: float | None = None
            refused = False
            try:
                connection = await self._dial(relay)
                await self._renew(relay, connection)
                held_since = self._unix()
                reason = await self._hold(relay, connection)
            except FlareError as error:
                refused = isinstance(error, RelayRefused)
                reason = str(error)
            finally:
                self._withdraw(relay)
            steady = held_since is not None and self._unix() - held_since >= self._config.steady
            failures = 1 if steady else failures + 1
            delay = self._backoff(failures, refused=refused)
            self._on_event(ReservationLost(relay.peer_id, reason, delay))
            log.info("no reservation on %s: %s; trying again in %.1f s", relay, reason, delay)
            await asyncio.sleep(delay)

    async def _hold(self, relay: Multiaddr, connection: Connection) -> str:
        """Refresh for as long as that works; returns why it no longer does."""
        failures = 0
        while True:
            place = self._places[relay]
            left = place.reservation.expires - self._unix()
            delay = self.refresh_after(left) if not failures else self._backoff(failures, refused=False)
            if await self._closed_within(connection, delay):
                return f"the connection to the relay was lost: {connection.close_reason or 'closed'}"
            try:
                await self._renew(relay, connection)
                failures = 0
            except FlareError as error:
                failures += 1
                over = self._unix() >= place.reservation.expires
                if over or (isinstance(error, RelayRefused) and not self._worth_retrying(place)):
                    return f"the reservation could not be refreshed: {error}"

    def _worth_retrying(self, place: _Place) -> bool:
        return place.reservation.expires - self._unix() > self._config.backoff_max

    async def _renew(self, relay: Multiaddr, connection: Connection) -> None:
        before = self.addrs
        reservation = await self._reserve(connection, timeout=self._timeouts.relay_message)
        self._places[relay] = _Place(reservation, connection)
        addrs = tuple(dict.fromkeys(self._circuit_addrs(relay, reservation)))
        self._on_event(ReservationAccepted(reservation.relay, reservation.expires, addrs, reservation.limit))
        if self.addrs != before:
            self._on_change()

    def _withdraw(self, relay: Multiaddr) -> None:
        if self._places.pop(relay, None) is not None:
            self._on_change()

    async def _closed_within(self, connection: Connection, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await connection.wait_closed()
        except TimeoutError:
            return connection.closed
        return True

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

    def _backoff(self, failures: int, *, refused: bool) -> float:
        config = self._config
        longest = config.backoff_refused if refused else config.backoff_max
        base = min(longest, config.backoff_first * 2.0 ** min(failures - 1, 30))
        return self._uniform(base / 2, base)
