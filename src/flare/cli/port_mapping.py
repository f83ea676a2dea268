"""`--map-ports`, and what the commands that have it print of it."""

from __future__ import annotations

import argparse

from ..events import DoubleNatFound, Event, PortMapped, PortMappingFailed, PortMappingLost
from .output import Output


def add_map_ports(parser: argparse.ArgumentParser) -> None:
    """`--map-ports`."""
    parser.add_argument(
        "--map-ports",
        action="store_true",
        default=None,
        help="ask the router to forward our ports, by PCP, NAT-PMP or UPnP, until the command ends",
    )


class MappedPorts:
    """Prints what becomes of them: people are told what changes, and not of each renewal and retry."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._known: dict[object, str] = {}  # by listener: what was told of it last

    def show(self, event: Event) -> None:
        """Print `event` if it is about mapped ports."""
        match event:
            case PortMapped(listener, external, protocol, gateway, lifetime):
                self._fact(
                    "port-mapped",
                    listener,
                    f"the router at {gateway} forwards {external} to us ({protocol})",
                    external=external,
                    protocol=protocol,
                    gateway=gateway,
                    lifetime=None if lifetime is None else round(lifetime, 3),
                )
            case PortMappingLost(listener, external, reason):
                text = f"the router no longer forwards {external} to us: {reason}"
                self._fact("port-mapping-lost", listener, text, external=external, reason=reason)
            case PortMappingFailed(listener, reason, retry_in):
                text = f"no port mapped{f' for {listener}' if listener else ''}: {reason}"
                retry = round(retry_in, 3)
                self._fact("port-mapping-failed", listener, text, reason=reason, retry_in=retry)
            case DoubleNatFound(gateway, external, reason):
                self._out.fact("double-nat", reason, gateway=gateway, external=external, reason=reason)
            case _:
                pass

    def _fact(self, name: str, listener: object, text: str, **fields: object) -> None:
        news = self._known.get(listener) != text
        self._known[listener] = text
        self._out.fact(name, text if news else None, listener=listener, **fields)
