"""Peers of a relay: reserving, connecting through it, and being connected to (circuit-v2.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flare.errors import (
    DecodeError,
    FlareError,
    LimitedConnection,
    NetworkError,
    PermissionDenied,
    ProtocolViolation,
    RelayRefused,
    StreamReset,
    TimedOut,
)
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL, stop
from flare.protocols.relay.connect import connect
from flare.protocols.relay.reserve import reserve
from flare.transport.stream import Stream
from flare.wire.envelope import Voucher
from flare.wire.messages import (
    HopMessage,
    HopType,
    Limit,
    RelayPeer,
    Reservation,
    Status,
    StopMessage,
    StopType,
)
from tests.support import bad_peers
from tests.support.linked import ALICE, BOB, BOB_ADDR, CAROL, RELAY, RELAY_ADDR, linked, now, simulated

REFUSALS = [status for status in Status if status is not Status.OK]


def relay_answering(
    answer: HopMessage | Callable[[Stream], Awaitable[None]], asked: list[Any] | None = None
) -> Any:
    """Alice's end of a connection to a relay that answers HOP with this."""
    near, far = linked(ALICE, RELAY)
    near.remote_addr = RELAY_ADDR

    async def handle(stream: Stream) -> None:
        stream.keep()
        if isinstance(answer, HopMessage):
            request = HopMessage.decode(await stream.read_frame(MESSAGE_LIMIT))
            if asked is not None:
                asked.append(request)
            await stream.write_frame(answer.encode())
        else:
            await answer(stream)

    far.handlers[HOP_PROTOCOL] = handle
    return near


def granted(**values: Any) -> HopMessage:
    reservation = Reservation(**{"expire": 1_800_000_000, "addrs": (), **values})
    return HopMessage(type=HopType.STATUS, status=Status.OK, reservation=reservation)


class TestReserve:
    @simulated
    async def test_what_is_granted(self) -> None:
        voucher = Voucher(RELAY.peer_id, ALICE.peer_id, 1_800_000_000)
        addr = RELAY_ADDR.with_peer(RELAY.peer_id)
        answer = HopMessage(
            type=HopType.STATUS,
            status=Status.OK,
            reservation=Reservation(expire=1_800_000_000, addrs=(addr,), voucher=voucher.seal(RELAY)),
            limit=Limit(duration=120, data=1024),
        )
        asked: list[HopMessage] = []
        held = await reserve(relay_answering(answer, asked))
        assert asked == [HopMessage(type=HopType.RESERVE)]
        assert (held.relay, held.expires, held.addrs) == (RELAY.peer_id, 1_800_000_000, (addr,))
        assert (held.limit, held.voucher) == (Limit(duration=120, data=1024), voucher)

    @simulated
    async def test_addresses_get_the_relays_id_and_foreign_ones_are_left_out(self) -> None:
        addrs = (
            BOB_ADDR,
            RELAY_ADDR.with_peer(CAROL.peer_id),
            RELAY_ADDR.with_peer(RELAY.peer_id) / "/p2p-circuit",
        )
        held = await reserve(relay_answering(granted(addrs=addrs)))
        assert held.addrs == (BOB_ADDR.with_peer(RELAY.peer_id),)

    @simulated
    async def test_an_empty_list_leaves_the_address_that_was_dialled(self) -> None:
        held = await reserve(relay_answering(granted()))
        assert held.addrs == (RELAY_ADDR.with_peer(RELAY.peer_id),)

    @pytest.mark.parametrize(
        "voucher",
        [
            None,
            b"",
            b"junk",
            Voucher(CAROL.peer_id, ALICE.peer_id, 1).seal(CAROL),
            Voucher(RELAY.peer_id, CAROL.peer_id, 1).seal(RELAY),
        ],
        ids=["none", "empty", "junk", "another relay's", "for another peer"],
    )
    @simulated
    async def test_vouchers_are_advisory(self, voucher: bytes | None) -> None:
        assert (await reserve(relay_answering(granted(voucher=voucher)))).voucher is None

    @pytest.mark.parametrize("status", REFUSALS)
    @simulated
    async def test_each_refusal_has_its_error(self, status: Status) -> None:
        with pytest.raises(RelayRefused) as refused:
            await reserve(relay_answering(HopMessage(type=HopType.STATUS, status=status)))
        assert refused.value.status == status

    @pytest.mark.parametrize(
        "answer",
        [HopMessage(type=HopType.RESERVE), HopMessage(type=HopType.STATUS, status=Status.OK)],
        ids=["no status", "no reservation"],
    )
    @simulated
    async def test_an_answer_that_is_none_is_a_violation(self, answer: HopMessage) -> None:
        with pytest.raises(ProtocolViolation):
            await reserve(relay_answering(answer))

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_bad_relays_cost_ten_seconds_at_most(self, misbehave: bad_peers.Misbehave) -> None:
        connection = relay_answering(misbehave)
        with pytest.raises((DecodeError, NetworkError, TimedOut)):
            await reserve(connection)
        assert now() <= 10.1
        assert not connection.closed
        await asyncio.sleep(150)

    @simulated
    async def test_not_over_a_limited_connection(self) -> None:
        near, _ = linked(ALICE, RELAY, limit=Limit(data=1))
        with pytest.raises(LimitedConnection):
            await reserve(near)  # type: ignore[arg-type]


class TestConnect:
    @simulated
    async def test_bytes_behind_the_status_belong_to_the_circuit(self) -> None:
        limit = Limit(duration=1, data=2)
        answer = HopMessage(type=HopType.STATUS, status=Status.OK, limit=limit)

        async def answering(stream: Stream) -> None:
            request = HopMessage.decode(await stream.read_frame(MESSAGE_LIMIT))
            assert request == HopMessage(type=HopType.CONNECT, peer=RelayPeer(id=BOB.peer_id))
            await stream.write(answer.frame() + b"hello from the circuit")

        stream, told = await connect(relay_answering(answering), BOB.peer_id)
        assert told == limit
        assert await stream.read_exactly(22) == b"hello from the circuit"

    @simulated
    async def test_without_a_limit_it_is_unlimited_and_with_zeros_it_is_limited(self) -> None:
        for limit in (None, Limit(), Limit(duration=0, data=0)):
            answer = HopMessage(type=HopType.STATUS, status=Status.OK, limit=limit)
            assert (await connect(relay_answering(answer), BOB.peer_id))[1] == limit

    @pytest.mark.parametrize("status", REFUSALS)
    @simulated
    async def test_each_refusal_has_its_error(self, status: Status) -> None:
        with pytest.raises(RelayRefused, match=f"connecting to {BOB.peer_id}") as refused:
            await connect(relay_answering(HopMessage(type=HopType.STATUS, status=status)), BOB.peer_id)
        assert refused.value.status == status

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_bad_relays_cost_thirty_seconds_at_most(self, misbehave: bad_peers.Misbehave) -> None:
        with pytest.raises((DecodeError, NetworkError, TimedOut)):
            await connect(relay_answering(misbehave), BOB.peer_id)
        assert now() <= 30.1
        await asyncio.sleep(150)


class TestStop:
    async def opened(self, handle: Callable[[Stream], Awaitable[Any]]) -> Stream:
        near, far = linked(RELAY, BOB)

        async def handler(stream: Stream) -> None:
            stream.keep()
            await handle(stream)

        far.handlers[STOP_PROTOCOL] = handler
        return await near.open_stream(STOP_PROTOCOL)

    @simulated
    async def test_an_offer_is_agreed_to_and_what_follows_is_the_circuits(self) -> None:
        near, far = linked(RELAY, BOB)
        circuits: list[stop.IncomingCircuit] = []

        async def handler(stream: Stream) -> None:
            stream.keep()
            circuits.append(await stop.accept(stream))

        far.handlers[STOP_PROTOCOL] = handler
        limit = Limit(duration=5, data=6)
        stream = await stop.open_stop(near, ALICE.peer_id, limit)  # type: ignore[arg-type]
        await stream.write(b"inside")
        (circuit,) = circuits
        assert (circuit.peer, circuit.limit, circuit.relay) == (ALICE.peer_id, limit, RELAY.peer_id)
        assert await circuit.stream.read_exactly(6) == b"inside"
        await circuit.stream.write(b"and back")
        assert await stream.read_exactly(8) == b"and back"

    @pytest.mark.parametrize("misbehave", bad_peers.MALFORMED, ids=bad_peers.name)
    @simulated
    async def test_what_is_no_message_is_answered_as_malformed(self, misbehave: bad_peers.Misbehave) -> None:
        stream = await self.opened(stop.accept)
        await misbehave(stream)
        answer = StopMessage.decode(await stream.read_frame(MESSAGE_LIMIT))
        assert (answer.type, answer.status) == (StopType.STATUS, Status.MALFORMED_MESSAGE)
        assert await stream.read() == b""
        await stream.close()

    @pytest.mark.parametrize("misbehave", bad_peers.STUCK, ids=bad_peers.name)
    @simulated
    async def test_the_silent_and_the_slow_are_reset_in_time(self, misbehave: bad_peers.Misbehave) -> None:
        stream = await self.opened(stop.accept)
        misbehaving = asyncio.create_task(misbehave(stream))  # type: ignore[arg-type]
        with pytest.raises(StreamReset):
            await stream.read()
        assert now() == pytest.approx(10, abs=0.1)
        await misbehaving

    @pytest.mark.parametrize(
        ("offer", "status"),
        [
            (StopMessage(type=StopType.CONNECT), Status.MALFORMED_MESSAGE),
            (StopMessage(type=StopType.STATUS, status=Status.OK), Status.UNEXPECTED_MESSAGE),
        ],
        ids=["no peer", "status"],
    )
    @simulated
    async def test_a_message_that_is_no_offer(self, offer: StopMessage, status: Status) -> None:
        errors: list[FlareError] = []

        async def accept(stream: Stream) -> None:
            try:
                await stop.accept(stream)
            except FlareError as error:
                errors.append(error)

        stream = await self.opened(accept)
        await stream.write_frame(offer.encode())
        assert StopMessage.decode(await stream.read_frame(MESSAGE_LIMIT)).status == status
        assert isinstance(errors[0], ProtocolViolation)
        await stream.close()

    @simulated
    async def test_whom_we_do_not_allow_is_denied(self) -> None:
        near, far = linked(RELAY, BOB)

        async def handler(stream: Stream) -> None:
            with pytest.raises(PermissionDenied):
                await stop.accept(stream, allow=lambda peer, limit: peer != ALICE.peer_id)

        far.handlers[STOP_PROTOCOL] = handler
        with pytest.raises(PermissionDenied):
            await stop.open_stop(near, ALICE.peer_id, None)  # type: ignore[arg-type]

    @simulated
    async def test_a_relay_that_we_asked_for_nothing_is_refused(self) -> None:
        near, far = linked(RELAY, BOB)
        far.handlers[STOP_PROTOCOL] = stop.refuse
        with pytest.raises(PermissionDenied):
            await stop.open_stop(near, ALICE.peer_id, None)  # type: ignore[arg-type]
