"""When this machine's addresses or default routes change: rtnetlink(7), or a look now and then without it.

What changed is not taken from the kernel's messages but looked at afterwards: messages get lost when many
come at once, and some repeat what is so already.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from flare.errors import DecodeError
from flare.transport.sockets import interface_addresses

log = logging.getLogger("flare.transport")

PAUSE: Final = 0.3  # seconds after a message before it is told: changes come in groups
POLL: Final = 10.0  # seconds between two looks where there is no netlink
ADDRESS: Final = "addresses"
ROUTE: Final = "routes"

_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400  # IPv4 and IPv6, addresses and routes
_HEADER: Final = struct.Struct("=IHHII")
_ADDRESS_TYPES: Final = (20, 21)  # RTM_NEWADDR, RTM_DELADDR
_ROUTE_TYPES: Final = (24, 25)  # RTM_NEWROUTE, RTM_DELROUTE
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_MAIN: Final = 254  # the routing table


def own_ips() -> frozenset[str]:
    """The addresses of the interfaces that are up, without loopback; empty where they cannot be read."""
    try:
        found = [ip for version in (4, 6) for ip in interface_addresses(version)]
    except OSError as error:
        log.info("the interfaces' addresses cannot be read: %s", error)
        return frozenset()
    return frozenset(str(ip) for ip in found if not ip.is_loopback)


def decode(data: bytes) -> set[str]:
    """What a datagram of the kernel is about: ADDRESS, ROUTE (a default one), both, neither. DecodeError."""
    about: set[str] = set()
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise DecodeError("a header is cut short", protocol="rtnetlink")
        size, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size or at + size > len(data):
            raise DecodeError(f"a message of {size} bytes", protocol="rtnetlink")
        if kind in _ADDRESS_TYPES:
            about.add(ADDRESS)
        elif kind in _ROUTE_TYPES:
            if size < _HEADER.size + _ROUTE.size:
                raise DecodeError("a route is cut short", protocol="rtnetlink")
            _, prefix, _, _, table, _, _, _, _ = _ROUTE.unpack_from(data, at + _HEADER.size)
            if prefix == 0 and table == _MAIN:
                about.add(ROUTE)
        at += (size + 3) & ~3
    return about


class AddressWatch:
    """Calls `on_change` with ADDRESS or ROUTE, or both, a moment after a change, from `start` to `close`."""

    def __init__(self, on_change: Callable[[frozenset[str]], None], *, netlink: bool = True) -> None:
        self._on_change = on_change
        self._netlink = netlink and sys.platform == "linux"
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pending: set[str] = set()
        self._seen: frozenset[str] = frozenset()

    @property
    def polls(self) -> bool:
        """The kernel does not tell us, so that we look now and then."""
        return self._sock is None

    def start(self) -> None:
        """Watch from now on."""
        self._sock = _netlink_socket() if self._netlink else None
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._readable)
        else:
            self._seen = own_ips()
            self._timer = self._loop.call_later(POLL, self._look)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _readable(self) -> None:
        assert self._sock is not None
        while True:
            try:
                data, (sender, _) = self._sock.recvfrom(65536)
            except BlockingIOError:
                break
            except OSError:  # more came than the socket holds: whatever it was
                self._pending |= {ADDRESS, ROUTE}
                break
            if sender != 0:
                continue  # only the kernel is believed
            try:
                self._pending |= decode(data)
            except DecodeError as error:
                log.debug("%s", error)
                self._pending.add(ADDRESS)
        if self._pending and self._timer is None:
            self._timer = self._loop.call_later(PAUSE, self._tell)

    def _tell(self) -> None:
        self._timer = None
        about, self._pending = frozenset(self._pending), set()
        self._on_change(about)

    def _look(self) -> None:
        self._timer = self._loop.call_later(POLL, self._look)
        now = own_ips()
        if now != self._seen:
            self._seen = now
            self._on_change(frozenset((ADDRESS,)))


def _netlink_socket() -> socket.socket | None:
    """One that hears of changes; None where that is not allowed, as in some sandboxes."""
    try:
        sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
    except OSError as error:
        log.info("no netlink socket (%s): the addresses are looked at every %g s", error, POLL)
        return None
    try:
        sock.bind((0, _GROUPS))
    except OSError as error:
        log.info("netlink tells nothing (%s): the addresses are looked at every %g s", error, POLL)
        sock.close()
        return None
    return sock
