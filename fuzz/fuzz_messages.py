"""Every message and the varints: only DecodeError, and what was decoded encodes to something that decodes
alike."""

from __future__ import annotations

from flare._core.wire import decode_uvarint, encode_uvarint, frame
from flare.errors import DecodeError
from flare.wire.autonat_messages import DialBack, DialBackResponse, DialMessage, MessageV1
from flare.wire.envelope import EnvelopeMessage, PeerRecordMessage, VoucherMessage
from flare.wire.keys import KeyMessage, KeyType
from flare.wire.messages import (
    HolePunch,
    HolePunchType,
    HopMessage,
    HopType,
    Identify,
    Limit,
    NoiseExtensions,
    NoiseHandshakePayload,
    PunchHint,
    RelayPeer,
    Reservation,
    Status,
    StopMessage,
    StopType,
)
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from flare.wire.schema import Message

CLASSES: tuple[type[Message], ...] = (
    HopMessage,
    StopMessage,
    HolePunch,
    Identify,
    NoiseHandshakePayload,
    KeyMessage,
    EnvelopeMessage,
    PeerRecordMessage,
    VoucherMessage,
    MessageV1,
    DialMessage,
    DialBack,
    DialBackResponse,
)

_PEER = PeerId("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
_ADDRS = tuple(Multiaddr(f"/ip4/1.2.3.4/tcp/{port}/p2p/{_PEER}") for port in (1, 4001, 65535))
_KEY = KeyMessage(KeyType.ED25519, bytes(32))

CORPUS = tuple(
    bytes([CLASSES.index(type(message))]) + message.encode()
    for message in (
        HopMessage(HopType.RESERVE),
        HopMessage(HopType.CONNECT, RelayPeer(_PEER, _ADDRS)),
        HopMessage(HopType.STATUS, None, Reservation(1, _ADDRS, bytes(99)), Limit(120, 1 << 17), Status.OK),
        StopMessage(StopType.CONNECT, RelayPeer(_PEER), Limit(120, 1 << 17)),
        StopMessage(StopType.STATUS, status=Status.CONNECTION_FAILED),
        HolePunch(HolePunchType.CONNECT, _ADDRS),
        HolePunch(HolePunchType.CONNECT, _ADDRS, PunchHint(1, 3, 256, 512, 12, 20003, 1)),
        HolePunch(HolePunchType.SYNC),
        Identify("ipfs/0.1.0", "flare/0.1.0", _KEY.encode(), _ADDRS, _ADDRS[0], ("/a", "/b"), bytes(40)),
        NoiseHandshakePayload(_KEY.encode(), bytes(64), NoiseExtensions(("/yamux/1.0.0",), (bytes(34),))),
        _KEY,
        EnvelopeMessage(_KEY, b"\x03\x02", bytes(80), bytes(64)),
        PeerRecordMessage(_PEER, 1 << 60),
        VoucherMessage(_PEER, _PEER, 1 << 31),
    )
)


def fuzz(data: bytes) -> None:
    _varint(data)
    cls = CLASSES[data[0] % len(CLASSES)] if data else HopMessage
    try:
        message = cls.decode(data[1:])
    except DecodeError:
        return
    assert cls.decode(message.encode()) == message
    assert cls.decode(memoryview(message.encode())) == message


def _varint(data: bytes) -> None:
    try:
        value, end = decode_uvarint(data)
    except DecodeError:
        return
    assert encode_uvarint(value) == data[:end]
    assert frame(data)[-len(data) :] == data
