"""AutoNat: a host that knows where it can be reached, and dials others back so that they know too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .errors import FlareError, UsageError
from .events import (
    ConnectionLost,
    ConnectionOpened,
    Event,
    NatBehaviourChanged,
    PeerIdentified,
    PortMapped,
    PortMappingLost,
)
from .nat.behaviour import Behaviour, transport_of
from .nat.behaviour import Mapping as NatMapping
from .nat.dial_back import BackDialler, can_dial
from .nat.lifetime import LifetimeProbe
from .nat.look import Looking
from .nat.observed import group as network_of
from .nat.probe import OpenTransport
from .nat.reachability import AddressVerdict, Reachability, Weighing, Word
from .nat.servers import Servers
from .nat.vantage import Vantage, endpoint, vantages
from .protocols.autonat import DIAL_BACK_PROTOCOL, DIAL_PROTOCOL, V1_PROTOCOL
from .protocols.autonat.dialling import DialBacks
from .protocols.autonat.limiter import DialBackLimiter, DialBackLimits
from .protocols.autonat.v1_server import V1Server
from .protocols.autonat.v2_client import DialBackClient, Verdict
from .protocols.autonat.v2_server import DialBackServer
from .transport.connection import Connection
from .transport.quic import QuicTransport
from .transport.sockets import interface_addresses
from .transport.tasks import Tasks
from .transport.tcp import TcpTransport
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

if TYPE_CHECKING:
    from .host import Host

logger = logging.getLogger("flare.auto_nat")

PATIENCE: Final = 0.2  # seconds after news before it is acted on: connections come in groups
CONTACT_MEMORY: Final = 300.0  # seconds a NAT may remember whom a port has spoken to after the connection
MAX_CONTACTS: Final = 4096
AT_ONCE: Final = 4  # servers asked about one address at the same time
VANTAGES: Final = 6  # servers that the NAT may be looked at from
BATCH: Final = 4  # addresses asked about at once: servers take a dozen requests a minute
BATCH_PAUSE: Final = 20.0  # seconds before the next batch
KEEPALIVE_SHARE: Final = 0.8  # of how long a mapping lives: when QUIC pings
LEAST_KEEPALIVE: Final = 1.0  # seconds
RETRY: Final = 60.0  # seconds before a server is dialled again that was to say where our port is
FEW: Final = 8  # servers: with fewer, those that were too many once are looked for


class AutoNat:
    """Reachability for a host: `async with AutoNat(host) as nat`, then `host.reachability`, `nat.behaviours`.

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
        self._serve = serve
        self._looks = look
        self._limits = limits or DialBackLimits()
        self._is_public = is_public or host.is_public
        self._client = DialBackClient(timeouts=host.config.timeouts)
        self._servers = Servers()
        self._contacts: OrderedDict[str, float] = OrderedDict()  # IPs that we have spoken to, and when last
        self._observed: tuple[Multiaddr, ...] = ()
        self._next_batch = 0.0
        self._be_seen_at: dict[str, float] = {}  # when to try again, by transport
        self._news = asyncio.Event()
        self._looking: Looking | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._unsubscribe: Callable[[], None] | None = None
        self._dialler: BackDialler | None = None
        if weighing is not None:
            self.reachability.weighing = weighing

    async def __aenter__(self) -> Self:
        if self._task is not None or self._dialler is not None:
            raise UsageError("this AutoNat is running already")
        if self._serve:
            self._start_server()
        if self._looks:
            self._start_looking()
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
        if self._looking is not None:
            await self._looking.close()
            self.host.unhandle(DIAL_BACK_PROTOCOL)
            self.reachability.candidates(())  # nobody asks any more: what was known grows old
        if self._dialler is not None:
            self.host.unhandle(DIAL_PROTOCOL)
            self.host.unhandle(V1_PROTOCOL)
            await self._dialler.close()
            self._dialler = None

    @property
    def reachability(self) -> Reachability:
        """The host's own."""
        return self.host.reachability

    @property
    def verdicts(self) -> tuple[AddressVerdict, ...]:
        """Each address in question, with its state and the evidence."""
        return self.reachability.verdicts

    @property
    def behaviours(self) -> Mapping[str, Behaviour]:
        """How the NAT treats "tcp" and "udp", and "tcp6" and "udp6" once they were looked at."""
        found = self._looking.behaviours if self._looking is not None else {}
        return {name: Behaviour(name) for name in ("tcp", "udp")} | found

    @property
    def busy(self) -> bool:
        """Whether something is being found out now: a look at the NAT, or a dial-back."""
        return bool(len(self._tasks)) or (self._looking is not None and self._looking.busy)

    # -- the server

    def _start_server(self) -> None:
        config = self.host.config
        self._dialler = BackDialler(self.host.engine, config)
        dials = DialBacks(
            dial=self._dialler.dial,
            limiter=DialBackLimiter(self._limits),
            can_dial=can_dial,
            is_public=self._is_public,
            timeouts=config.timeouts,
        )
        self.host.handle(DIAL_PROTOCOL, DialBackServer(dials).serve)
        self.host.handle(V1_PROTOCOL, V1Server(dials).serve)

    # -- the client

    def _start_looking(self) -> None:
        host = self.host
        self._looking = Looking(
            make=self._transport,
            asker=self._client,
            own_peer=host.peer_id,
            own_ips=_own_ips,
            timeouts=host.config.timeouts,
            is_public=self._is_public,
            on_news=self._judged,
            on_done=self._news.set,
            lifetime=self._lifetime_probe,
        )
        host.handle(DIAL_BACK_PROTOCOL, self._client.serve)
        self._unsubscribe = host.on_event(self._hear)
        self._survey()
        self._task = asyncio.get_running_loop().create_task(self._run(self._looking), name="autonat")

    def _transport(self, name: str) -> OpenTransport:
        host = self.host
        if name.startswith("tcp"):
            return lambda serve: TcpTransport(host.engine, host.identity, host.config, on_connection=serve)
        return self._quic

    def _quic(self, serve: Callable[[Connection], None]) -> QuicTransport:
        return QuicTransport(self.host.identity, self.host.config, on_connection=serve)

    def _lifetime_probe(self, vantage: Vantage) -> LifetimeProbe:
        return LifetimeProbe(self._quic, self._client, vantage)

    def _survey(self) -> None:
        """Find the servers among all connections: once, and when those that we knew have gone."""
        self._servers.overflowed = False
        for connection in self.host.connections:
            if not connection.is_relayed:
                self._contacted(connection.remote_addr)
                self._is_server(connection.remote_peer, self.host.peers.get(connection.remote_peer).protocols)

    def _hear(self, event: Event) -> None:
        """Each costs the same however many connections there are."""
        if isinstance(event, PeerIdentified):
            observed = self.host.observed_addrs
            if self._identified(event) or observed != self._observed:
                self._news.set()
        elif isinstance(event, ConnectionOpened | ConnectionLost):
            if not event.addr.is_circuit:
                self._contacted(event.addr)
            if (
                isinstance(event, ConnectionLost)
                and event.peer in self._servers
                and self._direct(event.peer) is None
            ):
                self._servers.discard(event.peer)
                self._news.set()
        elif isinstance(event, PortMapped | PortMappingLost):
            lost = isinstance(event, PortMappingLost)
            if lost or event.external not in self.host.mapped_addrs:  # and not only renewed
                self.reachability.anew(event.external)
                self._news.set()

    def _identified(self, event: PeerIdentified) -> bool:
        """Whether that is news. rust-libp2p takes requests on connections that we dialled alone, and tells of
        them there: what it tells when it has dialled us back is not what it does."""
        if not event.dialled and event.peer in self._servers:
            asked = self._direct(event.peer)
            if asked is not None and asked.initiator:
                return False
        return self._is_server(event.peer, event.protocols)

    def _is_server(self, peer: PeerId, protocols: Iterable[str]) -> bool:
        """Whether that is news."""
        if DIAL_PROTOCOL in protocols and (connection := self._direct(peer)) is not None:
            network = network_of(str(connection.remote_addr.ip))
            return self._servers.add(peer, network, trusted=self.host.trusts(peer))
        return bool(protocols) and self._servers.discard(peer)

    def _direct(self, peer: PeerId) -> Connection | None:
        """The connection to ask on: one that we dialled, if there is one."""
        direct = [c for c in self.host.connections_to(peer) if not c.is_relayed]
        return next((c for c in direct if c.initiator), direct[0] if direct else None)

    def _contacted(self, addr: Multiaddr) -> None:
        self._contacts[str(addr.ip)] = time.monotonic()
        self._contacts.move_to_end(str(addr.ip))
        if len(self._contacts) > MAX_CONTACTS:
            self._contacts.popitem(last=False)

    async def _run(self, looking: Looking) -> None:
        while True:
            try:
                self._round(looking)
            except (FlareError, OSError) as error:
                logger.info("looking for our reachability: %s", error)
            wait = self._wait(looking)
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
                await asyncio.sleep(PATIENCE)
            except TimeoutError:
                pass
            self._news.clear()

    def _wait(self, looking: Looking) -> float | None:
        """Seconds until something is due of itself."""
        asking = self.reachability.next_due()
        if asking is not None:
            asking = max(asking, self._next_batch)
        due = [at for at in (asking, looking.next_due()) if at is not None]
        return max(min(due) - time.monotonic(), PATIENCE) if due else None

    def _round(self, looking: Looking) -> None:
        """Look at the NAT if there is reason to, then ask about what is due."""
        if self._servers.overflowed and len(self._servers) < FEW:
            self._survey()
        self._observed = self.host.observed_addrs
        listening = self._listening()
        self._look(looking, listening)
        self.reachability.candidates(
            self._candidates(looking.behaviours), hopeless=self._hopeless(looking, listening)
        )
        self.reachability.expire()
        self._infer(looking)
        self._ask_about_what_is_due(looking)

    def _listening(self) -> set[str]:
        """The transports whose NAT matters: IPv6 only where we have a public address of it."""
        return {
            name
            for addr in self.host.listen_addrs
            if (name := transport_of(addr)) is not None and (name[-1] != "6" or self._is_public(addr))
        }

    def _look(self, looking: Looking, listening: set[str]) -> None:
        host = self.host
        servers = [
            (connection, host.peers.get(connection.remote_peer).addrs, host.trusts(connection.remote_peer))
            for connection in islice(self._connected(), VANTAGES)
        ]
        for name in sorted(listening):
            seen_at = {str(addr.ip) for addr in self._observed if transport_of(addr) == name}
            there = vantages(servers, name, self._is_public)
            looking.consider(name, there, seen_at)
            if not seen_at:
                self._be_seen(looking.behaviours.get(name, Behaviour(name)), there)

    def _be_seen(self, behaviour: Behaviour, there: Sequence[Vantage]) -> None:
        """Where the NAT would let strangers in, have a server of ours tell where our own port is: we may be
        connected to all of them over another transport."""
        now, trusted = time.monotonic(), [one for one in there if one.trusted]
        if (
            behaviour.says_public
            and behaviour.mapping is not NatMapping.NONE
            and trusted
            and now >= self._be_seen_at.get(behaviour.transport, 0.0)
        ):
            self._be_seen_at[behaviour.transport] = now + RETRY
            addr = trusted[0].addrs[0].with_peer(trusted[0].peer)
            self._tasks.start(self._dial(addr), f"being seen at {addr}")

    async def _dial(self, addr: Multiaddr) -> None:
        try:
            await self.host.dial(addr)
        except (FlareError, OSError) as error:
            logger.info("%s does not tell where we are: %s", addr, error)

    def _connected(self) -> Iterator[Connection]:
        """Direct connections to servers, in the order in which to ask."""
        return (c for peer in self._servers.in_turn() if (c := self._direct(peer)) is not None)

    def _candidates(self, behaviours: Mapping[str, Behaviour]) -> list[Multiaddr]:
        """Where we may be reachable: what was announced, what others see, and our own public addresses."""
        found = [*self.host.announced, *self.host.mapped_addrs]
        for addr in self._observed:
            behaviour = behaviours.get(transport_of(addr) or "")
            if behaviour is None or not (behaviour.mapping.depends and behaviour.sure):
                found.append(addr)  # else nobody else is shown what one is shown
        found += [addr for addr in self.host.addrs if not addr.is_circuit]
        return [addr for addr in dict.fromkeys(found) if transport_of(addr) and self._is_public(addr)]

    def _hopeless(self, looking: Looking, listening: set[str]) -> bool:
        """Whether no address can be reachable, over whatever transport there are servers for."""
        known = looking.behaviours
        if any(looking.running(name) and name not in known for name in listening):
            return False
        found = [known[name] for name in listening if name in known]
        return bool(found) and all(b.blocked or (b.mapping.depends and b.sure) for b in found)

    def _infer(self, looking: Looking) -> None:
        """What the NAT does to a port that nobody knows, it does to ours."""
        own = _own_ips()
        for verdict in self.verdicts:
            name = transport_of(verdict.addr) or ""
            ip = str(verdict.addr.ip)
            behaviour = looking.behaviours.get(name)
            # unless the port is said to be forwarded, or somebody came in all the same
            if (
                behaviour is None
                or ip != behaviour.external
                or ip in own
                or verdict.addr in (*self.host.announced, *self.host.mapped_addrs)
                or any(word.reachable for word in verdict.words)
            ):
                self.reachability.infer(verdict.addr, ())
            else:
                self.reachability.infer(verdict.addr, looking.words(name))

    def _ask_about_what_is_due(self, looking: Looking) -> None:
        now = time.monotonic()
        due = [addr for addr in self.reachability.due() if not looking.running(transport_of(addr) or "")]
        if not due or now < self._next_batch:
            return
        if len(due) > BATCH:
            self._next_batch = now + BATCH_PAUSE
        for addr in due[:BATCH]:
            asked = list(islice((c for c in self._connected() if self._may_judge(c, addr)), AT_ONCE))
            if not asked:
                continue
            self.reachability.asked(addr)
            for server in asked:
                self._servers.asked(server.remote_peer)
                self._tasks.start(self._ask(looking, server, addr), f"dial-back by {server.remote_peer}")

    def _may_judge(self, server: Connection, addr: Multiaddr) -> bool:
        """Whether the server is on the internet, and not in our own network: else its word says nothing."""
        return server.remote_addr.ip != addr.ip and self._is_public(server.remote_addr)

    async def _ask(self, looking: Looking, server: Connection, addr: Multiaddr) -> None:
        peer = server.remote_peer
        asked = time.monotonic()
        try:
            verdict = await self._client.check(server, addr)
        except (FlareError, OSError) as error:
            logger.info("a dial-back by %s to %s: %s", peer, addr, error)
            self.reachability.unanswered(addr, peer)
            return
        logger.debug("%s on %s: %s", peer, addr, verdict)
        if verdict.reachable is None or (verdict.reachable and not self._proves(looking, server, verdict)):
            self.reachability.unanswered(addr, peer)
            return
        word = Word(
            peer,
            network_of(str(server.remote_addr.ip)),
            verdict.reachable,
            time.monotonic(),
            self.host.trusts(peer),
            verdict.reason,
        )
        self.reachability.record(addr, word, asked=asked)

    def _proves(self, looking: Looking, server: Connection, verdict: Verdict) -> bool:
        """Whether a dial-back that came shows that anybody's would.

        A NAT with address-dependent filtering lets in whom the port has spoken to, from any port; one with
        address-and-port-dependent filtering only from the port that was spoken to.
        """
        name = transport_of(verdict.addr) or ""
        behaviour = looking.behaviours.get(name, Behaviour(name))
        source = endpoint(verdict.source)
        if behaviour.says_public or verdict.addr in self.host.mapped_addrs:  # which the router says, too
            return True
        if source is None:
            return False
        peer = server.remote_peer
        spoken = {endpoint(connection.remote_addr) for connection in self.host.connections_to(peer)}
        spoken |= {endpoint(addr) for addr in self.host.peers.get(peer).addrs}
        if looking.filters_ports(name):
            return source not in spoken  # then our port is forwarded
        recently = time.monotonic() - CONTACT_MEMORY
        return (
            source[0] not in {known[0] for known in spoken if known is not None}
            and self._contacts.get(source[0], float("-inf")) < recently
        )

    # -- the NAT

    def _judged(self, behaviour: Behaviour, before: Behaviour) -> None:
        if (behaviour.mapping, behaviour.filtering, behaviour.external) != (
            before.mapping,
            before.filtering,
            before.external,
        ):
            self.reachability.hurry(lambda addr: transport_of(addr) == behaviour.transport)
        self._keep_alive(behaviour)
        self._news.set()
        self.host.emit(
            NatBehaviourChanged(
                behaviour.transport,
                behaviour.mapping.value,
                behaviour.filtering.value,
                behaviour.allocation.value,
                behaviour.hairpin,
                behaviour.sentence,
            )
        )

    def _keep_alive(self, behaviour: Behaviour) -> None:
        """Have QUIC ping before our NAT forgets."""
        life, usual = behaviour.lifetime, self.host.config.quic.keepalive
        if life is not None and life.at_most is not None and life.at_least < usual:
            self.host.keep_quic_alive(max(LEAST_KEEPALIVE, KEEPALIVE_SHARE * life.at_least))


def _own_ips() -> tuple[str, ...]:
    return tuple(str(ip) for version in (4, 6) for ip in interface_addresses(version))
