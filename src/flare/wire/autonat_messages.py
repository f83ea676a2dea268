"""AutoNAT's messages: version 1 asks whether a node can be dialled, version 2 whether one address can."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from flare.wire.multiaddr import Multiaddr
from flare.wire.schema import FIXED64, INT32, LENIENT, UINT32, Message, message


class DialStatusV1(IntEnum):
    """How a version 1 server answers (autonat-v1.md). Messages hold any int, as peers may add some."""

    OK = 0
    DIAL_ERROR = 100
    DIAL_REFUSED = 101
    BAD_REQUEST = 200
    INTERNAL_ERROR = 300


class MessageTypeV1(IntEnum):
    DIAL = 0
    DIAL_RESPONSE = 1


@message
class PeerInfoV1(Message):
    """Who is to be dialled, and where (autonat-v1.md)."""

    id: Annotated[bytes | None, 1] = None
    addrs: Annotated[tuple[Multiaddr, ...], 2, LENIENT] = ()


@message
class DialV1(Message):
    """The request of version 1."""

    peer: Annotated[PeerInfoV1 | None, 1] = None


@message
class DialResponseV1(Message):
    """The answer of version 1: `addr` is what was dialled, `text` for people."""

    status: Annotated[int | None, 1, INT32] = None
    text: Annotated[str | None, 2] = None
    addr: Annotated[Multiaddr | None, 3, LENIENT] = None


@message
class MessageV1(Message):
    """What travels on /libp2p/autonat/1.0.0 (autonat-v1.md)."""

    type: Annotated[MessageTypeV1 | None, 1] = None
    dial: Annotated[DialV1 | None, 2] = None
    response: Annotated[DialResponseV1 | None, 3] = None


class ResponseStatus(IntEnum):
    """Whether a version 2 server did what it was asked (autonat-v2.md, "Requirements For ResponseStatus")."""

    INTERNAL_ERROR = 0
    REQUEST_REJECTED = 100
    DIAL_REFUSED = 101
    OK = 200


class DialStatus(IntEnum):
    """How the dial of a version 2 server went (autonat-v2.md, "Requirements for DialStatus")."""

    UNUSED = 0
    DIAL_ERROR = 100
    DIAL_BACK_ERROR = 101
    OK = 200


@message
class DialRequest(Message):
    """Please dial the first of `addrs` that you can, and say `nonce` there. Kept as bytes: an address that
    one side cannot read must not shift the index of the others."""

    addrs: Annotated[tuple[bytes, ...], 1] = ()
    nonce: Annotated[int, 2, FIXED64] = 0


@message
class DialDataRequest(Message):
    """Send `size` bytes, and address `index` will be dialled (autonat-v2.md, "Amplification Attack
    Prevention")."""

    index: Annotated[int, 1, UINT32] = 0
    size: Annotated[int, 2] = 0


@message
class DialDataResponse(Message):
    """Some of the data asked for, at most 4,096 bytes."""

    data: Annotated[bytes, 1] = b""


@message
class DialResponse(Message):
    """Which address was dialled, and how that went; `index` and `dial` count for status OK only."""

    status: Annotated[int, 1, INT32] = 0
    index: Annotated[int, 2, UINT32] = 0
    dial: Annotated[int, 3, INT32] = 0


@message
class DialMessage(Message):
    """What travels on /libp2p/autonat/2/dial-request: one of these (autonat-v2.md, "RPC Messages")."""

    request: Annotated[DialRequest | None, 1] = None
    response: Annotated[DialResponse | None, 2] = None
    data_request: Annotated[DialDataRequest | None, 3] = None
    data_response: Annotated[DialDataResponse | None, 4] = None


@message
class DialBack(Message):
    """What the server says where it dialled."""

    nonce: Annotated[int, 1, FIXED64] = 0


@message
class DialBackResponse(Message):
    """That it was heard; 0 is OK and the only status."""

    status: Annotated[int, 1, INT32] = 0
