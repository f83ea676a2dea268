"""What the relay needs of the core's splice, and what it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flare._core.shaper import Bucket

if TYPE_CHECKING:
    from flare.transport.stream import Stream


class Spliced(Protocol):
    """How a splice ended (flare._core.splice.SpliceResult)."""

    @property
    def reason(self) -> str: ...
    @property
    def bytes_a_to_b(self) -> int: ...
    @property
    def bytes_b_to_a(self) -> int: ...


class Splice(Protocol):
    """A running splice, and what it has carried."""

    @property
    def bytes_a_to_b(self) -> int: ...
    @property
    def bytes_b_to_a(self) -> int: ...
    def cancel(self) -> None: ...


class SpliceStreams(Protocol):
    """Joins two streams until both are done; 0 is no limit. The core's `splice` over the streams' cores."""

    def __call__(
        self,
        a: Stream,
        b: Stream,
        *,
        limit_a_to_b: int,
        limit_b_to_a: int,
        deadline_ns: int,
        buckets: Sequence[Bucket],
        on_done: Callable[[Spliced], None],
    ) -> Splice: ...


@dataclass(slots=True)
class RelayCounters:
    """What the relay did since it started.

    The answers are by status code. `reserve_refused` and `connect_refused` are by reason: the name of the
    limit or rate, or denied, relayed, draining, oneself, no_reservation, or target (it took no circuit).
    """

    reservations_opened: int = 0
    reservations_renewed: int = 0
    reservations_closed: int = 0
    reserve_answers: Counter[int] = field(default_factory=Counter)
    connect_answers: Counter[int] = field(default_factory=Counter)
    reserve_refused: Counter[str] = field(default_factory=Counter)
    connect_refused: Counter[str] = field(default_factory=Counter)
    circuits_opened: int = 0
    circuits_closed: int = 0
    circuit_seconds: float = 0.0  # of closed circuits
    bytes_relayed: int = 0  # by closed circuits, both directions
    malformed: int = 0
