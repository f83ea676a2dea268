"""yamux against a peer written by hand. Class names are sections of specs/yamux/README.md."""

from __future__ import annotations

import gc
import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core.link import LinkStream
from flare.errors import ConnectionClosed, ProtocolViolation, ResourceLimit, StreamReset, UsageError
from tests.support.mux import (
    ACK,
    DATA,
    FIN,
    GOAWAY,
    INITIAL,
    PING,
    RST,
    SYN,
    WINDOW,
    Bare,
    Frame,
    drain,
    frame,
    run,
)


def violation(peer: Bare, *data: bytes) -> str:
    """The peer says `data` and loses its connection for it; returns the sentence."""
    answer = peer.say(*data)
    assert answer[-1:] == [Frame(GOAWAY, 0, 0, 1)], "the last word is go-away: protocol error"
    assert peer.link.closed
    (error,) = peer.heard.closed
    assert isinstance(error, ProtocolViolation)
    assert error.protocol == "yamux"
    return str(error)


class TestFraming:
    def test_a_header_is_twelve_bytes_in_network_order(self) -> None:
        with Bare(initiator=True) as peer:
            stream = peer.link.open_stream()
            stream.write(b"payload")
            run(peer.engine)
            assert peer.link.take_output() == bytes.fromhex("00 00 0001 00000001 00000007") + b"payload"

    @given(st.data())
    def test_frames_may_be_cut_anywhere(self, data: st.DataObject) -> None:
        """Any way to cut the bytes gives the same streams."""
        payloads = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
        wire = (
            frame(WINDOW, SYN, 1)
            + b"".join(frame(DATA, 0, 1, p) for p in payloads)
            + frame(DATA, FIN, 1, b"end")
        )
        cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=12)))
        with Bare() as peer:
            parts = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
            peer.say(*parts)
            (stream,) = peer.heard.streams
            assert drain(stream) == b"".join(payloads) + b"end"
            assert stream.read() == b""

    @given(st.binary(max_size=400), st.lists(st.integers(1, 60), max_size=20))
    def test_any_bytes_cost_at_most_the_connection(self, junk: bytes, sizes: list[int]) -> None:
        with Bare() as peer:
            held = []
            while junk:
                size = sizes.pop() if sizes else len(junk)
                peer.say(junk[:size])
                held += peer.heard.streams
                junk = junk[size:]
            assert peer.link.closed == bool(peer.heard.closed)

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 4),
                st.integers(0, 16),
                st.integers(0, 6),
                st.one_of(st.binary(max_size=9), st.integers(0, 2**32 - 1)),
            ),
            max_size=30,
        ),
        st.booleans(),
    )
    def test_any_frames_cost_at_most_the_connection(
        self, said: list[tuple[int, int, int, bytes | int]], initiator: bool
    ) -> None:
        """And what Python holds keeps working: every stream reads to an end or raises a flare error."""
        with Bare(initiator=initiator, backlog=4) as peer:
            own = [peer.link.open_stream() for _ in range(2)]
            for type_, flags, stream_id, length in said:
                if type_ == DATA and isinstance(length, int):
                    length = b""
                peer.say(frame(type_, flags, stream_id, length))
            for stream in own + peer.heard.streams:
                try:
                    while stream.read():
                        pass
                    stream.write(b"x")
                    stream.close_write()
                except (StreamReset, ProtocolViolation, ConnectionClosed):
                    assert stream.is_reset or peer.link.closed
            peer.hear()


class TestVersionField:
    def test_a_version_other_than_0_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "version" in violation(peer, frame(DATA, SYN, 1, b"", version=1))


class TestTypeField:
    def test_an_unknown_type_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "unknown type" in violation(peer, frame(4, 0, 0))


class TestFlagField:
    def test_unknown_flags_end_the_connection(self) -> None:
        with Bare() as peer:
            assert "unknown flags" in violation(peer, frame(WINDOW, 16, 1))

    def test_all_known_flags_at_once_are_taken(self) -> None:
        with Bare() as peer:
            peer.say(frame(WINDOW, SYN | ACK | FIN | RST, 1))
            assert not peer.link.closed


class TestStreamIdField:
    def test_the_client_has_odd_ids_and_the_server_even_ones(self) -> None:
        for initiator, expected in ((True, [1, 3, 5]), (False, [2, 4, 6])):
            with Bare(initiator=initiator) as peer:
                streams = [peer.link.open_stream() for _ in range(3)]
                assert [s.id for s in streams] == expected

    @pytest.mark.parametrize("initiator", [True, False])
    def test_an_id_of_our_own_parity_ends_the_connection(self, initiator: bool) -> None:
        with Bare(initiator=initiator) as peer:
            assert "parity" in violation(peer, frame(WINDOW, SYN, 1 if initiator else 2))

    @pytest.mark.parametrize("type_", [DATA, WINDOW])
    def test_id_0_is_the_session(self, type_: int) -> None:
        with Bare() as peer:
            assert "stream 0" in violation(peer, frame(type_, SYN, 0))

    @pytest.mark.parametrize("type_", [PING, GOAWAY])
    def test_ping_and_go_away_always_use_id_0(self, type_: int) -> None:
        with Bare() as peer:
            assert "stream id" in violation(peer, frame(type_, SYN, 1))


class TestOpeningAStream:
    def test_the_first_frame_carries_syn_and_data_may_follow_at_once(self) -> None:
        with Bare(initiator=True) as peer:
            stream = peer.link.open_stream()
            assert stream.write(b"early") == 5
            assert peer.hear() == [Frame(DATA, SYN, 1, 5, b"early")]

    def test_a_stream_that_writes_nothing_is_announced_all_the_same(self) -> None:
        with Bare(initiator=True) as peer:
            stream = peer.link.open_stream()
            assert peer.hear() == [Frame(WINDOW, SYN, 1, 0)]
            stream.write(b"x")
            assert peer.hear() == [Frame(DATA, 0, 1, 1, b"x")]

    def test_a_stream_dropped_before_its_first_frame_was_never_there(self) -> None:
        with Bare(initiator=True) as peer:
            peer.link.open_stream().reset()
            assert peer.hear() == []

    @pytest.mark.parametrize("type_", [DATA, WINDOW])
    def test_an_inbound_stream_is_acknowledged_with_the_first_frame_back(self, type_: int) -> None:
        with Bare() as peer:
            peer.say(frame(type_, SYN, 1))
            (stream,) = peer.heard.streams
            assert stream.inbound
            stream.write(b"answer")
            assert peer.hear() == [Frame(DATA, ACK, 1, 6, b"answer")]

    def test_reading_acknowledges_too(self) -> None:
        with Bare() as peer:
            assert peer.say(frame(DATA, SYN, 1, b"hi")) == []
            assert peer.heard.streams[0].read() == b"hi"
            assert peer.hear() == [Frame(WINDOW, ACK, 1, 0)]

    def test_a_stream_opened_twice_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "opened twice" in violation(peer, frame(WINDOW, SYN, 1), frame(WINDOW, SYN, 1))

    def test_ids_may_come_out_of_order(self) -> None:
        """go-yamux gives an id and sends the SYN in two steps."""
        with Bare() as peer:
            peer.say(frame(WINDOW, SYN, 5), frame(WINDOW, SYN, 3), frame(DATA, SYN, 1, b"x"))
            assert [s.id for s in peer.heard.streams] == [5, 3, 1]

    def test_a_rejected_stream_raises_reset(self) -> None:
        with Bare(initiator=True) as peer:
            stream = peer.link.open_stream()
            peer.say(frame(WINDOW, RST, 1))
            with pytest.raises(StreamReset):
                stream.read()
            with pytest.raises(StreamReset):
                stream.write(b"x")

    def test_data_for_a_stream_never_opened_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "never opened" in violation(peer, frame(DATA, 0, 1, b"x"))

    def test_any_frame_for_an_id_that_is_ours_and_unused_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "never opened" in violation(peer, frame(WINDOW, RST, 2))

    @pytest.mark.parametrize("flag", [FIN, RST])
    def test_the_end_of_a_stream_we_never_saw_is_ignored(self, flag: int) -> None:
        """rust-yamux resets or closes a stream that was dropped before its first frame."""
        with Bare() as peer:
            assert peer.say(frame(DATA, flag, 1)) == []
            assert not peer.link.closed

    def test_without_a_handler_it_is_reset(self) -> None:
        with Bare() as peer:
            peer.link.on_stream = None
            assert peer.say(frame(WINDOW, SYN, 1)) == [Frame(WINDOW, RST, 1, 0)]

    def test_at_most_max_streams_at_once(self) -> None:
        with Bare(max_streams=2) as peer:
            assert peer.say(frame(WINDOW, SYN, 1), frame(WINDOW, SYN, 3)) == []
            assert peer.say(frame(DATA, SYN, 5, b"dropped")) == [Frame(WINDOW, RST, 5, 0)]
            assert peer.link.stats.refused_streams == 1
            peer.heard.streams[0].reset()
            assert peer.say(frame(WINDOW, SYN, 7)) == [Frame(WINDOW, RST, 1, 0)]
            assert [s.id for s in peer.heard.streams] == [1, 3, 7]

    def test_what_was_reset_before_anybody_saw_it_is_not_heard_of(self) -> None:
        with Bare() as peer:
            flood = b"".join(frame(WINDOW, SYN, i) + frame(WINDOW, RST, i) for i in range(1, 2001, 2))
            assert peer.say(flood + frame(DATA, SYN, 2001, b"hi") + frame(WINDOW, SYN | RST, 2003)) == []
            assert [s.id for s in peer.heard.streams] == [2001]
            assert peer.heard.streams[0].read() == b"hi"
            assert peer.link.stats.streams == 1


class TestAckBacklog:
    def test_inbound_streams_that_nobody_touched_are_bounded(self) -> None:
        with Bare(backlog=2) as peer:
            peer.say(frame(WINDOW, SYN, 1), frame(WINDOW, SYN, 3))
            assert peer.say(frame(WINDOW, SYN, 5)) == [Frame(WINDOW, RST, 5, 0)]
            peer.heard.streams[0].write(b"accepted")
            assert [f.flags for f in peer.say(frame(WINDOW, SYN, 7))] == [ACK]

    def test_our_own_that_the_peer_has_not_acknowledged_are_bounded(self) -> None:
        with Bare(initiator=True, backlog=3) as peer:
            streams = [peer.link.open_stream() for _ in range(3)]
            with pytest.raises(ResourceLimit, match="3 streams"):
                peer.link.open_stream()
            peer.say(frame(WINDOW, ACK, 3), frame(WINDOW, ACK, 3))
            streams.append(peer.link.open_stream())
            with pytest.raises(ResourceLimit):
                peer.link.open_stream()
            peer.say(frame(WINDOW, RST, 1))
            streams.append(peer.link.open_stream())
            assert peer.link.stats.unacked_streams == 3


class TestClosingAStream:
    def test_fin_ends_reading_and_leaves_writing(self) -> None:
        with Bare() as peer:
            peer.say(frame(DATA, SYN | FIN, 1, b"all"))
            (stream,) = peer.heard.streams
            assert stream.read_closed
            assert (stream.read(), stream.read(), stream.read()) == (b"all", b"", b"")
            assert stream.write(b"still") == 5
            assert peer.hear() == [Frame(DATA, ACK, 1, 5, b"still")]

    def test_close_write_sends_one_fin_and_leaves_reading(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            stream.close_write()
            stream.close_write()
            assert peer.hear() == [Frame(DATA, FIN | ACK, 1, 0)]
            assert stream.write_closed
            with pytest.raises(UsageError, match="close_write"):
                stream.write(b"x")
            peer.say(frame(DATA, 0, 1, b"late"))
            assert stream.read() == b"late"
            assert stream.read() is None

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_once_both_sides_closed_the_stream_is_gone(self, ours_first: bool) -> None:
        with Bare() as peer:
            stream = peer.stream()
            for ours in (ours_first, not ours_first):
                if ours:
                    stream.close_write()
                else:
                    peer.say(frame(DATA, FIN, 1, b"bye"))
            assert peer.link.stats.streams == 0
            assert (stream.read(), stream.read()) == (b"bye", b"")
            assert not stream.is_reset

    def test_a_second_fin_is_ignored_and_data_after_it_costs_the_stream(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            assert peer.say(frame(WINDOW, FIN, 1), frame(DATA, FIN, 1)) == []
            assert peer.say(frame(DATA, 0, 1, b"zombie")) == [Frame(WINDOW, RST, 1, 0)]
            assert stream.is_reset
            assert not peer.link.closed

    def test_reset_drops_the_stream_at_once(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, b"unread"))
            stream.reset()
            stream.reset()
            assert peer.hear() == [Frame(WINDOW, RST, 1, 0)]
            with pytest.raises(StreamReset):
                stream.read()
            assert stream.readable == 0
            assert peer.link.stats.buffered == 0

    @pytest.mark.parametrize("type_", [DATA, WINDOW])
    def test_what_came_before_a_reset_can_be_read(self, type_: int) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, b"before"), frame(type_, RST, 1))
            assert stream.read() == b"before"
            with pytest.raises(StreamReset):
                stream.read()

    def test_a_reset_with_a_payload_keeps_the_frames_in_step(self) -> None:
        with Bare() as peer:
            peer.stream()
            assert peer.say(frame(DATA, RST, 1, b"payload"), frame(PING, SYN, 0, 7)) == [
                Frame(PING, ACK, 0, 7)
            ]

    def test_a_reset_after_fin_leaves_the_end_of_file(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, FIN, 1, b"all"), frame(WINDOW, RST, 1))
            assert (stream.read(), stream.read()) == (b"all", b"")

    def test_frames_for_a_stream_that_is_gone_are_ignored(self) -> None:
        with Bare() as peer:
            peer.stream().reset()
            peer.hear()
            late = [
                frame(DATA, 0, 1, b"x" * 5000),
                frame(WINDOW, 0, 1, 9),
                frame(DATA, FIN, 1),
                frame(WINDOW, RST, 1),
            ]
            assert peer.say(*late, frame(PING, SYN, 0, 1)) == [Frame(PING, ACK, 0, 1)]

    def test_though_no_more_than_a_window_at_once(self) -> None:
        with Bare(max_window=INITIAL) as peer:
            peer.stream().reset()
            peer.hear()
            assert not peer.say(frame(DATA, 0, 1, bytes(INITIAL)))
            assert "window" in violation(peer, struct.pack(">BBHII", 0, DATA, 0, 1, INITIAL + 1))

    def test_dropping_the_last_reference_resets(self) -> None:
        with Bare() as peer:
            peer.stream()
            peer.heard.streams.clear()
            gc.collect()
            assert peer.hear() == [Frame(WINDOW, RST, 1, 0)]

    def test_discard_drops_what_comes_and_does_not_reset(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, b"old"))
            stream.close_write()
            stream.discard()
            del stream
            peer.heard.streams.clear()
            gc.collect()
            assert [f.flags for f in peer.say(frame(DATA, 0, 1, bytes(INITIAL - 3)))] == [FIN | ACK]
            assert peer.link.stats.buffered == 0
            assert peer.say(frame(DATA, FIN, 1)) == []
            assert peer.link.stats.streams == 0


class TestFlowControl:
    def test_a_stream_starts_with_256_kib_each_way(self) -> None:
        with Bare(send_high_water=1 << 24) as peer:
            stream = peer.stream()
            assert stream.write(bytes(INITIAL + 1)) == INITIAL
            assert stream.write(b"x") == 0
            assert sum(f.length for f in peer.hear() if f.type == DATA) == INITIAL

    def test_window_updates_let_a_writer_go_on_and_tell_it(self) -> None:
        with Bare(send_high_water=1 << 24) as peer:
            stream = peer.stream()
            stream.write(bytes(INITIAL + 1))
            events: list[int] = []
            stream.on_event = events.append
            peer.hear()
            assert events == []
            peer.say(frame(WINDOW, 0, 1, 5))
            assert events == [2], "one WRITABLE"
            assert stream.write(b"123456") == 5

    def test_a_window_update_may_come_with_the_syn(self) -> None:
        with Bare(send_high_water=1 << 24) as peer:
            peer.say(frame(WINDOW, SYN, 1, 1000))
            assert peer.heard.streams[0].send_window == INITIAL + 1000

    def test_data_up_to_the_window_is_taken_and_one_byte_more_ends_the_connection(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, bytes(INITIAL - 1)), frame(DATA, 0, 1, b"x"))
            assert stream.readable == INITIAL
            assert "window" in violation(peer, frame(DATA, 0, 1, b"y"))

    def test_the_violation_is_seen_in_the_header(self) -> None:
        with Bare() as peer:
            peer.stream()
            assert "window" in violation(peer, struct.pack(">BBHII", 0, DATA, 0, 1, INITIAL + 1))

    def test_a_syn_with_more_than_the_window_ends_the_connection(self) -> None:
        with Bare() as peer:
            assert "window" in violation(peer, struct.pack(">BBHII", 0, DATA, SYN, 1, INITIAL + 1))

    def test_credit_is_given_back_at_half_the_window(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            stream.write(b"a")
            peer.say(frame(DATA, 0, 1, bytes(INITIAL)))
            stream.read(INITIAL // 2 - 1)
            assert peer.hear() == []
            stream.read(1)
            sent = peer.hear()
            assert Frame(WINDOW, 0, 1, INITIAL // 2) in sent
            assert peer.link.stats.buffered == INITIAL // 2

    def test_a_window_beyond_32_bits_ends_the_connection(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(WINDOW, 0, 1, 2**32 - 1 - INITIAL))
            assert stream.send_window == 2**32 - 1
            assert "32 bits" in violation(peer, frame(WINDOW, 0, 1, 1))

    def test_windows_double_while_the_peer_keeps_them_full(self) -> None:
        with Bare(max_window=4 * INITIAL) as peer:
            stream = peer.stream()
            measure(peer, 0.1)
            sizes = [fill(peer, stream) for _ in range(4)]
            assert sizes == [2 * INITIAL, 4 * INITIAL, 4 * INITIAL, 4 * INITIAL], "up to max_window"
            assert peer.link.stats.windows == 4 * INITIAL

    def test_windows_do_not_grow_before_the_round_trip_is_known(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, bytes(INITIAL)))
            drain(stream)
            assert PING in [f.type for f in peer.hear()], "it is measured when it is wanted"
            assert stream.receive_window == INITIAL

    def test_windows_of_all_streams_are_bounded_together(self) -> None:
        with Bare(max_receive=5 * INITIAL) as peer:
            first, second = peer.stream(1), peer.stream(3)
            measure(peer, 0.1)
            assert [fill(peer, first) for _ in range(3)] == [2 * INITIAL, 4 * INITIAL, 4 * INITIAL]
            assert fill(peer, second) == INITIAL
            assert peer.link.stats.windows == 5 * INITIAL
            first.reset()
            assert peer.link.stats.windows == INITIAL

    def test_a_slow_reader_keeps_the_first_window(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            measure(peer, 0.005)
            for _ in range(3):
                time.sleep(0.005 + 4 * peer.link.rtt_ns / 1e9)
                assert fill(peer, stream) == INITIAL


def measure(peer: Bare, seconds: float) -> None:
    """Let the link measure a round trip of about so long."""
    peer.link.ping(lambda _: None)
    (sent,) = peer.hear()
    time.sleep(seconds)
    peer.say(frame(PING, ACK, 0, sent.length))
    assert peer.link.rtt_ns >= seconds * 1e9


def fill(peer: Bare, stream: LinkStream) -> int:
    """Send as much as the window allows and read it; returns the window after that."""
    peer.say(frame(DATA, 0, stream.id, bytes(stream.receive_window)))
    drain(stream)
    peer.hear()
    return stream.receive_window


class TestPing:
    def test_a_ping_is_answered_with_its_value(self) -> None:
        with Bare() as peer:
            assert peer.say(frame(PING, SYN, 0, 0xDEADBEEF)) == [Frame(PING, ACK, 0, 0xDEADBEEF)]

    def test_a_flood_of_pings_is_answered_in_part(self) -> None:
        with Bare() as peer:
            answers = peer.say(*[frame(PING, SYN, 0, i) for i in range(1000)])
            assert 64 <= len(answers) < 100
            assert not peer.link.closed

    def test_our_ping_measures_the_round_trip(self) -> None:
        with Bare() as peer:
            rtts: list[int | None] = []
            peer.link.ping(rtts.append)
            (sent,) = peer.hear()
            assert (sent.type, sent.flags, sent.stream) == (PING, SYN, 0)
            peer.say(
                frame(PING, ACK, 0, sent.length + 99),
                frame(PING, ACK, 0, sent.length),
                frame(PING, ACK, 0, sent.length),
            )
            assert len(rtts) == 1
            assert rtts[0] is not None
            assert 0 < rtts[0] < 1e9
            assert peer.link.rtt_ns == rtts[0]

    def test_eight_pings_may_be_under_way(self) -> None:
        with Bare() as peer:
            rtts: list[int | None] = []
            for _ in range(8):
                peer.link.ping(rtts.append)
            with pytest.raises(ResourceLimit):
                peer.link.ping(rtts.append)
            peer.link.abort()
            run(peer.engine)
            assert rtts == [None] * 8, "the end of the link answers them"


class TestSessionTermination:
    def test_close_says_go_away_normal(self) -> None:
        with Bare() as peer:
            peer.link.close()
            assert peer.hear() == [Frame(GOAWAY, 0, 0, 0)]
            run(peer.engine)
            assert peer.heard.closed == [None]

    def test_close_sends_what_was_written_before_it(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            stream.write(b"last")
            peer.link.close(2)
            assert peer.hear() == [Frame(DATA, ACK, 1, 4, b"last"), Frame(GOAWAY, 0, 0, 2)]
            with pytest.raises(ConnectionClosed):
                stream.read()

    @pytest.mark.parametrize("code", [0, 1, 2, 77])
    def test_a_go_away_is_told_and_ends_opening(self, code: int) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(GOAWAY, 0, 0, code))
            assert peer.heard.goaways == [code]
            with pytest.raises(ConnectionClosed, match="go-away"):
                peer.link.open_stream()
            assert stream.write(b"streams that are open go on") > 0

    def test_every_stream_hears_of_the_end(self) -> None:
        with Bare() as peer:
            stream = peer.stream()
            peer.say(frame(DATA, 0, 1, b"unread"))
            events: list[int] = []
            stream.on_event = events.append
            violation(peer, frame(9, 0, 0))
            assert events[-1] & 4
            assert stream.read() == b"unread", "what came before the end can be read"
            calls: list[Callable[[], object]] = [stream.read, peer.link.open_stream]
            for call in [*calls, lambda: stream.write(b"x")]:
                with pytest.raises(ConnectionClosed, match="unknown type") as caught:
                    call()
                assert isinstance(caught.value.__cause__, ProtocolViolation)
