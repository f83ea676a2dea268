"""One question to the router by datagram, repeated until something that answers it comes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from flare.errors import DecodeError, NetworkError, TimedOut
from flare.transport.routes import Route
from flare.wire.address_space import IpAddress

MAX_DATAGRAM: Final = 2048  # bytes that are looked at
MAX_JUNK: Final = 64  # datagrams that answer nothing, to one question: defends CPU

T = TypeVar("T")


async def ask(
    route: Route,
    port: int,
    request: bytes,
    decode: Callable[[bytes], T],
    *,
    source: IpAddress,
    waits: Iterable[float],
) -> T:
    """What `decode` makes of the router's answer, which comes from its `port` and to our `source`.

    The request is sent before each of the `waits` (seconds). What `decode` raises DecodeError for answers
    something else and is passed over. TimedOut; NetworkError when nobody listens there or junk pours in.
    """
    loop = asyncio.get_running_loop()
    spent = 0.0
    junk = 0
    with _socket(route, port, source) as sock:
        for wait in waits:
            spent += wait
            try:
                async with asyncio.timeout(wait):
                    await loop.sock_sendall(sock, request)
                    while junk <= MAX_JUNK:
                        try:
                            return decode(await loop.sock_recv(sock, MAX_DATAGRAM))
                        except DecodeError:
                            junk += 1
                raise NetworkError(f"{route.gateway} answers with datagrams that make no sense")
            except TimeoutError:
                continue
            except ConnectionRefusedError:
                raise NetworkError(f"nobody listens on port {port} of {route.gateway}") from None
    raise TimedOut(f"an answer from port {port} of {route.gateway}", spent)


def doubling(first: float, total: float) -> Iterator[float]:
    """Waits of `first` seconds, twice that, and so on; `total` together."""
    while total > 0:
        yield min(first, total)
        total -= first
        first *= 2


def socket_address(ip: IpAddress, port: int, interface: int) -> tuple[Any, ...]:
    """What connect() takes; a link-local address means something on its interface only."""
    if ip.version == 4:
        return str(ip), port
    return str(ip), port, 0, interface if ip.is_link_local else 0


def _socket(route: Route, port: int, source: IpAddress) -> socket.socket:
    """Connected, so that the kernel passes over whoever else sends something, and tells of refusals."""
    assert route.gateway is not None
    family = socket.AF_INET if route.gateway.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.bind((str(source), 0))
        sock.connect(socket_address(route.gateway, port, route.interface))
    except OSError:
        sock.close()
        raise
    return sock
