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
        self._last: dict[str, str] = {}

    def _say(self, host: str, text: str) -> None:
        if self._last.get(host) == text:
            return
        self._last[host] = text
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
            self._say(host, f"pong from Bob in {event.get('rtt_ms', 0):.0f} ms, {event.get('path')}")
        elif name in ("punch", "punch-started"):
            self._say(host, "punches a hole through the NATs ...")
        elif name == "direct" and host == "b":
            self._say(host, f"sees Ada come in directly ({event.get('path', 'direct')})")
        elif name == "relayed" and host == "b":
            self._say(host, f"stays on the relay: {event.get('reason', 'no reason given')}")

    def _built(self, hosts: dict[str, str]) -> None:
        make = "flare's own NATs" if self._plan.make == "user" else "the kernel's NATs"
        delay = self._plan.path.delay * 1000
        self._say("lab", f"a small internet of namespaces, {delay:g} ms one way between any two, {make}")
        for host, kind in (("a", self._plan.a), ("b", self._plan.b)):
            where = "at" if kind == "none" else "behind"
            self._say("lab", f"{_NAMES[host]} is {where} {hosts[host]}: {KINDS[kind].title} ({kind})")

    def result(self, result: Result) -> None:
        """The last line."""
        tries = ""
        if result.attempts is not None:
            tries = f", {result.attempts} attempt{'' if result.attempts == 1 else 's'}"
        if result.outcome == "direct":
            self._say("lab", f"they talk directly: {result.path} after {result.seconds:.2f} s{tries}")
        elif result.outcome == "relayed":
            self._say("lab", f"they stay relayed{tries}: {result.reason}")
        else:
            self._say("lab", f"failed: {result.reason}")
