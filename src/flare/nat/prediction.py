"""Ports that nobody has seen yet: which the NAT gives next, and who searches for whom where that is chance.

What a side knows of its own NAT decides whether the other can aim at it (RFC 4787, 4.1):

| Tellable  | others see our port ...                                                               |
|-----------|---------------------------------------------------------------------------------------|
| YES       | as we tell it: no NAT, endpoint-independent mapping, or nothing speaks against it     |
| DOUBTFUL  | as the only observer does, perhaps: the NAT gives out ports of its own                |
| NO        | each differently: endpoint-dependent mapping                                          |

A NAT that gives ports in sequence is foretold (`forecast`). Where they are chance, over UDP, there is the
birthday: one side opens many sockets towards the other, which can be aimed at, and that one sends to random
ports of the first one's IP (`misses`). Two parts, so each must know its own (`parts`):

| B, the initiator | A, the responder | opens sockets                                     | attempts |
|------------------|------------------|---------------------------------------------------|----------|
| NO or DOUBTFUL   | YES              | B                                                 | all      |
| YES              | NO or DOUBTFUL   | A                                                 | all      |
| NO               | DOUBTFUL         | B                                                 | all      |
| DOUBTFUL         | NO               | A                                                 | all      |
| DOUBTFUL         | DOUBTFUL         | B on the first attempt, A on the second           | 2        |
| NO               | NO               | nobody: about 54,000 probes a side would be needed | 1        |
| not YES, counts  | not YES, counts  | B on odd attempts, A on even ones (`meeting`)      | all      |
| YES              | YES              | nobody: there is nothing to search for            | all      |
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flare.nat.behaviour import MAX_STEP, STRANGERS, Sight

if TYPE_CHECKING:
    from flare.wire.messages import PunchHint

LOW: Final = 1024  # the first port that NATs give out
HIGH: Final = 65535
WINDOW: Final = 6  # ports foretold of one transport: the peer tries 16 addresses at most
SEQUENCE: Final = 64  # sockets, and ports that are probed, where two sequences are to meet
AHEAD: Final = 48  # ports that both sides together may have given to others by then
SHARED: Final = 64  # ports apart at most: then both transports draw from one sequence


class Tellable(enum.IntEnum):
    """Whether others can be told where to aim; travels in PunchHint.mapping."""

    YES = 0
    DOUBTFUL = 1
    NO = 2

    @classmethod
    def of(cls, value: int) -> Tellable:
        """What a peer sent; what is not known yet counts as NO."""
        return cls(min(value, cls.NO))


class Part(enum.Enum):
    """What a side does in a search for ports."""

    NOTHING = "nothing"
    OPENS = "opens"  # sockets, all towards the peer
    PROBES = "probes"  # random ports of the peer's IP


# Sequences


def step_of(sights: Sequence[Sight]) -> int:
    """By how much the ports grow that a NAT gave to fresh local ports; 0: not in sequence, or not known.

    They may have come out of order. A sequence that began again in between is not recognised.
    """
    given = sorted({sight.seen[1] for sight in sights})
    if len(given) < 3 or all(sight.seen[1] == sight.port for sight in sights):
        return 0
    gaps = [b - a for a, b in itertools.pairwise(given)]
    step = min(gaps)
    regular = step <= MAX_STEP and all(gap % step == 0 and gap <= step * STRANGERS for gap in gaps)
    return step if regular else 0


def upcoming(last: int, step: int, window: int = WINDOW) -> tuple[int, ...]:
    """The ports that follow `last`; fewer where the range ends, since nobody knows where it begins again."""
    return tuple(port for port in range(last + step, last + step * window + 1, step) if port <= HIGH)


def forecast(
    steps: Mapping[str, int], last: Mapping[str, int], window: int = WINDOW
) -> dict[str, tuple[int, ...]]:
    """For each transport that gets ports in sequence the next ones, given the last one of each.

    Transports whose ports lie close together draw from one sequence: what one took, the other does not get.
    """
    found: dict[str, tuple[int, ...]] = {}
    for transport, step in steps.items():
        own = last.get(transport)
        if not step or own is None:
            continue
        newest = max(port for port in last.values() if 0 <= port - own <= SHARED)
        found[transport] = upcoming(own + -(-(newest - own) // step) * step, step, window)
    return found


def meeting(opener: PunchHint, prober: PunchHint) -> tuple[int, tuple[int, ...]]:
    """Where two sequences meet: the prober's port that all sockets send to, and the ports that are probed.

    The prober sends to the opener's next ports in turn, and each packet leaves from the next port of its own:
    one leaves from the one that the sockets send to, and has one of the sockets for its aim, as long as both
    sides together gave no more than AHEAD ports to others meanwhile. (0, ()) when a sequence ends before.
    """
    met = prober.port + AHEAD * prober.step
    aims = upcoming(opener.port - opener.step, opener.step, SEQUENCE) if 0 < opener.step <= MAX_STEP else ()
    if min(opener.port, prober.port) < LOW or met > HIGH or len(aims) < SEQUENCE:
        return 0, ()
    return met, aims


# Chance


def misses(sockets: int, probes: int, ports: int = HIGH - LOW + 1) -> float:
    """The chance that none of `probes` different ports is one of `sockets` that a NAT chose at random."""
    chance = 1.0
    for taken in range(sockets):
        chance *= max(0.0, 1 - probes / (ports - taken))
    return chance


def random_ports(count: int, chance: random.Random) -> list[int]:
    """`count` different ports, in random order."""
    return chance.sample(range(LOW, HIGH + 1), min(count, HIGH - LOW + 1))


# Who does what


def counting(one: PunchHint, other: PunchHint) -> bool:
    """Whether both NATs give ports in sequence, so that neither can be aimed at and both be foretold."""
    return all(hint.port and hint.mapping != Tellable.YES for hint in (one, other))


def parts(initiator: PunchHint, responder: PunchHint) -> tuple[Part, Part]:
    """The initiator's and the responder's part in the attempt that the initiator's hint numbers."""
    b, a = Tellable.of(initiator.mapping), Tellable.of(responder.mapping)
    if counting(initiator, responder):
        b_opens = initiator.attempt % 2 == 1
    elif b is a is Tellable.DOUBTFUL:
        if initiator.attempt > 2:
            return Part.NOTHING, Part.NOTHING
        b_opens = initiator.attempt != 2
    elif b is a:
        return Part.NOTHING, Part.NOTHING
    else:
        b_opens = b > a
    opener, prober = (initiator, responder) if b_opens else (responder, initiator)
    if not opener.sockets or not prober.probes:
        return Part.NOTHING, Part.NOTHING
    return (Part.OPENS, Part.PROBES) if b_opens else (Part.PROBES, Part.OPENS)


def attempts_worth(initiator: PunchHint, responder: PunchHint, most: int) -> int:
    """How many attempts have something new to try.

    A forecast may come true later. Without UDP on both sides there was no search, and nothing is known.
    """
    b, a = Tellable.of(initiator.mapping), Tellable.of(responder.mapping)
    able = all(hint.sockets and hint.probes for hint in (initiator, responder))
    if not able or initiator.predicted or responder.predicted:
        return most
    if b is a is Tellable.NO:
        return min(most, 1)
    return min(most, 2) if b is a is Tellable.DOUBTFUL else most
