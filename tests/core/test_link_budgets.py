"""What a peer may make a link take for nothing, and what an idle link keeps."""

from __future__ import annotations

import socket
import time
from unittest import mock

import pytest

from flare._core import link as link_module
from flare._core.engine import Engine
from flare._core.link import PlainRecords
from flare.errors import ProtocolViolation, ResourceLimit
from tests.support.mux import (
    ACK,
    DATA,
    FIN,
    INITIAL,
    PING,
    RST,
    SYN,
    WINDOW,
    Bare,
    Limits,
    Pair,
    drain,
    frame,
    run,
)

TURN = 100_000


def flood(peer: Bare, stream: int, n: int, flags: int = 0) -> None:
    """n bytes for a stream, in frames of at most TURN."""
    while n:
        part = min(n, TURN)
        peer.link.feed(frame(DATA, flags, stream, bytes(part)))
        n -= part


def broken(peer: Bare) -> bool:
    run(peer.engine)
    return any(isinstance(why, ProtocolViolation) for why in peer.heard.closed)


class TestStrays:
    """Data for streams that are gone: in flight it is legal, beyond the window it costs the connection."""

    def test_a_window_full_after_our_reset(self) -> None:
        with Bare() as peer:
            peer.stream(1).reset()
            flood(peer, 1, INITIAL)
            assert not broken(peer)
            flood(peer, 1, 1)
            assert broken(peer)

    def test_what_was_sent_before_counts(self) -> None:
        with Bare() as peer:
            stream = peer.stream(1)
            flood(peer, 1, 1000)
            stream.reset()
            flood(peer, 1, INITIAL - 1000)
            assert not broken(peer)
            flood(peer, 1, 1)
            assert broken(peer)

    def test_a_frame_that_is_under_way_counts_once(self) -> None:
        with Bare() as peer:
            stream = peer.stream(1)
            whole = frame(DATA, 0, 1, bytes(10_000))
            peer.link.feed(whole[:5000])
            stream.reset()
            peer.link.feed(whole[5000:])
            flood(peer, 1, INITIAL - 10_000)
            assert not broken(peer)
            flood(peer, 1, 1)
            assert broken(peer)

    def test_after_its_end_the_peer_has_no_more_to_say(self) -> None:
        with Bare() as peer:
            stream = peer.stream(1)
            peer.say(frame(DATA, FIN, 1))
            stream.close_write()
            flood(peer, 1, 1)
            assert broken(peer)

    def test_a_refused_stream_may_have_its_first_window_in_flight(self) -> None:
        with Bare(max_streams=1) as peer:
            peer.stream(1)
            peer.say(frame(DATA, SYN, 3, bytes(1000)))
            flood(peer, 3, INITIAL - 1000)
            assert not broken(peer)
            flood(peer, 3, 1)
            assert broken(peer)

    def test_data_with_a_reset_is_data(self) -> None:
        with Bare() as peer:
            peer.stream(1)
            peer.stream(3)
            peer.say(frame(DATA, RST, 1, bytes(INITIAL)))
            assert not broken(peer)
            peer.link.feed(frame(DATA, RST, 3, INITIAL + 1))
            assert broken(peer)

    def test_a_reset_of_nothing_carries_nothing(self) -> None:
        with Bare() as peer:
            peer.stream(1)
            peer.say(frame(WINDOW, RST, 1))
            flood(peer, 1, INITIAL)
            assert not broken(peer), "what its window had left"
            peer.link.feed(frame(DATA, RST, 1, 0xFFFFFFFF))
            assert broken(peer)


class TestPings:
    def test_a_place_whose_pong_was_lost_is_used_again(self) -> None:
        with Bare() as peer, mock.patch.object(link_module, "PONG_LOST_NS", 20_000_000):
            heard: list[tuple[int, int | None]] = []
            for i in range(8):
                peer.link.ping(lambda rtt, i=i: heard.append((i, rtt)))  # type: ignore[misc]
            with pytest.raises(ResourceLimit):
                peer.link.ping(lambda rtt: None)
            time.sleep(0.03)
            peer.link.ping(lambda rtt: heard.append((8, rtt)))
            assert heard == [(0, None)]
            sent = [each for each in peer.hear() if each.type == PING]
            peer.say(frame(PING, ACK, 0, sent[0].length))
            assert heard == [(0, None)], "too late"
            peer.say(frame(PING, ACK, 0, sent[8].length))
            assert [i for i, rtt in heard if rtt] == [8]


class TestClosing:
    def test_a_peer_that_does_not_close_is_waited_for_as_long_as_the_limit_says(self) -> None:
        engine = Engine()
        x, y = socket.socketpair()
        limits = Limits(linger=0.05, keepalive=0.0)
        link = engine.attach(y.detach(), record=PlainRecords(), initiator=True, limits=limits)
        began = time.monotonic()
        link.close()
        with x:
            while not link.closed and time.monotonic() < began + 4:
                engine.run_pass(10_000_000)
        assert 0.05 <= time.monotonic() - began < 4
        engine.close()


class TestIdle:
    def test_it_gives_its_ciphers_back_and_goes_on(self) -> None:
        engine = Engine()
        pair = Pair(engine, keepalive=1.2, keepalive_timeout=10.0)
        near, far = pair.open()
        assert pair.a.ciphers == 2
        end = time.monotonic() + 10
        while pair.a.ciphers and time.monotonic() < end:
            engine.run_pass(50_000_000)
        assert pair.a.ciphers == 0
        near.write(b"again")
        run(engine)
        assert drain(far) == b"again"
        engine.close()
