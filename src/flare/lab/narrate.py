"""A meeting told to people while it happens: what `flare lab run --demo` prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flare.lab.kinds import KINDS
from flare.lab.meeting import Plan, Result

_NAMES = {"relay": "relay", "a": "Ada", "b": "Bob"}


class Narrator:
    """Turns the events of relay, listener (Bob) and dialer (Ada) into sentences."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._write = say
        self._start = time.monotonic()
        self._path = ""
        self._decided = ""

    def _say(self, host: str, text: str) -> None:
        self._write(f"{time.monotonic() - self._start:7.2f} s  {_NAMES.get(host, 'lab'):6} {text}")

    def __call__(self, host: str, event: dict[str, Any]) -> None:
        """Tell one event; what nobody needs to hear is left out."""
        name = event.get("event")
        if name == "built":
            self._built(event["hosts"])
        elif name == "listening" and host == "relay":
            self._say(host, "is up, on a public address")
        elif name == "reserved":
            self._say(host, "has a place on the relay, and can be reached through it")
        elif name == "pong":
            self._pong(host, event.get("rtt_ms", 0.0), str(event.get("path", "")))
        elif name in ("punch", "punch-started"):
            self._say(host, "punches a hole through the NATs ...")
        elif name == "direct" and host == "b":
            self._say(host, f"sees Ada come in directly ({event.get('path', 'direct')})")
        elif name in ("direct", "relayed") and host == "a":
            self._verdict(
                name,
                event.get("path", name),
                event.get("seconds"),
                event.get("attempts"),
                event.get("reason"),
            )

    def result(self, result: Result) -> None:
        """The last line, unless the dialer's own verdict was just that."""
        self._verdict(result.outcome, result.path, result.seconds, result.attempts, result.reason)

    def _pong(self, host: str, rtt_ms: float, path: str) -> None:
        if path != self._path:  # one for each path is enough to see the difference
            self._path = path
            self._say(host, f"pong from Bob in {rtt_ms:.0f} ms, {path}")

    def _verdict(
        self, outcome: str, path: str, seconds: float | None, attempts: int | None, reason: str | None
    ) -> None:
        if self._decided == outcome:
            return
        self._decided = outcome
        tries = "" if attempts is None else f", {attempts} attempt{'' if attempts == 1 else 's'}"
        if outcome == "direct":
            after = "" if seconds is None else f" after {seconds:.2f} s"
            self._say("lab", f"they talk directly: {path}{after}{tries}")
        elif outcome == "relayed":
            self._say("lab", f"they stay relayed{tries}: {reason}")
        else:
            self._say("lab", f"failed: {reason}")

    def _built(self, hosts: dict[str, str]) -> None:
        make = "flare's own NATs" if self._plan.make == "user" else "the kernel's NATs"
        delay = self._plan.path.delay * 1000
        self._say("lab", f"a small internet of namespaces, {delay:g} ms one way between any two, {make}")
        for host, kind in (("a", self._plan.a), ("b", self._plan.b)):
            where = "at" if kind == "none" else "behind"
            self._say("lab", f"{_NAMES[host]} is {where} {hosts[host]}: {KINDS[kind].title} ({kind})")
