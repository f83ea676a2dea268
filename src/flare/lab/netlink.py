"""Just enough rtnetlink(7) to set up the current namespace without the `ip` command."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Interface

_NEWLINK, _NEWADDR, _DELADDR, _NEWROUTE = 16, 20, 21, 24
_REQUEST, _ACK, _EXCL, _CREATE = 1, 4, 0x200, 0x400
_ERROR = 2
_IFF_UP = 1
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _name(text: str) -> bytes:
    return _attribute(_IFLA_IFNAME, text.encode() + b"\0")


def _request(kind: int, flags: int, body: bytes) -> None:
    message = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        sock.settimeout(5)
        sock.send(message)
        reply = sock.recv(65536)
    if struct.unpack_from("=H", reply, 4)[0] == _ERROR:
        code = -struct.unpack_from("=i", reply, 16)[0]
        if code:
            raise OSError(code, f"netlink request {kind}: {os.strerror(code)}")


def set_up(interface: str, mtu: int = 0) -> None:
    """Bring an interface up, with an MTU when one is given."""
    index = socket.if_nametoindex(interface)
    extra = _attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
    _request(_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP) + extra)


def add_address(interface: str, text: str) -> None:
    """Give an interface an address, as in "10.1.0.2/24"."""
    _request(_NEWADDR, _CREATE | _EXCL, _address(interface, text))


def remove_address(interface: str, text: str) -> None:
    """Take an address from an interface; with its last one its routes go too."""
    _request(_DELADDR, 0, _address(interface, text))


def _address(interface: str, text: str) -> bytes:
    index = socket.if_nametoindex(interface)
    value = IPv4Interface(text)
    packed = value.ip.packed
    header = struct.pack("=BBBBi", socket.AF_INET, value.network.prefixlen, 0, 0, index)
    return header + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


def add_default_route(interface: str, gateway: str = "") -> None:
    """Send everything through an interface, to a gateway when the interface is not point to point."""
    index = socket.if_nametoindex(interface)
    main, static, universe, link, unicast = 254, 4, 0, 253, 1
    scope = universe if gateway else link
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, main, static, scope, unicast, 0)
    extra = _attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) if gateway else b""
    _request(_NEWROUTE, _CREATE | _EXCL, header + _attribute(_RTA_OIF, struct.pack("=i", index)) + extra)


def add_veth(name: str, peer: str, peer_namespace: int) -> None:
    """A cable: `name` here, `peer` in the namespace of that descriptor."""
    link = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    other = link + _name(peer) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
    data = _attribute(_INFO_DATA, _attribute(_VETH_PEER, other))
    info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"veth") + data)
    _request(_NEWLINK, _CREATE | _EXCL, link + _name(name) + info)
