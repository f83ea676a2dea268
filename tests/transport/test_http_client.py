"""The HTTP client (RFC 9112): its decoder by itself, and whole exchanges with a server on loopback."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from flare.config import HttpLimits
from flare.errors import DecodeError, FrameTooLarge, NetworkError, TimedOut, UsageError
from flare.transport.http_client import ResponseDecoder, encode_request, parse_url, request
from flare.transport.sockets import IpAddress
from tests.support.aio import aio
from tests.support.http_server import server

LIMITS = HttpLimits(max_head=200, max_body=10)


def decoded(
    data: bytes, *, method: str = "GET", limits: HttpLimits = LIMITS, step: int = 0
) -> ResponseDecoder:
    """The response in `data`, fed in pieces of `step` bytes, after which the server closes."""
    decoder = ResponseDecoder(method, limits)
    for at in range(0, len(data), step or len(data) or 1):
        decoder.feed(data[at : at + (step or len(data))])
    decoder.end()
    return decoder


class TestBody:
    """RFC 9112, 6.3."""

    @pytest.mark.parametrize("step", [0, 1, 2, 7])
    @pytest.mark.parametrize(
        ("rest", "body"),
        [
            (b"Content-Length: 5\r\n\r\nhello, and more", b"hello"),
            (b"Content-Length: 5, 5\r\n\r\nhello", b"hello"),
            (b"Content-Length: 0\r\n\r\n", b""),
            (b"\r\nto the end", b"to the end"),
            (b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nA: b\r\n\r\n", b"hello"),
            (b"Transfer-Encoding: Chunked\nContent-Length: 3\n\n5\nhello\n0\n\n", b"hello"),
        ],
    )
    def test_where_it_ends(self, rest: bytes, body: bytes, step: int) -> None:
        decoder = decoded(b"HTTP/1.1 200 OK\r\nA: b\r\n" + rest, step=step)
        assert (decoder.status, bytes(decoder.body)) == (200, body)
        assert decoder.headers[0] == ("a", "b")

    @pytest.mark.parametrize(
        ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"204 No Content"), ("GET", b"304 Not Modified")]
    )
    def test_answers_without_one(self, method: str, status: bytes) -> None:
        decoder = ResponseDecoder(method, LIMITS)
        decoder.feed(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n")
        assert decoder.done
        assert not decoder.body

    def test_interim_answers_are_passed_over(self) -> None:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert decoded(interim * 8 + b"HTTP/1.1 200\r\n\r\n", limits=HttpLimits()).status == 200
        with pytest.raises(DecodeError, match="status 100"):
            decoded(interim * 9, limits=HttpLimits())

    def test_a_folded_field(self) -> None:
        assert decoded(b"HTTP/1.1 200 OK\r\nA: b\r\n\t c\r\n\r\n").headers == (("a", "b c"),)

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"",
        ],
    )
    def test_one_that_is_cut(self, data: bytes) -> None:
        with pytest.raises(NetworkError, match="before its answer was complete"):
            decoded(data)

    @pytest.mark.parametrize(
        "data",
        [
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n123456789\r\n",
        ],
    )
    def test_what_is_none(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            decoded(data)

    @given(data=st.binary(max_size=200), step=st.integers(1, 9))
    def test_anything_else_is_an_error_of_ours(self, data: bytes, step: int) -> None:
        for message in (
            data,
            b"HTTP/1.1 200 OK\r\n" + data,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data,
        ):
            with contextlib.suppress(DecodeError, NetworkError):
                assert len(decoded(message, step=step).body) <= LIMITS.max_body


class TestLimits:
    @pytest.mark.parametrize(
        "rest",
        [
            b"\r\n" + b"x" * 10,
            b"Content-Length: 10\r\n\r\n" + b"x" * 10,
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nxxxxx\r\n5\r\nxxxxx\r\n0\r\n\r\n",
        ],
    )
    def test_the_body(self, rest: bytes) -> None:
        assert bytes(decoded(b"HTTP/1.1 200 OK\r\n" + rest).body) == b"x" * 10
        more = rest.replace(b"10\r", b"11\r").replace(b"0\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n")
        with pytest.raises(FrameTooLarge):
            decoded(b"HTTP/1.1 200 OK\r\n" + (more if more != rest else rest + b"x"))

    def test_the_head(self) -> None:
        def head(size: int) -> bytes:
            fixed = b"HTTP/1.1 200 OK\r\nX: \r\nContent-Length: 0\r\n\r\n"
            return fixed.replace(b"X: ", b"X: " + b"y" * (size - len(fixed)))

        assert decoded(head(200)).done
        with pytest.raises(FrameTooLarge):
            decoded(head(201))

    def test_a_head_without_any_end(self) -> None:
        decoder = ResponseDecoder("GET", LIMITS)
        decoder.feed(b"x" * 200)
        with pytest.raises(FrameTooLarge):
            decoder.feed(b"x")

    def test_chunks_of_one_byte_cost_head(self) -> None:
        body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000
        with pytest.raises(FrameTooLarge):
            decoded(body, limits=HttpLimits(max_head=200))


class TestRequest:
    def test_its_bytes(self) -> None:
        sent = encode_request(
            parse_url("http://[::1]:5000/ctl?x=1"),
            method="POST",
            headers=[("SOAPAction", '"a#b"'), ("User-Agent", "me")],
            body=b"<x/>",
        )
        assert sent == (
            b'POST /ctl?x=1 HTTP/1.1\r\nHost: [::1]:5000\r\nSOAPAction: "a#b"\r\nUser-Agent: me\r\n'
            b"Connection: close\r\nAccept-Encoding: identity\r\nContent-Length: 4\r\n\r\n<x/>"
        )

    def test_a_zone_stays_here(self) -> None:
        for url, host in (
            ("http://[fe80::1%3]:5000/", b"Host: [fe80::1]:5000\r\n"),
            ("http://[fe80::1%eth0]/", b"Host: [fe80::1]\r\n"),
            ("http://a%62c/", b"Host: a%62c\r\n"),
        ):
            assert host in encode_request(parse_url(url))

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "ftp://host/",
            "http:///x",
            "http://user@host/",
            "http://host:0/",
            "http://host:99999/",
            "http://[::1/",
            "http://host/a b",
            "http://host/\r\nX: y",
            "http://hóst/",
        ],
    )
    def test_urls_that_are_none(self, url: str) -> None:
        with pytest.raises(UsageError):
            parse_url(url)

    @pytest.mark.parametrize("field", [("X", "a\r\nB: c"), ("X:", "a"), ("", "a"), ("X", "\u20ac")])
    def test_fields_that_are_none(self, field: tuple[str, str]) -> None:
        with pytest.raises(UsageError):
            encode_request(parse_url("http://host/"), headers=[field])

    def test_a_method_that_is_none(self) -> None:
        with pytest.raises(UsageError):
            encode_request(parse_url("http://host/"), method="GET /")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class TestExchange:
    @aio
    async def test_a_get(self) -> None:
        heads: list[bytes] = []
        async with server(lambda head: heads.append(head) or OK) as url:
            response = await request(f"{url}/a?b", headers=[("Accept", "text/plain")])
        assert (response.status, response.body, response.url) == (200, b"ok", f"{url}/a?b")
        assert response.local == "127.0.0.1"
        assert heads[0].startswith(b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nAccept: text/plain\r\n" in heads[0]

    @aio
    async def test_any_status_is_an_answer(self) -> None:
        async with server(lambda head: b"HTTP/1.1 500 Oh\r\n\r\nfault") as url:
            response = await request(url, method="POST", body=b"x")
        assert (response.status, response.body) == (500, b"fault")

    @aio
    async def test_names_are_tried_address_by_address(self) -> None:
        class Names:
            async def addresses(self, name: str, version: int) -> list[IpAddress]:
                assert name == "router.example"
                return [ipaddress.ip_address("127.0.0.2"), ipaddress.ip_address("127.0.0.1")]

            async def texts(self, name: str) -> list[str]:
                raise AssertionError

        async with server(lambda head: OK) as url:
            port = url.rpartition(":")[2]
            response = await request(f"http://router.example:{port}/", resolver=Names())
        assert response.body == b"ok"

    @aio
    async def test_from_an_address_of_ours(self) -> None:
        async with server(lambda head: OK) as url:
            assert (await request(url, source="127.0.0.3")).local == "127.0.0.3"

    @aio
    async def test_redirects(self) -> None:
        def answer(head: bytes) -> bytes:
            return b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n" if b" /a " in head else OK

        async with server(answer) as url:
            assert (await request(f"{url}/a")).url == f"{url}/b"
            assert (await request(f"{url}/a", method="POST")).status == 302

    @aio
    async def test_as_many_redirects_as_are_allowed(self) -> None:
        def answer(head: bytes) -> bytes:
            number = int(head.split(b" ")[1][1:])
            return OK if number == 3 else b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % (number + 1)

        async with server(answer) as url:
            assert (await request(f"{url}/0")).body == b"ok"
            with pytest.raises(NetworkError, match="more than 3 redirects"):
                await request(f"{url}/-1")

    @pytest.mark.parametrize(
        "onward", ["http://127.0.0.2/", "//169.254.169.254/x", "file:///etc", "http://[x"]
    )
    @aio
    async def test_a_redirect_leads_nowhere_else(self, onward: str) -> None:
        async with server(lambda head: f"HTTP/1.1 302 Found\r\nLocation: {onward}\r\n\r\n".encode()) as url:
            with pytest.raises(DecodeError, match="redirect"):
                await request(url)

    @aio
    async def test_a_silent_server(self) -> None:
        async with server(lambda head: None) as url:
            with pytest.raises(TimedOut, match="GET http"):
                await request(url, limits=HttpLimits(timeout=0.05))

    @aio
    async def test_nobody_there(self) -> None:
        async with server(lambda head: OK) as url:
            pass
        with pytest.raises(NetworkError, match="connecting to"):
            await request(url)

    @aio
    async def test_too_much(self) -> None:
        async with server(lambda head: b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) as url:
            with pytest.raises(FrameTooLarge):
                await request(url, limits=HttpLimits(max_body=99_999))
            assert len((await request(url, limits=HttpLimits(max_body=100_000))).body) == 100_000


class TestTls:
    @aio
    async def test_certificates_are_judged(self, tmp_path: Path) -> None:
        authority, tls = certificate(tmp_path)
        async with server(lambda head: OK, tls) as url:
            trusting = ssl.create_default_context(cafile=str(authority))
            response = await request(url, tls=trusting)
            assert (response.body, response.url) == (b"ok", url)
            with pytest.raises(NetworkError, match="certificate"):
                await request(url)

    @aio
    async def test_no_redirect_out_of_it(self, tmp_path: Path) -> None:
        authority, tls = certificate(tmp_path)
        onward = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n"
        async with server(lambda head: onward, tls) as url:
            with pytest.raises(DecodeError, match="redirect from https"):
                await request(url, tls=ssl.create_default_context(cafile=str(authority)))


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for 127.0.0.1 in a file, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context
