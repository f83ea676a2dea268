"""The server of AutoNAT v1: dials a client at the IP that we see it at, and tells how that went
(autonat-v1.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flare.errors import InvalidPeerId, ProtocolViolation
from flare.protocols.autonat import V1_PROTOCOL
from flare.protocols.autonat.dialling import DialBacks
from flare.protocols.exchange import MESSAGE_LIMIT, within
from flare.wire.autonat_messages import DialResponseV1, DialStatusV1, MessageTypeV1, MessageV1, PeerInfoV1
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.stream import Stream

MAX_ADDRS: Final = 16  # dialled for one request


class V1Server:
    """Serves /libp2p/autonat/1.0.0."""

    def __init__(self, dials: DialBacks) -> None:
        self._dials = dials
        self._timeouts = dials.timeouts

    async def serve(self, stream: Stream) -> None:
        """One request: ProtocolViolation, TimedOut or NetworkError cost the client its stream."""
        peer = stream.connection.remote_peer
        async with within(self._timeouts.autonat, f"an AutoNAT request of peer {peer}"):
            message = MessageV1.decode(await stream.read_frame(MESSAGE_LIMIT))
            if message.type is not MessageTypeV1.DIAL or message.dial is None:
                raise ProtocolViolation("opened with something other than DIAL", protocol=V1_PROTOCOL)
            answer = await self._judge(stream, message.dial.peer)
            await stream.write_frame(MessageV1(MessageTypeV1.DIAL_RESPONSE, None, answer).encode())
            await stream.close()

    async def _judge(self, stream: Stream, info: PeerInfoV1 | None) -> DialResponseV1:
        connection = stream.connection
        peer = connection.remote_peer
        if info is None or (info.id is not None and not _is(info.id, peer)):
            return DialResponseV1(DialStatusV1.BAD_REQUEST, "the request names no peer, or another one")
        observed = connection.remote_addr.without_peer()
        if connection.is_relayed or not self._dials.is_public(observed):
            return DialResponseV1(DialStatusV1.DIAL_REFUSED, "you are not seen at a public address")
        addrs = self._choose(observed, info.addrs)
        if not addrs:
            return DialResponseV1(DialStatusV1.DIAL_REFUSED, "no address of yours can be dialled from here")
        if not self._dials.limiter.begin(peer):
            return DialResponseV1(DialStatusV1.DIAL_REFUSED, "too many requests")
        try:
            return await self._dial_back(peer, addrs)
        finally:
            self._dials.limiter.end(peer)

    def _choose(self, observed: Multiaddr, told: Sequence[Multiaddr]) -> list[Multiaddr]:
        """Where to dial: the ports and transports told, at the observed IP and nowhere else."""
        chosen: dict[Multiaddr, None] = {}
        for addr in (observed, *told):
            if addr.is_circuit or addr.ip is None:
                continue
            here = _at(addr.without_peer(), observed)
            if self._dials.can_dial(here):
                chosen[here] = None
        return list(chosen)[:MAX_ADDRS]

    async def _dial_back(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> DialResponseV1:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeouts.dial_back
        dials = {loop.create_task(self._try(addr, peer)) for addr in addrs}
        found: Multiaddr | None = None
        try:
            waiting = dials
            while waiting and found is None:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                found = next((addr for task in done if (addr := task.result()) is not None), None)
        finally:
            for task in dials:
                task.cancel()
            await asyncio.gather(*dials, return_exceptions=True)
        if found is not None:
            return DialResponseV1(DialStatusV1.OK, None, found)
        # never sooner than a time-out, or we would be a port scanner for anybody
        await asyncio.sleep(until - loop.time())
        return DialResponseV1(DialStatusV1.DIAL_ERROR, "no address of yours answered")

    async def _try(self, addr: Multiaddr, peer: PeerId) -> Multiaddr | None:
        connection = await self._dials.to(addr, peer)
        if connection is None:
            return None
        connection.abort("the dial-back is done")
        return addr


def _at(addr: Multiaddr, observed: Multiaddr) -> Multiaddr:
    """`addr` at the IP of `observed`."""
    rest = str(addr).split("/")[3:]
    return Multiaddr("/" + "/".join([*str(observed).split("/")[1:3], *rest]))


def _is(raw: bytes, peer: PeerId) -> bool:
    try:
        return PeerId(raw) == peer
    except InvalidPeerId:
        return False
