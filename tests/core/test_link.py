"""Links on real socket pairs and in memory: records, reading and writing, back-pressure, keepalive, how a
link ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core.aead import Aead
from flare._core.engine import Engine
from flare._core.link import CLOSED, READABLE, WRITABLE, Link, LinkStream, NoiseRecords, PlainRecords
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    InvalidKey,
    StreamClosed,
    StreamReset,
    UsageError,
)
from tests.support.mux import (
    ACK,
    DATA,
    FIN,
    PING,
    SYN,
    WINDOW,
    Bare,
    Heard,
    Limits,
    Pair,
    drain,
    exchange,
    frame,
    frames,
    new_engine,
    noise_keys,
    run,
)

DRIVEN = ("calls", "threads")


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = new_engine()
    yield made
    made.close()


class NoisePeer:
    """A memory link with Noise records, and the other end's cipher states in the test's hands."""

    def __init__(self, engine: Engine) -> None:
        sending, receiving = os.urandom(32), os.urandom(32)
        self.engine = engine
        self.link = engine.attach_memory(
            record=NoiseRecords(sending, receiving), initiator=False, limits=Limits(keepalive=0.0)
        )
        self.heard = Heard(self.link)
        self.seal_state, self.open_state = Aead(receiving), Aead(sending)

    def seal(self, plaintext: bytes) -> bytes:
        sealed = self.seal_state.seal(plaintext)
        return struct.pack(">H", len(sealed)) + sealed

    def say(self, *records: bytes) -> None:
        for record in records:
            self.link.feed(record)
        run(self.engine)

    def records(self) -> list[bytes]:
        """Plaintexts of the records that the link sent."""
        data, found = self.link.take_output(), []
        while data:
            (size,) = struct.unpack_from(">H", data)
            found.append(self.open_state.open(data[2 : 2 + size]))
            data = data[2 + size :]
        return found


class TestNoiseRecords:
    @pytest.mark.passes
    def test_frames_of_one_pass_share_a_record(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        peer.say(peer.seal(frame(WINDOW, SYN, 1) + frame(WINDOW, SYN, 3)))
        for part in (b"one", b"two", b"three"):
            peer.heard.streams[0].write(part)
        peer.heard.streams[1].write(b"other")
        run(engine)
        (record,) = peer.records()
        assert [(f.stream, f.payload) for f in frames(record)] == [(1, b"onetwothree"), (3, b"other")]

    def test_frames_may_cross_records_anywhere(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        wire = frame(DATA, SYN, 1, b"some payload") + frame(DATA, FIN, 1, b"!")
        peer.say(*[peer.seal(wire[i : i + 1]) for i in range(len(wire))])
        assert drain(peer.heard.streams[0]) == b"some payload!"

    @given(
        st.lists(st.binary(max_size=300), min_size=1, max_size=5),
        st.lists(st.integers(1, 700), max_size=30),
    )
    def test_records_may_be_cut_anywhere(self, payloads: list[bytes], sizes: list[int]) -> None:
        engine = new_engine()
        peer = NoisePeer(engine)
        wire = peer.seal(frame(WINDOW, SYN, 1)) + b"".join(peer.seal(frame(DATA, 0, 1, p)) for p in payloads)
        while wire:
            size = sizes.pop() if sizes else len(wire)
            peer.say(wire[:size])
            wire = wire[size:]
        assert drain(peer.heard.streams[0]) == b"".join(payloads)
        engine.close()

    def test_the_largest_record_is_filled_and_not_exceeded(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        peer.say(peer.seal(frame(WINDOW, SYN, 1)))
        assert peer.heard.streams[0].write(bytes(200_000)) == 200_000
        run(engine)
        records = peer.records()
        assert [len(r) for r in records[:-1]] == [65519] * 3
        assert sum(len(f.payload) for r in records for f in frames(r)) == 200_000

    def test_a_full_size_record_is_read(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        peer.say(peer.seal(frame(DATA, SYN, 1, bytes(65519 - 12))))
        assert peer.heard.streams[0].readable == 65519 - 12

    def test_an_empty_record_is_nothing(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        peer.say(peer.seal(b""), peer.seal(frame(WINDOW, SYN, 1)))
        assert len(peer.heard.streams) == 1

    @pytest.mark.parametrize("size", [0, 1, 15])
    def test_a_record_without_room_for_a_tag_ends_the_link(self, engine: Engine, size: int) -> None:
        peer = NoisePeer(engine)
        peer.say(struct.pack(">H", size) + bytes(size))
        (error,) = peer.heard.closed
        assert isinstance(error, AuthenticationFailed)

    @given(st.binary(min_size=1, max_size=60), st.data())
    def test_one_flipped_bit_ends_the_link(self, payload: bytes, data: st.DataObject) -> None:
        engine = new_engine()
        peer = NoisePeer(engine)
        record = bytearray(peer.seal(frame(DATA, SYN, 1, payload)))
        record[data.draw(st.integers(2, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        peer.say(bytes(record))
        assert isinstance(peer.heard.closed[0], AuthenticationFailed)
        assert peer.heard.streams == [], "nothing of it was parsed"
        engine.close()

    def test_a_replayed_record_ends_the_link(self, engine: Engine) -> None:
        peer = NoisePeer(engine)
        record = peer.seal(frame(PING, SYN, 0, 1))
        peer.say(record, record)
        assert isinstance(peer.heard.closed[0], AuthenticationFailed)

    def test_nonces_go_on_where_the_handshake_stopped(self, engine: Engine) -> None:
        a, b = os.urandom(32), os.urandom(32)
        near = engine.attach_memory(record=NoiseRecords(a, b, 3, 5), initiator=True)
        far = engine.attach_memory(record=NoiseRecords(b, a, 5, 3), initiator=False)
        heard = Heard(far)
        stream = near.open_stream()
        stream.write(b"x")
        exchange(near, far, engine)
        assert len(heard.streams) == 1

    def test_the_last_nonce_is_never_used(self, engine: Engine) -> None:
        a, b = os.urandom(32), os.urandom(32)
        link = engine.attach_memory(record=NoiseRecords(a, b, 2**64 - 2), initiator=True)
        heard = Heard(link)
        stream = link.open_stream()
        sent = b""
        for _ in range(2):  # a thread may send the opening in a record of its own
            with contextlib.suppress(ConnectionClosed, StreamReset):
                stream.write(b"x")
            run(engine)
            sent += link.take_output()
        assert "nonces" in str(heard.closed[0])
        # one record, and none when the thread had closed the link before anybody took it
        assert not sent or len(sent) == 2 + int.from_bytes(sent[:2], "big")

    def test_keys_serve_one_link(self, engine: Engine) -> None:
        keys = NoiseRecords(bytes(32), bytes(32))
        engine.attach_memory(record=keys, initiator=True)
        with pytest.raises(UsageError, match="nonces"):
            engine.attach_memory(record=keys, initiator=True)
        near, _far = socket.socketpair()
        fd = near.detach()
        with _far, pytest.raises(UsageError, match="nonces"):
            engine.attach(fd, record=keys, initiator=True)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_keys_have_32_bytes(self, size: int) -> None:
        with pytest.raises(InvalidKey):
            NoiseRecords(bytes(size), bytes(32))
        with pytest.raises(InvalidKey):
            NoiseRecords(bytes(32), bytes(size))


class TestReading:
    def test_nothing_yet_is_none_and_the_end_is_empty(self, engine: Engine) -> None:
        pair = Pair(engine)
        near, far = pair.open()
        assert far.read() is None
        near.write(b"abc")
        near.close_write()
        run(engine)
        assert (far.read(2), far.read(2), far.read(2)) == (b"ab", b"c", b"")

    def test_read_wants_at_least_one_byte(self, engine: Engine) -> None:
        near, _far = Pair(engine).open()
        for n in (0, -1):
            with pytest.raises(UsageError):
                near.read(n)

    def test_events_come_after_the_pass_and_once_per_pass(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        events: list[int] = []
        far.on_event = events.append
        near.write(b"abc")
        near.write(b"def")
        assert events == []
        run(engine)
        assert events == [READABLE]
        near.reset()
        run(engine)
        assert events == [READABLE, CLOSED]

    def test_leftover_of_the_handshake_comes_first(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        wire = frame(DATA, SYN, 1, b"left") + frame(DATA, 0, 1, b"over")
        link = engine.attach(y.detach(), record=PlainRecords(), initiator=False, leftover=wire[:20])
        heard = Heard(link)
        with x:
            x.sendall(wire[20:])
            run(engine)
            assert drain(heard.streams[0]) == b"leftover"


class TestFrames:
    def test_one_frame_and_nothing_behind_it(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        near.write(b"\x03abc\x00rest")
        run(engine)
        assert far.read_frame(3) == b"abc"
        assert far.read_frame(3) == b""
        assert far.read() == b"rest"

    @given(st.binary(max_size=400), st.integers(1, 8))
    def test_whole_or_not_at_all(self, payload: bytes, step: int) -> None:
        from flare._core.wire import frame as delimited

        with Bare() as peer:
            stream = peer.stream()
            wire = delimited(payload)
            for i in range(0, len(wire), step):
                assert stream.read_frame(400) is None
                peer.say(frame(DATA, 0, 1, wire[i : i + step]))
            assert stream.read_frame(400) == payload
            assert stream.readable == 0

    def test_at_the_limit_and_one_past_it(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        near.write(b"\x80\x20" + bytes(4096))
        run(engine)
        with pytest.raises(FrameTooLarge) as caught:
            far.read_frame(4095)
        assert (caught.value.size, caught.value.limit) == (4096, 4095)
        assert far.read_frame(4096) == bytes(4096)

    def test_too_large_is_known_from_the_prefix(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        near.write(b"\xff\xff")
        run(engine)
        with pytest.raises(FrameTooLarge):
            far.read_frame(4096)

    @pytest.mark.parametrize("prefix", [b"\x80\x00", b"\x83\x80\x00", b"\x80" * 9])
    def test_a_prefix_that_is_no_uvarint(self, engine: Engine, prefix: bytes) -> None:
        near, far = Pair(engine).open()
        near.write(prefix)
        run(engine)
        with pytest.raises(DecodeError):
            far.read_frame(4096)

    @pytest.mark.parametrize("cut", [0, 1, 3])
    def test_the_end_within_a_frame(self, engine: Engine, cut: int) -> None:
        near, far = Pair(engine).open()
        near.write(b"\x03abc"[:cut])
        near.close_write()
        run(engine)
        with pytest.raises(StreamClosed, match="within" if cut else "before"):
            far.read_frame(10)

    def test_the_largest_frame_fits_into_what_is_left_of_a_window(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        for limit in (0, 128 * 1024 - 8):
            with pytest.raises(UsageError):
                far.read_frame(limit)
        largest = 128 * 1024 - 9
        near.write(bytes(128 * 1024 - 6))
        run(engine)
        drain(far)
        wire = b"\xf7\xff\x07" + bytes(largest)
        for _ in range(10):
            wire = wire[near.write(wire) :]
            run(engine)
        assert far.read_frame(largest) == bytes(largest)


class TestKeepalive:
    def test_a_silent_peer_is_given_up(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        link = engine.attach(
            y.detach(),
            record=PlainRecords(),
            initiator=False,
            limits=Limits(keepalive=0.02, keepalive_timeout=0.03),
        )
        heard = Heard(link)
        start = time.monotonic()
        with x:
            while not heard.closed and time.monotonic() < start + 5:
                engine.run_pass(1_000_000_000)
            elapsed = time.monotonic() - start
            assert "keepalive" in str(heard.closed[0])
            assert 0.05 <= elapsed < 1
            assert frames(x.recv(100)) == [(PING, SYN, 0, 1, b"")]

    def test_a_peer_that_answers_stays(self, engine: Engine) -> None:
        pair = Pair(engine, keepalive=0.01, keepalive_timeout=0.02)
        end = time.monotonic() + 0.2
        while time.monotonic() < end or (pair.a.rtt_ns == 0 and time.monotonic() < end + 5):
            engine.run_pass(5_000_000)
        assert not pair.heard_a.closed
        assert not pair.heard_b.closed
        assert pair.a.rtt_ns > 0

    def test_a_pong_that_waited_in_the_socket_counts(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        link = engine.attach(
            y.detach(),
            record=PlainRecords(),
            initiator=False,
            limits=Limits(keepalive=0.02, keepalive_timeout=0.3),
        )
        heard = Heard(link)
        with x:
            time.sleep(0.03)
            run(engine)
            assert frames(x.recv(100)) == [(PING, SYN, 0, 1, b"")]
            x.sendall(frame(PING, ACK, 0, 1))
            time.sleep(0.35)
            run(engine)
            assert not link.closed
            assert not heard.closed
            assert link.rtt_ns > 0

    def test_none_when_it_is_off(self, engine: Engine) -> None:
        with Bare(keepalive=0.0) as peer:
            time.sleep(0.02)
            assert peer.hear() == []


class TestTheEnd:
    def test_close_tells_the_peer_and_both_hear(self, engine: Engine) -> None:
        pair = Pair(engine)
        near, far = pair.open()
        near.write(b"last words")
        pair.a.close()
        run(engine, passes=5)
        assert pair.heard_a.closed == [None]
        assert isinstance(pair.heard_b.closed[0], ConnectionClosed)
        assert pair.heard_b.goaways == [0]
        assert far.read() == b"last words"
        with pytest.raises(ConnectionClosed):
            far.read()
        assert engine.links == set()

    def test_close_waits_five_seconds_at_most_for_a_stuck_peer(self, engine: Engine) -> None:
        """The timer is set; it is the peer's silence that this does not wait for."""
        x, y = socket.socketpair()
        with x:
            link = engine.attach(
                y.detach(), record=PlainRecords(), initiator=True, limits=Limits(keepalive=0.0)
            )
            heard = Heard(link)
            link.close()
            run(engine)
            assert not heard.closed
            assert x.recv(100) == frame(3, 0, 0, 0)
            assert x.recv(100) == b"", "we are done sending"
            x.close()
            run(engine)
            assert heard.closed == [None]

    def test_abort_gives_its_reason(self, engine: Engine) -> None:
        pair = Pair(engine)
        near, far = pair.open()
        reason = RuntimeError("because")
        pair.a.abort(reason)
        pair.a.abort("again")
        run(engine)
        assert pair.heard_a.closed == [reason]
        with pytest.raises(ConnectionClosed, match="because"):
            near.write(b"x")
        with pytest.raises(ConnectionClosed, match="peer closed"):
            far.write(b"x")

    def test_end_of_file_within_a_record_says_so(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        link = engine.attach(y.detach(), record=noise_keys()[0], initiator=False)
        heard = Heard(link)
        x.sendall(b"\x40\x00abc")
        x.close()
        run(engine)
        assert "middle of a frame" in str(heard.closed[0])

    def test_a_reset_connection_names_the_errno(self, engine: Engine) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        link = engine.attach(server.detach(), record=PlainRecords(), initiator=False)
        assert link.peername == client.getsockname()
        heard = Heard(link)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        listener.close()
        run(engine)
        (error,) = heard.closed
        assert isinstance(error, ConnectionClosed)
        assert error.errno == 104

    def test_an_inbound_stream_and_the_end_in_one_pass(self, engine: Engine) -> None:
        x, y = socket.socketpair()
        link = engine.attach(y.detach(), record=PlainRecords(), initiator=False)
        order: list[str] = []
        held: list[LinkStream] = []

        def on_stream(stream: LinkStream) -> None:
            held.append(stream)
            order.append("stream")

        link.on_stream = on_stream
        link.on_close = lambda _: order.append("close")
        x.sendall(frame(DATA, SYN | FIN, 1, b"all of it"))
        x.close()
        run(engine)
        assert order == ["stream", "close"]
        assert (held[0].read(), held[0].read()) == (b"all of it", b"")


class TestMemoryLinks:
    def test_two_of_them_talk(self, engine: Engine) -> None:
        ka, kb = noise_keys()
        a = engine.attach_memory(record=ka, initiator=True)
        b = engine.attach_memory(record=kb, initiator=False)
        outputs: list[None] = []
        a.on_output = outputs.append
        heard = Heard(b)
        stream = a.open_stream()
        stream.write(b"through memory")
        run(engine)
        assert outputs
        exchange(a, b, engine)
        assert heard.streams[0].read() == b"through memory"

    @pytest.mark.passes
    def test_output_that_nobody_takes_holds_the_writers(self, engine: Engine) -> None:
        link = engine.attach_memory(
            record=PlainRecords(), initiator=True, limits=Limits(send_high_water=64 * 1024)
        )
        stream = link.open_stream()
        events: list[int] = []
        stream.on_event = events.append
        assert stream.write(bytes(100_000)) == 16 * 1024 + 2 * 1024
        run(engine)
        assert events == []
        assert len(link.take_output()) == 16 * 1024 + 2 * 1024 + 12
        run(engine)
        assert events == [WRITABLE]

    def test_close_ends_when_the_output_is_taken(self, engine: Engine) -> None:
        link = engine.attach_memory(record=PlainRecords(), initiator=True)
        heard = Heard(link)
        link.close()
        run(engine)
        assert heard.closed == []
        link.take_output()
        run(engine)
        assert heard.closed == [None]

    def test_feed_and_take_output_are_for_memory_links(self, engine: Engine) -> None:
        pair = Pair(engine)
        with pytest.raises(UsageError):
            pair.a.feed(b"x")
        with pytest.raises(UsageError):
            pair.a.take_output()

    def test_nothing_unsealed_comes_out_of_a_dead_link(self, engine: Engine) -> None:
        link = engine.attach_memory(record=noise_keys()[0], initiator=True)
        link.open_stream().write(b"secret secret secret")
        link.abort()
        assert b"secret" not in link.take_output()
        link.feed(b"late")
        run(engine)


class TestMisuse:
    def test_wrappers_are_made_by_the_engine(self) -> None:
        for cls in (Link, LinkStream):
            with pytest.raises(TypeError):
                cls()
        with pytest.raises(UsageError):
            Link.__new__(Link).open_stream()
        with pytest.raises(UsageError):
            LinkStream.__new__(LinkStream).read()

    def test_after_a_local_reset(self, engine: Engine) -> None:
        near, far = Pair(engine).open()
        far.close_write()
        run(engine)
        near.reset()
        with pytest.raises(StreamReset):
            near.read()
        with pytest.raises(StreamReset):
            near.write(b"x")
        near.close_write()
        run(engine)

    def test_reprs_say_what_it_is(self, engine: Engine) -> None:
        pair = Pair(engine)
        near, far = pair.open()
        assert "open" in repr(pair.a)
        assert repr(near) == "<LinkStream 1 outbound>"
        assert repr(far) == "<LinkStream 1 inbound>"
