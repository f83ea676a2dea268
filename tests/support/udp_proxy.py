"""A UDP forwarder between a client and a server that moves, drops and watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

Address = tuple[str, int]


class _Port(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._received(data, addr)


class UdpProxy:
    """`async with UdpProxy(port) as proxy`: who sends to `proxy.port` talks to `port` on loopback.

    `move` changes the address that the server sees; `drop` swallows everything; `passed` counts datagrams.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._client: Address | None = None
        self.drop = False
        self.passed = 0

    async def __aenter__(self) -> UdpProxy:
        self._front = await self._bind(self._from_client)
        self._back = await self._bind(self._from_server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._front.transport.close()
        self._back.transport.close()
        await asyncio.sleep(0)

    @property
    def port(self) -> int:
        return int(self._front.transport.get_extra_info("sockname")[1])

    @property
    def source(self) -> int:
        """The port that the server sees."""
        return int(self._back.transport.get_extra_info("sockname")[1])

    async def move(self) -> None:
        """As a NAT that lost its mapping: from another port from now on."""
        old = self._back
        self._back = await self._bind(self._from_server)
        old.transport.close()

    async def _bind(self, received: Callable[[bytes, Address], None]) -> _Port:
        _, port = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Port(received), local_addr=("127.0.0.1", 0)
        )
        return port

    def _from_client(self, data: bytes, addr: Address) -> None:
        self._client = addr
        if not self.drop:
            self.passed += 1
            self._back.transport.sendto(data, self._server)

    def _from_server(self, data: bytes, _: Address) -> None:
        if not self.drop and self._client is not None:
            self.passed += 1
            self._front.transport.sendto(data, self._client)
