"""One TCP hole punch: who connects, what is secured, what is kept (DCUtR.md, step 5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flare.config import Timeouts
from flare.errors import FlareError, PeerMismatch, PunchFailed
from flare.nat import simultaneous
from flare.nat.simultaneous import TcpPunch
from flare.protocols.dcutr import CLIENT, SERVER
from flare.transport.expected import Expectations
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.aio import aio, eventually
from tests.support.linked import ALICE, BOB

TARGET = Multiaddr("/ip4/127.0.0.1/tcp/4001")
TARGET6 = Multiaddr("/ip6/::1/tcp/4001")


@dataclass
class Punched:
    fd: int
    how: str = "connect"


class Secured:
    """A connection that `adopt` made of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False

    def abort(self, reason: object = None) -> None:
        self.closed = True
        self.sock.close()


class FakeTcp:
    """The transport: keeps the claims, and secures sockets as the test says."""

    def __init__(self) -> None:
        self.listen_addrs = [Multiaddr("/ip4/127.0.0.1/tcp/7001"), Multiaddr("/ip6/::1/tcp/7006")]
        self.expected = Expectations()
        self.adopted: list[dict[str, Any]] = []
        self.connections: list[Secured] = []
        self.secure: list[float | Exception] = []  # seconds that each takes, or what it raises
        self.inbound: list[socket.socket] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.strangers: list[Any] = []

    def accept(self, sock: socket.socket, *, peer: PeerId = ALICE.peer_id) -> None:
        """The listener accepted this from the peer's address, and `peer` is who it is."""
        assert TARGET.ip is not None
        assert TARGET.port is not None
        claims = self.expected.at(TARGET.ip, TARGET.port)
        self.inbound.append(sock)
        task = asyncio.get_running_loop().create_task(self._welcome(sock, claims, peer))
        self.tasks.append(task)
        for claim in claims:
            claim.waiting.securing(task)

    async def _welcome(self, sock: socket.socket, claims: list[Any], peer: PeerId) -> None:
        for claim in claims:
            if claim.client:
                claim.ours.add(asyncio.current_task())
        try:
            connection = await self.adopt(sock, initiator=claims[0].client)
        except FlareError as error:
            for claim in claims:
                claim.waiting.failed(TARGET, error)
            return
        wanted = self.expected.of(peer)
        if wanted is None or not wanted.waiting.secured(connection):
            self.strangers.append(connection)

    async def adopt(self, sock: socket.socket, **told: Any) -> Any:
        self.adopted.append(told)
        how = self.secure.pop(0) if self.secure else 0.0
        try:
            if isinstance(how, Exception):
                raise how
            await asyncio.sleep(how)
        except BaseException:
            sock.close()
            raise
        connection = Secured(sock)
        self.connections.append(connection)
        return connection

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for sock in (*self.inbound, *(connection.sock for connection in self.connections)):
            sock.close()


class FakeCore:
    """flare._core.punch.punch: returns a socket, raises, or waits to be cancelled."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[dict[str, Any]] = []
        self.cancelled = 0
        self.lock = threading.Lock()

    def __call__(self, local: Any, targets: Any, deadline_ns: int, **told: Any) -> Punched:
        with self.lock:
            self.calls.append({"local": local, "targets": targets, "deadline_ns": deadline_ns, **told})
            outcome = self.outcomes.pop(0) if self.outcomes else "wait"
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "wait":
            ready, _, _ = select.select([told["cancel_fd"]], [], [], told["timeout_ns"] / 1e9)
            if ready:
                self.cancelled += 1
                raise PunchFailed("cancelled")
            raise PunchFailed("127.0.0.1:4001 did not answer")
        return Punched(tcp_end().detach())


def tcp_end() -> socket.socket:
    """One end of a TCP connection on loopback, whose other end is closed at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        server.accept()[0].close()
    return near


@contextlib.contextmanager
def punching(*outcomes: Any, timeout: float = 0.3) -> Iterator[tuple[TcpPunch, FakeTcp, FakeCore]]:
    """A TcpPunch that must give back every descriptor it took."""
    before = len(os.listdir("/proc/self/fd"))
    tcp, core = FakeTcp(), FakeCore(*outcomes)
    punch = TcpPunch(tcp, core=core, timeouts=Timeouts(punch=timeout))  # type: ignore[arg-type]
    try:
        yield punch, tcp, core
    finally:
        punch.close()
        tcp.close()
    assert len(tcp.expected) == 0
    deadline = time.monotonic() + 2
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leaked"


async def run(punch: TcpPunch, *addrs: Multiaddr, role: str = SERVER, deadline: int = 0) -> Any:
    return await punch(ALICE.peer_id, addrs or (TARGET,), deadline, role=role, rtt_ns=1_000_000)


def test_on_each_loop() -> None:
    """Descriptor counts are taken outside of the loops."""

    async def connects() -> None:
        with punching("socket") as (punch, tcp, core):
            deadline = time.monotonic_ns()
            connection = await run(punch, role=CLIENT, deadline=deadline)
            assert connection is tcp.connections[0]
            (call,) = core.calls
            assert call["local"] == ("0.0.0.0", 7001), "from the listener's port"
            assert call["targets"] == [("127.0.0.1", 4001)]
            assert call["deadline_ns"] == deadline
            assert call["timeout_ns"] == 300_000_000
            assert call["rtt_ns"] == 1_000_000
            assert call["listen"] is False
            (told,) = tcp.adopted
            assert told["initiator"] is True
            assert told["expected_peer"] == ALICE.peer_id
            assert told["remote_addr"].ip.is_loopback

    asyncio.run(connects())


@pytest.mark.parametrize(("role", "initiator"), [(CLIENT, True), (SERVER, False)])
@aio
async def test_the_role_is_dcutrs_whether_we_connected_or_were_connected_to(
    role: str, initiator: bool
) -> None:
    with punching() as (punch, tcp, _):
        running = asyncio.create_task(run(punch, role=role))
        await eventually(lambda: tcp.expected)
        tcp.accept(tcp_end())
        assert await running is tcp.connections[0]
        assert tcp.adopted[0]["initiator"] is initiator


@aio
async def test_what_is_accepted_ends_the_connecting() -> None:
    with punching(timeout=5) as (punch, tcp, core):
        running = asyncio.create_task(run(punch))
        await eventually(lambda: tcp.expected)
        tcp.accept(tcp_end())
        started = time.monotonic()
        await running
        assert time.monotonic() - started < 1
        assert core.cancelled == 1


@aio
async def test_each_family_has_its_own_thread_and_port() -> None:
    with punching("wait", "wait") as (punch, _, core):
        with pytest.raises(PunchFailed):
            await run(punch, TARGET, TARGET6)
        assert sorted(call["local"] for call in core.calls) == [("0.0.0.0", 7001), ("::", 7006)]


@aio
async def test_without_a_listener_any_port_will_do() -> None:
    with punching("socket") as (punch, tcp, core):
        tcp.listen_addrs = []
        await run(punch)
        assert core.calls[0]["local"] == ("0.0.0.0", 0)


@aio
async def test_the_reason_is_what_the_core_saw() -> None:
    refused = PunchFailed("127.0.0.1:4001 refused 7 times")
    with punching(refused, timeout=0.1) as (punch, _, _), pytest.raises(PunchFailed, match="refused 7 times"):
        await run(punch)


@aio
async def test_when_connecting_fails_at_once_the_peer_may_still_connect() -> None:
    with punching(PunchFailed("no route"), timeout=1) as (punch, tcp, _):
        running = asyncio.create_task(run(punch))
        await asyncio.sleep(0.1)
        tcp.accept(tcp_end())
        assert await running is tcp.connections[0]


@aio
async def test_somebody_else_at_the_address_is_told() -> None:
    with punching("socket", timeout=0.1) as (punch, tcp, _):
        tcp.secure = [PeerMismatch(ALICE.peer_id, BOB.peer_id)]
        with pytest.raises(PunchFailed, match=r"connected with .* but then: expected peer"):
            await run(punch)


class TestTwoConnections:
    """Each side's connect can meet the other's listener."""

    @aio
    async def test_the_client_keeps_the_first_and_closes_the_other(self) -> None:
        with punching("socket") as (punch, tcp, _):
            tcp.secure = [0.05, 0.05]
            running = asyncio.create_task(run(punch, role=CLIENT))
            await eventually(lambda: tcp.expected)
            tcp.accept(tcp_end())
            kept = await running
            assert [c for c in tcp.connections if not c.closed] == [kept]

    @aio
    async def test_the_server_takes_the_one_that_the_client_left_open(self) -> None:
        with punching("socket") as (punch, tcp, _):
            tcp.secure = [0.05, 0.1]
            running = asyncio.create_task(run(punch))
            await eventually(lambda: tcp.expected)
            tcp.accept(tcp_end())
            await eventually(lambda: tcp.connections)
            tcp.connections[0].abort("the client chose the other")
            assert await running is tcp.connections[1]

    @aio
    async def test_a_server_that_is_cancelled_before_it_chose_keeps_none(self) -> None:
        with punching("socket") as (punch, tcp, _):
            tcp.secure = [0.05, 30.0]
            running = asyncio.create_task(run(punch))
            await eventually(lambda: tcp.expected)
            tcp.accept(tcp_end())
            await eventually(lambda: tcp.connections)
            running.cancel()
            await asyncio.wait([running])
            assert all(connection.closed for connection in tcp.connections)

    @aio
    async def test_or_leaves_what_there_is_to_who_takes_that(self) -> None:
        """Its client may have chosen it."""
        left: list[Any] = []
        with punching("socket") as (punch, tcp, _):
            punch.left_over = left.append
            tcp.secure = [0.05, 30.0]
            running = asyncio.create_task(run(punch))
            await eventually(lambda: tcp.expected)
            tcp.accept(tcp_end())
            await eventually(lambda: tcp.connections)
            running.cancel()
            await asyncio.wait([running])
            assert left == [connection for connection in tcp.connections if not connection.closed]
            assert len(left) == 1
            left[0].abort("the test is over")

    @aio
    async def test_the_server_waits_for_nobody_when_there_was_one_socket(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flare.nat.simultaneous.SETTLE", 1000.0)
        with punching("socket") as (punch, _, _):
            async with asyncio.timeout(10):
                await run(punch)

    @aio
    async def test_the_slower_handshake_is_given_up_by_the_client(self) -> None:
        with punching("socket") as (punch, tcp, _):
            tcp.secure = [30.0, 0.0]
            running = asyncio.create_task(run(punch, role=CLIENT))
            await eventually(lambda: tcp.adopted)
            tcp.accept(tcp_end())
            assert await running is tcp.connections[0]


@aio
async def test_a_cancelled_punch_leaves_nothing_behind() -> None:
    with punching("wait", timeout=10) as (punch, tcp, core):
        running = asyncio.create_task(run(punch))
        await eventually(lambda: tcp.expected)
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
        assert core.cancelled == 1


@aio
async def test_what_comes_before_the_punch_waits_for_it() -> None:
    with punching(timeout=5) as (punch, tcp, _), punch.expect(ALICE.peer_id, [TARGET]):
        tcp.accept(tcp_end())
        await eventually(lambda: tcp.connections)
        assert await run(punch, role=CLIENT) is tcp.connections[0]
        assert tcp.adopted[0]["initiator"] is True


@aio
async def test_what_is_being_secured_when_the_punch_begins_is_waited_for() -> None:
    with punching(timeout=0.05) as (punch, tcp, _), punch.expect(ALICE.peer_id, [TARGET]):
        tcp.secure = [0.2]
        tcp.accept(tcp_end())
        assert await run(punch, role=CLIENT) is tcp.connections[0]


@aio
async def test_what_comes_for_a_punch_that_never_is_is_closed() -> None:
    with punching() as (punch, tcp, _):
        with punch.expect(ALICE.peer_id, [TARGET]):
            tcp.accept(tcp_end())
            await eventually(lambda: tcp.connections)
        assert tcp.connections[0].closed


@aio
async def test_somebody_else_from_the_peers_address_is_not_lost() -> None:
    with punching(timeout=0.2) as (punch, tcp, _):
        running = asyncio.create_task(run(punch))
        await eventually(lambda: tcp.expected)
        tcp.accept(tcp_end(), peer=BOB.peer_id)
        with pytest.raises(PunchFailed):
            await running
        (stranger,) = tcp.strangers
        assert not stranger.closed


@aio
async def test_who_comes_from_there_again_and_again_prolongs_nothing() -> None:
    with punching(timeout=0.2) as (punch, tcp, _):
        tcp.secure = [0.15] * 100
        started = time.monotonic()
        running = asyncio.create_task(run(punch))
        await eventually(lambda: tcp.expected)
        while not running.done() and time.monotonic() < started + 5:
            tcp.accept(tcp_end(), peer=BOB.peer_id)
            await asyncio.sleep(0.05)
        with pytest.raises(PunchFailed):
            await running


@aio
async def test_what_a_stranger_spoils_is_told_only_so_often() -> None:
    with punching(timeout=0.1) as (punch, tcp, _):
        tcp.secure = [PunchFailed(f"number {number}") for number in range(100)]
        running = asyncio.create_task(run(punch))
        await eventually(lambda: tcp.expected)
        for _ in range(100):
            tcp.accept(tcp_end())
        with pytest.raises(PunchFailed) as failed:
            await running
        assert str(failed.value).count("number") == simultaneous.MAX_ERRORS
