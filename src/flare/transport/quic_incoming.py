"""What comes to a QUIC connection: packets of data by a way of our own, all else by aioquic's.

A packet is opened and taken apart in `flare._core.quic`; what its frames bring to streams in order goes
straight to who reads. Whatever is unusual is left to aioquic: see quic_datapath.py, which is the other half.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoContext, CryptoPair, derive_key_iv_hp
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import StreamFinishedError

from flare._core import aead
from flare._core.quic import Keys, available
from flare.transport.quic_pacing import Pacer
from flare.transport.quic_recovery import Recovery

CONNECTED: Final = QuicConnectionState.CONNECTED  # an Enum is slow as a key, and in a set
ONE_RTT: Final = tls.Epoch.ONE_RTT
_TLS_LATER: Final = 1024  # bytes of what TLS may say after the handshake, which is nothing without tickets
_HANDLERS: Final = "_QuicConnection__frame_handlers"
_EPOCHS: Final[dict[frozenset[tls.Epoch], frozenset[tls.Epoch]]] = {}  # of which each is needed once
_KINDS: Final = {
    tls.CipherSuite.AES_128_GCM_SHA256: aead.AES_128_GCM,
    tls.CipherSuite.AES_256_GCM_SHA384: aead.AES_256_GCM,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256: aead.CHACHA20_POLY1305,
}


class _Quiet:
    """Instead of aioquic's logger, which warns of what strangers send and costs time on each packet."""

    def debug(self, *_: object) -> None: ...
    def info(self, *_: object) -> None: ...
    def warning(self, *_: object) -> None: ...
    def error(self, *_: object) -> None: ...


_QUIET: Final[Any] = _Quiet()


class Direction:
    """The keys of one direction, made from aioquic's; header protection keeps its first (RFC 9001, 6)."""

    __slots__ = ("_mask_key", "_secret", "keys")

    def __init__(self) -> None:
        self.keys: Keys | None = None
        self._secret: bytes | None = None
        self._mask_key: bytes | None = None

    def follows(self, context: CryptoContext) -> bool:
        """They are still aioquic's."""
        return self._secret is context.secret and self._secret is not None

    def follow(self, context: CryptoContext) -> None:
        """After a key update, and at first."""
        if context.cipher_suite is None or context.secret is None or context.version is None:
            return
        key, iv, mask_key = derive_key_iv_hp(
            cipher_suite=context.cipher_suite, secret=context.secret, version=context.version
        )
        self._mask_key = self._mask_key or mask_key
        self._secret = context.secret
        self.keys = Keys(_KINDS[context.cipher_suite], key, iv, self._mask_key, context.key_phase)


class Incoming(QuicConnection):
    """aioquic's connection with a way of its own for packets of data that come.

    `on_data` gets what streams brought by it, `on_events` is told that aioquic has events.
    """

    def __init__(self, datagram_size: int, **how: Any) -> None:
        super().__init__(**how)
        self._logger = _QUIET
        handlers: dict[int, tuple[Any, frozenset[tls.Epoch]]] = getattr(self, _HANDLERS)
        for kind, (handler, epochs) in handlers.items():  # 7 KiB for each connection otherwise
            handlers[kind] = handler, _EPOCHS.setdefault(epochs, epochs)
        self._recovery = Recovery(
            datagram_size=datagram_size,
            pacer=Pacer(datagram_size),
            initial_rtt=self._configuration.initial_rtt,
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
            logger=_QUIET,
        )
        self._loss = self._recovery
        self.on_data: Callable[[int, bytes, bool], None] = lambda *_: None
        self.on_events: Callable[[], None] = lambda: None
        self._in, self._out = Direction(), Direction()
        self._pair: CryptoPair  # of 1-RTT packets, as `_space`
        self._space: QuicPacketSpace
        self._keyed_at = 0  # our packet number when the keys were new
        self._now = 0.0

    # Keys

    def _take_keys(self) -> None:
        """Once the handshake is confirmed, and after key updates."""
        if not self._handshake_confirmed or not available():
            return
        if self._in.keys is None:
            self._crypto_buffers = {ONE_RTT: Buffer(capacity=_TLS_LATER)}  # the handshake is over
        pair = self._pair = self._cryptos[ONE_RTT]
        self._space = self._spaces[ONE_RTT]
        for direction, context in ((self._in, pair.recv), (self._out, pair.send)):
            if not direction.follows(context):
                direction.follow(context)
                self._keyed_at = self._packet_number

    # In

    def receive_datagrams(self, datagrams: Sequence[bytes], addr: Any, now: float) -> None:
        """Datagrams came, all from one place. `on_data` and `on_events` are called."""
        self._now = now
        done = 0
        while done < len(datagrams):
            if self._is_simple(addr):
                done += self._receive_run(datagrams, done, now)
            if done < len(datagrams):
                self.receive_datagram(datagrams[done], addr, now)
                self.on_events()
                done += 1

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """One datagram, by the long way."""
        path = self._network_paths[0] if self._network_paths else None
        super().receive_datagram(data, addr, now)
        self._take_keys()
        if path is not None and path is not self._network_paths[0]:
            self.path_changed()

    def path_changed(self) -> None:
        """The peer is somewhere else now."""

    def _is_simple(self, addr: Any) -> bool:
        """From the path in use, under keys that are here, on a connection that is neither new nor over."""
        if self._in.keys is None:
            return False
        path = self._network_paths[0]
        return (
            path.addr == addr
            and path.is_validated
            and self._state is CONNECTED
            and not self._close_pending
            and self._in.follows(self._pair.recv)
        )

    def _receive_run(self, datagrams: Sequence[bytes], first: int, now: float) -> int:
        """Take datagrams from `first` on, up to one that is not for here; returns how many."""
        space, keys, cid = self._space, self._in.keys, self._cid_of(datagrams[first])
        assert keys is not None
        came: dict[int, list[bytes]] = {}
        at = first
        for at in range(first, len(datagrams)):
            opened = keys.open(datagrams[at], cid, space.expected_packet_number)
            if opened is None:
                break
            number, payload, acked, delay, pieces, eliciting = opened
            if number in space.received_packets:
                continue
            if number >= space.expected_packet_number:
                space.expected_packet_number = number + 1
            try:
                if pieces is None:
                    eliciting, _ = self._payload_received(self._context(cid, now), cast(bytes, payload))
                else:
                    if acked is not None:
                        self._check_sent(acked[-1][1] - 1)
                        seconds = (delay << self._remote_ack_delay_exponent) / 1e6
                        self._recovery.acked(acked, seconds, now, space)
                    for piece in pieces:
                        self._take_piece(came, now, *piece)
            except QuicConnectionError as error:
                self.close(error.error_code, error.frame_type, error.reason_phrase)
            if self._close_pending or self._state is not CONNECTED:
                at = len(datagrams)  # the others come too late
                break
            if number > space.largest_received_packet:
                space.largest_received_packet = number
                space.largest_received_time = now
            space.ack_queue.add(number)
            space.received_packets.add(number)
            if len(space.ack_queue) > MAX_ACK_RANGES:
                space.ack_queue.shift()
            if eliciting and space.ack_at is None:
                space.ack_at = now + self._ack_delay
            if self._events:  # what was unusual may have changed what is simple
                at += 1
                break
        else:
            at = len(datagrams)
        if at > first and self._state is CONNECTED and not self._close_pending:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = False
        for stream, parts in came.items():
            self.on_data(stream, parts[0] if len(parts) == 1 else b"".join(parts), False)
        if self._events:
            self.on_events()
        return at - first

    def _cid_of(self, data: bytes) -> bytes:
        """The id that packets may come to: any of a client's own; a server follows its peer's choice."""
        if self._is_client:
            cid = data[1 : 1 + len(self.host_cid)]
            if any(cid == ours.cid for ours in self._host_cids):
                return cid
        return self.host_cid

    def _check_sent(self, largest: int) -> None:
        """RFC 9000, 13.1: an acknowledgement of what was never sent is a lie."""
        if largest >= self._packet_number:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.ACK, f"packet {largest} was never sent"
            )

    def _context(self, cid: bytes, now: float) -> QuicReceiveContext:
        return QuicReceiveContext(
            epoch=ONE_RTT,
            host_cid=cid,
            network_path=self._network_paths[0],
            quic_logger_frames=None,
            time=now,
            version=None,
        )

    def _take_piece(
        self, came: dict[int, list[bytes]], now: float, number: int, offset: int, data: bytes, fin: bool
    ) -> None:
        """The next bytes of a stream go to `came`; all else that a STREAM frame may be is aioquic's."""
        stream = self._streams.get(number)
        size = len(data)
        if stream is not None and size and not fin and not self._events:
            receiver, window = stream.receiver, self._local_max_data
            if (
                offset == receiver._buffer_start == receiver.highest_offset
                and receiver._final_size is None
                and not receiver.is_finished
                and offset + size <= stream.max_stream_data_local
                and window.used + size <= window.value
            ):
                receiver._buffer_start = receiver.highest_offset = offset + size
                window.used += size
                if number in came:
                    came[number].append(data)
                else:
                    came[number] = [data]
                return
        frame = Buffer(capacity=size + 24)
        frame.push_uint_var(number)
        frame.push_uint_var(offset)
        frame.push_uint_var(size)
        frame.push_bytes(data)
        frame.seek(0)
        with contextlib.suppress(StreamFinishedError):
            self._handle_stream_frame(
                self._context(self.host_cid, now), QuicFrameType.STREAM_BASE | 6 | fin, frame
            )
