"""The configuration of `flare relay`: a TOML file, all keys of which stand in KEYS and in docs/relay.md."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..config import RelayLimits
from ..errors import UsageError
from ..protocols.relay.access import parse_entry
from ..wire.multiaddr import Multiaddr
from . import units

MAX_THREADS: Final = 1024


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What a relay is told: by its file, and by the command line, which comes after it."""

    listen: tuple[Multiaddr, ...] = ()  # empty: the command's default
    announce: tuple[Multiaddr, ...] = ()
    identity: Path | None = None
    threads: int = 0
    autonat: bool = True
    map_ports: bool = False
    status: str | None = None
    drain_timeout: float | None = None  # None: Timeouts.relay_drain
    limits: RelayLimits = field(default_factory=RelayLimits)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unlimited: tuple[str, ...] = ()


# What only a new start of the command changes.
FIXED: Final = ("listen", "announce", "identity", "threads", "autonat", "map_ports", "status")


def _count(least: int, most: int, *, none: bool = False) -> Callable[[object], int]:
    """A whole number; `none`: "none" is 0, which stands for no limit."""

    def convert(value: object) -> int:
        if none and value in units.NONE:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{value!r} is not a whole number from {least} to {most}")
        return value

    return convert


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


def patience(value: object) -> float:
    if value in units.NONE:
        raise UsageError("there is no waiting without end: say a long time")
    return units.duration(value)


def _lifetime(value: object) -> float:
    seconds = units.duration(value)
    if seconds < 1:
        raise UsageError(f"{value!r}: a reservation lasts a second at least")
    return seconds


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError("it is a list of texts")
    return tuple(value)


def _addresses(value: object) -> tuple[Multiaddr, ...]:
    return tuple(Multiaddr(text) for text in _texts(value))


def _entries(value: object) -> tuple[str, ...]:
    for text in _texts(value):
        parse_entry(text)
    return _texts(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{value!r} is not a text")
    return value


def threads(value: object) -> int:
    """A number of threads; "auto": one for each core that this process may use."""
    if value == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_THREADS:
        raise UsageError(f"{value!r} is not auto, or 0 to {MAX_THREADS}")
    return value


_MANY = 1 << 31
_NO_LIMIT = _count(0, _MANY, none=True)

# key: the field of RelaySettings, or of its limits, and how its value is read
KEYS: Final[Mapping[str, tuple[str, Callable[[Any], object]]]] = {
    "listen": ("listen", _addresses),
    "announce": ("announce", _addresses),
    "identity": ("identity", lambda value: Path(_text(value))),
    "threads": ("threads", threads),
    "autonat": ("autonat", _yes_or_no),
    "map_ports": ("map_ports", _yes_or_no),
    "drain_timeout": ("drain_timeout", patience),
    "status.listen": ("status", _text),
    "reservations.lifetime": ("limits.reservation_ttl", _lifetime),
    "reservations.max": ("limits.max_reservations", _count(0, _MANY)),
    "reservations.per_peer": ("limits.max_reservations_per_peer", _count(1, _MANY)),
    "reservations.per_ip": ("limits.max_reservations_per_ip", _count(0, _MANY)),
    "reservations.rate_per_peer": ("limits.reservation_rate_per_peer", units.count_rate),
    "reservations.rate_per_ip": ("limits.reservation_rate_per_ip", units.count_rate),
    "circuits.bytes": ("limits.circuit_bytes", units.size),
    "circuits.duration": ("limits.circuit_duration", units.duration),
    "circuits.max": ("limits.max_circuits", _NO_LIMIT),
    "circuits.per_peer": ("limits.max_circuits_per_peer", _count(0, _MANY)),
    "circuits.per_ip": ("limits.max_circuits_per_ip", _NO_LIMIT),
    "circuits.rate_per_peer": ("limits.circuit_rate_per_peer", units.count_rate),
    "circuits.rate_per_ip": ("limits.circuit_rate_per_ip", units.count_rate),
    "bandwidth.total": ("limits.byte_rate", units.byte_rate),
    "bandwidth.per_peer": ("limits.byte_rate_per_peer", units.byte_rate),
    "bandwidth.per_ip": ("limits.byte_rate_per_ip", units.byte_rate),
    "prefix.ipv4": ("limits.ipv4_prefix", _count(0, 32)),
    "prefix.ipv6": ("limits.ipv6_prefix", _count(0, 128)),
    "access.allow": ("allow", _entries),
    "access.deny": ("deny", _entries),
    "access.unlimited": ("unlimited", _entries),
}
TABLES: Final = frozenset(key.partition(".")[0] for key in KEYS if "." in key)


def load(path: Path, base: RelaySettings | None = None) -> RelaySettings:
    """`base` with what the file says.

    UsageError names the file, the key and what is wrong with it; OSError when it cannot be read. A
    relative `identity` is looked for beside the file.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    settings = with_values(base or RelaySettings(), flatten(document, str(path)), str(path))
    if "identity" in document and settings.identity is not None:
        settings = replace(settings, identity=path.parent / settings.identity)
    return settings


def flatten(document: Mapping[str, object], where: str) -> dict[str, object]:
    """The values by their full keys. UsageError for a key that there is not, with the nearest there is."""
    values: dict[str, object] = {}
    for name, value in document.items():
        if name in TABLES:
            if not isinstance(value, dict):
                raise UsageError(f"{where}: {name}: it is a table: write [{name}]")
            values.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            values[name] = value
    for key in values:
        if key not in KEYS:
            raise UsageError(f"{where}: {key}: there is no such key{_suggestion(key)}")
    return values


def _suggestion(key: str) -> str:
    """The key that was meant: the same one in its table, or one like it; else those of the same table."""
    table, _, name = key.rpartition(".")
    names = {known: known.rpartition(".")[2] for known in KEYS}
    beside = {names[known]: known for known in KEYS if known.rpartition(".")[0] == table}
    near = [known for known in KEYS if names[known] == name]
    near = near or [beside[found] for found in difflib.get_close_matches(name, beside, n=1)]
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(beside.values())}"


def with_values(settings: RelaySettings, values: Mapping[str, object], where: str) -> RelaySettings:
    """`settings` with `values` by their keys in KEYS."""
    own: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for key, value in values.items():
        target, convert = KEYS[key]
        try:
            converted = convert(value)
        except UsageError as error:
            raise UsageError(f"{where}: {key}: {error}") from None
        table, _, name = target.rpartition(".")
        (limits if table else own)[name] = converted
    return replace(settings, limits=replace(settings.limits, **limits), **own)
