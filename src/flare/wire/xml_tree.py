"""XML from strangers, as a small tree: bounded, and without what XML can do to its reader. No I/O.

Document types, and with them entities, external and internal, are refused where they begin: nothing is
expanded and nothing is fetched. Namespaces are dropped, since routers get them wrong; names are local names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from flare.errors import DecodeError

MAX_BYTES: Final = 128 * 1024  # defends CPU; a large router's description has 40 KiB
MAX_ELEMENTS: Final = 4096  # defends memory
MAX_DEPTH: Final = 32  # defends the stack of whoever walks the tree


@dataclass(slots=True)
class Element:
    """One element: its local name, the text in it, and its children."""

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        """The first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def value(self, name: str) -> str:
        """The text of the first child of that name, without white space around it; "" without one."""
        found = self.child(name)
        return found.text.strip() if found is not None else ""

    def walk(self) -> Iterator[Element]:
        """This element and all below it, in the document's order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, name: str) -> Element | None:
        """The first element of that name, here or below."""
        return next((element for element in self.walk() if element.name == name), None)


def parse(data: bytes) -> Element:
    """The root of a document. DecodeError for what is no XML, has a document type, or is past a limit."""
    if len(data) > MAX_BYTES:
        raise DecodeError(f"a document of {len(data)} bytes, at most {MAX_BYTES} allowed", protocol="xml")
    building = _Building()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = building.start
    parser.EndElementHandler = building.end
    parser.CharacterDataHandler = building.characters
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DecodeError(f"no XML: {error}", protocol="xml") from None
    except (LookupError, ValueError) as error:  # an encoding that Python does not know
        raise DecodeError(f"no XML: {error}", protocol="xml") from None
    if building.root is None:
        raise DecodeError("no XML: no element", protocol="xml")
    return building.root


def _refuse(*_: object) -> int:
    raise DecodeError("a document type or an entity, which nothing here needs", protocol="xml")


class _Building:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._elements = 0

    def start(self, name: str, attributes: object) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise DecodeError(f"more than {MAX_ELEMENTS} elements", protocol="xml")
        if len(self._open) >= MAX_DEPTH:
            raise DecodeError(f"elements nested deeper than {MAX_DEPTH}", protocol="xml")
        element = Element(name.rpartition(":")[2])
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, name: str) -> None:
        self._open.pop()

    def characters(self, text: str) -> None:
        if self._open:
            self._open[-1].text += text
