"""Hearing a router announce itself (RFC 6886, 3.2.1), with an address on loopback for the group's."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from flare.nat.port_mapping import announcements
from flare.nat.port_mapping.announcements import Announcements
from flare.wire.address_space import IpAddress
from tests.support.aio import aio, eventually
from tests.support.routers import GATEWAY


@aio
async def test_it_tells_who_spoke_and_once_for_many_words() -> None:
    heard: list[IpAddress] = []
    listening = Announcements(heard.append, group=str(GATEWAY))
    listening.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        router.bind(("127.0.0.5", 0))
        for _ in range(announcements.MAX_A_TURN):
            router.sendto(b"\0\x80", (str(GATEWAY), announcements.PORT))
        await eventually(lambda: heard)
        await asyncio.sleep(0.05)
        assert heard == [ip_address("127.0.0.5")]
        listening.close()
        listening.close()
        router.sendto(b"\0\x80", (str(GATEWAY), announcements.PORT))
        await asyncio.sleep(0.05)
        assert len(heard) == 1


@aio
async def test_several_programs_share_the_port() -> None:
    several = [Announcements(lambda ip: None, group=str(GATEWAY)) for _ in range(3)]
    for listening in several:
        listening.open()
    assert all(listening._socket is not None for listening in several)
    for listening in several:
        listening.close()


@aio
async def test_where_it_cannot_listen_it_does_without() -> None:
    listening = Announcements(lambda ip: None, group="198.51.100.1")
    listening.open()
    assert listening._socket is None
    listening.close()


@aio
async def test_the_groups_own_address_can_be_listened_on() -> None:
    listening = Announcements(lambda ip: None)
    listening.open()
    assert listening._socket is not None
    assert listening._socket.getsockname() == (announcements.GROUP, announcements.PORT)
    listening.close()
