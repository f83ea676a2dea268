"""The verdict on an address against one server that lies, breaks, falls silent or flaps, in any order.

What a bad server can make of its lies: it can say no, or nothing. A yes needs the nonce, which no server
gets to where it cannot (tests/protocols/autonat/test_v2.py); so it can say yes only when that is true, and
stand by it afterwards.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flare.nat.reachability import MUTE, Reachability, Reachable, Weighing, Word
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

ADDR = Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")
PEERS = [Identity.generate().peer_id for _ in range(4)]
BAD = Identity.generate().peer_id

# who is honest: each trusted or not, all in networks of their own; together they weigh 2 or more
HONEST = [(True,), (False, False), (True, True), (True, False), (False, False, False), (True, False, False)]


class OneBadServer(RuleBasedStateMachine):
    @initialize(honest=st.sampled_from(HONEST), trusted=st.booleans(), truth=st.booleans())
    def begin(self, honest: tuple[bool, ...], trusted: bool, truth: bool) -> None:
        self.now = 1000.0
        self.honest = honest
        self.weight = sum(2 if one else 1 for one in honest)
        # one of our own choice that is bad needs two others of our choice to be outweighed after a change
        self.bad_trusted = trusted
        self.truth = truth
        self.heard: set[int] = set()
        self.settled: list[Reachable] = []
        self.machine = Reachability(clock=lambda: self.now, on_change=self.changed)
        self.machine.candidates([ADDR])

    def changed(self, addr: Multiaddr | None, state: Reachable) -> None:
        if addr is not None:
            self.settled.append(state)

    @property
    def is_settled(self) -> bool:
        """All honest servers have spoken since the last change; the bad one stands by nothing stale."""
        words = [word for verdict in self.machine.verdicts for word in verdict.words]
        stale = any(word.server == BAD and word.reachable for word in words) and not self.truth
        return len(self.heard) == len(self.honest) and not stale

    def say(self, server: int | None, reachable: bool) -> None:
        peer, trusted = (BAD, self.bad_trusted) if server is None else (PEERS[server], self.honest[server])
        network = "bad" if server is None else str(server)
        self.machine.record(ADDR, Word(peer, network, reachable, self.now, trusted))

    @rule(which=st.integers(0, 3))
    def an_honest_server_speaks(self, which: int) -> None:
        server = which % len(self.honest)
        self.heard.add(server)
        self.say(server, self.truth)

    @rule()
    def the_bad_one_says_no(self) -> None:
        self.say(None, False)

    @precondition(lambda self: self.truth)
    @rule()
    def the_bad_one_says_yes(self) -> None:
        self.say(None, True)

    @rule()
    def the_bad_one_says_nothing(self) -> None:
        self.machine.unanswered(ADDR, BAD)

    @rule(which=st.integers(0, 3))
    def an_honest_server_is_too_busy(self, which: int) -> None:
        self.machine.unanswered(ADDR, PEERS[which])
        self.forget_who_is_gone()

    @rule(seconds=st.floats(0, 600))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.machine.expire()
        self.forget_who_is_gone()

    def forget_who_is_gone(self) -> None:
        """Whose word is too old to count has to speak again."""
        left = {word.server for verdict in self.machine.verdicts for word in verdict.words}
        self.heard = {server for server in self.heard if PEERS[server] in left}

    @rule()
    def the_world_changes(self) -> None:
        self.truth = not self.truth
        self.heard.clear()

    @invariant()
    def the_verdict_is_true(self) -> None:
        if hasattr(self, "machine") and self.is_settled:
            expected = Reachable.PUBLIC if self.truth else Reachable.PRIVATE
            assert self.machine.state(ADDR) is expected

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        if hasattr(self, "machine"):
            old = self.now - Weighing().lifetime
            self.machine.expire()
            assert all(word.at > old for v in self.machine.verdicts for word in v.words)


TestOneBadServer = OneBadServer.TestCase
TestOneBadServer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_stale_word_of_a_server_that_fell_silent_goes() -> None:
    """At MUTE silences and past the recheck, and not before: honest servers are too busy at times."""
    now = 1000.0
    machine = Reachability(clock=lambda: now)
    machine.candidates([ADDR])
    machine.record(ADDR, Word(BAD, "bad", True, now, True))
    machine.record(ADDR, Word(PEERS[0], "0", False, now, True))
    for _ in range(MUTE + 1):
        machine.unanswered(ADDR, BAD)
    assert machine.state(ADDR) is Reachable.PUBLIC
    machine.record(ADDR, Word(BAD, "bad", True, now, True))
    now += Weighing().recheck + 1
    for _ in range(MUTE - 1):
        machine.unanswered(ADDR, BAD)
    assert machine.state(ADDR) is Reachable.PUBLIC
    machine.unanswered(ADDR, BAD)
    assert machine.state(ADDR) is Reachable.PRIVATE
    for _ in range(MUTE + 1):
        machine.unanswered(ADDR, PEERS[0])
    assert machine.state(ADDR) is Reachable.PRIVATE, "nobody contradicts that one"
    machine.unanswered(Multiaddr("/ip4/9.9.9.9/tcp/1"), BAD)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("truth", [False, True])
def test_a_server_that_flaps_moves_nothing(truth: bool, trusted: bool) -> None:
    """Two strangers are honest; the one that flaps may even be of our own choice."""
    states: list[Reachable] = []
    machine = Reachability(clock=lambda: 1.0, on_change=lambda addr, state: states.append(state))
    machine.candidates([ADDR])
    for number in range(2):
        machine.record(ADDR, Word(PEERS[number], str(number), truth, 1.0))
    assert states[-1] is (Reachable.PUBLIC if truth else Reachable.PRIVATE)
    told = len(states)
    for round_ in range(20):
        if round_ % 2:
            machine.record(ADDR, Word(BAD, "bad", False, 1.0, trusted))
        else:
            machine.unanswered(ADDR, BAD)
    assert len(states) == told
