"""The simultaneous open between two hosts with a delay between them, and what of it is seen on the wire."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import pytest

from flare._core.punch import PunchAttemptFailed, PunchResult, monotonic_ns, punch
from tests.core.punching import MS, SECOND, assert_joined, taken
from tests.core.wire import RST, Segment, Wire

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("every_descriptor_is_closed")]

PORT_A, PORT_B = 4001, 4002
ONE_WAY = 50 * MS  # longer than a busy machine keeps a thread waiting
RTT = 2 * ONE_WAY


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire(ONE_WAY)
    yield wire
    wire.close()


Punching = tuple[Future[PunchResult], ...]


def both(wire: Wire, deadline_a: int, deadline_b: int, *, v6: bool = False, **options: Any) -> Punching:
    """Punch from both ends; A speaks first."""
    a, b = ((end.ipv6 if v6 else end.ipv4) for end in (wire.a, wire.b))
    options = {"timeout_ns": 4 * SECOND, "rtt_ns": RTT, **options}
    return (
        wire.a.run(punch, (a, PORT_A), [(b, PORT_B)], deadline_a, **options),
        wire.b.run(punch, (b, PORT_B), [(a, PORT_A)], deadline_b, speaks_first=False, **options),
    )


def joined(punching: Punching) -> tuple[PunchResult, PunchResult]:
    """Both ends succeeded with the same connection."""
    near = punching[0].result(10)
    with taken(near) as client:
        client.sendall(b"first")
        far = punching[1].result(10)
        with taken(far) as server:
            assert server.recv(100) == b"first"
            assert_joined(client, server)
            assert client.getpeername() == server.getsockname()
    return near, far


def soon(ms: int = 150) -> int:
    return monotonic_ns() + ms * MS


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
class TestBothConnectsMeet:
    @pytest.mark.parametrize("listen", [True, False])
    @pytest.mark.parametrize("skew", [0, ONE_WAY // 2], ids=lambda skew: f"{skew // MS} ms")
    def test_in_one_socket_on_each_side(self, wire: Wire, v6: bool, listen: bool, skew: int) -> None:
        deadline = soon()
        near, far = joined(both(wire, deadline, deadline + skew, v6=v6, listen=listen))
        assert near.how == far.how == "connect"
        assert near.attempts == far.attempts == 1
        assert len(wire.syns(PORT_A)) == len(wire.syns(PORT_B)) == 1
        assert not [segment for segment in wire.seen if segment.flags & RST]

    def test_the_syn_leaves_when_the_result_says(self, wire: Wire, v6: bool) -> None:
        deadline = soon()
        for result, port in zip(joined(both(wire, deadline, deadline, v6=v6)), (PORT_A, PORT_B), strict=True):
            assert deadline <= result.syn_times_ns[0] <= wire.syns(port)[0].time_ns
            assert result.first_syn_lateness_ns == result.syn_times_ns[0] - deadline


class TestOneSideIsLate:
    """By more than the one-way delay: its SYN meets no SYN of the other."""

    def test_and_listens(self, wire: Wire) -> None:
        deadline = soon()
        near, far = joined(both(wire, deadline, deadline + 10 * ONE_WAY))
        assert (near.how, far.how) == ("connect", "accept")
        assert far.attempts == 0, "the early one's connect completed before the deadline"

    def test_and_does_not_listen(self, wire: Wire) -> None:
        """The early one is refused and tries again, with jitter, till both have a SYN out at once."""
        deadline = soon()
        near, far = joined(both(wire, deadline, deadline + 5 * ONE_WAY, listen=False))
        assert near.how == far.how == "connect"
        assert near.attempts > 1

    def test_and_starts_late(self, wire: Wire) -> None:
        """Its port answers RST till it starts, as a NAT that rejects does."""
        deadline = soon()
        here, there = (wire.a.ipv4, PORT_A), (wire.b.ipv4, PORT_B)
        a = wire.a.run(punch, here, [there], deadline, timeout_ns=4 * SECOND)
        while len(wire.syns(PORT_A)) < 3:
            assert monotonic_ns() < deadline + 3 * SECOND
            time.sleep(0.001)
        b = wire.b.run(punch, there, [here], 0, timeout_ns=4 * SECOND, speaks_first=False)
        near, _ = joined((a, b))
        assert near.attempts >= 3
        times = [segment.time_ns for segment in wire.syns(PORT_A)]
        assert min(after - before for before, after in pairwise(times)) >= RTT + 10 * MS


class TestLoss:
    def test_a_syn_that_is_lost_is_repeated_by_the_kernel_alone(self, wire: Wire) -> None:
        """A NAT drops what comes before its own side's packet; a second connect would kill the first."""
        lost: list[Segment] = []

        def first_of_each(segment: Segment) -> bool:
            if segment.is_syn and segment.source not in {seen.source for seen in lost}:
                lost.append(segment)
                return True
            return False

        wire.drops = first_of_each
        deadline = soon()
        near, far = joined(both(wire, deadline, deadline))
        assert near.attempts == far.attempts == 1
        assert len(lost) == 2
        assert 900 * MS < wire.syns(PORT_A)[1].time_ns - deadline < 3 * SECOND

    def test_a_filter_that_opens_with_the_own_syn(self, wire: Wire) -> None:
        """Two port-restricted NATs: what comes in before the own SYN went out is dropped."""
        wire.drops = lambda segment: (
            not any(seen.source == segment.target and seen.target == segment.source for seen in wire.seen)
        )
        deadline = soon()
        near, far = joined(both(wire, deadline, deadline + ONE_WAY // 2, listen=False))
        assert near.attempts == far.attempts == 1

    def test_silence_times_out_with_one_syn_per_second(self, wire: Wire) -> None:
        wire.drops = lambda segment: True
        deadline = soon()
        for future in both(wire, deadline, deadline, timeout_ns=1500 * MS):
            with pytest.raises(
                PunchAttemptFailed, match=r"10\.77\.0\.[12]:400[12] did not answer 1 connect$"
            ):
                future.result(10)
        assert len(wire.syns(PORT_A)) == len(wire.syns(PORT_B)) == 2


class TestSeveralPairs:
    def test_both_sides_keep_the_same_one(self, wire: Wire) -> None:
        """Each side is given two addresses of the other: three pairs connect, and one connection is left."""
        wire.a.run(ip, "addr add 10.77.0.11/24 dev wire").result(5)
        wire.b.run(ip, "addr add 10.77.0.12/24 dev wire").result(5)
        to_a = [("10.77.0.11", PORT_A), ("10.77.0.1", PORT_A)]
        to_b = [("10.77.0.2", PORT_B), ("10.77.0.12", PORT_B)]
        options = {"timeout_ns": 4 * SECOND, "rtt_ns": RTT}
        for _ in range(5):
            deadline = soon()
            a = wire.a.run(punch, ("0.0.0.0", PORT_A), to_b, deadline, **options)
            b = wire.b.run(punch, ("0.0.0.0", PORT_B), to_a, deadline, speaks_first=False, **options)
            joined((a, b))
        assert {segment.target for segment in wire.seen if segment.is_syn} == {
            (socket.inet_aton(address), port) for address, port in to_a + to_b
        }


class TestUnreachable:
    def test_no_second_connect_before_two_round_trips(self, wire: Wire) -> None:
        """An ICMP error ends a connect before its time; the next waits nevertheless."""
        wire.b.run(ip, "addr del 10.77.0.2/24 dev wire", "addr add 10.77.0.3/32 dev wire").result(5)
        wire.b.run(ip, "route add 10.77.0.1/32 dev wire", "route add prohibit 10.77.0.2/32").result(5)
        wire.b.run(forward).result(5)
        here, there = (wire.a.ipv4, PORT_A), (wire.b.ipv4, PORT_B)
        with pytest.raises(PunchAttemptFailed, match=r"failed after \d connects") as caught:
            wire.a.run(punch, here, [there], soon(), timeout_ns=2 * SECOND, rtt_ns=150 * MS).result(10)
        assert 2 <= caught.value.attempts <= 7
        times = [segment.time_ns for segment in wire.syns(PORT_A)]
        assert min(after - before for before, after in pairwise(times)) >= 200 * MS, (
            "300 ms, as a busy wire sees it"
        )


def ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, timeout=10)


def forward() -> None:
    with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
        switch.write("1")
