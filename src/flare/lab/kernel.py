"""The kernel's make of each NAT: nftables rules for a router with `wan0` outside and `lan0` inside."""

from __future__ import annotations

import shutil

from flare.lab.namespace import LabUnavailable
from flare.lab.nat import Dependence, NatConfig, Unsolicited
from flare.lab.ports import Random, Sequential

# A mapping that outlives its connections has to be kept by hand: conntrack forgets with the last of them.
_CONE_TABLES = """
  map eim {
    type inet_proto . inet_service : ipv4_addr . inet_service;
    flags dynamic, timeout; size 65535; timeout KEPTs;
  }
  set seen {
    type inet_proto . ipv4_addr . inet_service . ipv4_addr;
    flags dynamic, timeout; size 65535; timeout KEPTs;
  }
  chain learn {
    type filter hook forward priority -10; policy accept;
    oifname "wan0" meta l4proto { tcp, udp } update @eim { meta l4proto . th sport : ip saddr . th sport }
    oifname "wan0" meta l4proto { tcp, udp } update @seen { meta l4proto . ip saddr . th sport . ip daddr }
  }
"""
_ADDRESS_FILTER = 'iifname "wan0" meta l4proto . ip daddr . th dport . ip saddr @seen accept;'


def nft_command() -> str:
    """The path of the nft command; LabUnavailable when there is none."""
    found = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if found is None:
        raise LabUnavailable("--nat kernel needs the nft command: install nftables, or use --nat user")
    return found


def ruleset(config: NatConfig, public: str) -> str:
    """Rules that make the kernel behave as `config`, for a router whose outer address is `public`."""
    cone = config.filtering is not Dependence.ADDRESS_AND_PORT_DEPENDENT
    dnat = 'iifname "wan0" dnat ip to meta l4proto . th dport map @eim;' if cone else ""
    back_in = ""
    if config.hairpin and cone:
        dnat += f' iifname "lan0" ip daddr {public} dnat ip to meta l4proto . th dport map @eim;'
        back_in = f'oifname "lan0" ct status dnat snat ip to {public};'
    no_udp = "" if config.passes_udp else 'iifname "lan0" meta l4proto udp drop;'
    admit = ""
    if config.filtering is Dependence.ENDPOINT_INDEPENDENT:
        admit = 'iifname "wan0" ct status dnat accept;'
    elif config.filtering is Dependence.ADDRESS_DEPENDENT:
        admit = _ADDRESS_FILTER
    tables = _CONE_TABLES.replace("KEPT", f"{config.mapping_timeout:.0f}") if cone else ""
    return f"""
table ip lab {{
{tables}
  chain prerouting {{ type nat hook prerouting priority dstnat; {dnat} }}
  chain postrouting {{ type nat hook postrouting priority srcnat; {_source_nat(config, public)} {back_in} }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    {no_udp}
    iifname "wan0" ct state established,related accept; {admit}
    iifname "wan0" drop;
  }}
  {_input(config)}
}}
"""


def sysctls(config: NatConfig) -> dict[str, int]:
    """What the router's namespace is told besides the rules, in seconds."""
    usual = NatConfig()
    found = {}
    if config.udp_timeout != usual.udp_timeout:
        found["net/netfilter/nf_conntrack_udp_timeout"] = round(config.udp_timeout)
    if config.udp_stream_timeout != usual.udp_stream_timeout:
        found["net/netfilter/nf_conntrack_udp_timeout_stream"] = round(config.udp_stream_timeout)
    return found


def _source_nat(config: NatConfig, public: str) -> str:
    if config.mapping is Dependence.ENDPOINT_INDEPENDENT:
        return 'oifname "wan0" masquerade;'
    other = 'oifname "wan0" masquerade random,fully-random;'
    transport = 'oifname "wan0" meta l4proto { tcp, udp }'
    if config.mapping is Dependence.ADDRESS_DEPENDENT and isinstance(config.allocation, Random):
        low, size = config.allocation.low, config.allocation.high - config.allocation.low + 1
        spread = f"jhash ip daddr . th sport mod {size} seed 0x1234 offset {low}"
        return f"{transport} snat ip to {public} : {spread}; {other}"
    if isinstance(config.allocation, Sequential):
        sequence = config.allocation
        # numgen with an offset alone is byte-swapped, ports would step by 256: hence the map
        ports = ", ".join(f"{i} : {sequence.start + i * sequence.step}" for i in range(sequence.count))
        return f"{transport} snat ip to {public} : numgen inc mod {sequence.count} map {{ {ports} }}; {other}"
    return other


def _input(config: NatConfig) -> str:
    if config.unsolicited is Unsolicited.ACCEPT:
        return ""
    refuse = 'iifname "wan0" drop;'
    if config.unsolicited is Unsolicited.REJECT:
        refuse = 'iifname "wan0" meta l4proto tcp reject with tcp reset; iifname "wan0" reject;'
    return f"""chain input {{
    type filter hook input priority filter; policy accept;
    iifname "wan0" ct state established,related accept; meta l4proto icmp accept; {refuse}
  }}"""
