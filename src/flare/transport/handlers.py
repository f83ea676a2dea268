"""Who answers which protocol: the registry that a host's connections read at each inbound stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from flare.errors import UsageError

if TYPE_CHECKING:
    from flare.transport.connection import Handler


class StreamHandlers(Mapping[str, "tuple[Handler, bool]"]):
    """Protocol -> (handler, whether limited connections may have it)."""

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[Handler, bool]] = {}

    def __getitem__(self, protocol: str) -> tuple[Handler, bool]:
        return self._handlers[protocol]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, protocol: str, handler: Handler, *, allow_limited: bool = False) -> None:
        """Serve `protocol`; a later handler replaces an earlier one. UsageError for a name that cannot be negotiated."""
        if not protocol or "\n" in protocol or len(protocol.encode()) > 1000:
            raise UsageError(f"{protocol!r} is no protocol name: 1 to 1000 bytes, without a line break")
        self._handlers[protocol] = (handler, allow_limited)

    def remove(self, protocol: str) -> None:
        """Serve it no more."""
        self._handlers.pop(protocol, None)
