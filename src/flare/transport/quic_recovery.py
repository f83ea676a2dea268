"""What was sent and is not acknowledged: aioquic's loss recovery and CUBIC, with a step per ACK frame.

aioquic's copies the numbers of all packets under way for each ACK frame, and asks its congestion control
about each packet. Here the packets that an ACK frame names are looked up, and CUBIC hears of their bytes at
once (RFC 9002, A.7; RFC 9438, 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from aioquic import tls
from aioquic.quic.congestion.base import K_MINIMUM_WINDOW
from aioquic.quic.congestion.cubic import (
    K_CUBIC_C,
    K_CUBIC_LOSS_REDUCTION_FACTOR,
    K_CUBIC_MAX_IDLE_TIME,
    CubicCongestionControl,
    better_cube_root,
)
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStreamSender

from flare.transport.quic_pacing import Pacer

ACKED: Final = QuicDeliveryState.ACKED
Handler = tuple[Callable[..., None], Sequence[Any]]


class Sent:
    """A 1-RTT packet that was sent, as aioquic's QuicSentPacket, which costs three times the time to make.

    What a packet carries of a `sender` alone, from `start` to `stop`, is no handler: acknowledged packets
    that follow one another are one piece for the sender then.
    """

    __slots__ = (
        "handlers",
        "in_flight",
        "is_ack_eliciting",
        "packet_number",
        "sender",
        "sent_bytes",
        "sent_time",
        "start",
        "stop",
    )

    epoch: Final = tls.Epoch.ONE_RTT
    packet_type: Final = QuicPacketType.ONE_RTT
    is_crypto_packet: Final = False

    def __init__(
        self,
        number: int,
        now: float,
        size: int,
        eliciting: bool,
        handlers: Sequence[Handler] = (),
        sender: QuicStreamSender | None = None,
        start: int = 0,
        stop: int = 0,
    ) -> None:
        self.packet_number = number
        self.sent_time = now
        self.sent_bytes = size
        self.is_ack_eliciting = self.in_flight = eliciting
        self.handlers = handlers
        self.sender = sender
        self.start, self.stop = start, stop

    @property
    def delivery_handlers(self) -> list[Handler]:
        """Whom to tell of its loss."""
        if self.sender is None:
            return list(self.handlers)
        return [*self.handlers, (self.sender.on_data_delivery, (self.start, self.stop, False))]


class Cubic(CubicCongestionControl):
    """aioquic's CUBIC, told of all bytes of an ACK frame at once."""

    newly_acked = 0  # bytes of the ACK frame that is being looked at

    def on_bytes_sent(self, size: int, now: float) -> None:
        """`size` bytes leave; after a long silence the window is a new connection's again."""
        self.bytes_in_flight += size
        if self.last_ack and now - self.last_ack >= K_CUBIC_MAX_IDLE_TIME:
            self.reset()

    def on_bytes_acked(self, size: int, sent_time: float, now: float) -> None:
        """`size` bytes arrived; the newest of their packets was sent at `sent_time`."""
        self.bytes_in_flight -= size
        self.newly_acked = size
        self.last_ack = sent_time
        if self.ssthresh is None or self.congestion_window < self.ssthresh:
            self.congestion_window += size
            return
        if self._first_slow_start or self._starting_congestion_avoidance:
            self._begin_epoch(now)
        segment = self._max_datagram_size
        self._W_est = int(self._W_est + segment * (size / self.congestion_window))
        elapsed = now - self._t_epoch
        window = self.congestion_window
        target = min(max(self.W_cubic(elapsed + self.rtt), window), window * 3 // 2)
        if self.is_reno_friendly(elapsed):
            self.congestion_window = max(window, self._W_est)
        else:
            self.congestion_window = window + int((target - window) * size / window)

    def on_packets_lost(self, *, now: float, packets: Iterable[Any]) -> None:
        """The window becomes a share of what was under way when the ACK frame came (RFC 9438, 4.6).

        aioquic takes what is under way after it; where one frame answers a burst, that is next to nothing.
        """
        window, flight = self.congestion_window, self.bytes_in_flight + self.newly_acked
        super().on_packets_lost(now=now, packets=packets)
        if self._congestion_recovery_start_time == now:
            least = K_MINIMUM_WINDOW * self._max_datagram_size
            self.ssthresh = max(int(min(window, flight) * K_CUBIC_LOSS_REDUCTION_FACTOR), least)
            self.congestion_window = self.ssthresh

    def _begin_epoch(self, now: float) -> None:
        if not self._starting_congestion_avoidance:  # slow start ended without a loss
            self._W_max = self.congestion_window
        self._first_slow_start = self._starting_congestion_avoidance = False
        self._t_epoch = now
        self._cwnd_epoch = self._W_est = self.congestion_window
        below = (self._W_max - self.congestion_window) / self._max_datagram_size
        self.K = better_cube_root(below / K_CUBIC_C)

    def resize(self, datagram_size: int) -> None:
        """Datagrams have another size from now on."""
        self._max_datagram_size = self.additive_increase_factor = datagram_size
        self.congestion_window = max(self.congestion_window, K_MINIMUM_WINDOW * datagram_size)


class Recovery(QuicPacketRecovery):
    """aioquic's loss recovery, for one connection."""

    def __init__(self, *, datagram_size: int, pacer: Pacer, **how: Any) -> None:
        super().__init__(congestion_control_algorithm="cubic", max_datagram_size=datagram_size, **how)
        self._cc: Cubic = Cubic(datagram_size)
        self._pacer: Pacer = pacer  # type: ignore[assignment]

    def resize(self, datagram_size: int) -> None:
        """Datagrams have another size from now on."""
        self._cc.resize(datagram_size)
        self._pacer.resize(datagram_size)
        self._pace()

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """An ACK frame, as aioquic reads it."""
        self.acked([(found.start, found.stop) for found in ack_rangeset], ack_delay, now, space)

    def acked(
        self, ranges: Sequence[tuple[int, int]], delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """Packets from, to just past: the lowest first (RFC 9002, A.7)."""
        largest = ranges[-1][1] - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest)
        sent: Any = space.sent_packets
        if not sent:
            return
        first, last = next(iter(sent)), next(reversed(sent))
        newest: Any = None
        size, eliciting = 0, 0
        sender: QuicStreamSender | None = None
        begin = end = 0
        for start, stop in ranges:
            for number in range(max(start, first), min(stop, last + 1)):
                packet = sent.pop(number, None)
                if packet is None:
                    continue
                newest = packet
                eliciting += packet.is_ack_eliciting
                if packet.in_flight:
                    size += packet.sent_bytes
                if packet.__class__ is Sent:
                    if packet.sender is not None:
                        if packet.sender is not sender or packet.start != end:
                            if sender is not None:
                                sender.on_data_delivery(ACKED, begin, end, False)
                            sender, begin = packet.sender, packet.start
                        end = packet.stop
                    handlers = packet.handlers
                else:
                    handlers = packet.delivery_handlers
                for handler, arguments in handlers:
                    handler(ACKED, *arguments)
        if sender is not None:
            sender.on_data_delivery(ACKED, begin, end, False)
        if newest is None:
            return
        space.ack_eliciting_in_flight -= eliciting
        if size:
            self._cc.on_bytes_acked(size, newest.sent_time, now)
        if newest.packet_number == largest and eliciting:
            self._measure(now - newest.sent_time, delay, now)
        self._detect_loss(now=now, space=space)
        self._cc.newly_acked = 0
        if self.peer_completed_address_validation:
            self._pto_count = 0

    def _measure(self, latest: float, delay: float, now: float) -> None:
        """A round trip (RFC 9002, 5)."""
        delay = min(delay, self.max_ack_delay)
        self._rtt_latest = max(latest, 0.001)
        self._rtt_min = min(self._rtt_min, self._rtt_latest)
        if self._rtt_latest > self._rtt_min + delay:
            self._rtt_latest -= delay
        if not self._rtt_initialized:
            self._rtt_first_sample_time = now
            self._rtt_initialized = True
            self._rtt_variance = latest / 2
            self._rtt_smoothed = latest
        else:
            deviation = abs(self._rtt_smoothed - self._rtt_latest)
            self._rtt_variance = 3 / 4 * self._rtt_variance + 1 / 4 * deviation
            self._rtt_smoothed = 7 / 8 * self._rtt_smoothed + 1 / 8 * self._rtt_latest
        self._cc.on_rtt_measurement(now=now, rtt=latest)
        self._pace()

    def _pace(self) -> None:
        if self._rtt_initialized:
            self._pacer.update_rate(
                congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed
            )

    def sent(self, packets: Sequence[Sent], now: float, space: QuicPacketSpace) -> None:
        """These packets leave now, once the handshake is confirmed."""
        size, eliciting = 0, 0
        for packet in packets:
            space.sent_packets[packet.packet_number] = packet  # type: ignore[assignment]
            if packet.is_ack_eliciting:
                eliciting += 1
            if packet.in_flight:
                size += packet.sent_bytes
        space.ack_eliciting_in_flight += eliciting
        if eliciting:
            self._time_of_last_sent_ack_eliciting_packet = now
        if size:
            self._cc.on_bytes_sent(size, now)
