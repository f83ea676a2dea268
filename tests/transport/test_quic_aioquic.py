"""The private names of aioquic that the engine stands on, each with what is expected of it.

When one of these fails, an aioquic has changed below us: read the place, adapt transport/quic_aioquic.py, and
move the range in pyproject.toml.
"""

from __future__ import annotations

import inspect
import re
import time
from pathlib import Path
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection as quic_connection
from aioquic.quic import recovery
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.stream import QuicStream

import flare.transport.quic_aioquic as engine

HERE = ("127.0.0.1", 1)


def client() -> QuicConnection:
    """A connection that has sent its first flight."""
    made = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["libp2p"]))
    made.connect(HERE, time.monotonic())
    return made


def source(function: Any) -> str:
    return inspect.getsource(function)


# (where, name, what is expected of it)
ATTRIBUTES = [
    ("connection", "_is_client", bool),
    ("connection", "_host_cids", list),
    ("connection", "_peer_cid", quic_connection.QuicConnectionId),
    ("connection", "_local_max_data", Limit),
    ("connection", "_local_max_streams_bidi", Limit),
    ("connection", "_local_max_streams_uni", Limit),
    ("connection", "_remote_max_data_used", int),
    ("connection", "_streams", dict),
    ("connection", "_streams_queue", list),
    ("connection", "_spaces", dict),
    ("connection", "_pacing_at", type(None)),
    ("connection", "_streams_blocked_bidi", list),
    ("connection", "_network_paths", list),
    ("connection", "_close_at", float),
    ("connection", "_close_event", type(None)),
    ("connection", "_close_pending", bool),
    ("connection", "_logger", quic_connection.QuicConnectionAdapter),
    ("connection._loss", "_logger", quic_connection.QuicConnectionAdapter),
    ("connection._loss", "_rtt_smoothed", float),
    ("connection._loss", "_pacer", recovery.QuicPacketPacer),
    ("connection.tls", "_request_client_certificate", bool),
    ("connection.tls", "_peer_certificate", type(None)),
    ("sender", "_buffer_stop", int),
    ("sender", "_buffer_start", int),
    ("sender", "_buffer_fin", type(None)),
    ("sender", "_acked_fin", bool),
    ("sender", "_reset_error_code", type(None)),
]

# (class, name, its parameters): those that are overridden or replaced, and those that the overrides call
METHODS = [
    (QuicConnection, "_initialize", ["self", "peer_cid"]),
    (QuicConnection, "_replenish_connection_ids", ["self"]),
    (QuicConnection, "_consume_peer_cid", ["self"]),
    (QuicConnection, "_write_application", ["self", "builder", "network_path", "now"]),
    (QuicConnection, "_write_connection_limits", ["self", "builder", "space"]),
    (QuicConnection, "_write_stream_limits", ["self", "builder", "space", "stream"]),
    (QuicConnection, "_on_connection_limit_delivery", ["self", "delivery", "limit"]),
    (QuicConnection, "_on_max_stream_data_delivery", ["self", "delivery", "stream"]),
    (QuicConnection, "_close_begin", ["self", "is_initiator", "now"]),
    (tls.Context, "_set_peer_certificate", ["self", "certificate"]),
    (tls.Context, "_server_handle_certificate", ["self", "input_buf"]),
]


@pytest.mark.parametrize(("where", "name", "kind"), ATTRIBUTES, ids=lambda value: str(value))
def test_an_attribute_is_there(where: str, name: str, kind: type) -> None:
    made = client()
    holder: Any = {
        "connection": made,
        "connection._loss": made._loss,
        "connection.tls": made.tls,
        "sender": QuicStream(stream_id=0).sender,
    }[where]
    assert isinstance(getattr(holder, name), kind)


@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS, ids=lambda value: str(value))
def test_a_method_is_there(owner: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_every_private_name_in_use_is_in_the_lists() -> None:
    text = Path(engine.__file__).read_text()
    # `self.` is our own classes' unless _Quic inherits it
    used = set(
        re.findall(r"(?<=quic\.|text\.|nder\.|tate\.|loss\.)(_[a-z_]+)", text.replace("aioquic._buffer", ""))
    )
    own_class = text[text.index("class _Quic(") : text.index("class AioquicConnection")]
    used |= set(re.findall(r"(?:self\.|super\(\)\.|def )(_[a-z_]+)", own_class))
    ours = {"__init__", "_engine", "_verify", "_judge", "_sign_tokens", "_loss"}
    known = {name for _, name, _ in ATTRIBUTES} | {name for _, name, _ in METHODS}
    assert used - ours == known


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
