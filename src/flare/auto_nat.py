"""AutoNat: a host that knows where it can be reached, and dials others back so that they know too."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .errors import FlareError, UsageError
from .events import AddressReachability, ConnectionLost, Event, PeerIdentified, ReachabilityChanged
from .nat.behaviour import Behaviour, Filtering, Mapping
from .nat.observed import group as network_of
from .nat.reachability import AddressVerdict, Reachability, Reachable, Weighing, Word
from .nat.tcp_probe import TcpProbe, Vantage
from .protocols.autonat import DIAL_BACK_PROTOCOL, DIAL_PROTOCOL, V1_PROTOCOL
from .protocols.autonat.limiter import DialBackLimiter, DialBackLimits
from .protocols.autonat.v1_server import V1Server
from .protocols.autonat.v2_client import DialBackClient, Verdict
from .protocols.autonat.v2_server import DialBackServer
from .transport.connection import Connection, StreamHandlers
from .transport.sockets import interface_addresses
from .transport.tasks import Tasks
from .transport.tcp import TcpTransport
from .wire.keys import Identity
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

if TYPE_CHECKING:
    from .host import Host

logger = logging.getLogger("flare.auto_nat")

PATIENCE: Final = 0.2  # seconds after news before it is acted on: connections come in groups
CONTACT_MEMORY: Final = 300.0  # seconds a NAT may remember whom a port has spoken to after the connection
MAX_CONTACTS: Final = 4096
AT_ONCE: Final = 4  # servers asked at the same time


class AutoNat:
    """Reachability for a host: `async with AutoNat(host) as nat`, then `nat.reachability`, `nat.behaviour`.

    `serve` also dials others back, within `limits`; `look` False does only that. Servers are the connected
    peers that speak AutoNAT v2; those of the host's own configuration are believed at once
    (flare.nat.reachability).
    """

    def __init__(
        self,
        host: Host,
        *,
        serve: bool = True,
        look: bool = True,
        limits: DialBackLimits | None = None,
        weighing: Weighing | None = None,
        is_public: Callable[[Multiaddr], bool] | None = None,
    ) -> None:
        self.host = host
        self.reachability = Reachability(weighing=weighing, on_change=self._changed)
        self.behaviour = Behaviour()
        self._serve = serve
        self._looks = look
        self._limits = limits or DialBackLimits()
        self._is_public = is_public or host.is_public
        self._client = DialBackClient(timeouts=host.config.timeouts)
        self._contacts: dict[tuple[str, int], float] = {}  # whom which of our ports has spoken to, and when
        self._asked: dict[PeerId, float] = {}
        self._news = asyncio.Event()
        self._probed: frozenset[str] = frozenset()
        self._probing = False
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._unsubscribe: Callable[[], None] | None = None
        self._dialler: TcpTransport | None = None

    async def __aenter__(self) -> Self:
        if self._task is not None or self._dialler is not None:
            raise UsageError("this AutoNat is running already")
        if self._serve:
            self._start_server()
        if self._looks:
            self.host.handle(DIAL_BACK_PROTOCOL, self._client.serve)
            self._unsubscribe = self.host.on_event(self._hear)
            self._task = asyncio.get_running_loop().create_task(self._run(), name="autonat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._tasks.cancel()
        if self._looks:
            self.host.unhandle(DIAL_BACK_PROTOCOL)
        if self._dialler is not None:
            self.host.unhandle(DIAL_PROTOCOL)
            self.host.unhandle(V1_PROTOCOL)
            await self._dialler.close()
            self._dialler = None

    @property
    def verdicts(self) -> tuple[AddressVerdict, ...]:
        """Each address in question, with its state and the evidence."""
        return self.reachability.verdicts

    # -- the server

    def _start_server(self) -> None:
        # with an identity of its own: the client must not take the dial-back for a connection to this host
        self._dialler = dialler = TcpTransport(
            self.host.engine, Identity.generate(), self.host.config, on_connection=lambda connection: None
        )
        nothing = StreamHandlers()

        async def dial(addr: Multiaddr, peer: PeerId) -> Connection:
            connection = await dialler.dial(addr, expected_peer=peer, reuse=False)
            connection.serve(nothing)
            return connection

        limiter = DialBackLimiter(self._limits)
        timeouts = self.host.config.timeouts
        v2 = DialBackServer(
            dial=dial, limiter=limiter, can_dial=_can_dial, is_public=self._is_public, timeouts=timeouts
        )
        v1 = V1Server(
            dial=dial, limiter=limiter, can_dial=_can_dial, is_public=self._is_public, timeouts=timeouts
        )
        self.host.handle(DIAL_PROTOCOL, v2.serve)
        self.host.handle(V1_PROTOCOL, v1.serve)

    # -- the client

    def _hear(self, event: Event) -> None:
        if isinstance(event, PeerIdentified | ConnectionLost):
            self._news.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except (FlareError, OSError) as error:
                logger.info("looking for our reachability: %s", error)
            due = self.reachability.next_due()
            wait = None if due is None else max(due - time.monotonic(), PATIENCE)
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
                await asyncio.sleep(PATIENCE)
            except TimeoutError:
                pass
            self._news.clear()

    async def _round(self) -> None:
        """Look at the NAT if there is somebody new to look from, then ask about what is due."""
        self._note_contacts()
        servers = self._servers()
        self._look(servers)
        self.reachability.candidates(self._candidates(), hopeless=self.behaviour.mapping.depends)
        self.reachability.expire()
        self._judge_by_filtering()
        if self._probing:
            return  # servers take few requests of one client at once
        for addr in self.reachability.due():
            asked = [server for server in servers if self._may_judge(server, addr)][:AT_ONCE]
            if not asked:
                continue
            self.reachability.asked(addr)
            for server in asked:
                self._tasks.start(self._ask(server, addr), f"dial-back by {server.remote_peer}")

    def _candidates(self) -> list[Multiaddr]:
        """Where we may be reachable: what was announced, what others see, and our own public addresses."""
        if self.behaviour.mapping.depends:
            found = list(self.host.announced)  # nobody else is shown what one is shown
        else:
            found = [*self.host.announced, *self.host.observed_addrs]
        found += [addr for addr in self.host.addrs if not addr.is_circuit]
        return [addr for addr in dict.fromkeys(found) if addr.transport == "tcp" and self._is_public(addr)]

    def _servers(self) -> list[Connection]:
        """Direct connections to peers that dial back, those asked longest ago first, a network's in turn."""
        found = [
            connections[0]
            for peer in {connection.remote_peer for connection in self.host.connections}
            if DIAL_PROTOCOL in self.host.peers.get(peer).protocols
            and (connections := [c for c in self.host.connections_to(peer) if not c.is_relayed])
        ]
        random.shuffle(found)
        found.sort(key=lambda c: (not self.host.trusts(c.remote_peer), self._asked.get(c.remote_peer, 0.0)))
        seen: dict[str, int] = {}
        turns = []
        for connection in found:
            network = network_of(str(connection.remote_addr.ip))
            turns.append((seen.get(network, 0), connection))
            seen[network] = seen.get(network, 0) + 1
        return [connection for _, connection in sorted(turns, key=lambda turn: turn[0])]

    def _may_judge(self, server: Connection, addr: Multiaddr) -> bool:
        """Whether the server's network is not our own: what comes from there says nothing about others."""
        return server.remote_addr.ip != addr.ip

    async def _ask(self, server: Connection, addr: Multiaddr) -> None:
        peer = server.remote_peer
        self._asked[peer] = time.monotonic()
        try:
            verdict = await self._client.check(server, addr)
        except (FlareError, OSError) as error:
            logger.info("a dial-back by %s to %s: %s", peer, addr, error)
            return
        logger.debug("%s on %s: %s", peer, addr, verdict)
        if verdict.reachable is None or (verdict.reachable and not self._proves(verdict)):
            return
        word = Word(
            peer,
            network_of(str(server.remote_addr.ip)),
            verdict.reachable,
            time.monotonic(),
            self.host.trusts(peer),
            verdict.reason,
        )
        self.reachability.record(addr, word)

    def _judge_by_filtering(self) -> None:
        """What the NAT does to a port that nobody knows, it does to ours."""
        if self.behaviour.filtering not in (
            Filtering.ADDRESS_DEPENDENT,
            Filtering.ADDRESS_AND_PORT_DEPENDENT,
        ):
            return
        own = _own_ips()
        reason = f"our NAT lets in only whom we have sent to ({self.behaviour.filtering.value} filtering)"
        word = Word(self.host.peer_id, "our own probe", False, time.monotonic(), True, reason)
        for verdict in self.reachability.verdicts:
            behind = str(verdict.addr.ip) == self.behaviour.external and str(verdict.addr.ip) not in own
            # unless somebody came in all the same: the router forwards our port
            if behind and not any(word.reachable for word in verdict.words):
                self.reachability.record(verdict.addr, word)

    def _proves(self, verdict: Verdict) -> bool:
        """Whether a dial-back that came shows that anybody's would.

        A NAT with address-dependent filtering lets in whom the port has spoken to, from any port.
        """
        if (
            self.behaviour.says_public
            or self.behaviour.filtering is Filtering.ADDRESS_AND_PORT_DEPENDENT  # then our port is forwarded
            or str(verdict.addr.ip) in _own_ips()
        ):
            return True
        source = verdict.source.ip if verdict.source is not None else None
        return source is not None and (str(source), self._local_port(verdict.addr)) not in self._contacts

    def _local_port(self, addr: Multiaddr) -> int:
        """The port that we listen on behind `addr`."""
        return next(
            (a.port for a in self.host.listen_addrs if a.port is not None and a.transport == addr.transport),
            0,
        )

    def _note_contacts(self) -> None:
        now = time.monotonic()
        for connection in self.host.connections:
            if not connection.is_relayed and connection.local_addr is not None:
                self._contacts[(str(connection.remote_addr.ip), connection.local_addr.port or 0)] = now
        old = now - CONTACT_MEMORY
        self._contacts = {who: at for who, at in self._contacts.items() if at > old}
        while len(self._contacts) > MAX_CONTACTS:
            del self._contacts[next(iter(self._contacts))]

    # -- the NAT

    def _look(self, servers: Sequence[Connection]) -> None:
        """Probe the NAT when the set of vantage points has grown."""
        vantages = [
            Vantage(server.remote_peer, addrs, server)
            for server in servers
            if (addrs := self._tcp_addrs(server))
        ]
        known = frozenset(vantage.ip for vantage in vantages)
        if self._probing or not known - self._probed or self.behaviour.mapping is Mapping.NONE:
            return
        self._probed = known
        self._probing = True
        self._tasks.start(self._probe(vantages[:AT_ONCE]), "looking at the NAT")

    async def _probe(self, vantages: Sequence[Vantage]) -> None:
        host = self.host
        probe = TcpProbe(host.engine, host.identity, host.config, self._client, own_ips=_own_ips())
        try:
            async for behaviour in probe.run(vantages):
                if behaviour != self.behaviour:
                    self.behaviour = behaviour
                    self.reachability.hurry()
                    self._news.set()
        finally:
            self._probing = False
            self._news.set()

    def _tcp_addrs(self, server: Connection) -> tuple[Multiaddr, ...]:
        """Where the server listens: the address of the connection first if we dialled it, one more port."""
        ip = server.remote_addr.ip
        told = [
            addr.without_peer()
            for addr in self.host.peers.get(server.remote_peer).addrs
            if not addr.is_circuit
            and addr.ip == ip
            and [part.name for part in addr.without_peer()][1:] == ["tcp"]
        ]
        dialled = [server.remote_addr.without_peer()] if server.initiator else []
        addrs = [addr for addr in dict.fromkeys([*dialled, *told]) if addr.transport == "tcp"]
        return tuple(addrs[:2])

    def _changed(self, addr: Multiaddr | None, state: Reachable) -> None:
        if addr is None:
            self.host.emit(ReachabilityChanged(state.value))
        else:
            self.host.emit(AddressReachability(addr, state.value))


def _own_ips() -> tuple[str, ...]:
    return tuple(str(ip) for version in (4, 6) for ip in interface_addresses(version))


def _can_dial(addr: Multiaddr) -> bool:
    """Plain TCP to an IP for which this machine has a route."""
    if [part.name for part in addr.without_peer()][1:] != ["tcp"] or addr.ip is None:
        return False
    ip = ipaddress.ip_address(addr.ip)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect((str(ip), addr.port or 9))
    except OSError:
        return False
    return True
