"""nat/probe.py on virtual time: NATs of every kind, and servers that lie, fail or stay silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from flare.config import Timeouts
from flare.errors import NetworkError, TimedOut
from flare.nat.behaviour import Allocation, Behaviour, Endpoint, Filtering, Mapping
from flare.nat.probe import LOOK, PATIENCE, STAGGER, NatProbe
from flare.nat.vantage import Vantage
from flare.protocols import identify
from flare.protocols.autonat.v2_client import Verdict
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.messages import Identify
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.linked import ALICE, linked, now, simulated

OUTSIDE = "11.0.0.1"
INSIDE = "192.168.1.2"
LATENCY = 0.05
TIME_OUT = 10.0  # of an honest server's dial


@dataclass
class Server:
    """`conduct`: honest; no: says that nobody could be reached; silent; elsewhere: lies about where we are
    seen; refuses; deaf: cannot be connected to."""

    number: int
    conduct: str = "honest"
    trusted: bool = True
    identity: Identity = field(default_factory=Identity.generate)

    @property
    def ip(self) -> str:
        return f"{21 + self.number}.0.0.1"

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id


class World:
    """A NAT before Alice, and servers outside; `transport` as NatProbe has it."""

    def __init__(
        self,
        mapping: Mapping = Mapping.ENDPOINT_INDEPENDENT,
        filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT,
        *servers: Server,
        transport: str = "udp",
        hairpin: bool = False,
        blocked: bool = False,
    ) -> None:
        self.mapping, self.filtering, self.hairpin, self.blocked = mapping, filtering, hairpin, blocked
        self.servers = list(servers) or [Server(0), Server(1)]
        self.transport = transport
        self.contacts: dict[int, set[str]] = {}
        self.asked: list[tuple[int, Multiaddr]] = []
        self.dialled = 0
        self.closed = 0
        self._next = 5000
        self._given = iter(range(40000, 50000, 3))
        self._maps: dict[Any, int] = {}

    def addr(self, ip: str, port: int) -> Multiaddr:
        return Multiaddr.from_socket((ip, port), "tcp" if self.transport == "tcp" else "quic-v1")

    def vantages(self) -> list[Vantage]:
        found = []
        for server in self.servers:
            connection, _ = linked(ALICE, server.identity)
            connection.local_addr = self.addr(self.own_ip, 4001)
            connection.remote_addr = self.addr(server.ip, 1)
            addrs = (self.addr(server.ip, 1), self.addr(server.ip, 2))
            found.append(Vantage(server.peer, addrs, connection, server.trusted))  # type: ignore[arg-type]
        return found

    @property
    def own_ip(self) -> str:
        return OUTSIDE if self.mapping is Mapping.NONE else INSIDE

    def server(self, peer: PeerId) -> Server:
        return next(server for server in self.servers if server.peer == peer)

    def seen(self, port: int, to: Endpoint) -> Endpoint:
        if self.mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT):
            return OUTSIDE, port
        key = (port, to[0]) if self.mapping is Mapping.ADDRESS_DEPENDENT else (port, to)
        if key not in self._maps:
            self._maps[key] = next(self._given)
        return OUTSIDE, self._maps[key]

    def lets_in(self, port: int, server: Server) -> bool:
        if self.mapping is not Mapping.NONE and port not in self.contacts:
            return False
        if self.filtering is Filtering.ENDPOINT_INDEPENDENT:
            return True
        return self.filtering is Filtering.ADDRESS_DEPENDENT and server.ip in self.contacts.get(port, ())

    # what NatProbe is given

    def make(self, serve: Callable[[Any], None]) -> Any:
        return Transport(self)

    async def serve(self, stream: Stream) -> None:
        raise AssertionError("nobody comes in here: `check` says whether one did")

    async def check(self, connection: Any, addr: Multiaddr) -> Verdict:
        server = self.server(connection.remote_peer)
        self.asked.append((server.number, addr))
        await asyncio.sleep(4 * LATENCY)
        if server.conduct == "silent":
            await asyncio.sleep(30)
            raise TimedOut("a dial-back", 30)
        if server.conduct == "refuses":
            return Verdict(addr, None, "the server is too busy")
        if server.conduct == "no":
            return Verdict(addr, False, "the server could not connect")
        assert addr.port is not None
        if not self.lets_in(addr.port, server):
            await asyncio.sleep(TIME_OUT)
            return Verdict(addr, False, "the server could not connect")
        return Verdict(addr, True, "the server connected", self.addr(server.ip, 60000))

    def probe(self) -> NatProbe:
        return NatProbe(
            self.transport,
            self.make,
            self,  # type: ignore[arg-type]
            own_peer=ALICE.peer_id,
            own_ips=(self.own_ip,),
            timeouts=Timeouts(),
        )

    async def look(self) -> list[tuple[float, Behaviour]]:
        """What the probe says, and when."""
        began = now()
        found = [(now() - began, behaviour) async for behaviour in self.probe().run(self.vantages())]
        assert self.closed == self.dialled, "every port is given back"
        return found


class Transport:
    """One port of Alice's."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.dialled += 1
        world._next += 1
        self.port = world._next

    async def listen(self, addr: Multiaddr) -> Transport:
        assert str(addr.ip) == self.world.own_ip, "where the servers see us already"
        return self

    async def dial(self, addr: Multiaddr, *, expected_peer: PeerId) -> Any:
        world = self.world
        if expected_peer == ALICE.peer_id:
            if not world.hairpin:
                raise NetworkError("refused")
            return None
        server = world.server(expected_peer)
        assert addr.port is not None
        to = (server.ip, addr.port)
        world.contacts.setdefault(self.port, set()).add(server.ip)
        seen = (OUTSIDE, 9) if server.conduct == "elsewhere" else world.seen(self.port, to)
        await asyncio.sleep(2 * LATENCY)
        if world.blocked or server.conduct == "deaf":
            await asyncio.sleep(15)
            raise TimedOut("dialling", 15)
        near, far = linked(ALICE, server.identity, latency=LATENCY)
        near.local_addr = world.addr(world.own_ip, self.port)
        near.serve = lambda handlers: None  # type: ignore[attr-defined]

        async def tell(stream: Stream) -> None:
            await identify.answer(stream, Identify(observed_addr=world.addr(*seen)))

        far.handlers[identify.PROTOCOL] = tell
        return near

    async def close(self) -> None:
        self.world.closed += 1


EI, AD, APD = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("filtering", [EI, AD, APD])
@pytest.mark.parametrize(
    ("mapping", "allocation"),
    [
        (Mapping.ENDPOINT_INDEPENDENT, Allocation.PRESERVING),
        (Mapping.ADDRESS_DEPENDENT, Allocation.SEQUENTIAL),
        (Mapping.ADDRESS_AND_PORT_DEPENDENT, Allocation.SEQUENTIAL),
    ],
)
def test_nats(mapping: Mapping, allocation: Allocation, filtering: Filtering, transport: str) -> None:
    @simulated
    async def run() -> None:
        world = World(mapping, filtering, transport=transport, hairpin=True)
        if mapping.depends:  # its ports are not those that the filter knows
            world.lets_in = lambda port, server: (  # type: ignore[method-assign]
                filtering is EI or (filtering is AD and server.number == 0)
            )
        found = await world.look()
        for _, behaviour in found:
            assert (behaviour.mapping, behaviour.filtering) == (mapping, filtering)
            assert behaviour.allocation is allocation
            assert behaviour.step == (3 if allocation is Allocation.SEQUENTIAL else 0)
            assert behaviour.hairpin is True
            assert behaviour.external == OUTSIDE
            assert behaviour.sure
            assert behaviour.transport == transport
        assert found[0][0] <= 1 + PATIENCE
        assert len(found) == (1 if filtering is EI else 2), "and then the servers have answered"

    run()


@simulated
async def test_without_a_nat_a_port_that_nobody_knows_tells() -> None:
    world = World(Mapping.NONE, EI, Server(0))
    ((seconds, behaviour),) = await world.look()
    assert (behaviour.mapping, behaviour.filtering) == (Mapping.NONE, EI)
    assert behaviour.says_public
    assert seconds < 1
    ((_, asked),) = world.asked
    assert not world.contacts.get(asked.port or 0), "it has sent to nobody"


@pytest.mark.parametrize("filtering", [AD, APD])
def test_a_firewall_is_no_open_door(filtering: Filtering) -> None:
    @simulated
    async def run() -> None:
        found = await World(Mapping.NONE, filtering).look()
        for _, behaviour in found:
            assert (behaviour.mapping, behaviour.filtering) == (Mapping.NONE, filtering)
            assert not behaviour.says_public
            assert "firewall" in behaviour.sentence

    run()


@simulated
async def test_one_server_cannot_tell_full_from_address_restricted() -> None:
    for filtering in (EI, AD):
        found = await World(Mapping.ENDPOINT_INDEPENDENT, filtering, Server(0)).look()
        for _, behaviour in found:
            assert behaviour.filtering is Filtering.UNKNOWN
            assert behaviour.mapping is Mapping.UNKNOWN
            assert not behaviour.says_public


@simulated
async def test_blocked() -> None:
    ((seconds, behaviour),) = await World(blocked=True).look()
    assert behaviour.blocked
    assert seconds < LOOK + 2 * STAGGER
    assert "blocked" in behaviour.sentence


@simulated
async def test_nobody_to_ask() -> None:
    world = World()
    world.servers = []
    assert await world.look() == []


@simulated
async def test_a_server_that_cannot_be_connected_to_does_not_stand_in_the_way() -> None:
    world = World(Mapping.ENDPOINT_INDEPENDENT, AD, Server(0, "deaf"), Server(1), Server(2))
    found = await world.look()
    seconds, behaviour = found[0]
    assert (behaviour.mapping, behaviour.filtering) == (Mapping.ENDPOINT_INDEPENDENT, AD)
    assert seconds < 1 + STAGGER + PATIENCE


@pytest.mark.parametrize("conduct", ["no", "silent", "refuses", "elsewhere", "deaf"])
@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("filtering", [EI, AD, APD])
def test_one_stranger_of_three_does_not_turn_the_mapping_nor_open_the_door(
    filtering: Filtering, liar: int, conduct: str
) -> None:
    """Whatever one does, two others agree on where we are seen, and nobody is let in who is not."""

    @simulated
    async def run() -> None:
        servers = [Server(n, conduct if n == liar else "honest", trusted=False) for n in range(3)]
        world = World(Mapping.ENDPOINT_INDEPENDENT, filtering, *servers)
        found = await world.look()
        assert found
        for _, behaviour in found:
            assert behaviour.mapping is Mapping.ENDPOINT_INDEPENDENT
            if filtering is not EI:
                assert behaviour.filtering is not EI
            elif (liar, conduct) != (0, "elsewhere"):
                assert behaviour.filtering is EI, "one honest stranger gets in, and that is proof"
            else:
                assert set(behaviour.filtered) <= {servers[liar].peer}, "it sent the others astray"

    run()


@pytest.mark.parametrize("liar", [0, 1])
def test_a_stranger_alone_is_not_sure(liar: int) -> None:
    @simulated
    async def run() -> None:
        servers = [Server(n, "elsewhere" if n == liar else "honest", trusted=False) for n in range(2)]
        found = await World(Mapping.ENDPOINT_INDEPENDENT, APD, *servers).look()
        assert all(not behaviour.sure for _, behaviour in found)

    run()


@simulated
async def test_an_open_door_in_the_dark() -> None:
    """A silent server proves nothing, neither at once nor when its time is over."""
    world = World(Mapping.ENDPOINT_INDEPENDENT, EI, Server(0), Server(1, "silent"))
    found = await world.look()
    assert found[-1][1].filtering is Filtering.UNKNOWN


@simulated
async def test_a_dial_back_from_where_the_port_has_sent_to_is_no_proof() -> None:
    """A server may dial from the very port that we dialled: every NAT lets that in."""
    world = World(Mapping.ENDPOINT_INDEPENDENT, APD, Server(0))

    async def check(connection: Any, addr: Multiaddr) -> Verdict:
        return Verdict(addr, True, "it connected", world.addr(world.servers[0].ip, 1))

    world.check = check  # type: ignore[method-assign]
    found = await world.look()
    assert found[-1][1].filtering is Filtering.UNKNOWN


@simulated
async def test_another_server_that_comes_from_the_first_one_s_address_is_no_other_address() -> None:
    world = World(Mapping.ENDPOINT_INDEPENDENT, AD)

    async def check(connection: Any, addr: Multiaddr) -> Verdict:
        return Verdict(addr, True, "it connected", world.addr(world.servers[0].ip, 60000))

    world.check = check  # type: ignore[method-assign]
    found = await world.look()
    assert found[-1][1].filtering is Filtering.UNKNOWN
    assert not found[-1][1].says_public


@simulated
async def test_private_addresses_are_not_asked_about() -> None:
    """Behind a carrier's NAT a server of the carrier sees us at an address that is nobody else's."""
    world = World()
    world.seen = lambda port, to: ("100.64.0.9", port)  # type: ignore[method-assign]
    found = await world.look()
    assert world.asked == []
    assert found[-1][1].filtering is Filtering.UNKNOWN
    assert found[-1][1].external == "100.64.0.9"


@simulated
async def test_it_can_be_given_up() -> None:
    world = World()
    looking = world.probe().run(world.vantages())
    task = asyncio.ensure_future(anext(looking))  # type: ignore[arg-type]
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await looking.aclose()  # type: ignore[attr-defined]
    assert world.closed == world.dialled


@pytest.mark.parametrize("filtering", [EI, AD, APD])
@pytest.mark.parametrize("liar", [None, 0, 1])
def test_that_ports_count_takes_two_strangers(liar: int | None, filtering: Filtering) -> None:
    """One that says no to everybody makes an address-restricted NAT look port-restricted, and is alone."""

    @simulated
    async def run() -> None:
        servers = [Server(n, "no" if n == liar else "honest", trusted=False) for n in range(3)]
        world = World(Mapping.ENDPOINT_INDEPENDENT, filtering, *servers)
        kept_out = (await world.look())[-1][1].kept_out
        if filtering is APD:
            assert set(kept_out) == {servers[0].peer, servers[1].peer}
        else:
            assert set(kept_out) <= {servers[n].peer for n in (0, 1) if n == liar}

    run()
