"""/ipfs/id/1.0.0 and /ipfs/id/push/1.0.0: who a peer is, where it listens, what it speaks
(identify/README.md).

The answer may come as several messages, which merge as protobuf does: the concatenation of their bytes. A
sender splits off the signed peer record when one message would be long.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare._core.wire import decode_uvarint, frame
from flare.config import KIB
from flare.errors import DecodeError, FlareError, FrameTooLarge, ProtocolViolation
from flare.protocols.exchange import TIMEOUTS, within
from flare.wire.envelope import PeerRecord
from flare.wire.keys import PublicKey
from flare.wire.messages import Identify
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.ask import Question
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream
    from flare.wire.keys import Identity

log = logging.getLogger("flare.protocols.identify")

PROTOCOL: Final = "/ipfs/id/1.0.0"
PUSH_PROTOCOL: Final = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION: Final = "ipfs/0.1.0"

LIMIT: Final = 64 * KIB  # of one answer in all its messages, lengths included: defends memory
MESSAGES: Final = 10  # of one answer
SPLIT_ABOVE: Final = 2 * KIB  # the signed record travels in a message of its own
OWN_LIMIT: Final = 4 * KIB  # of a message that we send: some peers read no longer one
MAX_PROTOCOLS: Final = 1024
MAX_ADDRS: Final = 500


def ask(
    connection: Connection, on_answer: Callable[[Identify | FlareError], None], *, timeout: float
) -> Question:
    """Ask the peer of `connection` who it is, without a task: `on_answer` gets what `request` would give or
    raise. Raises what opening a stream raises."""

    def answered(answer: bytes | FlareError) -> None:
        if isinstance(answer, bytes):
            try:
                on_answer(_read(answer, connection))
                return
            except FlareError as error:
                answer = error
        on_answer(answer)

    return connection.ask(PROTOCOL, answered, limit=LIMIT, timeout=timeout, allow_limited=True)


async def request(stream: Stream, *, timeout: float = TIMEOUTS.identify) -> Identify:
    """Read the peer's answer to its end.

    DecodeError, TimedOut, NetworkError; ProtocolViolation when it shows another peer's key.
    """
    peer = stream.connection.remote_peer
    async with within(timeout, f"identify of {peer}"):
        data = bytearray()
        while chunk := await stream.read(LIMIT):
            data += chunk
            if len(data) > LIMIT:
                raise FrameTooLarge(len(data), LIMIT, protocol=PROTOCOL)
        await stream.close()
    return _read(bytes(data), stream.connection)


receive = request


async def answer(stream: Stream, message: Identify, *, timeout: float = TIMEOUTS.identify) -> None:
    """Send `message` and close our side."""
    async with within(timeout, f"telling {stream.connection.remote_peer} who we are"):
        await stream.write(frames(message))
        await stream.close()


push = answer


def _read(data: bytes, connection: Connection) -> Identify:
    message = merge(data)
    if message.public_key:
        _check_key(message.public_key, connection)
    return message


def merge(data: bytes) -> Identify:
    """The one message that all frames of `data` make together. DecodeError on none, or on a piece of one."""
    parts: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(parts) == MESSAGES:
            raise DecodeError(f"more than {MESSAGES} messages", protocol=PROTOCOL)
        size, offset = decode_uvarint(data, offset)
        if size > len(data) - offset:
            raise DecodeError(f"ended {size - len(data) + offset} bytes short", protocol=PROTOCOL)
        parts.append(data[offset : offset + size])
        offset += size
    if not parts:
        raise DecodeError("ended without a message", protocol=PROTOCOL)
    message = Identify.decode(parts[0] if len(parts) == 1 else b"".join(parts))
    if len(message.protocols) <= MAX_PROTOCOLS and len(message.listen_addrs) <= MAX_ADDRS:
        return message
    return dataclasses.replace(
        message, protocols=message.protocols[:MAX_PROTOCOLS], listen_addrs=message.listen_addrs[:MAX_ADDRS]
    )


@dataclass(frozen=True, slots=True)
class Learned:
    """What one message tells; None where it says nothing, as a push may ("identify/push").

    `addrs` are nobody's word unless `record`, which is not verified yet, says otherwise: see `opened`.
    """

    addrs: tuple[Multiaddr, ...] | None
    record: bytes | None
    protocols: tuple[str, ...] | None
    agent: str | None
    observed: Multiaddr | None


def learn(message: Identify, connection: Connection) -> Learned:
    """What `message` from the peer of `connection` tells.

    Over a relayed connection nobody can have seen our address: what it says of that is left out.
    """
    return Learned(
        addrs=message.listen_addrs or None,
        record=message.signed_peer_record or None,
        protocols=message.protocols or None,
        agent=message.agent_version,
        observed=None if connection.is_relayed else message.observed_addr,
    )


def opened(record: bytes, peer: PeerId) -> PeerRecord | None:
    """The signed peer record of a message; None when it does not verify or is not `peer`'s own."""
    try:
        signed = PeerRecord.open(record)
    except FlareError as error:
        log.debug("%s sent a peer record that does not verify: %s", peer, error)
        return None
    return dataclasses.replace(signed, addrs=signed.addrs[:MAX_ADDRS]) if signed.peer_id == peer else None


def describe(
    identity: Identity,
    connection: Connection,
    *,
    agent: str,
    addrs: Iterable[Multiaddr],
    protocols: Iterable[str],
    sequence: int,
) -> Identify:
    """What we tell the peer at the other end of `connection`, within OWN_LIMIT.

    Loopback addresses go only to peers on this machine. Of a relayed connection the observed address is the
    circuit: the relay's socket says nothing about the peer. `sequence` orders our signed records: it must
    grow.
    """
    local = _is_local(connection)
    told = [addr for addr in dict.fromkeys(addrs) if local or not addr.is_loopback]
    spoken = tuple(dict.fromkeys(protocols))
    while True:
        message = Identify(
            protocol_version=PROTOCOL_VERSION,
            agent_version=agent,
            public_key=identity.public_key.to_protobuf(),
            listen_addrs=tuple(told),
            observed_addr=observed(connection),
            protocols=spoken,
        )
        if not told or len(message.encode()) <= OWN_LIMIT:
            break
        told.pop()
    record = PeerRecord(identity.peer_id, sequence, tuple(told)).seal(identity)
    return dataclasses.replace(message, signed_peer_record=record)


class Description:
    """What one host tells its peers, encoded and signed once for as long as nothing of it changes."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._made: dict[bool, _Encoded] = {}  # by whether the peer is on this machine

    def encoded(
        self,
        connection: Connection,
        *,
        agent: str,
        addrs: tuple[Multiaddr, ...],
        protocols: tuple[str, ...],
        sequence: int,
    ) -> bytes:
        """The frames of `describe` for `connection`, as `answer` sends them."""
        local = _is_local(connection)
        told = (agent, addrs, protocols, sequence)
        seen = Identify(observed_addr=observed(connection)).encode()
        made = self._made.get(local)
        if made is None or made.told != told or made.room < len(seen):
            message = describe(
                self._identity, connection, agent=agent, addrs=addrs, protocols=protocols, sequence=sequence
            )
            first, *rest = _split(dataclasses.replace(message, observed_addr=None))
            made = self._made[local] = _Encoded(
                told, first.encode(), b"".join(part.frame() for part in rest), len(seen)
            )
        # fields come in any order: who we see is what differs between peers, and it goes last
        return frame(made.common + seen) + made.rest


@dataclass(frozen=True, slots=True)
class _Encoded:
    told: tuple[object, ...]  # what it was made of
    common: bytes  # the first message, without whom we see
    rest: bytes  # further messages, framed
    room: int  # bytes that were left for whom we see


def _is_local(connection: Connection) -> bool:
    return any(
        addr is not None and addr.is_loopback for addr in (connection.local_addr, connection.remote_addr)
    )


def observed(connection: Connection) -> Multiaddr | None:
    """Where the peer of `connection` comes from, as we see it ("observedAddr")."""
    if not connection.is_relayed:
        return connection.remote_addr
    return Multiaddr(f"/p2p/{connection.relay}/p2p-circuit") if connection.relay is not None else None


def _split(message: Identify) -> list[Identify]:
    if message.signed_peer_record and len(message.encode()) > SPLIT_ABOVE:
        record = message.signed_peer_record
        return [dataclasses.replace(message, signed_peer_record=None), Identify(signed_peer_record=record)]
    return [message]


def frames(message: Identify) -> bytes:
    """`message` as it travels: in one frame, or in two when it is long."""
    return b"".join(frame(part.encode()) for part in _split(message))


def _check_key(key: bytes, connection: Connection) -> None:
    if key == connection.remote_key.to_protobuf():
        return
    if PeerId.from_public_key(PublicKey.from_protobuf(key)) != connection.remote_peer:
        raise ProtocolViolation("the public key is not this peer's", protocol=PROTOCOL)
