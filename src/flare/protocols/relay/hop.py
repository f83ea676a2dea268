"""The relay: grants reservations and joins circuits (circuit-v2.md, "Hop Protocol").

Who asks is always the authenticated remote peer, never a field of a message. Whatever a peer sends that is no
request is answered with MALFORMED_MESSAGE or UNEXPECTED_MESSAGE and costs only its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flare._core.shaper import Bucket
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
from flare.protocols.relay.access import Acl, AllowAll, PeerList, prefix_of
from flare.protocols.relay.book import Circuit, Held, ReservationBook
from flare.protocols.relay.shaping import Shaping
from flare.protocols.relay.splicing import RelayCounters, Splice, Spliced, SpliceStreams
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
MAX_WAITING: Final = 64  # streams of a connection without a request yet: defends memory
RESERVE_PRICE: Final = 4  # of flare.transport.conduct: each costs a signature
_MAX_DURATION: Final = (1 << 32) - 1  # Limit.duration is a uint32


class HopService:
    """Serves /libp2p/circuit/relay/0.2.0/hop.

    `addrs` gives the relay's own addresses, `splice` joins two streams, `unix` is the relay's clock in Unix
    seconds, `clock_ns` a monotonic one. `unlimited` peers count against the limits of the whole relay only,
    and circuits from or to them carry no limit. The host calls `connection_closed`.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        addrs: Callable[[], Sequence[Multiaddr]],
        splice: SpliceStreams,
        limits: RelayLimits | None = None,
        acl: Acl | None = None,
        unlimited: PeerList | Iterable[PeerId] = (),
        book: ReservationBook | None = None,
        open_stop: Callable[..., Awaitable[Stream]] = stop_protocol,
        on_event: Callable[[RelayEvent], None] = lambda event: None,
        timeouts: Timeouts | None = None,
        unix: Callable[[], float] = time.time,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        limits = limits or RelayLimits()
        self._identity = identity
        self._addrs = addrs
        self._splice = splice
        self._acl = acl or AllowAll()
        self._unlimited = _peer_list(unlimited)
        self.book = book or ReservationBook(limits, unix, lambda: clock_ns() / 1e9)
        self._shaping = Shaping(limits)
        self._open_stop = open_stop
        self._on_event = on_event
        self._timeouts = timeouts or Timeouts()
        self._clock_ns = clock_ns
        self._draining = self._closed = False
        self._running: dict[Circuit, Splice] = {}
        self._waiting: Counter[Connection] = Counter()  # streams without a request yet
        self._told: tuple[Multiaddr, ...] = ()  # our addresses, and
        self._own: tuple[Multiaddr, ...] = ()  # ... those that a reservation names, with our id, and
        self._outside: tuple[Multiaddr, ...] = ()  # ... those that are of use to who is not on this machine
        self._ends: dict[Circuit, tuple[Connection, Connection]] = {}
        self._idle = asyncio.Event()
        self.counters = RelayCounters()

    @property
    def running(self) -> Mapping[Circuit, Splice]:
        """The circuits that carry bytes now; a is the source's side."""
        return self._running

    @property
    def limits(self) -> RelayLimits:
        """What is granted now."""
        return self.book.limits

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken on."""
        return self._draining

    def connection_closed(self, connection: Connection) -> None:
        """A connection ended, and the reservation made over it with it."""
        if self.book.release(connection) is not None:
            self.counters.reservations_closed += 1

    def update(
        self,
        limits: RelayLimits | None = None,
        *,
        acl: Acl | None = None,
        unlimited: PeerList | Iterable[PeerId] | None = None,
    ) -> None:
        """Other limits and lists for what comes next; None keeps what there is.

        What was promised stays: reservations keep their expiry, circuits their limits; only byte rates change
        for running circuits too. Whom a new `acl` refuses loses reservations and circuits at once.
        """
        if limits is not None:
            self.book.limits = limits
            self._shaping.change(limits)
        if unlimited is not None:
            self._unlimited = _peer_list(unlimited)
        if acl is not None:
            self._acl = acl
            self._evict()

    def _evict(self) -> None:
        """End what the acl no longer allows."""
        for held in self.book.held:
            connection: Connection = held.connection  # type: ignore[assignment]
            if not self._acl.allow_reserve(held.peer, connection.remote_addr):
                self.connection_closed(connection)
        for circuit, splice in list(self._running.items()):
            if not self._allows(circuit):
                splice.cancel()

    def _allows(self, circuit: Circuit) -> bool:
        """Whether the acl allows both ends of a circuit that is in the book."""
        source, target = self._ends[circuit]
        return self._acl.allow_connect(
            circuit.source, source.remote_addr, circuit.target
        ) and self._acl.allow_reserve(circuit.target, target.remote_addr)

    def refuse(self) -> None:
        """Take on nothing new from now on."""
        self._draining = True

    async def drain(self, timeout: float | None = None) -> int:
        """Take on nothing new and wait till the last circuit is over; after `timeout` end those left over.

        Returns how many those were. The default timeout is Timeouts.relay_drain, 0 does not wait.
        """
        self.refuse()
        seconds = self._timeouts.relay_drain if timeout is None else timeout
        if self.book.circuits and seconds > 0:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with within(seconds, "draining the relay"):
                    await self._idle.wait()
        left = self.book.circuits
        self.close()
        return left

    def close(self) -> None:
        """End all circuits, and take on nothing more."""
        self._draining = self._closed = True
        for splice in list(self._running.values()):
            splice.cancel()

    async def serve(self, stream: Stream) -> None:
        """One request; for a CONNECT it returns when the circuit is over."""
        self._waiting[stream.connection] += 1
        await self._serve(stream)

    async def _serve(self, stream: Stream) -> None:
        frame = await self._request(stream)
        if frame is not None:
            await _finished(self._act(stream, frame))

    async def _request(self, stream: Stream) -> bytes | None:
        """Wait for it; None when none comes, and then the stream is answered."""
        connection = stream.connection
        try:
            async with within(self._timeouts.relay_message, "a request to the relay"):
                return await stream.read_frame(MESSAGE_LIMIT)
        except (DecodeError, StreamClosed):
            await _finished(self._malformed(stream, Status.MALFORMED_MESSAGE))
        except (NetworkError, TimeoutError):
            connection.charge(1, "streams to the relay without a request")
            stream.reset()
        finally:
            self._waiting[connection] -= 1
            if not self._waiting[connection]:
                del self._waiting[connection]
        return None

    def serve_now(self, stream: Stream) -> Awaitable[None] | None:
        """As `serve`, without a task for a RESERVE that is all here: None when it is done."""
        try:
            frame = stream.read_frame_now(MESSAGE_LIMIT)
        except (DecodeError, StreamClosed):
            return self._malformed(stream, Status.MALFORMED_MESSAGE)
        except NetworkError:
            stream.reset()
            return None
        if frame is not None:
            return self._act(stream, frame)
        if self._waiting[stream.connection] >= MAX_WAITING:
            stream.connection.charge(1, "streams to the relay without a request")
            stream.reset()
            return None
        self._waiting[stream.connection] += 1  # now: many come at once
        return self._serve(stream)

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
        connection.charge(RESERVE_PRICE, "reservations")
        log.debug("reservation of %s: %s", peer, status.name)
        return self._answer(stream, answer)

    def _judge_reserve(self, connection: Connection) -> HopMessage | Status:
        peer, addr = connection.remote_peer, connection.remote_addr
        if connection.is_relayed:
            return self._no_reservation(Status.PERMISSION_DENIED, "relayed")
        if not self._acl.allow_reserve(peer, addr):
            return self._no_reservation(Status.PERMISSION_DENIED, "denied")
        if self._draining:
            return self._no_reservation(Status.RESERVATION_REFUSED, "draining")
        exempt = self._unlimited.lists(peer, addr)
        try:
            held, renewed = self.book.reserve(peer, self._ip(connection), connection, exempt=exempt)
        except ResourceLimit as error:
            log.debug("no reservation for %s: %s", peer, error)
            return self._no_reservation(Status.RESERVATION_REFUSED, error.limit)
        if renewed:
            self.counters.reservations_renewed += 1
        else:
            self.counters.reservations_opened += 1
        expire = int(held.expires)
        self._on_event(ReservationMade(peer, expire))
        voucher = Voucher(relay=self._identity.peer_id, peer=peer, expiration=expire).seal(self._identity)
        limit = self._limit(exempt)
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

    def _no_reservation(self, status: Status, reason: str) -> Status:
        self.counters.reserve_refused[reason] += 1
        return status

    def _ip(self, connection: Connection) -> str:
        """What counts as one address with that of the peer."""
        limits = self.limits
        return prefix_of(connection.remote_addr, limits.ipv4_prefix, limits.ipv6_prefix)

    def _granted(
        self, expire: int, addrs: tuple[Multiaddr, ...], voucher: bytes, limit: Limit | None
    ) -> HopMessage:
        reservation = Reservation(expire=expire, addrs=addrs, voucher=voucher)
        return HopMessage(type=HopType.STATUS, status=Status.OK, reservation=reservation, limit=limit)

    def _own_addrs(self, connection: Connection) -> tuple[Multiaddr, ...]:
        """Ours with our id; with none, the one this peer reached: some peers fail on an empty list.

        Loopback is told to who came that way, and where there is nothing else.
        """
        me = self._identity.peer_id
        told = tuple(self._addrs())
        if told != self._told:
            usable = [addr for addr in told if not addr.is_circuit and addr.peer_id in (None, me)]
            self._told = told
            self._own = tuple(addr.without_peer().with_peer(me) for addr in dict.fromkeys(usable))
            self._outside = tuple(addr for addr in self._own if not addr.is_loopback) or self._own
        if not self._own and connection.local_addr is not None:
            return (connection.local_addr.without_peer().with_peer(me),)
        return self._own if connection.remote_addr.is_loopback else self._outside

    def _limit(self, exempt: bool) -> Limit | None:
        """What a circuit may carry, as the wire says it: None is no limit, as is a 0 in it."""
        data, seconds = self.limits.circuit_bytes, self.limits.circuit_duration
        if exempt or (not data and not seconds):
            return None
        return Limit(duration=min(math.ceil(seconds), _MAX_DURATION), data=data)

    # -- CONNECT

    async def _connect(self, stream: Stream, request: HopMessage) -> None:
        source = stream.connection.remote_peer
        if request.peer is None:
            await _finished(self._malformed(stream, Status.MALFORMED_MESSAGE))
            return
        target = request.peer.id
        try:
            granted = await self._open(stream.connection, target)
        except _Refused as refused:
            self.counters.connect_answers[refused.status] += 1
            self.counters.connect_refused[refused.reason] += 1
            log.debug("no circuit from %s to %s: %s", source, target, refused)
            stream.connection.charge(1, "circuits that were refused")
            await _finished(self._answer(stream, HopMessage(type=HopType.STATUS, status=refused.status)))
            return
        onward, limit = granted.onward, granted.limit
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
            done = await self._join(granted, stream)
            reason, sent, received = done.reason, done.bytes_a_to_b, done.bytes_b_to_a
        except (NetworkError, TimeoutError):
            stream.reset()
            onward.reset()
        except BaseException:
            stream.reset()
            onward.reset()
            raise
        finally:
            self._over(granted.circuit)
            self.counters.circuits_closed += 1
            seconds = (self._clock_ns() - started) / 1e9
            self.counters.circuit_seconds += seconds
            self.counters.bytes_relayed += sent + received
            self._on_event(CircuitClosed(source, target, reason, sent, received, seconds))

    async def _open(self, connection: Connection, target: PeerId) -> _Granted:
        """The circuit in the book and the stream to its target, or _Refused."""
        source, addr, acl = connection.remote_peer, connection.remote_addr, self._acl
        if connection.is_relayed:
            raise _Refused(Status.PERMISSION_DENIED, "relayed", "asked over a relayed connection")
        if source == target:
            raise _Refused(Status.PERMISSION_DENIED, "oneself", "a circuit to oneself")
        if not acl.allow_connect(source, addr, target):
            raise _Refused(Status.PERMISSION_DENIED, "denied", "not allowed")
        if self._draining:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, "draining", "the relay is about to end")
        exempt = self._unlimited.lists(source, addr)
        try:
            if not exempt:
                self.book.ask(source, self._ip(connection))
            held = self.book.find(target)
            if held is None:
                raise _Refused(Status.NO_RESERVATION, "no_reservation", "the target holds no reservation")
            granted = self._grant(connection, held, exempt)
        except ResourceLimit as error:
            raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, error.limit, str(error)) from None
        try:
            granted.onward = await self._open_stop(
                held.connection, source, granted.limit, timeout=self._timeouts.relay_message
            )
        except FlareError as error:
            self._over(granted.circuit)
            raise _Refused(Status.CONNECTION_FAILED, "target", str(error)) from None
        except BaseException:
            self._over(granted.circuit)
            raise
        if self._closed or (self._acl is not acl and not self._allows(granted.circuit)):
            granted.onward.reset()
            self._over(granted.circuit)
            if self._closed:
                raise _Refused(Status.RESOURCE_LIMIT_EXCEEDED, "draining", "the relay ended meanwhile")
            raise _Refused(Status.PERMISSION_DENIED, "denied", "not allowed any more")
        return granted

    def _grant(self, connection: Connection, held: Held, exempt: bool) -> _Granted:
        """Count a circuit against those of its ends that are not exempt."""
        source, target = connection.remote_peer, held.peer
        onward: Connection = held.connection  # type: ignore[assignment]
        own = self._unlimited.lists(target, onward.remote_addr)
        counted = [
            (peer, self._ip(end))
            for peer, end, free in ((source, connection, exempt), (target, onward, own))
            if not free
        ]
        ips = tuple(ip for _, ip in counted)
        free = {peer for peer, is_free in ((source, exempt), (target, own)) if is_free}
        circuit = self.book.open_circuit(source, target, ips, exempt=free)
        self._ends[circuit] = connection, onward
        buckets = self._shaping.buckets(() if free else counted)
        return _Granted(circuit, self._limit(bool(free)), buckets)

    def _over(self, circuit: Circuit) -> None:
        self.book.close_circuit(circuit)
        del self._ends[circuit]
        if not self.book.circuits:
            self._idle.set()

    async def _join(self, granted: _Granted, stream: Stream) -> Spliced:
        """Splice until both directions are done, the limit or the deadline."""
        done: asyncio.Future[Spliced] = asyncio.get_running_loop().create_future()

        def on_done(result: Spliced) -> None:
            if not done.done():
                done.set_result(result)

        limit = granted.limit
        data = limit.data or 0 if limit is not None else 0
        seconds = limit.duration or 0 if limit is not None else 0
        deadline_ns = self._clock_ns() + seconds * 1_000_000_000 if seconds else 0
        splice = self._splice(
            stream,
            granted.onward,
            limit_a_to_b=data,
            limit_b_to_a=data,
            deadline_ns=deadline_ns,
            buckets=granted.buckets,
            on_done=on_done,
        )
        self._running[granted.circuit] = splice
        if self._closed:
            splice.cancel()
        try:
            return await done
        except asyncio.CancelledError:
            splice.cancel()
            raise
        finally:
            del self._running[granted.circuit]

    # -- answers

    def _malformed(self, stream: Stream, status: Status) -> Awaitable[None] | None:
        self.counters.malformed += 1
        stream.connection.charge(1, "malformed requests to the relay")
        return self._answer(stream, HopMessage(type=HopType.STATUS, status=status))

    def _answer(self, stream: Stream, message: HopMessage) -> Awaitable[None] | None:
        return last_words(
            stream, message.frame(), self._timeouts.relay_message, "answering a request to the relay"
        )


async def _finished(rest: Awaitable[None] | None) -> None:
    if rest is not None:
        await rest


def _peer_list(peers: PeerList | Iterable[PeerId]) -> PeerList:
    return peers if isinstance(peers, PeerList) else PeerList(peers)


@dataclass(slots=True, eq=False)
class _Granted:
    """A circuit in the book, what it may carry, and the stream to its target once that agreed."""

    circuit: Circuit
    limit: Limit | None
    buckets: tuple[Bucket, ...]
    onward: Stream = field(init=False)


class _Refused(Exception):
    """No circuit: the status that says so, and the reason that is counted."""

    def __init__(self, status: Status, reason: str, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.reason = reason
