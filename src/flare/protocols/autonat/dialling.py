"""What the servers of both versions dial back with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare.errors import FlareError
from flare.protocols.autonat.limiter import DialBackLimiter
from flare.protocols.exchange import TIMEOUTS, within
from flare.wire.multiaddr import Multiaddr
from flare.wire.multiaddr import is_public as addr_is_public
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.config import Timeouts
    from flare.transport.connection import Connection

DialBackTo = Callable[[Multiaddr, PeerId], Awaitable["Connection"]]


@dataclass(frozen=True, slots=True)
class DialBacks:
    """How, where to and how often both servers of one host dial back.

    `dial` connects to an address of a peer from a fresh port, as nobody whom the client knows; `can_dial`
    says whether this machine has that IP version and transport at all; `limiter` counts for both.
    """

    dial: DialBackTo
    limiter: DialBackLimiter
    can_dial: Callable[[Multiaddr], bool]
    is_public: Callable[[Multiaddr], bool] = addr_is_public
    timeouts: Timeouts = TIMEOUTS

    async def to(self, addr: Multiaddr, peer: PeerId) -> Connection | None:
        """A connection to `peer` at `addr`, which the caller ends; None when nothing comes of it in time."""
        try:
            async with within(self.timeouts.dial_back, f"dialling {addr} back"):
                return await self.dial(addr, peer)
        except (FlareError, OSError):
            return None
