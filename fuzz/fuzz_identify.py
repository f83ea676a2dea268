"""Identify answers from strangers, in one message or many: DecodeError or a message, and nothing else."""

from __future__ import annotations

import contextlib

from flare._core.wire import frame
from flare.errors import DecodeError
from flare.protocols import identify
from flare.wire.messages import Identify
from flare.wire.multiaddr import Multiaddr

_ADDR = Multiaddr("/ip4/1.2.3.4/tcp/4001")
_PARTS = [
    Identify(agent_version="agent/1", protocols=("/a", "/b"), listen_addrs=(_ADDR,), observed_addr=_ADDR),
    Identify(signed_peer_record=b"record"),
]

CORPUS = (
    *(frame(part.encode()) for part in _PARTS),
    b"".join(frame(part.encode()) for part in _PARTS),
    frame(_PARTS[1].encode()) * (identify.MESSAGES + 1),
)


def fuzz(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        message = identify.merge(data)
        assert len(message.protocols) <= identify.MAX_PROTOCOLS
        assert len(message.listen_addrs) <= identify.MAX_ADDRS
