"""How the NAT before us behaves, in the terms of RFC 4787 and RFC 5780, judged from what was observed.

| mapping                     | the same local port is seen ...                                        |
|-----------------------------|------------------------------------------------------------------------|
| none                        | as our own address                                                     |
| endpoint-independent        | alike by two addresses                                                 |
| address-dependent           | alike by two ports of one address, differently by two addresses        |
| address-and-port-dependent  | differently by two ports of one address                                |
| endpoint-dependent          | differently by two addresses, and no address has a second port to tell |
| unknown                     | by one vantage point only                                              |

| filtering                   | a port that has sent to A only lets in ...                             |
|-----------------------------|------------------------------------------------------------------------|
| endpoint-independent        | another address                                                        |
| address-dependent           | another port of A, and no other address                                |
| address-and-port-dependent  | no other port of A                                                     |
| unknown                     | another port of A, and there is no other address to try                |

| allocation  | the ports that the NAT gave, in the order in which they were asked for         |
|-------------|--------------------------------------------------------------------------------|
| preserving  | are our own                                                                    |
| sequential  | grow by the same step, MAX_STEP at most (some may be taken by others meanwhile) |
| random      | are neither                                                                    |
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_STEP: Final = 16  # between two ports of a NAT that allocates one after the other
STRANGERS: Final = 8  # ports that others may have taken between two of ours

Endpoint = tuple[str, int]  # IP and port


class Mapping(enum.Enum):
    UNKNOWN = "unknown"
    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    ENDPOINT_DEPENDENT = "endpoint-dependent"

    @property
    def depends(self) -> bool:
        """On whom we speak to: then nobody can be told where to find us."""
        return self in _DEPENDENT


_DEPENDENT = frozenset(
    (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT, Mapping.ENDPOINT_DEPENDENT)
)


class Filtering(enum.Enum):
    UNKNOWN = "unknown"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Allocation(enum.Enum):
    UNKNOWN = "unknown"
    PRESERVING = "preserving"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Sight:
    """`vantage` saw our local `port` as `seen`."""

    vantage: Endpoint
    port: int
    seen: Endpoint


@dataclass(frozen=True, slots=True)
class Behaviour:
    """All that was found out for one transport. `step` counts for sequential allocation."""

    transport: str = "tcp"
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: Allocation = Allocation.UNKNOWN
    step: int = 0
    hairpin: bool | None = None
    external: str | None = None  # IP

    @property
    def says_public(self) -> bool:
        """A dial-back by anybody proves that everybody can dial."""
        return self.mapping is Mapping.NONE or (
            not self.mapping.depends and self.filtering is Filtering.ENDPOINT_INDEPENDENT
        )


def judge_mapping(sights: Sequence[Sight], own: Sequence[str]) -> Mapping:
    """By the table above; `own` are this machine's addresses, and all sights are of one local port."""
    if not sights:
        return Mapping.UNKNOWN
    if all(sight.seen == (sight.seen[0], sight.port) and sight.seen[0] in own for sight in sights):
        return Mapping.NONE
    by_address: dict[str, set[Endpoint]] = {}
    ports: dict[str, set[int]] = {}
    for sight in sights:
        by_address.setdefault(sight.vantage[0], set()).add(sight.seen)
        ports.setdefault(sight.vantage[0], set()).add(sight.vantage[1])
    if any(len(seen) > 1 for seen in by_address.values()):
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    if len(by_address) < 2:
        return Mapping.UNKNOWN
    if len({next(iter(seen)) for seen in by_address.values()}) == 1:
        return Mapping.ENDPOINT_INDEPENDENT
    two_ports = any(len(known) > 1 for known in ports.values())
    return Mapping.ADDRESS_DEPENDENT if two_ports else Mapping.ENDPOINT_DEPENDENT


def judge_filtering(other_port: bool | None, other_address: bool | None) -> Filtering:
    """By the table above: whether a dial-back came in; None where nobody could be asked."""
    if other_address:
        return Filtering.ENDPOINT_INDEPENDENT
    if other_port is False:
        return Filtering.ADDRESS_AND_PORT_DEPENDENT
    if other_port and other_address is False:
        return Filtering.ADDRESS_DEPENDENT
    return Filtering.UNKNOWN


def judge_allocation(sights: Sequence[Sight]) -> tuple[Allocation, int]:
    """By the table above, of sights in the order in which they were made; the step, 0 if not sequential."""
    given = list(dict.fromkeys((sight.port, sight.seen[1]) for sight in sights))
    if not given:
        return Allocation.UNKNOWN, 0
    if all(local == outside for local, outside in given):
        return Allocation.PRESERVING, 0
    outside = list(dict.fromkeys(port for _, port in given))
    if len(outside) < 3:
        return Allocation.UNKNOWN, 0
    steps = [(b - a) % 65536 for a, b in itertools.pairwise(outside)]
    step = min(steps)
    if 0 < step <= MAX_STEP and all(gap % step == 0 and gap <= step * STRANGERS for gap in steps):
        return Allocation.SEQUENTIAL, step
    return Allocation.RANDOM, 0
