"""A sender that wakes up late still fills its window, and its bursts stay small (RFC 9002, 7.7)."""

from __future__ import annotations

import inspect
import re

from aioquic.quic import connection as quic_connection
from aioquic.quic import recovery
from hypothesis import given
from hypothesis import strategies as st

from flare.config import KIB
from flare.transport.quic_pacing import GAIN, GRANULARITY, LATENESS, LEAST_BURST, MOST_BURST, Pacer
from tests.support.quic_engines import EnginePair

SIZE = 1280


def paced(datagrams_a_second: float, rtt: float) -> Pacer:
    """A pacer of that rate, whose bucket is empty at 100 s."""
    pacer = Pacer(SIZE)
    pacer.update_rate(congestion_window=int(datagrams_a_second / GAIN * rtt * SIZE), smoothed_rtt=rtt)
    at_once(pacer, 100.0)
    return pacer


def at_once(pacer: Pacer, now: float) -> int:
    """How many datagrams it lets out at one time."""
    count = 0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        count += 1
    return count


def test_nothing_is_paced_before_the_round_trip_is_known() -> None:
    pacer = Pacer(SIZE)
    for _ in range(1000):
        assert pacer.next_send_time(1.0) is None
        pacer.update_after_send(1.0)


def test_a_late_wake_up_makes_up_for_what_it_missed() -> None:
    pacer = paced(10_000, rtt=0.1)
    assert at_once(pacer, 100.008) in (79, 80, 81)


def test_a_burst_is_what_ten_milliseconds_give() -> None:
    pacer = paced(10_000, rtt=0.1)
    assert at_once(pacer, 100.0 + LATENESS) in (99, 100)
    assert at_once(pacer, 105.0) in (99, 100), "no more than that, however long nothing was sent"


def test_a_burst_is_never_more_than_a_socket_holds() -> None:
    assert at_once(paced(1_000_000, rtt=0.1), 105.0) == MOST_BURST


def test_a_slow_path_has_the_least_burst() -> None:
    assert at_once(paced(500, rtt=0.1), 105.0) == LEAST_BURST


def test_a_burst_is_never_more_than_the_window() -> None:
    pacer = Pacer(SIZE)
    pacer.update_rate(congestion_window=2 * SIZE, smoothed_rtt=0.1)
    assert at_once(pacer, 100.0) == 2


def test_it_asks_to_be_woken_when_there_is_something_to_send() -> None:
    slow, fast = paced(100, rtt=1.0), paced(100_000, rtt=0.1)
    at = slow.next_send_time(100.0)
    assert at is not None
    assert 100.005 < at <= 100.010001
    assert slow.next_send_time(at + 1e-6) is None
    assert fast.next_send_time(100.0) == 100.0 + GRANULARITY


@given(
    st.floats(10.0, 1e6),
    st.floats(0.0001, 2.0),
    st.lists(st.floats(0.0, 0.5), max_size=20),
)
def test_it_never_lets_out_more_than_rate_and_burst(rate: float, rtt: float, steps: list[float]) -> None:
    pacer = paced(rate, rtt)
    now, sent = 100.0, 0
    for step in steps:
        now += step
        burst = at_once(pacer, now)
        assert burst <= MOST_BURST
        sent += burst
    assert sent <= rate * (now - 100.0) + 1


def test_it_has_all_that_aioquic_asks_of_its_own() -> None:
    used = set()
    for module in (recovery, quic_connection):
        used |= set(re.findall(r"_pacer\.(\w+)\(", inspect.getsource(module)))
    assert used == {"next_send_time", "update_after_send", "update_rate"}
    for name in used:
        theirs, ours = getattr(recovery.QuicPacketPacer, name), getattr(Pacer, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_a_program_that_wakes_up_each_ten_milliseconds_is_not_held_to_a_few_datagrams() -> None:
    """Both ends run every 10 ms only: 16 datagrams in each would be 2 MB/s, whatever the window."""
    pair = EnginePair()
    pair.handshake()
    stream, bursts = pair.client.open_stream(), []
    for _ in range(100):
        pair.client.write(stream, bytes(256 * KIB))
        bursts.append(pair.turn())
    assert max(bursts) <= MOST_BURST + 1
    received = sum(pair.there.received.values())
    assert received > 5_000_000, f"in a second, with bursts of {bursts[-5:]} datagrams"


def test_what_came_is_acknowledged_at_once_when_it_is_more_than_one() -> None:
    """RFC 9000, 13.2.2; aioquic waits for a millisecond, which a loop that is busy makes many."""
    pair = EnginePair()
    pair.handshake()
    pair.client.write(pair.client.open_stream(), bytes(4 * KIB))
    pair.turn()
    assert not pair.client.in_flight
