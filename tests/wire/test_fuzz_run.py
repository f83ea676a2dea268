"""fuzz/run.py itself: it finds what raises and what is slow, and repeats itself for a seed."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz import run


def target(fuzz: Any, *corpus: bytes) -> Any:
    return SimpleNamespace(fuzz=fuzz, CORPUS=corpus)


def test_the_corpus_comes_first_and_a_seed_repeats_itself() -> None:
    def first(seed: int) -> list[bytes]:
        produce = run.inputs((b"one", b"two"), random.Random(seed))
        return [produce() for _ in range(200)]

    assert first(1)[:2] == [b"one", b"two"]
    assert first(1) == first(1)
    assert first(1) != first(2)
    assert max(map(len, first(1))) <= run.MAX_SIZE


def test_a_bug_is_reported_with_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    def fuzz(data: bytes) -> None:
        assert not data.startswith(b"\xff"), "found"

    assert run.run("demo", target(fuzz, b"\x00ab"), seconds=20, seed=1) is False
    out = capsys.readouterr().out
    assert "demo: BUG" in out
    assert "found" in out
    assert "--hex ff" in out


def test_no_bug_is_reported_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.run("demo", target(len, b"a"), seconds=0.01, seed=1) is True
    assert "executions" in capsys.readouterr().out


def test_a_slow_input_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SLOW", 0.001)
    problem = run.once(target(lambda data: time.sleep(0.01)), b"")
    assert problem is not None
    assert "took" in problem


@pytest.mark.parametrize("path", sorted(run.HERE.glob("fuzz_*.py")), ids=lambda path: path.stem)
def test_every_target_passes_its_own_corpus(path: Any) -> None:
    module = run.load(path)
    assert len(module.CORPUS) > 1
    for data in module.CORPUS:
        assert run.once(module, data) is None
