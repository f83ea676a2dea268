"""A relay restarts, and all its clients come back: real clients under virtual time, and a relay that can only
do so many handshakes a second.

What is real: the clients (RelayKeeping with its choice, RelayClient with its back-off), the relay's books
(ReservationBook) and its door (Admission), with their limits. What is not: bytes. A handshake is a place in a
queue that is served at `capacity` a second and takes `rtt` besides; a client gives up after Timeouts.dial.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from flare.config import Config, HostLimits, RelayLimits, ReservationConfig, Timeouts
from flare.errors import (
    ConnectionClosed,
    DialFailed,
    NetworkError,
    ReservationRefused,
    ResourceLimit,
    TimedOut,
)
from flare.events import RelayChosen, RelayDropped, ReservationAccepted, ReservationLost
from flare.lab import virtual
from flare.nat.relay_keeping import RelayKeeping
from flare.nat.relay_sources.static import StaticRelays
from flare.nat.relays import Dial, OnTrouble, RelayClient
from flare.protocols.relay.book import ReservationBook
from flare.protocols.relay.reserve import RelayReservation
from flare.transport.admission import Admission
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

CAPACITY: Final = 800.0  # handshakes that a core does in a second (docs/benchmarks.md)
WINDOW: Final = 1.0  # seconds over which a rate is counted


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. Times are seconds; `down` is how long the relay is away."""

    clients: int = 1000
    relays: int = 2  # known to each client; the first one restarts
    wanted: int = 2  # reservations that each client holds
    down: float = 5.0
    silent: bool = False  # the relay's machine dies: nothing tells its clients
    drain: float = 0.0  # before it goes it tells all that it relays no longer, and refuses for so long
    sites: int = 1000  # IP addresses that the clients are spread over
    capacity: float = CAPACITY
    rtt: float = 0.05
    first_wait: float = 5.0  # ReservationConfig.backoff_first
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of it. Times are seconds since the relay was up again."""

    scenario: Scenario
    back: int = 0  # clients that hold a place on the relay, or all they want elsewhere
    last_back: float = 0.0
    half_back: float = 0.0
    peak_rate: dict[str, int] = field(default_factory=dict)  # most handshakes begun within WINDOW, by relay
    longest_queue: float = 0.0  # seconds that a handshake had to wait for its turn at worst
    attempts: int = 0  # dials of the relay, those in vain included
    refused: Counter[str] = field(default_factory=Counter)
    without_any: float = 0.0  # the longest time that a client had no reservation at all


class End:
    """A client's connection to a relay."""

    def __init__(self, relay: Relay, client: Client, ip: str) -> None:
        self.relay_end = relay
        self.client = client
        self.remote_peer = relay.peer
        self.local_peer = client.peer
        self.remote_addr = relay.addr
        self.initiator = True
        self.ip = ip
        self.closed = False
        self.close_reason: object = None
        self._gone = asyncio.Event()

    async def ping(self, timeout: float) -> float:
        """A round trip; TimedOut when the relay's machine is gone."""
        if self.closed:
            raise ConnectionClosed("closed")
        if self.relay_end.silent or self not in self.relay_end.ends:
            await asyncio.sleep(timeout)
            raise TimedOut("ping", timeout)
        await asyncio.sleep(self.relay_end.rtt)
        return self.relay_end.rtt

    async def wait_closed(self) -> None:
        """Until it is gone."""
        await self._gone.wait()

    def abort(self, reason: object = "aborted") -> None:
        """It is gone."""
        if not self.closed:
            self.closed, self.close_reason = True, reason
            self.relay_end.left(self)
            self.client.ends.pop(self.remote_peer, None)
            self._gone.set()

    async def close(self) -> None:
        self.abort("closed")


class Relay:
    """A relay as its clients meet it: a door, a queue of handshakes, a book of reservations."""

    def __init__(self, number: int, scenario: Scenario, limits: RelayLimits, rng: random.Random) -> None:
        self.peer = PeerId(b"\x12\x20" + rng.randbytes(32))
        self.addr = Multiaddr(f"/ip4/100.{number + 1}.0.1/tcp/4001").with_peer(self.peer)
        self.rtt = scenario.rtt
        self.capacity = scenario.capacity
        self.limits = limits
        self.up = True
        self.silent = self.draining = False
        self.ends: set[End] = set()
        self.begun: list[float] = []  # when handshakes began
        self.attempts: list[float] = []
        self.refused: Counter[str] = Counter()
        self.longest_queue = 0.0
        self._free_at = 0.0
        self.restarted()

    def restarted(self) -> None:
        """With empty books, as after a start."""
        clock = asyncio.get_running_loop().time
        self.book = ReservationBook(self.limits, virtual.unix, clock)
        self.admission = Admission(HostLimits(), clock=clock, descriptors=1 << 20)
        self.up, self.silent, self.draining, self._free_at = True, False, False, clock()

    def drains(self) -> None:
        """All are told in one moment; what they hold they keep."""
        self.draining = True
        for end in self.ends:
            asyncio.get_running_loop().call_later(self.rtt, end.client.keeping.drains, self.peer)

    def dies(self, *, silent: bool) -> None:
        """All connections are gone; the clients hear of it unless the machine died too."""
        self.up, self.silent = False, silent
        ends, self.ends = list(self.ends), set()
        if not silent:
            for end in ends:
                end.abort("the relay went away")

    async def welcome(self, client: Client) -> End:
        """A dial, from SYN to a multiplexed connection. DialFailed, TimedOut."""
        now = asyncio.get_running_loop().time
        self.attempts.append(now())
        if not self.up:
            if self.silent:
                await asyncio.sleep(Timeouts().dial)
                raise TimedOut(f"dialling {self.addr}", Timeouts().dial)
            await asyncio.sleep(self.rtt)
            raise DialFailed(self.peer, [(self.addr, ConnectionRefusedError())])
        await asyncio.sleep(self.rtt)
        source = self.admission.source(ipaddress.ip_address(client.ip))
        if why := self.admission.refuses(source, len(self.ends)):
            self.refused[why] += 1
            raise DialFailed(self.peer, [(self.addr, ConnectionResetError(why))])
        self.begun.append(now())
        evicted = asyncio.Event()
        key = object()
        self.admission.begin(key, source, evicted.set, len(self.ends))
        self._free_at = max(self._free_at, now()) + 1 / self.capacity
        wait = self._free_at - now()
        self.longest_queue = max(self.longest_queue, wait)
        try:
            if wait + 2 * self.rtt > Timeouts().dial:
                await asyncio.sleep(Timeouts().dial)
                raise TimedOut(f"dialling {self.addr}", Timeouts().dial)
            await asyncio.sleep(wait + 2 * self.rtt)
        finally:
            self.admission.end(key)
        if not self.up or evicted.is_set():
            raise DialFailed(self.peer, [(self.addr, ConnectionResetError())])
        self.admission.opened(source)
        end = End(self, client, client.ip)
        self.ends.add(end)
        return end

    async def reserve(self, end: End) -> RelayReservation:
        """RESERVE and its answer. ReservationRefused, NetworkError."""
        await asyncio.sleep(self.rtt)
        if end.closed or end not in self.ends:
            raise ConnectionClosed("gone")
        if self.draining:
            self.refused["draining"] += 1
            raise ReservationRefused("draining")
        try:
            held, _ = self.book.reserve(end.local_peer, end.ip, end)
        except ResourceLimit as error:
            self.refused[error.limit] += 1
            raise ReservationRefused(str(error)) from error
        return RelayReservation(self.peer, int(held.expires), (self.addr,), None, None)

    def left(self, end: End) -> None:
        """A connection is gone."""
        if end in self.ends:
            self.ends.remove(end)
            self.book.release(end)
            self.admission.closed(self.admission.source(ipaddress.ip_address(end.ip)))


class Client:
    """One client: what flare runs, on a host that is not there. `relays` by peer."""

    def __init__(self, number: int, scenario: Scenario, relays: Sequence[Relay], rng: random.Random) -> None:
        self.peer = PeerId(b"\x12\x20" + rng.randbytes(32))
        site = number % scenario.sites
        self.ip = f"20.{site >> 16 & 255}.{site >> 8 & 255}.{site & 255}"
        self.relays = {relay.peer: relay for relay in relays}
        self.ends: dict[PeerId, End] = {}
        self.since: dict[PeerId, float] = {}  # when each reservation began that is held
        self.empty_since: float | None = None
        self.longest_empty = 0.0
        uniform = random.Random(rng.random()).uniform
        config = Config()
        self.client = RelayClient(
            local_peer=self.peer,
            dial=self._never,
            on_event=self._hear,
            reserve=self._reserve,
            config=replace(ReservationConfig(), backoff_first=scenario.first_wait),
            unix=virtual.unix,
            uniform=uniform,
        )
        self.keeping = RelayKeeping(
            self,  # type: ignore[arg-type]  # its connections are Ends
            [StaticRelays(relay.addr for relay in relays)],
            replace(config.auto_relay, wanted=scenario.wanted, spread=scenario.first_wait),
            clock=asyncio.get_running_loop().time,
            uniform=uniform,
        )

    async def _never(self, relay: Multiaddr) -> Any:
        raise NetworkError("each relay has a dial of its own")

    async def _reserve(self, end: Any, *, timeout: float) -> RelayReservation:
        return await self.relays[end.remote_peer].reserve(end)

    def _hear(self, event: ReservationAccepted | ReservationLost) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(event, ReservationAccepted):
            self.since.setdefault(event.relay, now)
            self.keeping.accepted(event.relay, event.limit)
            if self.empty_since is not None:
                self.longest_empty = max(self.longest_empty, now - self.empty_since)
                self.empty_since = None
        elif event.relay is not None and self.since.pop(event.relay, None) is not None and not self.since:
            self.empty_since = now

    # What RelayKeeping asks of a host

    async def connect(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> End:
        if peer not in self.ends:
            self.ends[peer] = await self.relays[peer].welcome(self)
        return self.ends[peer]

    def connection(self, peer: PeerId) -> End | None:
        return self.ends.get(peer)

    async def release(self, connection: End) -> bool:
        await connection.close()
        return True

    def keep(self, relay: Multiaddr, dial: Dial, on_trouble: OnTrouble, *, trusted: bool) -> bool:
        self.client.add(relay, dial=dial, on_trouble=on_trouble)
        return True

    async def leave(self, relay: Multiaddr, *, hang_up: bool) -> None:
        await self.client.remove(relay)
        assert relay.peer_id is not None
        self.since.pop(relay.peer_id, None)
        if relay.peer_id in self.ends:
            await self.ends[relay.peer_id].close()

    def emit(self, event: RelayChosen | RelayDropped) -> None:
        pass


def run(scenario: Scenario, *, tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Let it happen: all clients settle, the first relay goes away, and comes back."""
    return virtual.run(_run(scenario, tell))


async def _run(scenario: Scenario, tell: Callable[[str], None]) -> Outcome:
    rng = random.Random(scenario.seed)
    now = asyncio.get_running_loop().time
    room = scenario.clients + 1
    limits = RelayLimits(max_reservations=room, max_reservations_per_ip=room)
    relays = [Relay(number, scenario, limits, rng) for number in range(scenario.relays)]
    clients = [Client(number, scenario, relays, rng) for number in range(scenario.clients)]
    for client in clients:
        await asyncio.sleep(rng.uniform(0, 20 / scenario.clients))  # they do not start in one moment
        client.keeping.start()
    await asyncio.sleep(50)
    relay = relays[0]
    settled = sum(len(client.since) == scenario.wanted for client in clients)
    tell(f"{settled} clients hold what they want, {len(relay.ends)} on the relay that will go")
    lost = [client for client in clients if relay.peer in client.since]
    for other in relays:
        other.begun.clear()
        other.attempts.clear()
        other.longest_queue = 0.0
    if scenario.drain:
        relay.drains()
        await asyncio.sleep(scenario.drain)
    relay.dies(silent=scenario.silent)
    await asyncio.sleep(scenario.down)
    up_at = now()
    relay.restarted()
    outcome = Outcome(scenario)
    returned: dict[Client, float] = {}
    while len(returned) < len(lost) and now() - up_at < 300:
        await asyncio.sleep(0.1)
        for client in lost:
            # a client that found another relay in the meantime has all it wants
            if client not in returned and _whole(client, scenario, now()):
                returned[client] = max(0.0, max(client.since.values()) - up_at)
    times = sorted(returned.values())
    outcome.back = len(times)
    if times:
        outcome.half_back, outcome.last_back = times[len(times) // 2], times[-1]
    outcome.peak_rate = {str(number): peak(other.begun) for number, other in enumerate(relays)}
    outcome.longest_queue = max(other.longest_queue for other in relays)
    outcome.attempts = len(relay.attempts)
    outcome.refused = sum((other.refused for other in relays), Counter())
    outcome.without_any = max(client.longest_empty for client in clients)
    await asyncio.gather(*(client.keeping.stop("over", hang_up=True) for client in clients))
    await asyncio.gather(*(client.client.close() for client in clients))
    return outcome


def _whole(client: Client, scenario: Scenario, now: float) -> bool:
    """It holds all it wants, and no relay that has died without its noticing."""
    return len(client.since) >= scenario.wanted and all(
        (end := client.ends.get(peer)) is not None and end in end.relay_end.ends for peer in client.since
    )


def peak(times: Sequence[float], window: float = WINDOW) -> int:
    """The most of `times` within one window."""
    most = first = 0
    ordered = sorted(times)
    for last, time in enumerate(ordered):
        while time - ordered[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most
