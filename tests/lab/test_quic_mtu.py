"""QUIC on links of several sizes, with the kernel that refuses what is too large for them (RFC 8899)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from flare.config import QuicLimits
from flare.lab import netlink
from flare.lab.namespace import Namespace, become_able
from flare.transport.quic_mtu import CLOSE_ENOUGH
from tests.support.quic_nodes import LOOPBACK, QuicNode

pytestmark = pytest.mark.lab

HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP


async def found(version: int) -> tuple[int, int]:
    """The size that each end of a connection finds, while half a megabyte goes to and fro."""
    async with QuicNode(listen=LOOPBACK[version]) as a, QuicNode(listen=LOOPBACK[version]) as b:
        connection = await a.dial(b)
        far = await b.inbound.get()
        ends: list[Any] = [connection.link, far.link]

        def sizes() -> tuple[int, int]:
            here, there = (end._engine._quic.mtu.size for end in ends)
            return here, there

        sent = os.urandom(20_000)
        async with connection.open_stream("/echo") as stream:
            for _ in range(60):
                writing = asyncio.ensure_future(stream.write(sent))
                assert await stream.read_exactly(len(sent)) == sent
                await writing
                await asyncio.sleep(0.02)
        return sizes()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1280, 1400, 1500, 65_536])
def test_what_a_link_carries_is_found(version: int, mtu: int) -> None:
    become_able()
    namespace = Namespace()
    try:
        with namespace.entered():
            netlink.set_up("lo", mtu)
            sizes = asyncio.run(found(version))
    finally:
        namespace.close()
    carried = min(mtu - HEADERS[version], QuicLimits().max_datagram_size)
    for size in sizes:
        assert carried - CLOSE_ENOUGH < size <= carried
