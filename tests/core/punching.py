"""Sockets and clocks for the tests of the punch."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from flare._core.punch import PunchResult, monotonic_ns

MS = 1_000_000
SECOND = 1000 * MS
HOST, PEER = "127.0.0.1", "127.0.0.2"


def shared(host: str, port: int = 0) -> socket.socket:
    """A socket that others may share the port of, as all of a punch do."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port))
    return sock


def listener(host: str, port: int = 0) -> socket.socket:
    sock = shared(host, port)
    sock.listen()
    sock.setblocking(False)
    return sock


def free_port(host: str = HOST) -> int:
    with shared(host) as sock:
        return int(sock.getsockname()[1])


def soon(ms: int = 30) -> int:
    return monotonic_ns() + ms * MS


def taken(result: PunchResult) -> socket.socket:
    sock = socket.socket(fileno=result.fd)
    sock.settimeout(5)
    return sock


def assert_joined(a: socket.socket, b: socket.socket) -> None:
    for one, other in ((a, b), (b, a)):
        one.sendall(b"through the hole")
        assert other.recv(100) == b"through the hole"


def dual_stack_listener() -> socket.socket:
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True)


def connect_soon(source: tuple[str, int], to: tuple[str, int]) -> socket.socket:
    """Dials till somebody listens, since a punch in a thread takes its time to start."""
    give_up = time.monotonic() + 2
    while True:
        sock = shared(*source)
        sock.settimeout(5)
        if sock.connect_ex(to) == 0:
            return sock
        sock.close()
        assert time.monotonic() < give_up, "nobody listens"
        time.sleep(0.01)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    def handle(*_: Any) -> None:
        raise InterruptedError

    old = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
