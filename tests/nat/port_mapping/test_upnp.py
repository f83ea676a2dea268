"""UPnP with a router on loopback: IGD 1 and 2, their faults, and devices that lead elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from flare.config import PortMappingConfig
from flare.errors import (
    DecodeError,
    FlareError,
    FrameTooLarge,
    PortMappingRefused,
    ProtocolViolation,
    TimedOut,
)
from flare.nat.port_mapping import search
from flare.nat.port_mapping.lease import PERMANENT, MappingGone
from flare.nat.port_mapping.search import Search
from flare.nat.port_mapping.upnp import Upnp, described
from flare.nat.port_mapping.urls import checked, moved
from flare.wire.upnp import CONNECTIONS, Service
from flare.wire.xml_tree import MAX_BYTES
from tests.support.aio import aio
from tests.support.routers import (
    GATEWAY,
    HOST,
    QUIC,
    ROUTE,
    TCP,
    WANIP1,
    WANIP2,
    WANPPP,
    Router,
    fault,
    http_answer,
    soap,
)

QUICK = PortMappingConfig(patience=0.5, request=0.4, other_ports=2)


@asynccontextmanager
async def meeting(config: PortMappingConfig | None = None, **how: Any) -> AsyncIterator[tuple[Router, Upnp]]:
    async with Router(**how) as router:
        yield router, Upnp(ROUTE, config or PortMappingConfig(), random_port=lambda low, high: 50_000)


async def look(location: str, config: PortMappingConfig | None = None) -> tuple[Service, ...]:
    """The connections that the description there names."""
    return await described(location, ROUTE, config or PortMappingConfig(), CONNECTIONS)


def service(kind: str, url: str) -> str:
    return f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"


class TestAGoodRouter:
    @pytest.mark.parametrize(("service", "called"), [(WANIP1, "1"), (WANIP2, "2"), (WANPPP, "1")])
    @aio
    async def test_the_life_of_a_mapping(self, service: str, called: str) -> None:
        async with meeting(service=service) as (router, upnp):
            await upnp.probe()
            assert not router.table, "probing changes nothing"
            lease = await upnp.map(TCP, 4001)
            assert router.table == {("tcp", 4001): (str(HOST), 4001)}
            assert lease.protocol == f"UPnP IGD {called}"
            assert str(lease.addr) == "/ip4/102.1.0.1/tcp/4001"
            quic = await upnp.map(QUIC, 4001)
            assert str(quic.addr) == "/ip4/102.1.0.1/udp/4001/quic-v1"
            router.external = "102.1.0.2"
            assert (await upnp.check(lease)).external == ip_address("102.1.0.2")
            renewed = await upnp.renew(lease)
            assert renewed.granted >= lease.granted
            for given in (lease, quic):
                await upnp.unmap(given)
            assert not router.table
            await upnp.unmap(lease)  # gone already

    @aio
    async def test_igd_2_chooses_another_port(self) -> None:
        async with meeting(service=WANIP2) as (router, upnp):
            router.table["tcp", 4001] = ("10.0.0.9", 4001)
            await upnp.probe()
            assert (await upnp.map(TCP, 4001)).port == 55555

    @aio
    async def test_718_another_port_is_tried(self) -> None:
        async with meeting() as (router, upnp):
            router.table["tcp", 4001] = ("10.0.0.9", 4001)
            await upnp.probe()
            assert (await upnp.map(TCP, 4001)).port == 50_000
            assert router.table["tcp", 4001] == ("10.0.0.9", 4001), "somebody else's stays"

    @aio
    async def test_718_so_many_ports_and_no_more(self) -> None:
        async with meeting(PortMappingConfig(other_ports=3)) as (router, upnp):
            router.actions["AddPortMapping"] = lambda arguments: fault(718)
            await upnp.probe()
            with pytest.raises(PortMappingRefused, match="somebody else") as refused:
                await upnp.map(TCP, 4001)
            assert refused.value.code == 718
            assert router.asked.count("AddPortMapping") == 4
            assert not router.table

    @aio
    async def test_718_what_an_earlier_run_left_is_taken_up(self) -> None:
        async with meeting() as (router, upnp):
            router.table["tcp", 4001] = (str(HOST), 4001)
            router.actions["AddPortMapping"] = lambda arguments: fault(718)  # even for who has it
            await upnp.probe()
            lease = await upnp.map(TCP, 4001)
            assert lease.port == 4001
            assert (await upnp.renew(lease)).port == 4001
            await upnp.unmap(lease)
            assert not router.table

    @pytest.mark.parametrize("service", [WANIP1, WANIP2])
    @aio
    async def test_725_only_permanent_ones(self, service: str) -> None:
        async with meeting(service=service) as (router, upnp):
            leases: list[str] = []

            def add(arguments: dict[str, str]) -> bytes:
                leases.append(arguments["NewLeaseDuration"])
                return fault(725) if leases[-1] != "0" else router.good_action("AddPortMapping", arguments)

            router.actions["AddPortMapping"] = router.actions["AddAnyPortMapping"] = add
            await upnp.probe()
            lease = await upnp.map(TCP, 4001)
            assert lease.lifetime == PERMANENT
            await upnp.renew(lease)
            assert leases == ["7200", "0", "0"], "which it remembers"

    @aio
    async def test_724_only_the_same_port(self) -> None:
        async with meeting() as (router, upnp):

            def add(arguments: dict[str, str]) -> bytes:
                if arguments["NewExternalPort"] != arguments["NewInternalPort"]:
                    return fault(724)
                return router.good_action("AddPortMapping", arguments)

            router.actions["AddPortMapping"] = add
            await upnp.probe()
            assert (await upnp.map(TCP, 5005)).port == 4001

    @pytest.mark.parametrize("code", [401, 402, 501, 602, 606, 718, 724, 729])
    @aio
    async def test_igd_2_that_lets_nobody_have_any_port(self, code: int) -> None:
        async with meeting(service=WANIP2) as (router, upnp):
            router.actions["AddAnyPortMapping"] = lambda arguments: fault(code)
            await upnp.probe()
            assert (await upnp.map(TCP, 4001)).port == 4001

    @aio
    async def test_a_shorter_lease_than_asked_for(self) -> None:
        async with meeting() as (router, upnp):
            router.lifetime = 120
            await upnp.probe()
            assert (await upnp.map(TCP, 4001)).lifetime == pytest.approx(120, abs=2)

    @aio
    async def test_of_two_connections_the_one_that_has_an_address(self) -> None:
        async with meeting() as (router, upnp):
            both = "".join(service(kind, f"/{n}") for n, kind in enumerate((WANIP1, WANPPP)))

            def serve(path: str, body: bytes) -> bytes | None:
                if path == "/rootDesc.xml":
                    return http_answer(200, f"<root>{both}</root>")
                if path == "/0":
                    return soap("GetExternalIPAddress", NewExternalIPAddress="")
                return router.good_http(path, body)

            router.http = serve
            await upnp.probe()
            assert (await upnp.map(TCP, 4001)).external == ip_address("102.1.0.1")


def test_the_same_service_by_ipv6() -> None:
    url = "http://10.0.0.1:5000/ctl/IP6FCtl?a"
    assert moved(url, ip_address("fe80::1"), 3) == "http://[fe80::1%3]:5000/ctl/IP6FCtl?a"
    assert moved(url, ip_address("2a00::1"), 3) == "http://[2a00::1]:5000/ctl/IP6FCtl?a"
    assert moved("http://10.0.0.1/", ip_address("2a00::1"), 3) == "http://[2a00::1]:80/"


class TestReVerified:
    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (("10.0.0.9", 4001), "forwards it to 10.0.0.9 now"),
            ((str(HOST), 4002), "forwards it to"),
            (("", 4001), "to nobody now"),
            (None, "no such mapping"),
        ],
    )
    @aio
    async def test_one_that_is_somebody_elses_now(self, entry: tuple[str, int] | None, words: str) -> None:
        async with meeting() as (router, upnp):
            await upnp.probe()
            lease = await upnp.map(TCP, 4001)
            router.table.clear()
            if entry is not None:
                router.table["tcp", 4001] = entry
            with pytest.raises(MappingGone, match=words):
                await upnp.check(lease)
            if entry is not None:
                with pytest.raises(MappingGone):
                    await upnp.renew(lease)

    @aio
    async def test_one_that_is_switched_off(self) -> None:
        async with meeting() as (router, upnp):
            await upnp.probe()
            lease = await upnp.map(TCP, 4001)
            off = soap(
                "GetSpecificPortMappingEntry",
                NewInternalClient=HOST,
                NewInternalPort=4001,
                NewEnabled=0,
                NewLeaseDuration=0,
            )
            router.actions["GetSpecificPortMappingEntry"] = lambda arguments: off
            with pytest.raises(MappingGone, match="switched"):
                await upnp.check(lease)

    @aio
    async def test_a_router_that_says_yes_and_does_nothing(self) -> None:
        async with meeting() as (router, upnp):
            router.actions["AddPortMapping"] = lambda arguments: soap("AddPortMapping")
            await upnp.probe()
            with pytest.raises(MappingGone):
                await upnp.map(TCP, 4001)

    @aio
    async def test_a_mapping_that_could_not_be_looked_at_does_not_stay(self) -> None:
        async with meeting() as (router, upnp):
            await upnp.probe()
            router.actions["GetExternalIPAddress"] = lambda arguments: http_answer(200, "rubbish")
            with pytest.raises(DecodeError):
                await upnp.map(TCP, 4001)
            assert not router.table

    @aio
    async def test_one_that_cannot_tell_is_believed(self) -> None:
        async with meeting() as (router, upnp):
            router.actions["GetSpecificPortMappingEntry"] = lambda arguments: fault(401)
            await upnp.probe()
            assert await upnp.check(await upnp.map(TCP, 4001))


class TestABadRouter:
    @pytest.mark.parametrize("code", [402, 501, 606, 725, 728, 732, 0])
    @aio
    async def test_faults(self, code: int) -> None:
        async with meeting() as (router, upnp):
            router.actions["AddPortMapping"] = lambda arguments: fault(code, "no")
            await upnp.probe()
            with pytest.raises(PortMappingRefused) as refused:
                await upnp.map(TCP, 4001)
            assert refused.value.code == code

    @pytest.mark.parametrize(
        "location",
        [
            "http://10.0.0.1:80/root.xml",
            "http://127.0.0.1:1/root.xml",
            "http://router.local/root.xml",
            "https://{gateway}/root.xml",
            "file:///etc/passwd",
            "http://user@{gateway}/root.xml",
            "http://{gateway}:0/root.xml",
            "http://{gateway}:99999/root.xml",
            "//{gateway}/root.xml",
            "http://[::ffff:{gateway}]/root.xml",
            "http://{gateway}/a b",
            "http://{gateway}/\r\nX: y",
            "",
        ],
    )
    def test_a_location_elsewhere_is_not_followed(self, location: str) -> None:
        with pytest.raises(ProtocolViolation):
            checked(location.format(gateway=GATEWAY), GATEWAY)

    @aio
    async def test_an_answer_with_a_location_elsewhere(self) -> None:
        async with meeting(PortMappingConfig(patience=3.0)) as (router, upnp):
            touched: list[object] = []
            server = await asyncio.start_server(lambda r, w: touched.append(w), "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            router.ssdp = lambda data: (
                f"HTTP/1.1 200 OK\r\nLOCATION: http://127.0.0.1:{port}/x\r\n\r\n".encode()
            )
            with pytest.raises(ProtocolViolation, match="elsewhere"):
                await upnp.probe()
            with pytest.raises(ProtocolViolation, match="elsewhere"):
                await look(f"http://127.0.0.1:{port}/x")
            server.close()
            assert not touched

    @aio
    async def test_services_elsewhere_are_not_called(self) -> None:
        async with Router() as router:
            away = f"<root>{service(WANIP1, 'http://127.0.0.1:1/x')}</root>"
            router.http = lambda path, body: http_answer(200, away)
            with pytest.raises(ProtocolViolation, match="elsewhere"):
                await look(router.location)

    @pytest.mark.parametrize(
        "answer",
        [
            http_answer(404, "no"),
            http_answer(302, "no"),
            http_answer(200, "<html/>"),
            http_answer(200, "<root/>"),
            http_answer(
                200, '<!DOCTYPE root [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><root>&b;</root>'
            ),
            http_answer(200, "x" * (MAX_BYTES + 1)),
            b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 10_000,
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
            b"rubbish" * 2000,
            b"",
        ],
    )
    @aio
    async def test_a_description_that_is_none(self, answer: bytes) -> None:
        async with Router() as router:
            router.http = lambda path, body: answer
            with pytest.raises(FlareError):
                await look(router.location)

    @pytest.mark.parametrize("more", [0, 1])
    @aio
    async def test_the_largest_description_and_one_byte_more(self, more: int) -> None:
        async with Router() as router:
            start = f"<root>{service(WANIP1, '/ctl/IPConn')}<x>"
            fill = "x" * (MAX_BYTES + more - len(start) - len("</x></root>"))
            description = http_answer(200, f"{start}{fill}</x></root>")
            router.http = lambda path, body: description
            if more:
                with pytest.raises(FrameTooLarge):
                    await look(router.location)
            else:
                assert len(await look(router.location)) == 1

    @aio
    async def test_one_that_accepts_and_says_nothing(self) -> None:
        async with Router() as router:
            router.http = lambda path, body: None
            with pytest.raises(TimedOut, match="http://"):
                await look(router.location, QUICK)

    @aio
    async def test_one_that_never_answers_the_search(self) -> None:
        async with meeting(QUICK, speaks=()) as (_, upnp):
            with pytest.raises(TimedOut, match="search for UPnP"):
                await upnp.probe()

    @pytest.mark.parametrize(
        "answer",
        [
            lambda a: http_answer(200, "<x/>"),
            lambda a: soap("AddPortMapping"),
            lambda a: http_answer(204, ""),
        ],
    )
    @aio
    async def test_answers_that_make_no_sense(self, answer: Callable[[dict[str, str]], bytes]) -> None:
        async with meeting() as (router, upnp):
            await upnp.probe()
            router.actions["GetExternalIPAddress"] = answer
            with pytest.raises(DecodeError):
                await upnp.map(TCP, 4001)

    @pytest.mark.parametrize("action", ["AddPortMapping", "DeletePortMapping", "GetSpecificPortMappingEntry"])
    @aio
    async def test_slow_actions_end(self, action: str) -> None:
        async with meeting() as (router, upnp):
            await upnp.probe()
            lease = await upnp.map(TCP, 4001)
            upnp._config = QUICK
            good = router.http
            router.http = lambda path, body: None if action.encode() in body else good(path, body)
            with pytest.raises(TimedOut):
                await (upnp.unmap(lease) if action == "DeletePortMapping" else upnp.renew(lease))

    @aio
    async def test_before_it_was_looked_for(self) -> None:
        with pytest.raises(PortMappingRefused, match="not asked"):
            await Upnp(ROUTE, QUICK).map(TCP, 4001)


class TestSearching:
    @pytest.mark.parametrize("number", [search.MAX_LOCATIONS, search.MAX_LOCATIONS + 1])
    @aio
    async def test_so_many_places_and_no_more(self, number: int) -> None:
        async with Router() as router:
            told = iter(range(10_000))
            router.ssdp = lambda data: (
                f"HTTP/1.1 200 OK\r\nLOCATION: http://{GATEWAY}/{next(told) % number}\r\n\r\n".encode()
            )
            found = []
            with Search(ROUTE, 15.0) as looking:
                while (location := await looking.next()) is not None:
                    found.append(location)
                    if len(found) == search.MAX_LOCATIONS:
                        assert await looking.next() is None
                        break
            assert len(set(found)) == len(found) == search.MAX_LOCATIONS

    @aio
    async def test_others_are_not_listened_to(self) -> None:
        with Search(ROUTE, 1.5) as looking, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            answer = f"HTTP/1.1 200 OK\r\nLOCATION: http://{GATEWAY}/x\r\n\r\n".encode()
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(answer, looking._socket.getsockname())
            assert await looking.next() is None
            assert looking._datagrams >= 1

    @aio
    async def test_a_flood_ends_it(self) -> None:
        with Search(ROUTE, 30.0) as looking, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))

            async def flood() -> None:
                while True:
                    for _ in range(50):
                        stranger.sendto(b"x", looking._socket.getsockname())
                    await asyncio.sleep(0.001)

            flooding = asyncio.get_running_loop().create_task(flood())
            assert await looking.next() is None
            assert looking._datagrams == search.MAX_DATAGRAMS
            flooding.cancel()
