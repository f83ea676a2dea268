"""Several labs at once, each in a process of its own: most of their time is spent waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def each(work: Callable[[Plan], Result], plans: Iterable[Plan], jobs: int = 1) -> Iterator[Result]:
    """`work` on each of `plans`, in their order, `jobs` at a time."""
    with contextlib.ExitStack() as stack:
        if jobs <= 1:
            yield from map(work, plans)
            return
        # fork: this process has one thread, and a worker needs its user namespace
        pool = stack.enter_context(multiprocessing.get_context("fork").Pool(jobs))
        coming = pool.imap(work, plans)
        pool.close()
        yield from coming
        pool.join()  # else leaving ends it by signal
