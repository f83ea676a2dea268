"""How a NAT chooses the public port of a new mapping."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_TRIES = 128  # of a random choice, before the range is walked


class PortAllocation(Protocol):
    """A policy; it remembers nothing, so that routers can share one."""

    def candidates(self, inside_port: int, taken: int, rng: random.Random) -> Iterator[int]:
        """Ports in order of preference, the first free one is used; `taken` counts earlier mappings."""
        ...


def _random_walk(low: int, high: int, rng: random.Random) -> Iterator[int]:
    for _ in range(_TRIES):
        yield rng.randint(low, high)
    size = high - low + 1
    start = rng.randrange(size)
    yield from (low + (start + i) % size for i in range(size))


@dataclass(frozen=True, slots=True)
class Preserving:
    """The inside port when it is free, else a random one."""

    low: int = 1024
    high: int = 65535

    def candidates(self, inside_port: int, taken: int, rng: random.Random) -> Iterator[int]:
        yield inside_port
        yield from _random_walk(self.low, self.high, rng)


@dataclass(frozen=True, slots=True)
class Sequential:
    """`start`, `start + step`, ... and round again after `count` ports."""

    start: int = 20000
    step: int = 1
    count: int = 1000

    def candidates(self, inside_port: int, taken: int, rng: random.Random) -> Iterator[int]:
        yield from (self.start + (taken + i) % self.count * self.step for i in range(self.count))


@dataclass(frozen=True, slots=True)
class Random:
    """Any port of the range."""

    low: int = 1024
    high: int = 65535

    def candidates(self, inside_port: int, taken: int, rng: random.Random) -> Iterator[int]:
        yield from _random_walk(self.low, self.high, rng)


@dataclass(frozen=True, slots=True)
class Block:
    """The lowest free port of a block, as a carrier gives to each subscriber: it can run out."""

    start: int = 40000
    size: int = 64

    def candidates(self, inside_port: int, taken: int, rng: random.Random) -> Iterator[int]:
        yield from range(self.start, self.start + self.size)
