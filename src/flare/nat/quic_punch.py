"""One QUIC hole punch (DCUtR.md, "The Protocol", step 5).

The client dials, from the port that it listens on; the server sends datagrams of noise from its own, which
open its NAT for the client's handshake, and takes the connection that comes, known by its peer and not by its
address. Others let the server dial as well (rust-libp2p does): whoever is the client keeps the connection
that is up first and closes the others, those that come a moment later too, and the server takes what the
client left open.

A NAT may show a side under a port that nobody could tell. So noise that comes to the client from another port
of one of the server's IPs is a place to dial too. Where it is known that the one side has such a NAT, and the
other has not, a `Search` begins a little later in the same punch (flare.nat.birthday): the socket that it
finds serves the connection for as long as that lives.

Some NATs take a packet that comes before they have sent there for their own, and give our own packets
another port then (`-acc`, docs/lab.md). So both sides knock before either can begin: what they send dies on
the way, past their own NAT and before the other's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from flare.config import PunchConfig, Timeouts
from flare.errors import FlareError, PunchFailed
from flare.nat.birthday import OWN_NAT, Opener, ProbeBudget, Search, Sockets, send_probes
from flare.nat.prediction import Part, random_ports
from flare.nat.simultaneous import SETTLE
from flare.protocols.dcutr import CLIENT
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.quic_engine import Address
    from flare.transport.sockets import IpAddress
    from flare.transport.udp import UdpSocket

NOISE: Final = 64  # bytes of a datagram, as go-libp2p's
FIRST_PAUSE: Final = 0.01  # seconds between two datagrams to one address, at first,
LAST_PAUSE: Final = 0.2  # ... and at most; what lies between is left to chance
LINGER: Final = 3.0  # seconds for a server's own dial to come up too: QUIC repeats a lost packet after 1 s
REFLEXIVE: Final = 4  # places that noise told of, dialled or answered in one punch
SEARCH_AFTER: Final = 0.2  # seconds and a round trip: what was told may be right


class PunchQuic(Protocol):
    """What a punch asks of the QUIC transport."""

    def socket_for(self, ip: IpAddress) -> UdpSocket:
        """Where packets to `ip` leave from."""

    def expect_peer(
        self, peer: PeerId, callback: Callable[[Connection], object]
    ) -> AbstractContextManager[None]:
        """Within the block, inbound connections of `peer` go to `callback`."""

    async def dial(
        self, addr: Multiaddr, *, expected_peer: PeerId, via: UdpSocket | None = None
    ) -> Connection:
        """A connection to `addr`, from the socket that was adopted or from `socket_for` its IP."""

    def adopt(self, sock: socket.socket) -> UdpSocket:
        """Dial from `sock` and accept what comes there."""

    def let_go(self, socket: UdpSocket) -> None:
        """An adopted socket is there for its connections only."""


class QuicPunch:
    """Punches over `quic`. `left_over` is as for PunchRace."""

    def __init__(
        self,
        quic: PunchQuic,
        *,
        timeouts: Timeouts | None = None,
        limits: PunchConfig | None = None,
        left_over: Callable[[Connection], None] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        chance: random.Random | None = None,
    ) -> None:
        self.quic = quic
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or PunchConfig()
        self.left_over = left_over
        self.budget = ProbeBudget(self.limits)
        self.sockets = Sockets(self.limits.max_sockets)
        self.clock_ns = clock_ns
        self.chance = chance or random.Random()

    async def __call__(
        self,
        peer: PeerId,
        addrs: Sequence[Multiaddr],
        deadline_ns: int,
        *,
        role: str,
        rtt_ns: int,
        search: Search | None = None,
    ) -> Connection:
        """Connect at `deadline_ns` of the monotonic clock; PunchFailed says what was seen."""
        race = _Race(self, peer, client=role == CLIENT, rtt=rtt_ns / 1e9)
        try:
            kept = await race.run(addrs, deadline_ns, search)
            if role == CLIENT:
                self._turn_away(peer, kept)
            return kept
        finally:
            await race.stop()

    def knock(self, addrs: Sequence[Multiaddr]) -> None:
        """Open our NAT towards the peer's `addrs`, with packets that do not get there."""
        for addr in addrs:
            if addr.ip is None or addr.port is None:
                continue
            with suppress(OSError):
                self.quic.socket_for(addr.ip).send_near((str(addr.ip), addr.port), _noise(), OWN_NAT)

    def _turn_away(self, peer: PeerId, kept: Connection) -> None:
        """Close what else comes from the peer for LINGER, as long as the connection that is kept is open."""
        with ExitStack() as stack:
            stack.enter_context(self.quic.expect_peer(peer, _surplus))
            lingering = stack.pop_all()
        timer = asyncio.get_running_loop().call_later(LINGER, lingering.close)
        lingering.callback(timer.cancel)
        kept.add_close_callback(lambda _: lingering.close())


def _noise() -> bytes:
    noise = bytearray(os.urandom(NOISE))
    noise[0] &= 0x3F  # no QUIC packet begins so (RFC 9000, 17)
    return bytes(noise)


def _surplus(connection: Connection) -> None:
    connection.abort("another connection of the same hole punch was kept")


class _Race:
    """What one punch started, and what came of it."""

    def __init__(self, punch: QuicPunch, peer: PeerId, *, client: bool, rtt: float) -> None:
        self._punch = punch
        self._peer = peer
        self._client = client
        self._rtt = rtt
        self._settle = max(SETTLE, 2 * rtt)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._known: set[Address] = set()  # dialled, or answered
        self._reflexive = 0
        self._found: list[UdpSocket] = []  # by a search
        self._up: list[Connection] = []
        self._kept: Connection | None = None
        self._errors: list[str] = []
        self._changed = asyncio.Event()

    async def run(
        self, addrs: Sequence[Multiaddr], deadline_ns: int, search: Search | None = None
    ) -> Connection:
        loop = asyncio.get_running_loop()
        ahead = max(0, deadline_ns - self._punch.clock_ns()) / 1e9
        end = loop.time() + ahead + self._punch.timeouts.punch
        with ExitStack() as stack:
            stack.enter_context(self._punch.quic.expect_peer(self._peer, self._came))
            if ahead:
                self._punch.knock(addrs)
                await asyncio.sleep(ahead)
            for addr in addrs:
                self._try(addr, stack)
            if search is not None:
                self._start(self._search(search), f"search for a port of {search.remote[0]}")
            choose_at = 0.0
            while True:
                self._changed.clear()
                still_open = [connection for connection in self._up if not connection.closed]
                if still_open:
                    choose_at = choose_at or loop.time() + self._settle
                    if self._client or loop.time() >= choose_at:
                        self._kept = still_open[0]
                        return self._kept
                elif loop.time() >= end or (self._client and not self._tasks):
                    raise PunchFailed(self._reason(len(addrs)))
                try:
                    async with asyncio.timeout_at(choose_at if still_open else end):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def stop(self) -> None:
        """Leave nothing behind but the connection that is kept; a server leaves the choice to its client."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for surplus in self._up:
            if surplus is self._kept or surplus.closed:
                continue
            if self._client or (self._punch.left_over is None and self._kept is None):
                surplus.abort("another connection of the same hole punch was kept, or none")
            elif self._punch.left_over is not None:
                self._punch.left_over(surplus)
        for found in self._found:
            self._punch.quic.let_go(found)

    def _try(self, addr: Multiaddr, stack: ExitStack) -> None:
        """Dial one of the peer's addresses, or open our NAT for it."""
        if addr.ip is None or addr.port is None:
            return
        host = str(addr.ip)
        try:
            socket = self._punch.quic.socket_for(addr.ip)
        except OSError as error:
            self._errors.append(str(error))
            return
        if self._client:
            stack.enter_context(socket.expect(host, self._heard))
            self._dial((host, addr.port))
        else:
            self._start(self._noise(socket, (host, addr.port)), f"open the NAT for {addr}")

    def _start(self, work: Any, name: str) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _noise(self, socket: UdpSocket, remote: Address) -> None:
        pause = FIRST_PAUSE
        while not socket.closed:
            socket.send_raw(remote, _noise())
            await asyncio.sleep(self._punch.chance.uniform(FIRST_PAUSE, pause))
            pause = min(2 * pause, LAST_PAUSE)

    def _heard(self, data: bytes, remote: Address) -> None:
        """Noise: its sender's NAT is open for us there, whatever we were told."""
        remote = remote[:2]  # without our own address
        if remote not in self._known and self._reflexive < REFLEXIVE:
            self._reflexive += 1
            if self._client:
                self._dial(remote)
            else:
                self._known.add(remote)
                socket = self._punch.quic.socket_for(ipaddress.ip_address(remote[0]))
                self._start(self._noise(socket, remote), f"answer {remote}")

    async def _search(self, search: Search) -> None:
        """Our part in the search for a port, until the punch is over."""
        punch, ip = self._punch, search.remote[0]
        await asyncio.sleep(SEARCH_AFTER + self._rtt)
        limits, sequence = punch.limits, search.sequence
        if search.part is Part.OPENS:
            if sequence:
                sockets = min(limits.sockets, len(sequence))
                limits = replace(limits, sockets=sockets, probes=len(sequence))
            opener = Opener(
                search.remote,
                self._hit,
                budget=punch.budget,
                sockets=punch.sockets,
                limits=limits,
                fresh=not sequence,
            )
            await opener.run(rtt=self._rtt)
            return
        try:
            socket = punch.quic.socket_for(ipaddress.ip_address(ip))
        except OSError as error:
            self._errors.append(str(error))
            return
        with socket.expect(ip, self._heard):
            ports = sequence or random_ports(limits.probes, punch.chance)
            await send_probes(socket, ip, ports, punch.budget)
            await asyncio.sleep(punch.timeouts.punch)

    def _hit(self, sock: socket.socket, remote: Address) -> None:
        """Something of the peer's came to one of the sockets that we opened."""
        if len(self._found) >= REFLEXIVE:
            sock.close()
            return
        found = self._punch.quic.adopt(sock)
        self._found.append(found)
        if self._client:
            addr = Multiaddr.from_socket(remote, "quic-v1")
            self._start(self._connect(addr, found), f"punch {addr}")
        else:
            self._start(self._noise(found, remote), f"answer {remote}")

    def _dial(self, remote: Address) -> None:
        if remote in self._known:
            return
        self._known.add(remote)
        addr = Multiaddr.from_socket(remote, "quic-v1")
        self._start(self._connect(addr), f"punch {addr}")

    async def _connect(self, addr: Multiaddr, via: UdpSocket | None = None) -> None:
        try:
            connection = await self._punch.quic.dial(addr, expected_peer=self._peer, via=via)
        except (FlareError, OSError) as error:
            self._errors.append(f"{addr}: {error}")
        else:
            self._up.append(connection)

    def _came(self, connection: Connection) -> None:
        self._up.append(connection)
        self._changed.set()

    def _reason(self, targets: int) -> str:
        waited = f"within {self._punch.timeouts.punch:g} s over QUIC"
        if self._errors:
            return "; ".join(dict.fromkeys(self._errors))
        who = "the peer's address" if targets == 1 else f"none of the peer's {targets} addresses"
        verb = "did not answer" if targets == 1 else "answered"
        return f"{who} {verb} {waited}" if self._client else f"the peer did not connect {waited}"
