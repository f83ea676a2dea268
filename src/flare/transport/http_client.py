"""As much of an HTTP/1.1 client as asking a router or a routing service needs: one request per connection
(RFC 9112), by http or https.

Whoever answers may be hostile, so everything is bounded (HttpLimits): the time for all of it, the size of the
head and of the body, the redirects. Those stay on their host: no answer can send us to a machine that the
caller did not name. No proxies, no cookies, no compression, no connections kept.

`ResponseDecoder` does no I/O. Its states, and what each waits for:

    head --> length     Content-Length: so many bytes
        |--> size       chunked: a line with the size of a chunk
        |      |--> data     ... so many bytes, then `gap`, its empty line, then `size`
        |      +--> trailers ... after a chunk of size 0, up to an empty line
        |--> close      neither: what comes until the server closes
        +--> done       no body (HEAD, 204, 304)
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from flare.config import HttpLimits
from flare.errors import DecodeError, FlareError, FrameTooLarge, NetworkError, TimedOut, UsageError
from flare.transport.deadline import within
from flare.transport.dns import Resolver, SystemResolver
from flare.transport.sockets import IpAddress
from flare.version import __version__

PROTOCOL: Final = "http"
READ: Final = 64 * 1024  # bytes at once
MAX_INTERIM: Final = 8  # answers of status 1xx before the one that counts
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ZONE: Final = re.compile(r"%[^\]]*(?=\])")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.[01] ([1-9][0-9]{2})(?: .*)?")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PORTS: Final = {"http": 80, "https": 443}

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, whatever its status. Names of header fields are lower case, `url` is who gave it.

    `local` is our own address on the way there; "" where there was no socket.
    """

    status: int
    headers: Fields
    body: bytes
    url: str = ""
    local: str = ""

    def header(self, name: str) -> str:
        """The first header field of that name, "" without one."""
        return next((value for known, value in self.headers if known == name.lower()), "")


async def request(
    url: str,
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    limits: HttpLimits | None = None,
    source: str | None = None,
    resolver: Resolver | None = None,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """Ask `url`; a GET follows redirects on the same host. Any status is an answer.

    `source` is the local IP to ask from, `tls` what judges certificates (default: the system's authorities).
    Raises UsageError for a bad URL or header, NetworkError, TimedOut, FrameTooLarge past a limit, DecodeError
    for what is no HTTP.
    """
    limits = limits or HttpLimits()
    resolver = resolver or SystemResolver(limits.timeout)
    async with within(limits.timeout, f"{method} {url}"):
        for _ in range(limits.max_redirects + 1):
            target = parse_url(url)
            sent = encode_request(target, method=method, headers=headers, body=body)
            response = await _exchange(url, target, method, sent, limits, source, resolver, tls)
            onward = response.header("location")
            if method != "GET" or response.status not in _REDIRECTS or not onward:
                return response
            url = _redirected(target, url, onward)
    raise NetworkError(f"{url}: more than {limits.max_redirects} redirects")


def parse_url(url: str) -> SplitResult:
    """The parts of an http or https URL. UsageError."""
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from None
    if (
        parts.scheme not in _PORTS
        or not parts.hostname
        or not port_is_valid
        or parts.username is not None
        or not all("!" <= char <= "~" for char in url)
    ):
        raise UsageError(f"{url!r} is no http or https URL, such as https://router.example/path")
    return parts


def encode_request(
    target: SplitResult, *, method: str = "GET", headers: Sequence[tuple[str, str]] = (), body: bytes = b""
) -> bytes:
    """The bytes of a request. UsageError for what cannot be a method or a header field."""
    host = _ZONE.sub("", target.netloc)  # which means something here only (RFC 9110, 4.2; RFC 4007, 11)
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    named = {name.lower() for name, _ in headers}
    fields = [("Host", host), *headers, ("Connection", "close")]
    if "user-agent" not in named:
        fields.append(("User-Agent", f"flare/{__version__}"))
    if "accept-encoding" not in named:
        fields.append(("Accept-Encoding", "identity"))
    if body or method in ("POST", "PUT"):
        fields.append(("Content-Length", str(len(body))))
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or not value.isprintable():
            raise UsageError(f"{name!r}: {value!r} is no header field")
    if not _TOKEN.fullmatch(method):
        raise UsageError(f"{method!r} is no method")
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    try:
        return head.encode("latin-1") + b"\r\n" + body
    except UnicodeEncodeError:
        raise UsageError("a header field has characters past latin-1") from None


def _redirected(target: SplitResult, url: str, onward: str) -> str:
    """Where a redirect leads: to the same host and not from https to http, or DecodeError."""
    try:
        new = parse_url(urljoin(url, onward))
    except ValueError as error:
        raise DecodeError(f"a redirect to {onward[:200]!r}: {error}", protocol=PROTOCOL) from None
    if new.hostname != target.hostname or (target.scheme, new.scheme) == ("https", "http"):
        raise DecodeError(
            f"a redirect from {target.scheme}://{target.hostname} to {new.scheme}://{new.hostname}",
            protocol=PROTOCOL,
        )
    return new.geturl()


# -- one exchange


async def _exchange(
    url: str,
    target: SplitResult,
    method: str,
    sent: bytes,
    limits: HttpLimits,
    source: str | None,
    resolver: Resolver,
    tls: ssl.SSLContext | None,
) -> Response:
    host = target.hostname or ""
    sock = await _connect(host, target.port or _PORTS[target.scheme], limits, source, resolver)
    local = str(sock.getsockname()[0])
    decoder = ResponseDecoder(method, limits)
    context = (tls or ssl.create_default_context()) if target.scheme == "https" else None
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=host if context is not None else None, limit=READ
        )
        writer.write(sent)
        await writer.drain()
        while not decoder.done:
            if data := await reader.read(READ):
                decoder.feed(data)
            else:
                decoder.end()
    except FlareError:
        raise
    except OSError as error:  # ssl's are such
        if isinstance(error, TimeoutError):
            raise
        raise NetworkError(f"{method} {url}: {error}") from error
    finally:
        if writer is not None:
            writer.transport.abort()
        else:
            sock.close()
    return Response(decoder.status, decoder.headers, bytes(decoder.body), url, local)


async def _connect(
    host: str, port: int, limits: HttpLimits, source: str | None, resolver: Resolver
) -> socket.socket:
    """A TCP connection to the first address of `host` that takes one, in the order of the resolver."""
    found: list[IpAddress]
    try:
        found = [ipaddress.ip_address(host)]
    except ValueError:
        found = await resolver.addresses(host, 0)
    last: BaseException = NetworkError(f"{host} has no address")
    for ip in found:
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if source is not None:
                sock.bind((source, 0))
            async with within(limits.connect, f"connecting to {ip} port {port}"):
                await asyncio.get_running_loop().sock_connect(sock, (str(ip), port))
        except (OSError, TimedOut) as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise NetworkError(f"connecting to {host} port {port}: {last}") from last


# -- what comes back


class ResponseDecoder:
    """One response from bytes as they come: `feed` until `done`, `end` when the server has closed.

    Raises FrameTooLarge past `limits`, DecodeError for what is no HTTP/1.x, NetworkError when it ends early.
    """

    def __init__(self, method: str, limits: HttpLimits) -> None:
        self.status = 0
        self.headers: Fields = ()
        self.body = bytearray()
        self._method = method
        self._limits = limits
        self._state = "head"
        self._buffer = bytearray()
        self._lines: list[str] = []
        self._head_bytes = 0  # of all lines: heads, sizes of chunks, trailers
        self._left = 0  # bytes of the body, or of a chunk
        self._interim = 0

    @property
    def done(self) -> bool:
        """All of it is here."""
        return self._state == "done"

    def feed(self, data: bytes) -> None:
        """Take what came; bytes after the end of the response are ignored."""
        self._buffer += data
        while self._step():
            pass

    def end(self) -> None:
        """Nothing more comes."""
        if self._state == "close":
            self._state = "done"
        elif self._state != "done":
            raise NetworkError("the server closed the connection before its answer was complete")

    def _step(self) -> bool:
        """Go on by one line or one run of bytes; False when more has to come."""
        if self._state in ("length", "data", "close"):
            return self._take_bytes()
        if self._state == "done":
            return False
        line = self._line()
        if line is None:
            return False
        if self._state == "head":
            self._take_head(line)
        elif self._state == "size":
            self._take_size(line)
        elif self._state == "gap":
            if line:
                raise DecodeError("a chunk is longer than its size", protocol=PROTOCOL)
            self._state = "size"
        elif not line:  # the end of the trailers, which say nothing that we want
            self._state = "done"
        return True

    def _line(self) -> bytes | None:
        """The next whole line without its end, which may be a bare LF (RFC 9112, 2.2)."""
        end = self._buffer.find(b"\n")
        size = (end + 1) or len(self._buffer)
        if self._head_bytes + size > self._limits.max_head:
            raise FrameTooLarge(self._head_bytes + size, self._limits.max_head, protocol=PROTOCOL)
        if end < 0:
            return None
        self._head_bytes += size
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    def _take_bytes(self) -> bool:
        """Bytes of the body that are here."""
        available = len(self._buffer) if self._state == "close" else min(self._left, len(self._buffer))
        if len(self.body) + available > self._limits.max_body:
            raise FrameTooLarge(len(self.body) + available, self._limits.max_body, protocol=PROTOCOL)
        self.body += self._buffer[:available]
        del self._buffer[:available]
        if self._state == "close":
            return False
        self._left -= available
        if self._left:
            return False
        self._state = "gap" if self._state == "data" else "done"
        return True

    def _take_size(self, line: bytes) -> None:
        matched = _SIZE.fullmatch(line)
        if matched is None:
            raise DecodeError("a chunk has no size", protocol=PROTOCOL)
        self._expect(int(matched[1], 16))
        self._state = "data" if self._left else "trailers"

    def _expect(self, size: int) -> None:
        if len(self.body) + size > self._limits.max_body:
            raise FrameTooLarge(len(self.body) + size, self._limits.max_body, protocol=PROTOCOL)
        self._left = size

    def _take_head(self, line: bytes) -> None:
        text = line.decode("latin-1")
        if text:
            if text[0] in " \t" and len(self._lines) > 1:  # a folded line of old (RFC 9112, 5.2)
                self._lines[-1] += " " + text.strip(" \t")
            else:
                self._lines.append(text)
            return
        if not self._lines:
            return  # an empty line before the status line (RFC 9112, 2.2)
        lines, self._lines = self._lines, []
        matched = _STATUS_LINE.fullmatch(lines[0])
        if matched is None:
            raise DecodeError("no status line of HTTP/1.x", protocol=PROTOCOL)
        self.status = int(matched[1])
        self.headers = tuple(_field(text) for text in lines[1:])
        if self.status < 200:
            self._interim += 1
            if self.status == 101 or self._interim > MAX_INTERIM:
                raise DecodeError(f"an answer of status {self.status}", protocol=PROTOCOL)
            return
        self._state = self._body_of()

    def _body_of(self) -> str:
        """How the end of the body is known (RFC 9112, 6.3): the state to go on in."""
        encodings = self._all("content-encoding")
        if any(encoding not in ("", "identity") for encoding in encodings):
            raise DecodeError(f"a body encoded as {', '.join(encodings)[:100]}", protocol=PROTOCOL)
        if self._method == "HEAD" or self.status in (204, 304):
            return "done"
        if codings := self._all("transfer-encoding"):
            if codings != ["chunked"]:
                raise DecodeError(f"a body coded as {', '.join(codings)[:100]}", protocol=PROTOCOL)
            return "size"
        if not (lengths := set(self._all("content-length"))):
            return "close"
        length = lengths.pop()
        if lengths or not re.fullmatch("[0-9]{1,15}", length):
            raise DecodeError("no number as Content-Length, or two", protocol=PROTOCOL)
        self._expect(int(length))
        return "length" if self._left else "done"

    def _all(self, name: str) -> list[str]:
        """The values of all fields of a name, taken apart at commas."""
        values = [value for known, value in self.headers if known == name]
        return [part.strip(" \t").lower() for value in values for part in value.split(",")]


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise DecodeError("a header field has no name", protocol=PROTOCOL)
    return name.lower(), value.strip(" \t")
