"""Multiaddrs from bytes and from text: only InvalidMultiaddr, and each form gives the other back."""

from __future__ import annotations

from flare.errors import InvalidMultiaddr
from flare.wire.multiaddr import Multiaddr

_PEER = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
_TEXTS = (
    "/ip4/1.2.3.4/tcp/4001",
    f"/ip6zone/eth0/ip6/fe80::1/udp/4001/quic-v1/p2p/{_PEER}/p2p-circuit/p2p/{_PEER}",
    "/ip6/::ffff:1.2.3.4/udp/1/quic-v1/webtransport/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g",
    "/dns4/example.com/tcp/443/tls/sni/example.com/ws",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    "/p2p/bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe",
    "/memory/7/noise/http",
    "/unix/run/flare.sock",
)

CORPUS = tuple(text.encode() for text in _TEXTS) + tuple(bytes(Multiaddr(text)) for text in _TEXTS)


def fuzz(data: bytes) -> None:
    try:
        addr = Multiaddr(data)
    except InvalidMultiaddr:
        pass
    else:
        assert bytes(addr) == data, "the binary form is canonical"
        _look(addr)
    try:
        addr = Multiaddr(data.decode("utf-8", "replace"))
    except InvalidMultiaddr:
        return
    _look(addr)


def _look(addr: Multiaddr) -> None:
    """Everything that can be asked of a valid address must have an answer."""
    assert Multiaddr(str(addr)) == addr
    assert Multiaddr(bytes(addr)) == addr
    assert len([*addr]) == len(addr) > 0
    assert not (addr.is_public and addr.is_private)
    assert addr.without_peer().encapsulate(addr) if not addr.has("unix") else True
    assert addr.relay is None or addr.is_circuit
    assert addr.target_after_circuit is None or addr.is_circuit
    assert isinstance((addr.peer_id, addr.ip, addr.host, addr.port, addr.transport, addr.is_loopback), tuple)
