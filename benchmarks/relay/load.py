"""Drives circuits with the load in C (load.c), and reads what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.relay.circuits import Circuit
from benchmarks.relay.compiled import compiled

GRACE = 20.0  # seconds that the load may take beyond those that it is told to
HEADER = 12  # of a yamux frame
NOISE_PLAIN, TLS_PLAIN = 65535 - 16, 16384  # what one record holds


@dataclass(frozen=True, slots=True)
class Measured:
    """What the load saw in `seconds`: bytes that arrived, CPU seconds of the relay and of itself."""

    cap: int
    bytes: int
    seconds: float
    cpu_seconds: float
    user: float
    system: float
    load_seconds: float
    per_circuit: tuple[int, ...]
    round_trips_ns: tuple[int, ...]

    @classmethod
    def parse(cls, line: str) -> Measured:
        """One line of the load's."""
        fields = json.loads(line)
        for name in ("per_circuit", "round_trips_ns"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def rates(self) -> dict[str, float]:
        """What every part reports: busy and load are how much of a core the relay and the load had."""
        return {
            "busy": self.cpu_seconds / self.seconds,
            "load": self.load_seconds / self.seconds,
            "kernel": self.system / max(self.user + self.system, 0.01),
        }


def payload(message: int, records: str) -> int:
    """A message of about that many bytes: one that would spill over its records fills them instead."""
    holds = NOISE_PLAIN if records == "noise" else TLS_PLAIN
    if message + HEADER <= holds:
        return message
    return max(message // holds, 1) * holds - HEADER


def drive(
    bulk: Sequence[Circuit],
    echo: Sequence[Circuit],
    pid: int,
    message: int,
    warmup: float,
    seconds: float,
    prefix: Sequence[str] = (),
    caps: Sequence[int] = (0,),
) -> list[Measured]:
    """Drive the circuits, once for each cap on messages under way, and close them. `pid`: the relay."""
    circuits = [*bulk, *echo]
    command = [
        *prefix,
        str(compiled("load")),
        str(pid),
        str(message),
        str(warmup),
        str(seconds),
        *map(str, caps),
    ]
    text = "".join(each.lines("bulk") for each in bulk) + "".join(each.lines("echo") for each in echo)
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            pass_fds=[fd for each in circuits for fd in (each.source.fd, each.sink.fd)],
            timeout=(warmup + seconds) * len(caps) + GRACE,
            check=False,
        )
    finally:
        for each in circuits:
            each.close()
    if done.returncode:
        raise ConnectionError(f"the load ended early: {done.stderr.strip() or done.returncode}")
    return [Measured.parse(line) for line in done.stdout.splitlines()]
