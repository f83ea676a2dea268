"""Crafted packets and endpoints for the NAT tests."""

from __future__ import annotations

from flare.lab.kinds import KINDS
from flare.lab.nat import Nat, NatConfig, Side
from flare.lab.packet import Packet, address, tcp_packet, udp_packet

HOST = (address("10.1.0.2"), 4001)
OTHER_HOST = (address("10.1.0.3"), 4001)
GATEWAY = address("10.1.0.1")
PUBLIC = address("101.1.0.1")
PEER = (address("102.1.0.1"), 5001)
PEER_OTHER_PORT = (PEER[0], 5002)
STRANGER = (address("103.1.0.1"), 5001)


def router(config: NatConfig | str, seed: int = 1) -> Nat:
    """A NAT by its configuration, or by the name of a kind with one router."""
    if isinstance(config, str):
        (config,) = KINDS[config].routers
    return Nat(config, PUBLIC, GATEWAY, seed)


def only(output: list[tuple[Side, bytes]], side: Side) -> Packet:
    """The one packet that came out, which must be on that side and have right checksums."""
    assert [where for where, _ in output] == [side], f"expected one packet {side.value}, got {output}"
    packet = Packet.parse(output[0][1])
    assert packet is not None, "what comes out parses"
    assert packet.checksums_right(), f"checksums of {packet}"
    return packet


def out(nat: Nat, packet: bytes, now: float = 0.0) -> Packet:
    return only(nat.from_inside(packet, now), Side.OUTSIDE)


def public_port(nat: Nat, packet: bytes, now: float = 0.0) -> int:
    return out(nat, packet, now).sport


def passes(
    nat: Nat, source: tuple[int, int], port: int, now: float = 0.0, *, flags: int | None = None
) -> bool:
    """Whether a packet from outside reaches the inside."""
    where = (PUBLIC, port)
    raw = udp_packet(source, where, b"x") if flags is None else tcp_packet(source, where, flags, seq=9)
    return any(side is Side.INSIDE for side, _ in nat.from_outside(raw, now))
