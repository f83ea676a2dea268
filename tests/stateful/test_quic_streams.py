"""QUIC streams, used in any order over a bad network: what comes is what was sent, to its end."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flare.transport.quic_aioquic import AioquicConnection
from tests.support.quic_engines import EnginePair, Sink

MOST = 24  # streams
SIZES = st.one_of(st.integers(0, 3), st.integers(1100, 1500), st.integers(2000, 60_000))
HERE = st.booleans()
PICK = st.integers(0, 1 << 16)


class QuicStreams(RuleBasedStateMachine):
    """Two engines; a stream is known by its number and by who writes."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = EnginePair()
        self.pair.handshake()
        self.pair.path = self.path
        self.chance = random.Random(7)
        self.loss = 0.0
        self.written: dict[tuple[bool, int], bytearray] = {}  # by whether the client writes, and the number
        self.finished: set[tuple[bool, int]] = set()
        self.broken: set[int] = set()

    def path(self, datagrams: list[bytes]) -> list[bytes]:
        kept = [datagram for datagram in datagrams if self.chance.random() >= self.loss]
        if self.loss and len(kept) > 1:
            at = self.chance.randrange(len(kept) - 1)
            kept[at], kept[at + 1] = kept[at + 1], kept[at]
        return kept

    def side(self, here: bool) -> AioquicConnection:
        return self.pair.client if here else self.pair.server

    def sink(self, here: bool) -> Sink:
        """Who reads what `here` writes."""
        return self.pair.there if here else self.pair.here

    def pick(self, pick: int) -> tuple[bool, int] | None:
        """A side of a stream that may still be written to."""
        ours = [key for key in self.written if key not in self.finished and key[1] not in self.broken]
        return sorted(ours)[pick % len(ours)] if ours else None

    @precondition(lambda self: len(self.written) < 2 * MOST)
    @rule(here=HERE, size=SIZES)
    def open(self, here: bool, size: int) -> None:
        number = self.side(here).open_stream()
        self.written[here, number] = bytearray()
        self.write_to((here, number), size)

    @rule(pick=PICK, size=SIZES)
    def write(self, pick: int, size: int) -> None:
        if key := self.pick(pick):
            self.write_to(key, size)

    def write_to(self, key: tuple[bool, int], size: int) -> None:
        here, number = key
        data = self.chance.randbytes(size)
        self.written[key] += data[: self.side(here).write(number, data)]

    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        if key := self.pick(pick):
            self.side(key[0]).finish(key[1])
            self.finished.add(key)

    @rule(pick=PICK)
    def answer(self, pick: int) -> None:
        """Who has heard of a stream writes to it too."""
        heard = [
            (not here, n) for here, n in self.written if self.sink(here).received[n] and n not in self.broken
        ]
        for key in sorted(heard)[pick % max(1, len(heard)) :][:1]:
            if key not in self.written:
                self.written[key] = bytearray()
                self.write_to(key, 5000)

    @rule(pick=PICK)
    def reset(self, pick: int) -> None:
        if pick % 4 == 0 and (key := self.pick(pick)):
            self.side(key[0]).reset(key[1], 0)
            self.side(key[0]).stop(key[1], 0)
            self.broken.add(key[1])

    @rule(here=HERE, uid=st.integers(1, 1000))
    def ping(self, here: bool, uid: int) -> None:
        self.side(here).ping(uid)

    @rule(here=HERE)
    def renew(self, here: bool) -> None:
        """Another connection id, and now and then other keys."""
        quic: Any = self.side(here)._quic
        if len(quic._peer_cid_available) > 3:
            quic.change_connection_id()

    @rule(loss=st.sampled_from([0.0, 0.0, 0.05, 0.4]), turns=st.integers(1, 5))
    def turn(self, loss: float, turns: int) -> None:
        self.loss = loss
        for _ in range(turns):
            self.pair.turn()

    @invariant()
    def nothing_is_mixed_up(self) -> None:
        for (here, number), data in self.written.items():
            came = self.sink(here).data[number]
            assert data[: len(came)] == came

    def teardown(self) -> None:
        self.loss = 0.0
        for _ in range(300):
            self.pair.turn()
        for (here, number), data in self.written.items():
            if number not in self.broken:
                assert self.sink(here).data[number] == data
                assert (number in self.sink(here).ended) == ((here, number) in self.finished)


TestQuicStreams = QuicStreams.TestCase
TestQuicStreams.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
