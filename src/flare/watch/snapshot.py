"""The status at one moment, as the page, the JSON and the terminal show it.

Times are seconds, sizes bytes, rates bytes per second. In JSON the names are those of the fields, and they
only grow.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Health:
    """What /healthz says: `reasons` are sentences, none when all is well."""

    ok: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wire:
    """What the host's links moved, encryption and all."""

    received: int
    sent: int
    receive_rate: float
    send_rate: float
    history: tuple[float, ...]  # sent per second, second by second, the oldest first


@dataclass(frozen=True, slots=True)
class Process:
    """What it costs. `cpu_share` is of one core; `lag` is the event loop's worst in the last ten seconds."""

    cpu_seconds: float
    cpu_share: float
    memory: int
    descriptors: int | None
    lag: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """How often a request ("reserve", "connect", "any") was refused for one reason, often a limit's name."""

    request: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Talker:
    """One peer of the relay; `sent` and `received` over all its circuits."""

    peer: str
    agent: str
    circuits: int
    sent: int
    received: int
    rate: float


@dataclass(frozen=True, slots=True)
class OpenCircuit:
    """One open circuit; bytes and rate of both directions."""

    source: str
    target: str
    age: float
    bytes: int
    rate: float


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay's books; a limit of None is none. `bytes` is what circuits carried, both directions."""

    draining: bool
    reservations: int
    max_reservations: int | None
    reservations_opened: int
    reservations_renewed: int
    circuits: int
    max_circuits: int | None
    circuits_opened: int
    bytes: int
    rate: float
    refusals: tuple[Refusal, ...]
    talkers: tuple[Talker, ...]
    longest: tuple[OpenCircuit, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it; `relay` is None where none is served."""

    time: float
    version: str
    agent: str
    peer: str
    addrs: tuple[str, ...]
    uptime: float
    health: Health
    connections: int
    wire: Wire
    process: Process
    relay: Relay | None

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; floats to the millisecond, which is what they are worth."""
        plain: dict[str, Any] = _rounded(dataclasses.asdict(self))
        return plain


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return value
