"""What a host behind a NAT of each kind finds out about itself: the real commands, and what must come out.

Two public relays dial back, each from two ports; the host is `flare listen --reachability`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from flare.lab.fabric import Path
from flare.lab.stage import LabFailed, Stage
from flare.lab.world import Lab, Make, Program

SERVER: Final = "{flare} relay --listen {listen} --json"
CLIENT: Final = "{flare} listen --relay {relays} --listen {listen} --reachability --json"
DEFAULT_PATH: Final = Path(delay=0.05)
PORTS: Final = ("tcp/4001", "udp/4001/quic-v1", "tcp/4002", "udp/4002/quic-v1")
SLACK: Final = 1.0  # seconds by which a lifetime may be measured wrongly
CLIENT_PORTS: Final = ("tcp/0", "udp/0/quic-v1")
TRANSPORTS: Final = {"tcp": "tcp", "quic-v1": "udp"}

NONE, EI, AD, APD = "none", "endpoint-independent", "address-dependent", "address-and-port-dependent"


@dataclass(frozen=True, slots=True)
class Row:
    """How a NAT treats one transport. `hairpin` None: there is no NAT; `lifetime` is in seconds."""

    mapping: str
    filtering: str
    allocation: str
    hairpin: bool | None = False
    blocked: bool = False
    step: int = 0
    lifetime: tuple[float, float | None] | None = None  # alive after, gone after


@dataclass(frozen=True, slots=True)
class Truth:
    """What is so: the verdict, the transports with a public address, how TCP and UDP are treated."""

    verdict: str
    public: frozenset[str]
    tcp: Row
    udp: Row
    lifetime: float | None = 120.0  # seconds that a mapping for UDP lives which carries nothing


def _both(verdict: str, row: Row, udp: Row | None = None) -> Truth:
    return Truth(verdict, frozenset(("tcp", "udp") if verdict == "public" else ()), row, udp or row)


_PORT = Row(EI, APD, "preserving")
_SYM = Row(APD, APD, "random")
TRUTH: Final[dict[str, Truth]] = {
    "none": replace(_both("public", Row(NONE, EI, "preserving", None)), lifetime=None),
    "full": replace(_both("public", Row(EI, EI, "preserving")), lifetime=300.0),
    "hairpin": replace(_both("public", Row(EI, EI, "preserving", True)), lifetime=300.0),
    "addr": replace(_both("private", Row(EI, AD, "preserving")), lifetime=300.0),
    "port": _both("private", _PORT),
    "port-rst": _both("private", _PORT),
    "port-acc": _both("private", _PORT),
    "short": replace(_both("private", _PORT), lifetime=8.0),
    "noudp": replace(
        _both("private", _PORT, Row("unknown", "unknown", "unknown", None, blocked=True)), lifetime=None
    ),
    "sym": _both("private", _SYM),
    "sym-seq": _both("private", Row(APD, APD, "sequential", step=1)),
    "adm": replace(_both("private", Row(AD, APD, "random")), lifetime=300.0),
    "cgn": _both("private", _PORT),
    "cgn-sym": _both("private", _SYM),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One look. `timeout` seconds for all to be found out, then `watch` more for it to stay so.

    `within`: seconds for the first verdict; 0: it may take its time. `servers`: one cannot tell everything.
    `lifetime`: wait for UDP's too. `over`: how the host is connected to the servers, in turn.
    """

    kind: str
    make: Make = "user"
    path: Path = DEFAULT_PATH
    servers: int = 2
    timeout: float = 30.0
    watch: float = 0.0
    within: float = 0.0
    lifetime: bool = False
    over: tuple[str, ...] = ("udp", "tcp")
    seed: int = 0
    server_command: str = SERVER
    client_command: str = CLIENT


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of it: every verdict with its seconds, the last state of each address, and the behaviours."""

    plan: Plan
    verdicts: tuple[tuple[str, float], ...] = ()
    addrs: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    reason: str = ""

    @property
    def verdict(self) -> str:
        """The first that is not "unknown"."""
        return next((state for state, _ in self.verdicts if state != "unknown"), "unknown")

    @property
    def seconds(self) -> float | None:
        """Until that one, since the host started."""
        return next((seconds for state, seconds in self.verdicts if state != "unknown"), None)

    @property
    def public(self) -> frozenset[str]:
        """The transports that have a public address."""
        return frozenset(
            name for addr, state in self.addrs.items() if state == "public" and (name := _transport(addr))
        )

    def surprises(self) -> list[str]:
        """Each thing that is not as it must be, as a sentence."""
        if self.reason:
            return [self.reason]
        truth = TRUTH[self.plan.kind]
        found = []
        said = [state for state, _ in self.verdicts if state != "unknown"]
        if not said:
            found.append("there was no verdict")
        found += [
            f"it called itself {state} and is {truth.verdict}" for state in said if state != truth.verdict
        ]
        if self.public != truth.public:
            found.append(f"public over {_names(self.public)}, and it is over {_names(truth.public)}")
        for name, row in (("tcp", truth.tcp), ("udp", truth.udp)):
            if (saw := self.rows.get(name)) is None:
                found.append(f"nothing was found out about {name}")
            elif _plain(saw) != row:
                found.append(f"{name} is {row}, and it found {_plain(saw)}")
        life = self.rows["udp"].lifetime if "udp" in self.rows else None
        if not _brackets(life, truth.lifetime) or (self.plan.lifetime and truth.lifetime and life is None):
            found.append(f"UDP mappings live for {truth.lifetime} s, and it found {_life(life)}")
        if self.plan.within and self.seconds is not None and self.seconds > self.plan.within:
            found.append(f"the first verdict took {self.seconds:.1f} s")
        return found

    def as_json(self) -> dict[str, Any]:
        """Flat enough for one line."""
        return {
            "event": "reach",
            "kind": self.plan.kind,
            "nat": self.plan.make,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "verdicts": [list(pair) for pair in self.verdicts],
            "addrs": self.addrs,
            **{name: _row_json(row) for name, row in self.rows.items()},
            "surprises": self.surprises(),
        }


def look(plan: Plan) -> Finding:
    """Build the world, let the host find out, take it down; what cannot even start is said as its reason."""
    names = [f"server{number}" for number in range(1, plan.servers + 1)]
    hosts = {**dict.fromkeys(names, "none"), "host": plan.kind}
    try:
        with Lab(hosts, make=plan.make, default=plan.path, seed=plan.seed) as lab:
            stage = Stage(lab)
            try:
                return _look(plan, lab, stage, names)
            finally:
                stage.close()
    except LabFailed as error:
        return Finding(plan, reason=str(error))


def _look(plan: Plan, lab: Lab, stage: Stage, names: Sequence[str]) -> Finding:
    servers = []
    for name in names:
        listen = _options("--listen", [f"/ip4/{lab.hosts[name].public}/{port}" for port in PORTS])
        servers.append(stage.start(name, plan.server_command, listen=listen))
    relays = [
        _relay(plan, n, stage.wait(server, "listening", "start to listen"))
        for n, server in enumerate(servers)
    ]
    host = stage.start(
        "host",
        plan.client_command,
        relays=_options("--relay", relays),
        listen=_options("--listen", [f"/ip4/0.0.0.0/{port}" for port in CLIENT_PORTS]),
    )
    stage.wait(host, "listening", "start")
    lab.run(lambda: host.done() or not _finding(plan, host).surprises(), plan.timeout)
    if plan.watch:
        lab.run(host.done, plan.watch)
    if host.done():
        raise LabFailed(f"the host ended with code {host.process.poll()}{stage.complaint(host)}")
    return _finding(plan, host)


def _relay(plan: Plan, number: int, listening: dict[str, Any]) -> str:
    """Where the host connects to a server: QUIC and TCP in turn, so that both its ports are seen."""
    quic = plan.over[number % len(plan.over)] == "udp" and not TRUTH[plan.kind].udp.blocked
    return next(str(addr) for addr in listening["addrs"] if ("/udp/4001/" if quic else "/tcp/4001/") in addr)


def _options(name: str, values: Sequence[str]) -> str:
    """What stands for all of `values` behind the option that the template has."""
    return f" {name} ".join(values)


def _finding(plan: Plan, host: Program) -> Finding:
    said = [event for event in host.events if event.get("event") in ("reachability", "address", "nat")]
    return Finding(
        plan,
        tuple((e["state"], e["seconds"]) for e in said if e["event"] == "reachability"),
        {e["addr"]: e["state"] for e in said if e["event"] == "address"},
        {e["transport"]: _row(e) for e in said if e["event"] == "nat"},
    )


def _row(event: dict[str, Any]) -> Row:
    life = event.get("lifetime")
    return Row(
        event["mapping"],
        event["filtering"],
        event["allocation"],
        event["hairpin"],
        event["blocked"],
        event["step"],
        None if life is None else (life["at_least"], life["at_most"]),
    )


def _plain(row: Row) -> Row:
    """Without what is measured in the background."""
    return Row(row.mapping, row.filtering, row.allocation, row.hairpin, row.blocked, row.step)


def _brackets(found: tuple[float, float | None] | None, truth: float | None) -> bool:
    """Whether a lifetime found is no lie; nothing found is none."""
    if found is None:
        return True
    least, most = found
    return truth is not None and least <= truth + SLACK and (most is None or truth <= most + SLACK)


def _transport(addr: str) -> str | None:
    return next((name for part, name in TRANSPORTS.items() if f"/{part}" in addr), None)


def _names(names: frozenset[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


def _row_json(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


@dataclass(frozen=True, slots=True)
class Line:
    """All runs of one kind."""

    kind: str
    findings: tuple[Finding, ...]

    @property
    def right(self) -> int:
        """How many runs were without a surprise."""
        return sum(not finding.surprises() for finding in self.findings)

    def cells(self) -> list[str]:
        """What was found, `!` behind what was not always so; the seconds to the first verdict."""
        rows = [
            "verdict",
            "mapping",
            "allocation",
            "filtering",
            "hairpin",
            "lifetime",
        ]
        texts = [[_cell(finding, name) for finding in self.findings] for name in rows]
        seconds = sorted(f.seconds for f in self.findings if f.seconds is not None)
        times = f"{statistics.median(seconds):.1f} / {seconds[-1]:.1f}" if seconds else "-"
        return [self.kind, *map(_most, texts), times, f"{self.right}/{len(self.findings)}"]


HEAD: Final = (
    "NAT",
    "verdict",
    "mapping",
    "allocation",
    "filtering",
    "hairpin",
    "UDP lifetime",
    "seconds, median / most",
    "right",
)


def table(lines: Sequence[Line]) -> str:
    """In Markdown. A cell with a slash is TCP's and UDP's; "EI", "AD", "APD" are RFC 4787's dependences."""
    rows = [list(HEAD), *(line.cells() for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


_SHORT: Final = {EI: "EI", AD: "AD", APD: "APD"}


def _cell(finding: Finding, name: str) -> str:
    if name == "verdict":
        return finding.verdict
    if name == "lifetime":
        row = finding.rows.get("udp")
        return _life(row.lifetime) if row is not None else "-"
    tcp, udp = (_trait(finding.rows.get(transport), name) for transport in ("tcp", "udp"))
    return tcp if tcp == udp else f"{tcp} / {udp}"


def _trait(row: Row | None, name: str) -> str:
    if row is None:
        return "?"
    if row.blocked:
        return "blocked"
    value = getattr(row, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = _SHORT.get(value, str(value or "-"))
    return f"{text} +{row.step}" if name == "allocation" and row.step else text


def _life(lifetime: tuple[float, float | None] | None) -> str:
    if lifetime is None:
        return "-"
    least, most = lifetime
    return f">= {least:g} s" if most is None else f"{least:g} - {most:g} s"


def _most(texts: list[str]) -> str:
    common = statistics.mode(texts)
    return common if len(set(texts)) == 1 else f"{common} !"
