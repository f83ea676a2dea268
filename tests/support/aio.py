"""Coroutines as tests: on asyncio's loop and on uvloop, under a timeout, and with nothing left running at the
end.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
TIMEOUT = 20.0  # seconds for one test on one loop
SETTLE = 1.0  # seconds that cancelled tasks and closing streams get to end


def run(main: Coroutine[Any, Any, Any], *, loop: str = "asyncio", timeout: float = TIMEOUT) -> Any:
    """Run `main` and fail on a leaked task, on an exception that nobody saw, and after `timeout` seconds."""
    unseen: list[dict[str, Any]] = []

    async def supervised() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(timeout):
            result = await main
        await _settle()
        return result

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        result = runner.run(supervised())
    assert not unseen, f"unhandled in the loop: {unseen}"
    return result


def aio(test: Callable[..., Coroutine[Any, Any, None]] | None = None, *, timeout: float = TIMEOUT) -> Any:
    """Decorate an `async def test_...`: it becomes one test for each loop. Fixtures and parameters pass
    through.
    """
    if test is None:
        return functools.partial(aio, timeout=timeout)

    @functools.wraps(test)
    def on_loop(*args: Any, aio_loop: str, **kwargs: Any) -> None:
        run(test(*args, **kwargs), loop=aio_loop, timeout=timeout)

    signature = inspect.signature(test)
    extra = inspect.Parameter("aio_loop", inspect.Parameter.KEYWORD_ONLY)
    on_loop.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("aio_loop", list(LOOPS))(on_loop)


async def _settle() -> None:
    """Give what is ending SETTLE seconds; what runs after that was leaked."""
    deadline = asyncio.get_running_loop().time() + SETTLE
    while leaked := asyncio.all_tasks() - {asyncio.current_task()}:
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"tasks left running: {leaked}")
        await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Any], what: str = "", *, timeout: float = 5.0) -> None:
    """Wait until `condition()` is true, looking every few milliseconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"did not come true in {timeout} s: {what or inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.002)
