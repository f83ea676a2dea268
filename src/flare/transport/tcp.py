"""TCP: listening, accepting, dialling from the listening port, and taking over sockets that a punch made."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Final

from flare.config import Config
from flare.errors import FlareError, InvalidMultiaddr, NetworkError, PeerMismatch, TimedOut, UsageError
from flare.transport import noise
from flare.transport.admission import Admission
from flare.transport.channel import SocketChannel
from flare.transport.connection import Connection
from flare.transport.deadline import within
from flare.transport.doorstep import Doorstep
from flare.transport.expected import Claim, Expectations, waits_for_us
from flare.transport.inbound import Begun, Responses, available
from flare.transport.loop_engine import LoopEngine
from flare.transport.sockets import (
    IpAddress,
    abort,
    endpoint,
    interface_addresses,
    listening_socket,
    tcp_socket,
)
from flare.transport.tasks import Tasks
from flare.transport.upgrade import Upgraded, agree, upgrade
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

log = logging.getLogger("flare.transport.tcp")

ACCEPTS_A_TURN: Final = 64  # connections accepted before the loop runs something else
MISBEHAVED: Final = 16  # newcomers that an address loses when a peer there was cut off
INTERFACES_FRESH: Final = 1.0  # seconds that the interfaces' addresses are believed to be the same
ACCEPT_PAUSE: Final = 0.1  # seconds without accepting after accept() failed
_PORT_TAKEN: Final = frozenset((errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL))


class Listener:
    """A socket that listens. `addr` is where, `addrs` are the addresses that it stands for."""

    def __init__(self, transport: TcpTransport, sock: socket.socket) -> None:
        self._transport = transport
        self.sock = sock
        self.ip, self.port = endpoint(sock.getsockname())
        self.addr = Multiaddr.from_socket((str(self.ip), self.port))  # that it was bound to
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self.closed = False
        self._loop.add_reader(sock, self._accept)

    @property
    def addrs(self) -> list[Multiaddr]:
        """The addresses it can be dialled at: a wildcard is each interface's address now."""
        if not self.ip.is_unspecified:
            return [self.addr]
        return [
            Multiaddr(f"/ip{ip.version}/{ip}/tcp/{self.port}") for ip in interface_addresses(self.ip.version)
        ]

    def close(self) -> None:
        """Accept no more. Connections stay."""
        if not self.closed:
            self.closed = True
            if self._resume is not None:
                self._resume.cancel()
            else:
                self._loop.remove_reader(self.sock)
            self.sock.close()
            self._transport.forget(self)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # it was gone before we came
            except OSError as error:
                # for want of descriptors or memory, or for a reason unknown: to go on at once would spin
                log.warning("accepting on %s pauses: %s", self.addr, error)
                self._loop.remove_reader(self.sock)
                self._resume = self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
                return
            sock.setblocking(False)
            self._transport.accepted(sock, address)

    def _accept_again(self) -> None:
        self._resume = None
        self._loop.add_reader(self.sock, self._accept)


class TcpTransport:
    """All TCP of one host. `on_connection` is given each inbound connection when it is up."""

    def __init__(
        self,
        engine: LoopEngine,
        identity: Identity,
        config: Config,
        *,
        on_connection: Callable[[Connection], None],
        tasks: Tasks | None = None,
    ) -> None:
        self._identity = identity
        self._engine = engine
        self._config = config
        self._on_connection = on_connection
        self._tasks = tasks if tasks is not None else Tasks()
        self._own_tasks = tasks is None
        self._loop = asyncio.get_running_loop()
        self.expected = Expectations(config.punch.max_ips)
        self.admission = Admission(config.host)
        self._doorstep = Doorstep(config.timeouts.handshake)
        responding = available() and "noise" in config.security
        self._responses = Responses(identity, config.timeouts.handshake) if responding else None
        self._welcoming: dict[socket.socket, asyncio.Task[None]] = {}
        self.listeners: list[Listener] = []
        self.connections: set[Connection] = set()
        self._listened: tuple[float, tuple[Multiaddr, ...]] | None = None  # when they were looked at

    # Listening

    async def listen(self, addr: Multiaddr) -> Listener:
        """Listen on /ip4|ip6/.../tcp/PORT; 0 is any free port. NetworkError, InvalidMultiaddr."""
        ip, port = _tcp_endpoint(addr)
        try:
            listener = Listener(self, listening_socket(ip, port))
        except OSError as error:
            raise _network_error(f"listening on {addr}", error) from error
        self.listeners.append(listener)
        self._listened = None
        return listener

    @property
    def listen_addrs(self) -> tuple[Multiaddr, ...]:
        """Where we can be dialled, without the peer at the end; a wildcard is each interface's address.

        Interfaces are looked at INTERFACES_FRESH seconds apart: this is asked for each connection.
        """
        now = self._loop.time()
        if self._listened is None or now - self._listened[0] > INTERFACES_FRESH:
            self._listened = now, tuple(addr for listener in self.listeners for addr in listener.addrs)
        return self._listened[1]

    def look_again(self) -> None:
        """The interfaces' addresses have changed."""
        self._listened = None

    def forget(self, listener: Listener) -> None:
        """It listens no more."""
        self.listeners.remove(listener)
        self._listened = None

    def accepted(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        """A listener accepted `sock` from `address`: to a handshake, or refused by a limit."""
        ip, port = endpoint(address)
        source = self.admission.source(ip)
        if why := self.admission.refuses(source, len(self.connections)):
            log.debug("refused %s port %d: %s", ip, port, why)
            abort(sock)
            return
        self.admission.begin(sock, source, partial(self._turn_out, sock), len(self.connections))
        claims = self.expected.at(ip, port)
        begin = partial(self._begin, sock, (ip, port), source, claims)
        if claims:
            begin(self._loop.time())  # its other end may wait for us to speak
        else:
            self._doorstep.add(sock, begin, partial(self._late, sock, (ip, port)))

    def _turn_out(self, sock: socket.socket) -> None:
        """Others need the place of a handshake."""
        responding = self._responses is not None and self._responses.drop(sock)
        if not responding and not self._doorstep.drop(sock):
            self._welcoming[sock].cancel()

    def _late(self, sock: socket.socket, at: tuple[IpAddress, int]) -> None:
        self.admission.end(sock)
        remote, seconds = _remote(at), self._config.timeouts.handshake
        log.debug("handshake with %s: %s", remote, TimedOut(f"the handshake with {remote}", seconds))

    def _begin(
        self,
        sock: socket.socket,
        at: tuple[IpAddress, int],
        source: Hashable | None,
        claims: Sequence[Claim],
        arrived: float,
    ) -> None:
        if claims or self._responses is None:
            self._await(sock, at, source, claims, arrived)
        else:
            self._responses.begin(sock, arrived, partial(self._responded, sock, at, source, arrived))

    def _responded(
        self,
        sock: socket.socket,
        at: tuple[IpAddress, int],
        source: Hashable | None,
        arrived: float,
        outcome: Begun | FlareError,
    ) -> None:
        """A handshake that ran without a task is over, or is none for there."""
        if isinstance(outcome, FlareError):
            log.debug("handshake with %s: %s", _remote(at), outcome)
            self.admission.end(sock)
            sock.close()
        elif isinstance(outcome, bytes) or outcome[0].muxer is None:
            self._await(sock, at, source, (), arrived, outcome)
        else:
            session, rest = outcome
            upgraded = Upgraded(
                session.remote_peer,
                session.remote_key,
                session.records,
                rest,
                noise.PROTOCOL,
                outcome[0].muxer,
            )
            try:
                connection = self._connected(sock, upgraded, initiator=False, remote_addr=_remote(at))
            except OSError as error:
                log.debug("handshake with %s: %s", _remote(at), error)
                self.admission.end(sock)
                sock.close()
            else:
                self._welcomed(sock, source, connection)

    def _await(
        self,
        sock: socket.socket,
        at: tuple[IpAddress, int],
        source: Hashable | None,
        claims: Sequence[Claim],
        arrived: float,
        begun: Begun = b"",
    ) -> None:
        """Secure an accepted socket in a task."""
        remote = _remote(at)
        work = self._welcome(sock, remote, source, claims, arrived, begun)
        task = self._welcoming[sock] = self._tasks.start(work, f"handshake with {remote}")

        def ended(task: asyncio.Task[None]) -> None:
            del self._welcoming[sock]
            self.admission.end(sock)
            sock.close()  # it is still ours when the task was cancelled before its first step

        task.add_done_callback(ended)
        for claim in claims:
            claim.waiting.securing(task)

    async def _welcome(
        self,
        sock: socket.socket,
        remote: Multiaddr,
        source: Hashable | None,
        claims: Sequence[Claim],
        arrived: float,
        begun: Begun,
    ) -> None:
        """Secure an accepted socket; who comes of it goes to the punch that waits for that peer, if any."""
        ours = [claim for claim in claims if claim.client]
        if ours and not await waits_for_us(sock):
            ours = []
        for claim in ours:
            claim.ours.add(self._welcoming[sock])  # in no variable: a cancelled task would be in a cycle
        peers = {claim.peer for claim in ours}
        try:
            connection = await self.adopt(
                sock,
                initiator=bool(ours),
                expected_peer=ours[0].peer if len(peers) == 1 else None,
                remote_addr=remote,
                spent=self._loop.time() - arrived,
                begun=begun,
            )
            if ours and connection.remote_peer not in peers:
                connection.abort("a hole punch met somebody else")
                raise PeerMismatch(ours[0].peer, connection.remote_peer)
        except (FlareError, OSError) as error:
            log.debug("handshake with %s: %s", remote, error)
            for claim in claims:
                claim.waiting.failed(remote, error)
            return
        self._welcomed(sock, source, connection)

    def _welcomed(self, sock: socket.socket, source: Hashable | None, connection: Connection) -> None:
        self.admission.end(sock)
        self.admission.opened(source)
        connection.add_close_callback(partial(self._left, source))
        wanted = self.expected.of(connection.remote_peer)
        if wanted is None or not wanted.waiting.secured(connection):
            self._on_connection(connection)

    def _left(self, source: Hashable | None, connection: Connection) -> None:
        self.admission.closed(source)
        if connection.misbehaved:
            self.admission.penalize(source, MISBEHAVED)

    # Dialling

    async def dial(
        self, addr: Multiaddr, *, expected_peer: PeerId | None, reuse: bool = True, initiator: bool = True
    ) -> Connection:
        """A connection to `addr`, within Timeouts.dial. It leaves from the port we listen on, where it can.

        So the NAT on our side maps one endpoint for both, which peers can be told of. `initiator` False: be
        the listener in the handshake. Raises NetworkError, TimedOut, PeerMismatch and what the handshake
        raises.
        """
        ip, port = _tcp_endpoint(addr)
        async with within(self._config.timeouts.dial, f"dialling {addr}"):
            sock = await self._connect(ip, port, reuse)
            return await self.adopt(
                sock, initiator=initiator, expected_peer=expected_peer, remote_addr=addr.without_peer()
            )

    async def _connect(self, ip: IpAddress, port: int, reuse: bool) -> socket.socket:
        source = self._source_port(ip) if reuse else None
        if source is not None:
            sock = tcp_socket(ip, reuse=True)
            try:
                sock.bind(source)
                await self._loop.sock_connect(sock, (str(ip), port))
                if sock.getsockname() != sock.getpeername():
                    return sock
                abort(sock)  # it met itself: simultaneous open with our own listening port
            except OSError as error:
                sock.close()
                if error.errno not in _PORT_TAKEN:
                    raise _failed(ip, port, error) from error
            except BaseException:
                abort(sock)
                raise
        sock = tcp_socket(ip, reuse=False)
        try:
            await self._loop.sock_connect(sock, (str(ip), port))
        except OSError as error:
            sock.close()
            raise _failed(ip, port, error) from error
        except BaseException:
            abort(sock)
            raise
        return sock

    def _source_port(self, ip: IpAddress) -> tuple[str, int] | None:
        """The listening address to dial `ip` from: one of its family, and loopback only for loopback."""
        fitting = [
            listener
            for listener in self.listeners
            if listener.ip.version == ip.version
            and (listener.ip.is_unspecified or listener.ip.is_loopback == ip.is_loopback)
        ]
        if not fitting:
            return None
        best = min(fitting, key=lambda listener: not listener.ip.is_unspecified)
        return str(best.ip), best.port

    async def adopt(
        self,
        sock: socket.socket,
        *,
        initiator: bool,
        expected_peer: PeerId | None,
        remote_addr: Multiaddr,
        spent: float = 0.0,
        begun: Begun = b"",
    ) -> Connection:
        """Secure and multiplex a connected socket, which is ours from now on, whatever happens.

        It may take Timeouts.dial as the initiator, else Timeouts.handshake, of which `spent` is over.
        `begun` is what it said already, or how far the handshake got.
        """
        timeouts = self._config.timeouts
        seconds = timeouts.dial if initiator else timeouts.handshake
        try:
            sock.setblocking(False)
            channel = SocketChannel(self._loop, sock, remote_addr)
            channel.unread(begun if isinstance(begun, bytes) else begun[1])
            async with within(seconds, f"the handshake with {remote_addr}", spent):
                if isinstance(begun, bytes):
                    upgraded = await upgrade(
                        channel,
                        self._identity,
                        initiator=initiator,
                        expected_peer=expected_peer,
                        timeouts=timeouts,
                        security=self._config.security,
                    )
                else:
                    upgraded = await agree(channel, begun[0], timeouts)
            return self._connected(sock, upgraded, initiator=initiator, remote_addr=remote_addr)
        except OSError as error:
            sock.close()
            if isinstance(error, FlareError):
                raise
            raise _network_error(str(remote_addr), error) from error
        except BaseException:
            sock.close()
            raise

    def _connected(
        self, sock: socket.socket, upgraded: Upgraded, *, initiator: bool, remote_addr: Multiaddr
    ) -> Connection:
        """What becomes of a secured socket, which is the engine's from now on. OSError."""
        local_addr = Multiaddr.from_socket(sock.getsockname(), "tcp")
        link = self._engine.attach(
            sock.detach(),
            upgraded.records,
            initiator=initiator,
            leftover=upgraded.leftover,
            limits=self._config.mux,
        )
        connection = Connection(
            link,
            upgraded,
            local_peer=self._identity.peer_id,
            local_addr=local_addr,
            remote_addr=remote_addr,
            initiator=initiator,
            config=self._config,
            tasks=self._tasks,
        )
        self.connections.add(connection)
        connection.add_close_callback(self.connections.discard)
        return connection

    async def close(self) -> None:
        """Stop listening, close every connection, and end our tasks (but not those handed in)."""
        for listener in list(self.listeners):
            listener.close()
        self._doorstep.close()
        if self._responses is not None:
            self._responses.close()
        await asyncio.gather(*(connection.close() for connection in list(self.connections)))
        if self._own_tasks:
            await self._tasks.cancel()
        for connection in list(self.connections):
            connection.abort("the host closed")  # its handshake ended while the others were closed


def _tcp_endpoint(addr: Multiaddr) -> tuple[IpAddress, int]:
    """The IP and port of an address that is just TCP, with or without the peer at its end."""
    bare = addr.without_peer()
    names = [part.name for part in bare]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"], ["ip6zone", "ip6", "tcp"]):
        raise InvalidMultiaddr(f"{addr} is no TCP address: expected /ip4/.../tcp/... or /ip6/.../tcp/...")
    if bare.ip is None or bare.port is None:
        raise UsageError(f"{addr} has no IP address and port")
    return bare.ip, bare.port


def _remote(at: tuple[IpAddress, int]) -> Multiaddr:
    return Multiaddr.from_socket((str(at[0]), at[1]), "tcp")


def _failed(ip: IpAddress, port: int, error: OSError) -> NetworkError:
    return _network_error(f"/ip{ip.version}/{ip}/tcp/{port}", error)


def _network_error(what: str, error: OSError) -> NetworkError:
    made = NetworkError(f"{what}: {_reason(error)}")
    made.errno = error.errno
    return made


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)  # loops put other words into strerror
