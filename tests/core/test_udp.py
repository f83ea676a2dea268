"""Datagrams in batches, and whose they are (RFC 9000, 5.2 and 17)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare._core import udp
from flare._core.udp import CID, INITIAL, RAW, RESET, ROUTED, STRAY, VERSION, Datagrams
from flare.errors import UsageError


def bound(family: int = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((host, 0))
    return sock


class Pair:
    """Two sockets on loopback with their batches; `here` receives."""

    def __init__(self, **how: Any) -> None:
        self.sockets = bound(), bound()
        self.here, self.there = (Datagrams(sock.fileno(), **how) for sock in self.sockets)
        self.addr, self.sender = (sock.getsockname() for sock in self.sockets)

    def put(self, *datagrams: bytes) -> None:
        assert self.there.send([(data, self.addr) for data in datagrams]) == len(datagrams)

    def get(self, unsolicited: int = 64) -> list[Any]:
        """All that has come."""
        found: list[Any] = []
        while (batch := self.here.receive(unsolicited)) is not None:
            found += batch
        return found

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(gro=request.param, gso=request.param)
    yield made
    made.close()


def long_header(version: int, cid: bytes, *, first: int = 0xC0, size: int = 1200) -> bytes:
    return (bytes((first,)) + version.to_bytes(4, "big") + bytes((len(cid),)) + cid).ljust(size, b"\0")


MINE = b"8 bytes."


class TestWhose:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"\x40" + MINE + bytes(12), ROUTED),
            (long_header(1, MINE, size=40), ROUTED),
            (long_header(1, MINE, first=0xE0, size=40), ROUTED),
            (long_header(0, MINE, first=0x80, size=40), ROUTED),
            (long_header(1, b"another."), INITIAL),
            (long_header(1, b"12345678901234567890"), INITIAL),
            (long_header(2, b"another."), VERSION),
            (b"\x40" + b"another." + bytes(13), STRAY),
            (b"\x40" + b"another." + bytes(91) + b"token of 16 byte", RESET),
            (b"\x00" + b"another." + bytes(91) + b"token of 16 byte", RESET),
        ],
    )
    def test_what_is_somebodys(self, pair: Pair, data: bytes, kind: int) -> None:
        pair.here.routes[MINE] = "owner"
        pair.here.tokens[b"token of 16 byte"] = "teller"
        pair.put(data)
        ((found, owner, got, remote),) = pair.get()
        assert (found, got, remote) == (kind, data, pair.sender)
        assert owner == {ROUTED: "owner", RESET: "teller"}.get(kind)
        assert pair.here.dropped == 0

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "empty"),
            (b"\x40" + MINE + bytes(11), "a packet has 21 bytes at least"),
            (b"\x00" + b"another." + bytes(40), "the fixed bit is 0"),
            (b"\x40" + b"another." + bytes(12), "too short to be answered by a reset"),
            (long_header(1, b"another.", size=1199), "an Initial fills 1200 bytes"),
            (long_header(1, b"another.", first=0x80), "an Initial without the fixed bit"),
            (long_header(1, b"another.", first=0xD0), "0-RTT"),
            (long_header(1, b"another.", first=0xE0), "Handshake"),
            (long_header(1, b"another.", first=0xF0), "Retry"),
            (long_header(1, b"7 bytes"), "a client's first id has 8 bytes at least"),
            (long_header(1, b"21 bytes, one too many"[:21]), "an id has 20 bytes at most"),
            (long_header(0, b"another."), "version negotiation for nobody"),
            (long_header(2, b"another.", size=1199), "another version, too short to be answered"),
            (b"\xc0\0\0\0\x01\x14" + bytes(16), "an id that does not fit in"),
        ],
    )
    def test_what_is_nobodys(self, pair: Pair, data: bytes, why: str) -> None:
        pair.here.routes[MINE] = "owner"
        pair.put(data)
        assert pair.get() == [], why

    def test_what_is_expected_from_a_host_is_raw(self, pair: Pair) -> None:
        pair.here.expected["127.0.0.1"] = "puncher"
        pair.here.routes[MINE] = "owner"
        noise, stray = b"\x01 short", b"\x40" + bytes(63)
        pair.put(noise, stray, b"\x40" + MINE + bytes(20), long_header(1, b"another."))
        assert [(kind, owner) for kind, owner, _, _ in pair.get()] == [
            (RAW, "puncher"),
            (RAW, "puncher"),
            (ROUTED, "owner"),
            (INITIAL, None),
        ]
        del pair.here.expected["127.0.0.1"]
        pair.put(noise)
        assert pair.get() == []

    def test_only_so_much_unsolicited_in_a_batch(self, pair: Pair) -> None:
        pair.here.routes[MINE] = "owner"
        pair.put(*[b"\x40" + bytes(30)] * 6, b"\x40" + MINE + bytes(30))
        found = pair.get(unsolicited=5)
        assert [kind for kind, *_ in found] == [STRAY] * 5 + [ROUTED]
        assert pair.here.dropped == 1

    @given(st.binary(max_size=1500))
    def test_any_bytes(self, data: bytes) -> None:
        """What is reported is what came, and as what it says of itself."""
        pair = Pair()
        try:
            pair.here.routes[MINE] = "owner"
            pair.put(data)
            for kind, owner, got, _ in pair.get():
                assert got == data
                assert (owner == "owner") == (kind == ROUTED)
                assert kind != INITIAL or (len(data) >= 1200 and data[1:5] == b"\0\0\0\1")
                assert kind != VERSION or (len(data) >= 1200 and data[0] & 0x80)
        finally:
            pair.close()


class TestBatches:
    def test_many_at_once_in_order(self, pair: Pair) -> None:
        pair.here.routes[MINE] = "owner"
        sent = [b"\x40" + MINE + at.to_bytes(2, "big") + os.urandom(200 + at % 3) for at in range(1000)]
        for at in range(0, 1000, 100):
            pair.put(*sent[at : at + 100])
        assert [data for _, _, data, _ in pair.get()] == sent
        assert (pair.here.received, pair.there.sent) == (1000, 1000)

    def test_segments_of_one_size_and_a_shorter_last_one(self, pair: Pair) -> None:
        pair.here.routes[MINE] = "owner"
        sent = [b"\x40" + MINE + os.urandom(size) for size in (1200, 1200, 700, 1200, 1200, 1201, 40)]
        pair.put(*sent)
        assert [data for _, _, data, _ in pair.get()] == sent

    def test_to_several_at_once(self) -> None:
        sockets = [bound() for _ in range(3)]
        try:
            first, *others = (Datagrams(sock.fileno()) for sock in sockets)
            for other in others:
                other.routes[MINE] = "owner"
            to = [sock.getsockname() for sock in sockets[1:]]
            data = b"\x40" + MINE + bytes(100)
            assert first.send([(data, to[at % 2]) for at in range(20)]) == 20
            assert [len(other.receive() or []) for other in others] == [10, 10]
        finally:
            for sock in sockets:
                sock.close()

    def test_one_that_cannot_be_sent_is_passed_over(self, pair: Pair) -> None:
        pair.here.routes[MINE] = "owner"
        good = b"\x40" + MINE + bytes(100)
        batch = [(good, pair.addr), (bytes(70_000), pair.addr), (good, ("127.0.0.1", 0)), (good, pair.addr)]
        assert pair.there.send(batch) == 4
        assert len(pair.get()) == 2
        assert (pair.there.sent, pair.there.unsendable) == (2, 2)

    def test_from_a_place_in_the_list(self, pair: Pair) -> None:
        pair.here.routes[MINE] = "owner"
        batch = [(b"\x40" + MINE + bytes((at,) * 20), pair.addr) for at in range(5)]
        assert pair.there.send(batch, 3) == 5
        assert [data[-1] for _, _, data, _ in pair.get()] == [3, 4]

    def test_a_socket_without_room_says_where_it_stopped(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with near, far:
            near.setblocking(False)
            datagrams = Datagrams(near.fileno(), gso=False)
            # a connected unix socket refuses an address: what matters is that nothing is counted as sent
            assert datagrams.send([(b"x", ("127.0.0.1", 1))]) == 1
            assert (datagrams.sent, datagrams.unsendable) == (0, 1)

    def test_nothing_there_and_a_closed_socket(self) -> None:
        sock = bound()
        datagrams = Datagrams(sock.fileno())
        assert datagrams.receive() is None
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            datagrams.receive()

    @pytest.mark.parametrize("host", ["example.com", "", "1.2.3", "1.2.3.4%1", ":::", "1" * 100])
    def test_a_host_that_is_no_address(self, pair: Pair, host: str) -> None:
        with pytest.raises(UsageError, match="is no IP address"):
            pair.there.send([(b"x", (host, 1))])
        with pytest.raises(UsageError):
            udp.address(host, 1)


class TestAddresses:
    @pytest.mark.parametrize(
        ("host", "named"),
        [("127.0.0.1", "127.0.0.1"), ("0::1", "::1"), ("2600:0::1", "2600::1"), ("fe80::1%1", "fe80::1%1")],
    )
    def test_a_name_is_as_receive_gives_it(self, host: str, named: str) -> None:
        assert udp.address(host, 7) == (named, 7)

    @pytest.mark.parametrize("port", [-1, 65_536])
    def test_ports_past_the_limits(self, port: int) -> None:
        with pytest.raises(UsageError):
            udp.address("127.0.0.1", port)
        assert udp.address("127.0.0.1", 65_535)[1] == 65_535

    def test_ipv6(self) -> None:
        with bound(socket.AF_INET6, "::1") as here, bound(socket.AF_INET6, "::1") as there:
            a, b = Datagrams(here.fileno()), Datagrams(there.fileno())
            a.routes[MINE] = "owner"
            b.send([(b"\x40" + MINE + bytes(20), udp.address("::1", here.getsockname()[1]))])
            ((_, _, _, remote),) = a.receive() or []
            assert remote == ("::1", there.getsockname()[1])

    @pytest.mark.parametrize(
        ("family", "wildcard", "dialled"),
        [(socket.AF_INET, "0.0.0.0", "127.0.0.9"), (socket.AF_INET6, "::", "::1")],
    )
    def test_a_wildcard_answers_from_where_it_was_asked(
        self, family: int, wildcard: str, dialled: str
    ) -> None:
        with bound(family, wildcard) as here, bound(family, wildcard) as there:
            a, b = Datagrams(here.fileno()), Datagrams(there.fileno())
            a.routes[MINE] = b.routes[MINE] = "owner"
            data = b"\x40" + MINE + bytes(20)
            b.send([(data, (dialled, here.getsockname()[1]))])
            ((_, _, _, remote),) = a.receive() or []
            assert remote[2:] == (dialled,)
            a.send([(data, remote)] * 3)
            answers = b.receive() or []
            assert [answer[3][:2] for answer in answers] == [(dialled, here.getsockname()[1])] * 3


def test_garbage_costs_little() -> None:
    """No bound on time: the figure is benchmarks/quic.py's. Here, that nothing of it stays."""
    pair = Pair()
    try:
        start = time.perf_counter()
        for _ in range(20):
            pair.put(*[os.urandom(64) for _ in range(200)])
            pair.get(unsolicited=0)
        assert pair.here.received == pair.here.dropped > 0
        assert time.perf_counter() > start
    finally:
        pair.close()


def test_the_length_of_an_id_is_the_engines() -> None:
    from flare.transport import quic_aioquic

    assert quic_aioquic.CID == CID
