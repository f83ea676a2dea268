"""Looking for the router's UPnP description: SSDP by multicast, and to the router itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Final, Self

from flare.errors import DecodeError
from flare.transport.routes import Route
from flare.wire import ssdp

FIRST_WAIT: Final = 1.0  # seconds until the search is repeated; doubles
HOPS: Final = 2  # as the architecture has it
MAX_LOCATIONS: Final = 4  # of one router: defends it and us against one that answers without end
MAX_DATAGRAMS: Final = 256  # in all, from everybody in the local network: defends CPU


class Search:
    """`with Search(route, seconds) as search`, then `await search.next()` for each place of a description.

    What others than the router answer is passed over.
    """

    def __init__(self, route: Route, seconds: float) -> None:
        self._route = route
        self._end = asyncio.get_running_loop().time() + seconds
        self._again = 0.0
        self._wait = FIRST_WAIT
        self._datagrams = 0
        self._known: set[str] = set()

    def __enter__(self) -> Self:
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            source = str(self._route.source)
            self._socket.bind((source, 0))
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
        except OSError:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    async def next(self) -> str | None:
        """The URL of one more description, None when time is up. OSError when nothing can be sent."""
        loop = asyncio.get_running_loop()
        while loop.time() < self._end and len(self._known) < MAX_LOCATIONS:
            if loop.time() >= self._again:
                self._send()
                self._again = loop.time() + self._wait
                self._wait *= 2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(self._again, self._end)):
                    await _readable(self._socket)
            while self._datagrams < MAX_DATAGRAMS and (received := self._receive()) is not None:
                if (location := self._judge(*received)) is not None:
                    return location
            if self._datagrams >= MAX_DATAGRAMS:
                return None
        return None

    def _send(self) -> None:
        """To the group; and to the router alone, since some networks carry no multicast over the air."""
        failures = []
        for host in (ssdp.GROUP, str(self._route.gateway)):
            for target in ssdp.TARGETS:
                try:
                    self._socket.sendto(ssdp.encode_search(target, host=host), (host, ssdp.PORT))
                except OSError as error:
                    failures.append(error)
        if len(failures) == 2 * len(ssdp.TARGETS):
            raise failures[0]

    def _receive(self) -> tuple[bytes, str] | None:
        try:
            data, address = self._socket.recvfrom(ssdp.MAX_ANSWER + 1)
        except ConnectionRefusedError:  # the router's word on the search that went to it alone
            return b"", ""
        except OSError:
            return None
        return data, str(address[0])

    def _judge(self, data: bytes, sender: str) -> str | None:
        self._datagrams += 1
        if sender != str(self._route.gateway):
            return None
        try:
            found = ssdp.decode_answer(data)
        except DecodeError:
            return None
        if found.location in self._known:
            return None
        self._known.add(found.location)
        return found.location


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())
