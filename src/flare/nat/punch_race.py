"""Both transports of a hole punch at once (DCUtR.md, "The Protocol", step 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from flare.errors import PunchFailed
from flare.nat.birthday import Search
from flare.nat.simultaneous import SETTLE, TcpPunch
from flare.protocols.dcutr import CLIENT
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

if TYPE_CHECKING:
    from flare.transport.connection import Connection

Punching = Callable[..., Awaitable["Connection"]]


class PunchRace:
    """Both transports at once: the first good connection wins, the other is given up.

    `knock` opens our NAT for QUIC (QuicPunch.knock). A server gives `left_over` what it did not choose and
    its client left open: the client may have chosen that.
    """

    def __init__(
        self,
        tcp: TcpPunch | None,
        quic: Punching | None,
        *,
        knock: Callable[[Sequence[Multiaddr]], None] | None = None,
        left_over: Callable[[Connection], None] | None = None,
    ) -> None:
        self._tcp = tcp
        self._quic = quic
        self._knock = knock
        self._left_over = left_over

    @property
    def transports(self) -> frozenset[str]:
        """What can be punched over."""
        return frozenset(
            name for name, punch in (("tcp", self._tcp), ("quic-v1", self._quic)) if punch is not None
        )

    @contextmanager
    def expect(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> Iterator[None]:
        """Within the block, what comes over TCP from `addrs` before the punch waits for it.

        Over QUIC it knocks: when our CONNECT has left, the peer may begin.
        """
        tcp = [addr for addr in addrs if addr.transport == "tcp"]
        with ExitStack() as stack:
            if self._tcp is not None and tcp:
                stack.enter_context(self._tcp.expect(peer, tcp))
            if self._knock is not None:
                self._knock([addr for addr in addrs if addr.transport == "quic-v1"])
            yield

    def close(self) -> None:
        """No more punches."""
        if self._tcp is not None:
            self._tcp.close()

    async def __call__(
        self,
        peer: PeerId,
        addrs: Sequence[Multiaddr],
        deadline_ns: int,
        *,
        role: str,
        rtt_ns: int,
        search: Search | None = None,
    ) -> Connection:
        """Connect to `addrs` at `deadline_ns`; PunchFailed says what both saw."""
        loop = asyncio.get_running_loop()
        punches = {"quic-v1": self._quic, "tcp": self._tcp}
        running: set[asyncio.Future[Connection]] = set()
        for transport, punch in punches.items():
            theirs = [addr for addr in addrs if addr.transport == transport]
            if theirs and punch is not None:
                more = {"search": search} if search is not None and transport == "quic-v1" else {}
                work = punch(peer, theirs, deadline_ns, role=role, rtt_ns=rtt_ns, **more)
                running.add(asyncio.ensure_future(work))
        started = tuple(running)
        up: list[Connection] = []
        errors: list[str] = []
        choose_at: float | None = None
        try:
            while running:
                done, running = await asyncio.wait(
                    running,
                    timeout=None if choose_at is None else max(0.0, choose_at - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    try:
                        up.append(task.result())
                    except PunchFailed as error:
                        errors.append(error.reason)
                still_open = [connection for connection in up if not connection.closed]
                if still_open and choose_at is None:
                    # a server's client may choose the other one
                    choose_at = loop.time() + (0 if role == CLIENT else max(SETTLE, 2 * rtt_ns / 1e9))
                if still_open and (not running or loop.time() >= (choose_at or 0)):
                    return still_open[0]
                if not still_open:
                    choose_at = None
            raise PunchFailed("; ".join(errors) or "the connection that was punched closed at once")
        finally:
            await self._give_up(started, up, client=role == CLIENT)

    async def _give_up(
        self, started: Sequence[asyncio.Future[Connection]], up: Sequence[Connection], *, client: bool
    ) -> None:
        for task in started:
            task.cancel()
        if started:
            await asyncio.wait(started)
        still_open = [connection for connection in up if not connection.closed]
        kept = still_open[0] if still_open else None
        for task in started:
            connection = task.result() if not task.cancelled() and task.exception() is None else None
            if connection is None or connection is kept or connection.closed:
                continue
            if client:
                connection.abort("the hole punch over the other transport was faster")
            elif self._left_over is not None:
                self._left_over(connection)
