"""A host's hole puncher, and what it knows of the ports that the NAT before the host will give."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

from .nat.foresight import Foresight
from .nat.observed import ObservedAddresses
from .nat.port_look import PortLook
from .nat.punch import HolePuncher
from .transport.connection import Connection
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

if TYPE_CHECKING:
    from .host import Host
    from .host_dialling import Dialling
    from .host_events import EventHub
    from .host_places import Places
    from .transport.quic import QuicTransport
    from .transport.tcp import TcpTransport


def make_puncher(
    host: Host,
    *,
    tcp: TcpTransport,
    quic: QuicTransport,
    dialling: Dialling,
    observed: ObservedAddresses,
    places: Places,
    trusted: Set[PeerId],
    events: EventHub,
    own_addrs: Callable[[], Sequence[Multiaddr]],
    on_connection: Callable[[Connection], None],
) -> HolePuncher:
    """One of `host`, with these parts of it; `own_addrs` are those that a peer may aim at."""
    foresight = Foresight(
        mapping=observed.worst_mapping,
        listen_addrs=lambda: host.listen_addrs,
        look=PortLook(host.engine, host.config),
        addrs_of=lambda peer: host.peers.get(peer).addrs,
        relay=lambda peer: peer in trusted or places.knows(peer),
        believed=lambda peer, ip: peer in trusted or any(str(addr.ip) == ip for addr in host.observed_addrs),
        limits=host.config.punch,
    )
    events.subscribe(foresight.hear)
    return HolePuncher(
        tcp=tcp,
        quic=quic,
        own_addrs=own_addrs,
        peer_addrs=lambda peer: host.peers.get(peer).addrs,
        agent=lambda peer: host.peers.get(peer).agent,
        mapping=observed.worst_mapping,
        foresight=foresight,
        dial=dialling.plainly,
        direct_to=host.direct_to,
        on_connection=on_connection,
        on_event=events.emit,
        config=host.config,
        is_public=host.is_public,
    )
