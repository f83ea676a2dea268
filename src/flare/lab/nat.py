"""A NAT router as a pure machine: packets and the time go in, packets come out (RFC 4787, 5382, 5508).

It keeps two tables: mappings (an inside endpoint and its public port, keyed as the mapping behaviour says)
and sessions (an inside endpoint, a public port, a remote endpoint: what Linux tracks). Traffic of a session
passes; the filtering behaviour decides who else may open one from outside; the rest is unsolicited.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from dataclasses import dataclass, field

from flare.lab import packet as ip
from flare.lab.packet import ICMP, TCP, UDP, Packet
from flare.lab.ports import PortAllocation, Preserving
from flare.lab.tracking import RstPolicy, TcpTimeouts, TcpTrack, Verdict

Endpoint = tuple[int, int]


class Dependence(enum.Enum):
    """RFC 4787's three kinds of mapping and of filtering."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Unsolicited(enum.Enum):
    """What becomes of a packet to the public address that no session and no mapping lets in."""

    DROP = "drop"
    REJECT = "reject"  # RST or ICMP port unreachable, and nothing is remembered
    ACCEPT = (
        "accept"  # the router takes it for its own: answered as by a closed port, and remembered as a session
    )


class Side(enum.Enum):
    INSIDE = "inside"
    OUTSIDE = "outside"


Output = list[tuple[Side, bytes]]


@dataclass(frozen=True, slots=True)
class NatConfig:
    """How a NAT behaves. Times are seconds."""

    mapping: Dependence = Dependence.ENDPOINT_INDEPENDENT
    filtering: Dependence = Dependence.ADDRESS_AND_PORT_DEPENDENT
    allocation: PortAllocation = field(default_factory=Preserving)
    hairpin: bool = False
    passes_udp: bool = True
    unsolicited: Unsolicited = Unsolicited.DROP
    rst: RstPolicy = RstPolicy.TRACK
    udp_timeout: float = 30.0  # nothing has come back yet
    udp_stream_timeout: float = 120.0  # answered, and older than two seconds
    echo_timeout: float = 30.0
    mapping_timeout: float = 0.0  # a mapping outlives its last session by this much
    tcp: TcpTimeouts = field(default_factory=TcpTimeouts)


@dataclass(slots=True, eq=False)
class Mapping:
    """An inside endpoint and its public port."""

    key: tuple[int, ...]
    protocol: int
    inside: Endpoint
    port: int
    sessions: int = 0
    expires: float = 0.0  # counts once no session is left
    contacted: dict[int, float] = field(default_factory=dict)  # remote address: when it was last sent to


@dataclass(slots=True, eq=False)
class Session:
    """One flow. `mapping` is None when its inner end is the router itself (Unsolicited.ACCEPT)."""

    protocol: int
    port: int
    remote: Endpoint
    mapping: Mapping | None
    opened_inside: bool
    created: float
    expires: float
    track: TcpTrack | None
    replied: bool = False

    @property
    def outside_key(self) -> tuple[int, int, Endpoint]:
        return self.protocol, self.port, self.remote

    @property
    def inside_key(self) -> tuple[int, Endpoint | None, Endpoint]:
        return self.protocol, self.mapping.inside if self.mapping else None, self.remote


class Nat:
    """One router. `public` is its outer address, `gateway` its inner one; both as integers."""

    def __init__(self, config: NatConfig, public: int, gateway: int, seed: int = 0) -> None:
        self.config = config
        self.public = public
        self.gateway = gateway
        self.dropped: Counter[str] = Counter()  # packets by the reason they went no further
        self.last_drop = ""
        self._rng = random.Random(seed)
        self._allocated = 0
        self._mappings: dict[tuple[int, ...], Mapping] = {}
        self._ports: dict[tuple[int, int], Mapping] = {}
        self._outside: dict[tuple[int, int, Endpoint], Session] = {}
        self._inside: dict[tuple[int, Endpoint | None, Endpoint], Session] = {}
        self._next_sweep = 0.0

    def from_inside(self, raw: bytes | bytearray | memoryview, now: float) -> Output:
        """A packet that an inside host sent to its gateway at `now` seconds."""
        packet = self._enter(raw, now)
        if packet is None:
            return []
        if packet.dst == self.gateway:
            return self._as_closed_host(packet, Side.INSIDE)
        if packet.is_error:
            return self._error_from_inside(packet, now)
        if packet.ttl <= 1:
            return self._died(packet, Side.INSIDE)
        if packet.protocol == UDP and not self.config.passes_udp:
            return self._drop("udp")
        hairpin = packet.dst == self.public
        if hairpin and (not self.config.hairpin or (packet.protocol, packet.dport) not in self._ports):
            return self._as_closed_host(packet, Side.INSIDE)
        if packet.protocol == ICMP and packet.icmp_type not in (ip.ECHO_REQUEST, ip.ECHO_REPLY):
            return self._drop("icmp")
        session = self._session_from_inside(packet, now)
        if session is None or session.mapping is None:
            return []
        session.mapping.contacted[packet.dst] = now
        packet.set_source(self.public, session.port)
        packet.decrement_ttl()
        return self.from_outside(packet.data, now) if hairpin else [(Side.OUTSIDE, bytes(packet.data))]

    def from_outside(self, raw: bytes | bytearray | memoryview, now: float) -> Output:
        """A packet that reached the public side at `now` seconds."""
        packet = self._enter(raw, now)
        if packet is None:
            return []
        if packet.dst != self.public:
            return self._drop("not for this router")
        if packet.is_error:
            return self._error_from_outside(packet, now)
        remote = (packet.src, packet.sport)
        session = self._live(self._outside.get((packet.protocol, packet.dport, remote)), now)
        if session is None:
            session = self._admit(packet, remote, now)
            if session is None:
                return self._unsolicited(packet, remote, now)
            verdict = Verdict.FORWARD
        elif session.mapping is None:
            session.expires = now + self.config.udp_timeout
            return self._as_closed_host(packet, Side.OUTSIDE)
        else:
            verdict = self._account(session, packet, inbound=True, now=now)
        if verdict is Verdict.REOPEN:
            return self.from_outside(packet.data, now)
        if verdict is Verdict.INVALID or session.mapping is None:
            return self._unsolicited(packet, remote, now)
        if packet.ttl <= 1:
            return self._died(packet, Side.OUTSIDE)
        packet.set_destination(*session.mapping.inside)
        packet.decrement_ttl()
        return [(Side.INSIDE, bytes(packet.data))]

    def mapped_port(self, protocol: int, inside: Endpoint, remote: Endpoint) -> int | None:
        """The public port of a live session, for tests and traces."""
        session = self._inside.get((protocol, inside, remote))
        return session.port if session else None

    def expire(self, now: float) -> None:
        """Forget sessions and mappings whose time is over."""
        for session in [s for s in self._outside.values() if s.expires <= now]:
            self._forget(session, session.expires)
        for mapping in [m for m in self._mappings.values() if not m.sessions and m.expires <= now]:
            self._unmap(mapping)

    # --- entering

    def _enter(self, raw: bytes | bytearray | memoryview, now: float) -> Packet | None:
        if now >= self._next_sweep:
            self.expire(now)
            self._next_sweep = now + 1.0
        packet = Packet.parse(raw)
        if packet is None:
            self._drop("malformed or not understood")
        return packet

    def _drop(self, reason: str) -> Output:
        self.dropped[reason] += 1
        self.last_drop = reason
        return []

    def _died(self, packet: Packet, towards: Side) -> Output:
        """The TTL ran out here (RFC 1812 5.3.1)."""
        self._drop("ttl")
        router = self.gateway if towards is Side.INSIDE else self.public
        error = ip.icmp_error(router, packet, ip.TIME_EXCEEDED)
        return [(towards, error)] if error else []

    # --- sessions and mappings

    def _live(self, session: Session | None, now: float) -> Session | None:
        if session is not None and session.expires <= now:
            self._forget(session, session.expires)
            return None
        return session

    def _session_from_inside(self, packet: Packet, now: float) -> Session | None:
        inside, remote = (packet.src, packet.sport), (packet.dst, packet.dport)
        session = self._live(self._inside.get((packet.protocol, inside, remote)), now)
        if session is not None:
            verdict = self._account(session, packet, inbound=False, now=now)
            if verdict is Verdict.INVALID:
                self._drop("invalid for its connection")
                return None
            if verdict is not Verdict.REOPEN:
                return session
        track = self._new_track(packet)
        if not self._opens(packet, track):
            self._drop("no connection")
            return None
        mapping = self._map(packet.protocol, inside, remote, now)
        if mapping is None:
            self._drop("ports exhausted")
            return None
        return self._open(packet.protocol, mapping.port, remote, mapping, track, opened_inside=True, now=now)

    def _new_track(self, packet: Packet) -> TcpTrack | None:
        """The tracking of a TCP connection that `packet` may open; None when it cannot open one."""
        if packet.protocol != TCP:
            return None
        track = TcpTrack(self.config.tcp, self.config.rst)
        return track if track.feed(packet, opener=True) is Verdict.FORWARD else None

    @staticmethod
    def _opens(packet: Packet, track: TcpTrack | None) -> bool:
        if packet.protocol == ICMP:
            return packet.icmp_type == ip.ECHO_REQUEST
        return packet.protocol == UDP or track is not None

    def _map(self, protocol: int, inside: Endpoint, remote: Endpoint, now: float) -> Mapping | None:
        full = (protocol, *inside, *remote)
        parts = {
            Dependence.ENDPOINT_INDEPENDENT: 3,
            Dependence.ADDRESS_DEPENDENT: 4,
            Dependence.ADDRESS_AND_PORT_DEPENDENT: 5,
        }[self.config.mapping]
        for key in (full[:parts], full):
            mapping = self._mappings.get(key)
            if mapping is not None and not mapping.sessions and self._stale(mapping, remote, now):
                self._unmap(mapping)
                mapping = None
            mapping = mapping or self._allocate(key, protocol, inside, remote if key == full else None)
            # The router itself can hold this port towards this remote: then the flow gets a port to itself.
            if mapping is None or (protocol, mapping.port, remote) not in self._outside:
                return mapping
        return None

    def _stale(self, mapping: Mapping, remote: Endpoint, now: float) -> bool:
        return mapping.expires <= now or (mapping.protocol, mapping.port, remote) in self._outside

    def _allocate(
        self, key: tuple[int, ...], protocol: int, inside: Endpoint, remote: Endpoint | None
    ) -> Mapping | None:
        for port in self.config.allocation.candidates(inside[1], self._allocated, self._rng):
            taken = remote is not None and (protocol, port, remote) in self._outside
            if (protocol, port) not in self._ports and not taken:
                self._allocated += 1
                mapping = Mapping(key, protocol, inside, port)
                self._mappings[key] = self._ports[protocol, port] = mapping
                return mapping
        return None

    def _open(
        self, protocol: int, port: int, remote: Endpoint, mapping: Mapping | None, track: TcpTrack | None,
        *, opened_inside: bool, now: float,
    ) -> Session:  # fmt: skip
        session = Session(protocol, port, remote, mapping, opened_inside, now, 0.0, track)
        session.expires = now + self._lifetime(session, now)
        self._outside[session.outside_key] = session
        if mapping is not None:
            self._inside[session.inside_key] = session
            mapping.sessions += 1
        return session

    def _lifetime(self, session: Session, now: float) -> float:
        if session.track is not None:
            return session.track.lifetime
        if session.protocol == ICMP:
            return self.config.echo_timeout
        if session.replied and now - session.created > 2.0:
            return self.config.udp_stream_timeout
        return self.config.udp_timeout

    def _forget(self, session: Session, now: float, *, with_mapping: bool = False) -> None:
        self._outside.pop(session.outside_key, None)
        mapping = session.mapping
        if mapping is None:
            return
        self._inside.pop(session.inside_key, None)
        mapping.sessions -= 1
        mapping.expires = now + self.config.mapping_timeout
        if with_mapping or (not mapping.sessions and not self.config.mapping_timeout):
            self._unmap(mapping)

    def _unmap(self, mapping: Mapping) -> None:
        for session in [s for s in self._outside.values() if s.mapping is mapping]:
            self._outside.pop(session.outside_key)
            self._inside.pop(session.inside_key)
        if self._mappings.get(mapping.key) is mapping:
            del self._mappings[mapping.key]
        self._ports.pop((mapping.protocol, mapping.port), None)

    def _account(self, session: Session, packet: Packet, *, inbound: bool, now: float) -> Verdict:
        """Track a packet of `session`, refresh it or remove it."""
        opener = session.opened_inside is not inbound
        verdict = session.track.feed(packet, opener=opener) if session.track else Verdict.FORWARD
        if verdict in (Verdict.FORGET, Verdict.REOPEN):
            self._forget(session, now, with_mapping=self.config.rst is RstPolicy.KILL)
        elif verdict is Verdict.FORWARD:
            session.replied |= not opener
            session.expires = now + self._lifetime(session, now)
        return verdict

    # --- what comes from outside

    def _admit(self, packet: Packet, remote: Endpoint, now: float) -> Session | None:
        """A new session opened from outside, where the filtering behaviour allows it."""
        mapping = self._ports.get((packet.protocol, packet.dport))
        if (
            mapping is None
            or packet.protocol == ICMP
            or packet.ttl <= 1
            or not self._filter(mapping, remote, now)
        ):
            return None
        if not mapping.sessions and mapping.expires <= now:
            self._unmap(mapping)
            return None
        track = self._new_track(packet)
        if not self._opens(packet, track) or (packet.protocol, mapping.inside, remote) in self._inside:
            return None
        return self._open(packet.protocol, mapping.port, remote, mapping, track, opened_inside=False, now=now)

    def _filter(self, mapping: Mapping, remote: Endpoint, now: float) -> bool:
        if self.config.filtering is Dependence.ENDPOINT_INDEPENDENT:
            return True
        if self.config.filtering is Dependence.ADDRESS_AND_PORT_DEPENDENT:
            return False  # its session would have been found
        contacted = mapping.contacted.get(remote[0])
        if contacted is not None and now - contacted < self.config.mapping_timeout:
            return True
        return any(
            s.mapping is mapping and s.remote[0] == remote[0]
            for s in self._outside.values()
            if s.expires > now
        )

    def _unsolicited(self, packet: Packet, remote: Endpoint, now: float) -> Output:
        if packet.protocol == ICMP:
            return self._as_closed_host(packet, Side.OUTSIDE)
        policy = self.config.unsolicited
        if policy is Unsolicited.DROP:
            return self._drop("unsolicited")
        self._drop("unsolicited")
        key = (packet.protocol, packet.dport, remote)
        if policy is Unsolicited.ACCEPT and packet.protocol == UDP and key not in self._outside:
            # A TCP entry would be removed at once by the router's own RST, which is the first answer.
            self._open(packet.protocol, packet.dport, remote, None, None, opened_inside=False, now=now)
        return self._as_closed_host(packet, Side.OUTSIDE)

    def _as_closed_host(self, packet: Packet, towards: Side) -> Output:
        """The router's own answer: an echo reply, a RST or port unreachable."""
        answer: bytes | None = None
        if packet.protocol == TCP:
            answer = ip.tcp_reset(packet)
        elif packet.protocol == UDP:
            answer = ip.icmp_error(packet.dst, packet, ip.UNREACHABLE, ip.PORT_UNREACHABLE)
        elif packet.icmp_type == ip.ECHO_REQUEST:
            answer = ip.echo_reply(packet)
        return [(towards, answer)] if answer else []

    # --- ICMP errors (RFC 5508 section 4)

    def _error_from_outside(self, packet: Packet, now: float) -> Output:
        quote = packet.embedded()
        if quote is None or quote.src != self.public:
            return self._drop("icmp error about nothing of ours")
        session = self._outside.get((quote.protocol, quote.sport, (quote.dst, quote.dport)))
        if session is None or session.mapping is None:
            return self._drop("icmp error about nothing of ours")
        inside = session.mapping.inside
        packet.rewrite_quote(quote, source=inside, destination=None)
        packet.set_addresses(packet.src, inside[0])
        if not packet.decrement_ttl():
            return self._drop("ttl")
        return [(Side.INSIDE, bytes(packet.data))]

    def _error_from_inside(self, packet: Packet, now: float) -> Output:
        quote = packet.embedded()
        if quote is None:
            return self._drop("icmp error about nothing of ours")
        inside, remote = (quote.dst, quote.dport), (quote.src, quote.sport)
        session = self._inside.get((quote.protocol, inside, remote))
        if session is None:
            return self._drop("icmp error about nothing of ours")
        packet.rewrite_quote(quote, source=None, destination=(self.public, session.port))
        packet.set_addresses(self.public, packet.dst)
        if not packet.decrement_ttl():
            return self._drop("ttl")
        return [(Side.OUTSIDE, bytes(packet.data))]
