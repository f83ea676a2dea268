"""What `flare check` found out, as plain values; and what follows from them, without any I/O.

The JSON forms are what `--json` prints: fields are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from ...events import PortMapped
from ...nat.behaviour import Behaviour
from ...nat.outlook import Before, Outcome, Outlook, Peer, before_us, outlook
from ...nat.reachability import AddressVerdict, Reachable
from ...wire.multiaddr import Multiaddr, is_public

# Exit codes: 1 and 2 are what they are for every command, 1 being that the question was not answered.
CODES: Final[Mapping[Outcome, int]] = MappingProxyType(
    {Outcome.PUBLIC: 0, Outcome.UNKNOWN: 1, Outcome.PUNCHED: 3, Outcome.RELAYED: 4}
)
NAMES: Final = {"udp": "quic-v1", "tcp": "tcp"}  # of a transport, in multiaddrs


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6 on this machine: its addresses, and the one that packets to the internet leave from.

    `source` None: there is no route. `answered` None: no relay has an address of this family.
    """

    version: int
    addrs: tuple[str, ...] = ()
    source: str | None = None
    answered: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return {"addrs": list(self.addrs), "source": self.source, "answered": self.answered}


@dataclass(frozen=True, slots=True)
class Path:
    """One address of a relay, dialled by itself. `rtt` in seconds, the least of a few; None: `reason`."""

    addr: Multiaddr
    rtt: float | None = None
    reason: str = ""

    @property
    def transport(self) -> str:
        """ "udp" or "tcp"."""
        return "udp" if self.addr.transport == "quic-v1" else "tcp"

    def as_json(self) -> dict[str, Any]:
        return {"addr": str(self.addr), "rtt_ms": _ms(self.rtt), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Relay:
    """One relay that was looked at. `place`: whether it would keep one for us; None: it was not reached.

    `reason` says why it was not reached, or why it keeps no place; `dials_back`: it speaks AutoNAT v2.
    """

    addr: Multiaddr
    agent: str = ""
    place: bool | None = None
    reason: str = ""
    dials_back: bool = False
    paths: tuple[Path, ...] = ()

    @property
    def reached(self) -> bool:
        return any(path.rtt is not None for path in self.paths)

    @property
    def rtt(self) -> float | None:
        """Of its best path."""
        return min((path.rtt for path in self.paths if path.rtt is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "relay": str(self.addr.peer_id),
            "addr": str(self.addr),
            "agent": self.agent,
            "reached": self.reached,
            "rtt_ms": _ms(self.rtt),
            "place": self.place,
            "reason": self.reason,
            "dials_back": self.dials_back,
            "paths": [path.as_json() for path in self.paths],
        }


@dataclass(frozen=True, slots=True)
class Ports:
    """Whether the router maps ports. It gets them back when the check ends.

    `reason` says why not, `doubts` why what it maps may lead nowhere (double NAT).
    """

    asked: bool = False
    mapped: tuple[PortMapped, ...] = ()
    reason: str = ""
    doubts: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "mapped": [
                {
                    "listener": str(one.listener),
                    "external": str(one.external),
                    "protocol": one.protocol,
                    "gateway": one.gateway,
                    "lifetime": one.lifetime,
                }
                for one in self.mapped
            ],
            "reason": self.reason,
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it. `behaviours` go by transport, "udp" and "tcp", and with a 6 behind it for IPv6."""

    peer: str = ""
    ipv4: Family = Family(4)
    ipv6: Family = Family(6)
    relays: tuple[Relay, ...] = ()
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    ports: Ports = Ports()
    addrs: tuple[AddressVerdict, ...] = ()
    seconds: float = 0.0
    cut: bool = False  # the time was over before all was known

    @property
    def reached(self) -> int:
        """How many relays answered."""
        return sum(relay.reached for relay in self.relays)

    def works(self, transport: str) -> bool | None:
        """Whether "udp" or "tcp" gets through to the internet; None where nobody could be asked.

        Not, when it did not reach a relay that answered otherwise.
        """
        paths = [path for relay in self.relays if relay.reached for path in relay.paths]
        tried = [path for path in paths if path.transport == transport]
        return any(path.rtt is not None for path in tried) if tried else None

    def reachable(self, transport: str, version: int) -> Reachable:
        """Whether strangers dialled us over it: at one address is enough."""
        states = {
            verdict.state
            for verdict in self.addrs
            if verdict.addr.transport == NAMES[transport]
            and verdict.addr.ip is not None
            and verdict.addr.ip.version == version
        }
        if Reachable.PUBLIC in states:
            return Reachable.PUBLIC
        return Reachable.PRIVATE if states == {Reachable.PRIVATE} else Reachable.UNKNOWN

    @property
    def version(self) -> int:
        """The family that counts for the verdict: most peers have IPv4 only."""
        return 6 if self.ipv4.source is None and self.ipv6.source is not None else 4

    def behaviour(self, transport: str) -> Behaviour:
        """How the NAT treats "udp" or "tcp", of the family that counts."""
        name = transport if self.version == 4 else f"{transport}6"
        return self.behaviours.get(name, Behaviour(name))

    @property
    def public_over_ipv6(self) -> bool:
        """Peers with IPv6 reach us directly, whatever holds for the others."""
        return any(self.reachable(transport, 6) is Reachable.PUBLIC for transport in NAMES)

    @property
    def by_mapping(self) -> bool:
        """Whether we are public at mapped ports and nowhere else."""
        mapped = {one.external for one in self.ports.mapped}
        public = {verdict.addr for verdict in self.addrs if verdict.state is Reachable.PUBLIC}
        return bool(public) and public <= mapped

    @property
    def before(self) -> Mapping[str, frozenset[Before]]:
        """What may stand before us, for each transport that works."""
        return {
            transport: before_us(self.behaviour(transport), self.reachable(transport, self.version))
            for transport in NAMES
            if self.works(transport)
        }

    @property
    def outlook(self) -> Outlook:
        """Who reaches us, and how."""
        return outlook(self.before if self.reached else {})

    @property
    def code(self) -> int:
        """The exit code."""
        return CODES[self.outlook.outcome]

    @property
    def public_addrs(self) -> tuple[str, ...]:
        """The IPs that the internet knows us by."""
        seen = [behaviour.external for behaviour in self.behaviours.values() if behaviour.external]
        dialled = [str(verdict.addr.ip) for verdict in self.addrs]
        own = [ip for family in (self.ipv4, self.ipv6) for ip in family.addrs if _public(ip)]
        return tuple(dict.fromkeys([*seen, *dialled, *own]))

    def as_json(self) -> dict[str, Any]:
        """The verdict with all that it stands on."""
        expected = self.outlook
        return {
            "verdict": expected.outcome.value,
            "code": self.code,
            "peer": self.peer,
            "udp": self.works("udp"),
            "tcp": self.works("tcp"),
            "ipv4": self.ipv4.as_json(),
            "ipv6": self.ipv6.as_json(),
            "public_addrs": list(self.public_addrs),
            "public_over_ipv6": self.public_over_ipv6,
            "nat": {name: self.behaviour(name).as_json() for name in NAMES},
            "port_mapping": self.ports.as_json(),
            "by_mapping": self.by_mapping,
            "relays": [relay.as_json() for relay in self.relays],
            "addrs": [verdict_json(verdict) for verdict in self.addrs],
            "peers": {
                peer.value: {
                    "best": expected.best(peer).value,
                    **{
                        name: way.value if (way := expected.over(name, peer)) is not None else None
                        for name in NAMES
                    },
                }
                for peer in Peer
            },
            "seconds": round(self.seconds, 2),
            "cut": self.cut,
        }


def verdict_json(verdict: AddressVerdict) -> dict[str, Any]:
    """One address, and the words that its state stands on."""
    return {
        "addr": str(verdict.addr),
        "state": verdict.state.value,
        "evidence": [
            {
                "server": str(word.server),
                "network": word.network,
                "reachable": word.reachable,
                "trusted": word.trusted,
                "inferred": word.inferred,
                "reason": word.reason,
            }
            for word in verdict.words
        ],
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _public(ip: str) -> bool:
    return is_public(Multiaddr(f"/ip{6 if ':' in ip else 4}/{ip}"))
