"""Relays that TXT records of a name list: /dnsaddr/relays.example (addressing/README.md, "dnsaddr")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flare.config import Timeouts
from flare.errors import UsageError
from flare.nat.relay_sources import FoundRelay, grouped
from flare.transport.dial import resolve
from flare.transport.dns import Resolver, SystemResolver
from flare.wire.multiaddr import Multiaddr


class DnsaddrRelays:
    """`addr` is /dnsaddr/NAME, or with /p2p/PEER at its end. UsageError for another."""

    trusted: Final = True

    def __init__(self, addr: Multiaddr | str, resolver: Resolver | None = None) -> None:
        self._addr = Multiaddr(addr)
        if next((part.name for part in self._addr), "") != "dnsaddr":
            raise UsageError(f"{addr} is no /dnsaddr/NAME")
        self._resolver = resolver or SystemResolver(Timeouts().resolve)

    @property
    def name(self) -> str:
        """The address."""
        return str(self._addr)

    async def find(self) -> Sequence[FoundRelay]:
        """What the records say now. NetworkError, TimedOut."""
        return grouped(await resolve([self._addr], self._resolver))
