"""Both transports of a hole punch at once (DCUtR.md, step 5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flare.errors import PunchFailed
from flare.nat.birthday import Search
from flare.nat.prediction import Part
from flare.nat.punch_race import PunchRace
from flare.protocols.dcutr import CLIENT, SERVER
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio
from tests.support.linked import ALICE

MS = 1_000_000


class Made:
    """A connection that a fake punch made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def abort(self, reason: object = None) -> None:
        self.closed = True


class Fake:
    """A punch that takes `seconds` and then has a connection, or fails."""

    def __init__(self, name: str, seconds: float, *, fails: bool = False) -> None:
        self.made = Made(name)
        self._seconds, self._fails = seconds, fails
        self.addrs: list[Multiaddr] = []
        self.cancelled = False

    async def __call__(
        self, peer: Any, addrs: Any, deadline_ns: int, *, role: str, rtt_ns: int, search: Any = None
    ) -> Any:
        self.addrs = list(addrs)
        self.search = search
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._fails:
            raise PunchFailed(f"{self.made.name} found nobody")
        return self.made


TCP = Multiaddr("/ip4/1.2.3.4/tcp/1")
QUIC = Multiaddr("/ip4/1.2.3.4/udp/1/quic-v1")


async def race(tcp: Fake, quic: Fake, role: str, *addrs: Multiaddr) -> Any:
    punch = PunchRace(tcp, quic)  # type: ignore[arg-type]
    return await punch(ALICE.peer_id, addrs or (TCP, QUIC), 0, role=role, rtt_ns=MS)


class TestRace:
    @aio
    async def test_the_client_takes_the_first_and_gives_the_other_up(self) -> None:
        tcp, quic = Fake("tcp", 9), Fake("quic", 0.01)
        assert await race(tcp, quic, CLIENT) is quic.made
        assert tcp.cancelled
        assert (tcp.addrs, quic.addrs) == ([TCP], [QUIC])

    @aio
    async def test_the_client_closes_what_came_at_the_same_time(self) -> None:
        tcp, quic = Fake("tcp", 0), Fake("quic", 0)
        kept = await race(tcp, quic, CLIENT)
        assert [made.closed for made in (tcp.made, quic.made)] == [
            tcp.made is not kept,
            quic.made is not kept,
        ]

    @aio
    async def test_the_server_takes_what_its_client_left_open(self) -> None:
        tcp, quic = Fake("tcp", 0), Fake("quic", 0.05)
        racing = asyncio.ensure_future(race(tcp, quic, SERVER))
        await asyncio.sleep(0.02)
        tcp.made.closed = True
        assert await racing is quic.made

    @pytest.mark.parametrize("role", [CLIENT, SERVER])
    @aio
    async def test_what_the_server_did_not_choose_is_kept_for_its_client(self, role: str) -> None:
        """Which may have chosen that."""
        left: list[Any] = []
        tcp, quic = Fake("tcp", 0), Fake("quic", 0)
        punch = PunchRace(tcp, quic, left_over=left.append)  # type: ignore[arg-type]
        kept: Any = await punch(ALICE.peer_id, (TCP, QUIC), 0, role=role, rtt_ns=MS)
        other = quic.made if kept is tcp.made else tcp.made
        assert left == ([] if role == CLIENT else [other])
        assert other.closed is (role == CLIENT)

    @aio
    async def test_one_that_fails_does_not_end_it(self) -> None:
        tcp, quic = Fake("tcp", 0.05), Fake("quic", 0, fails=True)
        assert await race(tcp, quic, CLIENT) is tcp.made

    @aio
    async def test_both_say_why(self) -> None:
        tcp, quic = Fake("tcp", 0, fails=True), Fake("quic", 0.01, fails=True)
        with pytest.raises(PunchFailed, match="tcp found nobody; quic found nobody"):
            await race(tcp, quic, SERVER)

    @aio
    async def test_only_what_the_peer_offers_is_punched(self) -> None:
        tcp, quic = Fake("tcp", 0), Fake("quic", 0)
        assert await race(tcp, quic, CLIENT, QUIC) is quic.made
        assert tcp.addrs == []
        with pytest.raises(PunchFailed):
            await race(tcp, quic, CLIENT, Multiaddr("/ip4/1.2.3.4/udp/1"))

    @aio
    async def test_whoever_expects_the_peer_knocks_over_quic(self) -> None:
        knocks: list[Multiaddr] = []
        with PunchRace(None, None, knock=knocks.extend).expect(ALICE.peer_id, [TCP, QUIC]):
            assert knocks == [QUIC]

    @aio
    async def test_a_search_is_quics(self) -> None:
        tcp, quic = Fake("tcp", 9), Fake("quic", 0)
        wanted = Search(Part.OPENS, ("1.2.3.4", 1))
        punch = PunchRace(tcp, quic)  # type: ignore[arg-type]
        await punch(ALICE.peer_id, (TCP, QUIC), 0, role=CLIENT, rtt_ns=MS, search=wanted)
        assert (tcp.search, quic.search) == (None, wanted)

    @aio
    async def test_cancelling_it_cancels_both(self) -> None:
        tcp, quic = Fake("tcp", 9), Fake("quic", 9)
        racing = asyncio.ensure_future(race(tcp, quic, CLIENT))
        await asyncio.sleep(0.01)
        racing.cancel()
        await asyncio.wait([racing])
        assert tcp.cancelled
        assert quic.cancelled
