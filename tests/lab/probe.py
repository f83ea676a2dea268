"""A hole punch in plain sockets: what the lab must allow or prevent, with nothing of flare's in between.

    probe.py tcp|udp LOCAL_PORT PEER_IP PEER_PORT START_MONOTONIC SECONDS

Listens and connects on one port; prints {"event": "connected", "how", "seconds"} once a byte came back, or
"failed".
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time


def bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("0.0.0.0", port))
    sock.setblocking(False)
    return sock


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def greet(sock: socket.socket, how: str, start: float) -> bool:
    """Both ends must agree that the connection is up."""
    sock.setblocking(True)
    sock.settimeout(3)
    try:
        sock.sendall(b"!")
        if sock.recv(1) != b"!":
            return False
    except OSError:
        return False
    say(event="connected", how=how, seconds=round(time.monotonic() - start, 3))
    return True


def main() -> int:
    transport, port, peer = sys.argv[1], int(sys.argv[2]), (sys.argv[3], int(sys.argv[4]))
    start, seconds = float(sys.argv[5]), float(sys.argv[6])
    return (over_tcp if transport == "tcp" else over_udp)(port, peer, start, seconds)


def over_udp(port: int, peer: tuple[str, int], start: float, seconds: float) -> int:
    """A datagram each 100 ms to where the peer's last one came from; "!" says that one was heard."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(0.1)
    time.sleep(max(0.0, start - time.monotonic()))
    heard = 0
    while time.monotonic() < start + seconds:
        try:
            sock.sendto(b"!" if heard else b"?", peer)
            data, peer = sock.recvfrom(16)
        except OSError:
            continue
        heard += 1
        if data == b"!" and heard > 3:
            say(event="connected", how="datagram", seconds=round(time.monotonic() - start, 3))
            for _ in range(5):
                sock.sendto(b"!", peer)
            return 0
    say(event="failed")
    return 1


def over_tcp(port: int, peer: tuple[str, int], start: float, seconds: float) -> int:
    """Connect, listen, and try again at once when refused."""
    listener = bound(port)
    listener.listen()
    time.sleep(max(0.0, start - time.monotonic()))
    dialler: socket.socket | None = None
    again = 0.0
    while time.monotonic() < start + seconds:
        if dialler is None and time.monotonic() >= again:
            dialler = bound(port)
            dialler.connect_ex(peer)
        writers = [dialler] if dialler is not None else []
        readable, writable, _ = select.select([listener], writers, [], 0.01)
        if readable:
            accepted, _ = listener.accept()
            if greet(accepted, "accept", start):
                return 0
        if writable and dialler is not None:
            if dialler.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and greet(
                dialler, "connect", start
            ):
                return 0
            dialler.close()
            dialler = None
            again = time.monotonic() + random.uniform(0.01, 0.1)
    say(event="failed")
    return 1


sys.exit(main())
