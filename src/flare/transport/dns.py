"""Names to addresses: A and AAAA by the system's resolver, TXT by a query of our own (RFC 1035, RFC 6891).

Python's standard library cannot ask for TXT, which /dnsaddr needs. One query and one answer are all that is
wanted, so that is what is here instead of a dependency.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from flare.errors import DecodeError, NetworkError, TimedOut, UsageError
from flare.transport.deadline import within
from flare.transport.sockets import IpAddress

TRY_SECONDS: Final = 2.0  # one question to one server, before the next is asked
ROUNDS: Final = 2  # through the list of servers
MAX_UDP: Final = 1232  # bytes of an answer by UDP that crosses any path (DNS flag day 2020)
MAX_RECORDS: Final = 256  # of one answer: defends memory
_TXT: Final = 16
_IN: Final = 1
_OPT: Final = 41
_HEADER: Final = struct.Struct("!6H")


class Resolver(Protocol):
    """What turns names into addresses. Both raise NetworkError when there are none, TimedOut."""

    async def addresses(self, name: str, version: int) -> list[IpAddress]:
        """The IP addresses of `name`; `version` 4 or 6, or 0 for both."""
        ...

    async def texts(self, name: str) -> list[str]:
        """The TXT records of `name`."""
        ...


class SystemResolver:
    """getaddrinfo, and for TXT the servers of /etc/resolv.conf."""

    def __init__(self, timeout: float, servers: Sequence[tuple[str, int]] | None = None) -> None:
        self._timeout = timeout
        self._servers = servers

    async def addresses(self, name: str, version: int) -> list[IpAddress]:
        """The IP addresses of `name`; `version` 4 or 6, or 0 for both."""
        family = {4: socket.AF_INET, 6: socket.AF_INET6, 0: socket.AF_UNSPEC}[version]
        loop = asyncio.get_running_loop()
        async with within(self._timeout, f"resolving {name}"):
            try:
                found = await loop.getaddrinfo(name, None, family=family, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                raise NetworkError(f"resolving {name}: {error}") from error
        return list(
            dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
        )

    async def texts(self, name: str) -> list[str]:
        """The TXT records of `name`."""
        servers = self._servers if self._servers is not None else nameservers()
        if not servers:
            raise NetworkError(f"resolving {name}: /etc/resolv.conf names no server")
        async with within(self._timeout, f"resolving the TXT records of {name}"):
            last: BaseException = NetworkError("no server answered")
            for server in list(servers) * ROUNDS:
                try:
                    async with within(TRY_SECONDS, f"the DNS server {server[0]}"):
                        return await _ask(server, name)
                except (OSError, TimedOut, DecodeError) as error:
                    if isinstance(error, NetworkError):
                        raise
                    last = error
            raise NetworkError(f"resolving the TXT records of {name}: {last}") from last


def nameservers(path: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """The servers that resolv.conf(5) names, with their ports."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(words[1], 53) for words in fields if len(words) >= 2 and words[0] == "nameserver"]


def encode_question(name: str, query_id: int) -> bytes:
    """A question for the TXT records of `name`, offering MAX_UDP (OPT). UsageError for a bad name."""
    try:
        labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    except UnicodeEncodeError:
        raise UsageError(f"{name!r} is no host name") from None
    if any(not 0 < len(label) < 64 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise UsageError(f"{name!r} is no host name")
    question = (
        b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack("!2H", _TXT, _IN)
    )
    additional = b"\0" + struct.pack("!2HIH", _OPT, MAX_UDP, 0, 0)
    return _HEADER.pack(query_id, 0x0100, 1, 0, 0, 1) + question + additional


def decode_answer(message: bytes, question: bytes) -> list[str] | None:
    """The TXT records in the answer to `question`; None when it was cut to fit UDP (ask again by TCP).

    Raises DecodeError for what is no answer to it, NetworkError for an answer that says no.
    """
    if len(message) < _HEADER.size:
        raise DecodeError("shorter than a header", protocol="dns")
    query_id, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    echoed = message[_HEADER.size : len(question) - 11]
    asked = question[_HEADER.size : len(question) - 11]
    if query_id != int.from_bytes(question[:2], "big") or not flags & 0x8000 or questions != 1:
        raise DecodeError("no answer to the question", protocol="dns")
    if echoed.lower() != asked.lower():
        raise DecodeError("an answer to another question", protocol="dns")
    if flags & 0x0200:
        return None
    if code := flags & 0x000F:
        reason = {1: "format error", 2: "server failure", 3: "no such name", 5: "refused"}.get(
            code, f"error {code}"
        )
        raise NetworkError(f"the DNS server answers: {reason}")
    at = len(question) - 11
    texts: list[str] = []
    for _ in range(min(answers, MAX_RECORDS)):
        at = _skip_name(message, at)
        if at + 10 > len(message):
            raise DecodeError("a record is cut short", protocol="dns")
        kind, kind_class, _, size = struct.unpack_from("!2HIH", message, at)
        at += 10
        if at + size > len(message):
            raise DecodeError("a record is cut short", protocol="dns")
        if kind == _TXT and kind_class == _IN:
            texts.append(_text(message[at : at + size]))
        at += size
    return texts


def _text(data: bytes) -> str:
    """The strings of one TXT record, joined (RFC 1035, 3.3.14)."""
    joined = bytearray()
    at = 0
    while at < len(data):
        size = data[at]
        if at + 1 + size > len(data):
            raise DecodeError("a string is cut short", protocol="dns")
        joined += data[at + 1 : at + 1 + size]
        at += 1 + size
    return joined.decode(errors="replace")


def _skip_name(message: bytes, at: int) -> int:
    """The offset after the name at `at`; a compression pointer ends it."""
    while at < len(message):
        size = message[at]
        if size >= 0xC0:
            return at + 2
        if size >= 0x40:
            break
        at += 1 + size
        if size == 0:
            return at
    raise DecodeError("a name is cut short", protocol="dns")


async def _ask(server: tuple[str, int], name: str) -> list[str]:
    loop = asyncio.get_running_loop()
    question = encode_question(name, secrets.randbits(16))
    texts = await _ask_by_udp(server, question)
    if texts is not None:
        return texts
    with _connected(server, socket.SOCK_STREAM) as sock:
        await loop.sock_connect(sock, server)
        await loop.sock_sendall(sock, struct.pack("!H", len(question)) + question)
        received = bytearray()
        while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
            chunk = await loop.sock_recv(sock, 65535)
            if not chunk:
                raise DecodeError("the server closed the connection", protocol="dns")
            received += chunk
        texts = decode_answer(bytes(received[2:]), question)
        if texts is None:
            raise DecodeError("cut short over TCP", protocol="dns")
        return texts


async def _ask_by_udp(server: tuple[str, int], question: bytes) -> list[str] | None:
    loop = asyncio.get_running_loop()
    with _connected(server, socket.SOCK_DGRAM) as sock:
        await loop.sock_sendall(sock, question)
        while True:
            try:
                return decode_answer(await loop.sock_recv(sock, 65535), question)
            except DecodeError:
                continue  # somebody else's datagram: the answer may still come, within TRY_SECONDS


def _connected(server: tuple[str, int], kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if kind == socket.SOCK_DGRAM:
        try:
            sock.connect(server)
        except OSError:
            sock.close()
            raise
    return sock
