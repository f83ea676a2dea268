"""A relay within one process: A -> relay engine -> B over socket pairs, Noise and yamux, one circuit.

    pytest benchmarks/test_bench_splice.py

Each carries 32 MiB. extra_info holds MB/s (10^6 bytes a second through the circuit, with both ends on the
same core) and relay_s_per_GB, the CPU seconds of the relay engine's passes alone. For a whole relay process
see benchmarks/relay.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.support.mux import Pair

from flare._core import aead
from flare._core.engine import Engine
from flare._core.link import LinkStream
from flare._core.shaper import MAX_RATE, Bucket
from flare._core.splice import splice

TOTAL = 32 << 20
KIB = 1024


class Circuit:
    """One circuit between two ends on one engine, through a relay engine."""

    def __init__(self, *, noise: bool, buckets: Sequence[Bucket] = ()) -> None:
        self.ends, self.relay = Engine(), Engine()
        self.left = Pair(self.ends, self.relay, noise=noise)
        self.right = Pair(self.relay, self.ends, noise=noise)
        self.near, a = self.left.open()
        b, self.far = self.right.open()
        splice(a, b, buckets=buckets, on_done=None)
        self.relay_seconds = 0.0

    def carry(self, message: bytes, total: int) -> None:
        """Write `total` bytes as messages at one end and read them at the other."""
        sent = got = 0
        while got < total:
            while sent < total:
                taken = self.near.write(message)
                sent += taken
                if taken < len(message):
                    break
            self.ends.run_pass()
            start = time.thread_time()
            self.relay.run_pass()
            self.relay_seconds += time.thread_time() - start
            self.ends.run_pass()
            got += self.read(self.far)

    @staticmethod
    def read(stream: LinkStream) -> int:
        got = 0
        while data := stream.read(1 << 18):
            got += len(data)
        return got

    def close(self) -> None:
        self.ends.close()
        self.relay.close()


@pytest.mark.parametrize("noise", [True, False], ids=["noise", "plain"])
@pytest.mark.parametrize("size", [1 * KIB, 16 * KIB, 64 * KIB], ids=lambda size: f"{size // KIB}KiB")
def test_one_circuit(benchmark: Any, size: int, noise: bool) -> None:
    circuit = Circuit(noise=noise)
    message = bytes(size)
    rounds = 5
    benchmark.pedantic(circuit.carry, (message, TOTAL), rounds=rounds, warmup_rounds=0)
    benchmark.extra_info["backend"] = aead.backend()
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["MB/s"] = round(TOTAL / benchmark.stats.stats.median / 1e6)
        benchmark.extra_info["relay_s_per_GB"] = round(circuit.relay_seconds / (rounds * TOTAL / 1e9), 2)
    circuit.close()


@pytest.mark.parametrize("buckets", [0, 5])
def test_one_circuit_with_buckets(benchmark: Any, buckets: int) -> None:
    """1 KiB messages, unencrypted, through as many buckets as a circuit has, none of them ever empty."""
    circuit = Circuit(noise=False, buckets=[Bucket(MAX_RATE) for _ in range(buckets)])
    rounds = 5
    benchmark.pedantic(circuit.carry, (bytes(KIB), TOTAL), rounds=rounds, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["relay_s_per_GB"] = round(
            circuit.relay_seconds / ((rounds + 1) * TOTAL / 1e9), 3
        )
    circuit.close()


def test_open_and_close_a_stream(benchmark: Any) -> None:
    """One request and response of 100 bytes on a stream of its own, both ends, as Python drives them."""
    engine = Engine()
    pair = Pair(engine)
    request = bytes(100)

    def work() -> None:
        near = pair.a.open_stream()
        near.write(request)
        near.close_write()
        while not pair.heard_b.streams:
            engine.run_pass()
        far = pair.heard_b.streams.pop()
        while not far.readable:
            engine.run_pass()
        far.read()
        far.write(request)
        far.close_write()
        while not near.read_closed:
            engine.run_pass()
        near.read()

    benchmark(work)
    engine.close()
