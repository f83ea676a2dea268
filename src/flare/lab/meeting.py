"""Two peers behind NATs meet through a relay: the real commands on the lab's hosts, and what came of it.

Host `a` dials (`flare ping`), host `b` waits (`flare listen`), host `relay` is public. In DCUtR's words b is
the initiator, who sends SYNC and waits half a round trip, and a the responder, who starts when SYNC arrives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from flare.lab.fabric import Path
from flare.lab.packet import address
from flare.lab.stage import LabFailed as LabFailed
from flare.lab.stage import OnEvent, Stage
from flare.lab.trace import Tracer
from flare.lab.world import Lab, Make, Program

RELAY = "{flare} relay --listen {listen} --json"
LISTENER = "{flare} listen --relay {relay} --listen {listen} --json"
DIALER = "{flare} ping {target} --listen {listen} --timeout {timeout} --json"

DEFAULT_PATH = Path(delay=0.02)
_GRACE = 10.0  # seconds that the dialer may take beyond the timeout it was given
_VERDICTS = ("direct", "relayed", "failed", "error")


TRANSPORTS = {"tcp": ("tcp",), "quic": ("quic",), "any": ("quic", "tcp")}
LISTEN = {"tcp": "tcp/4001", "quic": "udp/4001/quic-v1"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One meeting. Commands are templates: {flare} {relay} {target} {listen} {timeout} are filled in."""

    a: str
    b: str
    make: Make = "user"
    transport: str = "tcp"
    path: Path = DEFAULT_PATH
    skew: float = 0.0  # seconds by which b's punch starts after a's (negative: before)
    timeout: float = 30.0
    seed: int = 0
    relay_command: str = RELAY
    listener_command: str = LISTENER
    dialer_command: str = DIALER


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `seconds` from the dialer's start to its verdict, `attempts` as it counted them."""

    plan: Plan
    outcome: str  # "direct", "relayed" or "failed"
    path: str
    seconds: float
    attempts: int | None
    reason: str
    log: tuple[dict[str, Any], ...] = ()

    def as_json(self, *, log: bool = False) -> dict[str, Any]:
        plan = self.plan
        out: dict[str, Any] = {
            "event": "result",
            "a": plan.a,
            "b": plan.b,
            "nat": plan.make,
            "transport": plan.transport,
            "delay_ms": round(plan.path.delay * 1000, 3),
            "skew_ms": round(plan.skew * 1000, 3),
            "outcome": self.outcome,
            "path": self.path,
            "seconds": round(self.seconds, 4),
            "attempts": self.attempts,
            "reason": self.reason,
        }
        if log:
            out["log"] = list(self.log)
        return out


def meet(plan: Plan, *, tracer: Tracer | None = None, on_event: OnEvent | None = None) -> Result:
    """Build the world, let the two meet, take it down. LabFailed when they could not even try."""
    hosts = {"relay": "none", "a": plan.a, "b": plan.b}
    with Lab(hosts, make=plan.make, default=plan.path, tracer=tracer, seed=plan.seed) as lab:
        stage = Stage(lab, on_event)
        try:
            return _Meeting(plan, lab, stage).run()
        finally:
            stage.close()


class _Meeting:
    def __init__(self, plan: Plan, lab: Lab, stage: Stage) -> None:
        self._plan = plan
        self._lab = lab
        self._stage = stage

    def run(self) -> Result:
        plan, lab, stage = self._plan, self._lab, self._stage
        self._skew()
        stage.tell("lab", {"event": "built", "hosts": {h.name: h.public for h in lab.hosts.values()}})
        port = {"transport": plan.transport, "timeout": f"{plan.timeout:g}"}
        relay = stage.start(
            "relay", plan.relay_command, listen=self._listen(lab.hosts["relay"].public), **port
        )
        addrs = stage.wait(relay, "listening", "start to listen")["addrs"]
        relay_addr = next((addr for addr in addrs if lab.hosts["relay"].public in addr), None)
        if relay_addr is None:
            raise LabFailed(f"the relay does not listen on its public address, only on {', '.join(addrs)}")
        listen = self._listen("0.0.0.0")
        b = stage.start("b", plan.listener_command, relay=relay_addr, listen=listen, **port)
        circuits = stage.wait(b, "reserved", "reserve a place on the relay")["addrs"]
        if not circuits:
            raise LabFailed("the listener reserved a place and told no address")
        began = time.monotonic()
        a = stage.start("a", plan.dialer_command, relay=relay_addr, target=circuits[0], listen=listen, **port)
        lab.run(lambda: a.first(*_VERDICTS) is not None or a.done(), plan.timeout + _GRACE)
        return self._result(a, time.monotonic() - began)

    def _skew(self) -> None:
        """Slow one direction of one peer's way to the relay down, which is how skew comes about in the wild.

        With x more from the relay to b, b measures x more of round trip and waits x / 2 too long after SYNC;
        with x more from the relay to a, SYNC comes x late while b waits x / 2 longer: x / 2 of skew too.
        """
        if self._plan.skew:
            late = "b" if self._plan.skew > 0 else "a"
            self._lab.set_path("relay", late, delay=self._plan.path.delay + 2 * abs(self._plan.skew))

    def _listen(self, host: str) -> str:
        """What {listen} stands for; with several transports, what must follow --listen."""
        return " --listen ".join(f"/ip4/{host}/{LISTEN[name]}" for name in TRANSPORTS[self._plan.transport])

    def _result(self, a: Program, seconds: float) -> Result:
        verdict = a.first(*_VERDICTS) or {}
        name = verdict.get("event")
        outcome, path, reason = "failed", "", str(verdict.get("reason", ""))
        if name == "direct":
            outcome, path = "direct", str(verdict.get("path", "direct"))
            if not self._travelled_directly():
                outcome, reason = (
                    "failed",
                    "the dialer says direct, but no packet went straight between the two",
                )
        elif name == "relayed":
            outcome, path = "relayed", "relayed"
        elif name is None:
            ended = a.process.poll()
            reason = f"the dialer gave no verdict{'' if ended is None else f' and ended with code {ended}'}"
            reason += self._stage.complaint(a)
        seconds = float(verdict.get("seconds", seconds))
        log = tuple(self._stage.log)
        return Result(self._plan, outcome, path, seconds, verdict.get("attempts"), reason, log)

    def _travelled_directly(self) -> bool:
        a, b = (address(self._lab.hosts[name].public) for name in "ab")
        return bool(self._lab.fabric.carried[a, b] and self._lab.fabric.carried[b, a])
