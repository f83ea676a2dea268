"""Relays that who runs this host has named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from flare.errors import UsageError
from flare.nat.relay_sources import FoundRelay, grouped
from flare.wire.multiaddr import Multiaddr


class StaticRelays:
    """`addrs` are ADDR/p2p/PEER; several of one relay are its ways. UsageError for what names none."""

    name: Final = "configuration"
    trusted: Final = True

    def __init__(self, addrs: Iterable[Multiaddr | str]) -> None:
        self._addrs = [Multiaddr(addr) for addr in addrs]
        for addr in self._addrs:
            if addr.peer_id is None or addr.is_circuit:
                raise UsageError(f"a relay is given as ADDR/p2p/PEER, not {addr}")

    async def find(self) -> Sequence[FoundRelay]:
        """All of them."""
        return grouped(self._addrs)
