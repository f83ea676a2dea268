"""Colour where a person reads and wants it: on a terminal, unless NO_COLOR (no-color.org) is set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

MIN_WIDTH: Final = 80
MAX_WIDTH: Final = 100
_CODES: Final = {"bold": "1", "dim": "2", "good": "32", "fair": "33", "bad": "31"}


@dataclass(frozen=True, slots=True)
class Ink:
    """How text is painted, and how wide it may be."""

    colour: bool = False
    width: int = MAX_WIDTH

    def paint(self, text: str, *styles: str) -> str:
        """`text` in styles out of bold, dim, good, fair and bad; as it is without colour."""
        if not self.colour or not text or not styles:
            return text
        codes = ";".join(_CODES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"


def ink_for(to: TextIO, environment: Mapping[str, str] = os.environ) -> Ink:
    """What suits `to`: colour and the terminal's width on a terminal, neither elsewhere."""
    if not to.isatty():
        return Ink()
    colour = not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns
    return Ink(colour, max(MIN_WIDTH, min(columns, MAX_WIDTH)))
