"""The private names of aioquic that the engine stands on, each with what is expected of it.

When one of these fails, an aioquic has changed below us: read the place, adapt transport/quic_aioquic.py,
quic_incoming.py, quic_datapath.py or quic_recovery.py, and move the range in pyproject.toml.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection as quic_connection
from aioquic.quic import recovery
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion import cubic
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStream, QuicStreamReceiver

import flare.transport.quic_aioquic as engine
from flare.transport import quic_datapath, quic_incoming, quic_recovery

HERE = ("127.0.0.1", 1)


def client() -> QuicConnection:
    """A connection that has sent its first flight."""
    configuration = QuicConfiguration(alpn_protocols=["libp2p"], congestion_control_algorithm="cubic")
    made = QuicConnection(configuration=configuration)
    made.connect(HERE, time.monotonic())
    return made


def source(function: Any) -> str:
    return inspect.getsource(function)


NONE = type(None)

# (where, name, what is expected of it)
ATTRIBUTES = [
    ("connection", "_ack_delay", float),
    ("connection", "_ack_eliciting_sent_since_receipt", bool),
    ("connection", "_close_at", float),
    ("connection", "_close_event", NONE),
    ("connection", "_close_pending", bool),
    ("connection", "_configuration", QuicConfiguration),
    ("connection", "_crypto_buffers", dict),
    ("connection", "_crypto_streams", dict),
    ("connection", "_cryptos", dict),
    ("connection", "_events", deque),
    ("connection", "_handshake_confirmed", bool),
    ("connection", "_handshake_done_pending", bool),
    ("connection", "_host_cids", list),
    ("connection", "_is_client", bool),
    ("connection", "_local_max_data", Limit),
    ("connection", "_local_max_streams_bidi", Limit),
    ("connection", "_local_max_streams_uni", Limit),
    ("connection", "_logger", quic_connection.QuicConnectionAdapter),
    ("connection", "_loss", recovery.QuicPacketRecovery),
    ("connection", "_max_datagram_size", int),
    ("connection", "_network_paths", list),
    ("connection", "_pacing_at", NONE),
    ("connection", "_packet_number", int),
    ("connection", "_peer_cid", quic_connection.QuicConnectionId),
    ("connection", "_ping_pending", list),
    ("connection", "_probe_pending", bool),
    ("connection", "_remote_ack_delay_exponent", int),
    ("connection", "_remote_max_data", int),
    ("connection", "_remote_max_data_used", int),
    ("connection", "_remote_max_idle_timeout", NONE),
    ("connection", "_remote_preferred_address", NONE),
    ("connection", "_retire_connection_ids", list),
    ("connection", "_spaces", dict),
    ("connection", "_state", quic_connection.QuicConnectionState),
    ("connection", "_streams", dict),
    ("connection", "_streams_blocked_bidi", list),
    ("connection", "_streams_blocked_pending", bool),
    ("connection", "_streams_queue", list),
    ("loss", "_cc", cubic.CubicCongestionControl),
    ("loss", "_pacer", recovery.QuicPacketPacer),
    ("loss", "_pto_count", int),
    ("loss", "_rtt_first_sample_time", float),
    ("loss", "_rtt_initialized", bool),
    ("loss", "_rtt_latest", float),
    ("loss", "_rtt_min", float),
    ("loss", "_rtt_smoothed", float),
    ("loss", "_rtt_variance", float),
    ("loss", "_time_of_last_sent_ack_eliciting_packet", float),
    ("loss", "_logger", quic_connection.QuicConnectionAdapter),
    ("cubic", "_W_est", int),
    ("cubic", "_W_max", int),
    ("cubic", "_congestion_recovery_start_time", float),
    ("cubic", "_cwnd_epoch", int),
    ("cubic", "_first_slow_start", bool),
    ("cubic", "_max_datagram_size", int),
    ("cubic", "_starting_congestion_avoidance", bool),
    ("cubic", "_t_epoch", float),
    ("pair", "_update_key_requested", bool),
    ("tls", "_request_client_certificate", bool),
    ("tls", "_peer_certificate", NONE),
    ("receiver", "_buffer_start", int),
    ("receiver", "_final_size", NONE),
    ("sender", "_acked_fin", bool),
    ("sender", "_buffer", bytearray),
    ("sender", "_buffer_fin", NONE),
    ("sender", "_buffer_start", int),
    ("sender", "_buffer_stop", int),
    ("sender", "_pending", RangeSet),
    ("sender", "_pending_eof", bool),
    ("sender", "_reset_error_code", NONE),
]

# (class, name, its parameters): those that are overridden or replaced, and those that the overrides call
METHODS = [
    (QuicConnection, "_close_begin", ["self", "is_initiator", "now"]),
    (QuicConnection, "_consume_peer_cid", ["self"]),
    (QuicConnection, "_handle_stream_frame", ["self", "context", "frame_type", "buf"]),
    (QuicConnection, "_idle_timeout", ["self"]),
    (QuicConnection, "_initialize", ["self", "peer_cid"]),
    (QuicConnection, "_on_connection_limit_delivery", ["self", "delivery", "limit"]),
    (QuicConnection, "_on_max_stream_data_delivery", ["self", "delivery", "stream"]),
    (QuicConnection, "_parse_transport_parameters", ["self", "data", "from_session_ticket"]),
    (QuicConnection, "_payload_received", ["self", "context", "plain", "crypto_frame_required"]),
    (QuicConnection, "_replenish_connection_ids", ["self"]),
    (QuicConnection, "_send_probe", ["self"]),
    (QuicConnection, "_stream_limit", ["self", "stream_id"]),
    (QuicConnection, "_write_ack_frame", ["self", "builder", "space", "now"]),
    (QuicConnection, "_write_connection_limits", ["self", "builder", "space"]),
    (QuicConnection, "_write_ping_frame", ["self", "builder", "uids", "comment"]),
    (QuicConnection, "_write_reset_stream_frame", ["self", "builder", "stream"]),
    (QuicConnection, "_write_stop_sending_frame", ["self", "builder", "stream"]),
    (QuicConnection, "_write_stream_limits", ["self", "builder", "space", "stream"]),
    (recovery.QuicPacketRecovery, "_detect_loss", ["self", "now", "space"]),
    (tls.Context, "_set_peer_certificate", ["self", "certificate"]),
    (tls.Context, "_server_handle_certificate", ["self", "input_buf"]),
]


@pytest.mark.parametrize(("where", "name", "kind"), ATTRIBUTES, ids=lambda value: str(value))
def test_an_attribute_is_there(where: str, name: str, kind: type) -> None:
    made = client()
    assert isinstance(getattr(holders(made)[where], name), kind)


def holders(made: QuicConnection) -> dict[str, Any]:
    """What has the names of ATTRIBUTES."""
    stream = QuicStream(stream_id=0)
    return {
        "connection": made,
        "loss": made._loss,
        "cubic": made._loss._cc,
        "pair": CryptoPair(),
        "tls": made.tls,
        "receiver": stream.receiver,
        "sender": stream.sender,
    }


@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS, ids=lambda value: str(value))
def test_a_method_is_there(owner: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_every_private_name_in_use_is_in_the_lists() -> None:
    used = set()
    for module in (engine, quic_datapath, quic_incoming, quic_recovery):
        text = Path(module.__file__).read_text().replace("aioquic._buffer", "")
        used |= set(re.findall(r"(?:\.|def )(_[A-Za-z]\w*)", text))
    owners = [*holders(client()).values(), *{owner for owner, _, _ in METHODS}]
    theirs = {name for name in used if any(hasattr(owner, name) for owner in owners)}
    known = {name for _, name, _ in ATTRIBUTES} | {name for _, name, _ in METHODS}
    assert theirs - {"__init__"} == known


def test_nothing_but_the_engine_knows_aioquic() -> None:
    """So that another engine can take its place."""
    source_root = Path(engine.__file__).parents[1]
    using = {
        path.name
        for path in source_root.rglob("*.py")
        if re.search("(?:from|import) aioquic", path.read_text())
    }
    assert using == {"quic_aioquic.py", "quic_datapath.py", "quic_incoming.py", "quic_recovery.py"}
    naming = {path.name for path in source_root.rglob("*.py") if "import AioquicEngine" in path.read_text()}
    assert naming == {"quic.py"}


def test_the_handlers_of_frames() -> None:
    """Which epochs a frame may come in is a set of its own for each frame and connection; ours share them."""
    handlers = getattr(client(), quic_incoming._HANDLERS)
    assert len(handlers) == 33
    assert all(isinstance(epochs, frozenset) for _, epochs in handlers.values())
    assert len({epochs for _, epochs in handlers.values()}) <= 5


def test_what_a_front_of_frames_must_have() -> None:
    """aioquic's methods write frames to ours as to a QuicPacketBuilder."""
    asked = set()
    for name in ("ack", "ping", "reset_stream", "stop_sending"):
        text = source(getattr(QuicConnection, f"_write_{name}_frame"))
        asked |= set(re.findall(r"builder\.(\w+)", text))
    assert asked == {"start_frame", "remaining_buffer_space", "packet_number", "quic_logger_frames"}
    assert asked <= {name for name in dir(quic_datapath._Front(100, 1)) if not name.startswith("_")}
    theirs = list(inspect.signature(QuicPacketBuilder.start_frame).parameters)
    assert list(inspect.signature(quic_datapath._Front.start_frame).parameters) == theirs


def test_what_a_sent_packet_must_have() -> None:
    """Lost, expired and probed packets of ours are handled by aioquic."""
    asked = set()
    for owner in (recovery.QuicPacketRecovery, cubic.CubicCongestionControl):
        asked |= set(re.findall(r"\b(?:packet|packets\[0\]|i|x)\.(\w+)", source(owner)))
    ours = quic_recovery.Sent(1, 1.0, 1200, True, True, [])
    assert asked - {name for name in dir(ours) if not name.startswith("_")} == set()


def test_every_way_into_a_burst_is_known() -> None:
    """What aioquic may send besides what `_burst` knows of is looked for by `_is_plain`."""
    text = source(QuicConnection._write_application) + source(QuicConnection.datagrams_to_send)
    pending = set(re.findall(r"self\.(_\w*(?:pending|ids|cids|address|challenges))\b", text))
    assert pending == {
        "_close_pending",
        "_datagrams_pending",  # DATAGRAM frames, which libp2p has not
        "_handshake_done_pending",
        "_host_cids",
        "_ping_pending",
        "_probe_pending",
        "_probe_preferred_address",
        "_remote_preferred_address",
        "_retire_connection_ids",
        "_streams_blocked_pending",
    }


def test_a_receiver_in_order_has_nothing_but_its_place() -> None:
    """The fast path of aioquic's own handle_frame, which ours follows."""
    text = source(QuicStreamReceiver.handle_frame)
    assert "if pos == 0 and count and not self._buffer:" in text
    assert "self._buffer_start += count" in text


def test_a_context_asks_for_a_certificate_when_told_to() -> None:
    """Read at the end of the server's first flight, after _initialize."""
    text = source(tls.Context._server_handle_hello)
    assert text.count("self._request_client_certificate") == 2
    assert "push_certificate_request" in text


def test_the_hooks_are_reached_through_the_instance() -> None:
    """They are replaced on the instance, which works only while they are looked up there."""
    assert "self._set_peer_certificate(certificate)" in source(tls.Context._client_handle_certificate)
    assert "self._set_peer_certificate(certificate)" in source(tls.Context._server_handle_certificate)
    assert "self._server_handle_certificate(input_buf)" in source(tls.Context._handle_reassembled_message)


def test_an_empty_certificate_goes_on_without_us() -> None:
    """Why the hook is needed: aioquic leaves the decision to nobody (RFC 8446, 4.4.2.4)."""
    assert "self._server_expect_finished()" in source(tls.Context._server_handle_certificate)


def test_no_authority_is_asked() -> None:
    assert "if self._verify_mode != ssl.CERT_NONE" in source(tls.Context._client_handle_certificate_verify)


def test_windows_are_written_by_the_two_methods_alone() -> None:
    text = source(QuicConnection._write_application)
    assert "self._write_connection_limits(builder=builder, space=space)" in text
    assert "self._write_stream_limits(builder=builder, space=space, stream=stream)" in text
    whole = source(QuicConnection)
    assert whole.count("QuicFrameType.MAX_STREAM_DATA,") == 1
    assert len(re.findall(r"max_data\.value \*= 2", whole)) == 1


def test_unsent_bytes_are_what_was_written_less_what_was_sent_once() -> None:
    assert "self._remote_max_data_used += used" in source(QuicConnection._write_application)
    sender = QuicStream(stream_id=0, max_stream_data_remote=1000).sender
    sender.write(bytes(500))
    sender.get_frame(300, 1000)
    assert (sender._buffer_stop, sender.highest_offset) == (500, 300)


def test_limits_may_be_set_until_the_handshake_tells_them() -> None:
    text = source(QuicConnection._serialize_transport_parameters)
    for name in ("_local_max_data", "_local_max_streams_bidi", "_local_max_streams_uni"):
        assert f"self.{name}.value" in text
    assert "self._host_cids[0].stateless_reset_token" in text
    assert "_serialize_transport_parameters" in source(QuicConnection._initialize)
    assert "self._initialize(" not in source(QuicConnection.__init__)


def test_the_buffer_is_the_class_that_aioquic_shows() -> None:
    from aioquic import buffer

    assert buffer.Buffer is Buffer  # type: ignore[attr-defined]


def test_the_version_is_in_the_range_that_the_project_names() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (low, high) = re.search(r'"aioquic>=([\d.]+),<([\d.]+)"', project).groups()  # type: ignore[union-attr]
    have = tuple(int(part) for part in engine.version("aioquic").split("."))
    assert tuple(map(int, low.split("."))) <= have < tuple(map(int, high.split(".")))
