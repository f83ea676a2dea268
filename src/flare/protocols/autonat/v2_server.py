"""The server of AutoNAT v2: dials one address of a client and says a nonce there (autonat-v2.md).

client -> server  DialRequest(addrs, nonce)
server -> client  DialDataRequest   when the address has another IP than the client: it pays with data
client -> server  DialDataResponse ...
server -> client  (a new connection, from a fresh port) DialBack(nonce)   client -> server  DialBackResponse
server -> client  DialResponse(which address, how it went)
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from flare.errors import FlareError, InvalidMultiaddr, NetworkError, ProtocolViolation
from flare.protocols.autonat import (
    ADDRS_LIMIT,
    DATA_FIRST,
    DATA_LAST,
    DIAL_BACK_PROTOCOL,
    DIAL_PROTOCOL,
    REQUEST_LIMIT,
)
from flare.protocols.autonat.dialling import DialBacks
from flare.protocols.exchange import within
from flare.wire.autonat_messages import (
    DialBack,
    DialDataRequest,
    DialMessage,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
)
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream

LEAST_PIECE: Final = 100  # bytes of data in one message but the last: less costs us more than the client
HERD_WAIT: Final = (
    3.0  # seconds, at most, before a foreign IP is dialled: no victim is dialled by all at once
)


class DialBackServer:
    """Serves /libp2p/autonat/2/dial-request. `herd_wait` is in seconds, `chance` where it comes from."""

    def __init__(
        self, dials: DialBacks, *, chance: random.Random | None = None, herd_wait: float = HERD_WAIT
    ) -> None:
        self._dials = dials
        self._timeouts = dials.timeouts
        self._chance = chance if chance is not None else random.SystemRandom()
        self._herd_wait = herd_wait

    async def serve(self, stream: Stream) -> None:
        """One request: ProtocolViolation, TimedOut or NetworkError cost the client its stream."""
        connection = stream.connection
        peer = connection.remote_peer
        # over a relay nobody's IP is observed, and everybody's dial would look like the relay's own
        if connection.is_relayed or not self._dials.limiter.begin(peer):
            await _answer(stream, DialResponse(ResponseStatus.REQUEST_REJECTED))
            return
        try:
            async with within(self._timeouts.autonat, f"a dial-back request of peer {peer}"):
                await self._serve(stream)
        finally:
            self._dials.limiter.end(peer)

    async def _serve(self, stream: Stream) -> None:
        peer = stream.connection.remote_peer
        request = DialMessage.decode(await stream.read_frame(REQUEST_LIMIT)).request
        if request is None:
            raise ProtocolViolation("opened with something other than DialRequest", protocol=DIAL_PROTOCOL)
        index, addr = self._choose(request)
        if addr is None:
            await _answer(stream, DialResponse(ResponseStatus.DIAL_REFUSED))
            return
        if addr.ip is None or addr.ip != stream.connection.remote_addr.ip:
            if not self._dials.limiter.foreign():
                await _answer(stream, DialResponse(ResponseStatus.REQUEST_REJECTED))
                return
            await self._take_data(stream, index)
            await asyncio.sleep(self._chance.uniform(0, self._herd_wait))
        status = await self._dial_back(peer, addr, request.nonce)
        await _answer(stream, DialResponse(ResponseStatus.OK, index, status))

    def _choose(self, request: DialRequest) -> tuple[int, Multiaddr | None]:
        """The first address that we would dial, and where it stands."""
        for index, raw in enumerate(request.addrs[:ADDRS_LIMIT]):
            try:
                addr = Multiaddr(raw)
            except InvalidMultiaddr:
                continue
            if not addr.is_circuit and self._dials.is_public(addr) and self._dials.can_dial(addr):
                return index, addr
        return 0, None

    async def _take_data(self, stream: Stream, index: int) -> None:
        """What a dial to a foreign IP costs: more bytes than the handshake that a victim would see."""
        wanted = self._chance.randrange(DATA_FIRST, DATA_LAST)
        await stream.write_frame(DialMessage(data_request=DialDataRequest(index, wanted)).encode())
        while wanted > 0:
            piece = DialMessage.decode(await stream.read_frame(REQUEST_LIMIT)).data_response
            if piece is None:
                raise ProtocolViolation(
                    "sent something other than the data asked for", protocol=DIAL_PROTOCOL
                )
            wanted -= len(piece.data)
            if len(piece.data) < LEAST_PIECE and wanted > 0:
                raise ProtocolViolation(
                    f"sent data in pieces of {len(piece.data)} bytes, {LEAST_PIECE} is the least",
                    protocol=DIAL_PROTOCOL,
                )

    async def _dial_back(self, peer: PeerId, addr: Multiaddr, nonce: int) -> DialStatus:
        connection = await self._dials.to(addr, peer)
        if connection is None:
            return DialStatus.DIAL_ERROR
        try:
            return await self._say(connection, nonce)
        finally:
            connection.abort("the dial-back is done")

    async def _say(self, connection: Connection, nonce: int) -> DialStatus:
        try:
            stream = await connection.open_stream(
                DIAL_BACK_PROTOCOL, timeout=self._timeouts.dial_back_message
            )
            await stream.write_frame(DialBack(nonce).encode())
            await stream.close_write()
        except (FlareError, OSError):
            return DialStatus.DIAL_BACK_ERROR
        try:
            # any end of the stream says that it was heard: go's client resets, which can overtake its answer
            async with within(self._timeouts.dial_back_message, "the answer to a dial-back"):
                await stream.read(64)
        except NetworkError:
            pass
        except TimeoutError:
            return DialStatus.DIAL_BACK_ERROR
        return DialStatus.OK


async def _answer(stream: Stream, response: DialResponse) -> None:
    await stream.write_frame(DialMessage(response=response).encode())
    await stream.close()
