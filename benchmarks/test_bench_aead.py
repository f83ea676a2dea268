"""Record throughput at four sizes, beside `cryptography`: pytest benchmarks/test_bench_aead.py.

Each benchmark's extra_info holds MB/s (10^6 bytes of plaintext a second, at the median).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from flare._core import aead

KIB = 1024
KEYS = {aead.CHACHA20_POLY1305: bytes(32), aead.AES_128_GCM: bytes(16), aead.AES_256_GCM: bytes(32)}
NAMES = {
    aead.CHACHA20_POLY1305: "chacha20-poly1305",
    aead.AES_128_GCM: "aes-128-gcm",
    aead.AES_256_GCM: "aes-256-gcm",
}


def measure(benchmark: Any, size: int, work: Callable[[], object]) -> None:
    benchmark.extra_info["backend"] = aead.backend()
    benchmark(work)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["MB/s"] = round(size / benchmark.stats.stats.median / 1e6)


@pytest.mark.parametrize("size", [1 * KIB, 4 * KIB, 16 * KIB, 64 * KIB], ids=lambda size: f"{size // KIB}KiB")
@pytest.mark.parametrize("kind", KEYS, ids=NAMES.get)
class TestSeal:
    def test_flare(self, benchmark: Any, kind: int, size: int) -> None:
        sender = aead.Aead(KEYS[kind], kind)
        buffer = bytearray(size + aead.TAG_SIZE)
        measure(benchmark, size, lambda: sender.seal_in_place(buffer, size))

    def test_flare_parked_before_each_record(self, benchmark: Any, kind: int, size: int) -> None:
        sender = aead.Aead(KEYS[kind], kind)
        buffer = bytearray(size + aead.TAG_SIZE)

        def work() -> None:
            sender.park()
            sender.seal_in_place(buffer, size)

        measure(benchmark, size, work)

    def test_cryptography(self, benchmark: Any, kind: int, size: int) -> None:
        make = ChaCha20Poly1305 if kind == aead.CHACHA20_POLY1305 else AESGCM
        sender = make(KEYS[kind])
        nonce, plaintext, buffer = bytes(12), bytes(size), bytearray(size + aead.TAG_SIZE)
        measure(benchmark, size, lambda: sender.encrypt_into(nonce, plaintext, None, buffer))
