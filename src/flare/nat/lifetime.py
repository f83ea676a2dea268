"""How long the NAT keeps a UDP mapping that carries nothing (RFC 4787, REQ-5), by means of QUIC alone.

Each sample takes a throwaway socket. It makes a QUIC connection to one vantage point, keeps it for longer
than the two seconds after which a NAT may take a flow for lasting, and then says nothing:

- echoes: with an answer of the server on its way that nobody acknowledges. The server sends it again and
  again (RFC 9002, 6.2), each time after twice the pause, and each packet that comes in shows that the mapping
  outlived that pause. When they stop before the server gives the connection up, the mapping is gone.
- ping: with nothing on its way. The server's own keep-alive comes, after 15 seconds where go-libp2p's
  defaults are in use; none proves nothing.
- dial-back: the connection is closed; after a while the server is asked to dial the port (AutoNAT v2). That
  tells where the NAT lets in other ports of the server (no address-and-port-dependent filtering).
- again: the connection is closed; after a while a new one is made from the same port. That tells where the
  NAT gives out ports of its own: whether it is seen under the same.

The last two are made at LONGER idle times at once, and then once more between what lived and what did not. So
all takes some four minutes and less than 200 packets at most, beside everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from flare.errors import FlareError
from flare.nat.behaviour import Allocation, Behaviour, Filtering, Lifetime
from flare.nat.vantage import Vantage, endpoint
from flare.protocols import identify, ping
from flare.protocols.autonat import DIAL_BACK_PROTOCOL
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.quic import QuicListener, QuicTransport
from flare.transport.quic_session import QuicSession
from flare.transport.stream import Stream
from flare.transport.tasks import to_the_end
from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.protocols.autonat.v2_client import DialBackClient

logger = logging.getLogger("flare.nat.lifetime")

SETTLE: Final = 2.5  # seconds that a connection is used: Linux takes a flow for lasting after two
QUIET: Final = 0.5  # seconds in which the last acknowledgements are out
LONGER: Final = (25.0, 55.0, 110.0)  # seconds, a little less than the usual time-outs
STOPPED: Final = 2.2  # times the longest pause: then the echoes have stopped, which double it
SURE: Final = 0.98  # of the idle time-out: until then the server surely has not given up
PINGS: Final = (1, 10)  # before the echoes: the more, the surer the server of the round trip, and the sooner
# ... it repeats itself. So the pauses of the one fall between those of the other
ECHOES: Final = 3  # at least, before their end means something
TOLD: Final = 5.0  # seconds for a server to say as what it sees us
DATAGRAM: Final = 2048

Make = Callable[[Callable[[Connection], None]], QuicTransport]


@dataclass(frozen=True, slots=True)
class Sample:
    """After `idle` seconds without a packet a mapping was `alive`, or not."""

    idle: float
    alive: bool


def judge(samples: Sequence[Sample]) -> Lifetime | None:
    """The bracket that most samples agree with, the longest of those; None when none was alive at all."""
    cuts = sorted({0.0, *(sample.idle for sample in samples if sample.alive)})

    def agreeing(cut: float) -> int:
        return sum(sample.alive == (sample.idle <= cut) for sample in samples)

    cut = max(cuts, key=lambda cut: (agreeing(cut), cut))
    if not samples or cut == 0.0:
        return None
    gone = [sample.idle for sample in samples if not sample.alive and sample.idle > cut]
    at_most = math.ceil(10 * min(gone)) / 10 if gone else None
    return Lifetime(math.floor(10 * cut) / 10, at_most, round(agreeing(cut) / (len(samples) + 1), 2))


def pauses(arrivals: Sequence[float], until: float) -> list[Sample]:
    """What packets say that came `arrivals` seconds after the last that was sent, each following the same one
    twice as late, and none that should have come by `until`."""
    longest = longest_pause(arrivals)
    if not longest:
        return []
    found = [Sample(longest, True)]
    if len(arrivals) >= ECHOES and arrivals[-1] + STOPPED * longest <= until:
        found.append(Sample(STOPPED * longest, False))
    return found


def longest_pause(arrivals: Sequence[float]) -> float:
    """The longest that was survived, in seconds; 0 when nothing came."""
    return max((later - earlier for earlier, later in pairwise((0.0, *arrivals))), default=0.0)


class LifetimeProbe:
    """One measurement, from `vantage`. `make` gives a QUIC transport under the host's identity; `asker` asks
    for dial-backs on the vantage point's connection.
    """

    def __init__(self, make: Make, asker: DialBackClient, vantage: Vantage) -> None:
        self._make = make
        self._asker = asker
        self._vantage = vantage
        self._handlers = StreamHandlers()
        self._handlers.add(DIAL_BACK_PROTOCOL, asker.serve)

    async def run(self, behaviour: Behaviour) -> Lifetime | None:
        """Measure behind a NAT that behaves so; None when nothing can be told."""
        look = self._longer(behaviour)
        first: list[Awaitable[list[Sample]]] = [*map(self._echoes, PINGS), self._ping()]
        if look is not None:
            first += [look(idle) for idle in LONGER]
        samples = [sample for found in await asyncio.gather(*first) for sample in found]
        life = judge(samples)
        if look is not None and life is not None and life.at_most is not None:
            samples += await look((life.at_least + life.at_most) / 2)
        return judge(samples)

    def _longer(self, behaviour: Behaviour) -> Callable[[float], Awaitable[list[Sample]]] | None:
        if behaviour.filtering in (Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT):
            return self._dial_back
        if behaviour.allocation in (Allocation.SEQUENTIAL, Allocation.RANDOM):
            return self._again
        return None

    # The kinds of sample

    async def _echoes(self, pings: int) -> list[Sample]:
        async def measure(transport: QuicTransport, listener: QuicListener) -> list[Sample]:
            stream, session = await self._settle(transport, pings)
            await stream.write(bytes(ping.SIZE))
            listener.socket.flush_now(session)
            since = asyncio.get_running_loop().time()
            until = session.idle_timeout * SURE
            return pauses(await _watch(listener.socket.abandon(), self._vantage.ip, since, until), until)

        return await self._with_port(measure)

    async def _ping(self) -> list[Sample]:
        async def measure(transport: QuicTransport, listener: QuicListener) -> list[Sample]:
            _, session = await self._settle(transport, 1)
            since = asyncio.get_running_loop().time()
            await asyncio.sleep(QUIET)
            until = session.idle_timeout * SURE
            arrivals = await _watch(listener.socket.abandon(), self._vantage.ip, since, until)
            survived = longest_pause(arrivals)
            return [Sample(survived, True)] if survived else []

        return await self._with_port(measure)

    async def _dial_back(self, idle: float) -> list[Sample]:
        async def measure(transport: QuicTransport, listener: QuicListener) -> list[Sample]:
            seen = await self._use(transport)
            await asyncio.sleep(idle)
            verdict = await self._asker.check(self._vantage.connection, seen)
            return [] if verdict.reachable is None else [Sample(idle, verdict.reachable)]

        return await self._with_port(measure)

    async def _again(self, idle: float) -> list[Sample]:
        async def measure(transport: QuicTransport, listener: QuicListener) -> list[Sample]:
            seen = await self._use(transport)
            await asyncio.sleep(idle)
            return [Sample(idle, await self._seen(await self._connect(transport)) == seen)]

        return await self._with_port(measure)

    # What they are made of

    async def _with_port(
        self, measure: Callable[[QuicTransport, QuicListener], Awaitable[list[Sample]]]
    ) -> list[Sample]:
        transport = self._make(self._serve)
        try:
            return await measure(transport, await transport.listen(self._vantage.any_port()))
        except (FlareError, OSError) as error:
            logger.debug("a sample of the NAT's lifetime came to nothing: %s", error)
            return []
        finally:
            await to_the_end(transport.close())

    async def _settle(self, transport: QuicTransport, pings: int) -> tuple[Stream, QuicSession]:
        """A connection that was used for a while, in the end for so many `pings`, and their stream."""
        connection = await self._connect(transport)
        session = connection.link
        assert isinstance(session, QuicSession)
        stream = await connection.open_stream(ping.PROTOCOL)
        pinger = ping.Pinger(stream)
        await pinger.ping()
        await asyncio.sleep(SETTLE)
        for _ in range(pings):
            await pinger.ping()
        return stream, session

    async def _connect(self, transport: QuicTransport) -> Connection:
        connection = await transport.dial(self._vantage.addrs[0], expected_peer=self._vantage.peer)
        connection.serve(self._handlers)
        return connection

    async def _use(self, transport: QuicTransport) -> Multiaddr:
        """Make a mapping, and leave it alone; where it is seen."""
        connection = await self._connect(transport)
        seen = await self._seen(connection)
        await asyncio.sleep(SETTLE)
        await ping.ping(connection)
        await connection.close()
        return seen

    async def _seen(self, connection: Connection) -> Multiaddr:
        async with connection.open_stream(identify.PROTOCOL) as stream:
            told = await identify.request(stream, timeout=TOLD)
        seen = endpoint(told.observed_addr)
        if seen is None:
            raise FlareError("the server does not say as what it sees us")
        return Multiaddr.from_socket(seen, "quic-v1")

    def _serve(self, connection: Connection) -> None:
        connection.serve(self._handlers)


async def _watch(sock: socket.socket, ip: str, since: float, seconds: float) -> list[float]:
    """When datagrams came from `ip`, for so many seconds `since` then, on the loop's clock; closes `sock`."""
    loop = asyncio.get_running_loop()
    arrivals: list[float] = []

    def readable() -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            _, source = sock.recvfrom(DATAGRAM)
            if source[0] == ip:
                arrivals.append(loop.time() - since)

    loop.add_reader(sock, readable)
    try:
        await asyncio.sleep(since + seconds - loop.time())
    finally:
        loop.remove_reader(sock)
        sock.close()
    return arrivals
