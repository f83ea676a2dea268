"""Both sides of DCUtR under virtual time (DCUtR.md, "The Protocol")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flare.errors import (
    DecodeError,
    FlareError,
    NetworkError,
    ProtocolNotSupported,
    ProtocolViolation,
    PunchFailed,
    StreamReset,
    TimedOut,
)
from flare.lab import virtual
from flare.protocols.dcutr import CLIENT, PROTOCOL, SERVER, initiator, responder
from flare.protocols.dcutr.addresses import Targets, choose_targets
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.transport.stream import Stream
from flare.wire.messages import HolePunch, HolePunchType, Limit, PunchHint
from flare.wire.multiaddr import Multiaddr, is_public
from tests.support import bad_peers
from tests.support.linked import ALICE, ALICE_ADDR, BOB, BOB_ADDR, End, linked, now, relayed, simulated

CONNECT_A = HolePunch(type=HolePunchType.CONNECT, obs_addrs=(ALICE_ADDR,))
SYNC = HolePunch(type=HolePunchType.SYNC)


def choose(theirs: Sequence[Multiaddr]) -> Targets:
    return choose_targets(theirs, [BOB_ADDR], ALICE.peer_id, is_public=is_public)


class Punch:
    """Stands in for the hole punch: records its calls, and fails until attempt `works`."""

    def __init__(self, works: int = 1, error: Callable[[int], FlareError] | None = None) -> None:
        self.works = works
        self.error = error or (lambda n: PunchFailed(f"nobody answered {n}"))
        self.calls: list[dict[str, Any]] = []
        self.connection = object()

    async def __call__(self, addrs: Sequence[Multiaddr], deadline_ns: int, *, role: str, rtt_ns: int) -> Any:
        self.calls.append(
            {
                "addrs": addrs,
                "wait": deadline_ns - virtual.monotonic_ns(),
                "role": role,
                "rtt": rtt_ns,
                "at": now(),
            }
        )
        await asyncio.sleep(max(0, self.calls[-1]["wait"]) / 1e9)
        if len(self.calls) < self.works:
            await asyncio.sleep(1)
            raise self.error(len(self.calls))
        return self.connection


def upgrade(bob: End, punch: Punch, **values: Any) -> Any:
    """Bob's side, as initiator."""
    values = {"addrs": lambda: [BOB_ADDR], "choose": choose, "clock_ns": virtual.monotonic_ns, **values}
    return initiator.upgrade(bob, punch=punch, **values)  # type: ignore[arg-type]


def respond(stream: Stream, **values: Any) -> Any:
    return responder.respond(
        stream, addrs=lambda: [ALICE_ADDR], choose=choose, clock_ns=virtual.monotonic_ns, **values
    )


async def play_alice(stream: Stream) -> None:
    """A responder by hand."""
    assert HolePunch.decode(await stream.read_frame(MESSAGE_LIMIT)).type is HolePunchType.CONNECT
    await stream.write_frame(CONNECT_A.encode())
    assert HolePunch.decode(await stream.read_frame(MESSAGE_LIMIT)).type is HolePunchType.SYNC


class TestInitiator:
    @pytest.mark.parametrize("latency", [0.001, 0.04, 0.3])
    @simulated
    async def test_it_waits_half_the_round_trip_after_sync(self, latency: float) -> None:
        alice, bob = relayed(latency=latency)
        alice.handlers[PROTOCOL] = play_alice
        punch = Punch()
        upgraded = await upgrade(bob, punch)
        (call,) = punch.calls
        assert call["rtt"] == pytest.approx(2 * latency * 1e9, rel=1e-3)
        assert call["wait"] == pytest.approx(latency * 1e9, rel=1e-3)
        assert (call["role"], call["addrs"]) == (SERVER, (ALICE_ADDR,))
        assert (upgraded.connection, upgraded.attempt, upgraded.failed) == (punch.connection, 1, ())
        await asyncio.sleep(1)

    @simulated
    async def test_both_sides_connect_at_the_same_time(self) -> None:
        alice, bob = relayed(latency=0.08)
        times: list[float] = []

        async def answer(stream: Stream) -> None:
            agreed = await respond(stream)
            assert agreed.deadline_ns == virtual.monotonic_ns(), "A acts immediately upon SYNC"
            times.append(now())

        alice.handlers[PROTOCOL] = answer
        punch = Punch()
        await upgrade(bob, punch)
        times.append(punch.calls[0]["at"] + punch.calls[0]["wait"] / 1e9)
        await asyncio.sleep(1)
        assert times[0] == pytest.approx(times[1], abs=1e-3)

    @simulated
    async def test_the_round_trip_is_measured_anew_for_each_of_three_attempts(self) -> None:
        alice, bob = relayed(latency=0.05)
        alice.handlers[PROTOCOL] = play_alice
        punch = Punch(works=3)

        async def get_slower() -> None:
            await asyncio.sleep(0.5)
            alice.latency = bob.latency = 0.2

        slower = asyncio.create_task(get_slower())
        upgraded = await upgrade(bob, punch)
        await slower
        assert bob.opened == [PROTOCOL] * 3, "on separate streams"
        assert [round(call["rtt"] / 1e9, 3) for call in punch.calls] == [0.1, 0.4, 0.4]
        assert [call["role"] for call in punch.calls] == [SERVER, SERVER, CLIENT], "roles swapped on the last"
        assert upgraded.attempt == 3
        assert [attempt.error for attempt in upgraded.failed] == ["nobody answered 1", "nobody answered 2"]
        await asyncio.sleep(1)

    @simulated
    async def test_roles_stay_with_peers_that_have_them_right(self) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = play_alice
        punch = Punch(works=3)
        await upgrade(bob, punch, last_role=SERVER)
        assert [call["role"] for call in punch.calls] == [SERVER] * 3

    @simulated
    async def test_three_failures_are_told_one_by_one(self) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = play_alice
        with pytest.raises(PunchFailed) as failed:
            await upgrade(bob, Punch(works=9))
        assert failed.value.attempts == 3
        assert failed.value.reason == (
            "attempt 1: nobody answered 1; attempt 2: nobody answered 2; attempt 3: nobody answered 3"
        )

    @simulated
    async def test_the_same_failure_three_times_is_told_once(self) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = play_alice
        with pytest.raises(PunchFailed, match=r"^nobody \(3 times\)$"):
            await upgrade(bob, Punch(works=9, error=lambda n: PunchFailed("nobody")))

    @simulated
    async def test_it_runs_over_limited_connections(self) -> None:
        alice, bob = relayed(limit=Limit(duration=120))
        alice.handlers[PROTOCOL] = play_alice
        assert (await upgrade(bob, Punch())).attempt == 1

    @simulated
    async def test_without_an_address_of_ours_it_does_not_start(self) -> None:
        _, bob = relayed()
        with pytest.raises(PunchFailed, match="no address of ours"):
            await upgrade(bob, Punch(), addrs=list)
        assert bob.opened == []

    @simulated
    async def test_a_peer_that_offers_nothing_for_tcp_is_told_so(self) -> None:
        alice, bob = relayed()
        quic = Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")

        async def only_quic(stream: Stream) -> None:
            await stream.read_frame(MESSAGE_LIMIT)
            await stream.write_frame(HolePunch(type=HolePunchType.CONNECT, obs_addrs=(quic,)).encode())

        alice.handlers[PROTOCOL] = only_quic
        punch = Punch()
        with pytest.raises(PunchFailed, match="offers 1 addresses, none of a transport that we punch over"):
            await upgrade(bob, punch)
        assert punch.calls == []

    @simulated
    async def test_a_peer_that_does_not_speak_it_is_asked_once(self) -> None:
        _, bob = relayed()
        with pytest.raises(PunchFailed, match="does not speak /libp2p/dcutr") as failed:
            await upgrade(bob, Punch())
        assert failed.value.attempts == 1

    @pytest.mark.parametrize("misbehave", [bad_peers.garbage, bad_peers.oversized, bad_peers.nothing])
    @simulated
    async def test_a_peer_that_breaks_the_protocol_is_asked_once(
        self, misbehave: bad_peers.Misbehave
    ) -> None:
        alice, bob = relayed()

        async def handle(stream: Stream) -> None:
            stream.keep()
            await misbehave(stream)

        alice.handlers[PROTOCOL] = handle
        with pytest.raises(PunchFailed):
            await upgrade(bob, Punch())
        assert len(bob.opened) == 1

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_every_bad_answer_has_an_error_in_time(self, misbehave: bad_peers.Misbehave) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = _kept(misbehave)
        stream = await bob.open_stream(PROTOCOL)
        with pytest.raises((DecodeError, NetworkError, TimedOut)):
            await initiator.agree(stream, [BOB_ADDR], choose)
        assert now() <= 10.1
        stream.reset()
        await asyncio.sleep(150)

    @simulated
    async def test_sync_for_connect_is_a_violation(self) -> None:
        alice, bob = relayed()

        async def sync(stream: Stream) -> None:
            await stream.write_frame(SYNC.encode())

        alice.handlers[PROTOCOL] = sync
        stream = await bob.open_stream(PROTOCOL)
        with pytest.raises(ProtocolViolation, match="answered CONNECT with something else"):
            await initiator.agree(stream, [BOB_ADDR], choose)


class Told(initiator.Plan):
    """What the initiator tells a flare, and what it hears."""

    def __init__(self, worth: int = 9) -> None:
        self.heard: list[PunchHint | None] = []
        self.most = worth

    async def prepare(self, attempt: int) -> PunchHint | None:
        return PunchHint(2, attempt)

    def agreed(self, hint: PunchHint | None) -> None:
        self.heard.append(hint)

    def worth(self, attempt: int) -> bool:
        return attempt <= self.most


class TestHints:
    """What flare tells flare beside DCUtR, and nobody else."""

    @simulated
    async def test_each_attempt_tells_and_hears(self) -> None:
        alice, bob = relayed()
        heard: list[PunchHint] = []

        def answer(theirs: PunchHint) -> PunchHint:
            heard.append(theirs)
            return PunchHint(1, theirs.attempt)

        alice.handlers[PROTOCOL] = lambda stream: respond(stream, hint=answer)
        plan = Told()
        with pytest.raises(PunchFailed):
            await upgrade(bob, Punch(works=9), plan=plan)
        assert heard == [PunchHint(2, n) for n in (1, 2, 3)]
        assert plan.heard == [PunchHint(1, n) for n in (1, 2, 3)]

    @simulated
    async def test_who_is_told_nothing_tells_nothing(self) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = lambda stream: respond(stream, hint=lambda theirs: PunchHint(1))
        stream = await bob.open_stream(PROTOCOL)
        agreed = await initiator.agree(stream, [BOB_ADDR], choose)
        assert agreed.hint is None

    @simulated
    async def test_a_peer_that_skips_it_is_no_other_than_before(self) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = play_alice
        plan = Told()
        upgraded = await upgrade(bob, Punch(), plan=plan)
        assert (upgraded.attempt, plan.heard) == (1, [None])

    @pytest.mark.parametrize(("worth", "attempts"), [(1, 1), (2, 2), (3, 3), (9, 3)])
    @simulated
    async def test_no_attempt_is_made_that_tries_nothing_new(self, worth: int, attempts: int) -> None:
        alice, bob = relayed()
        alice.handlers[PROTOCOL] = play_alice
        punch = Punch(works=9)
        with pytest.raises(PunchFailed):
            await upgrade(bob, punch, plan=Told(worth))
        assert len(punch.calls) == attempts


def _kept(misbehave: bad_peers.Misbehave) -> Any:
    async def handle(stream: Stream) -> None:
        stream.keep()
        await misbehave(stream)

    return handle


class TestResponder:
    async def asked(self, ask: Callable[[Stream], Any], pair: tuple[End, End] | None = None) -> Any:
        """What `respond` at Alice's end gives when Bob opens a stream and does `ask`."""
        alice, bob = pair or relayed()
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def handle(stream: Stream) -> None:
            try:
                outcome.set_result(await respond(stream))
            except FlareError as error:
                outcome.set_exception(error)
                stream.reset()

        alice.handlers[PROTOCOL] = handle
        stream = await bob.open_stream(PROTOCOL)
        asking = asyncio.create_task(ask(stream))
        try:
            return await outcome
        finally:
            await asyncio.wait([asking])
            asking.exception()

    @simulated
    async def test_it_answers_with_our_addresses_and_knows_theirs_at_sync(self) -> None:
        received: list[HolePunch] = []

        async def ask(stream: Stream) -> None:
            await stream.write_frame(HolePunch(type=HolePunchType.CONNECT, obs_addrs=(BOB_ADDR,)).encode())
            received.append(HolePunch.decode(await stream.read_frame(MESSAGE_LIMIT)))
            await asyncio.sleep(0.5)
            await stream.write_frame(SYNC.encode())

        agreed = await self.asked(ask)
        assert received == [CONNECT_A]
        assert agreed.targets.addrs == (BOB_ADDR,)
        assert agreed.rtt_ns == pytest.approx(0.5e9, rel=1e-3)

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_every_bad_connect_has_an_error_in_time(self, misbehave: bad_peers.Misbehave) -> None:
        started = now()
        with pytest.raises((DecodeError, NetworkError, TimedOut)):
            await self.asked(misbehave)  # type: ignore[arg-type]
        assert now() - started <= 100

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_every_bad_sync_has_an_error_in_time(self, misbehave: bad_peers.Misbehave) -> None:
        async def ask(stream: Stream) -> None:
            await stream.write_frame(HolePunch(type=HolePunchType.CONNECT, obs_addrs=(BOB_ADDR,)).encode())
            await stream.read_frame(MESSAGE_LIMIT)
            await misbehave(stream)

        with pytest.raises((DecodeError, NetworkError, TimedOut)):
            await self.asked(ask)

    @pytest.mark.parametrize(
        ("first", "why"),
        [(SYNC, "other than CONNECT"), (HolePunch(type=HolePunchType.CONNECT), "without addresses")],
    )
    @simulated
    async def test_a_wrong_first_message_is_a_violation(self, first: HolePunch, why: str) -> None:
        with pytest.raises(ProtocolViolation, match=why):
            await self.asked(lambda stream: stream.write_frame(first.encode()))

    @simulated
    async def test_connect_twice_is_a_violation(self) -> None:
        async def ask(stream: Stream) -> None:
            for _ in range(2):
                await stream.write_frame(
                    HolePunch(type=HolePunchType.CONNECT, obs_addrs=(BOB_ADDR,)).encode()
                )

        with pytest.raises(ProtocolViolation, match="other than SYNC"):
            await self.asked(ask)

    @simulated
    async def test_only_on_relayed_connections_that_we_dialled(self) -> None:
        for pair, why in (
            (linked(), "direct connection"),
            (relayed(BOB, ALICE)[::-1], "dialled the relayed"),
        ):
            with pytest.raises(ProtocolViolation, match=why):
                await self.asked(lambda stream: asyncio.sleep(0), pair)


@simulated
async def test_three_streams_in_a_row_are_served() -> None:
    alice, bob = relayed(latency=0.01)
    served = 0

    async def handle(stream: Stream) -> None:
        nonlocal served
        await respond(stream)
        served += 1

    alice.handlers[PROTOCOL] = handle
    with pytest.raises(PunchFailed):
        await upgrade(bob, Punch(works=9))
    await asyncio.sleep(1)
    assert served == 3


@pytest.mark.parametrize("error", [StreamReset("reset"), TimedOut("x", 1), ProtocolNotSupported(["x"])])
def test_what_is_worth_another_attempt(error: FlareError) -> None:
    assert initiator._worth_another(error) == (not isinstance(error, ProtocolNotSupported))
