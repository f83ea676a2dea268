"""Finds out how the NAT before us treats TCP or UDP, from ports of its own that nobody has heard of.

No STUN server is needed: libp2p's own servers say by identify as what they see us, and dial back when asked
(AutoNAT v2). UDP is looked at by QUIC connections.

Filtering: from one port one vantage point is dialled, which says as what it sees it. While only that one
has been spoken to, it and the others are asked to dial back there. A NAT that drops what it does not let in
makes them wait for their time-out, so what has not come within `PATIENCE` counts as filtered until they
answer; one that never answers proves nothing. Where there is no NAT, the outside address of a port that has
sent to nobody is known: whoever comes in there passes no filter at all.

Mapping: from a second port all vantage points are dialled. Allocation: some more ports. All of these leave at
once, so that few ports of others come between them. Hairpin: we dial the first port at its outside address.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from flare.errors import FlareError
from flare.nat.behaviour import (
    Behaviour,
    Endpoint,
    Mapping,
    Sight,
    judge_allocation,
    judge_filtering,
    judge_mapping,
)
from flare.nat.vantage import Vantage, endpoint
from flare.protocols import identify
from flare.protocols.autonat import DIAL_BACK_PROTOCOL
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.tasks import to_the_end
from flare.wire.multiaddr import Multiaddr
from flare.wire.multiaddr import is_public as addr_is_public

if TYPE_CHECKING:
    from flare.config import Timeouts
    from flare.protocols.autonat.v2_client import DialBackClient
    from flare.wire.peer_id import PeerId

logger = logging.getLogger("flare.nat.probe")

PATIENCE: Final = 2.5  # seconds: a SYN that was lost is sent again after one
LOOK: Final = 5.0  # seconds for a server to say as what it sees us
STAGGER: Final = 1.0  # seconds before the next vantage point is tried too, when one does not answer
SAMPLES: Final = 3  # further local ports that show how the NAT allocates
GONE: Final = 0.02  # seconds in which packets that were to leave at once have left
ENOUGH: Final = 3  # servers of which one may lie about the mapping

T = TypeVar("T")


class Listener(Protocol):
    """A port that listens."""

    port: int


class Transport(Protocol):
    """What a probe asks of TcpTransport or QuicTransport, each with one port."""

    async def listen(self, addr: Multiaddr) -> Listener:
        """Take a port, which dials leave from as well."""

    async def dial(self, addr: Multiaddr, *, expected_peer: PeerId) -> Connection:
        """A connection to `addr`."""

    async def close(self) -> None:
        """End all of it."""


OpenTransport = Callable[[Callable[[Connection], None]], Transport]


class NatProbe:
    """One look at the NAT. `asker` is who asks for dial-backs on the host's connections.

    `transport` is "tcp", "udp", "tcp6" or "udp6"; `make` gives a transport under the host's identity that
    hands inbound connections on. Probes that share `turn` do not come between each other's ports.
    """

    def __init__(
        self,
        transport: str,
        make: OpenTransport,
        asker: DialBackClient,
        *,
        own_peer: PeerId,
        own_ips: Sequence[str],
        timeouts: Timeouts,
        is_public: Callable[[Multiaddr], bool] = addr_is_public,
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._transport = transport
        self._make = make
        self._asker = asker
        self._own_peer = own_peer
        self._own_ips = own_ips
        self._timeouts = timeouts
        self._is_public = is_public
        self._turn = turn or asyncio.Lock()
        self._handlers = StreamHandlers()
        self._handlers.add(DIAL_BACK_PROTOCOL, asker.serve)
        self._any_port: Multiaddr
        self._used: list[Transport] = []
        self._tasks: list[asyncio.Task[Any]] = []
        # what is under way, or has come
        self._asks: dict[Vantage, asyncio.Task[bool | None]] = {}
        self._second: dict[Vantage, asyncio.Task[bool | None]] = {}
        self._mapped: list[asyncio.Task[Sight | None]] = []
        self._samples: list[asyncio.Task[Sight | None]] = []
        self._hairpin: asyncio.Task[bool] | None = None

    async def run(self, vantages: Sequence[Vantage]) -> AsyncIterator[Behaviour]:
        """First what seems to be, then what is, once the servers have answered; nothing without servers."""
        try:
            if vantages:
                self._any_port = vantages[0].any_port()
                self._own_ips = (*self._own_ips, str(self._any_port.ip))
            first = await self._first_look(vantages)
            if first is None:
                if vantages:
                    yield Behaviour(self._transport, blocked=True)
                return
            vantage, sight = first
            own = judge_mapping([sight], self._own_ips) is Mapping.NONE
            if own and await self._open_to_all(sight, vantages):
                yield self._open(vantage, sight)
                return
            back = self._addr(sight.seen)
            if self._is_public(back):
                asked = [vantage, *(other for other in vantages if other.ip != vantage.ip)]
                self._asks = {one: self._start(self._dial_back(one, back, vantage)) for one in asked}
            if not vantage.trusted:  # then what it says takes another one, each of its own port
                other = [one for one in vantages if one.ip != vantage.ip][:1]
                self._second = {one: self._start(self._other_port(one)) for one in other}
            until = asyncio.get_running_loop().time() + PATIENCE
            await self._burst(vantage, vantages)
            if not own:
                self._hairpin = self._start(self._reach_ourselves(back))
            await self._wait(until)
            yield self._judge(vantage, sight, vantages, final=False)
            if any(not task.done() for task in (*self._asks.values(), *self._second.values())):
                await self._wait(None)
                yield self._judge(vantage, sight, vantages, final=True)
        except OSError:
            return  # no port to be had
        finally:
            await to_the_end(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(used.close() for used in self._used), return_exceptions=True)

    # What is judged

    def _open(self, vantage: Vantage, sight: Sight) -> Behaviour:
        """No NAT and no filter."""
        return Behaviour(
            self._transport,
            Mapping.NONE,
            judge_filtering(None, None, unknown_port=True),
            judge_allocation([sight])[0],
            external=sight.seen[0],
            sure=vantage.trusted,
        )

    def _judge(self, first: Vantage, sight: Sight, vantages: Sequence[Vantage], *, final: bool) -> Behaviour:
        """`sight` comes from a port of its own: it tells the mapping only if it is all there is."""
        sights, samples = _come(self._mapped), _come(self._samples)
        logger.debug("%s: seen as %s, then as %s", self._transport, sights, samples)
        allocation, step = judge_allocation([*sights, *samples])
        seen_by = [one for one in vantages if any(s.vantage[0] == one.ip for s in sights)]
        words = {one: _word(ask, final) for one, ask in self._asks.items()}
        others = {word for one, word in words.items() if one is not first}
        against = [one for one, word in words.items() if word is False]
        if not first.trusted:
            against = [first] * bool(against)  # it said where to dial: all of it stands on its word
        kept_out = [first] if words.get(first) is False else []
        kept_out += [one for one, ask in self._second.items() if _word(ask, final=True) is False]
        return Behaviour(
            self._transport,
            judge_mapping(sights or [sight], self._own_ips),
            judge_filtering(words.get(first), True if True in others else False if False in others else None),
            allocation,
            step,
            self._hairpin.result() if self._hairpin is not None and self._hairpin.done() else None,
            (sights or [sight])[0].seen[0],
            filtered=tuple(one.peer for one in against),
            kept_out=tuple(one.peer for one in kept_out),
            sure=len(seen_by) >= ENOUGH or (bool(seen_by) and all(one.trusted for one in seen_by)),
        )

    # What is asked

    async def _first_look(self, vantages: Sequence[Vantage]) -> tuple[Vantage, Sight] | None:
        """By whoever answers first, each from a port of its own."""
        left = list(vantages)
        pending: set[asyncio.Task[tuple[Vantage, Sight] | None]] = set()
        while left or pending:
            if left:
                pending.add(self._start(self._look_alone(left.pop(0))))
            done, pending = await asyncio.wait(
                pending, timeout=STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if (found := task.result()) is not None:
                    return found
        return None

    async def _look_alone(self, vantage: Vantage) -> tuple[Vantage, Sight] | None:
        sight = await self._look(*await self._port(), vantage.addrs[0], vantage.peer)
        return None if sight is None else (vantage, sight)

    async def _burst(self, vantage: Vantage, vantages: Sequence[Vantage]) -> None:
        """Dial all vantage points from one port, and one of them from some more."""
        shared, *others = [await self._port() for _ in range(1 + SAMPLES)]
        async with self._turn:
            self._mapped = [
                self._start(self._look(*shared, addr, one.peer)) for one in vantages for addr in one.addrs
            ]
            self._samples = [
                self._start(self._look(*port, vantage.addrs[0], vantage.peer)) for port in others
            ]
            await asyncio.sleep(GONE)

    async def _port(self) -> tuple[Transport, int]:
        """A transport on a port of its own; OSError."""
        transport = self._make(self._serve)
        self._used.append(transport)
        return transport, (await transport.listen(self._any_port)).port

    async def _look(self, transport: Transport, port: int, addr: Multiaddr, peer: PeerId) -> Sight | None:
        """Dial from `port` and hear as what it is seen; the connection stays, so that the mapping does."""
        vantage = endpoint(addr)
        try:
            async with asyncio.timeout(LOOK):
                connection = await transport.dial(addr, expected_peer=peer)
                connection.serve(self._handlers)
                if connection.local_addr is None or connection.local_addr.port != port:
                    return None  # the port could not be shared
                async with connection.open_stream(identify.PROTOCOL) as stream:
                    told = await identify.request(stream, timeout=self._timeouts.identify)
        except (FlareError, OSError):
            return None
        seen = endpoint(told.observed_addr)
        return None if vantage is None or seen is None else Sight(vantage, port, seen)

    async def _dial_back(self, vantage: Vantage, addr: Multiaddr, first: Vantage | None) -> bool | None:
        """Whether `vantage` comes in at `addr`, a port that has sent to `first` only; None: nobody knows."""
        try:
            verdict = await self._asker.check(vantage.connection, addr)
        except (FlareError, OSError):
            return None
        source = endpoint(verdict.source)
        if verdict.reachable and first is not None:
            if source is None or source == endpoint(first.addrs[0]):
                return None  # from where the port has sent to: that gets through any filter
            if vantage is not first and source[0] == first.ip:
                return None
        return verdict.reachable

    async def _other_port(self, vantage: Vantage) -> bool | None:
        """Whether `vantage` comes in, from another port, where a port has sent to it."""
        found = await self._look_alone(vantage)
        back = self._addr(found[1].seen) if found is not None else None
        if back is None or not self._is_public(back):
            return None
        return await self._dial_back(vantage, back, vantage)

    async def _open_to_all(self, sight: Sight, vantages: Sequence[Vantage]) -> bool:
        """Whether somebody comes in at a port that has sent to nobody."""
        _, port = await self._port()
        addr = self._addr((sight.seen[0], port))
        if not self._is_public(addr):
            return False
        pending = {self._start(self._dial_back(vantage, addr, None)) for vantage in vantages}
        until = asyncio.get_running_loop().time() + PATIENCE
        while pending and (left := until - asyncio.get_running_loop().time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                return True
        return False

    async def _reach_ourselves(self, addr: Multiaddr) -> bool:
        """Whether our outside address leads back to us."""
        try:
            async with asyncio.timeout(self._timeouts.hairpin):
                transport, _ = await self._port()
                await transport.dial(addr, expected_peer=self._own_peer)
        except (FlareError, OSError):
            return False
        return True

    def _addr(self, seen: Endpoint) -> Multiaddr:
        return Multiaddr.from_socket(seen, "tcp" if self._transport.startswith("tcp") else "quic-v1")

    def _serve(self, connection: Connection) -> None:
        connection.serve(self._handlers)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def _wait(self, until: float | None) -> None:
        """Until all has come that is under way, or the loop's time is `until`."""
        hairpin = [self._hairpin] if self._hairpin is not None else []
        asks = [*self._asks.values(), *self._second.values()]
        tasks: list[asyncio.Task[Any]] = [*asks, *self._mapped, *self._samples, *hairpin]
        left = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        if tasks:
            await asyncio.wait(tasks, timeout=left)


def _come(looks: Sequence[asyncio.Task[Sight | None]]) -> list[Sight]:
    """The sights that are there, in the order in which they were asked for."""
    return [sight for look in looks if look.done() and (sight := look.result()) is not None]


def _word(ask: asyncio.Task[bool | None], final: bool) -> bool | None:
    """Whether it came in; who has not answered yet was kept out so far."""
    return ask.result() if ask.done() else (None if final else False)
