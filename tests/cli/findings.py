"""What `flare check` finds out before some kinds of NAT, as plain values."""

from __future__ import annotations

from dataclasses import replace

from flare.cli.check.findings import Family, Findings, Path, Ports, Relay
from flare.events import PortMapped
from flare.nat.behaviour import Allocation, Behaviour, Filtering, Mapping
from flare.nat.reachability import AddressVerdict, Reachable, Word
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

RELAYS = [
    PeerId("12D3KooWGuE5KwCjq5LuAineBYwQwEgD1aCMjU6xs7u1BHmfvJ15"),
    PeerId("12D3KooWB81byY3G7Krgi67mX52t5efoCSHcxx37TFjCMhhy7iQA"),
]
EI = Mapping.ENDPOINT_INDEPENDENT
APD = Filtering.ADDRESS_AND_PORT_DEPENDENT
OUTSIDE = "103.1.0.1"
FILTERED = "our NAT lets in only whom we have sent to (address-and-port-dependent filtering)"


def relay(number: int, *, quic: bool = True) -> Relay:
    ip = f"10{number}.1.0.1"
    blocked = "no answer within 4 s"
    return Relay(
        Multiaddr(f"/ip4/{ip}/tcp/4001/p2p/{RELAYS[number - 1]}"),
        "flare/0.1.0",
        True,
        "",
        True,
        (
            Path(Multiaddr(f"/ip4/{ip}/tcp/4001"), 0.1012 * number),
            Path(
                Multiaddr(f"/ip4/{ip}/udp/4001/quic-v1"),
                0.1003 * number if quic else None,
                "" if quic else blocked,
            ),
        ),
    )


def word(reachable: bool, reason: str, *, inferred: bool = False) -> Word:
    return Word(RELAYS[0], "101.1", reachable, 0.0, True, reason, inferred)


def address(text: str, state: Reachable, *words: Word) -> AddressVerdict:
    return AddressVerdict(Multiaddr(text), state, words)


def nat(
    mapping: Mapping, filtering: Filtering, allocation: Allocation, step: int = 0
) -> dict[str, Behaviour]:
    return {
        transport: Behaviour(transport, mapping, filtering, allocation, step, False, OUTSIDE)
        for transport in ("udp", "tcp")
    }


HOME = Findings(
    peer=str(RELAYS[1]),
    ipv4=Family(4, ("10.3.0.2",), "10.3.0.2", True),
    relays=(relay(1), relay(2)),
    ports=Ports(True, reason="the router at 10.3.0.1 maps no ports: PCP: no answer; NAT-PMP: no answer"),
    seconds=5.2,
)
PORT = replace(
    HOME,
    behaviours=nat(EI, APD, Allocation.PRESERVING),
    addrs=(
        address(f"/ip4/{OUTSIDE}/udp/40124/quic-v1", Reachable.PRIVATE, word(False, FILTERED, inferred=True)),
        address(f"/ip4/{OUTSIDE}/tcp/40123", Reachable.PRIVATE, word(False, FILTERED, inferred=True)),
    ),
)
SYMMETRIC = replace(HOME, behaviours=nat(Mapping.ADDRESS_AND_PORT_DEPENDENT, APD, Allocation.RANDOM))
PUBLIC = replace(
    HOME,
    ipv4=Family(4, (OUTSIDE,), OUTSIDE, True),
    ipv6=Family(6, ("2a01:4f8::2",), "2a01:4f8::2", None),
    behaviours={
        transport: Behaviour(transport, Mapping.NONE, external=OUTSIDE) for transport in ("udp", "tcp")
    },
    addrs=(
        address(f"/ip4/{OUTSIDE}/udp/4001/quic-v1", Reachable.PUBLIC, word(True, "the server connected")),
        address(f"/ip4/{OUTSIDE}/tcp/4001", Reachable.PUBLIC, word(True, "the server connected")),
    ),
)
BLOCKED = replace(
    PORT,
    relays=(relay(1, quic=False), relay(2, quic=False)),
    behaviours={"tcp": PORT.behaviours["tcp"]},
    addrs=PORT.addrs[1:],
)
ALONE = Findings(peer=str(RELAYS[1]), ipv4=Family(4, ("192.168.1.20",), "192.168.1.20"), seconds=0.1)
LISTENERS = ("/ip4/10.3.0.2/udp/40124/quic-v1", "/ip4/10.3.0.2/tcp/40123")
MAPPED = replace(
    PORT,
    ports=Ports(
        True,
        tuple(
            PortMapped(
                Multiaddr(listener),
                Multiaddr(listener.replace("10.3.0.2", OUTSIDE)),
                "UPnP IGD 2",
                "10.3.0.1",
                7200.0,
            )
            for listener in LISTENERS
        ),
    ),
    addrs=tuple(
        address(listener.replace("10.3.0.2", OUTSIDE), Reachable.PUBLIC, word(True, "the server connected"))
        for listener in LISTENERS
    ),
)
SCREENS = {
    "port": PORT,
    "symmetric": SYMMETRIC,
    "public": PUBLIC,
    "udp-blocked": BLOCKED,
    "mapped": MAPPED,
    "alone": ALONE,
}
