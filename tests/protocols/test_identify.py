"""/ipfs/id/1.0.0 and its push (identify/README.md)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core.wire import frame
from flare.errors import DecodeError, FrameTooLarge, ProtocolViolation, TimedOut
from flare.protocols import identify
from flare.wire.envelope import PeerRecord
from flare.wire.messages import Identify
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio
from tests.support.linked import ALICE, ALICE_ADDR, BOB, BOB_ADDR, CAROL, RELAY, linked, relayed, simulated
from tests.support.streams import stream_pair

LAN = Multiaddr("/ip4/192.168.1.2/tcp/4001")
LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/4001")


async def exchange(message: Identify) -> Identify:
    """What Alice gets when Bob answers with `message`."""
    alice, bob = linked()
    near, far = stream_pair(near=alice, far=bob)
    answering = asyncio.create_task(identify.answer(far, message))
    received = await identify.request(near)
    await answering
    return received


class TestTheExchange:
    @aio
    async def test_the_answer_is_read_to_its_end(self) -> None:
        _, bob = linked()
        message = identify.describe(
            BOB, bob, agent="test/1", addrs=[BOB_ADDR], protocols=["/a", "/b"], sequence=7
        )
        assert await exchange(message) == message

    @aio
    async def test_a_long_answer_travels_as_two_messages_and_merges(self) -> None:
        _, bob = linked()
        addrs = [Multiaddr(f"/ip4/8.8.{i}.8/tcp/{4000 + i}") for i in range(100)]
        message = identify.describe(
            BOB, bob, agent="t", addrs=addrs, protocols=[f"/p/{i}" for i in range(150)], sequence=1
        )
        assert len(message.encode()) > identify.SPLIT_ABOVE
        assert await exchange(message) == message

    @aio
    async def test_nothing_at_all_is_a_decode_error(self) -> None:
        near, far = stream_pair()
        await far.close_write()
        with pytest.raises(DecodeError, match="without a message"):
            await identify.request(near)

    @pytest.mark.parametrize("cut", range(1, 12))
    @aio
    async def test_a_truncated_answer_is_a_decode_error(self, cut: int) -> None:
        near, far = stream_pair()
        await far.write(frame(Identify(agent_version="agent/1.0").encode())[:-cut])
        await far.close_write()
        with pytest.raises(DecodeError):
            await identify.request(near)

    @aio
    async def test_an_answer_without_end_stops_at_64_kib(self) -> None:
        at_limit = frame(Identify(agent_version="x" * (identify.LIMIT - 10)).encode())
        for data, fits in ((at_limit[: identify.LIMIT], True), (bytes(identify.LIMIT + 1), False)):
            near, far = stream_pair()
            await far.write(data)
            await far.close_write()
            if fits:
                assert (await identify.request(near)).agent_version
            else:
                with pytest.raises(FrameTooLarge):
                    await identify.request(near)

    def test_ten_messages_merge_and_eleven_are_too_many(self) -> None:
        part = frame(Identify(protocols=("/p",)).encode())
        assert len(identify.merge(part * identify.MESSAGES).protocols) == identify.MESSAGES
        with pytest.raises(DecodeError, match="more than 10 messages"):
            identify.merge(part * (identify.MESSAGES + 1))

    @simulated
    async def test_a_silent_peer_is_timed_out(self) -> None:
        near, _ = stream_pair()
        with pytest.raises(TimedOut, match=r"identify of b took longer than 10 s"):
            await identify.request(near)

    @aio
    async def test_a_key_of_somebody_else_is_a_violation(self) -> None:
        with pytest.raises(ProtocolViolation, match="not this peer's"):
            await exchange(Identify(public_key=CAROL.public_key.to_protobuf()))

    @given(st.binary(max_size=200))
    def test_merging_anything_raises_decode_error_and_nothing_else(self, data: bytes) -> None:
        with contextlib.suppress(DecodeError):
            identify.merge(data)


class TestWhatWeTell:
    def test_observed_addr_is_where_the_peer_comes_from(self) -> None:
        alice, _ = linked()
        message = identify.describe(ALICE, alice, agent="", addrs=[], protocols=[], sequence=1)
        assert message.observed_addr == BOB_ADDR

    def test_observed_addr_over_a_relay_is_the_circuit_and_never_the_relays_socket(self) -> None:
        alice, _ = relayed()
        assert identify.observed(alice) == Multiaddr(f"/p2p/{RELAY.peer_id}/p2p-circuit")

    def test_loopback_addresses_are_told_only_on_this_machine(self) -> None:
        alice, _ = linked()
        told = identify.describe(ALICE, alice, agent="", addrs=[LOOPBACK, LAN], protocols=[], sequence=1)
        assert told.listen_addrs == (LAN,)
        alice.remote_addr = LOOPBACK
        told = identify.describe(ALICE, alice, agent="", addrs=[LOOPBACK, LAN], protocols=[], sequence=1)
        assert told.listen_addrs == (LOOPBACK, LAN)

    def test_addresses_are_cut_so_that_peers_with_4_kib_buffers_read_the_message(self) -> None:
        alice, _ = linked()
        addrs = [Multiaddr(f"/dns4/{'x' * 200}.example/tcp/{i}") for i in range(1, 100)]
        told = identify.describe(ALICE, alice, agent="a", addrs=addrs, protocols=["/p"], sequence=1)
        unsigned = dataclasses.replace(told, signed_peer_record=None)
        assert 3500 < len(unsigned.encode()) <= identify.OWN_LIMIT
        assert told.listen_addrs == tuple(addrs[: len(told.listen_addrs)])


class TestWhatIsEncodedOnce:
    VALUES: ClassVar = {"agent": "a/1", "addrs": (LAN,), "protocols": ("/p", "/q"), "sequence": 7}

    def told(self, description: identify.Description, connection: Any, **changed: Any) -> Identify:
        return identify.merge(description.encoded(connection, **{**self.VALUES, **changed}))

    def test_it_says_what_describe_says(self) -> None:
        alice, _ = linked()
        description = identify.Description(ALICE)
        for _ in range(2):
            told = self.told(description, alice)
            assert told == identify.describe(ALICE, alice, **self.VALUES)

    def test_each_peer_hears_where_it_itself_comes_from(self) -> None:
        alice, bob = linked()
        description = identify.Description(ALICE)
        for connection in (alice, bob, alice):
            assert self.told(description, connection).observed_addr == connection.remote_addr
        longer, _ = linked()
        longer.remote_addr = Multiaddr("/ip6/2001:db8::1/tcp/4001")
        assert self.told(description, longer).observed_addr == longer.remote_addr

    @pytest.mark.parametrize(
        "changed", [{"agent": "b"}, {"addrs": (BOB_ADDR,)}, {"protocols": ("/p",)}, {"sequence": 8}]
    )
    def test_whatever_changes_is_told_and_signed_anew(self, changed: dict[str, Any]) -> None:
        alice, _ = linked()
        description = identify.Description(ALICE)
        self.told(description, alice)
        assert self.told(description, alice, **changed) == identify.describe(
            ALICE, alice, **{**self.VALUES, **changed}
        )

    def test_what_peers_on_this_machine_hear_is_not_told_to_others(self) -> None:
        alice, _ = linked()
        near, _ = linked()
        near.remote_addr = LOOPBACK
        description = identify.Description(ALICE)
        for _ in range(2):
            assert self.told(description, near, addrs=(LOOPBACK, LAN)).listen_addrs == (LOOPBACK, LAN)
            assert self.told(description, alice, addrs=(LOOPBACK, LAN)).listen_addrs == (LAN,)

    def test_another_identity_signs_for_itself(self) -> None:
        alice, bob = linked()
        told = [self.told(identify.Description(who), end) for who, end in ((ALICE, alice), (BOB, bob))]
        for message, who in zip(told, (ALICE, BOB), strict=True):
            assert message.public_key == who.public_key.to_protobuf()
            assert identify.opened(message.signed_peer_record or b"", who.peer_id) is not None

    def test_a_long_one_travels_in_two_messages(self) -> None:
        alice, _ = linked()
        addrs = tuple(Multiaddr(f"/dns4/{'x' * 200}.example/tcp/{i}") for i in range(1, 12))
        description = identify.Description(ALICE)
        for _ in range(2):
            assert self.told(description, alice, addrs=addrs) == identify.describe(
                ALICE, alice, **{**self.VALUES, "addrs": addrs}
            )


class TestWhatWeLearn:
    def test_a_signed_record_replaces_the_plain_addresses(self) -> None:
        record = PeerRecord(BOB.peer_id, 9, (BOB_ADDR,)).seal(BOB)
        signed = identify.opened(record, BOB.peer_id)
        assert signed is not None
        assert (signed.addrs, signed.seq) == ((BOB_ADDR,), 9)

    @pytest.mark.parametrize(
        "record",
        [b"junk", PeerRecord(CAROL.peer_id, 9, (BOB_ADDR,)).seal(CAROL)],
        ids=["junk", "another peer's"],
    )
    def test_a_record_that_is_not_the_peers_own_is_ignored(self, record: bytes) -> None:
        assert identify.opened(record, BOB.peer_id) is None

    def test_what_is_seen_through_a_relay_is_no_observation(self) -> None:
        alice, _ = relayed()
        assert identify.learn(Identify(observed_addr=ALICE_ADDR), alice).observed is None
        direct, _ = linked()
        assert identify.learn(Identify(observed_addr=ALICE_ADDR), direct).observed == ALICE_ADDR

    def test_a_push_that_leaves_fields_out_says_nothing_about_them(self) -> None:
        alice, _ = linked()
        learned = identify.learn(Identify(protocols=("/new",)), alice)
        assert learned == identify.Learned(None, None, ("/new",), None, None)

    def test_a_flood_of_protocols_is_cut(self) -> None:
        many = Identify(protocols=tuple(f"/{i}" for i in range(identify.MAX_PROTOCOLS + 1)))
        assert len(identify.merge(frame(many.encode())).protocols) == identify.MAX_PROTOCOLS
