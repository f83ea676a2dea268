"""The shared UDP socket: drained, then flushed once, in few system calls (RFC 9000, 5.2 and 14)."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from flare._core.udp import Datagrams
from flare.transport import udp
from flare.transport.quic_engine import Address
from flare.transport.udp import MAX_PENDING, UdpSocket, udp_socket
from tests.support.aio import aio, eventually

HERE = ip_address("127.0.0.1")
MINE = b"8 bytes."
linux = pytest.mark.skipif(sys.platform != "linux", reason="how Linux does it")


class Session:
    """What the socket knows of a QuicSession: it answers each datagram with one when it is asked."""

    def __init__(self, sock: UdpSocket) -> None:
        self.sock = sock
        self.flushes: list[int] = []
        self._answers: list[tuple[bytes, Address]] = []
        sock.routes[MINE] = self

    def receive(self, datagrams: Sequence[bytes], remote: Address, now: float) -> None:
        self._answers += [(data, remote) for data in datagrams]

    def collect(self, now: float) -> list[tuple[bytes, Address]]:
        made, self._answers = self._answers, []
        self.flushes.append(len(made))
        return made


def peer(sock: UdpSocket) -> socket.socket:
    made = udp_socket(HERE, 0)
    made.connect(("127.0.0.1", sock.port))
    return made


@linux
def test_gso_leaves_in_one_message_and_gro_reads_it_as_one() -> None:
    """Without either, 20 datagrams are 20 messages to the kernel, each with its own way through it."""
    with udp_socket(HERE, 0) as here, udp_socket(HERE, 0) as there:
        here.setsockopt(socket.SOL_UDP, 104, 1)  # UDP_GRO
        out = Datagrams(there.fileno())
        assert out.send([(bytes(1200), here.getsockname())] * 20) == 20
        assert out.gso, "the kernel took it"
        data, control, _, _ = here.recvmsg(65_536, 64)
        assert len(data) == 20 * 1200
        ((level, kind, value),) = control
        assert (level, kind, struct.unpack("i", value[:4])[0]) == (socket.SOL_UDP, 104, 1200)


@linux
@pytest.mark.parametrize(("gro", "datagrams"), [(True, 16 * 54), (False, 64)])
def test_how_many_come_in_one_call(gro: bool, datagrams: int) -> None:
    """64 messages in a call without GRO; with it 16, of 64 KiB each (54 datagrams of 1200 bytes)."""
    with udp_socket(HERE, 0) as here, udp_socket(HERE, 0) as there:
        here.setsockopt(socket.SOL_SOCKET, udp._RCVBUFFORCE if _is_root() else socket.SO_RCVBUF, 8 << 20)
        box, out = Datagrams(here.fileno(), gro=gro), Datagrams(there.fileno())
        assert box.gro == gro
        box.routes[MINE] = "owner"
        data = b"\x40" + MINE + bytes(1191)
        for _ in range(20):
            assert out.send([(data, here.getsockname())] * 54) == 54
        assert len(box.receive() or ()) == datagrams


def _is_root() -> bool:
    import os

    return os.geteuid() == 0


@aio
async def test_a_wake_up_drains_the_socket_and_then_flushes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = UdpSocket(udp_socket(HERE, 0))
    session = Session(sock)
    sends: list[int] = []
    send = sock.send
    monkeypatch.setattr(sock, "send", lambda out: (sends.append(len(out)), send(out)))
    try:
        with peer(sock) as there:
            for at in range(250):  # before the loop looks: several batches in one wake-up
                there.send(b"\x40" + MINE + at.to_bytes(2, "big") + bytes(100 + at % 2))
            await eventually(lambda: sum(session.flushes) == 250)
            assert session.flushes == [250]
            assert sends == [250]
    finally:
        sock.close()


@aio
async def test_sessions_that_have_something_to_send_share_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = UdpSocket(udp_socket(HERE, 0))
    sends: list[int] = []
    monkeypatch.setattr(sock, "send", lambda out: sends.append(len(out)))
    try:
        sessions = [Session(sock) for _ in range(5)]
        for session in sessions:
            session.receive([b"x"], ("127.0.0.1", 9), 0.0)
            sock.flush_soon(session)  # type: ignore[arg-type]
            sock.flush_soon(session)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sends == [5]
        assert [session.flushes for session in sessions] == [[1]] * 5
    finally:
        sock.close()


class Full:
    """Datagrams of a socket that has room for `room` more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[bytes] = []

    def send(self, datagrams: list[tuple[bytes, Address]], first: int = 0) -> int:
        taken = datagrams[: self.room]
        self.sent += [data for data, _ in taken]
        self.room -= len(taken)
        return len(taken)


@aio
async def test_a_full_socket_keeps_so_much_and_no_more() -> None:
    sock = UdpSocket(udp_socket(HERE, 0))
    full: Any = Full(10)
    sock.datagrams = full
    there: Address = ("127.0.0.1", 9)
    try:
        sock.send([(at.to_bytes(4, "big"), there) for at in range(10 + MAX_PENDING - 1)])
        assert len(full.sent) == 10
        assert len(sock._pending) == MAX_PENDING - 1
        sock.send([(b"the last", there)])
        sock.send([(b"one past it", there)])
        assert len(sock._pending) == MAX_PENDING
        full.room = 1 << 30
        await eventually(lambda: not sock._pending)
        assert full.sent[-1] == b"the last"
        assert full.sent[:-1] == [at.to_bytes(4, "big") for at in range(10 + MAX_PENDING - 1)]
    finally:
        sock.close()


@aio
async def test_while_it_is_full_sessions_wait() -> None:
    sock = UdpSocket(udp_socket(HERE, 0))
    full: Any = Full(0)
    sock.datagrams = full
    session = Session(sock)
    try:
        sock.send([(b"first", ("127.0.0.1", 9))])
        session.receive([b"second"], ("127.0.0.1", 9), 0.0)
        sock.flush_soon(session)  # type: ignore[arg-type]
        assert session.flushes == []
        full.room = 5
        await eventually(lambda: full.sent == [b"first", b"second"])
    finally:
        sock.close()


@aio
async def test_an_error_on_receiving_pauses_and_is_no_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "RECEIVE_PAUSE", 0.05)
    sock = UdpSocket(udp_socket(HERE, 0))
    calls = 0
    real = sock.datagrams

    class Broken:
        def receive(self) -> Any:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError(errno.ENOBUFS, "no buffers")
            return real.receive()

        def send(self, datagrams: Any) -> int:
            return real.send(datagrams)

    broken: Any = Broken()
    sock.datagrams = broken
    session = Session(sock)
    try:
        with peer(sock) as there:
            there.send(b"\x40" + MINE + bytes(30))
            await eventually(lambda: session.flushes == [1])
            assert 3 <= calls < 10
    finally:
        sock.close()


@linux
@pytest.mark.parametrize(
    ("host", "level", "option"), [("127.0.0.1", socket.IPPROTO_IP, 10), ("::1", socket.IPPROTO_IPV6, 23)]
)
def test_datagrams_are_never_fragmented(host: str, level: int, option: int) -> None:
    """RFC 9000, 14; and path MTU discovery is ours alone (IP_PMTUDISC_PROBE)."""
    with udp_socket(ip_address(host), 0) as sock:
        assert sock.getsockopt(level, option) == 3
