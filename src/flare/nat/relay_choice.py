"""Which relays to hold a reservation on: candidates, what is known of each, and what to do next.

No I/O and no clock of its own: `now` is monotonic seconds. Whoever acts (nat.relay_keeping) tells what
happened and asks `decide` what is to be done.

    state      what it means
    KNOWN      a source told of it; it is not tried before `rest_until`
    PROBING    it is dialled and pinged to learn its latency
    TRYING     it is asked for a place
    HELD       it holds a place for us
    LEAVING    likewise, and it is given up once there is another: it drains, refuses to refresh, or is slow
    LOST       it has no place for us, or no longer; whoever keeps places goes on asking until enough are held

    event      from              to
    probe      KNOWN             PROBING
    probed     PROBING           KNOWN      with its latency, or resting
    try        KNOWN             TRYING
    accepted   TRYING LOST       HELD
    accepted   LEAVING           HELD       when it had only refused to refresh
    failed     TRYING            LOST
    lost       HELD LEAVING      LOST
    leave      HELD              LEAVING
    drop       all but PROBING   KNOWN      resting for as long as its failures say

Of those LOST, strangers that never held a place for us and what can be no relay for us are dropped at once.

A score (relay_candidate) is a cost in seconds, the least is best.

A relay is left for being slow only when a measured other is better by a factor and by a margin, for a while
without a break, and not soon after another such move: so two relays of changing latency do not take turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.config import AutoRelayConfig
from flare.nat.relay_candidate import INFINITE, Candidate, Leaving, State, Trouble, score

if TYPE_CHECKING:
    from flare.wire.messages import Limit
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

FAR: Final = 0.2  # seconds of latency from which on unmeasured candidates are worth a probe
IDLE: Final = 60.0  # seconds after which `decide` wants to be asked again anyway


_TRANSITIONS: Final[dict[tuple[str, State], State]] = {
    ("probe", State.KNOWN): State.PROBING,
    ("probed", State.PROBING): State.KNOWN,
    ("try", State.KNOWN): State.TRYING,
    ("accepted", State.TRYING): State.HELD,
    ("accepted", State.LOST): State.HELD,
    ("accepted", State.LEAVING): State.HELD,
    ("failed", State.TRYING): State.LOST,
    ("lost", State.HELD): State.LOST,
    ("lost", State.LEAVING): State.LOST,
    ("leave", State.HELD): State.LEAVING,
    ("drop", State.KNOWN): State.KNOWN,
    ("drop", State.TRYING): State.KNOWN,
    ("drop", State.HELD): State.KNOWN,
    ("drop", State.LEAVING): State.KNOWN,
    ("drop", State.LOST): State.KNOWN,
}


@dataclass(frozen=True, slots=True)
class Drop:
    """Keep no place there; `reason` is a sentence. `held`: there was one until now."""

    peer: PeerId
    reason: str
    held: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and when (`wake`) to ask again if nothing happens before."""

    drop: tuple[Drop, ...]
    probe: tuple[PeerId, ...]
    attempt: tuple[PeerId, ...]
    ask: bool
    wake: float


class RelayChoice:
    """Candidates and their states; `uniform` draws what is left to chance."""

    def __init__(
        self,
        config: AutoRelayConfig | None = None,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.config = config or AutoRelayConfig()
        self._uniform = uniform
        self._candidates: dict[PeerId, Candidate] = {}
        self._look_from = 0.0  # no other relay is looked for before: the spread after a loss
        self._moved_at = -INFINITE  # the last move because of latency
        self._compare_from = 0.0  # no candidates are probed before, to compare with one that is slow
        self._ask_at = -INFINITE
        self._ask_wait = self.config.ask_every
        self._news = False  # a source told something new since it was asked
        self.added = self.removed = 0  # candidates, ever

    # -- reading

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All, held ones too."""
        return tuple(self._candidates.values())

    def get(self, peer: PeerId) -> Candidate | None:
        """What is known of `peer`."""
        return self._candidates.get(peer)

    def held(self) -> list[Candidate]:
        """Those with a place for us, to be given up or not."""
        return self._in(State.HELD, State.LEAVING)

    def _in(self, *states: State) -> list[Candidate]:
        return [candidate for candidate in self._candidates.values() if candidate.state in states]

    # -- what happened

    def offer(
        self, peer: PeerId, addrs: Sequence[Multiaddr], source: str, *, trusted: bool, now: float
    ) -> bool:
        """A source tells of a relay; whether that is news. Its addresses replace those told before.

        A stranger's word never replaces what a trusted source said.
        """
        told = tuple(dict.fromkeys(addrs))[: self.config.max_addrs]
        known = self._candidates.get(peer)
        if not told or (known is not None and known.trusted and not trusted):
            return False
        if known is not None:
            known.offered_at = now
            if set(known.addrs) == set(told) and known.trusted == trusted:
                return False
            self._moved(known, told, now)
            known.addrs, known.source, known.trusted = told, source, trusted
        elif len(self._candidates) >= self.config.max_candidates and not self._make_room(trusted, now):
            return False
        else:
            made = Candidate(peer, told, source, trusted, now, since=now, weighed_at=now)
            self._candidates[peer] = made
            self.added += 1
        self._news = True
        return True

    def asked(self, now: float) -> None:
        """All sources have answered, or not; the next round is later if they had no news."""
        config = self.config
        self._ask_wait = config.ask_every if self._news else min(2 * self._ask_wait, config.ask_max)
        self._news = False
        self._ask_at = now + self._ask_wait * self._uniform(0.75, 1.25)

    def measured(self, peer: PeerId, rtt: float, now: float) -> None:
        """One round trip to `peer`, in seconds."""
        candidate = self._candidates.get(peer)
        if candidate is None:
            return
        config = self.config
        candidate.measure(rtt, now, smoothing=config.smoothing, fresh=config.probe_fresh)

    def probed(self, peer: PeerId, rtt: float | None, now: float) -> None:
        """The latency of one that was probed; None when it could not be measured."""
        candidate = self._candidates.get(peer)
        if candidate is None or not self._go("probed", candidate, now):
            return
        if rtt is None:
            self._fail(candidate, Trouble.UNREACHABLE, now)
        else:
            self.measured(peer, rtt, now)

    def accepted(self, peer: PeerId, limit: Limit | None, now: float) -> bool:
        """It keeps a place for us; whether it did not before. Also told after each refresh."""
        candidate = self._candidates.get(peer)
        if candidate is None:
            return False
        candidate.limit, candidate.failures = limit, 0
        if candidate.state is State.LEAVING and candidate.leaving is not Leaving.REFUSES:
            return False
        fresh = candidate.state in (State.TRYING, State.LOST)
        if self._go("accepted", candidate, now):
            candidate.leaving = candidate.slow_since = None
            candidate.moved = candidate.hopeless = False
            if fresh:
                candidate.best_rtt = INFINITE if candidate.rtt is None else candidate.rtt
        return fresh

    def failed(self, peer: PeerId, trouble: Trouble, now: float) -> bool:
        """It has no place for us; whether it had one before."""
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state in (State.KNOWN, State.PROBING):
            return False
        self._fail(candidate, trouble, now)
        candidate.hopeless = trouble is Trouble.USELESS
        if candidate.state is State.TRYING:
            candidate.hopeless = candidate.hopeless or not candidate.trusted
            self._go("failed", candidate, now)
            return False
        if candidate.state is State.HELD:  # when it is LEAVING, another is looked for already
            patience = self.config.patience if len(self._in(State.HELD)) > 1 else 0.0
            self._look_from = now + patience + self._uniform(0, self.config.spread)
            self._ask_wait = self.config.ask_every
            self._ask_at = min(self._ask_at, self._look_from)
        return self._go("lost", candidate, now)

    def leave(self, peer: PeerId, why: Leaving, now: float) -> None:
        """It still holds a place, and another relay is wanted."""
        candidate = self._candidates.get(peer)
        if candidate is not None and self._go("leave", candidate, now):
            candidate.leaving = why
            # all clients of a relay that drains hear of it in one moment
            self._look_from = now if why is Leaving.SLOW else now + self._uniform(0, self.config.spread)

    def hurry(self, now: float) -> None:
        """Our own network has changed: who was not reached may be now; no herd comes of trying."""
        self._look_from = min(self._look_from, now)
        self._ask_at = min(self._ask_at, now)
        self._ask_wait = self.config.ask_every
        for candidate in self._candidates.values():
            if candidate.trouble is Trouble.UNREACHABLE:
                candidate.rest_until = min(candidate.rest_until, now)

    def stopped(self, now: float) -> list[Candidate]:
        """No relay is wanted any more; returns those that are kept or asked for a place."""
        kept = self._in(State.TRYING, State.HELD, State.LEAVING, State.LOST)
        for candidate in kept:
            self._go("drop", candidate, now)
        for candidate in self._in(State.PROBING):
            self._go("probed", candidate, now)
        self._look_from = self._ask_at = now  # who is asked now will not answer
        return kept

    # -- what to do

    def decide(self, now: float) -> Decision:
        """What is to be done now. What it names has begun by that: the states say so.

        When sources are to be asked, `asked` must follow before it says so again.
        """
        self._forget(now)
        self._judge_latency(now)
        drops = self._drops(now)
        attempts, probes = self._attempts(now)
        probes += self._comparisons(now)
        for candidate in attempts:
            self._go("try", candidate, now)
        for candidate in probes:
            self._go("probe", candidate, now)
        ask = now >= self._ask_at and self._is_short(now)
        if ask:
            self._ask_at = INFINITE
        return Decision(
            drops,
            tuple(candidate.peer for candidate in probes),
            tuple(candidate.peer for candidate in attempts),
            ask,
            self._wake(now),
        )

    def _drops(self, now: float) -> tuple[Drop, ...]:
        drops: dict[PeerId, str] = {}
        lost = sorted(self._in(State.LOST), key=lambda c: (c.trusted, c.since))
        for candidate in lost[: max(0, len(lost) - self.config.wanted)]:
            drops[candidate.peer] = "it does not answer"
        for candidate in lost:
            if candidate.moved:
                candidate.rest_until, candidate.moved = now, False
                drops[candidate.peer] = "it has moved"
            elif candidate.hopeless:
                drops[candidate.peer] = "it has no place for us"
        held = sorted(self._in(State.HELD), key=lambda c: (score(c, now), c.since))
        if len(held) >= self.config.wanted:
            for candidate in self._in(State.LEAVING):
                drops[candidate.peer] = (candidate.leaving or Leaving.SLOW).value
            for candidate in lost:
                drops.setdefault(candidate.peer, "its place was lost, and others are held")
            for candidate in held[self.config.wanted :]:
                drops[candidate.peer] = "those that are held besides are better"
        holding = {candidate.peer for candidate in self.held()}
        for peer in drops:
            self._go("drop", self._candidates[peer], now)
        return tuple(Drop(peer, reason, peer in holding) for peer, reason in drops.items())

    def _need(self, now: float) -> int:
        """How many more places are wanted than are held, or asked for and not overdue."""
        asked = [c for c in self._in(State.TRYING) if now - c.since < self.config.try_patience]
        return self.config.wanted - len(self._in(State.HELD)) - len(asked)

    def _available(self, now: float) -> list[Candidate]:
        """Who could be asked for a place now."""
        return [candidate for candidate in self._in(State.KNOWN) if candidate.rest_until <= now]

    def _is_short(self, now: float) -> bool:
        """There are so few others that sources are worth asking."""
        return len(self._available(now)) + len(self._in(State.PROBING)) < self.config.enough

    def _attempts(self, now: float) -> tuple[list[Candidate], list[Candidate]]:
        """Whom to ask for a place, or whom to probe before that is decided."""
        need = self._need(now)
        if need <= 0 or now < self._look_from or self._in(State.PROBING):
            return [], []
        beside = self._in(State.HELD, State.TRYING)
        pool = sorted(self._available(now), key=lambda c: (score(c, now, beside), c.offered_at))
        if len(pool) > need:
            first = [c for c in pool[: max(self.config.probes, need)] if c.trusted == pool[0].trusted]
            unmeasured = [candidate for candidate in first if candidate.rtt is None]
            if len(first) > 1 and len(first) - len(unmeasured) < need:
                return [], unmeasured[: self.config.probes]
        chosen: list[Candidate] = []
        while pool and len(chosen) < need:
            best = min(pool, key=lambda c: score(c, now, [*beside, *chosen]))
            pool.remove(best)
            chosen.append(best)
        return chosen, []

    # -- latency

    def _judge_latency(self, now: float) -> None:
        """Leave a held relay when another was better for long enough; one at a time."""
        config = self.config
        for candidate in self._in(State.HELD):
            if not self._is_slow(candidate, now):
                candidate.slow_since = None
                continue
            if candidate.slow_since is None:
                candidate.slow_since = now
            if now - candidate.slow_since >= config.slow_for and now - self._moved_at >= config.settle:
                self._moved_at = now
                self.leave(candidate.peer, Leaving.SLOW, now)

    def _is_slow(self, candidate: Candidate, now: float) -> bool:
        """Another that could take its place is better by a factor and by a margin."""
        config = self.config
        if candidate.rtt is None or now - candidate.measured_at > config.probe_fresh:
            return False
        better = min(0.0, candidate.latest - candidate.rtt)  # what was slow a moment ago is forgiven
        beside = [other for other in self._in(State.HELD) if other is not candidate]
        limit = score(candidate, now, beside) + better - config.slow_margin
        return any(
            other.rtt is not None
            and now - other.measured_at <= config.probe_fresh
            and other.rtt * config.slow_factor <= candidate.rtt + better
            and score(other, now, beside) <= limit
            for other in self._available(now)
        )

    def _comparisons(self, now: float) -> list[Candidate]:
        """Whom to probe because a held relay is slower than it was, or far."""
        config = self.config
        if now < self._compare_from or self._in(State.PROBING):
            return []
        measured = [(c.rtt, c.best_rtt) for c in self._in(State.HELD) if c.rtt is not None]
        slower = any(
            rtt >= max(config.slow_factor * best, best + config.slow_margin) for rtt, best in measured
        )
        far = any(rtt >= FAR for rtt, _ in measured)
        stale = [
            candidate
            for candidate in self._available(now)
            if (candidate.rtt is None and (slower or far))
            or (slower and now - candidate.measured_at > config.probe_fresh / 2)
        ]
        if stale:
            self._compare_from = now + config.probe_fresh / 2 * self._uniform(0.75, 1.25)
        return sorted(stale, key=lambda c: score(c, now))[: config.probes]

    # -- failures, room, time

    def _fail(self, candidate: Candidate, trouble: Trouble, now: float) -> None:
        config = self.config
        candidate.count_failure(now)
        candidate.trouble = trouble
        first = {
            Trouble.UNREACHABLE: config.rest_first,
            Trouble.REFUSED: config.rest_refused,
            Trouble.USELESS: config.rest_max,
        }[trouble]
        rest = min(config.rest_max, first * 2.0 ** min(candidate.failures - 1, 30))
        candidate.rest_until = now + self._uniform(rest / 2, rest)

    def _moved(self, candidate: Candidate, told: tuple[Multiaddr, ...], now: float) -> None:
        """Its addresses are others now: what was asked in vain is asked there at once."""
        if set(candidate.addrs) == set(told):
            return
        candidate.moved = candidate.state is State.LOST
        if candidate.state is State.KNOWN:
            candidate.rest_until = min(candidate.rest_until, now)

    def _make_room(self, trusted: bool, now: float) -> bool:
        """Forget the worst candidate, if it may be: who is resting; for a trusted one any stranger too."""
        idle = [
            candidate
            for candidate in self._in(State.KNOWN)
            if candidate.rest_until > now or (trusted and not candidate.trusted)
            if trusted or not candidate.trusted
        ]
        if not idle:
            return False
        self._remove(max(idle, key=lambda c: (c.rest_until > now, score(c, now))))
        return True

    def _forget(self, now: float) -> None:
        for candidate in self._in(State.KNOWN):
            if not candidate.trusted and now - candidate.offered_at > self.config.forget:
                self._remove(candidate)

    def _remove(self, candidate: Candidate) -> None:
        del self._candidates[candidate.peer]
        self.removed += 1

    def _go(self, event: str, candidate: Candidate, now: float) -> bool:
        """Follow the table; False when the event comes too late to mean anything."""
        state = _TRANSITIONS.get((event, candidate.state))
        if state is None:
            return False
        if state is not candidate.state:
            candidate.state, candidate.since = state, now
        if event == "drop":
            candidate.leaving = candidate.slow_since = None
        return True

    def _wake(self, now: float) -> float:
        """When something is due that no event announces."""
        times = [now + IDLE, self._look_from]
        if self._need(now) > 0:
            times += [candidate.rest_until for candidate in self._in(State.KNOWN)]
        times += [c.since + self.config.try_patience for c in self._in(State.TRYING)]
        times += [
            c.slow_since + self.config.slow_for for c in self._in(State.HELD) if c.slow_since is not None
        ]
        times.append(self._moved_at + self.config.settle)
        if self._is_short(now):
            times.append(self._ask_at)
        return min(time for time in times if time > now)
