"""The findings of `flare check` as one screen: at most MAX_LINES lines of 80 to 100 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from ...nat.behaviour import Allocation, Behaviour, Filtering, Mapping
from ...nat.outlook import Before, Outcome, Outlook, Peer, Way
from ...nat.reachability import AddressVerdict, Reachable
from ...watch.words import printable, short
from .findings import NAMES, Family, Findings, Ports, Relay
from .ink import Ink

MAX_LINES: Final = 40
ROWS: Final = 3  # of relays, and of addresses
LABEL: Final = 26  # columns
COLUMN: Final = 28
TITLES: Final = {"udp": "over UDP (QUIC)", "tcp": "over TCP"}
NATS: Final = {
    Before.OPEN: "a NAT that lets everybody in",
    Before.ADDR: "an address-restricted NAT",
    Before.PORT: "a port-restricted NAT",
    Before.SEQ: "a symmetric NAT with sequential ports",
    Before.SYM: "a symmetric NAT with random ports",
}
PEERS: Final = {
    Peer.NONE: "no NAT",
    Peer.FULL_CONE: "full cone",
    Peer.ADDRESS_RESTRICTED: "address-restricted NAT",
    Peer.PORT_RESTRICTED: "port-restricted NAT",
    Peer.SYMMETRIC_SEQUENTIAL: "symmetric, sequential",
    Peer.SYMMETRIC_RANDOM: "symmetric, random",
}
STYLES: Final = {
    Way.DIRECTLY: "good",
    Way.PREDICTED: "fair",
    Way.RELAYED: "bad",
    Way.UNKNOWN: "dim",
}
STATES: Final = (Reachable.PUBLIC, Reachable.PRIVATE, Reachable.UNKNOWN)
STATE_STYLES: Final = {Reachable.PUBLIC: "good", Reachable.PRIVATE: "fair", Reachable.UNKNOWN: "dim"}
COLOURS: Final = {
    Outcome.PUBLIC: "good",
    Outcome.PUNCHED: "fair",
    Outcome.RELAYED: "bad",
    Outcome.UNKNOWN: "bad",
}


def screen(found: Findings, ink: Ink) -> str:
    """All of it, ending with the verdict."""
    page = _Page(ink)
    _machine(page, found)
    if found.reached:
        _nat(page, found)
    _relays(page, found)
    _addrs(page, found)
    if found.reached:
        _peers(page, found)
    _verdict(page, found)
    return "\n".join(page.lines)


class _Page:
    """Lines. What is too long is cut, save for sentences that may go on below."""

    def __init__(self, ink: Ink) -> None:
        self.ink = ink
        self.lines: list[str] = []

    def row(self, label: str, text: str, *styles: str) -> None:
        """`label`, then `text` in `styles`."""
        head = self.ink.paint(f"{label:{LABEL}}", *([] if label.startswith(" ") else ["bold"]))
        self.lines.append(head + self.ink.paint(printable(text, self.ink.width - LABEL), *styles))

    def text(self, text: str, *styles: str, indent: int = 2) -> None:
        """`text` in `styles`, after so many blanks."""
        self.lines.append(" " * indent + self.ink.paint(printable(text, self.ink.width - indent), *styles))

    def sentence(self, text: str, *styles: str) -> None:
        """`text` in `styles`, over several lines if need be."""
        wrapped = textwrap.wrap(text, self.ink.width, break_on_hyphens=False)
        self.lines += [self.ink.paint(line, *styles) for line in wrapped]

    def columns(
        self, label: str, cells: Sequence[str], styles: Sequence[str] = (), *, bold: bool = False
    ) -> None:
        """`label`, then cells of equal width, in their `styles`."""
        line = self.ink.paint(f"{label:{LABEL}}", *(["bold"] if bold else []))
        for at, cell in enumerate(cells):
            last = at == len(cells) - 1
            padding = "" if last else " " * (COLUMN - len(cell))
            line += self.ink.paint(cell, *styles[at : at + 1]) + padding
        self.lines.append(line)

    def heading(self, text: str) -> None:
        self.lines += ["", self.ink.paint(text, "bold")]

    def gap(self) -> None:
        self.lines.append("")


# -- this machine


def _machine(page: _Page, found: Findings) -> None:
    page.row("IPv4", _family(found.ipv4, found))
    page.row("IPv6", _family(found.ipv6, found))
    for transport, name in (("udp", "UDP"), ("tcp", "TCP")):
        page.row(name, _works(found, transport), *(["bad"] if found.works(transport) is False else []))
    if found.ports.asked:
        page.row("port mapping", _ports_mapped(found.ports), *(["fair"] if found.ports.doubts else []))


def _ports_mapped(ports: Ports) -> str:
    if ports.doubts:
        return ports.doubts[0]
    if not ports.mapped:
        why = ports.reason.partition(": ")[0].partition(" that could")[0]  # --json has all of it
        return f"none: {why}" if why else "the router has not answered"
    first, count = ports.mapped[0], len(ports.mapped)
    return f"{first.protocol}: {count} ports of {first.external.ip} forwarded, and given back now"


def _family(family: Family, found: Findings) -> str:
    if not family.addrs:
        return "no address on this machine"
    own = _some(family.addrs)
    if family.source is None:
        return f"{own}, and no route to the internet"
    seen = [ip for ip in found.public_addrs if (":" in ip) == (family.version == 6)]
    others = [ip for ip in seen if ip not in family.addrs]
    if others:
        return f"{own}, seen from outside as {_some(others)}"
    if seen:
        return f"{_some(seen)}, public" + (": no relay answered over it" if family.answered is False else "")
    return f"{own}, not public" + (": a NAT is before it" if family.version == 4 else "")


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _works(found: Findings, transport: str) -> str:
    works = found.works(transport)
    if works is None:
        return "not known: no relay that was reached listens on it" if found.reached else "not known"
    tried = [r for r in found.relays if r.reached and any(p.transport == transport for p in r.paths)]
    came = [r for r in tried if any(p.transport == transport and p.rtt is not None for p in r.paths)]
    if works:
        return f"works: {len(came)} of {len(tried)} relay{'s' if len(tried) > 1 else ''} answered"
    if len(tried) > 1:
        return f"blocked: none of {len(tried)} relays answered over it, and all did otherwise"
    return "blocked here, or before the one relay that was asked"


# -- the NAT


def _nat(page: _Page, found: Findings) -> None:
    shown = [name for name in NAMES if found.works(name)]
    behaviours = [found.behaviour(name) for name in shown]
    page.gap()
    if behaviours and all(behaviour.mapping is Mapping.NONE for behaviour in behaviours):
        page.row("NAT", "none")
        return
    page.columns("NAT", [TITLES[name] for name in shown], bold=True)
    for label, words in (
        ("mapping", [_mapping(b) for b in behaviours]),
        ("filtering", [_filtering(b) for b in behaviours]),
        ("ports", [_ports(b) for b in behaviours]),
        *([("lifetime", [_lifetime(b) for b in behaviours])] if any(b.lifetime for b in behaviours) else []),
        ("hairpin", [{True: "yes", False: "no", None: "not known"}[b.hairpin] for b in behaviours]),
    ):
        page.columns(f"  {label}", words)


def _mapping(behaviour: Behaviour) -> str:
    return "not known" if behaviour.mapping is Mapping.UNKNOWN else behaviour.mapping.value


def _filtering(behaviour: Behaviour) -> str:
    if behaviour.mapping is Mapping.NONE:
        return "none"
    return "not known" if behaviour.filtering is Filtering.UNKNOWN else behaviour.filtering.value


def _ports(behaviour: Behaviour) -> str:
    if behaviour.allocation is Allocation.SEQUENTIAL:
        return f"in sequence, {behaviour.step} apart"
    return {
        Allocation.PRESERVING: "preserved",
        Allocation.RANDOM: "random",
        Allocation.UNKNOWN: "not known",
    }[behaviour.allocation]


def _lifetime(behaviour: Behaviour) -> str:
    """Of a mapping that carries nothing."""
    life = behaviour.lifetime
    if life is None:
        return "not measured"
    return (
        f"over {life.at_least:.0f} s"
        if life.at_most is None
        else f"{life.at_least:.0f} to {life.at_most:.0f} s"
    )


# -- relays and addresses


def _relays(page: _Page, found: Findings) -> None:
    if not found.relays:
        return
    page.heading("relays")
    for relay in sorted(found.relays, key=lambda relay: (relay.rtt is None, relay.rtt))[:ROWS]:
        page.row(f"  {short(str(relay.addr.peer_id))}", _relay(relay), *([] if relay.reached else ["bad"]))
    if len(found.relays) > ROWS:
        page.text(f"and {len(found.relays) - ROWS} more, which --json has")


def _relay(relay: Relay) -> str:
    if not relay.reached:
        return f"not reached: {_brief(relay.reason)}"
    trips = []
    for transport, name in (("udp", "QUIC"), ("tcp", "TCP")):
        paths = [path for path in relay.paths if path.transport == transport]
        rtts = [path.rtt for path in paths if path.rtt is not None]
        if rtts:
            trips.append(f"{_ms(min(rtts))} by {name}")
        elif paths:
            trips.append(f"none by {name}")
    place = "keeps a place" if relay.place else f"keeps no place: {_brief(relay.reason)}"
    blind = "" if relay.dials_back else "; does not dial back"
    return f"{', '.join(trips)}; {place}{blind}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "under 1 ms"


def _brief(reason: str) -> str:
    """An error without the ids, which the row begins with."""
    without = re.sub(r"/p2p/\w+", "", reason)
    return re.sub(r"(\S+: )\1", r"\1", re.sub(r"^could not dial \S+: ", "", without))


def _addrs(page: _Page, found: Findings) -> None:
    """Addresses under what was found out about them, each sentence once."""
    hidden = [name for name in NAMES if found.behaviour(name).mapping.depends]
    if not found.addrs and not hidden:
        return
    page.heading("addresses")
    if hidden:
        over = "" if len(hidden) == len(NAMES) else f" {TITLES[hidden[0]]}"
        page.text(f"none to tell{over}: the NAT shows each peer another port (endpoint-dependent mapping)")
    groups: dict[tuple[Reachable, str], list[str]] = {}
    for verdict in sorted(found.addrs, key=lambda verdict: STATES.index(verdict.state)):
        groups.setdefault((verdict.state, _evidence(verdict)), []).append(str(verdict.addr))
    left = ROWS
    for (state, evidence), addrs in groups.items():
        if left <= 0:
            break
        page.text(f"{state.value}: {evidence}", STATE_STYLES[state])
        for addr in addrs[:left]:
            page.text(addr, indent=4)
        left -= len(addrs)
    if left < 0:
        page.text(f"and {-left} more, which --json has")


def _evidence(verdict: AddressVerdict) -> str:
    if not verdict.words:
        return "nobody could tell"
    good = verdict.state is not Reachable.PRIVATE
    words = [word for word in verdict.words if word.reachable == good] or list(verdict.words)
    reason = words[0].reason
    if words[0].inferred:
        return reason.partition(" (")[0]  # the filtering, which stands above
    servers = sorted(short(str(word.server)) for word in words)
    return f"{_some(servers)}: {reason}"


# -- the verdict


def _peers(page: _Page, found: Findings) -> None:
    """Who reaches us, and how: a line for each kind of peer, a column for each transport."""
    expected = found.outlook
    page.gap()
    page.columns("peers behind", [TITLES[transport] for transport in expected.ways], bold=True)
    for peer in Peer:
        ways = [expected.ways[transport][peer] for transport in expected.ways]
        page.columns(f"  {PEERS[peer]}", [way.value for way in ways], [STYLES[way] for way in ways])


def _verdict(page: _Page, found: Findings) -> None:
    expected = found.outlook
    page.gap()
    page.sentence(_sentence(found, expected), "bold", COLOURS[expected.outcome])
    if found.public_over_ipv6 and expected.outcome is not Outcome.PUBLIC:
        page.sentence("Over IPv6 everybody reaches you directly; all else here is for peers with IPv4 only.")


def _sentence(found: Findings, expected: Outlook) -> str:
    relayed = any(expected.best(peer) is Way.RELAYED for peer in Peer)
    match expected.outcome:
        case Outcome.PUBLIC:
            if found.by_mapping:
                return (
                    "PUBLIC as long as the router forwards ports to you: everybody reaches you directly. The "
                    "check has given them back; `--map-ports`, or flare.PortMapper in a program, keeps them."
                )
            return f"PUBLIC, {_behind(found)}: everybody reaches you directly."
        case Outcome.PUNCHED:
            carries = ", and carries those who reach you no other way" if relayed else ""
            return (
                f"PRIVATE, {_behind(found)}, and hole punching works: keep a place on a relay, which "
                f"introduces your peers{carries}."
            )
        case Outcome.RELAYED:
            return (
                f"PRIVATE, {_behind(found)}: most peers reach you only by relay. Keep places on relays that "
                "carry as much as you need."
            )
        case Outcome.UNKNOWN:
            return f"UNKNOWN: {_why_unknown(found)}."


def _why_unknown(found: Findings) -> str:
    if not (found.ipv4.addrs or found.ipv6.addrs):
        return "this machine is on no network"
    if not found.relays:
        return (
            "nobody was asked. Say --relay ADDR, best of all twice: a relay sees you from outside, and tries "
            "to dial you"
        )
    if not found.reached:
        if all(relay.addr.has("udp") for relay in found.relays):
            return "no relay was reached; over TCP it might be, give such an address too"
        return "no relay was reached"
    if not any(relay.dials_back for relay in found.relays):
        return "no relay dials back; one that speaks AutoNAT v2 is needed"
    if found.cut:
        return "the time was over, and --timeout gives it more"
    if found.reached == 1:
        return "one relay does not see enough; give another one that has another IP"
    return "the relays could not tell, which takes two of them with different IPs, and AutoNAT v2"


def _behind(found: Findings) -> str:
    """What stands before us, once for both transports where they agree."""
    names = {}
    for transport, may in found.before.items():
        mapping = found.behaviour(transport).mapping
        if len(may) == 1:
            (before,) = may
            names[transport] = _name(before, mapping)
    if not names:
        return "behind a NAT"
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{name} {TITLES[transport]}" for transport, name in names.items())


def _name(before: Before, mapping: Mapping) -> str:
    if mapping is Mapping.NONE:
        return "without a NAT" if before is Before.OPEN else "behind a firewall"
    return f"behind {NATS[before]}"
