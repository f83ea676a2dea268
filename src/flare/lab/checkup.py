"""`flare check` behind a NAT of some kind: the real command, with public relays that see it from outside."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from flare.lab.fabric import Path
from flare.lab.stage import LabFailed, Stage
from flare.lab.upnpd import MiniUpnpd
from flare.lab.world import Lab, Make

RELAY: Final = "{flare} relay --listen {listen} --json"
CHECK: Final = "{flare} check --relay {relays}"
DEFAULT_PATH: Final = Path(delay=0.05)
PORTS: Final = ("tcp/4001", "udp/4001/quic-v1", "tcp/4002", "udp/4002/quic-v1")


@dataclass(frozen=True, slots=True)
class Plan:
    """One check-up. `options` come behind the command, which gets `timeout` seconds in all.

    `relay_command` is a template: {flare} and {listen} are filled in.
    """

    kind: str
    make: Make = "user"
    path: Path = DEFAULT_PATH
    relays: int = 2
    options: str = ""
    timeout: float = 60.0
    seed: int = 0
    relay_command: str = RELAY
    upnpd: bool = False  # miniupnpd runs on its router, which must be the kernel's


@dataclass(frozen=True, slots=True)
class Checkup:
    """What it printed, as lines and, with --json among the options, as facts; and its exit code."""

    lines: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    code: int


def check(plan: Plan) -> Checkup:
    """Build the world, run the command, take it down. LabFailed when it did not even get so far."""
    names = [f"relay{number}" for number in range(1, plan.relays + 1)]
    hosts = {**dict.fromkeys(names, "none"), "host": plan.kind}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(hosts, make=plan.make, default=plan.path, seed=plan.seed))
        if plan.upnpd:
            routers = lab.hosts["host"].routers
            if not routers:
                raise LabFailed("miniupnpd needs a router of the kernel's make")
            stack.enter_context(MiniUpnpd(routers[0]))
        stage = Stage(lab)
        stack.callback(stage.close)
        return _check(plan, lab, stage, names)


def _check(plan: Plan, lab: Lab, stage: Stage, names: list[str]) -> Checkup:
    relays = []
    for name in names:
        listen = " --listen ".join(f"/ip4/{lab.hosts[name].public}/{port}" for port in PORTS)
        relays.append(stage.start(name, plan.relay_command, listen=listen))
    told = [stage.wait(relay, "listening", "start to listen")["addrs"] for relay in relays]
    addrs = [next(str(addr) for addr in some if "/tcp/4001/" in addr) for some in told]
    host = stage.start("host", f"{CHECK} {plan.options}", relays=" --relay ".join(addrs))
    if not lab.run(host.done, plan.timeout):
        raise LabFailed(f"the command did not end within {plan.timeout:g} s{stage.complaint(host)}")
    return Checkup(tuple(host.lines), tuple(host.events), host.process.wait())
