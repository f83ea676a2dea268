"""Whether the address that a router calls its own is one that strangers can reach: double NAT, and lies."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from flare.wire.address_space import IpAddress, ip_is_private
from flare.wire.multiaddr import Multiaddr

_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")


class Standing(enum.Enum):
    """What is known of a router's outside address."""

    CONFIRMED = "confirmed"  # others see us at the same IP
    UNCONFIRMED = "unconfirmed"  # it may be public, and nobody has told how he sees us
    DISPUTED = "disputed"  # it may be public, but others see us at another IP
    USELESS = "useless"  # nobody outside can reach it


@dataclass(frozen=True, slots=True)
class Judgement:
    """A standing and why, in a sentence; empty where nothing is wrong."""

    standing: Standing
    sentence: str = ""


def judge(ip: IpAddress, seen: Iterable[IpAddress], is_public: Callable[[Multiaddr], bool]) -> Judgement:
    """Judge the address that a router calls its own, by the IPs at which others see us."""
    others = sorted({other for other in seen if other.version == ip.version}, key=int)
    if ip.is_unspecified:
        nothing = "the router has no address on the internet itself"
        why = (
            f"double NAT: {nothing}, yet others see us at {_list(others)}: there is another NAT before it"
            if others
            else f"{nothing}: it is not connected, or there is another NAT before it"
        )
        return Judgement(Standing.USELESS, why)
    if not is_public(Multiaddr(f"/ip{ip.version}/{ip}")):
        return Judgement(Standing.USELESS, _double_nat(ip, others))
    if not others:
        return Judgement(Standing.UNCONFIRMED)
    if ip in others:
        return Judgement(Standing.CONFIRMED)
    return Judgement(
        Standing.DISPUTED,
        f"the router says that its address is {ip}, and others see us at {_list(others)}: either there is "
        "another NAT before it (double NAT), or it is wrong",
    )


def _double_nat(ip: IpAddress, others: list[IpAddress]) -> str:
    if ip.version == 4 and ip in _SHARED:
        what = "an address that an internet provider shares among its customers (RFC 6598)"
    elif ip_is_private(ip):
        what = "a private address"
    else:
        what = "an address that leads nowhere"
    seen = f"; others see us at {_list(others)}" if others else ""
    return (
        f"double NAT: the router's own outside address is {ip}, {what}, so that there is another NAT before "
        f"it and what it forwards reaches nobody on the internet{seen}"
    )


def _list(ips: list[IpAddress]) -> str:
    return ", ".join(map(str, ips[:3]))
