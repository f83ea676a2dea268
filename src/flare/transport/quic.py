"""QUIC: listening, accepting and dialling on shared UDP sockets (specs: quic/README.md, tls/tls.md)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.config import Config
from flare.errors import (
    ConnectionClosed,
    FlareError,
    InvalidMultiaddr,
    NetworkError,
    PeerMismatch,
    TimedOut,
    UsageError,
)
from flare.transport import certificate
from flare.transport.admission import Admission
from flare.transport.connection import Connection
from flare.transport.deadline import within
from flare.transport.quic_aioquic import AioquicEngine
from flare.transport.quic_engine import Address, Engine, Initial
from flare.transport.quic_session import QuicSession
from flare.transport.sockets import IpAddress, interface_addresses
from flare.transport.tasks import Tasks
from flare.transport.udp import UdpSocket, address, local_ip, udp_socket
from flare.wire.keys import Identity, PublicKey
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from socket import socket as PlainSocket

log = logging.getLogger("flare.transport.quic")

SECURITY: Final = "tls"  # QUIC's own TLS 1.3
MUXER: Final = "quic-v1"
LAST_WORDS: Final = 3.0  # seconds that a socket of a punch outlives its connections, to repeat what they said
_FORMS: Final = (
    ["ip4", "udp", "quic-v1"],
    ["ip6", "udp", "quic-v1"],
    ["ip6zone", "ip6", "udp", "quic-v1"],
)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Who a QUIC handshake found."""

    remote_peer: PeerId
    remote_key: PublicKey
    security: str = SECURITY
    muxer: str = MUXER


class _Verifier:
    """Judges the peer's certificate within the handshake, and remembers whose it was."""

    def __init__(self, expected: PeerId | None) -> None:
        self._expected = expected
        self.found: Authenticated | None = None

    def __call__(self, chain: Sequence[bytes]) -> None:
        peer, key = certificate.verify(chain, time.time())
        if self._expected is not None and peer != self._expected:
            raise PeerMismatch(self._expected, peer)
        self.found = Authenticated(peer, key)


class QuicListener:
    """A UDP socket that listens. `addr` is where, `addrs` are the addresses that it stands for."""

    def __init__(self, transport: QuicTransport, socket: UdpSocket) -> None:
        self._transport = transport
        self.socket = socket
        self.ip, self.port = socket.ip, socket.port
        self.closed = False

    @property
    def addr(self) -> Multiaddr:
        """The address it was bound to."""
        return _multiaddr(self.ip, self.port)

    @property
    def addrs(self) -> list[Multiaddr]:
        """The addresses it can be dialled at: a wildcard is each interface's address now."""
        if not self.ip.is_unspecified:
            return [self.addr]
        return [_multiaddr(ip, self.port) for ip in interface_addresses(self.ip.version)]

    def close(self) -> None:
        """Accept no more. The socket closes with the last of its connections."""
        if not self.closed:
            self.closed = True
            self._transport.stopped(self)


class QuicTransport:
    """All QUIC of one host. `on_connection` is given each inbound connection when it is up."""

    def __init__(
        self,
        identity: Identity,
        config: Config,
        *,
        on_connection: Callable[[Connection], None],
        tasks: Tasks | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._identity = identity
        self._config = config
        self._on_connection = on_connection
        self._tasks = tasks if tasks is not None else Tasks()
        self._own_tasks = tasks is None
        self._loop = asyncio.get_running_loop()
        self.engine: Engine = engine or AioquicEngine(identity, config.quic)
        self.admission = Admission(config.host)
        self.listeners: list[QuicListener] = []
        self.connections: set[Connection] = set()
        self._sockets: list[UdpSocket] = []
        self._diallers: dict[int, UdpSocket] = {}  # by IP version, where nothing listens
        self._half_open: dict[tuple[Address, bytes], QuicSession] = {}
        self._unproved: set[QuicSession] = set()
        self._awaited: dict[PeerId, list[Callable[[Connection], object]]] = {}
        self._answers = float(config.quic.resets_per_second)
        self._answered_at = time.monotonic()
        self._keepalive = config.quic.keepalive
        self._closed = False

    @property
    def keepalive(self) -> float:
        """Seconds without a packet before a ping: QuicLimits.keepalive, unless a NAT forgets sooner."""
        return self._keepalive

    @keepalive.setter
    def keepalive(self, seconds: float) -> None:
        self._keepalive = seconds
        for socket in self._sockets:
            for session in socket.sessions:
                session.keepalive = seconds
                session.flush_soon()  # which sets its timer anew

    @property
    def half_open(self) -> int:
        """Inbound handshakes that run."""
        return len(self._half_open)

    # Listening

    async def listen(self, addr: Multiaddr) -> QuicListener:
        """Listen on /ip4|ip6/.../udp/PORT/quic-v1; 0 is any free port. NetworkError, InvalidMultiaddr."""
        ip, port = _endpoint(addr)
        listener = QuicListener(self, self._open(ip, port, f"listening on {addr}"))
        socket = listener.socket
        socket.on_initial = self._initial
        socket.on_version = self._version
        self.listeners.append(listener)
        return listener

    def _open(self, ip: IpAddress, port: int, what: str) -> UdpSocket:
        try:
            socket = UdpSocket(udp_socket(ip, port))
        except OSError as error:
            raise _network_error(what, error) from error
        socket.on_stray = self._stray
        self._sockets.append(socket)
        return socket

    @property
    def listen_addrs(self) -> tuple[Multiaddr, ...]:
        """Where we can be dialled, without the peer at the end; a wildcard is each interface's address."""
        return tuple(addr for listener in self.listeners for addr in listener.addrs)

    def stopped(self, listener: QuicListener) -> None:
        """A listener was closed."""
        self.listeners.remove(listener)
        socket = listener.socket
        socket.on_initial = socket.on_version = _refuse
        if not socket.sessions:
            self._drop(socket)

    def _drop(self, socket: UdpSocket) -> None:
        self._sockets.remove(socket)
        socket.close()

    # Strangers

    def _initial(self, socket: UdpSocket, data: bytes, remote: Address) -> None:
        """A datagram that may start a connection: past some half-open ones, only from a proved address."""
        initial = self.engine.initial(data)
        if initial is None:
            return
        now = time.monotonic()
        known = self._half_open.get((remote, initial.destination))
        if known is not None:
            known.receive((data,), remote, now)
            known.flush_soon()
            return
        original: bytes | None = None
        if initial.token:
            original = self.engine.proved(initial, remote, now)
        if original is None and len(self._unproved) >= self._config.quic.max_unproved:
            # another Retry would be ignored (RFC 9000, 17.2.5.2)
            answer = (
                self.engine.invalid_token(initial)
                if initial.token
                else self.engine.retry(initial, remote, now)
            )
            socket.send([(answer, remote)])
            return
        ip = ipaddress.ip_address(remote[0])
        proved = original is not None
        source = self.admission.source(ip) if proved else None  # whose address it is, nobody knows yet
        if why := self.admission.refuses(source, len(self.connections)):
            log.debug("refused %s port %d: %s", *remote[:2], why)
            return
        self._accept(socket, initial, original, data, remote, now, source)

    def _accept(
        self,
        socket: UdpSocket,
        initial: Initial,
        original: bytes | None,
        data: bytes,
        remote: Address,
        now: float,
        source: Hashable | None,
    ) -> None:
        session = QuicSession(socket, self._config.quic, initiator=False, loop=self._loop)
        session.keepalive = self._keepalive
        verifier = _Verifier(None)
        key = (remote, initial.destination)
        proved = original is not None
        deadline = self._loop.call_later(
            self._config.timeouts.handshake,
            session.abort,
            TimedOut("the handshake", self._config.timeouts.handshake),
        )

        def over() -> None:
            deadline.cancel()
            self._half_open.pop(key, None)
            self._unproved.discard(session)
            self.admission.end(session)

        def closed(reason: BaseException | None) -> None:
            over()
            log.debug("handshake with %s port %d: %s", *remote[:2], reason)

        def established() -> None:
            over()
            self._welcome(session, verifier, source, proved)

        session.on_established = established
        session.on_close = closed
        self._half_open[key] = session
        if not proved:
            self._unproved.add(session)
        self.admission.begin(session, source, session.abort, len(self.connections))
        socket.sessions.add(session)
        session.start(self.engine.accept(initial, original, verifier, session))
        session.receive((data,), remote, now)

    def _welcome(
        self, session: QuicSession, verifier: _Verifier, source: Hashable | None, proved: bool
    ) -> None:
        if not proved:
            source = self.admission.source(ipaddress.ip_address(session.remote[0]))
            if why := self.admission.refuses(source, len(self.connections)):
                session.abort(f"refused: {why}")
                return
        self.admission.opened(source)
        connection = self._connection(session, verifier, initiator=False)
        connection.add_close_callback(lambda _: self.admission.closed(source))
        if awaited := self._awaited.get(connection.remote_peer):
            awaited[0](connection)
        else:
            self._on_connection(connection)

    def _version(self, socket: UdpSocket, data: bytes, remote: Address) -> None:
        if self._may_answer() and (answer := self.engine.negotiate_version(data)):
            socket.send([(answer, remote)])

    def _stray(self, socket: UdpSocket, data: bytes, remote: Address) -> None:
        if self._may_answer() and (answer := self.engine.stateless_reset(data)):
            socket.send([(answer, remote)])

    def _may_answer(self) -> bool:
        """Whether to answer somebody we know nothing of: QuicLimits.resets_per_second."""
        most = self._config.quic.resets_per_second
        now = time.monotonic()
        self._answers = min(float(most), self._answers + (now - self._answered_at) * most)
        self._answered_at = now
        if self._answers < 1:
            return False
        self._answers -= 1
        return True

    @contextlib.contextmanager
    def expect_peer(self, peer: PeerId, callback: Callable[[Connection], object]) -> Iterator[None]:
        """Within the block, inbound connections from `peer` go to `callback`, and not to `on_connection`."""
        waiting = self._awaited.setdefault(peer, [])
        waiting.append(callback)
        try:
            yield
        finally:
            waiting.remove(callback)
            if not waiting:
                del self._awaited[peer]

    # Dialling

    def socket_for(self, ip: IpAddress) -> UdpSocket:
        """The socket that dials and punches to `ip` leave from: a listening one, if any. NetworkError."""
        fitting = [
            listener
            for listener in self.listeners
            if listener.ip.version == ip.version
            and (listener.ip.is_unspecified or listener.ip.is_loopback == ip.is_loopback)
        ]
        if fitting:
            return min(fitting, key=lambda listener: not listener.ip.is_unspecified).socket
        socket = self._diallers.get(ip.version)
        if socket is None or socket.closed:
            anywhere = ipaddress.ip_address("0.0.0.0" if ip.version == 4 else "::")
            socket = self._diallers[ip.version] = self._open(anywhere, 0, f"a UDP socket to dial {ip} from")
        return socket

    def adopt(self, sock: PlainSocket) -> UdpSocket:
        """Dial from a bound UDP socket too, and accept what comes there; it is ours until `let_go`.

        A hole punch found that one (flare.nat.birthday); what listens is not asked of it.
        """
        made = UdpSocket(sock)
        made.on_initial, made.on_version, made.on_stray = self._initial, self._version, self._stray
        self._sockets.append(made)
        return made

    def let_go(self, socket: UdpSocket) -> None:
        """Close an adopted socket once its connections are, and what they said last may be repeated."""
        if not socket.sessions:
            self._drop_now(socket)
            return
        socket.on_initial = socket.on_version = _refuse
        socket.on_idle = lambda idle: self._loop.call_later(LAST_WORDS, self._drop_now, idle)

    async def dial(
        self,
        addr: Multiaddr,
        *,
        expected_peer: PeerId | None,
        reuse: bool = True,
        via: UdpSocket | None = None,
    ) -> Connection:
        """A connection to `addr`, within Timeouts.dial; it leaves from the port we listen on.

        `reuse` False: from a socket of its own; `via`: from one that was adopted. Raises NetworkError,
        TimedOut, PeerMismatch, AuthenticationFailed.
        """
        ip, port = _endpoint(addr)
        if self._closed:
            raise UsageError("this transport is closed")
        if via is not None:
            socket, reuse = via, True
        elif reuse:
            socket = self.socket_for(ip)
        else:
            anywhere = ipaddress.ip_address("0.0.0.0" if ip.version == 4 else "::")
            socket = self._open(anywhere, 0, f"dialling {addr}")
        session = QuicSession(socket, self._config.quic, initiator=True, loop=self._loop)
        session.keepalive = self._keepalive
        verifier = _Verifier(expected_peer)
        up: asyncio.Future[None] = self._loop.create_future()

        def closed(reason: BaseException | None) -> None:
            if not up.done():
                up.set_exception(reason or ConnectionClosed("closed"))

        def established() -> None:
            if not up.done():
                up.set_result(None)

        session.on_close = closed
        session.on_established = established
        host = f"{ip}%{addr.value('ip6zone')}" if addr.has("ip6zone") else str(ip)
        remote = address(host, port)
        socket.sessions.add(session)
        try:
            async with within(self._config.timeouts.dial, f"dialling {addr}"):
                session.start(self.engine.connect(remote, verifier, session, time.monotonic()))
                await up
                if session.closed:
                    raise session.why_closed()
        except BaseException as error:
            session.abort("the dial was given up")
            if not reuse:
                self._drop_now(socket)
            if isinstance(error, FlareError) or not isinstance(error, OSError):
                raise
            raise _network_error(str(addr), error) from error
        connection = self._connection(session, verifier, initiator=True, remote_addr=addr.without_peer())
        if not reuse:
            connection.add_close_callback(lambda _: self._drop_soon(socket))
        return connection

    def _drop_soon(self, socket: UdpSocket) -> None:
        """Once the last words are out."""
        self._loop.call_soon(self._drop_now, socket)

    def _drop_now(self, socket: UdpSocket) -> None:
        if not socket.closed:
            self._drop(socket)

    def _connection(
        self,
        session: QuicSession,
        verifier: _Verifier,
        *,
        initiator: bool,
        remote_addr: Multiaddr | None = None,
    ) -> Connection:
        assert verifier.found is not None
        socket = session.socket
        host, port = session.remote[:2]
        came_to = session.remote[2:] or (local_ip(session.remote) if socket.ip.is_unspecified else "",)
        local = came_to[0] or str(socket.ip)
        connection = Connection(
            session,
            verifier.found,
            local_peer=self._identity.peer_id,
            local_addr=_multiaddr(ipaddress.ip_address(local), socket.port),
            remote_addr=remote_addr or _multiaddr(ipaddress.ip_address(host), port),
            initiator=initiator,
            config=self._config,
            tasks=self._tasks,
        )
        self.connections.add(connection)
        connection.add_close_callback(self.connections.discard)
        return connection

    async def close(self) -> None:
        """Stop listening, close every connection, and end our tasks (but not those handed in)."""
        self._closed = True
        for listener in list(self.listeners):
            listener.closed = True
            listener.socket.on_initial = listener.socket.on_version = _refuse
        self.listeners.clear()
        for session in list(self._half_open.values()):
            session.abort("the host closed")
        await asyncio.gather(*(connection.close() for connection in list(self.connections)))
        if self._own_tasks:
            await self._tasks.cancel()
        for connection in list(self.connections):
            connection.abort("the host closed")
        for socket in self._sockets:
            for session in list(socket.sessions):
                session.abort("the host closed")
            socket.close()
        self._sockets.clear()


def _refuse(*_: object) -> None:
    """Nobody listens here any more."""


def _endpoint(addr: Multiaddr) -> tuple[IpAddress, int]:
    """The IP and port of an address that is just QUIC, with or without the peer at its end."""
    bare = addr.without_peer()
    if [part.name for part in bare] not in _FORMS:
        raise InvalidMultiaddr(
            f"{addr} is no QUIC address: expected /ip4/.../udp/.../quic-v1 or /ip6/.../udp/.../quic-v1"
        )
    if bare.ip is None or bare.port is None:
        raise UsageError(f"{addr} has no IP address and port")
    return bare.ip, bare.port


def _multiaddr(ip: IpAddress, port: int) -> Multiaddr:
    zone = ""
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id:
        zone, ip = f"/ip6zone/{ip.scope_id}", ipaddress.IPv6Address(int(ip))
    return Multiaddr(f"{zone}/ip{ip.version}/{ip}/udp/{port}/quic-v1")


def _network_error(what: str, error: OSError) -> NetworkError:
    made = NetworkError(f"{what}: {os.strerror(error.errno) if error.errno else error}")
    made.errno = error.errno
    return made
