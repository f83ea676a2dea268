"""The relay: grants reservations and joins circuits (circuit-v2.md, "Hop Protocol").

Who asks is always the authenticated remote peer, never a field of a message. Whatever a peer sends that is no
request is answered with MALFORMED_MESSAGE or UNEXPECTED_MESSAGE and costs only its stream.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from flare.config import RelayLimits, Timeouts
from flare.errors import (
    DecodeError,
    FlareError,
    NetworkError,
    ResourceLimit,
    StreamClosed,
)
from flare.events import CircuitClosed, CircuitOpened, ReservationMade
from flare.protocols.exchange import MESSAGE_LIMIT, last_words, within
from flare.protocols.relay import HOP_PROTOCOL
from flare.protocols.relay.book import Circuit, ReservationBook
from flare.protocols.relay.stop import open_stop as stop_protocol
from flare.wire.envelope import Voucher
from flare.wire.messages import HopMessage, HopType, Limit, Reservation, Status
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream
    from flare.wire.keys import Identity

log = logging.getLogger("flare.protocols.relay")

PROTOCOL: Final = HOP_PROTOCOL
RelayEvent = ReservationMade | CircuitOpened | CircuitClosed
_MAX_DURATION: Final = (1 << 32) - 1  # Limit.duration is a uint32


class Acl(Protocol):
    """Who may use the relay; asked before any limit."""

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        """`peer`, connected from `addr`, may hold a reservation."""

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        """`source`, connected from `addr`, may open a circuit to `target`."""


class AllowAll:
    """The Acl of a public relay."""

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        return True

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        return True


class Spliced(Protocol):
    """How a splice ended (flare._core.splice.SpliceResult)."""

    @property
    def reason(self) -> str: ...
    @property
    def bytes_a_to_b(self) -> int: ...
    @property
    def bytes_b_to_a(self) -> int: ...


class Splice(Protocol):
    """A running splice, and what it has carried."""

    @property
    def bytes_a_to_b(self) -> int: ...
    @property
    def bytes_b_to_a(self) -> int: ...
    def cancel(self) -> None: ...


class SpliceStreams(Protocol):
    """Joins two streams until both are done; 0 is no limit. The core's `splice` over the streams' cores."""

    def __call__(
        self,
        a: Stream,
        b: Stream,
        *,
        limit_a_to_b: int,
        limit_b_to_a: int,
        deadline_ns: int,
        on_done: Callable[[Spliced], None],
    ) -> Splice: ...


@dataclass(slots=True)
class RelayCounters:
    """What the relay did since it started. The Counters are by status code."""

    reservations_opened: int = 0
    reservations_renewed: int = 0
    reservations_closed: int = 0
    reserve_answers: Counter[int] = field(default_factory=Counter)
    connect_answers: Counter[int] = field(default_factory=Counter)
    circuits_opened: int = 0
    circuits_closed: int = 0
    circuit_seconds: float = 0.0  # of closed circuits
    bytes_relayed: int = 0  # by closed circuits, both directions
    malformed: int = 0


class HopService:
    """Serves /libp2p/circuit/relay/0.2.0/hop.

    `addrs` gives the relay's own addresses, `splice` joins two streams, `unix` is the relay's clock in Unix
    seconds. Circuits from or to `unlimited` peers carry no limit. The host calls `connection_closed`.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        addrs: Callable[[], Sequence[Multiaddr]],
        splice: SpliceStreams,
        limits: RelayLimits | None = None,
        acl: Acl | None = None,
        unlimited: Iterable[PeerId] = (),
        book: ReservationBook | None = None,
        open_stop: Callable[..., Awaitable[Stream]] = stop_protocol,
        on_event: Callable[[RelayEvent], None] = lambda event: None,
        timeouts: Timeouts | None = None,
        unix: Callable[[], float] = time.time,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._identity = identity
        self._addrs = addrs
        self._splice = splice
        self._limits = limits or RelayLimits()
        self._acl = acl or AllowAll()
        self._unlimited = frozenset(unlimited)
        self.book = book or ReservationBook(self._limits, unix)
        self._open_stop = open_stop
        self._on_event = on_event
        self._timeouts = timeouts or Timeouts()
        self._clock_ns = clock_ns
        self._draining = False
        self._running: dict[Circuit, Splice] = {}
        self._told: tuple[Multiaddr, ...] = ()  # our addresses, and
        self._own: tuple[Multiaddr, ...] = ()  # ... those that a reservation names, with our id
        self.counters = RelayCounters()

    @property
    def running(self) -> Mapping[Circuit, Splice]:
        """The circuits that carry bytes now; a is the source's side."""
        return self._running

    def connection_closed(self, connection: Connection) -> None:
        """A connection ended, and the reservation made over it with it."""
        if self.book.release(connection) is not None:
            self.counters.reservations_closed += 1

    def drain(self) -> None:
        """Refuse new reservations from now on; circuits go on."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """`drain` was called."""
        return self._draining

    async def serve(self, stream: Stream) -> None:
        """One request; for a CONNECT it returns when the circuit is over."""
        try:
            async with within(self._timeouts.relay_message, "a request to the relay"):
                frame = await stream.read_frame(MESSAGE_LIMIT)
        except (DecodeError, StreamClosed):
            await _finished(self._malformed(stream, Status.MALFORMED_MESSAGE))
        except (NetworkError, TimeoutError):
            stream.reset()
        else:
            await _finished(self._act(stream, frame))

    def serve_now(self, stream: Stream) -> Awaitable[None] | None:
        """As `serve`, without a task for a RESERVE that is all here: None when it is done."""
        try:
            frame = stream.read_frame_now(MESSAGE_LIMIT)
        except (DecodeError, StreamClosed):
            return self._malformed(stream, Status.MALFORMED_MESSAGE)
        except NetworkError:
            stream.reset()
            return None
        return self.serve(stream) if frame is None else self._act(stream, frame)

    def _act(self, stream: Stream, frame: bytes) -> Awaitable[None] | None:
        try:
            request = HopMessage.decode(frame)
        except DecodeError:
            return self._malformed(stream, Status.MALFORMED_MESSAGE)
        if stream.connection.closed:
            return None  # what it had sent outlived it: a reservation would outlive it too
        if request.type is HopType.RESERVE:
            return self._reserve(stream)
        if request.type is HopType.CONNECT:
            return self._connect(stream, request)
        return self._malformed(stream, Status.UNEXPECTED_MESSAGE)

    # -- RESERVE

    def _reserve(self, stream: Stream) -> Awaitable[None] | None:
        connection = stream.connection
        peer = connection.remote_peer
        answer = self._judge_reserve(connection)
        if isinstance(answer, HopMessage):
            status = Status.OK
        else:
            status, answer = answer, HopMessage(type=HopType.STATUS, status=answer)
        self.counters.reserve_answers[status] += 1
        log.debug("reservation of %s: %s", peer, status.name)
        return self._answer(stream, answer)

    def _judge_reserve(self, connection: Connection) -> HopMessage | Status:
        peer, addr = connection.remote_peer, connection.remote_addr
        if connection.is_relayed or not self._acl.allow_reserve(peer, addr):
            return Status.PERMISSION_DENIED
        if self._draining:
            return Status.RESERVATION_REFUSED
        try:
            held, renewed = self.book.reserve(peer, _source(addr), connection)
        except ResourceLimit as error:
            log.debug("no reservation for %s: %s", peer, error)
            return Status.RESERVATION_REFUSED
        if renewed:
            self.counters.reservations_renewed += 1
        else:
            self.counters.reservations_opened += 1
        expire = int(held.expires)
        self._on_event(ReservationMade(peer, expire))
        voucher = Voucher(relay=self._identity.peer_id, peer=peer, expiration=expire).seal(self._identity)
        limit = self._limit(peer)
        own = self._own_addrs(connection)
        answer = self._granted(expire, own, voucher, limit)
        if len(answer.encode()) <= MESSAGE_LIMIT:
            return answer
        addrs: tuple[Multiaddr, ...] = ()
        for addr in own:
            longer = self._granted(expire, (*addrs, addr), voucher, limit)
            if len(longer.encode()) > MESSAGE_LIMIT:
                break
            addrs, answer = (*addrs, addr), longer
        return answer

    def _granted(
        self, expire: int, addrs: tuple[Multiaddr, ...], voucher: bytes, limit: Limit | None
    ) -> HopMessage:
        reservation = Reservation(expire=expire, addrs=addrs, voucher=voucher)
        return HopMessage(type=HopType.STATUS, status=Status.OK, reservation=reservation, limit=limit)

    def _own_addrs(self, connection: Connection) -> tuple[Multiaddr, ...]:
        """Ours with our id; with none, the one this peer reached: some peers fail on an empty list."""
        me = self._identity.peer_id
        told = tuple(self._addrs())
        if told != self._told:
            usable = [addr for addr in told if not addr.is_circuit and addr.peer_id in (None, me)]
            self._told = told
            self._own = tuple(addr.without_peer().with_peer(me) for addr in dict.fromkeys(usable))
        if not self._own and connection.local_addr is not None:
            return (connection.local_addr.without_peer().with_peer(me),)
        return self._own

    def _limit(self, *ends: PeerId) -> Limit | None:
        """What circuits between these may carry, as the wire says it: None is no limit, as is a 0 in it."""
        data, seconds = self._limits.circuit_bytes, self._limits.circuit_duration
        if (not data and not seconds) or not self._unlimited.isdisjoint(ends):
            return None
        return Limit(duration=min(math.ceil(seconds), _MAX_DURATION), data=data)

    # -- CONNECT

    async def _connect(self, stream: Stream, request: HopMessage) -> None:
        source = stream.connection.remote_peer
        if request.peer is None:
            await _finished(self._malformed(stream, Status.MALFORMED_MESSAGE))
            return
        target = request.peer.id
        limit = self._limit(source, target)
        try:
            circuit, onward = await self._open(stream.connection, target, limit)
        except _Refused as refused:
            self.counters.connect_answers[refused.status] += 1
            log.debug("no circuit from %s to %s: %s", source, target, refused)
            await _finished(self._answer(stream, HopMessage(type=HopType.STATUS, status=refused.status)))
            return
        self.counters.connect_answers[Status.OK] += 1
        self.counters.circuits_opened += 1
        started = self._clock_ns()
        self._on_event(CircuitOpened(source, target))
        reason, sent, received = "reset", 0, 0
        try:
            async with within(self._timeouts.relay_message, "the answer to CONNECT"):
                await stream.write_frame(
                    HopMessage(type=HopType.STATUS, status=Status.OK, limit=limit).encode()
                )
            done = await self._join(circuit, stream, onward, limit)
            reason, sent, received = done.reason, done.bytes_a_to_b, done.bytes_b_to_a
        except (NetworkError, TimeoutError):
            stream.reset()
            onward.reset()
        except BaseException:
            stream.reset()
            onward.reset()
            raise
        finally:
            self.book.close_circuit(circuit)
            self.counters.circuits_closed += 1
            seconds = (self._clock_ns() - started) / 1e9
            self.counters.circuit_seconds += seconds
            self.counters.bytes_relayed += sent + received
            self._on_event(CircuitClosed(source, target, reason, sent, received, seconds))

    async def _open(
        self, connection: Connection, target: PeerId, limit: Limit | None
    ) -> tuple[Circuit, Stream]:
        """The circuit in the book and the stream to its target, or _Refused."""
        source = connection.remote_peer
        if connection.is_relayed:
            raise _Refused(Status.PERMISSION_DENIED, "asked over a relayed connection")
        if source == target:
            raise _Refused(Status.PERMISSION_DENIED, "a circuit to oneself")
        if not self._acl.allow_connect(source, connection.remote_addr, target):
            raise _Refused(Status.PERMISSION_DENIED, "not allowed")
        held = self.book.find(target)
        if held is None:
            raise _Refused(Status.NO_RESERVATION, "the target holds no reservation")
        try:
            circuit = self.book.open_circuit(source, target)
        except ResourceLimit as error:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, str(error)) from None
        try:
            onward = await self._open_stop(
                held.connection, source, limit, timeout=self._timeouts.relay_message
            )
        except FlareError as error:
            self.book.close_circuit(circuit)
            raise _Refused(Status.CONNECTION_FAILED, str(error)) from None
        except BaseException:
            self.book.close_circuit(circuit)
            raise
        return circuit, onward

    async def _join(self, circuit: Circuit, a: Stream, b: Stream, limit: Limit | None) -> Spliced:
        """Splice until both directions are done, the limit or the deadline."""
        done: asyncio.Future[Spliced] = asyncio.get_running_loop().create_future()

        def on_done(result: Spliced) -> None:
            if not done.done():
                done.set_result(result)

        data = limit.data or 0 if limit is not None else 0
        seconds = limit.duration or 0 if limit is not None else 0
        deadline_ns = self._clock_ns() + seconds * 1_000_000_000 if seconds else 0
        splice = self._splice(
            a, b, limit_a_to_b=data, limit_b_to_a=data, deadline_ns=deadline_ns, on_done=on_done
        )
        self._running[circuit] = splice
        try:
            return await done
        except asyncio.CancelledError:
            splice.cancel()
            raise
        finally:
            del self._running[circuit]

    # -- answers

    def _malformed(self, stream: Stream, status: Status) -> Awaitable[None] | None:
        self.counters.malformed += 1
        return self._answer(stream, HopMessage(type=HopType.STATUS, status=status))

    def _answer(self, stream: Stream, message: HopMessage) -> Awaitable[None] | None:
        return last_words(
            stream, message.frame(), self._timeouts.relay_message, "answering a request to the relay"
        )


async def _finished(rest: Awaitable[None] | None) -> None:
    if rest is not None:
        await rest


def _source(addr: Multiaddr) -> str:
    """What counts as one for max_reservations_per_ip: in IPv6 a /64, which one host may own."""
    ip = addr.ip
    if ip is None or ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


class _Refused(Exception):
    """No circuit, and the status that says why."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
