"""RelayServer: a host that introduces peers and carries what nothing else can (circuit-v2.md)."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from .config import RelayLimits
from .host import Host


class RelayServer:
    """Circuit Relay v2 on a host, while the block lasts.

    `limits` are per reservation, circuit, peer and address; `acl` may refuse peers. Within the block
    `reservations` and `circuits` tell how many there are.
    """

    def __init__(self, host: Host, limits: RelayLimits | None = None) -> None:
        self.host = host
        self.limits = limits or RelayLimits()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None
