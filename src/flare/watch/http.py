"""As much HTTP/1.1 as a status page needs: GET and HEAD, and one request per connection (RFC 9112).

It serves strangers' programs on the operator's machine, so everything is bounded: connections, the size of a
request, and the time for each step. A `Host` that is a name which somebody's DNS could point here is refused:
so no web page can read the status through the operator's browser (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from flare.config import StatusLimits, Timeouts
from flare.errors import NetworkError, TimedOut, UsageError
from flare.transport.deadline import within
from flare.transport.tasks import Tasks

log = logging.getLogger("flare.watch")

PLAIN: Final = "text/plain; charset=utf-8"
BACKLOG: Final = 16  # connections that the kernel keeps until they are accepted
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") (/[!-~]*) HTTP/1\.([01])")
_FIELD_NAME: Final = re.compile(_TOKEN)
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{0,5})?")
_ALWAYS: Final = (
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; `path` is without the query. `host` is None where HTTP/1.0 names none."""

    method: str
    path: str
    host: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; what every response carries is added to `headers`."""

    status: HTTPStatus
    body: str | bytes
    content_type: str = PLAIN
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self, *, with_body: bool) -> bytes:
        """The bytes to send; without the body for HEAD."""
        body = self.body.encode() if isinstance(self.body, str) else self.body
        fields = (
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(body))),
            *_ALWAYS,
            *self.headers,
        )
        head = f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        return head.encode("latin-1") + (body if with_body else b"")


class Refused(Exception):
    """A request that gets no more than this answer."""

    def __init__(self, status: HTTPStatus, why: str, *headers: tuple[str, str]) -> None:
        super().__init__(why)
        self.answer = Answer(status, why + "\n", headers=headers)


def parse_request(head: bytes) -> Request:
    """The request whose line and fields are `head`, up to the empty line. Refused says what is wrong."""
    line, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request for a path")
    method, target, minor = matched.groups()
    hosts = []
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise Refused(HTTPStatus.BAD_REQUEST, "a header field has no name")
        if name.lower() == b"host":
            hosts.append(value.strip(b" \t").decode("latin-1"))
    if len(hosts) > 1 or (not hosts and minor == b"1"):
        raise Refused(HTTPStatus.BAD_REQUEST, "a request names one Host")
    path = target.decode("ascii").partition("?")[0]
    return Request(method.decode("ascii"), path, hosts[0] if hosts else None)


def is_trusted(host: str, names: Iterable[str] = ()) -> bool:
    """`host` is an IP address, localhost or one of `names`, with or without a port."""
    matched = _HOST.fullmatch(host)
    if matched is None:
        return False
    bracketed, plain = matched.groups()
    try:
        return ipaddress.ip_address(bracketed or plain).version == (6 if bracketed else 4)
    except ValueError:
        return plain is not None and plain.lower().removesuffix(".") in {"localhost", *names}


def parse_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:9100`, `[::1]:9100`, `localhost:9100`, or a port on loopback alone. UsageError."""
    host, _, port = text.rpartition(":")
    if host == "localhost" or (not host and text == port):
        host = "127.0.0.1"
    try:
        if not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError
        ip = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if (ip.version == 6) != host.startswith("["):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{text!r} is no IP address and port, such as 127.0.0.1:9100 or [::1]:9100"
        ) from None
    return str(ip), int(port)


class HttpServer:
    """Answers requests with what `answer` returns. Beyond `limits.max_connections` it hangs up at once."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Answer]],
        *,
        names: Iterable[str] = (),
        limits: StatusLimits,
        timeouts: Timeouts,
    ) -> None:
        self._answer = answer
        self._names = frozenset(name.lower() for name in names)
        self._limits = limits
        self._timeout = timeouts.status
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept from now on; returns where, since port 0 is any free one. NetworkError."""
        try:
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=self._limits.max_request, backlog=BACKLOG
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            made = NetworkError(f"the status server cannot listen on {host} port {port}: {reason}")
            made.errno = error.errno
            raise made from error
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def close(self) -> None:
        """Stop listening and hang up on everybody."""
        if self._server is not None:
            self._server.close()
            await self._tasks.cancel()
            await self._server.wait_closed()
            self._server = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._limits.max_connections:
            log.debug("refused a status request: StatusLimits.max_connections")
            writer.transport.abort()
        else:
            self._tasks.start(self._serve(reader, writer), "status request")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer, with_body = await self._exchange(reader)
            async with within(self._timeout, "answering a status request"):
                writer.write(answer.encode(with_body=with_body))
                await writer.drain()
                writer.write_eof()
                # until the client hangs up too: closing on what it still sends would take the answer from it
                while await reader.read(self._limits.max_request):
                    pass
        except (OSError, asyncio.IncompleteReadError) as error:  # TimedOut is one
            log.debug("a status request: %s", error)
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        """One request, and its answer; whether that has a body."""
        try:
            try:
                async with within(self._timeout, "a status request"):
                    head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"a request is at most {self._limits.max_request} bytes",
                ) from None
            except TimedOut as late:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, str(late)) from None
            return await self._judge(parse_request(head))
        except Refused as refused:
            return refused.answer, True

    async def _judge(self, request: Request) -> tuple[Answer, bool]:
        if request.host is not None and not is_trusted(request.host, self._names):
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server answers to IP addresses, to localhost, and to the names it was given",
            )
        if request.method not in ("GET", "HEAD"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ("Allow", "GET, HEAD"))
        with_body = request.method == "GET"
        try:
            async with within(self._timeout, "a status request"):
                return await self._answer(request), with_body
        except Refused as refused:
            return refused.answer, with_body
        except Exception:  # a task's edge
            log.exception("the answer to %s failed", request.path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "an error in flare; see its log\n"), with_body
