"""Figures for people: the same on the status page and in the terminal."""

from __future__ import annotations

from typing import Final

AGENT: Final = 48  # characters of what a peer calls itself
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Bytes in decimal units: 999 B, 1.00 kB, 12.3 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def rate(per_second: float) -> str:
    """12.3 MB/s."""
    return size(per_second) + "/s"


def number(count: int) -> str:
    """12,345."""
    return f"{count:,}"


def span(seconds: float) -> str:
    """The two largest parts: 3 d 4 h, 5 min 6 s, 7 s."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or parts or name == "s":
            parts.append(f"{amount} {name}")
    return " ".join(parts[:2])


def share(part: float) -> str:
    """Of one core: 7 %, 180 %."""
    return f"{part * 100:.0f} %"


def printable(text: str, limit: int = AGENT) -> str:
    """A stranger's words, cut to `limit`, without what could steer a terminal or turn the line around."""
    shown = "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def short(peer: str) -> str:
    """The end of a peer id, which tells peers apart: nearly all begin alike."""
    return peer if len(peer) <= 12 else "\N{HORIZONTAL ELLIPSIS}" + peer[-10:]
