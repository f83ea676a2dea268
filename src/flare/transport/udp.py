"""One UDP socket for all that QUIC does at an address: listening, dialling, and punching with raw datagrams.

The loop has one reader for it. Each wake-up drains the socket in batches, hands every datagram to whoever it
belongs to, and then flushes once: what all of them have to send goes out together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, cast

from flare._core import udp
from flare._core.udp import CID as CID
from flare._core.udp import address as address
from flare.transport.quic_engine import Address
from flare.transport.sockets import IpAddress, endpoint

if TYPE_CHECKING:
    from flare.transport.quic_session import QuicSession

log = logging.getLogger("flare.transport.udp")

BATCHES_A_TURN: Final = 16  # received before the loop runs something else
BUFFER: Final = 4 * 1024 * 1024  # bytes in the kernel, each way: bursts wait there while Python is busy
MAX_PENDING: Final = 4096  # datagrams that wait for room in the socket; more are lost, as on any full link
RECEIVE_PAUSE: Final = 0.1  # seconds without receiving after an error
_SNDBUFFORCE: Final = 32  # Linux's, which Python does not name
_RCVBUFFORCE: Final = 33
_MTU_DISCOVER: Final = {  # never fragment, and leave path MTUs to us
    socket.AF_INET: (socket.IPPROTO_IP, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23),
}
_PMTUDISC_PROBE: Final = 3
_HOPS: Final = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
_SHORTEST_LINGER: Final = 0.3
_LONGEST_LINGER: Final = 3.0

Unsolicited = Callable[["UdpSocket", bytes, Address], object]
Raw = Callable[[bytes, Address], object]


def _ignore(*_: object) -> None: ...


class Lingering:
    """A connection that is closed: it repeats its last words to who has not heard them (RFC 9000, 10.2)."""

    __slots__ = ("_heard", "_socket", "_words")

    def __init__(self, socket: UdpSocket, words: list[bytes]) -> None:
        self._socket = socket
        self._words = words
        self._heard = 0

    def receive(self, datagrams: Sequence[bytes], remote: Address, now: float) -> None:
        """Answer the first, second, fourth, eighth ... datagram."""
        for _ in datagrams:
            self._heard += 1
            if self._words and self._heard & (self._heard - 1) == 0:
                self._socket.send([(self._words[-1], remote)])


class UdpSocket:
    """A bound UDP socket, its demultiplexer and its sessions. `on_initial`, `on_version`, `on_stray` get the
    rest, `on_idle` is told when the last session is over.
    """

    def __init__(self, sock: socket.socket) -> None:
        _widen(sock)
        self.sock = sock
        self.ip, self.port = endpoint(sock.getsockname())
        self.closed = False
        self.on_initial: Unsolicited = _ignore
        self.on_version: Unsolicited = _ignore
        self.on_stray: Unsolicited = _ignore
        self.on_idle: Callable[[UdpSocket], object] = _ignore
        self.datagrams = udp.Datagrams(sock.fileno())
        self.routes = self.datagrams.routes
        self.tokens = self.datagrams.tokens
        self.sessions: set[QuicSession] = set()
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[QuicSession, None] = {}
        self._pending: list[tuple[bytes, Address]] = []  # what the socket had no room for
        self._flushing: asyncio.Handle | None = None
        self._draining = False
        self._pause: asyncio.TimerHandle | None = None
        self._expected: dict[str, list[Raw]] = {}
        self._loop.add_reader(sock, self._readable)

    # In

    def _readable(self) -> None:
        self._draining = True
        try:
            for _ in range(BATCHES_A_TURN):
                batch = self.datagrams.receive()
                if batch is None:
                    break
                if batch:
                    self._distribute(batch)
        except OSError as error:
            log.warning("receiving on %s port %d pauses: %s", self.ip, self.port, error)
            self._loop.remove_reader(self.sock)
            self._pause = self._loop.call_later(RECEIVE_PAUSE, self._receive_again)
        finally:
            self._draining = False
        if self._dirty:
            self._flush()

    def _receive_again(self) -> None:
        self._pause = None
        self._loop.add_reader(self.sock, self._readable)

    def _distribute(self, batch: list[udp.Datagram]) -> None:
        now = time.monotonic()
        run: list[bytes] = []  # what came for one owner from one place, one behind the other
        whose: object = None
        place: Address | None = None
        for kind, owner, data, remote in batch:
            if kind == udp.ROUTED and owner is whose and remote is place:
                run.append(data)
                continue
            if run:
                self._hand_over(whose, run, cast(Address, place), now)
                run = []
            whose = place = None
            if kind == udp.ROUTED:
                run, whose, place = [data], owner, remote
            elif kind == udp.INITIAL:
                self.on_initial(self, data, remote)
            elif kind == udp.RAW:
                for callback in list(owner):  # type: ignore[call-overload]
                    callback(data, remote)
            elif kind == udp.RESET:
                owner.was_forgotten()  # type: ignore[attr-defined]
            elif kind == udp.VERSION:
                self.on_version(self, data, remote)
            else:
                self.on_stray(self, data, remote)
        if run:
            self._hand_over(whose, run, cast(Address, place), now)

    def _hand_over(self, owner: object, run: list[bytes], remote: Address, now: float) -> None:
        owner.receive(run, remote, now)  # type: ignore[attr-defined]
        if owner.__class__ is not Lingering:
            self._dirty[owner] = None  # type: ignore[index]

    @contextlib.contextmanager
    def expect(self, host: str, callback: Raw) -> Iterator[None]:
        """Within the block, what comes from `host` and is no QUIC of ours goes to `callback`: punches."""
        waiting = self._expected.setdefault(host, [])
        waiting.append(callback)
        self.datagrams.expected[host] = waiting
        try:
            yield
        finally:
            waiting.remove(callback)
            if not waiting:
                self._expected.pop(host, None)
                self.datagrams.expected.pop(host, None)

    # Out

    def flush_soon(self, session: QuicSession) -> None:
        """`session` has something to send, or a new deadline."""
        self._dirty[session] = None
        if self._flushing is None and not self._draining and not self._pending:
            self._flushing = self._loop.call_soon(self._flush)

    def flush_now(self, session: QuicSession) -> None:
        """Send what `session` has, without waiting for the others."""
        self._dirty.pop(session, None)
        self.send(session.collect(time.monotonic()))

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._pending:
            return  # once there is room
        now = time.monotonic()
        dirty, self._dirty = self._dirty, {}
        out: list[tuple[bytes, Address]] = []
        for session in dirty:
            out += session.collect(now)
        if out:
            self.send(out)

    def send(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Send now, or once the socket has room. What is too much for that is lost."""
        if self.closed or not datagrams:
            return
        if self._pending:
            self._pending += datagrams[: max(0, MAX_PENDING - len(self._pending))]
            return
        done = self.datagrams.send(datagrams)
        if done < len(datagrams):
            self._pending = datagrams[done : done + MAX_PENDING]
            self._loop.add_writer(self.sock, self._writable)

    def _writable(self) -> None:
        done = self.datagrams.send(self._pending)
        del self._pending[:done]
        if not self._pending:
            self._loop.remove_writer(self.sock)
            self._flush()

    def send_raw(self, remote: Address, data: bytes) -> None:
        """Send a datagram as it is: a punch. UsageError when `remote` is no IP address and port."""
        self.send([(data, remote)])

    def send_near(self, remote: Address, data: bytes, hops: int) -> None:
        """Send a datagram that lives for `hops` hops; one that cannot be sent is lost."""
        level, option = _HOPS[self.ip.version]
        with contextlib.suppress(OSError):
            usual = self.sock.getsockopt(level, option)
            self.sock.setsockopt(level, option, hops)
            try:
                self.sock.sendto(data, remote[:2])
            finally:
                self.sock.setsockopt(level, option, usual)

    # Sessions

    def forget(self, session: QuicSession) -> None:
        """It is over."""
        self.sessions.discard(session)
        self._dirty.pop(session, None)
        if not self.sessions:
            self.on_idle(self)

    def linger(self, cids: Iterable[bytes], words: list[bytes], seconds: float) -> None:
        """Repeat the last `words` of a connection that was closed, for a while."""
        if self.closed:
            return
        ghost = Lingering(self, words)
        mine = list(cids)
        for cid in mine:
            self.routes[cid] = ghost

        def gone() -> None:
            for cid in mine:
                if self.routes.get(cid) is ghost:
                    del self.routes[cid]

        self._loop.call_later(min(max(seconds, _SHORTEST_LINGER), _LONGEST_LINGER), gone)

    def abandon(self) -> socket.socket:
        """Say and hear nothing more, and hand the bound socket over, which is the caller's: what still comes
        can be watched there, while sessions are gone without a word."""
        bound = self.sock.dup()
        self.close()
        return bound

    def close(self) -> None:
        """Close the socket; sessions that are left are gone without a word."""
        if self.closed:
            return
        self.closed = True
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self.sock)
        if self._pending:
            self._loop.remove_writer(self.sock)
        if self._flushing is not None:
            self._flushing.cancel()
        self.routes.clear()
        self.tokens.clear()
        self.sock.close()


def _widen(sock: socket.socket) -> None:
    """BUFFER bytes in the kernel where we may have them, else what it allows."""
    for option, forced in ((socket.SO_RCVBUF, _RCVBUFFORCE), (socket.SO_SNDBUF, _SNDBUFFORCE)):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        if sys.platform == "linux":
            with contextlib.suppress(PermissionError):  # needs CAP_NET_ADMIN
                sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)


def udp_socket(ip: IpAddress, port: int) -> socket.socket:
    """A non-blocking UDP socket bound to `ip` and `port` (0: any free one). OSError.

    It fragments nothing: what is larger than the path carries is lost (RFC 9000, 14).
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform == "linux":
            sock.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_PROBE)
        sock.bind((str(ip), port))
    except OSError:
        sock.close()
        raise
    return sock


def local_ip(remote: Address) -> str:
    """The address of ours that the kernel sends to `remote` from; "" when there is no way there."""
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(remote[:2])  # sends nothing
        return str(probe.getsockname()[0])
    return ""
