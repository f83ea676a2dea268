"""The search for a port that a NAT chose by chance: many sockets on one side, random probes from the other.

The side whose NAT gives each destination another port opens sockets and sends from each to the peer, which
can be aimed at. Each send is a port of its NAT's that only the peer's packets pass. The peer sends to random
ports of that NAT. Wherever a probe and a port meet, both NATs are open, whichever of the two came first:

- the probe comes through to the socket, and is a place to answer, or to dial; or
- what the socket sends comes through to the prober, whose NAT remembers the probe for half a minute.

So the prober sends few probes, once, and the opener takes new sockets until one of their ports is among them:
the effort is with the side that has the difficult NAT, and costs no third party anything.

Some NATs take a packet that comes before they sent there for their own, and never let that pair meet
(`-acc`, docs/lab.md). So the first packets of the sockets live for OWN_NAT hops, and the ones that reach the
peer's NAT leave when its probes are out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.config import PunchConfig
from flare.nat.prediction import Part
from flare.transport.quic_engine import Address

if TYPE_CHECKING:
    from flare.transport.udp import UdpSocket

log = logging.getLogger("flare.nat.birthday")

PROBE: Final = 16  # bytes of a datagram: less than QUIC reads anything into
TICK: Final = 0.01  # seconds between two handfuls of datagrams
OWN_NAT: Final = 3  # hops: past our own NATs, and not as far as the peer's
LINGER: Final = 0.3  # seconds at least that sockets wait for an answer after their last packet
WINDOW: Final = 60.0  # seconds for which PunchConfig.probes_per_ip counts


@dataclass(frozen=True, slots=True)
class Search:
    """Our part in one, and the peer's IP and port: whom sockets send to, whose IP is probed.

    `sequence` are the ports that the opener's sockets will have, where they can be foretold.
    """

    part: Part
    remote: tuple[str, int]
    sequence: tuple[int, ...] = ()


def probe() -> bytes:
    """A datagram that is no QUIC packet (RFC 9000, 17)."""
    data = bytearray(os.urandom(PROBE))
    data[0] &= 0x3F
    return bytes(data)


class ProbeBudget:
    """How many datagrams may go to ports that nobody was told of: so many a second, so many to each IP.

    A peer says itself which IP is its own, and nobody else does. So what one IP gets is bounded, whoever asks
    for it and however often, and what all get together is too.
    """

    def __init__(self, limits: PunchConfig | None = None) -> None:
        self._limits = limits or PunchConfig()
        self._tokens = 0.0
        self._at = 0.0
        self._sent: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()  # by IP, the oldest first

    def room(self, ip: str, now: float) -> int:
        """How many more `ip` may get within this WINDOW."""
        self._forget(now)
        return max(0, self._limits.probes_per_ip - sum(count for _, count in self._sent.get(ip, ())))

    def take(self, ip: str, wanted: int, now: float) -> int:
        """How many of `wanted` may go to `ip` now; they count as sent."""
        rate = self._limits.probe_rate
        self._tokens = min(max(1.0, 2 * rate * TICK), self._tokens + (now - self._at) * rate)
        self._at = now
        granted = min(wanted, int(self._tokens), self.room(ip, now))
        if granted <= 0:
            return 0
        self._tokens -= granted
        self._sent.setdefault(ip, deque()).append((now, granted))
        self._sent.move_to_end(ip)
        return granted

    def _forget(self, now: float) -> None:
        for ip, sent in list(self._sent.items()):
            while sent and sent[0][0] <= now - WINDOW:
                sent.popleft()
            if not sent:
                del self._sent[ip]


async def send_probes(socket: UdpSocket, ip: str, ports: Sequence[int], budget: ProbeBudget) -> int:
    """Send to `ports` of `ip` in turn, as fast as the budget allows; returns how many went out."""
    loop = asyncio.get_running_loop()
    sent = 0
    while sent < len(ports) and not socket.closed and budget.room(ip, loop.time()):
        for _ in range(budget.take(ip, len(ports) - sent, loop.time())):
            socket.send_raw((ip, ports[sent]), probe())
            sent += 1
        await asyncio.sleep(TICK)
    return sent


class Sockets:
    """How many sockets all searches of a host hold: `most` at once, and none of the last quarter of what the
    process may have: that is for connections.
    """

    def __init__(self, most: int, descriptors: int | None = None) -> None:
        if descriptors is None:
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last = descriptors * 3 // 4 if descriptors != resource.RLIM_INFINITY else sys.maxsize
        self.most = most
        self.held = 0

    def open(self, wanted: int) -> list[socket.socket]:
        """As many bound IPv4 sockets as there is room for."""
        found: list[socket.socket] = []
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with contextlib.suppress(OSError):
            while len(found) < wanted and self.held + len(found) < self.most:
                sock = socket.socket(socket.AF_INET, kind)
                if sock.fileno() >= self._last:
                    sock.close()
                    break
                found.append(sock)
                sock.bind(("0.0.0.0", 0))
        self.held += len(found)
        return found

    def close(self, sock: socket.socket) -> None:
        """One of them is not needed any more."""
        self.held -= 1
        sock.close()

    def gave(self, sock: socket.socket) -> None:
        """One of them is somebody else's now."""
        self.held -= 1


class Opener:
    """The side with many sockets. `on_hit(sock, sender)` gets each socket that something of the peer's IP
    came to; that is unread, and the socket is the callback's. `fresh` False: each round has the same sockets.
    """

    def __init__(
        self,
        remote: Address,
        on_hit: Callable[[socket.socket, Address], None],
        *,
        budget: ProbeBudget,
        sockets: Sockets,
        limits: PunchConfig,
        fresh: bool = True,
    ) -> None:
        self._remote = remote[:2]
        self._on_hit = on_hit
        self._budget = budget
        self._sockets = sockets
        self._limits = limits
        self._fresh = fresh
        self._loop = asyncio.get_running_loop()
        self._open: dict[socket.socket, None] = {}

    async def run(self, *, rtt: float) -> None:
        """Rounds of sockets, until PunchConfig.socket_rounds are over or the budget is."""
        hold = max(LINGER, 1.5 * rtt)
        try:
            for number in range(self._limits.socket_rounds):
                if number == 0 or self._fresh:
                    self._close_all()
                    self._open_some()
                if number == 0:
                    await self._knock()
                await self._speak()
                await asyncio.sleep(hold)
        finally:
            self._close_all()

    def _open_some(self) -> None:
        for sock in self._sockets.open(self._limits.sockets):
            self._open[sock] = None
            self._loop.add_reader(sock, self._readable, sock)

    async def _knock(self) -> None:
        """Open our own NAT and nobody else's, and wait for the peer's probes to go out."""
        for number, sock in enumerate(list(self._open)):
            if number % 64 == 63:
                await asyncio.sleep(TICK)
            if sock in self._open:
                usual = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, OWN_NAT)
                self._send(sock)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, usual)
        await asyncio.sleep(self._limits.probes / self._limits.probe_rate + TICK)

    async def _speak(self) -> None:
        """One packet from each socket, as fast as the budget allows: the peer named that address."""
        silent = list(self._open)
        while silent and self._budget.room(self._remote[0], self._loop.time()):
            for _ in range(self._budget.take(self._remote[0], len(silent), self._loop.time())):
                sock = silent.pop()
                if sock in self._open:
                    self._send(sock)
            await asyncio.sleep(TICK)

    def _send(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a full buffer, no route: a lost packet
            sock.sendto(probe(), self._remote)

    def _readable(self, sock: socket.socket) -> None:
        try:
            _, sender = sock.recvfrom(1, socket.MSG_PEEK)
            if sender[0] != self._remote[0]:
                sock.recv(1)  # somebody else's: gone
                return
        except OSError:
            return
        self._loop.remove_reader(sock)
        del self._open[sock]
        self._sockets.gave(sock)
        self._on_hit(sock, sender)

    def _close_all(self) -> None:
        for sock in self._open:
            self._loop.remove_reader(sock)
            self._sockets.close(sock)
        self._open.clear()
