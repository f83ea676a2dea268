"""Which address first, and how long after the first dial: go-libp2p's order, which RFC 8305 is behind.

Private and public addresses are dialled beside each other, each group in its own time: QUIC before TCP, IPv6
before IPv4, low ports first, since they are more likely listened on. Of QUIC the first IPv6 address goes at
once, the first IPv4 one a step later, the rest another step later; then TCP's likewise, a step after the last
of QUIC. What is neither waits for all of these. Relayed addresses wait where there is a public one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flare.wire.multiaddr import Multiaddr

PUBLIC_STEP: Final = 0.25  # seconds: about a round trip (RFC 8305, 5)
PRIVATE_STEP: Final = 0.03  # what is near answers at once or never
RELAY_DELAY: Final = 0.5  # head start of public addresses over relayed ones
OTHER_PUBLIC: Final = 1.0  # transports that we may not speak, after the last that we do
OTHER_PRIVATE: Final = 0.1
MAX_ADDRESSES: Final = 64  # of one peer: those after are not tried

_QUIC, _TCP, _OTHER = range(3)


@dataclass(frozen=True, slots=True)
class Planned:
    """An address, and how many seconds after the first dial its own begins."""

    addr: Multiaddr
    delay: float


def plan(addrs: Iterable[Multiaddr]) -> list[Planned]:
    """Each once, best first, and when: by delay."""
    private: list[Multiaddr] = []
    public: list[Multiaddr] = []
    relayed: list[Multiaddr] = []
    for addr in dict.fromkeys(addrs):
        if addr.is_circuit:
            relayed.append(addr)
        elif addr.is_private or addr.is_loopback:
            private.append(addr)
        else:
            public.append(addr)
    made = [
        *_group(private, PRIVATE_STEP, OTHER_PRIVATE, 0.0),
        *_group(public, PUBLIC_STEP, OTHER_PUBLIC, 0.0),
        *_group(relayed, PUBLIC_STEP, OTHER_PUBLIC, RELAY_DELAY if public else 0.0),
    ]
    return sorted(made, key=lambda planned: planned.delay)[:MAX_ADDRESSES]


def rank(addrs: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Each once, best first."""
    return [planned.addr for planned in plan(addrs)]


def _group(addrs: list[Multiaddr], step: float, other: float, offset: float) -> list[Planned]:
    kinds: tuple[list[Multiaddr], ...] = ([], [], [])
    for addr in sorted(addrs, key=lambda addr: addr.port or 0):
        kinds[_kind(addr)].append(addr)
    made: list[Planned] = []
    begin = last = 0.0
    for kind in (_QUIC, _TCP):
        ordered, both = _happy_eyeballs(kinds[kind])
        for at, addr in enumerate(ordered):
            last = begin + (0.0, step, (1 + both) * step)[min(at, 2)]
            made.append(Planned(addr, offset + last))
        if ordered:
            begin = last + step
    return made + [Planned(addr, offset + last + (other if made else 0.0)) for addr in kinds[_OTHER]]


def _happy_eyeballs(addrs: list[Multiaddr]) -> tuple[list[Multiaddr], bool]:
    """IPv6 first, and the first IPv4 address second; whether there are both (RFC 8305, 4)."""
    six = [addr for addr in addrs if _version(addr) == 6]
    four = [addr for addr in addrs if _version(addr) != 6]
    return six[:1] + four[:1] + six[1:] + four[1:], bool(six and four)


def _version(addr: Multiaddr) -> int:
    return addr.ip.version if addr.ip is not None else 4


def _kind(addr: Multiaddr) -> int:
    if addr.has("quic-v1") and not addr.has("webtransport"):
        return _QUIC
    return _TCP if addr.has("tcp") else _OTHER
