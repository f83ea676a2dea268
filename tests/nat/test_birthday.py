"""The search for a port that a NAT chose by chance: its limits, under virtual time and on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.config import PunchConfig
from flare.nat import birthday
from flare.nat.birthday import PROBE, TICK, WINDOW, Opener, ProbeBudget, Sockets, probe, send_probes
from flare.nat.prediction import random_ports
from tests.support.aio import aio, eventually
from tests.support.linked import now, simulated

VICTIM = "1.2.3.4"
FAST = PunchConfig(probe_rate=1e9, probes=8, sockets=4, max_sockets=8, socket_rounds=2)


class Wire:
    """A UdpSocket that counts."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, int]] = []
        self.closed = False

    def send_raw(self, remote: Any, data: bytes) -> None:
        assert len(data) == PROBE
        assert data[0] < 0x40, "no QUIC packet begins so"
        self.sent.append((now(), *remote))


class TestBudget:
    """What defends an IP that a peer gives for its own."""

    def test_an_ip_gets_so_many_in_a_minute_whoever_asks_and_not_one_more(self) -> None:
        limits = PunchConfig(probe_rate=1e9)
        budget = ProbeBudget(limits)
        assert budget.take(VICTIM, limits.probes_per_ip - 1, 10.0) == limits.probes_per_ip - 1
        assert budget.room(VICTIM, 11.0) == 1
        assert budget.take(VICTIM, 5, 11.0) == 1
        assert budget.take(VICTIM, 1, 12.0) == 0
        assert budget.take("5.6.7.8", 1, 12.0) == 1, "others are not concerned"
        assert budget.take(VICTIM, 1, 10.0 + WINDOW - 0.001) == 0
        assert budget.take(VICTIM, limits.probes_per_ip, 10.0 + WINDOW) == limits.probes_per_ip - 1

    def test_all_together_get_so_many_a_second(self) -> None:
        limits = PunchConfig(probe_rate=100.0)
        budget = ProbeBudget(limits)
        sent = sum(budget.take(f"1.2.3.{tick % 200}", 50, tick * TICK) for tick in range(1000))
        assert sent == pytest.approx(100 * 1000 * TICK, abs=3)

    def test_a_pause_is_not_saved_up(self) -> None:
        limits = PunchConfig(probe_rate=600.0)
        assert ProbeBudget(limits).take(VICTIM, 1000, 1e6) == 2 * 600 * TICK

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.floats(0, 20)), max_size=60))
    def test_no_order_of_requests_gets_more(self, requests: list[tuple[int, int, float]]) -> None:
        limits = PunchConfig(probe_rate=50.0, probes_per_ip=100)
        budget = ProbeBudget(limits)
        at, first = 100.0, 100.0
        given: list[tuple[float, int, int]] = []
        for ip, wanted, pause in requests:
            at += pause
            granted = budget.take(f"1.2.3.{ip}", wanted, at)
            assert 0 <= granted <= wanted
            given.append((at, ip, granted))
            for each in range(3):
                assert sum(n for t, i, n in given if i == each and t > at - WINDOW) <= limits.probes_per_ip
        assert sum(n for _, _, n in given) <= limits.probe_rate * (at - first) + 2

    def test_what_is_long_ago_is_not_remembered(self) -> None:
        budget = ProbeBudget(PunchConfig(probe_rate=1e9))
        for second in range(500):
            budget.take(f"1.2.{second // 250}.{second % 250}", 1, float(second))
        assert len(budget._sent) <= WINDOW + 1


class TestProbes:
    @simulated
    async def test_so_many_to_different_ports_of_the_one_ip_at_the_rate(self) -> None:
        wire, limits = Wire(), PunchConfig()
        budget = ProbeBudget(limits)
        ports = random_ports(limits.probes, random.Random(1))
        sent = await send_probes(wire, VICTIM, ports, budget)  # type: ignore[arg-type]
        assert sent == limits.probes == len(wire.sent)
        assert {ip for _, ip, _ in wire.sent} == {VICTIM}
        assert [port for _, _, port in wire.sent] == ports
        assert now() == pytest.approx(limits.probes / limits.probe_rate, abs=0.1)

    @simulated
    async def test_punch_after_punch_ends_at_the_ips_limit(self) -> None:
        wire, budget = Wire(), ProbeBudget(PunchConfig(probes_per_ip=1100))
        ports = range(2000, 2512)
        counts = [await send_probes(wire, VICTIM, ports, budget) for _ in range(4)]  # type: ignore[arg-type]
        assert counts == [512, 512, 76, 0]

    @simulated
    async def test_a_socket_that_closes_ends_it(self) -> None:
        wire = Wire()
        sending = asyncio.ensure_future(
            send_probes(wire, VICTIM, range(2000, 2512), ProbeBudget())  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.1)
        wire.closed = True
        assert await sending < 100


def peer() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


class TestOpener:
    @aio
    async def test_each_socket_speaks_and_one_that_is_answered_is_handed_over_unread(self) -> None:
        hits: list[tuple[socket.socket, Any]] = []
        sockets = Sockets(8)
        with peer() as far:
            opener = Opener(
                far.getsockname(),
                lambda sock, sender: hits.append((sock, sender)),
                budget=ProbeBudget(FAST),
                sockets=sockets,
                limits=FAST,
            )
            running = asyncio.ensure_future(opener.run(rtt=0.0))
            await eventually(lambda: bool(select.select([far], [], [], 0)[0]))
            data, source = far.recvfrom(100)
            assert len(data) == PROBE
            assert sockets.held == FAST.sockets
            far.sendto(b"found you", source)
            await running
            ((sock, sender),) = hits
            assert sender == far.getsockname()
            assert sock.recv(100) == b"found you"
            assert sock.getsockname()[1] == source[1]
            sock.close()
            assert sockets.held == 0
            speakers = {source[1]}
            for _ in range(100):
                try:
                    speakers.add(far.recvfrom(100)[1][1])
                except BlockingIOError:
                    break
            assert len(speakers) == FAST.sockets * FAST.socket_rounds, "the sockets of each round are new"

    @aio
    async def test_where_its_ports_are_foretold_it_keeps_its_sockets(self) -> None:
        with peer() as far:
            opener = Opener(
                far.getsockname(),
                lambda *hit: None,
                budget=ProbeBudget(FAST),
                sockets=Sockets(8),
                limits=FAST,
                fresh=False,
            )
            await opener.run(rtt=0.0)
            heard = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(far.recvfrom(100)[1][1])
        assert len(set(heard)) == FAST.sockets
        assert len(heard) == FAST.sockets * (1 + FAST.socket_rounds), "and knocks once"

    @aio
    async def test_what_comes_from_another_ip_is_no_hit(self) -> None:
        hits: list[Any] = []
        opener = Opener(
            ("127.0.0.2", 9),
            lambda *hit: hits.append(hit),
            budget=ProbeBudget(FAST),
            sockets=Sockets(8),
            limits=replace(FAST, socket_rounds=1),
        )
        running = asyncio.ensure_future(opener.run(rtt=0.0))
        await asyncio.sleep(0.01)
        with peer() as stranger:
            for sock in opener._open:
                stranger.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
            await running
        assert not hits

    @aio
    async def test_cancelled_it_leaves_no_socket(self) -> None:
        sockets = Sockets(8)
        opener = Opener(
            ("127.0.0.1", 9), lambda *hit: None, budget=ProbeBudget(FAST), sockets=sockets, limits=FAST
        )
        running = asyncio.ensure_future(opener.run(rtt=0.0))
        await asyncio.sleep(0.05)
        assert sockets.held == FAST.sockets
        running.cancel()
        await asyncio.wait([running])
        assert sockets.held == 0

    @aio
    async def test_its_packets_count_against_the_budget_of_the_ip_that_the_peer_named(self) -> None:
        limits = replace(FAST, probes_per_ip=3)
        with peer() as far:
            opener = Opener(
                far.getsockname(),
                lambda *hit: None,
                budget=ProbeBudget(limits),
                sockets=Sockets(8),
                limits=limits,
            )
            knocks = []
            opener._knock = lambda: asyncio.sleep(0)  # type: ignore[method-assign]  # those die on the way
            await opener.run(rtt=0.0)
            while True:
                try:
                    knocks.append(far.recv(100))
                except BlockingIOError:
                    break
        assert len(knocks) == 3

    @aio
    async def test_its_first_packets_die_before_they_reach_the_peers_nat(self, monkeypatch: Any) -> None:
        ttls: list[int] = []
        monkeypatch.setattr(
            Opener, "_send", lambda self, sock: ttls.append(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL))
        )
        limits = replace(FAST, socket_rounds=1)
        opener = Opener(
            ("127.0.0.1", 9), lambda *hit: None, budget=ProbeBudget(limits), sockets=Sockets(8), limits=limits
        )
        await opener.run(rtt=0.0)
        assert ttls[: limits.sockets] == [birthday.OWN_NAT] * limits.sockets
        assert all(ttl > 30 for ttl in ttls[limits.sockets :])
        assert len(ttls) == 2 * limits.sockets


class TestSockets:
    @pytest.mark.parametrize(("most", "opened"), [(5, 5), (4, 4), (6, 5)])
    def test_as_many_as_there_is_room_for(self, most: int, opened: int) -> None:
        sockets = Sockets(most)
        some = sockets.open(5)
        assert len(some) == opened == sockets.held
        more = sockets.open(5)
        assert len(more) == most - opened
        for sock in some + more:
            sockets.close(sock)

    def test_the_last_quarter_of_the_descriptors_is_for_others(self) -> None:
        with socket.socket() as lowest:
            free = lowest.fileno()
        few = Sockets(100, descriptors=(free + 3) * 4 // 3)
        some = few.open(10)
        assert len(some) <= 3
        for sock in some:
            few.close(sock)
        with socket.socket() as again:
            assert again.fileno() == free, "what was too much is closed"
        assert Sockets(100, descriptors=4).open(10) == []

    def test_a_process_without_descriptors_gets_what_it_can(self, monkeypatch: Any) -> None:
        real, made = socket.socket, []

        def scarce(*args: Any) -> socket.socket:
            if len(made) == 3:
                raise OSError(24, "Too many open files")
            made.append(real(*args))
            return made[-1]

        monkeypatch.setattr(birthday.socket, "socket", scarce)
        sockets = Sockets(100)
        assert sockets.open(5) == made
        assert sockets.held == 3
        for sock in made:
            sockets.close(sock)
        assert sockets.held == 0


def test_probes_are_short_and_no_quic() -> None:
    assert all(len(data) == PROBE and data[0] < 0x40 for data in (probe() for _ in range(100)))
