"""A home router on loopback that speaks PCP, NAT-PMP and UPnP, well or as badly as a test wants.

It has an address of its own in 127.77.0.0/16, by the process, so that test runs do not meet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from flare.transport.routes import Route
from flare.wire.multiaddr import Multiaddr

HOST = ipaddress.IPv4Address("127.0.0.1")
GATEWAY = ipaddress.IPv4Address(f"127.77.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF or 1}")
ROUTE = Route(GATEWAY, HOST, 1)
TCP = Multiaddr("/ip4/127.0.0.1/tcp/4001")
QUIC = Multiaddr("/ip4/127.0.0.1/udp/4001/quic-v1")
EXTERNAL = "102.1.0.1"

Datagram = Callable[[bytes], bytes | None]
Http = Callable[[str, bytes], bytes | None]

DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:{version}</deviceType>
<deviceList><device><deviceList><device><serviceList><service>
<serviceType>{service}</serviceType><controlURL>/ctl/IPConn</controlURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""
WANIP1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
WANIP2 = "urn:schemas-upnp-org:service:WANIPConnection:2"
WANPPP = "urn:schemas-upnp-org:service:WANPPPConnection:1"


def http_answer(status: int, body: str | bytes) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def soap(action: str, **values: object) -> bytes:
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return http_answer(
        200, f"<s:Envelope><s:Body><u:{action}Response>{inside}</u:{action}Response></s:Body></s:Envelope>"
    )


def fault(code: int, words: str = "") -> bytes:
    return http_answer(
        500,
        "<s:Envelope><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f"<UPnPError><errorCode>{code}</errorCode><errorDescription>{words}</errorDescription></UPnPError>"
        "</detail></s:Fault></s:Body></s:Envelope>",
    )


class Router:
    """`async with Router() as router`. What it is asked is in `asked`, what it maps in `table`.

    `pcp`, `nat_pmp`, `ssdp` and `http` give each answer, None for silence; a test puts its own in their
    place. `actions` are UPnP's that answer something else than a good router does.
    """

    def __init__(
        self, *, service: str = WANIP1, speaks: tuple[str, ...] = ("pcp", "nat_pmp", "upnp")
    ) -> None:
        self.service = service
        self.external = EXTERNAL
        self.epoch = 1000
        self.lifetime: int | None = None  # given, whatever is asked for
        self.asked: list[str] = []
        self.table: dict[tuple[str, int], tuple[str, int]] = {}  # (tcp|udp, external port): client
        self.actions: dict[str, Callable[[dict[str, str]], bytes]] = {}
        self.pcp: Datagram = self.good_pcp if "pcp" in speaks else lambda data: None
        self.nat_pmp: Datagram = self.good_nat_pmp if "nat_pmp" in speaks else lambda data: None
        self.ssdp: Datagram = self.good_ssdp if "upnp" in speaks else lambda data: None
        self.http: Http = self.good_http
        self._transports: list[asyncio.DatagramTransport] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for port, answer in ((5351, self._map), (1900, lambda data: self.ssdp(data))):
            transport, _ = await loop.create_datagram_endpoint(
                lambda answer=answer: _Answering(answer), local_addr=(str(GATEWAY), port)
            )
            self._transports.append(transport)
        self._server = await asyncio.start_server(self._serve, str(GATEWAY), 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._connections: set[asyncio.StreamWriter] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for transport in self._transports:
            transport.close()
        self._server.close()
        for writer in tuple(self._connections):
            writer.transport.abort()
        await asyncio.sleep(0.01)

    @property
    def location(self) -> str:
        return f"http://{GATEWAY}:{self.port}/rootDesc.xml"

    def announce(self) -> None:
        """Tell the group, for which the router's own address stands here, that it has started anew."""
        self._transports[0].sendto(b"\0\x80\0\0" + bytes(8), (str(GATEWAY), 5350))

    def _map(self, data: bytes) -> bytes | None:
        return self.pcp(data) if data[:1] == b"\2" else self.nat_pmp(data)

    # -- PCP

    def good_pcp(self, data: bytes) -> bytes | None:
        _, opcode, lifetime, client = struct.unpack_from("!BB2xI16s", data)
        self.asked.append(f"pcp {'announce' if opcode == 0 else 'map' if lifetime else 'unmap'}")
        if opcode == 0:
            return self.pcp_head(0, 0)
        nonce, protocol, internal, external = struct.unpack_from("!12sB3xHH", data, 24)
        name = {6: "tcp", 17: "udp"}[protocol]
        host = str(ipaddress.ip_address(client[12:]))
        external = self._enter(name, internal, external, host, lifetime)
        given = lifetime if self.lifetime is None or not lifetime else self.lifetime
        packed = b"\0" * 10 + b"\xff\xff" + ipaddress.ip_address(self.external).packed
        return (
            self.pcp_head(1, given) + struct.pack("!12sB3xHH", nonce, protocol, internal, external) + packed
        )

    def pcp_head(self, opcode: int, lifetime: int, result: int = 0) -> bytes:
        return struct.pack("!BBBBII12x", 2, 0x80 | opcode, 0, result, lifetime, self.epoch)

    def _enter(self, name: str, internal: int, external: int, host: str, lifetime: int) -> int:
        mine = [key for key, client in self.table.items() if client == (host, internal) and key[0] == name]
        for key in mine:
            external = key[1]
            del self.table[key]
        external = external or internal
        if lifetime:
            self.table[name, external] = (host, internal)
        return external

    # -- NAT-PMP

    def good_nat_pmp(self, data: bytes) -> bytes | None:
        if data == b"\0\0":
            self.asked.append("nat-pmp address")
            return struct.pack("!BBHI", 0, 128, 0, self.epoch) + ipaddress.ip_address(self.external).packed
        _, opcode, internal, external, lifetime = struct.unpack("!BBxxHHI", data)
        self.asked.append(f"nat-pmp {'map' if lifetime else 'unmap'}")
        external = self._enter({1: "udp", 2: "tcp"}[opcode], internal, external, str(HOST), lifetime)
        given = lifetime if self.lifetime is None or not lifetime else self.lifetime
        return struct.pack("!BBHIHHI", 0, 128 + opcode, 0, self.epoch, internal, external, given)

    # -- UPnP

    def good_ssdp(self, data: bytes) -> bytes | None:
        if not data.startswith(b"M-SEARCH"):
            return None
        return f"HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: {self.location}\r\n\r\n".encode()

    def good_http(self, path: str, body: bytes) -> bytes | None:
        if path == "/rootDesc.xml":
            self.asked.append("description")
            version = 2 if self.service == WANIP2 else 1
            return http_answer(200, DESCRIPTION.format(version=version, service=self.service))
        action, arguments = _called(body)
        self.asked.append(action)
        if action in self.actions:
            return self.actions[action](arguments)
        return self.good_action(action, arguments)

    def good_action(self, action: str, arguments: dict[str, str]) -> bytes:
        if action == "GetExternalIPAddress":
            return soap(action, NewExternalIPAddress=self.external)
        key = arguments["NewProtocol"].lower(), int(arguments["NewExternalPort"])
        if action == "DeletePortMapping":
            return soap(action) if self.table.pop(key, None) else fault(714)
        if action == "GetSpecificPortMappingEntry":
            if key not in self.table:
                return fault(714)
            host, internal = self.table[key]
            return soap(
                action,
                NewInternalPort=internal,
                NewInternalClient=host,
                NewEnabled=1,
                NewPortMappingDescription="flare",
                NewLeaseDuration=self.lifetime or 0,
            )
        client = arguments["NewInternalClient"], int(arguments["NewInternalPort"])
        taken = self.table.get(key, client) != client
        if action == "AddPortMapping":
            if taken:
                return fault(718)
            self.table[key] = client
            return soap(action)
        if action == "AddAnyPortMapping" and self.service == WANIP2:
            if taken:
                key = key[0], 55555
            self.table[key] = client
            return soap(action, NewReservedPort=key[1])
        return fault(401)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            answer = self.http(head.split(b" ")[1].decode(), await reader.readexactly(size))
            if answer is None:
                await reader.read()  # until the other side has had enough
                return
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()


class _Answering(asyncio.DatagramProtocol):
    def __init__(self, answer: Datagram) -> None:
        self._answer = answer

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        answer = self._answer(data)
        if answer is not None:
            self._transport.sendto(answer, address)


def _called(body: bytes) -> tuple[str, dict[str, str]]:
    from flare.wire.xml_tree import parse

    inside = parse(body).child("Body")
    assert inside is not None
    (action,) = inside.children
    return action.name, {child.name: child.text for child in action.children}
