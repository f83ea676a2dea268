"""Who will reach us, and how: by the NAT that is before us and the one that is before them.

What stands before a host, and what it does to somebody it has not spoken to:

| name | NAT                                                         | lets in                               |
|------|-------------------------------------------------------------|---------------------------------------|
| open | none, or a full cone                                        | everybody                             |
| addr | address-restricted: endpoint-independent mapping            | whose address it has sent to          |
| port | port-restricted: endpoint-independent mapping; a firewall   | whose address and port it has sent to |
| seq  | symmetric: endpoint-dependent mapping, ports in sequence    | as port, at a port that is guessed    |
| sym  | symmetric: endpoint-dependent mapping, other ports          | as port, at a port that nobody knows  |

How two of them meet, over UDP and over TCP where that differs. Directly: the one that is open is dialled, or
a hole is punched. By prediction: the port that a symmetric NAT will choose is foretold, or over UDP found by
a search (flare.nat.prediction, flare.nat.birthday). Only by relay: neither. flare.lab.expect says what
physics allows.

|      | open     | addr     | port     | seq                      | sym                      |
|------|----------|----------|----------|--------------------------|--------------------------|
| open | directly | directly | directly | directly                 | directly                 |
| addr |          | directly | directly | directly                 | directly                 |
| port |          |          | directly | by prediction            | UDP by prediction, relay |
| seq  |          |          |          | by prediction            | relay                    |
| sym  |          |          |          |                          | relay                    |

Where what is before us is known in part only, each NAT that it may be is looked up; if they differ, the
answer is that it is not known.

| verdict | when                                                                                   |
|---------|----------------------------------------------------------------------------------------|
| public  | everybody reaches us without help                                                      |
| punched | peers behind port-restricted NATs do, by a hole punch or by prediction: a relay is     |
|         | needed to introduce us, and for some peers more                                        |
| relayed | they do not: a relay carries us for most                                               |
| unknown | one of the above, and what was found out does not tell which                           |
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flare.nat.behaviour import Allocation, Behaviour, Filtering
from flare.nat.behaviour import Mapping as NatMapping
from flare.nat.reachability import Reachable


class Before(enum.Enum):
    """What stands before a host, by the names of the first table."""

    OPEN = "open"
    ADDR = "addr"
    PORT = "port"
    SEQ = "seq"
    SYM = "sym"


class Peer(enum.Enum):
    """Kinds of peers, by what is before them."""

    NONE = "none"
    FULL_CONE = "full cone"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC_SEQUENTIAL = "symmetric sequential"
    SYMMETRIC_RANDOM = "symmetric random"


class Way(enum.Enum):
    """How such peers reach us."""

    DIRECTLY = "directly"
    PREDICTED = "by prediction"
    RELAYED = "only by relay"
    UNKNOWN = "unknown"


class Outcome(enum.Enum):
    """The verdict, by the last table."""

    PUBLIC = "public"
    PUNCHED = "punched"
    RELAYED = "relayed"
    UNKNOWN = "unknown"


BEFORE_PEER: Final[Mapping[Peer, Before]] = MappingProxyType(
    {
        Peer.NONE: Before.OPEN,
        Peer.FULL_CONE: Before.OPEN,
        Peer.ADDRESS_RESTRICTED: Before.ADDR,
        Peer.PORT_RESTRICTED: Before.PORT,
        Peer.SYMMETRIC_SEQUENTIAL: Before.SEQ,
        Peer.SYMMETRIC_RANDOM: Before.SYM,
    }
)
TRANSPORTS: Final = ("udp", "tcp")

_D, _P, _R = Way.DIRECTLY, Way.PREDICTED, Way.RELAYED
_ORDER: Final = (Before.OPEN, Before.ADDR, Before.PORT, Before.SEQ, Before.SYM)
_UDP: Final = (
    (_D, _D, _D, _D, _D),
    (_D, _D, _D, _D, _D),
    (_D, _D, _D, _P, _P),
    (_D, _D, _P, _P, _R),
    (_D, _D, _P, _R, _R),
)
_TCP: Final = (
    (_D, _D, _D, _D, _D),
    (_D, _D, _D, _D, _D),
    (_D, _D, _D, _P, _R),
    (_D, _D, _P, _P, _R),
    (_D, _D, _R, _R, _R),
)
_TABLES: Final = {"udp": _UDP, "tcp": _TCP}
_BEST_FIRST: Final = (Way.DIRECTLY, Way.PREDICTED, Way.UNKNOWN, Way.RELAYED)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How each kind of peer reaches us over each transport that works here, and what that comes to."""

    ways: Mapping[str, Mapping[Peer, Way]]
    outcome: Outcome

    def over(self, transport: str, peer: Peer) -> Way | None:
        """Over "udp" or "tcp"; None where that does not work here."""
        ways = self.ways.get(transport)
        return ways[peer] if ways is not None else None

    def best(self, peer: Peer) -> Way:
        """Over whichever transport is best; what is known goes before what may be."""
        return _best(ways[peer] for ways in self.ways.values())


def meet(ours: Before, theirs: Before, transport: str) -> Way:
    """The table above: how two hosts meet over "udp" or "tcp", in either order."""
    return _TABLES[transport][_ORDER.index(ours)][_ORDER.index(theirs)]


def before_us(behaviour: Behaviour, reachable: Reachable = Reachable.UNKNOWN) -> frozenset[Before]:
    """What may stand before us, by how it behaves and by whether strangers' dials came in."""
    if reachable is Reachable.PUBLIC:
        return frozenset({Before.OPEN})
    mapping, filtering = behaviour.mapping, behaviour.filtering
    closed = reachable is Reachable.PRIVATE
    cones = {
        Filtering.ENDPOINT_INDEPENDENT: {Before.OPEN},
        Filtering.ADDRESS_DEPENDENT: {Before.ADDR},
        Filtering.ADDRESS_AND_PORT_DEPENDENT: {Before.PORT},
        Filtering.UNKNOWN: {Before.OPEN, Before.ADDR, Before.PORT},
    }[filtering]
    symmetric = {
        Allocation.SEQUENTIAL: {Before.SEQ},
        Allocation.RANDOM: {Before.SYM},
        Allocation.PRESERVING: {Before.SYM},
        Allocation.UNKNOWN: {Before.SEQ, Before.SYM},
    }[behaviour.allocation]
    if mapping.depends:
        may = symmetric
    elif mapping is NatMapping.NONE and filtering is Filtering.UNKNOWN:
        may = {Before.OPEN, Before.PORT}  # firewalls know connections, and not addresses alone
    elif mapping in (NatMapping.NONE, NatMapping.ENDPOINT_INDEPENDENT):
        may = cones
    else:
        may = cones | symmetric
    if closed:  # whatever the NAT does to others: something behind it is shut
        may = may - {Before.OPEN} or {Before.PORT}
    return frozenset(may)


def outlook(may_be: Mapping[str, frozenset[Before]]) -> Outlook:
    """The outlook of a host before which these may stand, over each transport that works ("udp", "tcp")."""
    ways = {
        transport: MappingProxyType(
            {
                peer: _agreed(meet(ours, theirs, transport) for ours in may)
                for peer, theirs in BEFORE_PEER.items()
            }
        )
        for transport, may in may_be.items()
    }
    return Outlook(MappingProxyType(ways), _outcome(may_be, ways))


def _outcome(may_be: Mapping[str, frozenset[Before]], ways: Mapping[str, Mapping[Peer, Way]]) -> Outcome:
    if any(may == {Before.OPEN} for may in may_be.values()):
        return Outcome.PUBLIC
    closed = [transport for transport, may in may_be.items() if Before.OPEN not in may]
    usual = _best(ways[transport][Peer.PORT_RESTRICTED] for transport in closed)
    return {
        Way.DIRECTLY: Outcome.PUNCHED,
        Way.PREDICTED: Outcome.PUNCHED,
        Way.RELAYED: Outcome.RELAYED,
        Way.UNKNOWN: Outcome.UNKNOWN,
    }[usual]


def _agreed(ways: Iterable[Way]) -> Way:
    found = set(ways)
    return found.pop() if len(found) == 1 else Way.UNKNOWN


def _best(ways: Iterable[Way]) -> Way:
    return min(ways, key=_BEST_FIRST.index, default=Way.UNKNOWN)
