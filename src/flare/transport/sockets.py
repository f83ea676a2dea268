"""Sockets that listen and dial on one port, and the addresses that a wildcard stands for."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BACKLOG: Final = (
    4096  # connections that the kernel holds until they are accepted; it may hold fewer (somaxconn)
)
_IFF_UP: Final = 1


def tcp_socket(ip: IpAddress, *, reuse: bool) -> socket.socket:
    """A non-blocking TCP socket for the family of `ip`. With `reuse`, several may be bound to one port."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def listening_socket(ip: IpAddress, port: int) -> socket.socket:
    """A TCP socket that listens on `ip` and `port` (0: any free one), which diallers may share. OSError."""
    if port:
        _refuse_sharing(ip, port)
    sock = tcp_socket(ip, reuse=True)
    try:
        sock.bind((str(ip), port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _refuse_sharing(ip: IpAddress, port: int) -> None:
    """OSError when somebody listens there: by SO_REUSEPORT we would take half of its peers."""
    with tcp_socket(ip, reuse=False) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past what closed connections left
        probe.bind((str(ip), port))


def endpoint(address: Sequence[Any]) -> tuple[IpAddress, int]:
    """IP and port of what getsockname() and getpeername() give, IPv4 not inside IPv6, without a zone."""
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip, int(address[1])


def abort(sock: socket.socket) -> None:
    """Close with RST: nothing lingers in TIME_WAIT to hold the port."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("addr", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("destination", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def interface_addresses(version: int) -> list[IpAddress]:
    """The addresses of the interfaces that are up, IP `version` 4 or 6, link-local IPv6 left out. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)  # it is loaded; to find it by name would run a program
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found: dict[IpAddress, None] = {}
    try:
        entry = first
        while entry:
            item = entry.contents
            if item.addr and item.flags & _IFF_UP:
                ip = _ip_of(item.addr)
                if ip is not None and ip.version == version and not (version == 6 and ip.is_link_local):
                    found[ip] = None
            entry = item.next
    finally:
        libc.freeifaddrs(first)
    return list(found)


def _ip_of(sockaddr: int) -> IpAddress | None:
    """The address in a struct sockaddr_in or sockaddr_in6; None for other families."""
    head = ctypes.string_at(sockaddr, 2)
    family = (
        int.from_bytes(head, sys.byteorder) if sys.platform == "linux" else head[1]
    )  # BSD: length, then family
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(ctypes.string_at(sockaddr + 4, 4))
    if family == socket.AF_INET6:
        return ipaddress.IPv6Address(ctypes.string_at(sockaddr + 8, 16))
    return None
