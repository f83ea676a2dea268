"""The QUIC engine that is there: aioquic, with what libp2p needs and its public names do not offer.

The private names that are used are listed in tests/transport/test_quic_aioquic.py, with what is expected of
each: it fails with an aioquic that has changed one. They serve five ends:
- certificates are demanded of clients, and both sides' are judged within the handshake;
- stateless reset tokens outlive the process;
- windows open as bytes are read, where aioquic opens them as bytes come;
- it is known how much is unsent and unacknowledged, and why a connection ended;
- packets of data cost little (quic_datapath.py, over quic_recovery.py, quic_pacing.py and quic_mtu.py).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.quic.stream import QuicStream
from cryptography import x509

from flare.config import QuicLimits
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    NetworkError,
    ProtocolViolation,
    ResourceLimit,
)
from flare.transport import certificate
from flare.transport.quic_datapath import DataPath
from flare.transport.quic_engine import ALPN, NO_ERROR, VERSION_1, Address, Events, Initial, Verify
from flare.transport.quic_window import Window
from flare.wire.keys import Identity

CID: Final = 8  # bytes of our connection ids
_TOKEN: Final = 16
_LONGEST_RESET: Final = 43  # bytes: as an acknowledgement, so that it tells watchers little (RFC 9000, 10.3)
_STREAM_UNSENT: Final = 256 * 1024  # bytes: a stream with as many unsent takes no more
# bytes of what TLS says at once, ours: aioquic holds 16 KiB for each, for as long as the connection lasts
_TLS_MESSAGES: Final = {tls.Epoch.INITIAL: 2048, tls.Epoch.HANDSHAKE: 8192, tls.Epoch.ONE_RTT: 1024}
_ALERTS: Final = range(QuicErrorCode.CRYPTO_ERROR, QuicErrorCode.CRYPTO_ERROR + 0x100)
_ABOUT_CERTIFICATES: Final = frozenset((42, 43, 44, 45, 46, 48, 49, 116))  # TLS alerts (RFC 8446, 6)


class AlertCertificateRequired(tls.Alert):
    """The client showed no certificate (RFC 8446, 4.4.2.4)."""

    description = tls.AlertDescription.certificate_required


class AioquicEngine:
    """flare.transport.quic_engine.Engine on aioquic."""

    name: Final = f"aioquic {version('aioquic')}"

    def __init__(self, identity: Identity, limits: QuicLimits) -> None:
        self._identity = identity
        self.limits = limits
        self._tokens = QuicRetryTokenHandler()
        # a signature that nobody else can make, and the same in the next process: resets survive a crash
        self._reset_key = hashlib.sha256(identity.sign(b"flare stateless reset")).digest()

    def connect(self, remote: Address, verify: Verify, events: Events, now: float) -> AioquicConnection:
        """A connection to be made."""
        quic = _Quic(self, verify, configuration=self._configuration(is_client=True))
        connection = AioquicConnection(quic, events, self.limits, now)
        quic.connect(remote, now)
        return connection

    def accept(
        self, initial: Initial, original: bytes | None, verify: Verify, events: Events
    ) -> AioquicConnection:
        """A connection that a client begins."""
        quic = _Quic(
            self,
            verify,
            configuration=self._configuration(is_client=False),
            original_destination_connection_id=original or initial.destination,
            retry_source_connection_id=initial.destination if original is not None else None,
        )
        return AioquicConnection(quic, events, self.limits, 0.0)

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        own = certificate.own(self._identity)
        limits = self.limits
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            congestion_control_algorithm="cubic",
            connection_id_length=CID,
            idle_timeout=limits.idle_timeout,
            is_client=is_client,
            max_data=limits.connection_window,
            max_stream_data=limits.stream_window,
            max_datagram_size=limits.datagram_size,
            supported_versions=[VERSION_1],
            verify_mode=0,  # ssl.CERT_NONE: no authority is asked, `verify` is
        )
        configuration.certificate = x509.load_der_x509_certificate(own.der)
        configuration.private_key = own.key
        return configuration

    def reset_token(self, cid: bytes) -> bytes:
        """What proves that a stateless reset of the connection `cid` is ours (RFC 9000, 10.3.2)."""
        return hmac.digest(self._reset_key, cid, "sha256")[:_TOKEN]

    # Datagrams without a connection

    def initial(self, data: bytes) -> Initial | None:
        """What a datagram of 1200 bytes or more begins with, if it starts a connection."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID)
        except ValueError:
            return None
        if header.packet_type != QuicPacketType.INITIAL or header.version != VERSION_1:
            return None
        return Initial(header.destination_cid, header.source_cid, header.token)

    def retry(self, initial: Initial, remote: Address, now: float) -> bytes:
        """The datagram that has a client prove its address (RFC 9000, 8.1.2)."""
        cid = os.urandom(CID)
        token = self._tokens.create_token(
            address=remote,
            original_destination_connection_id=initial.destination,
            retry_source_connection_id=cid,
            now=now,
        )
        return encode_quic_retry(VERSION_1, cid, initial.source, initial.destination, token)

    def proved(self, initial: Initial, remote: Address, now: float) -> bytes | None:
        """The connection id that the client made up first, if its token proves its address; else None."""
        try:
            return self._tokens.validate_token(
                address=remote, destination_cid=initial.destination, token=initial.token, now=now
            )
        except ValueError:
            return None

    def invalid_token(self, initial: Initial) -> bytes:
        """The datagram that refuses a client for its token (RFC 9000, 8.1.3)."""
        crypto = CryptoPair()
        crypto.setup_initial(cid=initial.destination, is_client=False, version=VERSION_1)
        builder = QuicPacketBuilder(
            host_cid=initial.destination,
            is_client=False,
            max_datagram_size=1200,
            peer_cid=initial.source,
            version=VERSION_1,
        )
        builder.start_packet(QuicPacketType.INITIAL, crypto)
        frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=17)
        frame.push_uint_var(QuicErrorCode.INVALID_TOKEN)
        frame.push_uint_var(QuicFrameType.PADDING)
        frame.push_uint_var(0)
        datagrams, _ = builder.flush()
        return datagrams[0]

    def negotiate_version(self, data: bytes) -> bytes | None:
        """The answer to a datagram in a version that is none of ours (RFC 9000, 6)."""
        at = 6 + data[5]
        destination, size = data[6:at], data[at]
        source = data[at + 1 : at + 1 + size]
        if len(source) != size:
            return None
        return encode_quic_version_negotiation(destination, source, [VERSION_1])

    def stateless_reset(self, data: bytes) -> bytes | None:
        """The answer to a datagram of a connection that nobody knows (RFC 9000, 10.3)."""
        size = min(len(data) - 1, _LONGEST_RESET)  # shorter than what it answers, so that two never loop
        random = bytearray(os.urandom(size - _TOKEN))
        random[0] = 0x40 | (random[0] & 0x3F)
        return bytes(random) + self.reset_token(data[1 : 1 + CID])


class _Quic(DataPath):
    """aioquic's connection, with the certificates, windows and reset tokens of libp2p."""

    def __init__(self, engine: AioquicEngine, verify: Verify, **how: Any) -> None:
        super().__init__(engine.limits, **how)
        self._engine = engine
        self._verify = verify
        self.failure: Exception | None = None  # why we ended the handshake
        self.by_peer = False  # the peer closed it
        self.on_token: Callable[[bytes], None] = lambda _: None
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0
        streams = self._local_max_streams_bidi
        streams.value = streams.sent = engine.limits.max_streams
        self._sign_tokens()

    # Certificates

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._crypto_buffers = {epoch: Buffer(capacity=size) for epoch, size in _TLS_MESSAGES.items()}
        context = self.tls
        context._request_client_certificate = not self._is_client
        take, client_certificate = context._set_peer_certificate, context._server_handle_certificate

        def judge(shown: tls.Certificate) -> None:
            self._judge([der for der, _ in shown.certificates])
            take(shown)

        def demand(message: Buffer) -> None:
            client_certificate(message)
            if context._peer_certificate is None:
                self._judge([])

        context._set_peer_certificate = judge  # type: ignore[method-assign,assignment]
        context._server_handle_certificate = demand  # type: ignore[method-assign,assignment]

    def _judge(self, chain: Sequence[bytes]) -> None:
        try:
            self._verify(chain)
        except AuthenticationFailed as error:
            self.failure = error
            alert = tls.AlertBadCertificate if chain else AlertCertificateRequired
            raise alert(str(error)) from error

    # Reset tokens

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._sign_tokens()

    def _sign_tokens(self) -> None:
        for cid in self._host_cids:
            if not cid.was_sent or (cid.sequence_number == 0 and not self._is_client):
                cid.stateless_reset_token = self._engine.reset_token(cid.cid)

    def _consume_peer_cid(self) -> None:
        super()._consume_peer_cid()
        self.on_token(self._peer_cid.stateless_reset_token)

    # Windows

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: Any) -> None:
        streams = self._local_max_streams_bidi
        for limit in (self._local_max_data, streams):
            if limit.value == limit.sent:
                continue
            if limit is streams and limit.sent - limit.used >= limit.value - limit.sent:
                continue  # many at once
            frame = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            frame.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: Any, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        frame.push_uint_var(cast(int, stream.stream_id))
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    # Its end

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        self.by_peer = not is_initiator
        super()._close_begin(is_initiator, now)


class AioquicConnection:
    """flare.transport.quic_engine.EngineConnection on aioquic."""

    def __init__(self, quic: _Quic, sink: Events, limits: QuicLimits, now: float) -> None:
        self._quic = quic
        self._sink = sink
        self._limits = limits
        self._now = now
        self._window = Window(limits.connection_window, limits.max_connection_window)
        self._windows: WeakKeyDictionary[QuicStream, Window] = WeakKeyDictionary()
        self._taken = 0  # bytes of all streams that were taken, less those that will never be sent
        self._received = 0  # datagrams since `datagrams` was asked
        self._by_us = False
        self._over = False
        quic.on_token = sink.token_learned
        quic.on_data = sink.stream_data
        quic.on_events = self._tell
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.StreamDataReceived: self._stream_data,
            events.StreamReset: self._stream_reset,
            events.StopSendingReceived: self._stop_sending,
            events.HandshakeCompleted: self._handshake_completed,
            events.PingAcknowledged: lambda event: sink.pong(event.uid),
            events.ConnectionIdIssued: lambda event: sink.cid_issued(event.connection_id),
            events.ConnectionIdRetired: lambda event: sink.cid_retired(event.connection_id),
        }

    @property
    def cids(self) -> Sequence[bytes]:
        """The connection ids that datagrams for it carry now."""
        return [cid.cid for cid in self._quic._host_cids]

    @property
    def remote(self) -> Address:
        """Where the peer is now."""
        return cast(Address, self._quic.get_peer_address())

    @property
    def rtt(self) -> float:
        """The smoothed round trip in seconds; 0: not measured yet."""
        return self._quic._loss._rtt_smoothed

    @property
    def idle_timeout(self) -> float:
        """Seconds after which either side gives up."""
        theirs = self._quic._remote_max_idle_timeout
        return min(self._limits.idle_timeout, theirs) if theirs else self._limits.idle_timeout

    @property
    def in_flight(self) -> bool:
        """Stream data was taken and is not acknowledged yet."""
        for stream in self._quic._streams.values():
            sender = stream.sender
            if sender._reset_error_code is not None or sender.is_finished:
                continue
            if sender._buffer_stop > sender._buffer_start:
                return True
            if sender._buffer_fin is not None and not sender._acked_fin:
                return True
        return False

    def receive(self, datagrams: Sequence[bytes], remote: Address, now: float) -> None:
        """Datagrams came."""
        self._now = now
        self._received += len(datagrams)
        self._quic.receive_datagrams(datagrams, remote, now)
        self._tell()

    def datagrams(self, now: float) -> list[tuple[bytes, Address]]:
        """What to send now."""
        self._now = now
        if self._over or not self._quic._network_paths:
            return []
        space = self._quic._spaces.get(tls.Epoch.ONE_RTT)
        if self._received > 1 and space is not None and space.ack_at is not None:
            space.ack_at = now  # aioquic waits for a millisecond, however many came (RFC 9000, 13.2.2)
        self._received = 0
        made: list[tuple[bytes, Address]] = self._quic.datagrams_to_send(now)
        self._tell()
        return made

    def deadline(self) -> float | None:
        """When to call `expire`; None: never."""
        return None if self._over or self._quic._close_at is None else self._quic.get_timer()

    def expire(self, now: float) -> None:
        """The deadline is over."""
        self._now = now
        self._quic.handle_timer(now)
        self._tell()

    # Streams

    def open_stream(self) -> int:
        """A new bidirectional stream. ResourceLimit while too many wait for the peer to allow them."""
        if len(self._quic._streams_blocked_bidi) >= self._limits.backlog:
            raise ResourceLimit(
                f"{self._limits.backlog} streams wait for the peer to allow them (QuicLimits.backlog)"
            )
        stream = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream, b"")
        return stream

    def write(self, stream: int, data: bytes | bytearray | memoryview) -> int:
        """Take what there is room for; returns how many bytes."""
        room = min(self._room(stream), len(data))
        if room > 0:
            self._quic.send_stream_data(stream, data[:room] if room < len(data) else data)  # type: ignore[arg-type]
            self._taken += room
            return room
        return 0

    def writable(self, stream: int) -> bool:
        """`write` would take something."""
        return self._room(stream) > 0

    def _room(self, stream: int) -> int:
        state = self._quic._streams.get(stream)
        if state is None:
            return 0
        sender = state.sender
        return min(
            _STREAM_UNSENT - (sender._buffer_stop - sender.highest_offset),
            self._limits.send_high_water - (self._taken - self._quic._remote_max_data_used),
        )

    def finish(self, stream: int) -> None:
        """No more to send on it (FIN)."""
        self._quic.send_stream_data(stream, b"", end_stream=True)

    def reset(self, stream: int, code: int) -> None:
        """Give up sending on it."""
        state = self._quic._streams.get(stream)
        if state is not None and state.sender._reset_error_code is None and not state.sender.is_finished:
            self._forget_unsent(state)
            self._quic.reset_stream(stream, code)

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to send no more on it."""
        state = self._quic._streams.get(stream)
        if state is not None and not state.receiver.is_finished:
            self._quic.stop_stream(stream, code)

    def consumed(self, stream: int, size: int, *, again: bool) -> None:
        """`size` bytes of a stream are done with."""
        quic, now, rtt = self._quic, self._now, self.rtt
        self._window.consumed += size
        quic._local_max_data.value = self._window.limit(quic._local_max_data.value, now, rtt)
        state = quic._streams.get(stream)
        if state is None:
            return
        window = self._windows.get(state)
        if window is None:
            window = Window(self._limits.stream_window, self._limits.max_stream_window)
            self._windows[state] = window
        window.consumed += size
        if again and not state.receiver.is_finished:
            state.max_stream_data_local = window.limit(state.max_stream_data_local, now, rtt)

    def ping(self, uid: int) -> None:
        """Have something acknowledged."""
        self._quic.send_ping(uid)

    def close(self, code: int, reason: str) -> None:
        """Close at once; the peer is told by what `datagrams` gives next."""
        if self._quic._close_event is None:
            self._by_us = True
            self._quic.close(error_code=code, reason_phrase=reason)

    # What happened

    def _tell(self) -> None:
        quic = self._quic
        handlers = self._handlers
        waiting = quic._events
        while waiting:
            event = waiting.popleft()
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)
        if quic._close_event is not None and not quic._close_pending and not self._over:
            self._over = True
            self._sink.terminated(self._reason(quic._close_event))

    def _handshake_completed(self, event: events.HandshakeCompleted) -> None:
        if token := self._quic._peer_cid.stateless_reset_token:
            self._sink.token_learned(token)
        self._sink.established()

    def _stream_data(self, event: events.StreamDataReceived) -> None:
        self._sink.stream_data(event.stream_id, event.data, event.end_stream)

    def _stream_reset(self, event: events.StreamReset) -> None:
        state = self._quic._streams.get(event.stream_id)
        if state is not None:  # what is unread or never came counts as read: the connection's window goes on
            window = self._windows.get(state)
            done = window.consumed if window is not None else 0
            self.consumed(event.stream_id, state.receiver.highest_offset - done, again=False)
        self._sink.stream_reset(event.stream_id, event.error_code)

    def _stop_sending(self, event: events.StopSendingReceived) -> None:
        state = self._quic._streams.get(event.stream_id)
        if state is not None:
            self._forget_unsent(state)
        self._sink.stop_sending(event.stream_id, event.error_code)

    def _forget_unsent(self, state: QuicStream) -> None:
        self._taken -= state.sender._buffer_stop - state.sender.highest_offset

    def _reason(self, event: events.ConnectionTerminated) -> Exception | None:
        if self._quic.failure is not None:
            return self._quic.failure
        code, reason = event.error_code, event.reason_phrase
        if self._by_us:
            return None
        if reason == "Idle timeout" and not self._quic.by_peer:
            return ConnectionClosed(f"nothing came from the peer for {self._limits.idle_timeout:g} s")
        if code in _ALERTS:
            who = "the peer ended" if self._quic.by_peer else "we ended"
            alert = code - QuicErrorCode.CRYPTO_ERROR
            kind = AuthenticationFailed if alert in _ABOUT_CERTIFICATES else ProtocolViolation
            return kind(
                f"{who} the handshake with TLS alert {_alert_name(alert)} {reason}".strip(), protocol="quic"
            )
        if not self._quic.by_peer:
            if code == QuicErrorCode.INTERNAL_ERROR:
                return NetworkError(f"quic: {reason}")
            return ProtocolViolation(f"{_error_name(code)}: {reason}", protocol="quic")
        if code == NO_ERROR:
            return ConnectionClosed("the peer closed the connection")
        if event.frame_type is None:
            return ConnectionClosed(f"the peer closed the connection with code {code} {reason}".strip())
        return ConnectionClosed(f"the peer closed the connection: {_error_name(code)} {reason}".strip())


def _alert_name(alert: int) -> str:
    try:
        return f"{alert} ({tls.AlertDescription(alert).name})"
    except ValueError:
        return str(alert)


def _error_name(code: int) -> str:
    try:
        return QuicErrorCode(code).name
    except ValueError:
        return f"error {code:#x}"
