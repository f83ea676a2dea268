"""The client of AutoNAT v2: asks a server to dial one of our addresses, and hears the nonce there
(autonat-v2.md)."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from flare.errors import ProtocolViolation, ResourceLimit
from flare.protocols.autonat import DATA_LAST, DIAL_BACK_PROTOCOL, DIAL_PROTOCOL, REQUEST_LIMIT
from flare.protocols.exchange import TIMEOUTS, within
from flare.wire.autonat_messages import (
    DialBack,
    DialBackResponse,
    DialDataRequest,
    DialDataResponse,
    DialMessage,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
)

if TYPE_CHECKING:
    from flare.config import Timeouts
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

PIECE: Final = 4000  # bytes of data in one message: 4,096 is the most that all servers take
MAX_ASKED: Final = 64  # requests under way
AT_ONCE: Final = 2  # of them with one server: go-libp2p's and ours refuse a third
DIAL_BACK_LIMIT: Final = 1024  # bytes of a DialBack
REFUSALS: Final[dict[int, str]] = {
    ResponseStatus.INTERNAL_ERROR: "the server failed",
    ResponseStatus.REQUEST_REJECTED: "the server is too busy",
    ResponseStatus.DIAL_REFUSED: "the server does not dial such an address",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one server found out about one address.

    `reachable` None: nothing, and `reason` says why; refusals, timeouts and lies are no evidence. `source` is
    where the dial-back came from, when it came.
    """

    addr: Multiaddr
    reachable: bool | None
    reason: str
    source: Multiaddr | None = None
    lied: bool = False


class DialBackClient:
    """Asks, and serves /libp2p/autonat/2/dial-back for what it asked."""

    def __init__(self, *, timeouts: Timeouts = TIMEOUTS) -> None:
        self._timeouts = timeouts
        self._asked: dict[int, asyncio.Future[Connection]] = {}
        self._turns: WeakValueDictionary[PeerId, asyncio.Semaphore] = WeakValueDictionary()

    async def serve(self, stream: Stream) -> None:
        """A dial-back: take its nonce, and close: a reset can overtake the answer, and over QUIC it does."""
        async with within(self._timeouts.dial_back_message, "a dial-back's nonce"):
            nonce = DialBack.decode(await stream.read_frame(DIAL_BACK_LIMIT)).nonce
            heard = self._asked.get(nonce)
            if heard is None or heard.done():
                raise ProtocolViolation("a nonce that we did not ask for", protocol=DIAL_BACK_PROTOCOL)
            heard.set_result(stream.connection)
            await stream.write_frame(DialBackResponse().encode())
            await stream.close()

    async def check(self, connection: Connection, addr: Multiaddr) -> Verdict:
        """Ask the peer on `connection` to dial `addr`, alone: of several, servers choose differently.

        A third request to one server waits until another is over. Raises ProtocolNotSupported,
        ProtocolViolation, TimedOut, NetworkError; ResourceLimit when too many requests are under way.
        """
        server = connection.remote_peer
        turn = self._turns.get(server)
        if turn is None:
            turn = self._turns[server] = asyncio.Semaphore(AT_ONCE)
        async with turn:
            return await self._check(connection, addr)

    async def _check(self, connection: Connection, addr: Multiaddr) -> Verdict:
        if len(self._asked) >= MAX_ASKED:
            raise ResourceLimit(f"{MAX_ASKED} dial-back requests are under way")
        nonce = secrets.randbits(64)
        heard = self._asked[nonce] = asyncio.get_running_loop().create_future()
        since = time.time()
        try:
            async with within(self._timeouts.autonat, f"a dial-back by peer {connection.remote_peer}"):
                async with connection.open_stream(DIAL_PROTOCOL) as stream:
                    answer = await self._ask(stream, addr, nonce)
                if answer.status == ResponseStatus.OK and answer.dial in (
                    DialStatus.OK,
                    DialStatus.DIAL_BACK_ERROR,
                ):
                    # the nonce may come after the answer: they are on two connections
                    await asyncio.wait((heard,), timeout=self._timeouts.dial_back_message)
            return _judge(addr, answer, heard.result() if heard.done() else None, since)
        finally:
            del self._asked[nonce]
            heard.cancel()

    async def _ask(self, stream: Stream, addr: Multiaddr, nonce: int) -> DialResponse:
        await stream.write_frame(DialMessage(request=DialRequest((bytes(addr),), nonce)).encode())
        message = DialMessage.decode(await stream.read_frame(REQUEST_LIMIT))
        if message.data_request is not None:
            await _pay(stream, message.data_request)
            message = DialMessage.decode(await stream.read_frame(REQUEST_LIMIT))
        if message.response is None:
            raise ProtocolViolation("sent something other than DialResponse", protocol=DIAL_PROTOCOL)
        if message.response.index != 0:
            raise ProtocolViolation(
                f"dialled address {message.response.index} of one", protocol=DIAL_PROTOCOL
            )
        return message.response


async def _pay(stream: Stream, asked: DialDataRequest) -> None:
    if asked.index != 0 or asked.size > DATA_LAST:
        raise ProtocolViolation(
            f"asked for {asked.size} bytes for address {asked.index}, at most {DATA_LAST} for address 0",
            protocol=DIAL_PROTOCOL,
        )
    whole = DialMessage(data_response=DialDataResponse(bytes(PIECE))).encode()
    left = asked.size
    while left > 0:
        await stream.write_frame(
            whole if left >= PIECE else DialMessage(data_response=DialDataResponse(bytes(left))).encode()
        )
        left -= PIECE


def _judge(addr: Multiaddr, answer: DialResponse, heard: Connection | None, since: float) -> Verdict:
    """`heard` is where the nonce came, `since` (Unix seconds) when we asked."""
    if answer.status != ResponseStatus.OK:
        return Verdict(addr, None, REFUSALS.get(answer.status, f"the server answered {answer.status}"))
    if answer.dial == DialStatus.DIAL_ERROR:
        return Verdict(addr, False, "the server could not connect")
    if answer.dial not in (DialStatus.OK, DialStatus.DIAL_BACK_ERROR):
        return Verdict(addr, None, f"the server answered with unknown dial status {answer.dial}")
    if heard is None:
        if answer.dial == DialStatus.OK:
            return Verdict(addr, None, "the server says that it dialled, and nobody came", lied=True)
        return Verdict(addr, None, "the server connected and could not say its nonce")
    if heard.initiator or heard.is_relayed or heard.opened_at < since:
        return Verdict(
            addr, None, "the server says that it dialled, and used a connection that was there", lied=True
        )
    if heard.local_addr is None or _shape(heard.local_addr) != _shape(addr):
        return Verdict(
            addr,
            None,
            f"the server says that it dialled {addr}, and it came to {heard.local_addr}",
            lied=True,
        )
    return Verdict(addr, True, "the server connected", heard.remote_addr)


def _shape(addr: Multiaddr) -> tuple[str, ...]:
    """The protocols of an address without their values: a NAT changes the values."""
    return tuple(part.name for part in addr.without_peer() if part.name not in ("certhash", "sni"))
