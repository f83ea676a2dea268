"""nat/reachability.py: every row of its tables, and that one liar moves nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.nat.reachability import (
    MAX_CANDIDATES,
    MAX_WORDS,
    Reachability,
    Reachable,
    Weighing,
    Word,
    weigh,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

SERVERS = [Identity.generate().peer_id for _ in range(MAX_WORDS + 1)]
ADDR = Multiaddr("/ip4/1.2.3.4/tcp/4001")
OTHER = Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")
PUBLIC, PRIVATE, UNKNOWN = Reachable.PUBLIC, Reachable.PRIVATE, Reachable.UNKNOWN


class Scene:
    def __init__(self) -> None:
        self.now = 1000.0
        self.changes: list[tuple[Multiaddr | None, Reachable]] = []
        self.machine = Reachability(
            clock=lambda: self.now, on_change=lambda addr, state: self.changes.append((addr, state))
        )
        self.machine.candidates([ADDR])

    def word(
        self, server: int, reachable: bool, *, trusted: bool = False, network: str | None = None
    ) -> Reachable:
        where = network or f"{server}.0.0.0/16"
        self.machine.record(ADDR, Word(SERVERS[server], where, reachable, self.now, trusted))
        return self.machine.state(ADDR)


def test_a_trusted_server_is_believed_at_once() -> None:
    assert Scene().word(0, True, trusted=True) is PUBLIC
    assert Scene().word(0, False, trusted=True) is PRIVATE


@pytest.mark.parametrize("reachable", [True, False])
def test_strangers_need_each_other(reachable: bool) -> None:
    scene = Scene()
    assert scene.word(0, reachable) is UNKNOWN
    assert scene.word(1, reachable, network="0.0.0.0/16") is UNKNOWN, "both in one network"
    assert scene.word(2, reachable) is (PUBLIC if reachable else PRIVATE)


@pytest.mark.parametrize("truth", [True, False])
def test_one_liar_moves_nothing(truth: bool) -> None:
    settled = PUBLIC if truth else PRIVATE
    scene = Scene()
    assert scene.word(0, not truth) is UNKNOWN
    assert scene.word(1, truth) is UNKNOWN
    assert scene.word(2, truth) is settled
    for _ in range(10):
        assert scene.word(0, not truth) is settled


def test_a_broken_server_of_our_own_does_not_flip_what_two_strangers_attest() -> None:
    scene = Scene()
    scene.word(0, True)
    assert scene.word(1, True) is PUBLIC
    assert scene.word(2, False, trusted=True) is PUBLIC, "a tie stays as it was"
    assert scene.word(3, False) is PRIVATE


def test_proof_wins_a_tie() -> None:
    scene = Scene()
    assert scene.word(0, False, trusted=True) is PRIVATE
    assert scene.word(1, True) is PRIVATE
    assert scene.word(2, True) is PUBLIC, "a broken server of our own cannot hide what two strangers prove"


def test_what_is_inferred_gives_way_to_what_was_asked() -> None:
    scene = Scene()
    machine = scene.machine

    def inferred(*servers: int) -> list[Word]:
        return [Word(SERVERS[s], f"{s}", False, scene.now, inferred=True) for s in servers]

    machine.infer(ADDR, inferred(0))
    assert machine.state(ADDR) is UNKNOWN, "that is one stranger's word"
    machine.infer(ADDR, inferred(0, 1))
    assert machine.state(ADDR) is PRIVATE
    changes = len(scene.changes)
    machine.infer(ADDR, inferred(0, 1))
    assert len(scene.changes) == changes
    scene.word(0, True, network="0")
    machine.infer(ADDR, inferred(0, 1))
    (verdict,) = machine.verdicts
    assert {word.server: word.reachable for word in verdict.words} == {SERVERS[0]: True, SERVERS[1]: False}
    machine.infer(ADDR, ())
    (verdict,) = machine.verdicts
    assert [word.server for word in verdict.words] == [SERVERS[0]]
    machine.infer(OTHER, inferred(0))
    assert machine.state(OTHER) is UNKNOWN


def test_a_real_change_is_seen() -> None:
    scene = Scene()
    scene.word(0, True)
    scene.word(1, True)
    assert scene.word(0, False) is PUBLIC
    assert scene.word(1, False) is PRIVATE
    assert [state for addr, state in scene.changes if addr == ADDR] == [PUBLIC, PRIVATE]
    assert [state for addr, state in scene.changes if addr is None] == [PUBLIC, PRIVATE]


def test_words_grow_old() -> None:
    scene = Scene()
    scene.word(0, True, trusted=True)
    scene.now += Weighing().lifetime - 1
    scene.machine.expire()
    assert scene.machine.node is PUBLIC
    scene.now += 1
    scene.machine.expire()
    assert scene.machine.node is UNKNOWN


def test_what_was_known_counts_no_more_when_the_way_to_it_changed() -> None:
    scene = Scene()
    assert scene.word(0, False, trusted=True) is PRIVATE
    asked, scene.now = scene.now, scene.now + 5
    scene.machine.anew(ADDR)
    assert scene.machine.state(ADDR) is UNKNOWN
    assert scene.changes[-2:] == [(ADDR, UNKNOWN), (None, UNKNOWN)]
    assert scene.machine.due() == [ADDR], "it is asked about again at once"
    late = Word(SERVERS[0], "0.0.0.0/16", False, scene.now, True)
    scene.machine.record(ADDR, late, asked=asked)
    assert scene.machine.state(ADDR) is UNKNOWN, "what was asked before the change says nothing"
    scene.machine.record(ADDR, late, asked=scene.now)
    assert scene.machine.state(ADDR) is PRIVATE
    scene.machine.anew(OTHER)


def test_the_node() -> None:
    scene = Scene()
    scene.machine.candidates([ADDR, OTHER])
    scene.word(0, False, trusted=True)
    assert scene.machine.node is UNKNOWN, "nobody knows of the other one yet"
    scene.machine.record(OTHER, Word(SERVERS[0], "n", True, scene.now, True))
    assert scene.machine.node is PUBLIC
    scene.machine.candidates([ADDR])
    assert scene.machine.node is PRIVATE
    scene.machine.candidates([])
    assert scene.machine.node is UNKNOWN
    assert scene.machine.state(ADDR) is UNKNOWN
    scene.machine.candidates([], hopeless=True)
    assert scene.machine.node is PRIVATE
    scene.machine.candidates([ADDR], hopeless=True)
    assert scene.machine.node is UNKNOWN


def test_words_on_what_is_no_candidate_say_nothing() -> None:
    scene = Scene()
    scene.machine.record(OTHER, Word(SERVERS[0], "n", True, scene.now, True))
    assert scene.machine.node is UNKNOWN


def test_what_is_kept_is_bounded() -> None:
    scene = Scene()
    addrs = [Multiaddr(f"/ip4/1.2.3.4/tcp/{port}") for port in range(1, MAX_CANDIDATES + 2)]
    scene.machine.candidates(addrs[:MAX_CANDIDATES])
    assert len(scene.machine.verdicts) == MAX_CANDIDATES
    scene.machine.candidates(addrs)
    assert len(scene.machine.verdicts) == MAX_CANDIDATES
    scene.machine.candidates([ADDR])
    for server in range(MAX_WORDS):
        scene.word(server, True)
    assert len(scene.machine.verdicts[0].words) == MAX_WORDS
    scene.now += 1
    scene.word(MAX_WORDS, True)
    (verdict,) = scene.machine.verdicts
    assert len(verdict.words) == MAX_WORDS
    assert verdict.words[0].server == SERVERS[MAX_WORDS], "the newest first"
    assert SERVERS[0] not in {word.server for word in verdict.words}


def test_when_an_address_is_asked_about() -> None:
    scene = Scene()
    machine = scene.machine
    assert machine.due() == [ADDR]
    gaps = []
    for _ in range(12):
        machine.asked(ADDR)
        assert machine.due() == []
        due = machine.next_due()
        assert due is not None
        gaps.append(due - scene.now)
        scene.now = due
        assert machine.due() == [ADDR]
    assert gaps == [5, 5, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    scene.word(0, True, trusted=True)
    machine.asked(ADDR)
    assert machine.next_due() == scene.now + Weighing().recheck
    scene.word(1, False)
    assert machine.next_due() == scene.now + Weighing().retry, "a contradiction is looked into soon"
    machine.hurry()
    assert machine.due() == [ADDR]
    machine.candidates([])
    assert machine.next_due() is None


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 3)), max_size=30),
    st.booleans(),
)
def test_it_says_public_only_on_enough_and_never_flips_by_one_server_s_words(
    words: list[tuple[int, bool, bool, int]], truth: bool
) -> None:
    scene = Scene()
    for server, reachable, trusted, network in words:
        before = scene.machine.state(ADDR)
        after = scene.word(server, reachable, trusted=trusted, network=str(network))
        (verdict,) = scene.machine.verdicts
        for_, against = weigh(verdict.words)
        if after is not before:
            assert after is not UNKNOWN
            assert (for_ >= 2 and for_ >= against) if after is PUBLIC else (against >= 2 and against > for_)
    honest = Scene()
    for server in (6, 7, 8):
        honest.word(server, truth)
    settled = honest.machine.state(ADDR)
    for _ in words:
        assert honest.word(0, not truth) is settled, "one stranger against three"
