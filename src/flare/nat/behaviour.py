"""How the NAT before us behaves, in the terms of RFC 4787 and RFC 5780, judged from what was observed.

| mapping                     | the same local port is seen ...                                        |
|-----------------------------|------------------------------------------------------------------------|
| none                        | as our own address                                                     |
| endpoint-independent        | alike by two addresses                                                 |
| address-dependent           | alike by two ports of one address, differently by two addresses        |
| address-and-port-dependent  | differently by two ports of one address                                |
| endpoint-dependent          | differently by two addresses, and no address has a second port to tell |
| unknown                     | by one vantage point only                                              |

The first row that holds counts. No server knows what another one saw: a liar cannot make two agree.

| filtering                   | a port that has sent to A only lets in ...                             |
|-----------------------------|------------------------------------------------------------------------|
| endpoint-independent        | another address; or A, at a port that has sent to nobody               |
| address-dependent           | another port of A, and no other address                                |
| address-and-port-dependent  | no other port of A                                                     |
| unknown                     | another port of A, and there is no other address to try                |

| allocation  | the ports that the NAT gave, in the order in which they were asked for         |
|-------------|--------------------------------------------------------------------------------|
| preserving  | are our own                                                                    |
| sequential  | grow by the same step, MAX_STEP at most (others may take some, one may be late) |
| random      | are neither                                                                    |
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

MAX_STEP: Final = 16  # between two ports of a NAT that allocates one after the other
STRANGERS: Final = 8  # ports that others may have taken between two of ours
LATE: Final = 4  # one port in so many may come out of turn
PORTS: Final = 65536

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
class Lifetime:
    """How long a mapping lives that carries nothing, in seconds.

    It was alive after `at_least`, and gone after `at_most`; None: it was not seen to go. `confidence`, 0 to
    1, is the share of the samples that agree, as if one more had been taken that does not.
    """

    at_least: float
    at_most: float | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """All that was found out for one transport, "tcp" or "udp" (with a 6 behind it for IPv6).

    `step` counts for sequential allocation. `blocked`: nobody answers over this transport who answers over
    another. `filtered` are the servers on whose word it stands that somebody does not get in, `kept_out`
    those that did not themselves though the port had sent to them; `sure`: no single stranger can have lied
    about `mapping`. `external` is the IP that others see.
    """

    transport: str = "tcp"
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: Allocation = Allocation.UNKNOWN
    step: int = 0
    hairpin: bool | None = None
    external: str | None = None
    blocked: bool = False
    filtered: tuple[PeerId, ...] = ()
    kept_out: tuple[PeerId, ...] = ()
    sure: bool = False
    lifetime: Lifetime | None = None

    @property
    def says_public(self) -> bool:
        """A dial-back by anybody proves that everybody can dial."""
        return not self.mapping.depends and self.filtering is Filtering.ENDPOINT_INDEPENDENT

    def as_json(self) -> dict[str, Any]:
        """All of it but who said so, flat but for `lifetime`, with the sentence."""
        life = self.lifetime
        return {
            "transport": self.transport,
            "mapping": self.mapping.value,
            "filtering": self.filtering.value,
            "allocation": self.allocation.value,
            "step": self.step,
            "hairpin": self.hairpin,
            "external": self.external,
            "blocked": self.blocked,
            "lifetime": None if life is None else dataclasses.asdict(life),
            "sentence": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """What it is, and what follows from it for hole punching."""
        name = self.transport[:3].upper()
        if self.blocked:
            return f"{name} gets no answer from any server: it is blocked, and of no use here"
        if self.mapping is Mapping.UNKNOWN:
            return f"how our NAT maps {name} cannot be told: that takes two servers with different addresses"
        keeps_out = self.filtering in (Filtering.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT)
        if self.mapping is Mapping.NONE:
            firewall = "; a firewall lets in only whom we have sent to" if keeps_out else ""
            return f"there is no NAT before {name}: others see our own address{firewall}"
        if not self.mapping.depends:
            strangers = {
                Filtering.UNKNOWN: "",
                Filtering.ENDPOINT_INDEPENDENT: ", which lets in everybody",
            }.get(self.filtering, f", which lets in whom we have sent to ({self.filtering.value} filtering)")
            return (
                f"our NAT shows everybody the same address for {name} (endpoint-independent mapping)"
                f"{strangers}: hole punches can work"
            )
        how = f" ({self.mapping.value} mapping)" if self.mapping is not Mapping.ENDPOINT_DEPENDENT else ""
        follows = (
            f"its ports come one after the other (step {self.step}), so that the next may be predicted"
            if self.allocation is Allocation.SEQUENTIAL
            else "only peers that take us from any port go direct, others by relay"
        )
        return (
            f"our NAT has endpoint-dependent mapping for {name}{how}: it shows everybody another port, "
            f"so that nobody can be told where to find us; {follows}"
        )


def transport_of(addr: Multiaddr) -> str | None:
    """Which behaviour counts for `addr`: "tcp", "udp", "tcp6", "udp6"; None if it is neither TCP nor QUIC."""
    kind = {"tcp": "tcp", "quic-v1": "udp"}.get(addr.transport or "")
    ip = addr.ip
    return None if kind is None or ip is None else kind + ("6" if ip.version == 6 else "")


def judge_mapping(sights: Sequence[Sight], own: Sequence[str]) -> Mapping:
    """By the table above; `own` are this machine's addresses, and all sights are of one local port."""
    if not sights:
        return Mapping.UNKNOWN
    if all(sight.seen == (sight.seen[0], sight.port) and sight.seen[0] in own for sight in sights):
        return Mapping.NONE
    by_address: dict[str, set[Endpoint]] = {}
    by_seen: dict[Endpoint, set[str]] = {}
    ports: dict[str, set[int]] = {}
    for sight in sights:
        by_address.setdefault(sight.vantage[0], set()).add(sight.seen)
        by_seen.setdefault(sight.seen, set()).add(sight.vantage[0])
        ports.setdefault(sight.vantage[0], set()).add(sight.vantage[1])
    if any(len(addresses) > 1 for addresses in by_seen.values()):
        return Mapping.ENDPOINT_INDEPENDENT
    if any(len(seen) > 1 for seen in by_address.values()):
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    if len(by_address) < 2:
        return Mapping.UNKNOWN
    two_ports = any(len(known) > 1 for known in ports.values())
    return Mapping.ADDRESS_DEPENDENT if two_ports else Mapping.ENDPOINT_DEPENDENT


def judge_filtering(
    other_port: bool | None, other_address: bool | None, unknown_port: bool | None = None
) -> Filtering:
    """By the table above: whether a dial-back came in; None where nobody could be asked."""
    if other_address or unknown_port:
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
    # in the order in which the NAT gave them: a packet that was lost and sent again comes late
    ports = sorted(outside)
    gaps = [(b - a) % PORTS for a, b in itertools.pairwise([*ports, ports[0]])]
    begin = gaps.index(max(gaps)) + 1
    ranks = {port: rank for rank, port in enumerate(ports[begin:] + ports[:begin])}
    steps = gaps[begin:] + gaps[: begin - 1]
    late = sum(ranks[b] < ranks[a] for a, b in itertools.pairwise(outside))
    step = min(steps)
    if (
        0 < step <= MAX_STEP
        and all(gap % step == 0 and gap <= step * STRANGERS for gap in steps)
        and late <= len(outside) // LATE
    ):
        return Allocation.SEQUENTIAL, step
    return Allocation.RANDOM, 0
