"""QUIC's way of data: what aioquic does for each 1-RTT packet, in a tenth of the steps.

From the end of the handshake on, packets are opened, sealed and taken apart in `flare._core.quic`, and made
here, many at a time. What is in any way unusual goes the way of aioquic as before: handshakes, connection
ids, paths and their challenges, key updates, closes, streams that begin or end, and everything when libcrypto
is not within reach. What of aioquic this stands on is in tests/transport/test_quic_aioquic.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from aioquic._buffer import Buffer
from aioquic.quic.packet import (
    NON_ACK_ELICITING_FRAME_TYPES,
    QuicFrameType,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamSender

from flare._core.quic import Keys, stream_frame, stream_overhead
from flare.config import QuicLimits
from flare.transport.quic_incoming import CONNECTED, ONE_RTT, Incoming
from flare.transport.quic_mtu import PathMtu
from flare.transport.quic_recovery import Handler, Sent

KEY_PACKETS: Final = 1 << 22  # sent under one key: AES-GCM is good for twice as many (RFC 9001, 6.6)
SWALLOWED: Final = 2  # probe timeouts in a row after which the path is thought to swallow large datagrams
_OVERHEAD: Final = 1 + 4 + 16  # bytes of a packet besides connection id and frames
_RUN: Final = 4  # packets of one stream before another's turn
_PING: Final = bytes((QuicFrameType.PING,))


class _Front:
    """The frames before the data of a packet. aioquic's methods write them, as to a QuicPacketBuilder."""

    quic_logger_frames = None

    def __init__(self, room: int, number: int) -> None:
        self.packet_number = number
        self.handlers: list[Handler] = []
        self.eliciting = False
        self._room = room
        self._buffer = Buffer(capacity=room)

    @property
    def remaining_buffer_space(self) -> int:
        return self._room - self._buffer.tell()

    @property
    def frames(self) -> bytes:
        return self._buffer.data

    def start_frame(
        self,
        frame_type: int,
        capacity: int = 1,
        handler: Callable[..., None] | None = None,
        handler_args: Any = (),
    ) -> Buffer:
        if self.remaining_buffer_space < capacity:
            raise QuicPacketBuilderStop
        self._buffer.push_uint_var(frame_type)
        if frame_type not in NON_ACK_ELICITING_FRAME_TYPES:
            self.eliciting = True
        if handler is not None:
            self.handlers.append((handler, handler_args))
        return self._buffer


def _is_busy(stream: QuicStream) -> bool:
    """It is over, or has data, a reset, STOP_SENDING or a new window to send."""
    sender = stream.sender
    return (
        not (sender.buffer_is_empty or stream.is_blocked)
        or stream.max_stream_data_local != stream.max_stream_data_local_sent
        or sender.reset_pending
        or stream.receiver.stop_pending
        or stream.is_finished
    )


class DataPath(Incoming):
    """aioquic's connection with a way of its own for packets of data, as large as the path carries."""

    def __init__(self, limits: QuicLimits, **how: Any) -> None:
        super().__init__(limits.datagram_size, **how)
        self.mtu = PathMtu(limits.datagram_size, limits.max_datagram_size)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What to send now."""
        self._now = now
        if not self._is_plain():
            made = super().datagrams_to_send(now)
            self._take_keys()
            return made
        if self._packet_number - self._keyed_at >= KEY_PACKETS:
            self._keyed_at = self._packet_number
            self.request_key_update()
            return super().datagrams_to_send(now)
        addr = self._network_paths[0].addr
        return [(datagram, addr) for datagram in self._burst(now)]

    def _is_plain(self) -> bool:
        """Nothing is to be sent but on one path, under keys that are here, and what `_burst` knows of."""
        if self._out.keys is None or self._state is not CONNECTED or self._close_pending:
            return False
        path, *others = self._network_paths
        return (
            path.is_validated
            and not path.remote_challenges
            and not any(
                other.remote_challenges or not (other.is_validated or other.local_challenge_sent)
                for other in others
            )
            and self._out.follows(self._pair.send)
            and not self._pair._update_key_requested
            and not self._handshake_done_pending
            and not self._retire_connection_ids
            and not self._streams_blocked_pending
            and self._remote_preferred_address is None
            and self._crypto_streams[ONE_RTT].sender.buffer_is_empty
            and all(cid.was_sent for cid in self._host_cids)
        )

    def _burst(self, now: float) -> list[bytes]:
        """Packets, as many as there is something for, and as window and pacer let out."""
        loss, space, keys = self._recovery, self._space, self._out.keys
        assert keys is not None
        cid, size = self._peer_cid.cid, self._max_datagram_size
        room = size - _OVERHEAD - len(cid)
        window = loss.congestion_window - loss.bytes_in_flight
        if self._probe_pending:
            window = max(window, size)
        allowed = loss._pacer.allowed(now)
        busy = self._busy()
        turn = deque(s for s in busy if not (s.sender.buffer_is_empty or s.is_blocked))
        several = len(turn) > 1
        announced = False
        made: list[bytes] = []
        packets: list[Sent] = []
        paced = 0
        while True:
            may = paced < allowed and window >= size
            acks = space.ack_at is not None and space.ack_at <= now
            if not (acks or may):
                break
            if announced and turn and not acks:
                most = min(allowed - paced, window // size, _RUN if several else allowed)
                run = self._run(keys, cid, room, most, turn, made, packets, now)
                if run:
                    paced += run
                    window -= run * size
                    continue
            frames, eliciting = b"", False
            handlers: list[Handler] = []
            if acks or not announced:
                front = _Front(room, self._packet_number)
                if acks:
                    self._write_ack_frame(cast(QuicPacketBuilder, front), space, now)
                if may:
                    announced = self._announce(front, space, busy)
                frames, handlers, eliciting = front.frames, front.handlers, front.eliciting
            datagram = None
            if may and turn:
                before = len(handlers)
                datagram, frames = self._fill(keys, cid, room, frames, handlers, turn)
                eliciting = eliciting or len(handlers) > before
            if datagram is None:
                if not frames:
                    break
                datagram = keys.seal(cid, self._packet_number, frames)
            packets.append(Sent(self._packet_number, now, len(datagram), eliciting, handlers))
            made.append(datagram)
            self._packet_number += 1
            if eliciting:
                paced += 1
                window -= len(datagram)
        loss._pacer.spend(paced, now)
        waiting = window >= size and (turn or not announced)  # for the pacer, if for anything
        self._pacing_at = loss._pacer.next_send_time(now) if waiting else None
        if several and turn:  # the next burst goes on where this one ends
            later = set(turn)
            self._streams_queue = [s for s in self._streams_queue if s not in later] + list(turn)
        self._probe_mtu(keys, cid, made, packets, now)
        self._register(packets, now)
        return made

    def _register(self, packets: list[Sent], now: float) -> None:
        """They are under way; the first that wants an answer puts the idle timeout off (RFC 9000, 10.1)."""
        if not packets:
            return
        self._recovery.sent(packets, now, self._space)
        if not self._ack_eliciting_sent_since_receipt and any(p.is_ack_eliciting for p in packets):
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True

    def _busy(self) -> list[QuicStream]:
        """The streams that have something to send, whose turn it is first; those that are over go."""
        busy: list[QuicStream] = []
        over: set[QuicStream] = set()
        for stream in self._streams_queue:
            if stream.is_finished:
                over.add(stream)
                number = cast(int, stream.stream_id)
                del self._streams[number]
                if number & 1 == self._is_client:  # the peer's: it may open another (RFC 9000, 4.6)
                    self._stream_limit(number).value += 1
            elif _is_busy(stream):
                busy.append(stream)
        if over:
            self._streams_queue = [stream for stream in self._streams_queue if stream not in over]
        return busy

    def _announce(self, front: _Front, space: QuicPacketSpace, busy: list[QuicStream]) -> bool:
        """Windows, the ends of streams, and pings; whether there was room for all of them."""
        builder = cast(QuicPacketBuilder, front)
        try:
            self._write_connection_limits(builder, space)
            for stream in busy:
                self._write_stream_limits(builder, space, stream)
                if stream.receiver.stop_pending:
                    self._write_stop_sending_frame(builder, stream)
                if stream.sender.reset_pending:
                    self._write_reset_stream_frame(builder, stream)
            if self._ping_pending:
                self._write_ping_frame(builder, self._ping_pending)
                self._ping_pending.clear()
            if self._probe_pending:
                self._write_ping_frame(builder)
                self._probe_pending = False
        except QuicPacketBuilderStop:
            return False
        return True

    def _run(
        self,
        keys: Keys,
        cid: bytes,
        room: int,
        most: int,
        turn: deque[QuicStream],
        made: list[bytes],
        packets: list[Sent],
        now: float,
    ) -> int:
        """Packets that one stream fills; how many there were, and whose turn is next."""
        stream = turn[0]
        sender = stream.sender
        piece = self._next_piece(stream)
        if piece is None:
            return 0
        start, stop = piece
        if stop == sender._buffer_fin:
            stop -= 1  # the packet with the end of the stream says so
        if stop <= start:
            return 0
        run = keys.seal_run(
            cid,
            self._packet_number,
            cast(int, stream.stream_id),
            start,
            sender._buffer,
            start - sender._buffer_start,
            stop - start,
            room,
            most,
        )
        if not run:
            return 0
        number = self._packet_number
        for datagram, begin, end in run:
            made.append(datagram)
            packets.append(Sent(number, now, len(datagram), True, (), sender, begin, end))
            number += 1
        self._packet_number = number
        self._took(sender, start, end)
        turn.rotate(-1)
        return len(run)

    def _took(self, sender: QuicStreamSender, start: int, end: int) -> None:
        """The stream's bytes from `start` to `end` are in packets."""
        if end > start:
            sender._pending.subtract(start, end)
        if end > sender.highest_offset:
            self._remote_max_data_used += end - sender.highest_offset
            sender.highest_offset = end

    def _fill(
        self,
        keys: Keys,
        cid: bytes,
        room: int,
        frames: bytes,
        handlers: list[Handler],
        turn: deque[QuicStream],
    ) -> tuple[bytes | None, bytes]:
        """Data behind `frames`: the datagram if that is full, and the frames otherwise."""
        while turn:
            stream = turn[0]
            sender = stream.sender
            piece = self._next_piece(stream)
            if piece is None:
                turn.popleft()
                continue
            start, stop = piece
            number = cast(int, stream.stream_id)
            here = room - len(frames) - stream_overhead(number, start)
            if here <= 0:
                break
            end = min(stop, start + here)
            fin = end == sender._buffer_fin
            self._took(sender, start, end)
            if fin:
                sender._pending_eof = False
            handlers.append((sender.on_data_delivery, (start, end, fin)))
            at, size = start - sender._buffer_start, end - start
            if size + 2 < here:  # room is left for another
                frames += stream_frame(number, start, sender._buffer, at, size, fin)
                continue
            turn.rotate(-1)
            return (
                keys.seal_stream(
                    cid, self._packet_number, frames, number, start, sender._buffer, at, size, fin
                ),
                frames,
            )
        return None, frames

    def _next_piece(self, stream: QuicStream) -> tuple[int, int] | None:
        """From where to where the peer's windows let the stream send next; None: nothing."""
        sender = stream.sender
        if sender._reset_error_code is not None:
            return None
        if len(sender._pending) == 0:
            if sender._pending_eof:
                end = cast(int, sender._buffer_fin)
                return end, end
            sender.buffer_is_empty = True
            return None
        first = sender._pending[0]
        allowed = min(
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
            stream.max_stream_data_remote,
        )
        stop = min(first.stop, allowed)
        return (first.start, stop) if stop > first.start else None

    # How large

    def _probe_mtu(self, keys: Keys, cid: bytes, made: list[bytes], packets: list[Sent], now: float) -> None:
        """A padded PING that is no congestion when it is lost (RFC 9000, 14.4)."""
        loss = self._recovery
        size = self.mtu.probe(now, loss._rtt_smoothed) if loss._rtt_initialized else None
        if size is None:
            return
        made.append(keys.seal(cid, self._packet_number, _PING, size))
        probe = Sent(self._packet_number, now, size, True, [(self._mtu_probed, (size,))])
        probe.in_flight = False
        packets.append(probe)
        self._packet_number += 1

    def _mtu_probed(self, delivery: QuicDeliveryState, size: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self.mtu.passed(size, self._now)
            self._resize()
        else:
            self.mtu.lost(size, self._now)

    def _resize(self) -> None:
        if self._max_datagram_size != self.mtu.size:
            self._max_datagram_size = self.mtu.size
            self._recovery.resize(self.mtu.size)

    def path_changed(self) -> None:
        """What the peer's new place carries is not known yet."""
        self.mtu.begin_again()
        self._resize()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        told = pull_quic_transport_parameters(Buffer(data=data)).max_udp_payload_size
        if told is not None:
            self.mtu.limit(told)

    def handle_timer(self, now: float) -> None:
        """A deadline is over."""
        self._now = now
        super().handle_timer(now)
        if self._recovery._pto_count >= SWALLOWED:
            self.mtu.begin_again()
            self._resize()
