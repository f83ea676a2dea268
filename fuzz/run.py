"""Runs the fuzz targets of this folder: random bytes and mutated valid encodings, with a seed, no
dependencies.

    python fuzz/run.py --seconds 5            every target, 5 seconds each
    python fuzz/run.py --seed 7 multiaddr     one of them
    python fuzz/run.py --hex 0804 messages    one input again

A target is a file fuzz_NAME.py with `fuzz(data: bytes)`, which raises only on a bug, and `CORPUS`, valid
encodings to start from. Exit code 1: a target raised, or took longer than a second on one input.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SLOW = 1.0  # seconds that no single input may take
MAX_SIZE = 8192  # bytes of an input: mutations must not grow without end

INTERESTING = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\x80\x00",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\x07",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
)


def mutate(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` changed in one to eight ways."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randint(0, len(out))
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 16, 64)))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2:
                out[at:at] = rng.choice(INTERESTING)
            case 3:
                out[at:end] = rng.choice(INTERESTING)
            case 4:
                del out[at:end]
            case 5:
                out[at:at] = out[at:end] * rng.choice((1, 2, 8))
            case 6:
                del out[at:]
            case 7:
                other = rng.choice(corpus) if corpus else rng.randbytes(8)
                start = rng.randint(0, len(other))
                out[at:end] = other[start : start + rng.choice((1, 4, 16, 64))]
    return bytes(out[:MAX_SIZE])


def inputs(corpus: Sequence[bytes], rng: random.Random) -> Callable[[], bytes]:
    """A source of inputs: the corpus itself first, then mutations of it, and of those, and plain random
    bytes."""
    pool = list(corpus)
    fresh = iter(corpus)

    def produce() -> bytes:
        for seed in fresh:
            return seed
        if not pool or rng.random() < 0.1:
            return rng.randbytes(rng.choice((0, 1, 2, 5, 20, 100)))
        data = mutate(rng.choice(pool), corpus, rng)
        if rng.random() < 0.05:
            if len(pool) < 4096:
                pool.append(data)
            else:
                pool[rng.randrange(len(corpus), len(pool))] = data
        return data

    return produce


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def once(target: ModuleType, data: bytes) -> str | None:
    """Runs one input; what is wrong, or None."""
    start = time.perf_counter()
    try:
        target.fuzz(data)
    except Exception:  # noqa: BLE001  whatever it raises is a bug, and the next target still runs
        return traceback.format_exc()
    took = time.perf_counter() - start
    return f"took {took:.1f} s on one input\n" if took > SLOW else None


def run(name: str, target: ModuleType, seconds: float, seed: int) -> bool:
    """Fuzzes one target; whether no bug was found."""
    produce = inputs(target.CORPUS, random.Random(f"{seed}/{name}"))
    executions = 0
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds or executions < len(target.CORPUS):
        data = produce()
        executions += 1
        problem = once(target, data)
        if problem is not None:
            print(f"{name}: BUG after {executions} executions, seed {seed}", flush=True)
            print(f"{problem}again with: python fuzz/run.py {name} --hex {data.hex()}", flush=True)
            return False
    rate = executions / elapsed if elapsed else 0
    print(f"{name}: {executions} executions in {elapsed:.1f} s ({rate:.0f}/s), no bug", flush=True)
    return True


def main() -> int:
    targets = {path.stem.removeprefix("fuzz_"): path for path in sorted(HERE.glob("fuzz_*.py"))}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="target", help=f"of {', '.join(targets)}; none: all of them"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each target (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same inputs (default 0)")
    parser.add_argument("--hex", type=bytes.fromhex, help="run this one input instead")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in targets]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}")
    sys.path.insert(0, str(HERE.parent / "src"))
    good = True
    for name in options.names or targets:
        target = load(targets[name])
        if options.hex is not None:
            problem = once(target, options.hex)
            print(f"{name}: {problem or 'no bug'}", flush=True)
            good = good and problem is None
        else:
            good = run(name, target, options.seconds, options.seed) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
