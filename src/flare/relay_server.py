"""RelayServer: a host that introduces peers and carries what nothing else can (circuit-v2.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from ._core.link import LinkStream
from ._core.shaper import Bucket
from ._core.splice import Splice, SpliceResult, splice
from .config import RelayLimits
from .errors import UsageError
from .host import Host
from .protocols.relay.access import Acl, PeerList
from .protocols.relay.book import Circuit
from .protocols.relay.hop import PROTOCOL, HopService
from .protocols.relay.splicing import RelayCounters
from .protocols.relay.splicing import Splice as Carrying
from .transport.copying import Copying
from .transport.stream import Stream
from .wire.peer_id import PeerId


class RelayServer:
    """Circuit Relay v2 on a host: `async with RelayServer(host, limits):` serves it while the block lasts.

    `limits` are what reservations and circuits may cost; `acl` may refuse peers before any limit is asked;
    `unlimited` peers count against the limits of the whole relay only, and circuits from or to them carry no
    limit. What happens is in `host.events()`. The end of the block ends the circuits: `drain` before it lets
    them end by themselves.
    """

    def __init__(
        self,
        host: Host,
        limits: RelayLimits | None = None,
        *,
        acl: Acl | None = None,
        unlimited: PeerList | Iterable[PeerId] = (),
    ) -> None:
        self.host = host
        self.limits = limits or RelayLimits()
        self._acl = acl
        self._unlimited = unlimited if isinstance(unlimited, PeerList) else PeerList(unlimited)
        self._service: HopService | None = None
        self._unhook: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        if self._service is not None:
            raise UsageError("this relay is serving already")
        service = HopService(
            identity=self.host.identity,
            addrs=lambda: self.host.addrs,
            splice=_splice,
            limits=self.limits,
            acl=self._acl,
            unlimited=self._unlimited,
            on_event=self.host.emit,
            timeouts=self.host.config.timeouts,
        )
        self._service = service
        self._unhook = self.host.on_connection_closed(service.connection_closed)
        # over a limited connection too: there it answers PERMISSION_DENIED
        self.host.handlers.add(PROTOCOL, service.serve_now, allow_limited=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.host.unhandle(PROTOCOL)
        if self._service is not None:
            self._service.close()
        if self._unhook is not None:
            self._unhook()
        self._service = self._unhook = None

    def update(
        self,
        limits: RelayLimits | None = None,
        *,
        acl: Acl | None = None,
        unlimited: PeerList | Iterable[PeerId] | None = None,
    ) -> None:
        """Other limits and lists for what comes next; None keeps what there is.

        What was promised stays: reservations keep their expiry, circuits their limits; only byte rates change
        for running circuits too. Whom a new `acl` refuses loses reservations and circuits at once. Raises
        UsageError when it does not serve.
        """
        self._serving.update(limits, acl=acl, unlimited=unlimited)
        self.limits = limits or self.limits

    async def drain(self, timeout: float | None = None) -> int:
        """Take on nothing new and wait till the last circuit is over; after `timeout` end those left over.

        Peers are told at once that this is no relay any more (identify push), so that those with reservations
        find another. Returns how many circuits were left over. The default timeout is Timeouts.relay_drain; 0
        does not wait.
        """
        self._serving.refuse()
        self.host.handlers.hide(PROTOCOL)
        self.host.tell()
        return await self._serving.drain(timeout)

    @property
    def draining(self) -> bool:
        """Whether it takes on nothing new."""
        return self._serving.draining

    @property
    def reservations(self) -> int:
        """How many reservations are held."""
        return self._serving.book.reservations

    @property
    def circuits(self) -> int:
        """How many circuits are open."""
        return self._serving.book.circuits

    @property
    def running(self) -> Mapping[Circuit, Carrying]:
        """The circuits that carry bytes now, and what each has carried; a is the source's side."""
        return self._serving.running

    @property
    def counters(self) -> RelayCounters:
        """What it did since it started."""
        return self._serving.counters

    @property
    def _serving(self) -> HopService:
        if self._service is None:
            raise UsageError("this relay is not serving: use it as `async with RelayServer(host):`")
        return self._service


def _splice(
    a: Stream,
    b: Stream,
    *,
    limit_a_to_b: int,
    limit_b_to_a: int,
    deadline_ns: int,
    buckets: Sequence[Bucket],
    on_done: Callable[[SpliceResult], None],
) -> Splice | Copying:
    """In the compiled core where both streams are links'; a QUIC stream is aioquic's."""
    if isinstance(a.core, LinkStream) and isinstance(b.core, LinkStream):
        return splice(
            a.core,
            b.core,
            limit_a_to_b=limit_a_to_b,
            limit_b_to_a=limit_b_to_a,
            deadline_ns=deadline_ns,
            buckets=buckets,
            on_done=on_done,
        )
    return Copying(
        a,
        b,
        limit_a_to_b=limit_a_to_b,
        limit_b_to_a=limit_b_to_a,
        deadline_ns=deadline_ns,
        buckets=buckets,
        on_done=on_done,
    )
