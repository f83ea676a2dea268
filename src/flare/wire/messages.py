"""The messages that libp2p peers exchange, as frozen dataclasses over `flare.wire.schema`.

Decoders raise DecodeError and nothing else. Addresses that we cannot read are left out, as peers know
protocols that we do not.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from flare.wire.schema import INT32, LENIENT, UINT32, AtMost, Message, message


@message
class NoiseExtensions(Message):
    """What rides on the Noise handshake (noise/README.md, "Noise Extensions")."""

    stream_muxers: Annotated[tuple[str, ...], 2] = ()
    webtransport_certhashes: Annotated[tuple[bytes, ...], 1] = ()


@message
class NoiseHandshakePayload(Message):
    """Who a Noise static key belongs to (noise/README.md, "The libp2p Handshake Payload").

    `identity_key` is a PublicKey message; `identity_sig` signs the static key.
    """

    identity_key: Annotated[bytes, 1]
    identity_sig: Annotated[bytes, 2]
    extensions: Annotated[NoiseExtensions | None, 4] = None


@message
class Identify(Message):
    """What a peer says about itself (identify/README.md). Absent fields are None, or () for lists.

    A long one may come in several messages: decode their bytes joined, which merges them.
    """

    protocol_version: Annotated[str | None, 5] = None
    agent_version: Annotated[str | None, 6] = None
    public_key: Annotated[bytes | None, 1] = None
    listen_addrs: Annotated[tuple[Multiaddr, ...], 2, LENIENT, AtMost(128)] = ()
    observed_addr: Annotated[Multiaddr | None, 4, LENIENT] = None
    protocols: Annotated[tuple[str, ...], 3, AtMost(1024)] = ()
    signed_peer_record: Annotated[bytes | None, 8] = None


class Status(IntEnum):
    """How a relay or a relayed peer answers (circuit-v2.md). Messages hold any int, as peers may add some."""

    UNUSED = 0
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class HopType(IntEnum):
    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopType(IntEnum):
    CONNECT = 0
    STATUS = 1


@message
class RelayPeer(Message):
    """A peer in a relay's messages (circuit-v2.md, "Peer")."""

    id: Annotated[PeerId, 1]
    addrs: Annotated[tuple[Multiaddr, ...], 2, LENIENT, AtMost(128)] = ()


@message
class Reservation(Message):
    """A slot on a relay. `expire` is in Unix seconds on the relay's clock, `voucher` a signed envelope."""

    expire: Annotated[int, 1]
    addrs: Annotated[tuple[Multiaddr, ...], 2, LENIENT] = ()
    voucher: Annotated[bytes | None, 3] = None


@message
class Limit(Message):
    """What a circuit may take: `duration` seconds, `data` bytes in each direction; None or 0: no limit."""

    duration: Annotated[int | None, 1, UINT32] = None
    data: Annotated[int | None, 2] = None


@message
class HopMessage(Message):
    """Between a peer and its relay (circuit-v2.md, "Hop Protocol")."""

    type: Annotated[HopType, 1]
    peer: Annotated[RelayPeer | None, 2] = None
    reservation: Annotated[Reservation | None, 3] = None
    limit: Annotated[Limit | None, 4] = None
    status: Annotated[int | None, 5, INT32] = None


@message
class StopMessage(Message):
    """Between a relay and the peer that a circuit leads to (circuit-v2.md, "Stop Protocol")."""

    type: Annotated[StopType, 1]
    peer: Annotated[RelayPeer | None, 2] = None
    limit: Annotated[Limit | None, 3] = None
    status: Annotated[int | None, 4, INT32] = None


class HolePunchType(IntEnum):
    CONNECT = 100
    SYNC = 300


@message
class PunchHint(Message):
    """What flare tells flare in a CONNECT: how its NAT maps UDP, and what it would do about that.

    `mapping` is a value of flare.nat.prediction.Tellable, `attempt` counts from 1, `sockets` and `probes` are
    how many it would open and send in a search for ports (0: none), `predicted` how many of its addresses are
    a forecast, `port` the next one over UDP (0: nobody knows) and `step` what follows it by. Only peers whose
    agent is flare's are told.
    """

    mapping: Annotated[int, 1, UINT32] = 0
    attempt: Annotated[int, 2, UINT32] = 0
    sockets: Annotated[int, 3, UINT32] = 0
    probes: Annotated[int, 4, UINT32] = 0
    predicted: Annotated[int, 5, UINT32] = 0
    port: Annotated[int, 6, UINT32] = 0
    step: Annotated[int, 7, UINT32] = 0


@message
class HolePunch(Message):
    """Hole punching over a relayed connection (DCUtR.md). `hint` is flare's own: others skip its number."""

    type: Annotated[HolePunchType, 1]
    obs_addrs: Annotated[tuple[Multiaddr, ...], 2, LENIENT] = ()
    hint: Annotated[PunchHint | None, 464] = None
