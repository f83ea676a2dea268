"""Pinholes in a home router's IPv6 firewall, opened by PCP and by UPnP: Debian's miniupnpd, real commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flare.lab import netlink
from flare.lab.kinds import KINDS
from flare.lab.namespace import Namespace
from flare.lab.upnpd import MiniUpnpd
from flare.lab.world import Host, Lab
from tests.lab.test_port_mapping import ENV, PROGRAM, SHORT, Home

pytestmark = pytest.mark.lab

HOST, STRANGER = "2a0f:f1a2:1::2", "2a0f:f1a2:2::2"
ADDRS = f"/ip6/{HOST}/tcp/4001", f"/ip6/{HOST}/udp/4001/quic-v1"


def ip(namespace: Namespace, words: str) -> None:
    namespace.run(["ip", "-6", *words.split()])


@contextmanager
def home(*options: str) -> Iterator[Home]:
    """A lab's kernel router that has IPv6 too, by a second cable outside, at whose end is the stranger."""
    with Lab({"host": "port"}, make="kernel") as lab:
        host = lab.hosts["host"].namespace
        (router,) = lab.hosts["host"].routers
        stranger = Namespace()
        with router.entered():
            netlink.add_veth("wan6", "eth0", stranger.fileno())
            netlink.set_up("wan6")
        with stranger.entered():
            netlink.set_up("lo")
            netlink.set_up("eth0")
        router.sysctl("net/ipv6/conf/all/forwarding", 1)
        for namespace, words in (
            (router, "addr add fe80::1/64 dev lan0 nodad"),
            (router, "addr add 2a0f:f1a2:1::1/64 dev lan0 nodad"),
            (router, "addr add 2a0f:f1a2:2::1/64 dev wan6 nodad"),
            (host, f"addr add {HOST}/64 dev eth0 nodad"),
            (host, "route add default via fe80::1 dev eth0"),
            (stranger, f"addr add {STRANGER}/64 dev eth0 nodad"),
            (stranger, "route add default via 2a0f:f1a2:2::1"),
        ):
            ip(namespace, words)
        lab.hosts["stranger"] = Host("stranger", KINDS["none"], stranger, STRANGER, STRANGER)
        try:
            with MiniUpnpd(router, *SHORT, "ext_ifname6=wan6", *options, ipv6=True) as daemon:
                lab.run(lambda: False, 0.5)
                yield Home(lab, daemon, "")
        finally:
            stranger.close()


BOTH = pytest.mark.parametrize(("only", "protocol"), [("PCP", "PCP"), ("UPnP", "UPnP pinhole")])


@BOTH
def test_strangers_come_in_until_it_is_closed(only: str, protocol: str) -> None:
    with home() as scene:
        host = scene.map("--only", only, "--listen", HOST, relay=False)
        peer = scene.wait(host, "up")["peer"]
        for addr in ADDRS:
            scene.wait(host, "port-mapped", protocol=protocol, listener=addr, external=addr)
        assert scene.dial(peer, *ADDRS) == ["direct/tcp", "direct/quic-v1"]
        scene.end(host)
        assert not host.first("port-mapping-failed")
        assert "accept" not in scene.daemon.rules()


@BOTH
def test_renewed(only: str, protocol: str) -> None:
    with home() as scene:
        host = scene.map("--only", only, "--listen", HOST, "--lifetime", "10", relay=False)
        for addr in ADDRS:
            scene.wait(host, "port-mapped", 3, listener=addr, protocol=protocol)
        assert not host.first("port-mapping-lost")
        assert scene.daemon.rules().count("accept") == 2
        scene.end(host)
        # this miniupnpd does not let go by PCP of a pinhole that was renewed: that one ends with its lease
        assert scene.until(lambda: "accept" not in scene.daemon.rules(), 40)


def test_without_a_pinhole_nobody_comes_in() -> None:
    with home() as scene:
        listening = [sys.executable, PROGRAM, "map", "--only", "nobody", "--listen", HOST]
        host = scene.lab.spawn("host", listening, env=ENV)
        peer = scene.wait(host, "up")["peer"]
        assert scene.dial(peer, f"/ip6/{HOST}/tcp/4001") == [""]
