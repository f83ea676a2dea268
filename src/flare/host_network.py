"""What a host does when the ground moves: other addresses, other routes, or the machine was suspended.

Connections whose address is gone look open until something times out, minutes later. They are pinged at once
and ended when nothing answers; then reservations are made anew and the new addresses told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from .errors import FlareError
from .events import NetworkChanged
from .transport.address_watch import ROUTE, AddressWatch, own_ips
from .transport.suspend import SuspendWatch
from .transport.tasks import Tasks

if TYPE_CHECKING:
    from .host import Host
    from .transport.connection import Connection

log = logging.getLogger("flare.host")

CHECK: Final = 3.0  # seconds for an answer over an address that may be gone
AT_ONCE: Final = 64  # connections checked at the same time,
MAX_CHECKED: Final = 1024  # ... and in all, relays first: the rest is left to their keepalive
SETTLE: Final = 0.05  # seconds in which who held a connection that was ended hears of it


class HostNetwork:
    """Watches for one host from `start` to `close`. `hurry`: whoever waits to dial again does so now."""

    def __init__(
        self,
        host: Host,
        *,
        look_again: Callable[[], None],
        hurry: Callable[[], None],
        ips: Callable[[], frozenset[str]] = own_ips,
    ) -> None:
        self._host = host
        self._look_again = look_again
        self._hurry = hurry
        self._ips = ips
        self._own: frozenset[str] = frozenset()
        self._addresses = AddressWatch(self._changed)
        self._suspend = SuspendWatch(self._resumed)
        self._tasks = Tasks()

    def start(self) -> None:
        """Watch from now on."""
        self._own = self._ips()
        self._addresses.start()
        self._suspend.start()

    async def close(self) -> None:
        """Watch no more."""
        self._addresses.close()
        self._suspend.close()
        await self._tasks.cancel()

    def _changed(self, about: frozenset[str]) -> None:
        before, self._own = self._own, self._ips()
        gone = before - self._own
        if not gone and before == self._own and ROUTE not in about:
            return  # the kernel repeated what was so already
        said = "our addresses have changed" if before != self._own else "our routes have changed"
        self._react(said, gone, [c for c in self._host.connections if self._may_be_cut(c, gone)])

    def _resumed(self, seconds: float) -> None:
        before, self._own = self._own, self._ips()
        said = f"this machine was suspended for {seconds:.0f} s"
        self._react(said, before - self._own, [c for c in self._host.connections if not c.is_relayed])

    def _may_be_cut(self, connection: Connection, gone: frozenset[str]) -> bool:
        """Its address is gone, or it may be the one that others reach us by."""
        if connection.is_relayed:
            return False
        if self._host.places.knows(connection.remote_peer):
            return True
        local = connection.local_addr.ip if connection.local_addr is not None else None
        return bool(gone) and (local is None or local.is_unspecified or str(local) in gone)

    def _react(self, said: str, gone: frozenset[str], suspects: Iterable[Connection]) -> None:
        log.info("%s: %s", said, f"{', '.join(sorted(gone))} gone" if gone else "none is gone")
        self._look_again()
        self._host.emit(NetworkChanged(said, tuple(sorted(gone))))
        self._hurry()
        first = sorted(suspects, key=lambda connection: not self._host.places.knows(connection.remote_peer))
        self._tasks.start(self._check(first[:MAX_CHECKED]), "checking connections")

    async def _check(self, suspects: list[Connection]) -> None:
        """End those that do not answer, then hurry whoever needed them."""
        room = asyncio.Semaphore(AT_ONCE)

        async def check(connection: Connection) -> bool:
            async with room:
                try:
                    await connection.ping(CHECK)
                except TimeoutError:
                    connection.abort("no answer since our network changed")
                    return False
                except FlareError:
                    return False
            return True

        if not all(await asyncio.gather(*map(check, suspects))):
            await asyncio.sleep(SETTLE)
            self._hurry()
