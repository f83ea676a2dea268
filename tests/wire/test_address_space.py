"""flare.wire.address_space: what is public, at the edges of each range (IANA special-purpose registries)."""

from __future__ import annotations

import ipaddress

import pytest

from flare.wire.multiaddr import Multiaddr, is_public

PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2000::",
    "2606:4700::1111",
    "2001:db7:ffff::",
    "2001:db9::",
    "3ffe::",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
]
PRIVATE = [
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.0.0",
    "169.254.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "192.168.0.0",
    "192.168.255.255",
    "::1",
    "fc00::",
    "fdff:ffff::",
    "fe80::1",
    "febf:ffff::",
    "::ffff:10.0.0.1",
]
NEITHER = [
    "0.0.0.0",
    "0.255.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.255",
    "::",
    "ff02::1",
    "2001:db8::1",
    "3fff::1",
    "3fff:fff:ffff::",
    "fec0::1",
    "4000::1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "::ffff:192.0.2.1",
]


def addr(ip: str) -> Multiaddr:
    return Multiaddr(f"/ip{ipaddress.ip_address(ip).version}/{ip}/tcp/4001")


@pytest.mark.parametrize("ip", PUBLIC)
def test_public(ip: str) -> None:
    assert addr(ip).is_public
    assert is_public(addr(ip))
    assert not addr(ip).is_private


@pytest.mark.parametrize("ip", PRIVATE)
def test_private(ip: str) -> None:
    assert addr(ip).is_private
    assert not addr(ip).is_public


@pytest.mark.parametrize("ip", NEITHER)
def test_neither(ip: str) -> None:
    assert not addr(ip).is_public
    assert not addr(ip).is_private


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback(ip: str) -> None:
    assert addr(ip).is_loopback
    assert not addr("10.0.0.1").is_loopback


@pytest.mark.parametrize(
    ("text", "public", "private"),
    [
        ("/dns/example.com/tcp/1", True, False),
        ("/dnsaddr/bootstrap.libp2p.io", True, False),
        ("/dns4/localhost/tcp/1", False, True),
        ("/dns4/a.LOCALHOST./tcp/1", False, True),
        ("/dns4/printer.local/tcp/1", False, False),
        ("/dns4/a.test/tcp/1", False, False),
        ("/dns4/notlocal/tcp/1", True, False),
        ("/dns4/x.home.arpa/tcp/1", False, False),
        ("/unix/run/x", False, False),
        ("/p2p-circuit", False, False),
        ("/ip6zone/eth0/ip6/fe80::1/tcp/1", False, True),
    ],
)
def test_names_and_others(text: str, public: bool, private: bool) -> None:
    assert Multiaddr(text).is_public is public
    assert Multiaddr(text).is_private is private


def test_a_circuit_lies_where_its_relay_does() -> None:
    assert (addr("1.1.1.1") / "p2p-circuit").is_public
    assert not (addr("10.0.0.1") / "p2p-circuit").is_public
