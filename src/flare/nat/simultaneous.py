"""One TCP hole punch: connect and be connected to at once, secure what comes of it, and keep one (DCUtR.md,
step 5).

The connects run in threads that hold no GIL (flare._core.punch), one per IP version, from the port that our
listener has; what the listener accepts from the peer meanwhile counts as well, and is secured by the
transport (flare.transport.expected), because it may be somebody else's. Who is client and who server comes
from DCUtR, never from connect and accept.

Both directions can succeed, with two connections. The client keeps the first that is secured and closes the
other; the server, when there was more than one socket, waits a moment and takes one that the client left
open.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flare._core.punch import punch as core_punch
from flare.config import Timeouts
from flare.errors import FlareError, PunchFailed
from flare.protocols.dcutr import CLIENT
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.expected import Expectations

WILDCARD: Final = {4: "0.0.0.0", 6: "::"}
REPORT: Final = 1.0  # seconds after the end for the threads to say what they saw
MAX_ERRORS: Final = 16  # told of one punch
SETTLE: Final = 0.1  # seconds at least that a server waits for its client to choose among several connections


class PunchTransport(Protocol):
    """What a punch asks of the TCP transport."""

    @property
    def listen_addrs(self) -> Sequence[Multiaddr]:
        """Where it listens."""

    @property
    def expected(self) -> Expectations:
        """The claims on what its listeners accept."""

    async def adopt(
        self, sock: socket.socket, *, initiator: bool, expected_peer: PeerId, remote_addr: Multiaddr
    ) -> Connection:
        """Secure a connected socket."""


class TcpPunch:
    """Punches over `tcp`. `core` is flare._core.punch.punch, `left_over` as for PunchRace."""

    def __init__(
        self,
        tcp: PunchTransport,
        *,
        core: Callable[..., Any] | None = None,
        timeouts: Timeouts | None = None,
        max_active: int = 64,
        left_over: Callable[[Connection], None] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.tcp = tcp
        self.core: Callable[..., Any] = core or core_punch
        self.timeouts = timeouts or Timeouts()
        self.left_over = left_over
        self.clock_ns = clock_ns
        self._early: dict[PeerId, _Early] = {}
        self._threads = ThreadPoolExecutor(2 * max_active, thread_name_prefix="flare-punch")

    async def __call__(
        self, peer: PeerId, addrs: Sequence[Multiaddr], deadline_ns: int, *, role: str, rtt_ns: int
    ) -> Connection:
        """Connect to `addrs` at `deadline_ns` of the monotonic clock; PunchFailed says what was seen."""
        race = _Race(self, self._threads, peer, deadline_ns, client=role == CLIENT, rtt_ns=rtt_ns)
        try:
            race.kept = await race.run(addrs, self._early.get(peer))
            return race.kept
        finally:
            await race.stop()

    @contextmanager
    def expect(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> Iterator[None]:
        """Within the block, what `addrs` connect to us with waits for the punch of `peer`.

        The responder begins with it before it answers: on a short path the initiator's SYN comes sooner than
        the responder gets to its own punch, and the listener would take it for an ordinary client.
        """
        early = _Early()
        with self.tcp.expected.expect(peer, addrs, client=True, waiting=early):
            self._early[peer] = early
            try:
                yield
            finally:
                if self._early.get(peer) is early:
                    del self._early[peer]
                early.close()

    def close(self) -> None:
        """No more punches."""
        self._threads.shutdown(wait=False)


class _Early:
    """What came before its punch did, and what comes when that is over."""

    def __init__(self) -> None:
        self._securing: list[asyncio.Task[None]] = []
        self._secured: list[Connection] = []

    def securing(self, task: asyncio.Task[None]) -> None:
        self._securing.append(task)

    def secured(self, connection: Connection) -> bool:
        self._secured.append(connection)
        return True

    def failed(self, remote: Multiaddr, error: Exception) -> None:
        """Without a punch there is nobody to tell."""

    def hand_to(self, race: _Race) -> None:
        """The punch begins: what is here is its."""
        for task in self._securing:
            if not task.done():
                race.securing(task)
        for connection in self._secured:
            race.secured(connection)
        self._securing.clear()
        self._secured.clear()

    def close(self) -> None:
        for connection in self._secured:
            connection.abort("it came for a hole punch that had ended, or never was")


class _Race:
    """The sockets of one punch, from their first packet to the connection that is kept."""

    def __init__(
        self,
        punch: TcpPunch,
        threads: ThreadPoolExecutor,
        peer: PeerId,
        deadline_ns: int,
        *,
        client: bool,
        rtt_ns: int,
    ) -> None:
        self._punch = punch
        self._threads = threads
        self._peer = peer
        self._deadline_ns = deadline_ns
        self._client = client
        self._rtt_ns = rtt_ns
        self._punching: set[asyncio.Future[Any]] = set()
        self._securing: set[asyncio.Task[Any]] = set()  # those of our connects
        self._inbound: set[asyncio.Task[None]] = set()  # the transport's: some may be other peers'
        self._secured: list[Connection] = []
        self.kept: Connection | None = None
        self._sockets = 0
        self._end = 0.0
        self._errors: list[str] = []
        self._changed = asyncio.Event()
        self._cancel_read, self._cancel_write = os.pipe()
        self._stopping = False

    async def run(self, addrs: Sequence[Multiaddr], early: _Early | None) -> Connection:
        loop = asyncio.get_running_loop()
        timeouts = self._punch.timeouts
        ahead = max(0, self._deadline_ns - self._punch.clock_ns()) / 1e9
        end = self._end = loop.time() + ahead + timeouts.punch
        choose_at = 0.0
        with self._punch.tcp.expected.expect(self._peer, addrs, client=self._client, waiting=self):
            if early is not None:
                early.hand_to(self)
            self._connect(addrs)
            while True:
                self._changed.clear()
                still_open = [connection for connection in self._secured if not connection.closed]
                if still_open:
                    choose_at = choose_at or loop.time() + max(SETTLE, 2 * self._rtt_ns / 1e9)
                    if self._client or self._sockets == 1 or loop.time() >= choose_at:
                        return still_open[0]
                    wake_at: float | None = choose_at
                elif self._securing or self._inbound:
                    wake_at = None  # the handshake has a timeout of its own
                elif loop.time() < end:
                    wake_at = end
                elif self._punching and loop.time() < end + REPORT:
                    wake_at = end + REPORT
                else:
                    raise PunchFailed(self._reason(len(addrs)))
                try:
                    async with asyncio.timeout_at(wake_at):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def stop(self) -> None:
        """Leave nothing behind: no thread, no socket, no connection but the one that is kept.

        A server leaves the others to its client, which chooses.
        """
        self._stopping = True
        os.write(self._cancel_write, b"x")
        for task in self._securing:
            task.cancel()
        leaving = {*self._punching, *self._securing}
        try:
            if leaving:
                await asyncio.wait(leaving)
        finally:
            os.close(self._cancel_write)
            os.close(self._cancel_read)
        for surplus in self._secured:
            if surplus is self.kept or surplus.closed:
                continue
            if self._client or (self._punch.left_over is None and self.kept is None):
                surplus.abort("another connection of the same hole punch was kept, or none")
            elif self._punch.left_over is not None:
                self._punch.left_over(surplus)

    def _connect(self, addrs: Sequence[Multiaddr]) -> None:
        """Start the threads, one for each IP version."""
        loop = asyncio.get_running_loop()
        for version, wildcard in WILDCARD.items():
            targets = [
                (str(addr.ip), addr.port)
                for addr in addrs
                if addr.ip is not None and addr.ip.version == version
            ]
            if not targets:
                continue
            work = partial(
                self._punch.core,
                (wildcard, self._local_port(version)),
                targets,
                self._deadline_ns,
                timeout_ns=int(self._punch.timeouts.punch * 1e9),
                rtt_ns=self._rtt_ns,
                listen=False,
                cancel_fd=self._cancel_read,
                speaks_first=self._client,
            )
            future = loop.run_in_executor(self._threads, work)
            self._punching.add(future)
            future.add_done_callback(self._connected)

    def _local_port(self, version: int) -> int:
        """The listener's port. 0, any, without one: then only peers that can be reached anyway are."""
        for addr in self._punch.tcp.listen_addrs:
            if addr.transport == "tcp" and addr.ip is not None and addr.ip.version == version and addr.port:
                return addr.port
        return 0

    def _connected(self, future: asyncio.Future[Any]) -> None:
        self._punching.discard(future)
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._arrived(socket.socket(fileno=future.result().fd))
        elif isinstance(error, FlareError | OSError):
            self._errors.append(str(error))
        else:
            raise error
        self._changed.set()

    # -- what the transport tells of its listeners

    def securing(self, task: asyncio.Task[None]) -> None:
        """A socket came that may be the peer's; what comes after the end prolongs nothing."""
        self._sockets += 1
        if asyncio.get_running_loop().time() < self._end:
            self._inbound.add(task)
            task.add_done_callback(self._inbound_done)

    def _inbound_done(self, task: asyncio.Task[None]) -> None:
        self._inbound.discard(task)
        self._changed.set()

    def secured(self, connection: Connection) -> bool:
        """The peer's connection came to a listener."""
        if self._stopping:
            return False
        self._secured.append(connection)
        self._changed.set()
        return True

    def failed(self, remote: Multiaddr, error: Exception) -> None:
        """Something came from an address of the peer, and nothing of it."""
        if len(self._errors) < MAX_ERRORS:
            self._errors.append(f"connected with {remote}, but then: {error}")

    # -- our connects

    def _arrived(self, sock: socket.socket) -> None:
        """A connect of ours met somebody."""
        if self._stopping:
            sock.close()
            return
        try:
            remote = Multiaddr.from_socket(sock.getpeername())
        except OSError as error:
            self._errors.append(f"connected and lost again: {error.strerror}")
            sock.close()
            return
        self._sockets += 1
        securing = self._punch.tcp.adopt(
            sock, initiator=self._client, expected_peer=self._peer, remote_addr=remote
        )
        task = asyncio.get_running_loop().create_task(securing, name=f"punch {self._peer}")
        self._securing.add(task)
        task.add_done_callback(partial(self._done, remote))

    def _done(self, remote: Multiaddr, task: asyncio.Task[Connection]) -> None:
        self._securing.discard(task)
        self._changed.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._secured.append(task.result())
        elif isinstance(error, FlareError | OSError):
            self.failed(remote, error)
        else:
            raise error

    def _reason(self, targets: int) -> str:
        tried = (
            f"none of the peer's {targets} addresses answered"
            if targets != 1
            else "the peer's address did not answer"
        )
        return "; ".join(dict.fromkeys(self._errors)) or f"{tried} within {self._punch.timeouts.punch:g} s"
