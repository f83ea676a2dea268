"""From relayed to direct, both ends under virtual time (DCUtR.md, "The Protocol")."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from flare.config import Config, PunchConfig
from flare.errors import DialFailed, FlareError, PunchFailed, StreamReset
from flare.events import PlainDialFailed, PunchGaveUp, PunchStarted, PunchSucceeded
from flare.lab import virtual
from flare.nat import observed
from flare.nat.behaviour import Sight
from flare.nat.birthday import Search
from flare.nat.foresight import Foresight
from flare.nat.prediction import WINDOW, Part
from flare.nat.punch import SPENT, HolePuncher
from flare.nat.punch_race import PunchRace
from flare.protocols.dcutr import CLIENT, PROTOCOL, SERVER
from flare.protocols.dcutr.initiator import agree
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import (
    ALICE,
    ALICE_ADDR,
    BOB,
    BOB_ADDR,
    CAROL,
    RELAY,
    End,
    linked,
    now,
    relayed,
    simulated,
)

DEPENDENT = observed.Mapping("endpoint-dependent", "our NAT maps each (endpoint-dependent mapping): x saw y")


class Side:
    """One host's hole puncher, and what it is told."""

    def __init__(self, me: Identity, other: Identity, addr: Multiaddr, **values: Any) -> None:
        self.me, self.other = me, other
        self.punches: list[dict[str, Any]] = []
        self.events: list[Any] = []
        self.direct: Any = None
        self.peer_addrs: tuple[Multiaddr, ...] = ()
        self.dialled: list[Multiaddr] = []
        self.dial_outcome: Any = DialFailed("x")
        self.dial_takes = 0.0
        self.outcome: Callable[[int], Any] = lambda n: PunchFailed(f"no answer {n}")
        self.takes = 1.0
        self.adopted: list[Any] = []
        self.puncher = HolePuncher(
            **{
                "own_addrs": lambda: [addr],
                "peer_addrs": lambda peer: self.peer_addrs,
                "dial": self._dial,
                "direct_to": lambda peer: self.direct,
                "on_connection": self.adopted.append,
                "on_event": self.events.append,
                "punch": self._punch,
                "clock_ns": virtual.monotonic_ns,
                **values,
            }
        )

    async def _punch(
        self,
        peer: Any,
        addrs: Sequence[Multiaddr],
        deadline: int,
        *,
        role: str,
        rtt_ns: int,
        search: Any = None,
    ) -> Any:
        number = len(self.punches) + 1
        self.punches.append(
            {
                "peer": peer,
                "addrs": tuple(addrs),
                "role": role,
                "rtt": rtt_ns,
                "deadline": deadline,
                "search": search,
            }
        )
        await asyncio.sleep(max(0, deadline - virtual.monotonic_ns()) / 1e9)
        outcome = self.outcome(number)
        if isinstance(outcome, Exception):
            await asyncio.sleep(self.takes)
            raise outcome
        return outcome

    async def _dial(self, addr: Multiaddr, peer: Any) -> Any:
        self.dialled.append(addr)
        await asyncio.sleep(self.dial_takes)
        if isinstance(self.dial_outcome, Exception):
            raise self.dial_outcome
        return self.dial_outcome

    def named(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


class World:
    """Alice dialled Bob through a relay."""

    def __init__(
        self, *, latency: float = 0.05, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None
    ) -> None:
        self.a = Side(ALICE, BOB, ALICE_ADDR, **(a or {}))
        self.b = Side(BOB, ALICE, BOB_ADDR, **(b or {}))
        self.at_a, self.at_b = relayed(latency=latency)
        self.at_a.handlers[PROTOCOL] = self.a.puncher.serve
        self.direct_a, self.direct_b = linked()
        for end in (self.at_a, self.at_b):
            end.upgrader = None  # type: ignore[attr-defined]

    def works_at(self, attempt: int) -> None:
        """The punch works on both sides at this attempt."""
        for side, connection in ((self.a, self.direct_a), (self.b, self.direct_b)):
            side.outcome = lambda n, c=connection: c if n >= attempt else PunchFailed(f"no answer {n}")

    def start(self) -> None:
        self.a.puncher.connected(self.at_a)  # type: ignore[arg-type]
        self.b.puncher.connected(self.at_b)  # type: ignore[arg-type]

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.a.puncher.close()
        await self.b.puncher.close()


async def both(world: World, timeout: float = 60) -> list[Any]:
    return await asyncio.gather(
        world.a.puncher.direct(world.at_a, timeout),  # type: ignore[arg-type]
        world.b.puncher.direct(world.at_b, timeout),  # type: ignore[arg-type]
        return_exceptions=True,
    )


class TestSuccess:
    @simulated
    async def test_both_sides_get_their_direct_connection_at_the_first_attempt(self) -> None:
        async with World() as world:
            world.works_at(1)
            world.start()
            assert await both(world) == [world.direct_a, world.direct_b]
            assert [p["role"] for p in world.a.punches] == [CLIENT], (
                "A dialled the relayed connection: client"
            )
            assert [p["role"] for p in world.b.punches] == [SERVER]
            assert world.a.punches[0]["addrs"] == (BOB_ADDR,)
            assert world.b.punches[0]["addrs"] == (ALICE_ADDR,)
            assert world.a.punches[0]["deadline"] == pytest.approx(world.b.punches[0]["deadline"], abs=1e6)
            assert world.a.events[0] == PunchStarted(BOB.peer_id, "responder")
            assert world.b.events[0] == PunchStarted(ALICE.peer_id, "initiator")
            for side, aim in ((world.a, BOB_ADDR), (world.b, ALICE_ADDR)):
                done = side.events[-1]
                assert isinstance(done, PunchSucceeded)
                assert (done.attempts, done.path, done.tried) == (1, "direct/tcp", (aim,))
                assert 0 < done.seconds < 1
                assert len(side.adopted) == 1, "the host takes it in"

    @simulated
    async def test_the_relayed_connection_is_closed_after_a_grace(self) -> None:
        async with World() as world:
            world.works_at(1)
            world.start()
            await both(world)
            await asyncio.sleep(4.9)
            assert not world.at_a.closed
            await asyncio.sleep(0.5)
            assert world.at_a.closed

    @simulated
    async def test_the_third_attempt_may_succeed(self) -> None:
        async with World() as world:
            world.works_at(3)
            world.start()
            assert await both(world) == [world.direct_a, world.direct_b]
            assert [p["role"] for p in world.b.punches] == [SERVER, SERVER, CLIENT]
            assert [p["role"] for p in world.a.punches] == [CLIENT] * 3
            assert world.b.events[-1].attempts == 3

    @simulated
    async def test_two_of_ours_keep_their_roles_on_the_last_attempt(self) -> None:
        async with World(b={"agent": lambda peer: "flare/0.1.0"}) as world:
            world.works_at(3)
            world.start()
            await both(world)
            assert [p["role"] for p in world.b.punches] == [SERVER] * 3

    @simulated
    async def test_asking_for_a_direct_connection_of_a_direct_one_gives_it(self) -> None:
        async with World() as world:
            assert await world.a.puncher.direct(world.direct_a, 1) is world.direct_a  # type: ignore[arg-type]

    @simulated
    async def test_one_that_is_there_already_is_taken(self) -> None:
        async with World() as world:
            world.b.direct = world.direct_b
            world.start()
            assert await world.b.puncher.direct(world.at_b, 1) is world.direct_b  # type: ignore[arg-type]
            assert world.at_b.opened == []


class TestConnectionReversal:
    @simulated
    async def test_a_public_peer_is_dialled_first_and_no_punch_is_needed(self) -> None:
        async with World() as world:
            world.b.peer_addrs = (Multiaddr("/ip4/192.168.1.1/tcp/1"), ALICE_ADDR)
            world.b.dial_outcome = world.direct_b
            world.start()
            assert await world.b.puncher.direct(world.at_b, 5) is world.direct_b  # type: ignore[arg-type]
            assert world.b.dialled == [ALICE_ADDR], "public addresses only"
            assert world.at_b.opened == []
            assert world.b.events[-1].attempts == 0

    @simulated
    async def test_the_dialler_sees_it_come_in(self) -> None:
        async with World() as world:
            world.start()
            waiting = asyncio.create_task(world.a.puncher.direct(world.at_a, 5))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            world.a.puncher.connected(world.direct_a)  # type: ignore[arg-type]
            assert await waiting is world.direct_a

    @simulated
    async def test_when_it_fails_the_punch_follows_and_the_reason_has_both(self) -> None:
        async with World() as world:
            world.b.peer_addrs = (ALICE_ADDR,)
            world.start()
            _, b = await both(world)
            assert "a plain dial failed" in b.reason
            (failed,) = [event for event in world.b.events if isinstance(event, PlainDialFailed)]
            assert failed.peer == ALICE.peer_id
            assert "a plain dial failed" in failed.reason
            assert "no answer 1" in b.reason

    @simulated
    async def test_it_is_bounded(self) -> None:
        async with World() as world:
            world.b.peer_addrs, world.b.dial_takes = (ALICE_ADDR,), 1000
            world.works_at(1)
            world.start()
            assert await both(world) == [world.direct_a, world.direct_b]
            assert now() < Config().punch.head_start + 1, "the punch waits for the head start and no longer"

    @simulated
    async def test_a_slow_answer_wins_while_the_punch_still_runs(self) -> None:
        async with World() as world:
            world.b.peer_addrs, world.b.dial_takes = (ALICE_ADDR,), 2
            world.b.dial_outcome = world.direct_b
            world.b.takes = 5
            world.start()
            assert await world.b.puncher.direct(world.at_b, 30) is world.direct_b  # type: ignore[arg-type]
            assert now() < 2.5
            assert "PunchStarted" in world.b.named()

    @simulated
    async def test_it_is_cut_off_after_its_time(self) -> None:
        async with World() as world:
            world.b.peer_addrs, world.b.dial_takes = (ALICE_ADDR,), 1000
            world.start()
            _, b = await both(world)
            assert "a plain dial had no answer within 5 s" in b.reason


class TestFailure:
    @simulated
    async def test_three_attempts_and_a_reason_on_both_sides(self) -> None:
        async with World() as world:
            world.start()
            a, b = await both(world)
            for side, error in ((world.a, a), (world.b, b)):
                assert isinstance(error, PunchFailed)
                assert error.attempts == 3
                assert (
                    "attempt 1: no answer 1; attempt 2: no answer 2; attempt 3: no answer 3" in error.reason
                )
                gave_up = side.events[-1]
                assert isinstance(gave_up, PunchGaveUp)
                assert (gave_up.reason, gave_up.attempts) == (error.reason, 3)
            assert not world.at_a.closed, "the relayed connection stays"

    @simulated
    async def test_an_endpoint_dependent_nat_is_named(self) -> None:
        async with World(b={"mapping": lambda: DEPENDENT}) as world:
            world.start()
            _, b = await both(world)
            assert b.reason.endswith(DEPENDENT.sentence)

    @simulated
    async def test_a_nat_that_gives_out_ports_is_named_by_both_sides(self) -> None:
        doubtful = observed.Mapping("doubtful", "our NAT gives out ports of its own")
        inside = Multiaddr("/ip4/10.0.0.9/tcp/4001")
        outside = Multiaddr("/ip4/5.6.7.8/tcp/53210")
        own = {"mapping": lambda: doubtful, "own_addrs": lambda: [outside, inside]}
        async with World(b=own) as world:
            world.start()
            a, b = await both(world)
            assert doubtful.sentence in b.reason
            assert "its NAT gives out ports of its own" in a.reason

    @simulated
    async def test_a_peer_that_never_starts_is_named(self) -> None:
        async with World() as world:
            world.a.puncher.connected(world.at_a)  # type: ignore[arg-type]
            with pytest.raises(PunchFailed, match=r"began no hole punch within 7 s"):
                await world.a.puncher.direct(world.at_a, 7)  # type: ignore[arg-type]

    @simulated
    async def test_a_timeout_tells_what_was_seen_so_far(self) -> None:
        async with World() as world:
            world.a.takes = world.b.takes = 5
            world.start()
            with pytest.raises(PunchFailed, match=r"within 8 s: attempt 1: no answer 1") as failed:
                await world.a.puncher.direct(world.at_a, 8)  # type: ignore[arg-type]
            assert failed.value.attempts == 2

    @simulated
    async def test_the_dialler_gives_up_when_no_further_attempt_comes(self) -> None:
        async with World(b={"config": Config(punch=PunchConfig(attempts=1))}) as world:
            world.start()
            a, b = await both(world)
            assert b.attempts == 1
            assert a.reason == "attempt 1: no answer 1; the peer made no further attempt"

    @simulated
    async def test_a_relayed_connection_that_closes_ends_it(self) -> None:
        async with World() as world:
            world.a.puncher.connected(world.at_a)  # type: ignore[arg-type]
            waiting = asyncio.create_task(world.a.puncher.direct(world.at_a, 5))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            world.a.puncher.disconnected(world.at_a)  # type: ignore[arg-type]
            with pytest.raises(PunchFailed, match="relayed connection closed"):
                await waiting

    @simulated
    async def test_but_not_a_punch_that_is_under_way(self) -> None:
        async with World(latency=0.2) as world:
            world.a.takes = world.b.takes = 3
            world.start()
            waiting = asyncio.create_task(both(world, 20))
            await asyncio.sleep(2)
            assert len(world.a.punches) == len(world.b.punches) == 1
            world.at_a.abort()
            world.a.puncher.disconnected(world.at_a)  # type: ignore[arg-type]
            world.b.puncher.disconnected(world.at_b)  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            assert not waiting.done()
            a, b = await waiting
            assert a.reason == "attempt 1: no answer 1"
            assert b.reason == "attempt 1: no answer 1; attempt 2: the connection is closed"
            assert now() < 5

    @simulated
    async def test_errors_that_are_no_failed_punch_are_told_too(self) -> None:
        async with World() as world:
            world.b.outcome = lambda n: StreamReset("broke")
            world.start()
            _, b = await both(world)
            assert b.reason == "broke (3 times)"

    @simulated
    async def test_without_an_address_it_says_so(self) -> None:
        async with World(b={"own_addrs": list}) as world:
            world.start()
            _, b = await both(world, 10)
            assert "no address of ours" in b.reason


async def count(
    peer: Any, addrs: Mapping[str, Multiaddr], samples: int, at: Iterator[int]
) -> dict[str, list[Sight]]:
    """A relay's look at a NAT that gives ports in sequence."""
    return {name: [Sight(("9.8.7.6", 1), n, ("5.6.7.8", next(at))) for n in range(samples)] for name in addrs}


def seeing(kind: str, look: Any = None) -> dict[str, Any]:
    """A side whose NAT is of that kind, and whose peer is a flare."""

    async def scattered(peer: Any, addrs: Any, samples: int) -> dict[str, list[Sight]]:
        return {}

    mapping = observed.Mapping(kind, f"our NAT's mapping is {kind}")
    foresight = Foresight(
        mapping=lambda: mapping,
        listen_addrs=lambda: (Multiaddr("/ip4/0.0.0.0/udp/4001/quic-v1"),),
        look=look or scattered,
    )
    return {"mapping": lambda: mapping, "foresight": foresight, "agent": lambda peer: "flare/0.1.0"}


class TestForesight:
    """Two flares that know of their NATs (flare.nat.prediction)."""

    QUIC_A, QUIC_B = (Multiaddr(f"/ip4/{ip}/udp/4001/quic-v1") for ip in ("1.2.3.4", "5.6.7.8"))

    def world(self, a: str, b: str, **values: Any) -> World:
        sides = {
            name: {
                **seeing(kind, values.get(f"look_{name}")),
                "own_addrs": lambda addr=addr: [addr],
                "config": values.get("config", Config()),
            }
            for name, kind, addr in (("a", a, self.QUIC_A), ("b", b, self.QUIC_B))
        }
        world = World(**sides)  # type: ignore[arg-type]
        for side in (world.a, world.b):
            side.puncher._own_punch = Able()  # type: ignore[assignment]
        return world

    @pytest.mark.parametrize(
        ("a", "b", "opener"),
        [
            ("unknown", "endpoint-dependent", "b"),
            ("unknown", "doubtful", "b"),
            ("endpoint-dependent", "endpoint-independent", "a"),
            ("doubtful", "none", "a"),
        ],
    )
    @simulated
    async def test_a_search_in_the_first_attempt(self, a: str, b: str, opener: str) -> None:
        async with self.world(a, b) as world:
            world.works_at(1)
            world.start()
            await both(world)
            opens, probes = (world.a, world.b) if opener == "a" else (world.b, world.a)
            aim = {"a": ("5.6.7.8", 4001), "b": ("1.2.3.4", 4001)}
            assert opens.punches[0]["search"] == Search(Part.OPENS, aim[opener])
            other = "b" if opener == "a" else "a"
            assert probes.punches[0]["search"] == Search(Part.PROBES, aim[other])

    @simulated
    async def test_two_that_can_be_aimed_at_do_as_ever(self) -> None:
        async with self.world("unknown", "endpoint-independent") as world:
            world.start()
            await both(world)
            assert [punch["search"] for punch in world.a.punches + world.b.punches] == [None] * 6

    @simulated
    async def test_a_peer_that_is_no_flare_is_told_nothing(self) -> None:
        async with self.world("unknown", "endpoint-dependent") as world:
            world.b.puncher._agent = lambda peer: "go-libp2p"
            world.start()
            await both(world)
            assert [punch["search"] for punch in world.a.punches + world.b.punches] == [None] * 6

    @simulated
    async def test_two_random_nats_try_once_and_say_why(self) -> None:
        async with self.world("endpoint-dependent", "endpoint-dependent") as world:
            world.a.takes = world.b.takes = 5.0
            world.start()
            a, b = await both(world)
            assert (a.attempts, b.attempts) == (1, 1)
            assert now() < 6, "the other two attempts would take as long"
            for error in (a, b):
                assert "both NATs give out ports of their own" in error.reason

    @simulated
    async def test_two_doubtful_ones_change_places(self) -> None:
        async with self.world("doubtful", "doubtful") as world:
            world.start()
            a, b = await both(world)
            assert [punch["search"].part for punch in world.a.punches] == [Part.PROBES, Part.OPENS]
            assert [punch["search"].part for punch in world.b.punches] == [Part.OPENS, Part.PROBES]
            assert (a.attempts, b.attempts) == (2, 2)

    @pytest.mark.parametrize("who", ["a", "b"])
    @simulated
    async def test_ports_in_sequence_are_among_the_addresses(self, who: str) -> None:
        at = itertools.count(20000)
        kinds = {"a": "unknown", "b": "unknown", who: "doubtful"}
        async with self.world(**kinds, **{f"look_{who}": partial(count, at=at)}) as world:
            side, other = (world.a, world.b) if who == "a" else (world.b, world.a)
            near, _ = linked(side.me, RELAY)
            near.remote_addr = Multiaddr("/ip4/9.8.7.6/udp/4001/quic-v1")
            side.puncher.connected(near)  # type: ignore[arg-type]
            await asyncio.sleep(0.1)
            world.start()
            await both(world)
            *ports, known = [addr.port for addr in other.punches[0]["addrs"]]
            assert known == 4001, (
                "what others saw comes last: two that count meet in the order of their ports"
            )
            assert ports == list(range(ports[0], ports[0] + WINDOW))
            assert ports[0] >= 20003
            again = [addr.port for addr in other.punches[1]["addrs"]]
            assert again[0] > ports[0], "it was looked at again"


class Able(PunchRace):
    """A race that is never run: both transports are there."""

    def __init__(self) -> None:
        super().__init__(None, None)

    @property
    def transports(self) -> frozenset[str]:
        return frozenset({"tcp", "quic-v1"})


class TestGuards:
    @simulated
    async def test_one_upgrade_per_peer_however_many_relayed_connections(self) -> None:
        async with World() as world:
            world.works_at(1)
            world.start()
            again_a, again_b = relayed()
            again_a.handlers[PROTOCOL] = world.a.puncher.serve
            world.b.puncher.connected(again_b)  # type: ignore[arg-type]
            assert await world.b.puncher.direct(again_b, 5) is world.direct_b  # type: ignore[arg-type]
            assert len(world.b.punches) == 1

    @simulated
    async def test_a_new_attempt_of_the_peer_ends_ours_that_still_runs(self) -> None:
        async with World() as world:
            world.a.takes, world.b.takes = 30, 1
            world.start()
            await both(world, 40)
            assert len(world.a.punches) == 3, "it did not wait for 30 s each"

    @simulated
    async def test_so_many_peers_at_once_and_one_more(self) -> None:
        config = Config(punch=PunchConfig(max_active=2))
        async with World(b={"config": config}) as world:
            world.b.takes = 100
            ends: list[End] = []
            for identity in (ALICE, CAROL, Identity.generate()):
                near, far = relayed(identity, BOB)
                near.handlers[PROTOCOL] = world.a.puncher.serve
                ends.append(far)
                world.b.puncher.connected(far)  # type: ignore[arg-type]
                await asyncio.sleep(0.1)
            with pytest.raises(PunchFailed, match="max_active"):
                await world.b.puncher.direct(ends[2], 1)  # type: ignore[arg-type]
            with pytest.raises(PunchFailed, match="still"):
                await world.b.puncher.direct(ends[1], 1)  # type: ignore[arg-type]

    @simulated
    async def test_a_stream_over_a_direct_connection_is_reset(self) -> None:
        async with World() as world:
            near, far = linked()
            near.handlers[PROTOCOL] = world.a.puncher.serve
            stream = await far.open_stream(PROTOCOL)
            with pytest.raises(StreamReset):
                await stream.read()

    @simulated
    async def test_a_closed_puncher_leaves_no_task_and_tells_its_callers(self) -> None:
        async with World() as world:
            world.b.takes = world.a.takes = 1000
            world.start()
            waiting = asyncio.create_task(world.b.puncher.direct(world.at_b, 100))  # type: ignore[arg-type]
            await asyncio.sleep(1)
            await world.b.puncher.close()
            with pytest.raises(FlareError, match="closing"):
                await waiting


class TestComingBack:
    """Relayed connections come and go while an upgrade runs."""

    @simulated
    async def test_a_peer_that_comes_back_during_a_punch_gets_one_of_its_own(self) -> None:
        async with World(b={"own_addrs": lambda: [BOB_ADDR]}) as world:
            world.b.takes = 3
            world.start()
            await asyncio.sleep(1)
            await world.at_b.close()
            world.b.puncher.disconnected(world.at_b)  # type: ignore[arg-type]
            again_a, again_b = relayed(latency=0.05)
            again_a.handlers[PROTOCOL] = world.a.puncher.serve
            world.works_at(2)
            world.b.puncher.connected(again_b)  # type: ignore[arg-type]
            direct = await world.b.puncher.direct(again_b, 30)  # type: ignore[arg-type]
            assert direct is world.direct_b

    @simulated
    async def test_nothing_is_kept_of_an_upgrade_whose_connection_is_gone(self) -> None:
        async with World() as world:
            world.b.takes = 3
            world.start()
            await asyncio.sleep(1)
            world.b.puncher.connected(world.direct_b)  # type: ignore[arg-type]
            world.b.puncher.disconnected(world.at_b)  # type: ignore[arg-type]
            await asyncio.sleep(60)
            assert world.b.puncher._upgrades == {}

    @simulated
    async def test_a_direct_connection_after_a_failure_retires_the_relayed_one(self) -> None:
        async with World() as world:
            world.start()
            await both(world)
            assert not world.at_b.closed
            world.b.puncher.connected(world.direct_b)  # type: ignore[arg-type]
            await asyncio.sleep(Config().punch.grace + 1)
            assert world.at_b.closed
            assert isinstance(world.b.events[-1], PunchSucceeded)


class TestAPeerThatGoesOn:
    @simulated
    async def test_streams_past_its_attempts_are_reset(self) -> None:
        async with World() as world:
            world.a.puncher.connected(world.at_a)  # type: ignore[arg-type]
            for _ in range(40):
                try:
                    async with world.at_b.open_stream(PROTOCOL, allow_limited=True) as stream:
                        await agree(stream, [BOB_ADDR], partial(world.b.puncher._choose, ALICE.peer_id))
                        await asyncio.sleep(2)
                except FlareError:
                    continue
            assert len(world.a.punches) <= SPENT * Config().punch.attempts
            assert len(world.a.punches) >= Config().punch.attempts
