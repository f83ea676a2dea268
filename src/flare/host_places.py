"""A host's places on relays: those that it keeps, and who is brought to it through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .config import Config
from .events import ReservationAccepted, ReservationLost
from .nat.relays import Dial, OnTrouble, RelayClient
from .protocols.relay import stop
from .protocols.relay.reserve import RelayReservation
from .transport import circuit
from .transport.connection import Connection, StreamHandlers
from .transport.loop_engine import LoopEngine
from .transport.stream import Stream
from .wire.keys import Identity
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

if TYPE_CHECKING:
    from collections.abc import MutableSet


class Places:
    """Reservations of one host. `on_connection` takes in who comes through a relay; `trusted` learns of those
    relays whose word on our addresses is believed.
    """

    def __init__(
        self,
        identity: Identity,
        engine: LoopEngine,
        config: Config,
        handlers: StreamHandlers,
        *,
        dial: Dial,
        trusted: MutableSet[PeerId],
        on_event: Callable[[ReservationAccepted | ReservationLost], None],
        on_change: Callable[[], None],
        on_connection: Callable[[Connection], None],
        is_public: Callable[[Multiaddr], bool],
    ) -> None:
        self._client = RelayClient(
            local_peer=identity.peer_id,
            dial=dial,
            on_event=on_event,
            on_change=on_change,
            config=config.reservation,
            timeouts=config.timeouts,
        )
        self._identity = identity
        self._engine = engine
        self._config = config
        self._handlers = handlers
        self._trusted = trusted
        self._on_connection = on_connection
        self._is_public = is_public
        self.hurry = self._client.hurry
        self.knows = self._client.knows
        self.close = self._client.close

    def keep(
        self,
        relay: Multiaddr,
        *,
        dial: Dial | None = None,
        on_trouble: OnTrouble = lambda error, held: None,
        trusted: bool = True,
    ) -> bool:
        """Keep a reservation on `relay` (an address with /p2p) from now on; see RelayClient.add.

        Of a relay that is not `trusted` only public addresses are told others. False: there is one already.
        """
        if dial is not None and any(kept.peer_id == relay.peer_id for kept in self._client.relays):
            return False
        if trusted and relay.peer_id is not None:
            self._trusted.add(relay.peer_id)
        if stop.PROTOCOL not in self._handlers.protocols:
            self._handlers.add(stop.PROTOCOL, self._serve_stop)
        may_tell = (lambda addr: True) if trusted else self._is_public
        self._client.add(relay, dial=dial, on_trouble=on_trouble, may_tell=may_tell)
        return True

    async def leave(self, relay: Multiaddr) -> None:
        """Keep none there any more; the connection stays open."""
        await self._client.remove(relay)

    @property
    def relays(self) -> tuple[Multiaddr, ...]:
        """Where places are kept, or asked for."""
        return self._client.relays

    @property
    def reservations(self) -> tuple[RelayReservation, ...]:
        """What is held now."""
        return self._client.reservations

    @property
    def addrs(self) -> tuple[Multiaddr, ...]:
        """The circuit addresses to tell others."""
        return self._client.addrs

    async def _serve_stop(self, stream: Stream) -> None:
        """A relay brings somebody (circuit-v2.md, "Stop protocol"). Only relays that we reserved on may."""
        timeout = self._config.timeouts.relay_message
        if not self._client.knows(stream.connection.remote_peer):
            await stop.refuse(stream, timeout=timeout)
            return
        incoming = await stop.accept(stream, timeout=timeout)
        connection = await circuit.secure(
            incoming.stream,
            self._identity,
            self._engine,
            initiator=False,
            expected_peer=incoming.peer,
            limit=incoming.limit,
            config=self._config,
        )
        self._on_connection(connection)
