"""Datagrams from strangers: the demultiplexer, and the engine's answers to who has no connection."""

from __future__ import annotations

import socket

from flare._core.udp import INITIAL, STRAY, VERSION, Datagrams
from flare.config import QuicLimits
from flare.transport.quic_aioquic import AioquicEngine
from flare.wire.keys import Identity

CORPUS = (
    bytes.fromhex("c00000000108")
    + bytes(8)
    + bytes.fromhex("08")
    + bytes(8)
    + bytes.fromhex("004496")
    + bytes(1180),
    bytes.fromhex("c06b3343cf08") + bytes(8) + bytes.fromhex("08") + bytes(1190),
    b"\x40" + bytes(60),
)


class Held(socket.socket):
    """A socket that lives as long as this module does."""

    def __del__(self) -> None:
        self.close()


_here = Held(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
_here.bind(("127.0.0.1", 0))
_there = Held(socket.AF_INET, socket.SOCK_DGRAM)
_there.bind(("127.0.0.1", 0))
_datagrams = Datagrams(_here.fileno())
_engine = AioquicEngine(Identity.generate(), QuicLimits())


def fuzz(data: bytes) -> None:
    """Nothing raises, and no answer is longer than three times what it answers (RFC 9000, 8.1)."""
    _there.sendto(data[:60_000], _here.getsockname())
    for kind, _, got, remote in _datagrams.receive() or []:
        answer: bytes | None = None
        if kind == INITIAL:
            initial = _engine.initial(got)
            if initial is not None:
                assert _engine.proved(initial, remote, 1.0) is None
                answer = _engine.invalid_token(initial) + _engine.retry(initial, remote, 1.0)
        elif kind == VERSION:
            answer = _engine.negotiate_version(got)
        elif kind == STRAY:
            answer = _engine.stateless_reset(got)
            assert answer is not None
            assert len(answer) < len(got)
        assert answer is None or len(answer) < 3 * len(got)
