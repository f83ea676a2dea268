"""What others see as our address, and what that says about the NAT between us and them.

Each connection tells one observation, through identify, for as long as it is open. Observations are kept by
the local listener that the connection's socket shares its port with, and by observer: an IPv4 address, an
IPv6 /56. One that came over a relayed connection, or for a socket that was bound to some other port, says
nothing about a listener.

A configured relay is believed at once; of the rest, an address needs OBSERVERS observers in GROUPS networks,
so that neither one stranger nor one data centre can give us an address (identify/README.md, "observedAddr").
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

OBSERVERS: Final = 4
GROUPS: Final = 2
PER_LISTENER: Final = 3  # addresses believed for one listener: the best attested ones

TRANSPORTS: Final = ("quic-v1", "tcp")
MAPPINGS_WORST_FIRST: Final = (
    "endpoint-dependent",
    "doubtful",
    "endpoint-independent",
    "none",
    "unknown",
)

Endpoint = tuple[str, str, int]  # IP as text, transport, port
Listener = tuple[int, str, int]  # IP version, transport, port


@dataclass(frozen=True, slots=True)
class Observation:
    """`observer` at `vantage` saw our `listener` as `seen`."""

    observer: PeerId
    vantage: Endpoint
    listener: Listener
    seen: Endpoint
    trusted: bool
    outbound: bool


class _Attestation:
    """Who saw one listener of ours as one address, counted so that judging it takes no look at each."""

    __slots__ = ("groups", "networks", "trusted")

    def __init__(self) -> None:
        self.trusted = 0
        self.networks: Counter[str] = Counter()
        self.groups: Counter[str] = Counter()

    def count(self, observation: Observation, by: int) -> None:
        """One observation more, or less."""
        ip = observation.vantage[0]
        self.trusted += by * observation.trusted
        for counter, key in ((self.networks, _network(ip)), (self.groups, group(ip))):
            counter[key] += by
            if not counter[key]:
                del counter[key]

    @property
    def believed(self) -> bool:
        """Whether a relay of ours says so, or enough others do."""
        return self.trusted > 0 or (len(self.networks) >= OBSERVERS and len(self.groups) >= GROUPS)

    @property
    def weight(self) -> tuple[bool, int]:
        """Sorts the best attested first."""
        return not self.trusted, -len(self.networks)


@dataclass(frozen=True, slots=True)
class Mapping:
    """How the NAT maps a port: `kind` is one of MAPPINGS_WORST_FIRST."""

    kind: str
    sentence: str


class ObservedAddresses:
    """The observations of all open connections; `listeners` gives what we listen on, `trusted` our relays."""

    def __init__(
        self,
        *,
        listeners: Callable[[], Iterable[Multiaddr]],
        trusted: Callable[[PeerId], bool] = lambda peer: False,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._listeners = listeners
        self._trusted = trusted
        self._on_change = on_change
        self._observations: dict[Connection, Observation] = {}
        self._outbound: dict[Connection, Observation] = {}  # those of connections that we dialled
        self._attested: dict[tuple[Listener, Endpoint], _Attestation] = {}
        self._believed: dict[tuple[Listener, Endpoint], _Attestation] = {}
        self._listening: tuple[tuple[Multiaddr, ...], frozenset[Listener | None]] = ((), frozenset())

    def record(self, connection: Connection, observed: Multiaddr | None) -> bool:
        """Identify on `connection` reported `observed`; returns whether it says anything about a listener."""
        observation = self._judge(connection, observed)
        if observation is None:
            return False
        before = self._watched()
        self._withdraw(connection)
        self._observations[connection] = observation
        if observation.outbound:
            self._outbound[connection] = observation
        self._count(observation, 1)
        self._tell(before)
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is closed, and its observation with it."""
        before = self._watched()
        if self._withdraw(connection):
            self._tell(before)

    def _withdraw(self, connection: Connection) -> bool:
        observation = self._observations.pop(connection, None)
        if observation is None:
            return False
        self._outbound.pop(connection, None)
        self._count(observation, -1)
        return True

    def _count(self, observation: Observation, by: int) -> None:
        key = observation.listener, observation.seen
        attestation = self._attested.get(key)
        if attestation is None:
            attestation = self._attested[key] = _Attestation()
        attestation.count(observation, by)
        if attestation.believed:
            self._believed[key] = attestation
            return
        self._believed.pop(key, None)
        if not attestation.networks:
            del self._attested[key]

    def _watched(self) -> tuple[Multiaddr, ...]:
        """What `on_change` is told the change of; nothing without one, since it costs a look at all."""
        return self.addrs() if self._on_change is not None else ()

    def _tell(self, before: tuple[Multiaddr, ...]) -> None:
        if self._on_change is not None and self.addrs() != before:
            self._on_change()

    def addrs(self, transport: str = "tcp") -> tuple[Multiaddr, ...]:
        """The believed addresses of our listeners, the best attested first."""
        ranked: dict[Listener, list[tuple[tuple[bool, int], Endpoint]]] = {}
        for (listener, seen), attestation in self._believed.items():
            if listener[1] == transport:
                ranked.setdefault(listener, []).append((attestation.weight, seen))
        best = [seen for found in ranked.values() for _, seen in sorted(found)[:PER_LISTENER]]
        return tuple(Multiaddr.from_socket((ip, port), kind) for ip, kind, port in dict.fromkeys(best))

    def guesses(self) -> tuple[Multiaddr, ...]:
        """Where a listener that nobody has seen may be: at the IP that one of another transport is seen at,
        under its own port, which most NATs keep where they can.
        """
        believed = {transport: self.addrs(transport) for transport in TRANSPORTS}
        found: dict[Multiaddr, None] = {}
        for listener in map(_listener, self._listeners()):
            if listener is None or believed.get(listener[1], ()):
                continue
            version, transport, port = listener
            for addr in (addr for addrs in believed.values() for addr in addrs):
                if addr.ip is not None and addr.ip.version == version:
                    found[Multiaddr.from_socket((str(addr.ip), port), transport)] = None
        return tuple(found)

    def worst_mapping(self) -> Mapping:
        """What is known of the NAT's mapping, whichever transport tells the most against it."""
        found = [self.mapping(transport) for transport in TRANSPORTS]
        return min(found, key=lambda mapping: MAPPINGS_WORST_FIRST.index(mapping.kind))

    def mapping(self, transport: str = "tcp", version: int = 4) -> Mapping:
        """What the observations of connections that we dialled say about the NAT's mapping."""
        by_listener: dict[Listener, dict[Endpoint, Endpoint]] = {}
        local: dict[Listener, set[str]] = {}
        for connection, observation in self._outbound.items():
            if observation.listener[:2] != (version, transport):
                continue
            by_listener.setdefault(observation.listener, {})[observation.vantage] = observation.seen
            local_ip = connection.local_addr.ip if connection.local_addr is not None else None
            local.setdefault(observation.listener, set()).add(str(local_ip))
        best = Mapping("unknown", "nobody has told us yet how our NAT maps us")
        for listener, seen_by in by_listener.items():
            judged = _judge_mapping(listener, seen_by, local[listener])
            if judged.kind == "endpoint-dependent":
                return judged
            if best.kind == "unknown":
                best = judged
        return best

    def _judge(self, connection: Connection, observed: Multiaddr | None) -> Observation | None:
        if observed is None or connection.is_relayed or observed.is_circuit:
            return None
        seen = _endpoint(observed)
        local = _endpoint(connection.local_addr)
        vantage = _endpoint(connection.remote_addr)
        if seen is None or local is None or vantage is None or seen[1] != local[1]:
            return None
        version, useless, loopback = _nature(seen[0])
        of_local, _, local_loopback = _nature(local[0])
        if useless or version != of_local or (loopback and not local_loopback):
            return None
        listener = (version, local[1], local[2])
        if listener not in self._listener_set():
            return None
        peer = connection.remote_peer
        return Observation(peer, vantage, listener, seen, self._trusted(peer), connection.initiator)

    def _listener_set(self) -> frozenset[Listener | None]:
        addrs = tuple(self._listeners())
        if addrs != self._listening[0]:
            self._listening = addrs, frozenset(map(_listener, addrs))
        return self._listening[1]


def _judge_mapping(listener: Listener, seen_by: dict[Endpoint, Endpoint], local_ips: set[str]) -> Mapping:
    seen = sorted(set(seen_by.values()))
    if len(seen) > 1:
        by_port = ", ".join(f"{_show(vantage)} saw {_show(s)}" for vantage, s in sorted(seen_by.items())[:3])
        return Mapping(
            "endpoint-dependent",
            f"our NAT gives port {listener[2]} another address for each destination "
            f"(endpoint-dependent mapping): {by_port}",
        )
    ip, _, port = seen[0]
    if ip in local_ips and port == listener[2]:
        return Mapping("none", f"there is no NAT: others see {_show(seen[0])}, which is our own address")
    if len(seen_by) > 1:
        return Mapping(
            "endpoint-independent",
            f"our NAT shows port {listener[2]} as {_show(seen[0])} to all {len(seen_by)} observers "
            "(endpoint-independent mapping)",
        )
    if port != listener[2]:
        return Mapping(
            "doubtful",
            f"our NAT shows port {listener[2]} as {_show(seen[0])} to the only observer: it gives out "
            "ports of its own, and if it gives another for each destination (endpoint-dependent mapping), "
            "nobody can be told which",
        )
    return Mapping(
        "unknown",
        f"our NAT shows port {listener[2]} as {_show(seen[0])} to the only observer there is, "
        "so that its mapping cannot be told",
    )


@lru_cache(maxsize=1024)
def _nature(ip: str) -> tuple[int, bool, bool]:
    """Its version, whether it can be nobody's address, whether it is loopback."""
    parsed = ipaddress.ip_address(ip)
    return parsed.version, parsed.is_unspecified or parsed.is_multicast, parsed.is_loopback


def _network(ip: str) -> str:
    """One observer: an IPv4 address, an IPv6 /56."""
    return ip if "." in ip and ":" not in ip else str(ipaddress.ip_network(f"{ip}/56", strict=False))


def group(ip: str) -> str:
    """One network's worth of observers: an IPv4 /16, an IPv6 /32."""
    if ":" not in ip:
        return ip.rpartition(".")[0].rpartition(".")[0]
    return str(ipaddress.ip_network(f"{ip}/32", strict=False))


def _endpoint(addr: Multiaddr | None) -> Endpoint | None:
    return None if addr is None else addr.endpoint


def _listener(addr: Multiaddr) -> Listener | None:
    endpoint = _endpoint(addr)
    return None if endpoint is None else (ipaddress.ip_address(endpoint[0]).version, endpoint[1], endpoint[2])


def _show(endpoint: Endpoint) -> str:
    ip, _, port = endpoint
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
