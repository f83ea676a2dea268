"""Where we can be reached: what servers found by dialling us back, weighed into a verdict.

An address is a candidate (somebody saw us there, or we listen there). Each server's latest word on it
counts while it is younger than `Weighing.lifetime`; a server of our own configuration weighs TRUSTED,
another 1, and all servers of one network (IPv4 /16, IPv6 /32) together weigh as one. `for` and `against` are
the sums.

| now     | for, against                | becomes |
|---------|-----------------------------|---------|
| any     | for >= 2, for >= against    | Public  |
| any     | against >= 2, against > for | Private |
| Public  | otherwise, and not none     | Public  |
| Private | otherwise, and not none     | Private |
| any     | none of either is left      | Unknown |
| Unknown | otherwise                   | Unknown |

So one stranger, liar or broken, moves nothing; a trusted server is believed at once, and two strangers of
different networks keep it from flipping what they attest. A tie is for Public: a dial-back that came is
proof, that none came is somebody's word. Refusals, timeouts and lies are no words, but a server that has
nothing else to say any more loses what it said before once others contradict it. What a server could not do
to another port of ours, behind the same NAT, is inferred of this one, until it was asked about this one.

| candidates                           | the node is |
|--------------------------------------|-------------|
| one is Public                        | Public      |
| there are some, and all are Private  | Private     |
| there are none, and cannot be        | Private     |
| otherwise                            | Unknown     |
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

TRUSTED: Final = 2
NEEDED: Final = 2
MUTE: Final = 3  # times that a server says nothing before a word of its that others contradict is forgotten
MAX_CANDIDATES: Final = 32  # addresses judged at once: strangers' words make candidates
MAX_WORDS: Final = 64  # servers remembered per address: the oldest word gives way


class Reachable(Enum):
    """For an address, or for the node."""

    UNKNOWN = "unknown"
    PUBLIC = "public"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class Word:
    """What `server`, in `network`, found at `at` (monotonic seconds)."""

    server: PeerId
    network: str
    reachable: bool
    at: float
    trusted: bool = False
    reason: str = ""
    inferred: bool = False  # from what the NAT does to another port of ours


@dataclass(frozen=True, slots=True)
class AddressVerdict:
    """The state of one address and the words that it stands on, the newest first."""

    addr: Multiaddr
    state: Reachable
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Weighing:
    """How long words count, and how often an address is asked about again (seconds)."""

    lifetime: float = 3 * 3600.0
    recheck: float = 1800.0  # while the verdict stands
    retry: float = 5.0  # while it is open; doubles up to
    retry_max: float = 300.0


@dataclass(slots=True)
class _Candidate:
    addr: Multiaddr
    begun: float  # what was asked earlier says nothing about it
    state: Reachable = Reachable.UNKNOWN
    words: dict[PeerId, Word] = field(default_factory=dict)
    silent: Counter[PeerId] = field(default_factory=Counter)  # how often a server had nothing to say since
    asked_at: float | None = None
    tries: int = 0  # since the state last changed


class Reachability:
    """The state machine above. `on_change` hears of each address whose state changed, and of the node's."""

    def __init__(
        self,
        *,
        weighing: Weighing | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[Multiaddr | None, Reachable], None] | None = None,
    ) -> None:
        self.weighing = weighing or Weighing()
        self._clock = clock
        self._on_change = on_change
        self._candidates: dict[Multiaddr, _Candidate] = {}
        self._node = Reachable.UNKNOWN
        self._hopeless = False

    @property
    def node(self) -> Reachable:
        """Whether this node can be dialled by strangers at any address."""
        return self._node

    @property
    def verdicts(self) -> tuple[AddressVerdict, ...]:
        """Every candidate with its state and evidence."""
        return tuple(
            AddressVerdict(c.addr, c.state, tuple(sorted(c.words.values(), key=lambda w: -w.at)))
            for c in self._candidates.values()
        )

    def state(self, addr: Multiaddr) -> Reachable:
        """Of one address; Unknown for one that is no candidate."""
        found = self._candidates.get(addr)
        return found.state if found is not None else Reachable.UNKNOWN

    def candidates(self, addrs: Iterable[Multiaddr], *, hopeless: bool = False) -> None:
        """These are all the addresses in question, the best first; what was known of others is forgotten.

        `hopeless`: if there are none, there cannot be any, as behind a NAT with endpoint-dependent mapping.
        """
        self._hopeless = hopeless
        wanted = list(dict.fromkeys(addrs))[:MAX_CANDIDATES]
        old = self._candidates
        self._candidates = {addr: old.get(addr) or _Candidate(addr, self._clock()) for addr in wanted}
        self._judge_node()

    def anew(self, addr: Multiaddr) -> None:
        """What leads to `addr` has changed (a router forwards it, or ceased to): no word counts still."""
        if (candidate := self._candidates.get(addr)) is not None:
            candidate.begun = self._clock()
            candidate.words.clear()
            candidate.asked_at = None
            self._judge(candidate)
            candidate.tries = 0

    def record(self, addr: Multiaddr, word: Word, *, asked: float | None = None) -> None:
        """A server's word on a candidate, `asked` for then; one on another address says nothing."""
        candidate = self._candidates.get(addr)
        if candidate is None or (asked is not None and asked < candidate.begun):
            return
        candidate.words.pop(word.server, None)
        candidate.silent.pop(word.server, None)
        candidate.words[word.server] = word
        if len(candidate.words) > MAX_WORDS:
            del candidate.words[next(iter(candidate.words))]
        self._judge(candidate)

    def infer(self, addr: Multiaddr, words: Iterable[Word]) -> None:
        """These are all the inferred words on a candidate; whoever was asked about itself has no other."""
        candidate = self._candidates.get(addr)
        if candidate is None:
            return
        old = {server: word for server, word in candidate.words.items() if word.inferred}
        new = {
            word.server: word for word in words if word.server in old or word.server not in candidate.words
        }
        if new != old:
            candidate.words = {s: w for s, w in candidate.words.items() if s not in old} | new
            self._judge(candidate)

    def asked(self, addr: Multiaddr) -> None:
        """Somebody is asked about `addr` now."""
        if (candidate := self._candidates.get(addr)) is not None:
            candidate.asked_at = self._clock()
            candidate.tries += 1

    def unanswered(self, addr: Multiaddr, server: PeerId) -> None:
        """`server` was asked about `addr` and had nothing to say: that is no word, but one from before the
        last recheck that others contradict goes after MUTE times.
        """
        candidate = self._candidates.get(addr)
        word = candidate.words.get(server) if candidate is not None else None
        if candidate is None or word is None:
            return
        candidate.silent[server] += 1
        contradicted = any(other.reachable != word.reachable for other in candidate.words.values())
        old = word.at < self._clock() - self.weighing.recheck
        if contradicted and old and candidate.silent[server] >= MUTE:
            del candidate.words[server], candidate.silent[server]
            self._judge(candidate)

    def expire(self) -> None:
        """Forget words that are too old."""
        for candidate in self._candidates.values():
            self._judge(candidate)

    def due(self) -> list[Multiaddr]:
        """The candidates to ask about now, the best first."""
        now = self._clock()
        return [addr for addr, c in self._candidates.items() if self._when(c) <= now]

    def next_due(self) -> float | None:
        """When the next candidate is due, in monotonic seconds; None without candidates."""
        return min((self._when(c) for c in self._candidates.values()), default=None)

    def hurry(self, where: Callable[[Multiaddr], bool] = lambda addr: True) -> None:
        """Something changed (a network, a mapping): ask again soon about the addresses `where` it counts."""
        for candidate in self._candidates.values():
            if where(candidate.addr):
                candidate.asked_at = None
                candidate.tries = 0

    def _when(self, candidate: _Candidate) -> float:
        if candidate.asked_at is None:
            return float("-inf")
        w = self.weighing
        if candidate.state is not Reachable.UNKNOWN and self._settled(candidate):
            return candidate.asked_at + w.recheck
        return candidate.asked_at + min(w.retry_max, w.retry * 2.0 ** min(max(candidate.tries - 3, 0), 20))

    @staticmethod
    def _settled(candidate: _Candidate) -> bool:
        """No word contradicts the state."""
        public = candidate.state is Reachable.PUBLIC
        return all(word.reachable == public for word in candidate.words.values())

    def _judge(self, candidate: _Candidate) -> None:
        old = self._clock() - self.weighing.lifetime
        candidate.words = {server: word for server, word in candidate.words.items() if word.at > old}
        for gone in candidate.silent.keys() - candidate.words.keys():
            del candidate.silent[gone]
        for_, against = weigh(candidate.words.values())
        state = candidate.state
        if for_ >= NEEDED and for_ >= against:
            state = Reachable.PUBLIC
        elif against >= NEEDED and against > for_:
            state = Reachable.PRIVATE
        elif not candidate.words:
            state = Reachable.UNKNOWN
        if state is not candidate.state:
            candidate.state = state
            candidate.tries = 0
            if self._on_change is not None:
                self._on_change(candidate.addr, state)
        self._judge_node()

    def _judge_node(self) -> None:
        states = {candidate.state for candidate in self._candidates.values()}
        if Reachable.PUBLIC in states:
            node = Reachable.PUBLIC
        elif states == {Reachable.PRIVATE} or (not states and self._hopeless):
            node = Reachable.PRIVATE
        else:
            node = Reachable.UNKNOWN
        if node is not self._node:
            self._node = node
            if self._on_change is not None:
                self._on_change(None, node)


def weigh(words: Iterable[Word]) -> tuple[int, int]:
    """The weights for and against: a network counts once on each side, by its weightiest server."""
    sides: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for word in words:
        side = sides[0 if word.reachable else 1]
        weight = TRUSTED if word.trusted else 1
        side[word.network] = max(side.get(word.network, 0), weight)
    return sum(sides[0].values()), sum(sides[1].values())
