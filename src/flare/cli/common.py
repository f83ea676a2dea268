"""What the commands share: identity, arguments, and an event loop that ends cleanly on a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from ..config import SECURITY, Security
from ..errors import FlareError, UsageError
from ..wire.keys import Identity
from ..wire.multiaddr import Multiaddr
from ..wire.peer_id import PeerId
from .output import Output


def add_verbose(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    """`-v`, before the command and after it."""
    parser.add_argument(
        "-v", "--verbose", action="count", default=default, help="more on stderr; twice for everything"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """`--identity`, `--json` and `-v`."""
    parser.add_argument(
        "--identity",
        metavar="FILE",
        type=Path,
        help="private key file, made when it is missing; without it a new identity each time",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    add_verbose(parser)


def add_security(parser: argparse.ArgumentParser) -> None:
    """`--security`, for commands that make connections."""
    parser.add_argument(
        "--security",
        metavar="NAMES",
        type=security,
        default=SECURITY,
        help="tls, noise, or both in the order to propose them, with a comma between (default: tls,noise)",
    )


def security(text: str) -> tuple[Security, ...]:
    """An argparse type: names for Config.security."""
    names = tuple(name for known in text.split(",") for name in SECURITY if name == known)
    if len(names) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} names something else than {' and '.join(SECURITY)}")
    return names


def address(text: str) -> Multiaddr:
    """An argparse type: a multiaddr, or a plain error."""
    try:
        return Multiaddr(text)
    except UsageError as error:
        hint = f"; as one, that peer id is /p2p/{text}" if _is_peer_id(text) else ""
        raise argparse.ArgumentTypeError(f"{error}{hint}") from None


def _is_peer_id(text: str) -> bool:
    try:
        PeerId(text)
    except UsageError:
        return False
    return True


def somewhere(addrs: Sequence[Multiaddr], otherwise: str) -> None:
    """UsageError when `addrs` only say who the peer is and not where; `otherwise` says what helps."""
    if all(addr.transport is None and addr.host is None for addr in addrs):
        raise UsageError(f"{addrs[0]} says who, and not where: {otherwise}")


def seconds(text: str) -> float:
    """An argparse type: a time that is not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def number(text: str) -> int:
    """An argparse type: a count."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than nothing")
    return value


def identity_from(path: Path | None) -> Identity:
    """The identity in the file, which is made (mode 0600) when it is missing."""
    if path is None:
        return Identity.generate()
    if path.exists():
        return _load(path)
    identity = Identity.generate()
    try:
        identity.save(path)
    except FileExistsError:  # made by another in this very moment
        return _load(path)
    except OSError as error:  # its file name is that of the new file
        raise OSError(error.errno, error.strerror, str(path)) from None
    return identity


def _load(path: Path) -> Identity:
    """With a warning when the file is open to others, which stops nobody: secrets may be mounted so."""
    identity = Identity.load(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        print(f"{path} holds a secret and is open to others (mode {mode:04o})", file=sys.stderr)
    return identity


class Stop(asyncio.Event):
    """Set when the command is to end; `signal` is what told it so, None when nobody reads its output."""

    signal: signal.Signals | None = None


def run_until_signal(main: Callable[[Stop], Coroutine[Any, Any, int]], out: Output) -> int:
    """Run `main(stop)` on uvloop when it is installed, else on asyncio's loop; SIGINT and SIGTERM set `stop`.

    So does the end of who reads `out`, and then the result is 1. A second signal cancels `main`: 130.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_with_signals(main, out))
    return 1 if out.broken else code


async def _with_signals(main: Callable[[Stop], Coroutine[Any, Any, int]], out: Output) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    stop = Stop()
    out.on_broken = stop.set

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.signal = stop.signal or number
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await main(stop)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, int]) -> int:
    """The result of `work`, or 130 when `stop` is set first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else 130
    finally:
        for future in (working, stopping):
            future.cancel()
            with contextlib.suppress(asyncio.CancelledError, FlareError):
                await future


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.environ.get("FLARE_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
