"""Records of TLS 1.3 (RFC 8446, 5): vectors of RFC 8448, both directions, and all that a peer may send."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare._core.aead import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, Aead
from flare._core.engine import Engine
from flare._core.hkdf import hkdf_expand_label
from flare._core.link import Link, TlsRecords
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    FlareError,
    InvalidKey,
    ProtocolViolation,
    UsageError,
)
from tests.support.mux import SYN, WINDOW, Heard, exchange, frame, run

SUITES = {0x1301: (32, AES_128_GCM, 16), 0x1302: (48, AES_256_GCM, 32), 0x1303: (32, CHACHA20_POLY1305, 32)}
PLAINTEXT = 1 << 14
REKEY = 1 << 23
USELESS = 16
ALERT, HANDSHAKE, DATA = 21, 22, 23
TICKET = b"\x04\x00\x00\x05later"
UPDATE, UPDATE_TOO = b"\x18\x00\x00\x01\x00", b"\x18\x00\x00\x01\x01"

# RFC 8448, 3: the client's application data
SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
RECORD = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a62"
    "92a2977014bd1e3deae63aeebb21694915e4"
)


class Sealer:
    """A peer that seals whatever it likes: records by hand, over one traffic secret."""

    def __init__(self, suite: int, secret: bytes) -> None:
        _, self.kind, self.key_size = SUITES[suite]
        self.secret = secret
        self._key()

    def _key(self) -> None:
        key = hkdf_expand_label(self.secret, b"key", self.key_size)
        self.aead = Aead(key, self.kind, iv=hkdf_expand_label(self.secret, b"iv", 12))

    def update(self) -> None:
        self.secret = hkdf_expand_label(self.secret, b"traffic upd", len(self.secret))
        self._key()

    def record(self, content: int | None, data: bytes, padding: int = 0, *, outer: int = 23) -> bytes:
        inner = data + (b"" if content is None else bytes((content,))) + bytes(padding)
        header = bytes((outer, 3, 3)) + (len(inner) + 16).to_bytes(2, "big")
        return header + self.aead.seal(inner, header)


def secrets(suite: int) -> tuple[bytes, bytes]:
    size = SUITES[suite][0]
    return os.urandom(size), os.urandom(size)


def pair(suite: int = 0x1301, **nonces: int) -> tuple[TlsRecords, TlsRecords]:
    a, b = secrets(suite)
    return TlsRecords(suite, a, b), TlsRecords(suite, b, a)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def victim(engine: Engine, suite: int = 0x1301) -> tuple[Sealer, Link, Heard]:
    """A link whose peer is written by hand."""
    theirs, ours = secrets(suite)
    link = engine.attach_memory(record=TlsRecords(suite, ours, theirs), initiator=False)
    return Sealer(suite, theirs), link, Heard(link)


class TestVectors:
    def test_keys_of_a_secret(self) -> None:
        assert hkdf_expand_label(SECRET, b"key", 16).hex() == "17422dda596ed5d9acd890e3c63f5051"
        assert hkdf_expand_label(SECRET, b"iv", 12).hex() == "5b78923dee08579033e523d9"

    def test_the_client_s_data(self) -> None:
        assert TlsRecords(0x1301, SECRET, bytes(32)).seal(bytes(range(50))) == RECORD
        assert TlsRecords(0x1301, bytes(32), SECRET).open(RECORD) == bytes(range(50))

    @pytest.mark.parametrize("size", [0, 31, 33, 47, 49])
    def test_secrets_of_other_sizes(self, size: int) -> None:
        with pytest.raises(UsageError):
            hkdf_expand_label(bytes(size), b"key", 16)
        with pytest.raises(InvalidKey):
            TlsRecords(0x1301, bytes(size), bytes(32))

    def test_suites_nobody_knows(self) -> None:
        with pytest.raises(UsageError, match="0x1304"):
            TlsRecords(0x1304, bytes(32), bytes(32))


@pytest.mark.parametrize("suite", SUITES)
class TestBothWays:
    @settings(max_examples=30, deadline=None)
    @given(data=st.binary(min_size=1, max_size=300))
    def test_what_is_sealed_is_opened(self, suite: int, data: bytes) -> None:
        a, b = pair(suite)
        for here, there in ((a, b), (b, a), (a, b)):
            assert there.open(here.seal(data)) == data

    def test_a_record_s_size_at_the_limit_and_past_it(self, suite: int) -> None:
        a, b = pair(suite)
        one, two = a.seal(bytes(PLAINTEXT)), a.seal(bytes(PLAINTEXT + 1))
        assert b.size(one[:5]) == len(one) == PLAINTEXT + 22
        assert b.open(one) == bytes(PLAINTEXT)
        size = b.size(two[:5])
        assert (b.open(two[:size]), b.open(two[size:])) == (bytes(PLAINTEXT), b"\0")
        assert b.recv_nonce == a.send_nonce == 3

    def test_megabytes_between_links_however_cut(self, suite: int, engine: Engine) -> None:
        here, there = pair(suite)
        a = engine.attach_memory(record=here, initiator=True)
        b = engine.attach_memory(record=there, initiator=False)
        heard = Heard(b)
        stream = a.open_stream()
        data = os.urandom(200_000)
        assert stream.write(data) == len(data)
        wire, at, step = a.take_output(), 0, 1
        while at < len(wire):
            b.feed(wire[at : at + step])
            at += step
            step = step * 2 % 4099
        run(engine)
        assert heard.streams[0].read(1 << 20) == data

    def test_a_new_key_before_the_old_one_is_used_up(self, suite: int, engine: Engine) -> None:
        x, y = secrets(suite)
        a = engine.attach_memory(record=TlsRecords(suite, x, y, REKEY - 2), initiator=True)
        b = engine.attach_memory(record=TlsRecords(suite, y, x, 0, REKEY - 2), initiator=False)
        heard_a, heard_b = Heard(a), Heard(b)
        near = a.open_stream()
        for turn in range(4):
            near.write(bytes((turn,)) * 70_000)
            exchange(a, b, engine)
            assert heard_b.streams[0].read(1 << 20) == bytes((turn,)) * 70_000
        far = heard_b.streams[0]
        far.write(b"and back")
        exchange(b, a, engine)
        assert near.read() == b"and back"
        assert heard_a.closed == heard_b.closed == []

    def test_keys_that_were_used_before_the_link_took_over(self, suite: int, engine: Engine) -> None:
        here, there = pair(suite)
        assert there.open(here.seal(b"negotiated")) == b"negotiated"
        again = there.unread(b"ated")
        a = engine.attach_memory(record=here, initiator=True)
        with pytest.raises(UsageError, match="serve one link"):
            here.seal(b"more")
        assert there.open(again) == b"ated"
        b = engine.attach_memory(record=there, initiator=False)
        heard = Heard(b)
        stream = a.open_stream()
        stream.write(b"hello")
        exchange(a, b, engine)
        assert heard.streams[0].read() == b"hello"


class TestWhatMayCome:
    """All that is allowed after the handshake besides data."""

    def test_tickets_are_skipped(self, engine: Engine) -> None:
        peer, link, heard = victim(engine)
        link.feed(peer.record(HANDSHAKE, TICKET * 2))
        link.feed(peer.record(HANDSHAKE, TICKET[:3]) + peer.record(HANDSHAKE, TICKET[3:7]))
        link.feed(peer.record(HANDSHAKE, TICKET[7:] + b"\x04\x00\x00\x00"))
        link.feed(peer.record(DATA, frame(WINDOW, SYN, 1)))
        run(engine)
        assert len(heard.streams) == 1

    def test_padding_is_dropped(self, engine: Engine) -> None:
        peer, link, heard = victim(engine)
        link.feed(peer.record(DATA, frame(WINDOW, SYN, 1), 4000))
        link.feed(peer.record(DATA, b"", 17))
        link.feed(peer.record(DATA, frame(WINDOW, SYN, 3), PLAINTEXT - 12))
        run(engine)
        assert len(heard.streams) == 2

    @pytest.mark.parametrize("message", [UPDATE, UPDATE_TOO])
    @pytest.mark.parametrize("pieces", [1, 2, 5])
    def test_a_new_key_of_the_peer_s(self, engine: Engine, message: bytes, pieces: int) -> None:
        peer, link, heard = victim(engine)
        link.feed(peer.record(DATA, frame(WINDOW, SYN, 1)))
        run(engine)
        link.take_output()
        step = -(-len(message) // pieces)
        for at in range(0, len(message), step):
            link.feed(peer.record(HANDSHAKE, message[at : at + step]))
        peer.update()
        link.feed(peer.record(DATA, frame(WINDOW, SYN, 3)))
        run(engine)
        assert len(heard.streams) == 2
        answer = link.take_output()
        assert answer.startswith(b"\x17\x03\x03\x00\x16") == (message == UPDATE_TOO), "asked for, answered"

    def test_our_answer_is_under_the_old_key_and_what_follows_under_the_new(self) -> None:
        a, b = pair()
        x, y = secrets(0x1301)
        peer = Sealer(0x1301, y)
        ours, theirs = TlsRecords(0x1301, x, y), TlsRecords(0x1301, y, x)
        assert ours.open(peer.record(HANDSHAKE, UPDATE_TOO)) == b""
        wire = ours.seal(b"data")
        update, rest = wire[:27], wire[27:]
        assert theirs.open(update) == b""
        assert theirs.open(rest) == b"data"
        assert theirs.recv_nonce == 1, "counted anew under the new key"
        assert a.send_nonce == b.send_nonce == 0

    def test_close_notify_is_the_end(self, engine: Engine) -> None:
        peer, link, heard = victim(engine)
        link.feed(peer.record(ALERT, b"\x01\x5a") + peer.record(ALERT, b"\x01\x00") + b"whatever follows")
        run(engine)
        assert [str(error) for error in heard.closed] == ["the peer closed the connection"]

    def test_a_link_that_closes_says_so(self, engine: Engine) -> None:
        x, y = secrets(0x1301)
        link = engine.attach_memory(record=TlsRecords(0x1301, x, y), initiator=True)
        link.close()
        run(engine)
        wire, peer = link.take_output(), TlsRecords(0x1301, y, x)
        size = peer.size(wire[:5])
        assert peer.open(wire[:size])[1] == 3, "yamux's go-away first"
        with pytest.raises(ConnectionClosed):
            peer.open(wire[size:])

    def test_useless_records_at_the_limit(self, engine: Engine) -> None:
        peer, link, heard = victim(engine)
        for turn in range(3):
            for _ in range(USELESS):
                link.feed(peer.record(HANDSHAKE, TICKET))
            link.feed(peer.record(DATA, frame(WINDOW, SYN, 2 * turn + 1)))
        run(engine)
        assert len(heard.streams) == 3


BAD: dict[str, tuple[list[tuple[int | None, bytes, int]], type[FlareError], str]] = {
    "nothing but padding": ([(None, b"", 20)], ProtocolViolation, "nothing but padding"),
    "too much padding": ([(DATA, b"", PLAINTEXT + 1)], ProtocolViolation, "more than 2"),
    "too much data": ([(DATA, bytes(PLAINTEXT + 1), 0)], ProtocolViolation, "more than 2"),
    "a type nobody knows": ([(24, b"x", 0)], ProtocolViolation, "content type"),
    "change_cipher_spec inside": ([(20, b"\x01", 0)], ProtocolViolation, "content type"),
    "data amid a message": ([(HANDSHAKE, TICKET[:5], 0), (DATA, b"x", 0)], ProtocolViolation, "content type"),
    "an empty handshake record": ([(HANDSHAKE, b"", 0)], ProtocolViolation, "handshake message"),
    "a ClientHello": ([(HANDSHAKE, b"\x01\x00\x00\x00", 0)], ProtocolViolation, "handshake message"),
    "a CertificateRequest": ([(HANDSHAKE, b"\x0d\x00\x00\x00", 0)], ProtocolViolation, "handshake message"),
    "a KeyUpdate of two bytes": (
        [(HANDSHAKE, b"\x18\x00\x00\x02\x00\x00", 0)],
        ProtocolViolation,
        "handshake",
    ),
    "a KeyUpdate of no byte": ([(HANDSHAKE, b"\x18\x00\x00\x00", 0)], ProtocolViolation, "handshake message"),
    "a KeyUpdate that asks for 2": (
        [(HANDSHAKE, b"\x18\x00\x00\x01\x02", 0)],
        ProtocolViolation,
        "handshake",
    ),
    "a KeyUpdate not last": ([(HANDSHAKE, UPDATE + TICKET, 0)], ProtocolViolation, "handshake message"),
    "useless records": ([(HANDSHAKE, TICKET, 0)] * (USELESS + 1), ProtocolViolation, "too many records"),
    "empty records": ([(DATA, b"", 0)] * (USELESS + 1), ProtocolViolation, "too many records"),
    "cancellations": ([(ALERT, b"\x01\x5a", 0)] * (USELESS + 1), ProtocolViolation, "too many records"),
    "an endless ticket": (
        [(HANDSHAKE, b"\x04\xff\xff\xff", 0), *[(HANDSHAKE, bytes(PLAINTEXT), 0)] * USELESS],
        ProtocolViolation,
        "too many records",
    ),
    "an alert": ([(ALERT, b"\x02\x2a", 0)], AuthenticationFailed, "alert 42, bad certificate"),
    "an alert as a warning": ([(ALERT, b"\x01\x28", 0)], AuthenticationFailed, "alert 40"),
    "an alert nobody knows": (
        [(ALERT, b"\x02\xfe", 0)],
        AuthenticationFailed,
        "alert 254, of a kind unknown",
    ),
    "half an alert": ([(ALERT, b"\x02", 0)], ProtocolViolation, "an alert that is none"),
    "two alerts": ([(ALERT, b"\x01\x5a\x01\x5a", 0)], ProtocolViolation, "an alert that is none"),
    "no alert": ([(ALERT, b"", 0)], ProtocolViolation, "an alert that is none"),
}


class TestWhatMayNot:
    @pytest.mark.parametrize("name", BAD)
    def test_each_ends_the_connection_and_is_named(self, name: str, engine: Engine) -> None:
        records, error, words = BAD[name]
        peer, link, heard = victim(engine)
        bystander = victim(engine)
        for content, data, padding in records:
            assert heard.closed == [], "not before the last"
            link.feed(peer.record(content, data, padding))
            run(engine)
        assert len(heard.closed) == 1
        assert type(heard.closed[0]) is error
        assert words in str(heard.closed[0])
        assert bystander[2].closed == []

    @pytest.mark.parametrize("name", BAD)
    def test_before_a_link_it_is_the_same(self, name: str) -> None:
        records, error, words = BAD[name]
        theirs, ours = secrets(0x1301)
        peer, opener = Sealer(0x1301, theirs), TlsRecords(0x1301, ours, theirs)
        sealed = [peer.record(content, data, padding) for content, data, padding in records]

        def read() -> None:
            for record in sealed:
                assert opener.size(record[:5]) == len(record)
                opener.open(record)

        with pytest.raises(error, match=words):
            read()

    @pytest.mark.parametrize(
        ("wire", "error", "words"),
        [
            (b"\x16\x03\x03\x00\x20" + bytes(32), ProtocolViolation, "not encrypted"),
            (b"\x14\x03\x03\x00\x01\x01", ProtocolViolation, "not encrypted"),
            (b"\x15\x03\x03\x00\x02\x02\x28", ProtocolViolation, "not encrypted"),
            (b"GET / HTTP/1.1\r\n", ProtocolViolation, "not encrypted"),
            (b"\x17\x03\x03\x00\x00", AuthenticationFailed, "too short"),
            (b"\x17\x03\x03\x00\x10" + bytes(16), AuthenticationFailed, "too short"),
            (b"\x17\x03\x03\x00\x11" + bytes(17), AuthenticationFailed, "does not verify"),
            (b"\x17\x03\x03\x41\x01", ProtocolViolation, "more than 2"),
            (b"\x17\x03\x03\xff\xff" + bytes(100), ProtocolViolation, "more than 2"),
        ],
    )
    def test_bytes_that_are_no_record(
        self, wire: bytes, error: type[FlareError], words: str, engine: Engine
    ) -> None:
        _, link, heard = victim(engine)
        link.feed(wire)
        run(engine)
        assert type(heard.closed[0]) is error
        assert words in str(heard.closed[0])

    def test_the_largest_record_is_waited_for(self, engine: Engine) -> None:
        _, link, heard = victim(engine)
        link.feed(b"\x17\x03\x03\x41\x00" + bytes(100))
        run(engine)
        assert heard.closed == []

    def test_the_peer_is_told_why(self, engine: Engine) -> None:
        x, y = secrets(0x1301)
        link = engine.attach_memory(record=TlsRecords(0x1301, x, y), initiator=True)
        peer = Sealer(0x1301, y)
        link.feed(peer.record(24, b"x"))
        run(engine)
        with pytest.raises(AuthenticationFailed, match="alert 10, unexpected message"):
            TlsRecords(0x1301, y, x).open(link.take_output())

    def test_a_record_played_again(self, engine: Engine) -> None:
        peer, link, heard = victim(engine)
        record = peer.record(DATA, frame(WINDOW, SYN, 1))
        link.feed(record + record)
        run(engine)
        assert isinstance(heard.closed[0], AuthenticationFailed)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 45), st.integers(1, 255))
    def test_a_byte_that_was_touched(self, at: int, mask: int) -> None:
        engine = Engine()
        peer, link, heard = victim(engine)
        record = bytearray(peer.record(DATA, bytes(frame(WINDOW, SYN, 1)), 12))
        record[at] ^= mask
        link.feed(record)
        run(engine)
        assert heard.streams == []
        assert all(isinstance(error, ProtocolViolation) for error in heard.closed)
        engine.close()
