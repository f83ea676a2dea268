"""The kinds of NAT by their names in the lab, each as the chain of routers before a host of that kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flare.lab.nat import Dependence, NatConfig, Unsolicited
from flare.lab.ports import Random, Sequential

_KEPT = 300.0  # seconds a cone's mapping outlives its last connection


@dataclass(frozen=True, slots=True)
class Kind:
    """What stands between a host and the internet; `routers` from the inside out, none for a public host."""

    name: str
    title: str
    routers: tuple[NatConfig, ...]


_EI, _AD, _APD = (
    Dependence.ENDPOINT_INDEPENDENT,
    Dependence.ADDRESS_DEPENDENT,
    Dependence.ADDRESS_AND_PORT_DEPENDENT,
)
_FULL = NatConfig(_EI, _EI, mapping_timeout=_KEPT)
_ADDR = NatConfig(_EI, _AD, mapping_timeout=_KEPT)
_PORT = NatConfig(_EI, _APD)
_PORT_RST = replace(_PORT, unsolicited=Unsolicited.REJECT)
_PORT_ACC = replace(_PORT, unsolicited=Unsolicited.ACCEPT)
_SYM = NatConfig(_APD, _APD, allocation=Random())
_SYM_SEQ = replace(_SYM, allocation=Sequential())
_NO_UDP = replace(_PORT, passes_udp=False)
_HAIRPIN = replace(_FULL, hairpin=True)
_SHORT = replace(_PORT, udp_timeout=4.0, udp_stream_timeout=8.0)
_ADM = NatConfig(_AD, _APD, allocation=Random(30000, 49999), mapping_timeout=_KEPT)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("none", "a public address, no NAT", ()),
        Kind("full", "endpoint-independent mapping and filtering", (_FULL,)),
        Kind("addr", "endpoint-independent mapping, address-dependent filtering", (_ADDR,)),
        Kind("port", "endpoint-independent mapping, address-and-port-dependent filtering", (_PORT,)),
        Kind("port-rst", "as port, and rejects what is unsolicited", (_PORT_RST,)),
        Kind("port-acc", "as port, and takes what is unsolicited for its own", (_PORT_ACC,)),
        Kind("sym", "endpoint-dependent mapping, random ports", (_SYM,)),
        Kind("sym-seq", "endpoint-dependent mapping, sequential ports", (_SYM_SEQ,)),
        Kind("adm", "address-dependent mapping, address-and-port-dependent filtering", (_ADM,)),
        Kind("noudp", "as port, and UDP does not pass", (_NO_UDP,)),
        Kind("hairpin", "as full, and its outside address leads back in", (_HAIRPIN,)),
        Kind("short", "as port, and forgets UDP after 4 s, an answered flow after 8 s", (_SHORT,)),
        Kind("cgn", "a port-restricted NAT behind another", (_PORT, _PORT)),
        Kind("cgn-sym", "a port-restricted NAT behind a symmetric one", (_PORT, _SYM)),
    )
}
