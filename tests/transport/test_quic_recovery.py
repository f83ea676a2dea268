"""Loss recovery and CUBIC by ACK frames, beside aioquic's by packets (RFC 9002, RFC 9438)."""

from __future__ import annotations

from typing import Any

import pytest
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from hypothesis import given
from hypothesis import strategies as st

from flare.transport.quic_pacing import Pacer
from flare.transport.quic_recovery import ACKED, Cubic, Recovery, Sent

SIZE = 1200
LOST = QuicDeliveryState.LOST


class Sender:
    """What a stream's sender hears of its pieces."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, int, int, bool]] = []

    def on_data_delivery(self, delivery: Any, start: int, stop: int, fin: bool) -> None:
        self.heard.append((delivery, start, stop, fin))


def ours() -> tuple[Recovery, QuicPacketSpace]:
    how: dict[str, Any] = {"initial_rtt": 0.1, "peer_completed_address_validation": True}
    made = Recovery(datagram_size=SIZE, pacer=Pacer(SIZE), send_probe=lambda: None, **how)
    made.handshake_confirmed = True
    return made, QuicPacketSpace(is_application_data=True)


def theirs() -> tuple[QuicPacketRecovery, QuicPacketSpace]:
    made = QuicPacketRecovery(
        congestion_control_algorithm="cubic",
        initial_rtt=0.1,
        max_datagram_size=SIZE,
        peer_completed_address_validation=True,
        send_probe=lambda: None,
    )
    made.handshake_confirmed = True
    return made, QuicPacketSpace(is_application_data=True)


def packets(count: int, heard: list[Any], sender: Any = None) -> list[Sent]:
    """Every third says nothing that must be acknowledged."""
    return [
        Sent(
            number,
            100.0 + number / 1000,
            SIZE - number % 7,
            number % 3 != 2,
            [(lambda delivery, at: heard.append((at, delivery)), (number,))],
            sender,
            SIZE * number,
            SIZE * (number + 1),
        )
        for number in range(count)
    ]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=4), max_size=8),
)
def test_what_is_left_after_any_acknowledgements_is_what_aioquic_leaves(
    acks: list[list[tuple[int, int]]],
) -> None:
    (mine, space), (other, other_space) = ours(), theirs()
    heard: list[Any] = []
    other_heard: list[Any] = []
    mine.sent(packets(40, heard), 100.0, space)
    for packet in packets(40, other_heard):
        other.on_packet_sent(packet=packet, space=other_space)  # type: ignore[arg-type]
    now = 101.0
    for ack in acks:
        now += 0.02
        ranges = RangeSet()
        for start, size in ack:
            ranges.add(start, start + size)
        mine.on_ack_received(ack_rangeset=ranges, ack_delay=0.001, now=now, space=space)
        other.on_ack_received(ack_rangeset=ranges, ack_delay=0.001, now=now, space=other_space)
        assert list(space.sent_packets) == list(other_space.sent_packets)
        assert heard == other_heard
        for name in ("largest_acked_packet", "ack_eliciting_in_flight", "loss_time"):
            assert getattr(space, name) == getattr(other_space, name), name
        assert mine.bytes_in_flight == other.bytes_in_flight
        assert mine._rtt_latest == other._rtt_latest
        assert mine._pto_count == other._pto_count


def test_packets_that_follow_one_another_are_one_piece_for_their_stream() -> None:
    recovery, space = ours()
    sender, another = Sender(), Sender()
    sent = [Sent(n, 1.0, SIZE, True, (), sender, SIZE * n, SIZE * (n + 1)) for n in range(10)]  # type: ignore[arg-type]
    sent[5] = Sent(5, 1.0, SIZE, True, (), another, 0, 700)  # type: ignore[arg-type]
    recovery.sent(sent, 1.0, space)
    recovery.acked([(0, 3), (4, 10)], 0.0, 1.1, space)
    assert sender.heard == [
        (ACKED, 0, 3 * SIZE, False),
        (ACKED, 4 * SIZE, 5 * SIZE, False),
        (ACKED, 6 * SIZE, 10 * SIZE, False),
        (LOST, 3 * SIZE, 4 * SIZE, False),
    ]
    assert another.heard == [(ACKED, 0, 700, False)]


def test_a_lost_one_is_told_to_its_stream_by_aioquic() -> None:
    recovery, space = ours()
    sender = Sender()
    recovery.sent([Sent(n, 1.0, SIZE, True, (), sender, n, n + 1) for n in range(5)], 1.0, space)  # type: ignore[arg-type]
    recovery.acked([(4, 5)], 0.0, 1.1, space)
    assert (LOST, 0, 1, False) in sender.heard
    assert recovery._cc.ssthresh is not None


@pytest.mark.parametrize("under_way", [100, 20])
def test_a_loss_in_a_burst_that_one_frame_answers(under_way: int) -> None:
    """RFC 9438, 4.6: by what was under way, and not by what that frame left of it."""
    recovery, space = ours()
    recovery._cc.congestion_window = 50 * SIZE
    recovery.sent([Sent(n, 1.0, SIZE, True) for n in range(under_way)], 1.0, space)
    recovery.acked([(0, 3), (4, under_way)], 0.0, 1.1, space)
    grown = (50 + under_way - 1) * SIZE  # in slow start
    assert recovery.congestion_window == int(min(under_way * SIZE, grown) * 0.7)
    assert recovery.bytes_in_flight == 0
    recovery.sent([Sent(under_way, 1.2, SIZE, True)], 1.2, space)
    assert recovery._cc.newly_acked == 0


def test_an_acknowledgement_costs_what_it_names() -> None:
    """A peer that names 2^62 packets in a frame keeps nobody busy."""
    recovery, space = ours()
    recovery.sent(packets(3, []), 100.0, space)
    recovery.acked([(0, 1), (5, 1 << 61)], 0.0, 101.0, space)
    assert list(space.sent_packets) == []  # 1 and 2 are lost


def windows(congestion: Any, now: float, rounds: int, acked: int) -> list[int]:
    found = []
    for _ in range(rounds):
        now += 0.05
        size = acked * SIZE
        if isinstance(congestion, Cubic):
            congestion.on_bytes_sent(size, now - 0.05)
            congestion.on_bytes_acked(size, now - 0.05, now)
        else:
            for _ in range(acked):
                packet: Any = Sent(0, now - 0.05, SIZE, True)
                congestion.on_packet_sent(packet=packet)
                congestion.on_packet_acked(packet=packet, now=now)
        found.append(congestion.congestion_window)
    return found


@pytest.mark.parametrize("acked", [1, 8, 40])
def test_cubic_by_bytes_grows_as_by_packets(acked: int) -> None:
    pair = Cubic(SIZE), CubicCongestionControl(SIZE)
    slow_start = [windows(congestion, 100.0, 5, acked) for congestion in pair]
    assert slow_start[0] == slow_start[1]
    for congestion in pair:
        congestion.on_packet_sent(packet=Sent(0, 101.0, SIZE, True))  # type: ignore[arg-type]
        congestion.bytes_in_flight = congestion.congestion_window
        congestion.on_packets_lost(now=101.0, packets=[Sent(0, 101.0, SIZE, True)])  # type: ignore[list-item]
    later = [windows(congestion, 101.0, 60, acked) for congestion in pair]
    assert later[0][-1] > later[0][0]
    for mine, other in zip(*later, strict=True):
        assert mine == pytest.approx(other, rel=0.1)


def test_a_long_silence_begins_anew() -> None:
    congestion = Cubic(SIZE)
    windows(congestion, 100.0, 10, 40)
    assert congestion.congestion_window > 100 * SIZE
    congestion.on_bytes_sent(SIZE, 110.0)
    assert congestion.congestion_window == 10 * SIZE
