"""What happened, as facts in the past tense: what `host.events()` yields and the command prints.

Times are seconds; addresses and peers are `flare.wire` values. `as_json` gives the form that `--json` prints.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .transport.connection import Connection
    from .wire.messages import Limit
    from .wire.multiaddr import Multiaddr
    from .wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class Listening:
    """The host accepts connections on these addresses."""

    peer: PeerId
    addrs: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """The addresses that the host tells others are now these."""

    addrs: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True)
class ReachabilityChanged:
    """Whether strangers can dial this host at any address: "public", "private" or "unknown"."""

    state: str


@dataclass(frozen=True, slots=True)
class AddressReachability:
    """Whether strangers can dial `addr`: "public", "private" or "unknown"."""

    addr: Multiaddr
    state: str


@dataclass(frozen=True, slots=True)
class NatBehaviourChanged:
    """How the NAT treats `transport` ("tcp", "udp", with a 6 for IPv6), in words of RFC 4787; flare.AutoNat's
    `behaviours` have all of it. `sentence` says what follows.
    """

    transport: str
    mapping: str
    filtering: str
    allocation: str
    hairpin: bool | None
    sentence: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection is secured and multiplexed. `path` is "direct/tcp" or "relayed"."""

    peer: PeerId
    addr: Multiaddr
    path: str
    inbound: bool
    connection: Connection


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection ended; `reason` is a sentence, empty for an ordinary close."""

    peer: PeerId
    addr: Multiaddr
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerIdentified:
    """Identify told what the peer runs and speaks; `pushed` when we had not asked.

    `dialled`: on a connection that we dialled. What rust-libp2p serves depends on who dialled whom.
    """

    peer: PeerId
    agent: str
    protocols: tuple[str, ...]
    observed: Multiaddr | None
    pushed: bool = False
    dialled: bool = True


@dataclass(frozen=True, slots=True)
class ReservationAccepted:
    """A relay holds a place for us until `expires` (Unix seconds on the relay's clock)."""

    relay: PeerId
    expires: int
    addrs: tuple[Multiaddr, ...]
    limit: Limit | None


@dataclass(frozen=True, slots=True)
class ReservationLost:
    """The reservation is gone; the next attempt is made in `retry_in` seconds."""

    relay: PeerId | None
    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class PortMapped:
    """Our router forwards `external` to `listener`; told again when that is renewed.

    `protocol` is how it was asked, `lifetime` in seconds; None: until it is taken back.
    """

    listener: Multiaddr
    external: Multiaddr
    protocol: str
    gateway: str
    lifetime: float | None


@dataclass(frozen=True, slots=True)
class PortMappingLost:
    """Our router no longer forwards `external` to `listener`, as far as we know."""

    listener: Multiaddr
    external: Multiaddr
    reason: str


@dataclass(frozen=True, slots=True)
class PortMappingFailed:
    """There is no mapping for `listener`, or for none at all (None); tried again in `retry_in` seconds."""

    listener: Multiaddr | None
    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class DoubleNatFound:
    """What our router at `gateway` forwards does not reach the internet, or not for sure.

    `external` is the IP that it calls its own, `reason` a sentence.
    """

    gateway: str
    external: str
    reason: str


@dataclass(frozen=True, slots=True)
class RelayChosen:
    """AutoRelay holds a place on this relay, which `source` told of; `latency` in seconds."""

    relay: PeerId
    source: str
    latency: float | None


@dataclass(frozen=True, slots=True)
class RelayDropped:
    """AutoRelay keeps no place on this relay any more; `reason` is a sentence."""

    relay: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """Our own addresses or routes are others, or the machine was suspended: `reason` says which.

    Connections from the addresses that are `gone` are checked, and reservations made anew where they fail.
    """

    reason: str
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PunchStarted:
    """The two peers begin to open a direct connection. `role` is "initiator" or "responder" of DCUtR."""

    peer: PeerId
    role: str


@dataclass(frozen=True, slots=True)
class PlainDialFailed:
    """A peer that we met through a relay says it is public, and cannot be dialled; `reason` is a sentence."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PunchSucceeded:
    """There is a direct connection, after so many attempts (0: a plain dial did) and seconds.

    `tried` are the peer's addresses that the attempts aimed at.
    """

    peer: PeerId
    path: str
    attempts: int
    seconds: float
    tried: tuple[Multiaddr, ...] = ()


@dataclass(frozen=True, slots=True)
class PunchGaveUp:
    """There will be no direct connection for now; `reason` is a sentence, `tried` as in PunchSucceeded."""

    peer: PeerId
    reason: str
    attempts: int
    seconds: float
    tried: tuple[Multiaddr, ...] = ()


@dataclass(frozen=True, slots=True)
class ReservationMade:
    """This relay holds a place for the peer until `expires` (Unix seconds); told again at each refresh."""

    peer: PeerId
    expires: int


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """This relay joined two peers."""

    source: PeerId
    target: PeerId


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """A circuit of this relay ended after `seconds`; bytes are what each side sent."""

    source: PeerId
    target: PeerId
    reason: str
    source_bytes: int
    target_bytes: int
    seconds: float


Event = (
    Listening
    | AddressesChanged
    | ReachabilityChanged
    | AddressReachability
    | NatBehaviourChanged
    | ConnectionOpened
    | ConnectionLost
    | PeerIdentified
    | ReservationAccepted
    | ReservationLost
    | PortMapped
    | PortMappingLost
    | PortMappingFailed
    | DoubleNatFound
    | RelayChosen
    | RelayDropped
    | NetworkChanged
    | PunchStarted
    | PlainDialFailed
    | PunchSucceeded
    | PunchGaveUp
    | ReservationMade
    | CircuitOpened
    | CircuitClosed
)


def event_name(event: Event) -> str:
    """`PunchSucceeded` -> "punch-succeeded"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(event).__name__).lower()


def as_json(event: Event) -> Mapping[str, Any]:
    """The event as one flat JSON object: its name, then its fields; connections are left out."""
    out: dict[str, Any] = {"event": event_name(event)}
    for field in dataclasses.fields(event):
        if field.name != "connection":
            out[field.name] = _plain(getattr(event, field.name))
    return out


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)
