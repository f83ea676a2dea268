"""What hole punches wait for at our listeners (DCUtR.md, step 5).

A punch's connection may come to a listener: with both sides connecting, or when our own SYN was lost. Others
come from the same place: a second peer behind that NAT that punches at the same time, or a stranger who just
dials. So a punch has a claim on its peer's connections, wherever they come from, and never on a socket: who
comes is told by the handshake, and whoever is no punch's peer is an ordinary inbound connection.

Only a punch that gives us the dialler's role needs more: its peer's end waits for us to speak first. There a
socket from an address of the peer is given LISTEN_FIRST to show that the other end is an ordinary dialler.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from flare.config import PunchConfig
from flare.transport import multistream
from flare.transport.sockets import IpAddress
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

LISTEN_FIRST: Final = 0.05  # seconds; a dialler's first bytes follow its ACK at once
LOOK: Final = 0.005  # seconds between two looks
_HEADER: Final = multistream.encode(multistream.HEADER)  # which some listeners send unasked


class Waiting(Protocol):
    """A punch, as its claim calls it."""

    def securing(self, task: asyncio.Task[None]) -> None:
        """What came from an address of the peer is being secured in `task`; it may be somebody else."""

    def secured(self, connection: Connection) -> bool:
        """The peer's connection came. False: it is not wanted any more."""

    def failed(self, remote: Multiaddr, error: Exception) -> None:
        """What came from an address of the peer could not be secured."""


@dataclass(eq=False, slots=True)
class Claim:
    """A punch with `peer`; as its `client` we speak first on what it connects to us with."""

    peer: PeerId
    client: bool
    waiting: Waiting
    endpoints: frozenset[tuple[IpAddress, int]]
    ips: frozenset[IpAddress]
    ours: set[asyncio.Task[Any]] = field(default_factory=set)  # in which we speak first for it


class Expectations:
    """The claims of all punches that run."""

    def __init__(self, max_ips: int = PunchConfig().max_ips) -> None:
        self._max_ips = max_ips
        self._claims: dict[PeerId, list[Claim]] = {}
        self._by_ip: dict[IpAddress, list[Claim]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._claims.values()))

    @contextlib.contextmanager
    def expect(
        self, peer: PeerId, addrs: Iterable[Multiaddr], *, client: bool, waiting: Waiting
    ) -> Iterator[None]:
        """Within the block, connections of `peer` go to `waiting`.

        `addrs` are where it says it is. Behind a NAT it may come from other ports of theirs, which counts
        for the first `max_ips` IPs.
        """
        endpoints = [(addr.ip, addr.port) for addr in addrs if addr.ip is not None and addr.port]
        ips = list(dict.fromkeys(ip for ip, _ in endpoints))
        claim = Claim(peer, client, waiting, frozenset(endpoints), frozenset(ips[: self._max_ips]))
        self._claims.setdefault(peer, []).append(claim)
        for ip in ips:
            self._by_ip.setdefault(ip, []).append(claim)
        try:
            yield
        finally:
            _remove(self._claims, peer, claim)
            for ip in ips:
                _remove(self._by_ip, ip, claim)
            for task in claim.ours:
                if not any(task in other.ours for others in self._claims.values() for other in others):
                    task.cancel()

    def at(self, ip: IpAddress, port: int) -> list[Claim]:
        """The claims that what comes from there may fulfil: those that name it, else those of its IP."""
        here = self._by_ip.get(ip)
        if not here:
            return []
        exact = [claim for claim in here if (ip, port) in claim.endpoints]
        return exact or [claim for claim in here if ip in claim.ips]

    def of(self, peer: PeerId) -> Claim | None:
        """The newest claim on connections of `peer`."""
        mine = self._claims.get(peer)
        return mine[-1] if mine else None


def _remove(table: dict[Any, list[Claim]], key: Any, claim: Claim) -> None:
    table[key].remove(claim)
    if not table[key]:
        del table[key]


async def waits_for_us(sock: socket.socket) -> bool:
    """Whether the other end of an accepted socket is silent for LISTEN_FIRST: so it listens.

    Some listeners send their multistream header at once; a dialler's is followed by a proposal. Nothing is
    taken out of the socket.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + LISTEN_FIRST
    while True:
        try:
            said = sock.recv(len(_HEADER) + 1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            return False  # whoever reads it will see why
        else:
            if not said or not _HEADER.startswith(said):
                return False
        if loop.time() >= end:
            return True
        await asyncio.sleep(LOOK)
