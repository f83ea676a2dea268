"""When the NAT is looked at, over which transport, and what was found out last.

A look is made when there are vantage points and none was made yet; when a second vantage point turns up after
or while only one is there; when our own addresses, or the one that others see, have changed; and from time to
time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.nat.behaviour import Behaviour, Filtering, Mapping
from flare.nat.lifetime import LifetimeProbe
from flare.nat.observed import group
from flare.nat.probe import ENOUGH, NatProbe, OpenTransport
from flare.nat.reachability import Word
from flare.nat.vantage import Vantage
from flare.transport.tasks import Tasks
from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.config import Timeouts
    from flare.protocols.autonat.v2_client import DialBackClient
    from flare.wire.peer_id import PeerId

RETRY: Final = 60.0  # seconds after a look that left something open, or before an address that changed counts
MEASURE: Final = 5.0  # seconds after the verdict before the lifetime of UDP's mappings is measured
RECHECK: Final = 1800.0  # seconds after one that did not
SECOND: Final = 1.0  # seconds that the first look waits for a second vantage point

KEEPS_OUT: Final = (Filtering.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT)


@dataclass(slots=True)
class _Last:
    at: float
    vantages: tuple[Vantage, ...]
    own_ips: tuple[str, ...]
    fruitless: int  # looks in a row that left something open


class Looking:
    """Keeps `behaviours`, by transport. `make` gives a probe its transports; `on_news` hears of each change,
    what is now and what was before, `on_done` of the end of each look. `lifetime` makes a measurement of how
    long UDP's mappings live, which is made once for each outside address.
    """

    def __init__(
        self,
        *,
        make: Callable[[str], OpenTransport],
        asker: DialBackClient,
        own_peer: PeerId,
        own_ips: Callable[[], tuple[str, ...]],
        timeouts: Timeouts,
        is_public: Callable[[Multiaddr], bool],
        on_news: Callable[[Behaviour, Behaviour], None],
        on_done: Callable[[], None],
        lifetime: Callable[[Vantage], LifetimeProbe] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self._make = make
        self._asker = asker
        self._own_peer = own_peer
        self._own_ips = own_ips
        self._timeouts = timeouts
        self._is_public = is_public
        self._on_news = on_news
        self._on_done = on_done
        self._lifetime = lifetime
        self._measured: set[tuple[str, str | None]] = set()  # transport and outside address
        self._clock = clock
        self._last: dict[str, _Last] = {}
        self._since: dict[str, float] = {}  # when there was a vantage point first
        self._possible: set[str] = set()  # what there is a vantage point for now
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._tasks = Tasks()

    async def close(self) -> None:
        """End the looks that are under way."""
        await self._tasks.cancel()

    @property
    def busy(self) -> bool:
        """Whether anything is looked at now."""
        return bool(self._running)

    def running(self, transport: str) -> bool:
        """Whether it is looked at now."""
        return transport in self._running

    def consider(self, transport: str, vantages: Sequence[Vantage], seen_at: Collection[str] = ()) -> None:
        """Look from `vantages`, the best first, if there is reason to; `seen_at` are our IPs as others see
        them."""
        chosen = tuple(vantages[:ENOUGH])
        if not chosen:
            self._possible.discard(transport)
            return
        self._possible.add(transport)
        if not self._reason(transport, chosen, seen_at):
            return
        if (running := self._running.get(transport)) is not None:
            running.cancel()
        last = self._last.get(transport)
        fruitless = last.fruitless + 1 if last is not None else 0
        self._last[transport] = _Last(self._clock(), chosen, self._own_ips(), fruitless)
        self._running[transport] = self._tasks.start(
            self._look(transport, chosen), f"looking at the NAT over {transport}"
        )

    def next_due(self) -> float | None:
        """When the next look is due of itself, on the clock; None while there is no vantage point."""
        return min(
            (
                self._again(name) if name in self._last else self._since[name] + SECOND
                for name in self._possible
            ),
            default=None,
        )

    def words(self, transport: str) -> tuple[Word, ...]:
        """What those who were kept out say about every port of ours behind this NAT."""
        behaviour, last = self.behaviours.get(transport), self._last.get(transport)
        if behaviour is None or last is None or behaviour.filtering not in KEEPS_OUT:
            return ()
        reason = f"our NAT lets in only whom we have sent to ({behaviour.filtering.value} filtering)"
        return tuple(
            Word(one.peer, _network(one), False, last.at, one.trusted, reason, inferred=True)
            for one in last.vantages
            if one.peer in behaviour.filtered
        )

    def filters_ports(self, transport: str) -> bool:
        """Whether it is certain, whoever may lie, that only the ports of a server that we sent to come in."""
        behaviour, last = self.behaviours.get(transport), self._last.get(transport)
        if behaviour is None or last is None:
            return False
        if behaviour.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT:
            return False
        kept_out = [one for one in last.vantages if one.peer in behaviour.kept_out]
        return any(one.trusted for one in kept_out) or len({_network(one) for one in kept_out}) > 1

    def _reason(self, transport: str, vantages: tuple[Vantage, ...], seen_at: Collection[str]) -> bool:
        last, now = self._last.get(transport), self._clock()
        if last is None:
            since = self._since.setdefault(transport, now)
            return len(vantages) > 1 or now >= since + SECOND
        ips, before = {one.ip for one in vantages}, {one.ip for one in last.vantages}
        if last.own_ips != self._own_ips() or (len(before) < 2 and ips - before):
            return True
        if transport in self._running:
            return False
        external = self.behaviours.get(transport, Behaviour()).external
        moved = bool(seen_at) and external is not None and external not in seen_at
        return now >= self._again(transport) or (moved and now >= last.at + RETRY)

    def _again(self, transport: str) -> float:
        last = self._last[transport]
        if transport in self._running:
            return last.at + RECHECK
        found = self.behaviours.get(transport, Behaviour())
        if found.mapping is not Mapping.UNKNOWN and found.filtering is not Filtering.UNKNOWN:
            last.fruitless = 0
            return last.at + RECHECK
        return last.at + min(RECHECK, RETRY * 2.0 ** min(last.fruitless, 10))

    async def _look(self, transport: str, vantages: tuple[Vantage, ...]) -> None:
        probe = NatProbe(
            transport,
            self._make(transport),
            self._asker,
            own_peer=self._own_peer,
            own_ips=self._own_ips(),
            timeouts=self._timeouts,
            is_public=self._is_public,
            turn=self._turn,
        )
        try:
            async for behaviour in probe.run(vantages):
                self._found(behaviour)
                self._measure(transport, vantages)
        finally:
            if self._running.get(transport) is asyncio.current_task():
                del self._running[transport]
                self._on_done()

    def _measure(self, transport: str, vantages: Sequence[Vantage]) -> None:
        behaviour = self.behaviours.get(transport, Behaviour(transport))
        place = transport, behaviour.external
        if (
            self._lifetime is None
            or not transport.startswith("udp")
            or behaviour.external is None
            or behaviour.mapping is Mapping.NONE
            or place in self._measured
        ):
            return
        self._measured.add(place)
        self._tasks.start(
            self._measure_lifetime(behaviour, self._lifetime(vantages[0])), "a mapping's lifetime"
        )

    async def _measure_lifetime(self, behaviour: Behaviour, probe: LifetimeProbe) -> None:
        await asyncio.sleep(MEASURE)
        lifetime = await probe.run(behaviour)
        before = self.behaviours[behaviour.transport]
        if lifetime is not None and before.external == behaviour.external:
            self.behaviours[behaviour.transport] = now = dataclasses.replace(before, lifetime=lifetime)
            self._on_news(now, before)

    def _found(self, behaviour: Behaviour) -> None:
        name = behaviour.transport
        before = self.behaviours.get(name, Behaviour(name))
        if before.external == behaviour.external:
            behaviour = dataclasses.replace(behaviour, lifetime=before.lifetime)
        self.behaviours[name] = behaviour
        if behaviour != before:
            self._on_news(behaviour, before)


def _network(vantage: Vantage) -> str:
    return group(vantage.ip)
