"""A hole punch in plain sockets: what the lab must allow or prevent, with nothing of flare's in between.

    probe.py LOCAL_PORT PEER_IP PEER_PORT START_MONOTONIC SECONDS

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
    port, peer_port = int(sys.argv[1]), int(sys.argv[3])
    start, seconds = float(sys.argv[4]), float(sys.argv[5])
    peer = (sys.argv[2], peer_port)
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
