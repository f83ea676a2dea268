"""A client asks a relay for a reservation (circuit-v2.md, "Reservation")."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.errors import FlareError, ProtocolViolation
from flare.protocols.exchange import TIMEOUTS, within
from flare.protocols.relay import HOP_PROTOCOL
from flare.protocols.relay.ask import ask
from flare.wire.envelope import Voucher
from flare.wire.messages import HopMessage, HopType, Limit
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

log = logging.getLogger("flare.protocols.relay")


@dataclass(frozen=True, slots=True)
class RelayReservation:
    """What a relay granted until `expires`, Unix seconds on its clock, at its `addrs`, each with /p2p."""

    relay: PeerId
    expires: int
    addrs: tuple[Multiaddr, ...]
    limit: Limit | None
    voucher: Voucher | None


async def reserve(connection: Connection, *, timeout: float = TIMEOUTS.relay_message) -> RelayReservation:
    """Ask the relay at the other end of `connection`.

    Raises RelayRefused by status, ProtocolViolation, TimedOut, NetworkError.
    """
    relay = connection.remote_peer
    async with (
        connection.open_stream(HOP_PROTOCOL) as stream,
        within(timeout, f"a reservation on relay {relay}"),
    ):
        answer = await ask(stream, HopMessage(type=HopType.RESERVE), f"a reservation on relay {relay}")
    if answer.reservation is None:
        raise ProtocolViolation("STATUS OK without a reservation", protocol=HOP_PROTOCOL)
    addrs = tuple(dict.fromkeys(_relay_addrs(answer.reservation.addrs, relay)))
    if not addrs:
        addrs = tuple(_relay_addrs([connection.remote_addr], relay))
    voucher = _voucher(answer.reservation.voucher, relay, connection.local_peer)
    return RelayReservation(relay, answer.reservation.expire, addrs, answer.limit, voucher)


def _relay_addrs(addrs: Iterable[Multiaddr], relay: PeerId) -> Iterable[Multiaddr]:
    """Those that can be the relay's own, each ending in its id."""
    for addr in addrs:
        if not addr.is_circuit and addr.peer_id in (None, relay):
            yield addr.without_peer().with_peer(relay)


def _voucher(sealed: bytes | None, relay: PeerId, peer: PeerId) -> Voucher | None:
    """The voucher when it is the relay's for us. It is advisory, so that a bad one is only left out."""
    if not sealed:
        return None
    try:
        voucher = Voucher.open(sealed)
    except FlareError as error:
        log.debug("relay %s sent a voucher that does not verify: %s", relay, error)
        return None
    if (voucher.relay, voucher.peer) != (relay, peer):
        log.debug("relay %s sent a voucher of %s for %s", relay, voucher.relay, voucher.peer)
        return None
    return voucher
