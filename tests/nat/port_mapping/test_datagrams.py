"""PCP and NAT-PMP with a router on loopback: good, silent, slow, lying, and with others who speak up."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from flare.config import PortMappingConfig
from flare.errors import DecodeError, NetworkError, PortMappingRefused, TimedOut, UsageError
from flare.nat.port_mapping import ask as asking
from flare.nat.port_mapping.ask import ask, doubling
from flare.nat.port_mapping.nat_pmp import NatPmp
from flare.nat.port_mapping.pcp import Pcp
from flare.wire import nat_pmp, pcp
from tests.support.aio import aio
from tests.support.routers import GATEWAY, HOST, QUIC, ROUTE, TCP, Router

QUICK = PortMappingConfig(patience=0.3, request=0.3)
KINDS: tuple[type[Pcp | NatPmp], ...] = (Pcp, NatPmp)
both = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def meeting(
    kind: type[Pcp | NatPmp], config: PortMappingConfig | None = None, **how: Any
) -> AsyncIterator[tuple[Router, Pcp | NatPmp, list[str]]]:
    """A router, one protocol with it, and how often its clock said that it restarted."""
    restarts: list[str] = []
    async with Router(**how) as router:
        yield (
            router,
            kind(ROUTE, config or PortMappingConfig(), on_restart=lambda: restarts.append("!")),
            restarts,
        )


class TestAGoodRouter:
    @both
    @aio
    async def test_the_life_of_a_mapping(self, kind: type[Pcp | NatPmp]) -> None:
        async with meeting(kind) as (router, protocol, restarts):
            await protocol.probe()
            assert not router.table, "probing changes nothing"
            lease = await protocol.map(TCP, 4001)
            assert router.table == {("tcp", 4001): (str(HOST), 4001)}
            assert (lease.external, lease.port, lease.lifetime) == (ip_address("102.1.0.1"), 4001, 7200)
            assert str(lease.addr) == "/ip4/102.1.0.1/tcp/4001"
            assert lease.expires == lease.granted + 7200
            quic = await protocol.map(QUIC, 4001)
            assert str(quic.addr) == "/ip4/102.1.0.1/udp/4001/quic-v1"
            router.external = "102.1.0.2"
            renewed = await protocol.renew(lease)
            assert renewed.external == ip_address("102.1.0.2")
            assert renewed.granted >= lease.granted
            await protocol.unmap(lease)
            assert router.table == {("udp", 4001): (str(HOST), 4001)}
            await protocol.unmap(quic)
            assert not router.table
            assert not restarts

    @both
    @aio
    async def test_another_port_than_the_one_wished_for(self, kind: type[Pcp | NatPmp]) -> None:
        async with meeting(kind) as (_, protocol, _):
            assert (await protocol.map(TCP, 5005)).port == 5005

    @both
    @aio
    async def test_a_restart_shows_in_its_clock(self, kind: type[Pcp | NatPmp]) -> None:
        async with meeting(kind) as (router, protocol, restarts):
            lease = await protocol.map(TCP, 4001)
            router.epoch = 3
            router.table.clear()
            await protocol.check(lease)
            assert router.table, "the question itself made it again"
            assert restarts == ["!"]


def bad_pcp(router: Router, change: Callable[[bytearray], None]) -> Callable[[bytes], bytes | None]:
    def answer(data: bytes) -> bytes | None:
        good = bytearray(router.good_pcp(data) or b"")
        change(good)
        return bytes(good)

    return answer


class TestABadRouter:
    @both
    @pytest.mark.parametrize("lifetime", [0, 1, 2**32 - 1])
    @aio
    async def test_whatever_lifetime_it_gives(self, kind: type[Pcp | NatPmp], lifetime: int) -> None:
        async with meeting(kind) as (router, protocol, _):
            router.lifetime = lifetime
            if lifetime:
                assert (await protocol.map(TCP, 4001)).lifetime == lifetime
            else:
                with pytest.raises(PortMappingRefused, match="for no time"):
                    await protocol.map(TCP, 4001)

    @both
    @aio
    async def test_silence(self, kind: type[Pcp | NatPmp]) -> None:
        async with meeting(kind, QUICK, speaks=()) as (_, protocol, _):
            with pytest.raises(TimedOut, match=str(GATEWAY)):
                await protocol.probe()
            with pytest.raises(TimedOut):
                await protocol.map(TCP, 4001)

    @both
    @aio
    async def test_nobody_listens_there(self, kind: type[Pcp | NatPmp]) -> None:
        protocol = kind(ROUTE, PortMappingConfig(), on_restart=lambda: None)
        with pytest.raises(NetworkError, match="nobody listens on port 5351"):
            await protocol.probe()

    @pytest.mark.parametrize(
        "change",
        [
            lambda data: data.__setitem__(slice(24, 36), bytes(12)),  # another nonce
            lambda data: data.__setitem__(36, 17),  # another protocol
            lambda data: data.__setitem__(slice(40, 42), b"\0\1"),  # another port
            lambda data: data.clear(),
            lambda data: data.extend(bytes(2000)),
            lambda data: data.__setitem__(0, 9),
        ],
    )
    @aio
    async def test_an_answer_to_something_else_is_passed_over(
        self, change: Callable[[bytearray], None]
    ) -> None:
        async with meeting(Pcp, QUICK) as (router, protocol, _):
            router.pcp = bad_pcp(router, change)
            with pytest.raises(TimedOut):
                await protocol.map(TCP, 4001)

    @aio
    async def test_a_router_that_tells_no_address_is_asked_for_no_port(self) -> None:
        async with meeting(NatPmp) as (router, protocol, _):
            good = router.nat_pmp
            router.nat_pmp = lambda data: bytes([0, 128, 0, 3]) + bytes(8) if len(data) == 2 else good(data)
            with pytest.raises(PortMappingRefused, match="network failure"):
                await protocol.map(TCP, 4001)
            assert not router.table

    @aio
    async def test_another_ports_mapping_is_passed_over(self) -> None:
        async with meeting(NatPmp, QUICK) as (router, protocol, _):
            router.nat_pmp = lambda data: struct.pack("!BBHIHHI", 0, 130, 0, 1, 4002, 4002, 7200)
            with pytest.raises(TimedOut):
                await protocol.map(TCP, 4001)

    @pytest.mark.parametrize("result", [*pcp.RESULTS, 200])
    @aio
    async def test_pcps_refusals(self, result: int) -> None:
        async with meeting(Pcp) as (router, protocol, _):
            router.pcp = lambda data: router.pcp_head(data[1], 600, result) + data[24:]
            with pytest.raises(PortMappingRefused) as refused:
                await protocol.map(TCP, 4001)
            assert (refused.value.code, refused.value.lasting) == (result, 600)
            with pytest.raises(PortMappingRefused):
                await protocol.probe()

    @pytest.mark.parametrize("result", [*nat_pmp.RESULTS, 200])
    @aio
    async def test_nat_pmps_refusals(self, result: int) -> None:
        async with meeting(NatPmp) as (router, protocol, _):
            router.nat_pmp = lambda data: bytes([0, 128 | data[1]]) + struct.pack("!HI", result, 9)
            for step in (protocol.map(TCP, 4001), protocol.probe()):
                with pytest.raises(PortMappingRefused) as refused:
                    await step
                assert refused.value.code == result

    @aio
    async def test_a_router_that_knows_nat_pmp_alone(self) -> None:
        async with meeting(Pcp) as (router, protocol, _):
            router.pcp = lambda data: bytes([0, 128, 0, 1, 0, 0, 0, 9])
            with pytest.raises(PortMappingRefused, match="unsupported version"):
                await protocol.probe()


async def asked_from(router: socket.socket) -> Any:
    """Where the next question comes from."""
    while True:
        try:
            return router.recvfrom(100)[1]
        except BlockingIOError:
            await asyncio.sleep(0.002)


class TestAsking:
    def test_waits_double_and_end_in_time(self) -> None:
        assert list(doubling(0.25, 2.0)) == [0.25, 0.5, 1.0, 0.25]
        assert list(doubling(3.0, 1.0)) == [1.0]
        assert list(doubling(1.0, 0.0)) == []

    @aio
    async def test_a_lost_request_is_sent_again(self) -> None:
        async with Router() as router:
            seen: list[bytes] = []

            def deaf_at_first(data: bytes) -> bytes | None:
                seen.append(data)
                return b"yes" if len(seen) == 3 else None

            router.nat_pmp = deaf_at_first
            answer = await ask(ROUTE, 5351, b"?", lambda data: data, source=HOST, waits=[0.05, 0.05, 5.0])
            assert answer == b"yes"
            assert seen == [b"?"] * 3

    @pytest.mark.parametrize(("junk", "answered"), [(asking.MAX_JUNK, True), (asking.MAX_JUNK + 1, False)])
    def test_so_much_junk_and_no_more(self, junk: int, answered: bool) -> None:
        def decode(data: bytes) -> bytes:
            if data != b"yes":
                raise DecodeError("junk")
            return data

        @aio
        async def scene() -> None:
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
                router.setblocking(False)
                router.bind((str(GATEWAY), 5351))
                question = loop.create_task(ask(ROUTE, 5351, b"?", decode, source=HOST, waits=[10.0]))
                address = await asked_from(router)
                for n in range(junk):
                    router.sendto(b"no", address)
                    if n % 16 == 0:
                        await asyncio.sleep(0)
                router.sendto(b"yes", address)
                if answered:
                    assert await question == b"yes"
                else:
                    with pytest.raises(NetworkError, match="make no sense"):
                        await question

        scene(aio_loop="asyncio")

    @aio
    async def test_what_others_send_is_not_heard(self) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
        ):
            router.setblocking(False)
            router.bind((str(GATEWAY), 5351))
            stranger.bind(("127.0.0.1", 0))
            question = asyncio.get_running_loop().create_task(
                ask(ROUTE, 5351, b"?", lambda data: data, source=HOST, waits=[10.0])
            )
            address = await asked_from(router)
            stranger.sendto(b"lies", address)
            await asyncio.sleep(0.05)
            assert not question.done()
            router.sendto(b"truth", address)
            assert await question == b"truth"

    @aio
    async def test_an_address_that_is_not_ours_any_more(self) -> None:
        with pytest.raises(OSError, match="assign"):
            await ask(ROUTE, 5351, b"?", lambda d: d, source=ip_address("198.51.100.9"), waits=[1.0])

    def test_where_a_link_local_router_is(self) -> None:
        assert asking.socket_address(ip_address("fe80::1"), 5351, 7) == ("fe80::1", 5351, 0, 7)
        assert asking.socket_address(ip_address("2a00::1"), 5351, 7) == ("2a00::1", 5351, 0, 0)
        assert replace(ROUTE, interface=9).interface == 9


@pytest.mark.parametrize("lifetime", [1.0, 604_800.0])
def test_the_lifetimes_that_can_be_asked_for(lifetime: float) -> None:
    assert PortMappingConfig(lifetime=lifetime).lifetime == lifetime


@pytest.mark.parametrize("lifetime", [0.0, 0.9, 604_801.0, float("inf"), float("nan")])
def test_and_those_that_cannot(lifetime: float) -> None:
    with pytest.raises(UsageError, match="to a week"):
        PortMappingConfig(lifetime=lifetime)
