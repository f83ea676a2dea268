"""What a NAT does, asked from inside it over UDP: mapping and filtering (RFC 5780 section 4).

    reflect.py serve OTHER_IP           on two public hosts: answers on ports 7001 and 7002
    reflect.py ask IP IP                behind the NAT: prints {"event": "behaviour", ...}

A request is "A" (answer from where it came to), "P" (answer from the other port) or "H" (have the other host
answer, from its port 7001); answers carry the address that the request came from.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

PORTS = (7001, 7002)
FORWARD_PORT = 7009


def udp(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(0.5)
    return sock


def serve(other: str) -> None:
    first, second, forward = udp(PORTS[0]), udp(PORTS[1]), udp(FORWARD_PORT)
    print(json.dumps({"event": "ready"}), flush=True)
    while True:
        for sock in select.select([first, second, forward], [], [])[0]:
            data, source = sock.recvfrom(2048)
            if sock is forward:
                host, port = json.loads(data)
                first.sendto(json.dumps([host, port]).encode(), (host, port))
                continue
            seen = json.dumps(source).encode()
            if data == b"A":
                sock.sendto(seen, source)
            elif data == b"P":
                (second if sock is first else first).sendto(seen, source)
            elif data == b"H":
                forward.sendto(seen, (other, FORWARD_PORT))


def seen(sock: socket.socket, host: str, port: int, what: bytes) -> int | None:
    """The port that the answer says we came from, None without an answer."""
    for _ in range(3):
        sock.sendto(what, (host, port))
        try:
            return int(json.loads(sock.recv(2048))[1])
        except TimeoutError:
            continue
        except ConnectionRefusedError:
            time.sleep(0.1)
    return None


def filtering(sock: socket.socket, one: str) -> str:
    """Asked while the other host has not been spoken to."""
    seen(sock, one, PORTS[0], b"A")
    if seen(sock, one, PORTS[0], b"H") is not None:
        return "endpoint-independent"
    return "address-dependent" if seen(sock, one, PORTS[0], b"P") is not None else "address-and-port"


def ask(one: str, two: str) -> None:
    found = {"event": "behaviour", "filtering": filtering(udp(4001), one)}
    sock = udp(4002)  # answers that were not let in can have cost the first one its port
    ports = [
        seen(sock, host, port, b"A") for host, port in ((one, PORTS[0]), (one, PORTS[1]), (two, PORTS[0]))
    ]
    found["mapping"] = "address-and-port"
    if ports[0] == ports[1]:
        found["mapping"] = "endpoint-independent" if ports[1] == ports[2] else "address-dependent"
    print(json.dumps({**found, "kept": ports[0] == 4002}), flush=True)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    ask(sys.argv[2], sys.argv[3])
