"""The programs of a play on the lab's hosts: started from templates, waited for, and heard when they fail."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import IO, Any, Final

import flare.errors
from flare.errors import FlareError
from flare.lab.world import Lab, Program

OnEvent = Callable[[str, dict[str, Any]], None]

START_TIMEOUT: Final = 30.0  # seconds for a program to be ready


class LabFailed(FlareError):
    """The lab's programs did not get far enough to try; the message says which one and why."""


class Stage:
    """Starts commands on the hosts of `lab`, whose templates have {flare} and others to fill in.

    `log` is all that they said, with the time in seconds; `on_event` hears it at once.
    """

    def __init__(self, lab: Lab, on_event: OnEvent | None = None) -> None:
        self.lab = lab
        self.log: list[dict[str, Any]] = []
        self._on_event = on_event or (lambda host, event: None)
        self._started = time.monotonic()
        self._stderr: dict[str, IO[bytes]] = {}

    def start(self, host: str, template: str, **values: str) -> Program:
        """Run a command on `host`. LabFailed when it cannot be filled in or started."""
        flare_command = shlex.join([sys.executable, "-m", "flare"])
        try:
            argv = shlex.split(template.format(flare=flare_command, **values))
        except (KeyError, ValueError, IndexError) as error:
            raise LabFailed(f"the command for {host} cannot be filled in: {template!r}: {error!r}") from error
        stderr = self._stderr[host] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the stage
        try:
            return self.lab.spawn(
                host,
                argv,
                env=_environment(),
                stderr=stderr.fileno(),
                on_event=lambda event: self.tell(host, event),
            )
        except OSError as error:
            raise LabFailed(f"cannot start {argv[0]} on {host}: {error}") from error

    def wait(self, program: Program, name: str, what: str) -> dict[str, Any]:
        """The first event called `name`, which says that the program did `what`. LabFailed."""
        self.lab.run(lambda: program.first(name, "error") is not None or program.done(), START_TIMEOUT)
        event = program.first(name)
        if event is None:
            ended = program.process.poll()
            how = f"ended with code {ended}" if ended is not None else f"did not within {START_TIMEOUT:g} s"
            raise LabFailed(f"{program.host} should {what} and {how}{self.complaint(program)}")
        return event

    def complaint(self, program: Program) -> str:
        """The last words of a program: its own reason, or the end of its standard error."""
        event = program.first("error", "failed")
        if event is not None and event.get("reason"):
            return f": {event['reason']}"
        stderr = self._stderr[program.host]
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - 2000))
        lines = stderr.read().decode(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-3:]) if lines else ""

    def tell(self, host: str, event: dict[str, Any]) -> None:
        """Note what happened."""
        self.log.append({"t": round(time.monotonic() - self._started, 4), "host": host, **event})
        self._on_event(host, event)

    def close(self) -> None:
        """Let go of what the programs said on their standard error."""
        for stderr in self._stderr.values():
            stderr.close()


def _environment() -> Mapping[str, str]:
    """This environment, in which `python -m flare` finds the flare that runs now."""
    source = str(FilePath(flare.errors.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{others}" if others else source}
