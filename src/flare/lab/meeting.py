"""Two peers behind NATs meet through a relay: the real commands on the lab's hosts, and what came of it.

Host `a` dials (`flare ping`), host `b` waits (`flare listen`), host `relay` is public. In DCUtR's words b is
the initiator, who sends SYNC and waits half a round trip, and a the responder, who starts when SYNC arrives.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import IO, Any

import flare.errors
from flare.errors import FlareError
from flare.lab.fabric import Path
from flare.lab.packet import address
from flare.lab.trace import Tracer
from flare.lab.world import Lab, Make, Program

OnEvent = Callable[[str, dict[str, Any]], None]

RELAY = "{flare} relay --listen {listen} --json"
LISTENER = "{flare} listen --relay {relay} --listen {listen} --json"
DIALER = "{flare} ping {target} --listen {listen} --timeout {timeout} --json"

DEFAULT_PATH = Path(delay=0.02)
_START_TIMEOUT = 30.0  # seconds for the relay to listen, and for the listener to hold its reservation
_GRACE = 10.0  # seconds that the dialer may take beyond the timeout it was given
_VERDICTS = ("direct", "relayed", "failed", "error")


class LabFailed(FlareError):
    """The lab's programs did not get far enough to try; the message says which one and why."""


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
        meeting = _Meeting(plan, lab, on_event or (lambda host, event: None))
        try:
            return meeting.run()
        finally:
            meeting.close()


class _Meeting:
    def __init__(self, plan: Plan, lab: Lab, on_event: OnEvent) -> None:
        self._plan = plan
        self._lab = lab
        self._on_event = on_event
        self._log: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._stderr: dict[str, IO[bytes]] = {}

    def run(self) -> Result:
        plan, lab = self._plan, self._lab
        self._skew()
        self._event("lab", {"event": "built", "hosts": {h.name: h.public for h in lab.hosts.values()}})
        port = {"transport": plan.transport, "timeout": f"{plan.timeout:g}"}
        relay = self._start(
            "relay", plan.relay_command, listen=self._listen(lab.hosts["relay"].public), **port
        )
        addrs = self._wait(relay, "listening", "start to listen")["addrs"]
        relay_addr = next((addr for addr in addrs if lab.hosts["relay"].public in addr), None)
        if relay_addr is None:
            raise LabFailed(f"the relay does not listen on its public address, only on {', '.join(addrs)}")
        listen = self._listen("0.0.0.0")
        b = self._start("b", plan.listener_command, relay=relay_addr, listen=listen, **port)
        circuits = self._wait(b, "reserved", "reserve a place on the relay")["addrs"]
        if not circuits:
            raise LabFailed("the listener reserved a place and told no address")
        began = time.monotonic()
        a = self._start("a", plan.dialer_command, relay=relay_addr, target=circuits[0], listen=listen, **port)
        lab.run(lambda: a.first(*_VERDICTS) is not None or a.done(), plan.timeout + _GRACE)
        return self._result(a, time.monotonic() - began)

    def close(self) -> None:
        """Let go of what the programs said on their standard error."""
        for stderr in self._stderr.values():
            stderr.close()

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

    def _start(self, host: str, template: str, **values: str) -> Program:
        flare_command = shlex.join([sys.executable, "-m", "flare"])
        try:
            argv = shlex.split(template.format(flare=flare_command, **values))
        except (KeyError, ValueError, IndexError) as error:
            raise LabFailed(f"the command for {host} cannot be filled in: {template!r}: {error!r}") from error
        stderr = self._stderr[host] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the meeting
        try:
            return self._lab.spawn(
                host,
                argv,
                env=_environment(),
                stderr=stderr.fileno(),
                on_event=lambda e: self._event(host, e),
            )
        except OSError as error:
            raise LabFailed(f"cannot start {argv[0]} on {host}: {error}") from error

    def _wait(self, program: Program, name: str, what: str) -> dict[str, Any]:
        self._lab.run(lambda: program.first(name, "error") is not None or program.done(), _START_TIMEOUT)
        event = program.first(name)
        if event is None:
            ended = program.process.poll()
            how = f"ended with code {ended}" if ended is not None else f"did not within {_START_TIMEOUT:g} s"
            raise LabFailed(f"{program.host} should {what} and {how}{self._complaint(program)}")
        return event

    def _complaint(self, program: Program) -> str:
        """The last words of a program: its own reason, or the end of its standard error."""
        event = program.first("error", "failed")
        if event is not None and event.get("reason"):
            return f": {event['reason']}"
        stderr = self._stderr[program.host]
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - 2000))
        lines = stderr.read().decode(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-3:]) if lines else ""

    def _event(self, host: str, event: dict[str, Any]) -> None:
        self._log.append({"t": round(time.monotonic() - self._started, 4), "host": host, **event})
        self._on_event(host, event)

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
            reason += self._complaint(a)
        seconds = float(verdict.get("seconds", seconds))
        log = tuple(self._log)
        return Result(self._plan, outcome, path, seconds, verdict.get("attempts"), reason, log)

    def _travelled_directly(self) -> bool:
        a, b = (address(self._lab.hosts[name].public) for name in "ab")
        return bool(self._lab.fabric.carried[a, b] and self._lab.fabric.carried[b, a])


def _environment() -> Mapping[str, str]:
    """This environment, in which `python -m flare` finds the flare that runs now."""
    source = str(FilePath(flare.errors.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{others}" if others else source}
