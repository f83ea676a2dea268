"""What `--map-ports` prints: what changes, for people; everything, as JSON."""

from __future__ import annotations

import io
import json

from flare.cli.output import Output
from flare.cli.port_mapping import MappedPorts
from flare.events import DoubleNatFound, Event, PortMapped, PortMappingFailed, PortMappingLost, PunchStarted
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

TCP = Multiaddr("/ip4/10.0.0.2/tcp/4001")
OUTSIDE = Multiaddr("/ip4/102.1.0.1/tcp/4001")
MAPPED = PortMapped(TCP, OUTSIDE, "PCP", "10.0.0.1", 7200.0)
EVENTS: tuple[Event, ...] = (
    PortMappingFailed(None, "nobody answers", 15.0),
    PortMappingFailed(None, "nobody answers", 30.0),
    MAPPED,
    MAPPED,
    PortMappingLost(TCP, OUTSIDE, "it was given back"),
    MAPPED,
    PortMappingFailed(TCP, "no resources", 15.0),
    DoubleNatFound("10.0.0.1", "10.9.0.1", "double NAT: it has a private address"),
    PunchStarted(Identity.generate().peer_id, "initiator"),
)


def printed(as_json: bool) -> list[str]:
    out = io.StringIO()
    ports = MappedPorts(Output(as_json, out))
    for event in EVENTS:
        ports.show(event)
    return out.getvalue().splitlines()


def test_people_are_told_what_changes() -> None:
    assert printed(False) == [
        "no port mapped: nobody answers",
        "the router at 10.0.0.1 forwards /ip4/102.1.0.1/tcp/4001 to us (PCP)",
        "the router no longer forwards /ip4/102.1.0.1/tcp/4001 to us: it was given back",
        "the router at 10.0.0.1 forwards /ip4/102.1.0.1/tcp/4001 to us (PCP)",
        "no port mapped for /ip4/10.0.0.2/tcp/4001: no resources",
        "double NAT: it has a private address",
    ]


def test_json_has_all_of_it() -> None:
    lines = [json.loads(line) for line in printed(True)]
    assert [line["event"] for line in lines] == [
        "port-mapping-failed",
        "port-mapping-failed",
        "port-mapped",
        "port-mapped",
        "port-mapping-lost",
        "port-mapped",
        "port-mapping-failed",
        "double-nat",
    ]
    assert lines[2] == {
        "event": "port-mapped",
        "listener": str(TCP),
        "external": str(OUTSIDE),
        "protocol": "PCP",
        "gateway": "10.0.0.1",
        "lifetime": 7200.0,
    }
