"""The status server's HTTP (RFC 9112): what it understands, whom it refuses, and what it outlives."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.config import StatusLimits, Timeouts
from flare.errors import NetworkError, UsageError
from flare.watch.http import Answer, HttpServer, Refused, Request, is_trusted, parse_address, parse_request
from tests.support.aio import aio, eventually

TOKEN = "".join(chr(c) for c in range(33, 127) if chr(c) not in '"(),/:;<=>?@[\\]{}')


class TestRequests:
    def test_a_request(self) -> None:
        head = b"GET /status.json?pretty=1 HTTP/1.1\r\nhost:\t127.0.0.1:9100 \r\nAccept: */*\r\n\r\n"
        assert parse_request(head) == Request("GET", "/status.json", "127.0.0.1:9100")

    def test_http_1_0_needs_no_host(self) -> None:
        assert parse_request(b"HEAD / HTTP/1.0\r\n\r\n") == Request("HEAD", "/", None)

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"GET",
            b"GET / HTTP/2.0",
            b"GET  / HTTP/1.1\r\nHost: a",
            b"GET http://evil.example/ HTTP/1.1\r\nHost: a",
            b"CONNECT evil.example:443 HTTP/1.1\r\nHost: a",
            b"OPTIONS * HTTP/1.1\r\nHost: a",
            b"GET /\x00 HTTP/1.1\r\nHost: a",
            b"GET / HTTP/1.1\nHost: a",
            b"GET / HTTP/1.1\r\nHost : a",
            b"GET / HTTP/1.1\r\nHost: a\r\n folded: b",
            b"GET / HTTP/1.1\r\nno colon",
            b"GET / HTTP/1.1\r\n: nameless",
            b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS client
        ],
    )
    def test_no_request(self, head: bytes) -> None:
        with pytest.raises(Refused) as refused:
            parse_request(head + b"\r\n\r\n")
        assert refused.value.answer.status == HTTPStatus.BAD_REQUEST

    @pytest.mark.parametrize("fields", [b"", b"Host: a\r\nHOST: b\r\n"], ids=["none", "two"])
    def test_one_host_is_named(self, fields: bytes) -> None:
        with pytest.raises(Refused, match="names one Host"):
            parse_request(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")

    @given(st.binary(max_size=200))
    def test_anything_is_a_request_or_refused(self, data: bytes) -> None:
        for head in (data, b"GET /" + data, b"GET / HTTP/1.1\r\n" + data):
            try:
                request = parse_request(head)
            except Refused:
                continue
            assert request.path.startswith("/")
            assert request.path.isascii()

    @given(
        st.text(TOKEN, min_size=1, max_size=10),
        st.text([chr(c) for c in range(33, 127) if chr(c) != "?"], max_size=30),
        st.dictionaries(st.text(TOKEN, min_size=1).filter(lambda name: name.lower() != "host"), st.just("x")),
    )
    def test_what_is_well_formed_is_understood(self, method: str, rest: str, fields: dict[str, str]) -> None:
        lines = [
            f"{method} /{rest} HTTP/1.1",
            "Host: h",
            *(f"{name}: {value}" for name, value in fields.items()),
        ]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        assert parse_request(head) == Request(method, "/" + rest, "h")


class TestWhomItAnswers:
    """A name may be one that an attacker's DNS points here; an address cannot be."""

    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "[::1]",
            "192.0.2.7:80",
            "localhost",
            "LocalHost.:9100",
        ],
    )
    def test_trusted(self, host: str) -> None:
        assert is_trusted(host)

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:9100",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost:9100:9100",
            "127.1",
            "0x7f000001",
            "2130706433",
            "::1",
            "[127.0.0.1]",
            "[::1",
            "127.0.0.1@evil.example",
            "127.0.0.1 evil.example",
            "",
        ],
    )
    def test_refused(self, host: str) -> None:
        assert not is_trusted(host)

    def test_names_that_were_given(self) -> None:
        assert is_trusted("relay.internal:9100", {"relay.internal"})
        assert not is_trusted("other.internal", {"relay.internal"})


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("127.0.0.1:9100", ("127.0.0.1", 9100)),
            ("[::1]:0", ("::1", 0)),
            ("localhost:1", ("127.0.0.1", 1)),
            ("9100", ("127.0.0.1", 9100)),
            ("65535", ("127.0.0.1", 65535)),
        ],
    )
    def test_understood(self, text: str, where: tuple[str, int]) -> None:
        assert parse_address(text) == where

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":80",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "::1:80",
            "[127.0.0.1]:80",
            "relay:80",
        ],
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="no IP address and port"):
            parse_address(text)


class Site:
    """A server that answers with the path, and a client of it."""

    def __init__(self, **limits: int) -> None:
        self.limits = StatusLimits(**limits)
        self.timeouts = Timeouts(status=0.2)

    async def __aenter__(self) -> Site:
        self.server = HttpServer(self.answer, limits=self.limits, timeouts=self.timeouts)
        self.where = await self.server.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    async def answer(self, request: Request) -> Answer:
        if request.path == "/broken":
            raise RuntimeError("on purpose")
        return Answer(HTTPStatus.OK, request.path if request.path != "/large" else "x" * 4_000_000)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.where)

    async def say(self, data: bytes, *, eof: bool = False) -> bytes:
        reader, writer = await self.open()
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.transport.abort()

    async def get(self, path: str = "/") -> bytes:
        return await self.say(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


class TestExchange:
    @aio
    async def test_an_answer_is_whole_and_the_last_on_its_connection(self) -> None:
        async with Site() as site:
            head, _, body = (await site.get("/here")).partition(b"\r\n\r\n")
            assert body == b"/here"
            assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
            assert b"\r\nContent-Length: 5\r\n" in head
            assert b"\r\nConnection: close\r\n" in head

    @aio
    async def test_head_is_the_same_without_the_body(self) -> None:
        async with Site() as site:
            answer = await site.say(b"HEAD /here HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert b"\r\nContent-Length: 5\r\n" in answer
            assert answer.endswith(b"\r\n\r\n")

    @aio
    async def test_a_request_in_pieces(self) -> None:
        async with Site() as site:
            reader, writer = await site.open()
            for piece in (b"GET / HT", b"TP/1.1\r\nHost: localho", b"st\r\n\r", b"\n"):
                writer.write(piece)
                await asyncio.sleep(0.01)
            assert (await reader.read()).endswith(b"\r\n\r\n/")
            writer.close()

    @aio
    @pytest.mark.parametrize("method", ["POST", "DELETE", "TRACE", "get"])
    async def test_other_methods(self, method: str) -> None:
        async with Site() as site:
            answer = await site.say(f"{method} / HTTP/1.1\r\nHost: [::1]\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 405 ")
            assert b"\r\nAllow: GET, HEAD\r\n" in answer

    @aio
    async def test_a_foreign_name(self) -> None:
        async with Site() as site:
            answer = await site.say(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 421 ")

    @aio
    async def test_an_answer_that_breaks_costs_only_itself(self) -> None:
        async with Site() as site:
            assert (await site.get("/broken")).startswith(b"HTTP/1.1 500 ")
            assert (await site.get()).startswith(b"HTTP/1.1 200 ")


class TestHostileClients:
    @aio
    async def test_a_request_at_the_limit_and_one_past_it(self) -> None:
        async with Site(max_request=1024) as site:
            start = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
            for size, status in ((1024, b"200"), (1025, b"431")):
                answer = await site.say(start + b"x" * (size - len(start)) + b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 " + status)

    @aio
    async def test_one_without_end_is_told_and_cut(self) -> None:
        async with Site(max_request=1024) as site:
            answer = await site.say(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000)
            assert answer.startswith(b"HTTP/1.1 431 ")

    @aio
    async def test_a_slow_one_is_told_and_cut(self) -> None:
        async with Site() as site:
            answer = await site.say(b"GET / HTTP/1.1\r\n")
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"took longer than 0.2 s" in answer

    @aio
    @pytest.mark.parametrize("data", [b"\x00" * 100 + b"\r\n\r\n", b"\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
    async def test_garbage(self, data: bytes) -> None:
        async with Site() as site:
            assert (await site.say(data)).startswith(b"HTTP/1.1 400 ")

    @aio
    async def test_who_leaves_in_the_middle(self) -> None:
        async with Site() as site:
            assert await site.say(b"GET / HT", eof=True) == b""
            assert (await site.get()).startswith(b"HTTP/1.1 200 ")

    @aio
    async def test_who_does_not_read_is_cut(self) -> None:
        async with Site(max_connections=1) as site:
            _, writer = await site.open()
            writer.write(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await eventually(lambda: len(site.server._tasks) == 1)
            await eventually(lambda: len(site.server._tasks) == 0, "the only place is free again")
            assert (await site.get()).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()

    @aio
    async def test_who_does_not_hang_up_is_cut(self) -> None:
        async with Site(max_connections=1) as site:
            reader, writer = await site.open()
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await reader.read()).endswith(b"/")
            await eventually(lambda: len(site.server._tasks) == 0, "the only place is free again")
            assert (await site.get()).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()

    @aio
    async def test_as_many_connections_as_allowed_and_one_more(self) -> None:
        async with Site(max_connections=3) as site:
            held = [await site.open() for _ in range(3)]
            await eventually(lambda: len(site.server._tasks) == 3)
            reader, writer = await site.open()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b"", "hung up on"
            writer.transport.abort()
            for _, other in held:
                other.transport.abort()
            await eventually(lambda: len(site.server._tasks) == 0)
            assert (await site.get()).startswith(b"HTTP/1.1 200 ")

    @aio
    async def test_closing_hangs_up_on_everybody(self) -> None:
        async with Site() as site:
            reader, writer = await site.open()
            await eventually(lambda: len(site.server._tasks) == 1)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()


@aio
async def test_a_port_that_is_taken() -> None:
    async with Site() as site:
        with pytest.raises(NetworkError, match=r"the status server cannot listen on 127\.0\.0\.1 port"):
            await HttpServer(site.answer, limits=site.limits, timeouts=site.timeouts).listen(*site.where)
