"""Networks that swallow all UDP or all IPv6: noticed, so that dials do not wait for them, as in go-libp2p.

Counted are dials to public addresses. Of one kind, the last TRIES are looked at once there are as many: with
fewer than SUCCESSES among them the kind is blocked, and only every TRIES-th dial to a peer still tries it.
One success opens it again. A dial that was cancelled since another had won counts as failed: TRIES is large
enough for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from flare.wire.multiaddr import Multiaddr
from flare.wire.multiaddr import is_public as addr_is_public

TRIES: Final = 100
SUCCESSES: Final = 5

PROBING: Final = "probing"
ALLOWED: Final = "allowed"
BLOCKED: Final = "blocked"


class Counter:
    """The last outcomes of one kind of address."""

    def __init__(self, tries: int = TRIES, successes: int = SUCCESSES) -> None:
        self._tries = tries
        self._successes = successes
        self._outcomes: deque[bool] = deque(maxlen=tries)
        self._dials = 0

    @property
    def state(self) -> str:
        """PROBING until there are enough outcomes, then ALLOWED or BLOCKED."""
        if len(self._outcomes) < self._tries:
            return PROBING
        return ALLOWED if sum(self._outcomes) >= self._successes else BLOCKED

    def ask(self) -> str:
        """A dial to a peer begins: PROBING, also now and then while BLOCKED; ALLOWED, BLOCKED."""
        self._dials += 1
        state = self.state
        return PROBING if state == BLOCKED and self._dials % self._tries == 0 else state

    def record(self, success: bool) -> None:
        """One address of the kind answered, or did not."""
        if success and self.state == BLOCKED:
            self._outcomes.clear()
            self._dials = 0
        else:
            self._outcomes.append(success)


class BlackHoles:
    """What of a peer's addresses is worth a dial from this network. Private and relayed ones always are."""

    def __init__(
        self,
        udp: Counter | None = None,
        ipv6: Counter | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = addr_is_public,
    ) -> None:
        self.udp = udp or Counter()
        self.ipv6 = ipv6 or Counter()
        self._is_public = is_public

    def filter(self, addrs: Iterable[Multiaddr]) -> tuple[list[Multiaddr], list[Multiaddr]]:
        """The addresses to dial, and those that are left out."""
        given = list(addrs)
        counted = [addr for addr in given if self._counts(addr)]
        udp = self.udp.ask() if any(map(_is_udp, counted)) else ALLOWED
        ipv6 = self.ipv6.ask() if any(map(_is_ipv6, counted)) else ALLOWED

        def swallowed(addr: Multiaddr) -> bool:
            if (udp == PROBING and _is_udp(addr)) or (ipv6 == PROBING and _is_ipv6(addr)):
                return False
            return (udp == BLOCKED and _is_udp(addr)) or (ipv6 == BLOCKED and _is_ipv6(addr))

        left_out = {addr for addr in counted if swallowed(addr)}
        return [addr for addr in given if addr not in left_out], list(left_out)

    def record(self, addr: Multiaddr, success: bool) -> None:
        """How a dial to `addr` ended."""
        if not self._counts(addr):
            return
        if _is_udp(addr):
            self.udp.record(success)
        if _is_ipv6(addr):
            self.ipv6.record(success)

    def _counts(self, addr: Multiaddr) -> bool:
        return not addr.is_circuit and self._is_public(addr)


def _is_udp(addr: Multiaddr) -> bool:
    return addr.has("udp")


def _is_ipv6(addr: Multiaddr) -> bool:
    return addr.ip is not None and addr.ip.version == 6
