"""Dialling the addresses of one peer, the best first and others beside it, and what names stand for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from flare.config import Timeouts
from flare.errors import DialFailed, FlareError, NetworkError, TimedOut
from flare.transport.black_hole import BlackHoles
from flare.transport.connection import Connection
from flare.transport.dns import Resolver, SystemResolver
from flare.transport.ranking import MAX_ADDRESSES, plan
from flare.wire.multiaddr import Multiaddr

MAX_IN_FLIGHT: Final = 8  # attempts at once: defends the network against a peer that advertises many
MAX_DNSADDR_DEPTH: Final = 4  # /dnsaddr that leads to /dnsaddr
MAX_FAILURES: Final = 8  # below one /dnsaddr, all depths together: bounds a tree of records that lead nowhere

_NAMES: Final = {"dns": 0, "dns4": 4, "dns6": 6}

T = TypeVar("T")


async def dial_any(
    addrs: Sequence[Multiaddr],
    dial_one: Callable[[Multiaddr], Awaitable[T]],
    *,
    target: object = None,
    resolver: Resolver | None = None,
    black_holes: BlackHoles | None = None,
) -> T:
    """Dial `addrs`, resolved and ranked, each at its time or when the one before failed: first wins.

    `black_holes` leaves out what this network swallows. The others are cancelled and have ended when this
    returns or raises; one that had just connected is aborted. A punch does not dial so: it waits for nothing.
    DialFailed lists every attempt. Errors that are not FlareError or OSError are bugs and come through.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await resolve(addrs, resolver or SystemResolver(Timeouts().resolve))
    except (NetworkError, TimedOut) as error:
        raise DialFailed(target, [(addr, error) for addr in addrs]) from error
    failures: list[tuple[object, BaseException]] = []
    if black_holes is not None:
        found, swallowed = black_holes.filter(found)
        failures += [(addr, NetworkError("this network lets none of its kind through")) for addr in swallowed]
    waiting = plan(found)
    running: dict[asyncio.Future[T], Multiaddr] = {}
    won: list[T] = []
    answered = False
    begun = loop.time()
    hurry = 0.0  # how much earlier than planned direct addresses are dialled, since others failed
    try:
        while (waiting or running) and not won:
            wait: float | None = None
            while waiting and len(running) < MAX_IN_FLIGHT:
                first = waiting[0]
                early = 0.0 if first.addr.is_circuit else hurry
                wait = max(0.0, begun + first.delay - early - loop.time())
                if wait and running:
                    break
                if wait and not first.addr.is_circuit:
                    hurry += wait
                waiting.pop(0)
                running[asyncio.ensure_future(dial_one(first.addr))] = first.addr
                wait = None
            done, _ = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                addr = running.pop(attempt)
                try:
                    won.append(attempt.result())
                except (FlareError, OSError) as error:
                    failures.append((addr, error))
                    if waiting and not waiting[0].addr.is_circuit:
                        hurry = max(hurry, waiting[0].delay - (loop.time() - begun))
                if black_holes is not None:
                    black_holes.record(addr, attempt.exception() is None)
        if not won:
            raise DialFailed(target, failures)
        answered = True
        return won.pop(0)
    finally:
        for attempt, addr in running.items():
            attempt.cancel()
            if black_holes is not None and answered:
                black_holes.record(addr, False)
        for late in [*won, *await asyncio.gather(*running, return_exceptions=True)]:
            if isinstance(late, Connection):
                late.abort("another address answered first")


async def resolve(addrs: Iterable[Multiaddr], resolver: Resolver) -> list[Multiaddr]:
    """Replace names by addresses: /dns, /dns4, /dns6 at the front, and /dnsaddr by its TXT records.

    An address whose name has no address is left out; NetworkError or TimedOut when that leaves none and there
    were some.
    """
    resolved: dict[Multiaddr, None] = {}
    failures: list[NetworkError | TimedOut] = []
    for addr in addrs:
        try:
            for found in await _resolve_one(addr, resolver, MAX_DNSADDR_DEPTH, []):
                resolved.setdefault(found)
        except (NetworkError, TimedOut) as error:
            failures.append(error)
        if len(resolved) >= MAX_ADDRESSES:
            break
    if failures and not resolved:
        raise failures[0]
    return list(resolved)[:MAX_ADDRESSES]


async def _resolve_one(
    addr: Multiaddr, resolver: Resolver, depth: int, failures: list[NetworkError | TimedOut]
) -> list[Multiaddr]:
    """What `addr` stands for. `failures` are those of the whole tree of /dnsaddr so far, each once."""
    parts = list(addr)
    if not parts:
        return []
    name, value = parts[0].name, parts[0].value
    if name in _NAMES:
        rest = str(addr)[len(f"/{name}/{value}") :]
        found = await resolver.addresses(str(value), _NAMES[name])
        return [Multiaddr(f"/ip{ip.version}/{ip}{rest}") for ip in found]
    if name != "dnsaddr":
        return [addr]
    if depth == 0:
        raise NetworkError(f"{addr}: /dnsaddr leads to /dnsaddr more than {MAX_DNSADDR_DEPTH} times")
    suffix = str(addr)[len(f"/dnsaddr/{value}") :]
    results: list[Multiaddr] = []
    before = len(failures)
    for text in await resolver.texts(f"_dnsaddr.{value}"):
        if not text.startswith("dnsaddr=") or not text.endswith(suffix):
            continue
        try:
            named = Multiaddr(text.removeprefix("dnsaddr="))
        except ValueError:
            continue  # a record for a newer flare, or a typing error: the others still count
        try:
            results += await _resolve_one(named, resolver, depth - 1, failures)
        except (NetworkError, TimedOut) as error:
            if error not in failures:  # it is when records below failed
                failures.append(error)
        if len(results) >= MAX_ADDRESSES or len(failures) >= MAX_FAILURES:
            break
    if not results:
        if len(failures) > before:
            raise failures[before]
        raise NetworkError(f"{addr}: no TXT record of _dnsaddr.{value} fits")
    return results
