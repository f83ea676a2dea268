"""Which token buckets a circuit draws its bytes from: its ends', their prefixes', and the relay's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from weakref import WeakValueDictionary

from flare._core.shaper import MAX_BURST, MAX_RATE, Bucket
from flare.config import Rate, RelayLimits
from flare.wire.peer_id import PeerId

_SWEEP = 4  # buckets looked at for every new one


class Shaping:
    """A relay's buckets under `limits`. One that is full again and in no use is forgotten.

    A circuit keeps the buckets that it was opened with, whoever holds them alive for it, and they follow a
    changed rate; one that had none gets none.
    """

    def __init__(self, limits: RelayLimits) -> None:
        self._total = Bucket(0)
        self._peers = _Table()
        self._prefixes = _Table()
        self.change(limits)

    def change(self, limits: RelayLimits) -> None:
        """Other rates, for running circuits as well."""
        self._bounded = limits.byte_rate.per_second > 0
        self._total.change(*_numbers(limits.byte_rate))
        self._peers.change(limits.byte_rate_per_peer, limits.max_buckets)
        self._prefixes.change(limits.byte_rate_per_ip, limits.max_buckets)

    def buckets(self, ends: Sequence[tuple[PeerId, str]]) -> tuple[Bucket, ...]:
        """Those of a circuit, in one order for all: `ends` are the peers that count, and their prefixes."""
        peers = sorted({peer for peer, _ in ends})
        prefixes = sorted({prefix for _, prefix in ends})
        return (
            *(bucket for peer in peers for bucket in self._peers.of(peer)),
            *(bucket for prefix in prefixes for bucket in self._prefixes.of(prefix)),
            *((self._total,) if self._bounded else ()),
        )

    @property
    def remembered(self) -> int:
        """How many buckets are kept."""
        return len(self._peers) + len(self._prefixes)

    @property
    def waiting(self) -> int:
        """Directions of circuits that wait for the relay's own bucket."""
        return self._total.waiting


class _Table:
    """A bucket per key: kept while it is not full, the longest not asked for first, or a circuit has it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._alive: WeakValueDictionary[Hashable, Bucket] = WeakValueDictionary()
        self._rate, self._bound = Rate(), 1

    def __len__(self) -> int:
        return len(self._kept)

    def change(self, rate: Rate, bound: int) -> None:
        self._rate, self._bound = rate, max(1, bound)
        for bucket in list(self._alive.values()):
            bucket.change(*_numbers(rate))
        if not rate.per_second:
            self._kept.clear()
        while len(self._kept) > self._bound:
            self._kept.popitem(last=False)

    def of(self, key: Hashable) -> tuple[Bucket, ...]:
        """The key's bucket; nothing where there is no limit."""
        if not self._rate.per_second:
            return ()
        bucket = self._alive.get(key)
        if bucket is None:
            bucket = self._alive[key] = Bucket(*_numbers(self._rate))
        if key not in self._kept:
            self._forget()
            self._kept[key] = bucket
        self._kept.move_to_end(key)
        return (bucket,)

    def _forget(self) -> None:
        for _ in range(min(_SWEEP, len(self._kept))):
            key, bucket = self._kept.popitem(last=False)
            if not bucket.full and len(self._kept) + 1 < self._bound:
                self._kept[key] = bucket  # its turn comes again


def _numbers(rate: Rate) -> tuple[int, int]:
    if not rate.per_second:
        return 0, 0
    return min(max(1, round(rate.per_second)), MAX_RATE), min(round(rate.burst), MAX_BURST)
