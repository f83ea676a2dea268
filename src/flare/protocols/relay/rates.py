"""Token buckets by name: how often each peer and each prefix may ask. Pure, with the clock handed in."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable

from flare.config import Rate
from flare.errors import ResourceLimit

_SWEEP = 4  # buckets looked at for every new one: more full ones leave than come


class Buckets:
    """One bucket of `rate` for each key; `clock` gives monotonic seconds.

    A bucket is kept as the time up to which its tokens are spent. One that is full again says nothing and is
    forgotten; beyond `bound` the one that was longest not asked for is.
    """

    def __init__(self, rate: Rate, bound: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: OrderedDict[Hashable, float] = OrderedDict()  # the longest not asked for first
        self.change(rate, bound)

    def __len__(self) -> int:
        return len(self._spent)

    def change(self, rate: Rate, bound: int) -> None:
        """Another rate; what is owed in time stays."""
        self._rate, self._bound = rate, max(1, bound)
        self._depth = (rate.burst or max(1.0, rate.per_second)) / rate.per_second if rate.per_second else 0.0
        if not rate.per_second:
            self._spent.clear()
        while len(self._spent) > self._bound:
            self._spent.popitem(last=False)

    def has(self, key: Hashable) -> bool:
        """Whether a token is there."""
        if not self._rate.per_second:
            return True
        now = self._clock()
        return max(self._spent.get(key, -math.inf), now - self._depth) + self._cost <= now + 1e-9

    def take(self, key: Hashable) -> None:
        """Take a token, which `has` said is there."""
        if not self._rate.per_second:
            return
        now = self._clock()
        if key not in self._spent:
            self._forget(now)
        self._spent[key] = max(self._spent.pop(key, -math.inf), now - self._depth) + self._cost

    @property
    def _cost(self) -> float:
        return 1.0 / self._rate.per_second

    def _forget(self, now: float) -> None:
        for _ in range(_SWEEP):
            key = next(iter(self._spent), None)
            if key is None:
                return
            if self._spent[key] > now - self._depth and len(self._spent) < self._bound:
                return
            del self._spent[key]


class Pace:
    """How often something may be asked for, by each peer and from each prefix."""

    def __init__(self, what: str, clock: Callable[[], float]) -> None:
        self._what = what
        self._peers = Buckets(Rate(), 1, clock)
        self._prefixes = Buckets(Rate(), 1, clock)

    def change(self, per_peer: Rate, per_ip: Rate, bound: int) -> None:
        """Other rates, from now on."""
        self._peers.change(per_peer, bound)
        self._prefixes.change(per_ip, bound)

    def draw(self, peer: Hashable, prefix: Hashable) -> None:
        """One request. ResourceLimit names the rate that has no token, and then none is taken."""
        if not self._peers.has(peer):
            raise ResourceLimit(f"{peer} asks too often", limit=f"{self._what}_rate_per_peer")
        if not self._prefixes.has(prefix):
            raise ResourceLimit(f"{prefix} asks too often", limit=f"{self._what}_rate_per_ip")
        self._peers.take(peer)
        self._prefixes.take(prefix)

    @property
    def remembered(self) -> int:
        """How many buckets are kept."""
        return len(self._peers) + len(self._prefixes)
