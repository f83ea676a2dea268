"""What a router gave us, and what every protocol of asking for it can do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from flare.errors import FlareError
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from flare.wire.nat_pmp import Transport

PERMANENT = math.inf  # the lifetime of a mapping that stays until it is taken back


class MappingGone(FlareError):
    """The router has the mapping no more, or gave it to somebody else: it has to be made again."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The router forwards `port` of `external` to `listener`, for `lifetime` seconds from `granted` on.

    `granted` counts on the loop's clock; `handle` is what the router calls it, where it has a name.
    """

    protocol: str
    listener: Multiaddr
    external: IpAddress
    port: int
    lifetime: float
    granted: float
    handle: str = ""

    @property
    def expires(self) -> float:
        """When it ends, on the loop's clock."""
        return self.granted + self.lifetime

    @property
    def addr(self) -> Multiaddr:
        """Where strangers find the listener."""
        return Multiaddr.from_socket((str(self.external), self.port), self.listener.transport or "tcp")


class Mapper(Protocol):
    """One protocol spoken with one router.

    All raise PortMappingRefused when the router says no, TimedOut and OSError when it says nothing, and
    ProtocolViolation when it says what makes no sense.
    """

    @property
    def name(self) -> str:
        """The protocol's name."""
        ...

    async def probe(self) -> IpAddress | None:
        """Find out whether the router speaks it, and its outside address where that can be asked.

        Changes nothing there.
        """
        ...

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        """Have a port forwarded, the external `port` if it can be had. Again is fine."""
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Make it last again. MappingGone."""
        ...

    async def check(self, lease: Lease) -> Lease:
        """Whether it is still there, and under which address. MappingGone."""
        ...

    async def unmap(self, lease: Lease) -> None:
        """Give it back."""
        ...


def transport_of(listener: Multiaddr) -> Transport:
    """What a router knows of a listener's transport: QUIC is UDP to it."""
    return "udp" if listener.has("udp") else "tcp"
