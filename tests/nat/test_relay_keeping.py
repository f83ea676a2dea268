"""What acts on the choice, under virtual time: dead relays, slow ones, sources that lie, stopping midway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from flare.config import AutoRelayConfig, RelayLimits, Timeouts
from flare.errors import NetworkError, PermissionDenied, ProtocolNotSupported, ReservationRefused, TimedOut
from flare.events import RelayChosen, RelayDropped
from flare.lab.herd import Client, End, Relay, Scenario
from flare.nat.relay_candidate import State, Trouble
from flare.nat.relay_keeping import RelayKeeping, outcome_of, trouble_of
from flare.nat.relay_sources import FoundRelay
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.linked import now, simulated

CONFIG = AutoRelayConfig()


class One(Client):
    """One client of some relays, whose sources are the test's."""

    def __init__(self, relays: Sequence[Relay], sources: Sequence[Any] = ()) -> None:
        super().__init__(0, Scenario(clients=1), relays, random.Random(5))
        self.told: list[tuple[float, RelayChosen | RelayDropped]] = []
        if sources:
            self.keeping = RelayKeeping(self, sources, clock=now)  # type: ignore[arg-type]

    def emit(self, event: RelayChosen | RelayDropped) -> None:
        self.told.append((now(), event))

    async def end(self) -> None:
        await self.keeping.stop("over", hang_up=True)
        await self.client.close()

    def held(self) -> set[PeerId]:
        return {candidate.peer for candidate in self.keeping.choice.held()}


def relays(count: int) -> list[Relay]:
    rng = random.Random(3)
    return [Relay(number, Scenario(), RelayLimits(), rng) for number in range(count)]


class Tells:
    """A source whose answer the test sets."""

    def __init__(self, *found: FoundRelay, trusted: bool = False) -> None:
        self.name, self.trusted = "test", trusted
        self.found: Sequence[FoundRelay] = found
        self.asked: list[float] = []
        self.error: Exception | None = None
        self.hangs = False

    async def find(self) -> Sequence[FoundRelay]:
        self.asked.append(now())
        if self.hangs:
            await asyncio.sleep(10_000)
        if self.error is not None:
            raise self.error
        return self.found


@simulated
async def test_a_relay_that_answers_no_ping_is_dead() -> None:
    some = relays(3)
    one = One(some)
    one.keeping.start()
    await asyncio.sleep(10)
    assert len(one.held()) == 2
    dead = next(relay for relay in some if relay.peer in one.held())
    dead.dies(silent=True)
    began = now()
    longest = 1.25 * CONFIG.ping_every + CONFIG.ping_failures * CONFIG.ping_timeout
    await asyncio.sleep(longest + CONFIG.patience + CONFIG.spread + 2)
    assert dead.peer not in one.held()
    assert len(one.held()) == 2
    dropped = [at for at, event in one.told if isinstance(event, RelayDropped)]
    assert CONFIG.ping_timeout * CONFIG.ping_failures <= dropped[0] - began
    await one.end()


@simulated
async def test_only_what_was_chosen_is_told_to_be_dropped_and_each_once() -> None:
    some = relays(3)
    one = One(some)
    some[2].drains()  # it refuses everybody
    one.keeping.start()
    await asyncio.sleep(10)
    assert one.held() == {some[0].peer, some[1].peer}
    some[0].dies(silent=False)
    await asyncio.sleep(3)
    some[0].restarted()
    await asyncio.sleep(120)
    assert one.held() == {some[0].peer, some[1].peer}
    assert [type(event) for _, event in one.told] == [RelayChosen, RelayChosen]
    await one.end()
    assert [event.relay for _, event in one.told if isinstance(event, RelayDropped)] == [
        some[0].peer,
        some[1].peer,
    ]


@simulated
async def test_a_relay_that_slows_is_left_once() -> None:
    some = relays(3)
    for relay, rtt in zip(some, (0.02, 0.03, 0.04), strict=True):
        relay.rtt = rtt
    one = One(some)
    one.keeping.start()
    await asyncio.sleep(100)
    assert one.held() == {some[0].peer, some[1].peer}
    some[0].rtt = 0.8
    await asyncio.sleep(600)
    assert one.held() == {some[1].peer, some[2].peer}
    (left,) = [event for _, event in one.told if isinstance(event, RelayDropped)]
    assert (left.relay, left.reason) == (some[0].peer, "it has become slow")
    some[0].rtt = 0.02
    await asyncio.sleep(3600)
    assert len([event for _, event in one.told if isinstance(event, RelayDropped)]) == 1, "no to and fro"
    await one.end()


class TestSources:
    @simulated
    async def test_one_that_hangs_holds_nobody_up(self) -> None:
        (relay,) = relays(1)
        hanging, good = Tells(), Tells(FoundRelay(relay.peer, (relay.addr,)))
        hanging.hangs = True
        one = One([relay], [hanging, good])
        one.keeping.start()
        await asyncio.sleep(2)
        assert one.held() == {relay.peer}
        await asyncio.sleep(300)
        assert len(hanging.asked) > 1, "it is asked again after its time-out"
        await one.end()

    @simulated
    async def test_one_that_fails_is_asked_again_later_and_later(self) -> None:
        source = Tells()
        source.error = NetworkError("no way there")
        one = One(relays(1), [source])
        one.keeping.start()
        await asyncio.sleep(20_000)
        gaps = [b - a for a, b in zip(source.asked, source.asked[1:], strict=False)]
        assert min(gaps) >= 2 * 0.75 * CONFIG.ask_every
        assert max(gaps) <= 1.25 * CONFIG.ask_max
        assert len(source.asked) < 40
        await one.end()

    @simulated
    async def test_one_that_has_a_bug_is_asked_again_too(self) -> None:
        source = Tells()
        source.error = ZeroDivisionError("somebody's bug")
        one = One(relays(1), [source])
        one.keeping.start()
        await asyncio.sleep(300)
        assert len(source.asked) > 1
        await one.end()

    @simulated
    async def test_one_that_tells_thousands_gets_no_more_room_than_others(self) -> None:
        (relay,) = relays(1)
        rng = random.Random(1)
        many = [
            FoundRelay(PeerId(b"\x12\x20" + rng.randbytes(32)), (Multiaddr(f"/ip4/8.8.8.{n % 256}/tcp/1"),))
            for n in range(5000)
        ]
        flood, own = Tells(*many), Tells(FoundRelay(relay.peer, (relay.addr,)), trusted=True)
        one = One([relay], [flood, own])
        one.relays = {found.peer: _Nobody(found.peer) for found in many} | {relay.peer: relay}  # type: ignore[assignment]
        one.keeping.start()
        await asyncio.sleep(600)
        assert relay.peer in one.held(), "our own has room"
        assert len(one.keeping.choice.candidates) <= CONFIG.max_candidates
        await one.end()


class _Nobody(Relay):
    """An address that nobody answers."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.ends: set[End] = set()

    async def welcome(self, client: Client) -> End:
        await asyncio.sleep(Timeouts().dial)
        raise TimedOut("dialling", Timeouts().dial)


class TestStopping:
    @simulated
    async def test_at_any_moment_and_then_again(self) -> None:
        """In the midst of probes, dials and reservations: nothing is left, and it starts anew."""
        for moment in (0, 0.01, 0.06, 0.11, 0.16, 0.21, 0.3, 1.0, 2.5):
            some = relays(6)
            one = One(some)
            one.keeping.start()
            await asyncio.sleep(moment)
            await one.keeping.stop("for the test", hang_up=True)
            assert not one.held()
            assert one.client.relays == ()
            assert {candidate.state for candidate in one.keeping.choice.candidates} <= {State.KNOWN}
            one.keeping.start()
            await asyncio.sleep(10)
            assert len(one.held()) == 2, moment
            assert sum(len(relay.ends) for relay in some) == 2, "what probes opened is closed"
            await one.end()

    @simulated
    async def test_a_source_that_was_being_asked_is_asked_again(self) -> None:
        (relay,) = relays(1)
        source = Tells(FoundRelay(relay.peer, (relay.addr,)))
        source.hangs = True
        one = One([relay], [source])
        one.keeping.start()
        await asyncio.sleep(1)
        await one.keeping.stop("for the test", hang_up=True)
        source.hangs = False
        one.keeping.start()
        await asyncio.sleep(2)
        assert one.held() == {relay.peer}
        await one.end()


def test_what_errors_say_of_a_relay() -> None:
    assert trouble_of(ProtocolNotSupported(["hop"])) is Trouble.USELESS
    assert trouble_of(PermissionDenied("no")) is Trouble.USELESS
    assert trouble_of(ReservationRefused("full")) is Trouble.REFUSED
    assert trouble_of(NetworkError("gone")) is Trouble.UNREACHABLE
    assert trouble_of(TimedOut("it", 1)) is Trouble.UNREACHABLE
    assert outcome_of(ReservationRefused("full")) == "reservation refused"
    assert outcome_of(NetworkError("gone")) == "err other"
