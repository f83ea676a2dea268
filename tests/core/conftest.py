from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.mux import driven_by


@pytest.fixture
def every_descriptor_is_closed() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture(autouse=True, scope="module")
def driven(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of modules that say `DRIVEN`: every test twice, with engines driven by calls, and by threads."""
    how = getattr(request, "param", "calls")
    with driven_by(how):
        yield how


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ways = getattr(metafunc.module, "DRIVEN", ("calls",))
    if getattr(metafunc.function, "is_hypothesis_test", False):
        return  # hypothesis wants one executor per test
    if len(ways) > 1 and metafunc.definition.get_closest_marker("passes") is None:
        metafunc.parametrize("driven", ways, indirect=True, scope="module")
