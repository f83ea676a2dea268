"""The TXT resolver against a server on loopback, and its decoder (RFC 1035)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError, NetworkError, TimedOut, UsageError
from flare.transport.dns import MAX_RECORDS, SystemResolver, decode_answer, encode_question, nameservers
from tests.support.aio import aio

QUESTION = encode_question("_dnsaddr.example.com", 0x1234)


def answer(question: bytes, *texts: bytes, flags: int = 0x8180, count: int | None = None) -> bytes:
    """A server's answer with `texts` as TXT records, their names compressed."""
    records = b"".join(b"\xc0\x0c" + struct.pack("!2HIH", 16, 1, 60, len(text)) + text for text in texts)
    number = len(texts) if count is None else count
    return question[:2] + struct.pack("!5H", flags, 1, number, 0, 0) + question[12:-11] + records


def string(text: bytes) -> bytes:
    return bytes([len(text)]) + text


class TestMessages:
    def test_question(self) -> None:
        assert (
            bytes.fromhex(
                "1234 0100 0001 0000 0000 0001 085f646e7361646472 076578616d706c65 03636f6d 00 0010 0001"
                "00 0029 04d0 00000000 0000"
            )
            == QUESTION
        )

    @pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".com", ".".join(["abcdefg"] * 33), "ü.example"])
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(UsageError):
            encode_question(name, 1)

    def test_strings_of_a_record_are_joined(self) -> None:
        message = answer(QUESTION, string(b"dnsaddr=") + string(b"/ip4/1.2.3.4"), string(b"other"))
        assert decode_answer(message, QUESTION) == ["dnsaddr=/ip4/1.2.3.4", "other"]

    def test_other_records_are_passed_over(self) -> None:
        cname = b"\xc0\x0c" + struct.pack("!2HIH", 5, 1, 60, 2) + b"\xc0\x0c"
        txt = b"\xc0\x0c" + struct.pack("!2HIH", 16, 1, 60, 2) + b"\x01x"
        message = answer(QUESTION, count=2) + cname + txt
        assert decode_answer(message, QUESTION) == ["x"]

    def test_case_of_the_name_does_not_matter(self) -> None:
        message = answer(QUESTION, b"\x01x")
        assert decode_answer(message.replace(b"example", b"eXaMpLe"), QUESTION) == ["x"]

    def test_a_cut_answer_asks_for_tcp(self) -> None:
        assert decode_answer(answer(QUESTION, flags=0x8380), QUESTION) is None

    @pytest.mark.parametrize(
        ("code", "reason"), [(2, "server failure"), (3, "no such name"), (5, "refused"), (9, "error 9")]
    )
    def test_refusals(self, code: int, reason: str) -> None:
        with pytest.raises(NetworkError, match=reason):
            decode_answer(answer(QUESTION, flags=0x8180 | code), QUESTION)

    def test_answers_to_something_else(self) -> None:
        good = answer(QUESTION, b"\x01x")
        for bad in (b"", good[:11], b"\x99" + good[1:], good.replace(b"example", b"exbmple"), QUESTION):
            with pytest.raises(DecodeError):
                decode_answer(bad, QUESTION)

    def test_every_truncation(self) -> None:
        good = answer(QUESTION, string(b"hello") + string(b"world"))
        for cut in range(len(good)):
            with pytest.raises(DecodeError):
                decode_answer(good[:cut], QUESTION)

    def test_records_at_the_limit_and_past_it(self) -> None:
        for count in (MAX_RECORDS, MAX_RECORDS + 1):
            texts = decode_answer(answer(QUESTION, *[b"\x01x"] * count), QUESTION)
            assert texts == ["x"] * MAX_RECORDS

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        for message in (data, answer(QUESTION, count=3) + data):
            with contextlib.suppress(DecodeError, NetworkError):
                assert all(isinstance(text, str) for text in decode_answer(message, QUESTION) or [])

    def test_resolv_conf(self, tmp_path: Path) -> None:
        conf = tmp_path / "resolv.conf"
        conf.write_text(
            "# nameserver 9.9.9.9\nsearch lan\nnameserver 10.0.0.1\nnameserver ::1 \nnameserver\n"
        )
        assert nameservers(conf) == [("10.0.0.1", 53), ("::1", 53)]
        assert nameservers(tmp_path / "none") == []


@contextlib.asynccontextmanager
async def server(reply: Callable[[bytes, bool], list[bytes]]) -> AsyncIterator[tuple[str, int]]:
    """A DNS server on loopback; `reply` gets each question and whether it came by TCP."""
    loop = asyncio.get_running_loop()
    tcp = await asyncio.start_server(lambda r, w: by_tcp(r, w), "127.0.0.1", 0)
    port: int = tcp.sockets[0].getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.bind(("127.0.0.1", port))

    async def by_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        for message in reply(await reader.readexactly(size), True):
            writer.write(len(message).to_bytes(2, "big") + message)
        writer.close()
        await writer.wait_closed()

    def by_udp() -> None:
        data, source = udp.recvfrom(4096)
        for message in reply(data, False):
            udp.sendto(message, source)

    loop.add_reader(udp, by_udp)
    try:
        yield "127.0.0.1", port
    finally:
        loop.remove_reader(udp)
        udp.close()
        tcp.close()
        await tcp.wait_closed()


class TestResolver:
    @aio
    async def test_by_udp(self) -> None:
        async with server(lambda question, _: [answer(question, b"\x05hello")]) as address:
            assert await SystemResolver(5, [address]).texts("_dnsaddr.example.com") == ["hello"]

    @aio
    async def test_by_tcp_when_it_was_cut(self) -> None:
        def reply(question: bytes, tcp: bool) -> list[bytes]:
            return [answer(question, *[string(b"x" * 200)] * 30)] if tcp else [answer(question, flags=0x8380)]

        async with server(reply) as address:
            assert await SystemResolver(5, [address]).texts("example.com") == ["x" * 200] * 30

    @aio
    async def test_stray_datagrams_are_ignored(self) -> None:
        def reply(question: bytes, _: bool) -> list[bytes]:
            forged = bytes([question[0] ^ 1]) + answer(question, b"\x06forged")[1:]
            return [b"junk", forged, answer(question, b"\x04true")]

        async with server(reply) as address:
            assert await SystemResolver(5, [address]).texts("example.com") == ["true"]

    @aio
    async def test_the_next_server_is_asked(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            dead = closed.getsockname()
        async with server(lambda question, _: [answer(question, b"\x01x")]) as address:
            assert await SystemResolver(5, [dead, address]).texts("example.com") == ["x"]

    @aio
    async def test_no_such_name_is_final(self) -> None:
        async with server(lambda question, _: [answer(question, flags=0x8183)]) as address:
            with pytest.raises(NetworkError, match="no such name"):
                await SystemResolver(5, [address]).texts("example.com")

    @aio
    async def test_a_silent_server(self) -> None:
        async with server(lambda *_: []) as address:
            with pytest.raises(TimedOut, match=r"TXT records of example\.com took longer than 0.1 s"):
                await SystemResolver(0.1, [address]).texts("example.com")

    @aio
    async def test_no_server(self) -> None:
        with pytest.raises(NetworkError, match="names no server"):
            await SystemResolver(5, []).texts("example.com")

    @aio
    async def test_addresses_come_from_the_system(self) -> None:
        resolver = SystemResolver(5)
        assert await resolver.addresses("127.0.0.1", 4) == [ipaddress.ip_address("127.0.0.1")]
        assert ipaddress.ip_address("127.0.0.1") in await resolver.addresses("localhost", 4)
        with pytest.raises(NetworkError, match="resolving"):
            await resolver.addresses("127.0.0.1", 6)
