"""Sizes, times and rates as people write them: "128 KiB", "2m", "10 Mbit/s", "12/min"; else UsageError."""

from __future__ import annotations

import math
import re
from typing import Final

from ..config import Rate
from ..errors import UsageError

_NUMBER: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([^\d\s][^\s]*)?\s*")
_COUNTS: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|min|h|d)\s*")
NONE: Final = ("none", "unlimited")  # no limit
MOST: Final = 1 << 40  # bytes, seconds, or anything else

SIZES: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
BITS: Final = {"bit": 1 / 8, "kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6}
TIMES: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def size(value: object) -> int:
    """Bytes: 131072, "128 KiB", "1.5 GB"; none: 0."""
    if _is_none(value):
        return 0
    return round(_quantity(value, SIZES, 'a size, such as "128 KiB"'))


def duration(value: object) -> float:
    """Seconds: 120, "2m", "1.5h", "90 s"; none: 0."""
    if _is_none(value):
        return 0.0
    return _quantity(value, TIMES, 'a time, such as "2m"')


def byte_rate(value: object) -> Rate:
    """Bytes a second: "10 Mbit/s", {rate = "1 MB/s", burst = "4 MB"}; none: no limit."""
    rate, burst = _parts(value)
    if _is_none(rate):
        return Rate()
    what = 'a rate, such as "10 Mbit/s" or "1 MiB/s"'
    if not isinstance(rate, str) or not rate.rstrip().endswith("/s"):
        raise UsageError(f"{rate!r} is not {what}")
    per_second = _quantity(rate.rstrip()[:-2], {**SIZES, **BITS}, what)
    if not per_second:
        raise UsageError(f'{rate!r} lets nothing through: "none" is no limit')
    return Rate(per_second, float(size(burst)) if burst is not None else 0.0)


def count_rate(value: object) -> Rate:
    """So many a time: "12/min", "2/s", "100/h", {rate = "12/min", burst = 10}; none: no limit."""
    rate, burst = _parts(value)
    if _is_none(rate):
        return Rate()
    found = _COUNTS.fullmatch(rate) if isinstance(rate, str) else None
    if found is None:
        raise UsageError(f'{rate!r} is not a rate, such as "12/min"')
    per_second = float(found[1]) / TIMES[found[2]]
    if not per_second:
        raise UsageError(f'{rate!r} lets nothing through: "none" is no limit')
    if burst is None:
        return Rate(per_second)
    if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= MOST:
        raise UsageError(f"a burst of {burst!r}: it is a whole number, 1 at least")
    return Rate(per_second, float(burst))


def _is_none(value: object) -> bool:
    return isinstance(value, str) and value.strip() in NONE


def _parts(value: object) -> tuple[object, object]:
    """The rate, and its burst where one is given."""
    if not isinstance(value, dict):
        return value, None
    if "rate" not in value or not value.keys() <= {"rate", "burst"}:
        raise UsageError('a rate is text, such as "10/min", or has the keys rate and burst and no others')
    return value["rate"], value.get("burst")


def _quantity(value: object, units: dict[str, float] | dict[str, int], what: str) -> float:
    """A number that is not negative, in the unit behind it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        amount = float(value)
    else:
        found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise UsageError(f"{value!r} is not {what}")
        unit = found[2] or ""
        if unit not in units:
            known = ", ".join(name for name in units if name)
            raise UsageError(f"{value!r} is not {what}: the unit is none of {known}")
        amount = float(found[1]) * units[unit]
    if not (math.isfinite(amount) and 0 <= amount <= MOST):
        raise UsageError(f"{value!r} is not {what}: it is negative or too much")
    return amount
