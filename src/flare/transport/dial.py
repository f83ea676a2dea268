"""Which address first, how long to wait for it before the next, and what names stand for (RFC 8305)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from flare.config import Timeouts
from flare.errors import DialFailed, FlareError, NetworkError, TimedOut
from flare.transport.connection import Connection
from flare.transport.dns import Resolver, SystemResolver
from flare.wire.multiaddr import Multiaddr

PUBLIC_STAGGER: Final = 0.25  # seconds before the next address is tried beside a public one (RFC 8305, 5)
PRIVATE_STAGGER: Final = 0.03  # beside a private one, which answers at once or never
RELAY_DELAY: Final = 0.5  # head start of direct addresses over relayed ones
MAX_IN_FLIGHT: Final = 8  # attempts at once: defends the network against a peer that advertises many
MAX_ADDRESSES: Final = 64  # of one peer: those after are not tried
MAX_DNSADDR_DEPTH: Final = 4  # /dnsaddr that leads to /dnsaddr
MAX_FAILURES: Final = 8  # below one /dnsaddr, all depths together: bounds a tree of records that lead nowhere

_NAMES: Final = {"dns": 0, "dns4": 4, "dns6": 6}

T = TypeVar("T")


def rank(addrs: Iterable[Multiaddr]) -> list[Multiaddr]:
    """Each once, best first: private, public, relayed; in each IPv6 and IPv4 in turn, low ports first."""
    groups: tuple[list[Multiaddr], ...] = ([], [], [])
    for addr in dict.fromkeys(addrs):
        groups[_group(addr)].append(addr)
    return [addr for group in groups for addr in _interleave(group)][:MAX_ADDRESSES]


def _group(addr: Multiaddr) -> int:
    if addr.is_circuit:
        return 2
    return 0 if addr.is_private or addr.is_loopback else 1


def _interleave(addrs: list[Multiaddr]) -> list[Multiaddr]:
    """IPv6 first and then in turn, so that a broken IPv6 costs one attempt (RFC 8305, 4)."""
    six: list[Multiaddr] = []
    four: list[Multiaddr] = []
    for addr in sorted(addrs, key=lambda addr: addr.port or 0):
        (six if addr.ip is not None and addr.ip.version == 6 else four).append(addr)
    mixed = [addr for pair in zip(six, four, strict=False) for addr in pair]
    return mixed + six[len(four) :] + four[len(six) :]


async def dial_any(
    addrs: Sequence[Multiaddr],
    dial_one: Callable[[Multiaddr], Awaitable[T]],
    *,
    target: object = None,
    resolver: Resolver | None = None,
) -> T:
    """Dial `addrs`, resolved and ranked, each a little after the one before or when that failed: first wins.

    The others are cancelled and have ended when this returns or raises; one that had just connected is
    aborted. DialFailed lists every attempt. Errors that are not FlareError or OSError are bugs and come
    through.
    """
    loop = asyncio.get_running_loop()
    try:
        waiting = rank(await resolve(addrs, resolver or SystemResolver(Timeouts().resolve)))
    except (NetworkError, TimedOut) as error:
        raise DialFailed(target, [(addr, error) for addr in addrs]) from error
    running: dict[asyncio.Future[T], Multiaddr] = {}
    failures: list[tuple[object, BaseException]] = []
    won: list[T] = []
    next_start = loop.time()
    try:
        while (waiting or running) and not won:
            if waiting and len(running) < MAX_IN_FLIGHT and (not running or loop.time() >= next_start):
                addr = waiting.pop(0)
                running[asyncio.ensure_future(dial_one(addr))] = addr
                next_start = loop.time() + _stagger(addr, waiting)
            more = bool(waiting) and len(running) < MAX_IN_FLIGHT
            delay = max(0.0, next_start - loop.time()) if more else None
            done, _ = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                addr = running.pop(attempt)
                try:
                    won.append(attempt.result())
                except (FlareError, OSError) as error:
                    failures.append((addr, error))
                    if not waiting or not waiting[0].is_circuit:
                        next_start = loop.time()
        if not won:
            raise DialFailed(target, failures)
        return won.pop(0)
    finally:
        for attempt in running:
            attempt.cancel()
        for late in [*won, *await asyncio.gather(*running, return_exceptions=True)]:
            if isinstance(late, Connection):
                late.abort("another address answered first")


def _stagger(addr: Multiaddr, waiting: Sequence[Multiaddr]) -> float:
    """Seconds from the attempt at `addr` to the one after it."""
    if waiting and waiting[0].is_circuit and not addr.is_circuit:
        return RELAY_DELAY
    return PRIVATE_STAGGER if _group(addr) == 0 else PUBLIC_STAGGER


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
