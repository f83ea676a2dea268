"""multistream-select 1.0 (connections/README.md, "multistream-select"; multiformats/multistream-select)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import (
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    NetworkError,
    ProtocolNotSupported,
    ProtocolViolation,
    TimedOut,
    UsageError,
)
from flare.transport import multistream
from flare.transport.multistream import HEADER, MAX_MESSAGE, MAX_PROPOSALS, encode
from tests.support.aio import aio, run
from tests.support.channels import channel_pair, socket_channels
from tests.support.streams import stream_pair

T = 5.0


class TestFraming:
    def test_the_example_of_the_spec(self) -> None:
        assert encode("na") == bytes.fromhex("036e610a")
        assert encode(HEADER) == b"\x13/multistream/1.0.0\n"

    def test_a_two_byte_length_includes_the_newline(self) -> None:
        assert encode("/" + "x" * 126) == b"\x80\x01/" + b"x" * 126 + b"\n"

    @pytest.mark.parametrize("name", ["", "a\nb", "x" * MAX_MESSAGE])
    def test_names_that_fit_no_message(self, name: str) -> None:
        with pytest.raises(UsageError):
            encode(name)

    def test_the_longest_name(self) -> None:
        assert len(encode("x" * (MAX_MESSAGE - 1))) == MAX_MESSAGE + 2


async def negotiate(wanted: list[str], supported: list[str]) -> tuple[str, ...]:
    near, far = channel_pair()
    near_task, far_task = multistream.select(near, wanted, T), multistream.handle(far, supported, T)
    return tuple(await asyncio.gather(near_task, far_task))


class TestAgreement:
    @aio
    async def test_the_first_that_both_speak(self) -> None:
        for wanted, supported, agreed in [
            (["/a"], ["/a"], "/a"),
            (["/tls/1.0.0", "/noise"], ["/noise"], "/noise"),
            (["/b", "/a"], ["/a", "/b"], "/b"),
        ]:
            assert await negotiate(wanted, supported) == (agreed, agreed)

    @aio
    async def test_nothing_in_common(self) -> None:
        near, far = channel_pair()
        listener = asyncio.create_task(multistream.handle(far, ["/z"], T))
        with pytest.raises(ProtocolNotSupported, match="/a or /b"):
            await multistream.select(near, ["/a", "/b"], T)
        near.end()
        with pytest.raises(NetworkError, match="proposed /b, which we do not speak"):
            await listener

    @aio
    async def test_over_sockets_and_streams(self) -> None:
        async with socket_channels() as (a, b, _, _):
            assert await asyncio.gather(
                multistream.select(a, ["/x"], T), multistream.handle(b, ["/x"], T)
            ) == ["/x", "/x"]
        near, far = stream_pair(chunk=1)
        assert await asyncio.gather(
            multistream.select(near, ["/x"], T), multistream.handle(far, ["/x"], T)
        ) == ["/x", "/x"]

    @aio
    async def test_header_and_proposal_travel_together(self) -> None:
        near, far = channel_pair()
        await asyncio.gather(multistream.select(near, ["/x"], T), multistream.handle(far, ["/x"], T))
        assert near.written == [encode(HEADER) + encode("/x")]

    @aio
    async def test_ls_is_not_available(self) -> None:
        near, far = channel_pair()
        near.other.feed(encode(HEADER) + encode("ls") + encode("/x"))
        assert await multistream.handle(far, ["/x"], T) == "/x"
        assert b"".join(far.written) == encode(HEADER) + encode("na") + encode("/x")

    @aio
    async def test_supported_may_be_asked(self) -> None:
        _, far = channel_pair()
        far.feed(encode(HEADER) + encode("/chat/2"))
        assert await multistream.handle(far, lambda name: name.startswith("/chat/"), T) == "/chat/2"


class TestPipelining:
    @aio
    async def test_data_after_the_proposal_stays_for_the_protocol(self) -> None:
        _, far = channel_pair()
        far.feed(encode(HEADER) + encode("/x") + b"application data")
        assert await multistream.handle(far, ["/x"], T) == "/x"
        assert far.leftover() == b"application data"
        near, other = stream_pair()
        await near.write(encode(HEADER) + encode("/x") + b"data")
        assert await multistream.handle(other, ["/x"], T) == "/x"
        assert await other.read() == b"data"

    @aio
    async def test_data_after_the_answer_stays_too(self) -> None:
        near, _ = channel_pair()
        near.feed(encode(HEADER) + encode("/x") + b"server speaks first")
        assert await multistream.select(near, ["/x"], T) == "/x"
        assert near.leftover() == b"server speaks first"

    @aio
    async def test_data_for_a_refused_protocol_is_no_violation(self) -> None:
        _, far = channel_pair()
        far.feed(encode(HEADER) + encode("/lazy") + b"\x04abcd" + b"\xff" * 20)
        with pytest.raises(NetworkError, match="/lazy"):
            await multistream.handle(far, ["/x"], T)

    @aio
    async def test_optimistic_sends_all_at_once(self) -> None:
        near, far = channel_pair()
        hopeful = multistream.Optimistic(near, "/x")
        await hopeful.write(b"hello")
        assert near.written == [encode(HEADER) + encode("/x") + b"hello"]
        assert await multistream.handle(far, ["/x"], T) == "/x"
        await far.write(b"\x02hi")
        assert await far.read_exactly(5) == b"hello"
        assert await hopeful.read_frame(10) == b"hi"

    @aio
    async def test_optimistic_learns_of_the_refusal_at_the_first_read(self) -> None:
        near, far = channel_pair()
        hopeful = multistream.Optimistic(near, "/x")
        await hopeful.write(b"hello")
        listener = asyncio.create_task(multistream.handle(far, ["/y"], T))
        with pytest.raises(ProtocolNotSupported):
            await hopeful.read_exactly(1)
        near.end()
        with pytest.raises(NetworkError):
            await listener

    @aio
    async def test_optimistic_survives_a_cancelled_read(self) -> None:
        near, _ = channel_pair()
        hopeful = multistream.Optimistic(near, "/x")
        near.feed(encode(HEADER))
        reader = asyncio.create_task(hopeful.read(10))
        await asyncio.sleep(0.01)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        near.feed(encode("/x") + b"data")
        assert await hopeful.read(10) == b"data"


class TestHostilePeers:
    @aio
    @pytest.mark.parametrize(
        ("sent", "error"),
        [
            (encode("/multistream/2.0.0"), ProtocolViolation),
            (b"GET / HTTP/1.1\r\n" + b"x" * 100, ProtocolViolation),
            (b"\x13/multistream/1.0.0x", DecodeError),
            (b"\x00", DecodeError),
            (b"\x80\x00", DecodeError),
            (b"\xff" * 9 + b"\x01", DecodeError),
            (b"\x81\x08" + b"x" * 1025, FrameTooLarge),
            (b"\x03\xff\xfe\n", DecodeError),
        ],
    )
    async def test_what_is_no_header(self, sent: bytes, error: type[Exception]) -> None:
        for side in (multistream.select, multistream.handle):
            channel, _ = channel_pair()
            channel.feed(sent)
            with pytest.raises(error):
                await side(channel, ["/x"], T)

    @aio
    async def test_a_message_at_the_limit_and_past_it(self) -> None:
        _, far = channel_pair()
        name = "/" + "x" * (MAX_MESSAGE - 2)
        far.feed(encode(HEADER) + encode(name))
        assert await multistream.handle(far, [name], T) == name
        _, far = channel_pair()
        far.feed(encode(HEADER) + b"\x81\x08/" + b"x" * 1023 + b"\n")
        with pytest.raises(FrameTooLarge):
            await multistream.handle(far, [name], T)

    @aio
    async def test_proposals_at_the_limit_and_past_it(self) -> None:
        _, far = channel_pair()
        far.feed(encode(HEADER) + b"".join(encode(f"/{i}") for i in range(MAX_PROPOSALS - 1)) + encode("/x"))
        assert await multistream.handle(far, ["/x"], T) == "/x"
        _, far = channel_pair()
        far.feed(encode(HEADER) + b"".join(encode(f"/{i}") for i in range(MAX_PROPOSALS)) + encode("/x"))
        with pytest.raises(ProtocolViolation, match="32 protocols"):
            await multistream.handle(far, ["/x"], T)

    @aio
    async def test_an_answer_that_was_not_asked_for(self) -> None:
        near, _ = channel_pair()
        near.feed(encode(HEADER) + encode("/other"))
        with pytest.raises(ProtocolViolation, match="answered '/other' to /x"):
            await multistream.select(near, ["/x"], T)

    @aio
    async def test_a_silent_peer(self) -> None:
        for side in (multistream.select, multistream.handle):
            channel, _ = channel_pair()
            with pytest.raises(TimedOut, match=r"longer than 0\.05 s"):
                await side(channel, ["/x"], 0.05)

    @aio
    async def test_a_peer_that_drips(self) -> None:
        _, far = channel_pair()

        async def drip() -> None:
            while True:
                far.feed(b"\x13")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        with pytest.raises((TimedOut, ProtocolViolation)):
            await multistream.handle(far, ["/x"], 0.1)
        dripping.cancel()

    @aio
    async def test_every_truncation(self) -> None:
        whole = encode(HEADER) + encode("/x")
        for cut in range(len(whole)):
            for side in (multistream.select, multistream.handle):
                channel, other = channel_pair()
                channel.feed(whole[:cut])
                other.end()
                with pytest.raises(ConnectionClosed):
                    await side(channel, ["/x"], T)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_an_answer_or_a_clear_error(data: bytes) -> None:
    async def main() -> None:
        for side in (multistream.select, multistream.handle):
            channel, other = channel_pair()
            channel.feed(data)
            other.end()
            with pytest.raises((ProtocolViolation, NetworkError)):
                await side(channel, ["/x"], T)

    run(main())
