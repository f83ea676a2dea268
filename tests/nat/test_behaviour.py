"""nat/behaviour.py: every row of its tables."""

from __future__ import annotations

import json

import pytest

from flare.nat.behaviour import (
    MAX_STEP,
    STRANGERS,
    Allocation,
    Behaviour,
    Endpoint,
    Filtering,
    Lifetime,
    Mapping,
    Sight,
    judge_allocation,
    judge_filtering,
    judge_mapping,
    transport_of,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

OWN = ["192.168.1.2", "9.9.9.9"]
A1, A2, B1, C1 = ("1.0.0.1", 1), ("1.0.0.1", 2), ("2.0.0.1", 1), ("3.0.0.1", 1)


def sights(*seen: tuple[Endpoint, int]) -> list[Sight]:
    return [Sight(vantage, 5000, ("8.8.8.8", port)) for vantage, port in seen]


@pytest.mark.parametrize(
    ("seen", "mapping"),
    [
        ([], Mapping.UNKNOWN),
        ([(A1, 1)], Mapping.UNKNOWN),
        ([(A1, 1), (A2, 1)], Mapping.UNKNOWN),
        ([(A1, 1), (B1, 1)], Mapping.ENDPOINT_INDEPENDENT),
        ([(A1, 1), (A2, 1), (B1, 1)], Mapping.ENDPOINT_INDEPENDENT),
        ([(A1, 1), (B1, 2)], Mapping.ENDPOINT_DEPENDENT),
        ([(A1, 1), (A2, 1), (B1, 2)], Mapping.ADDRESS_DEPENDENT),
        ([(A1, 1), (A2, 2)], Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ([(A1, 1), (A2, 2), (B1, 3)], Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ([(A1, 1), (A2, 2), (B1, 1)], Mapping.ENDPOINT_INDEPENDENT),
        ([(A1, 1), (B1, 2), (C1, 1)], Mapping.ENDPOINT_INDEPENDENT),
    ],
)
def test_mapping(seen: list[tuple[Endpoint, int]], mapping: Mapping) -> None:
    assert judge_mapping(sights(*seen), OWN) is mapping
    dependent = {
        Mapping.ADDRESS_DEPENDENT,
        Mapping.ADDRESS_AND_PORT_DEPENDENT,
        Mapping.ENDPOINT_DEPENDENT,
    }
    assert mapping.depends == (mapping in dependent)


def test_no_nat() -> None:
    assert judge_mapping([Sight(A1, 5000, ("9.9.9.9", 5000))], OWN) is Mapping.NONE
    assert judge_mapping([Sight(A1, 5000, ("9.9.9.9", 5001))], OWN) is Mapping.UNKNOWN


@pytest.mark.parametrize(
    ("other_port", "other_address", "filtering"),
    [
        (True, True, Filtering.ENDPOINT_INDEPENDENT),
        (None, True, Filtering.ENDPOINT_INDEPENDENT),
        (True, False, Filtering.ADDRESS_DEPENDENT),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (False, None, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (True, None, Filtering.UNKNOWN),
        (None, False, Filtering.UNKNOWN),
        (None, None, Filtering.UNKNOWN),
    ],
)
def test_filtering(other_port: bool | None, other_address: bool | None, filtering: Filtering) -> None:
    assert judge_filtering(other_port, other_address) is filtering
    assert judge_filtering(other_port, other_address, True) is Filtering.ENDPOINT_INDEPENDENT
    assert judge_filtering(other_port, other_address, False) is filtering


def allocated(*pairs: tuple[int, int]) -> tuple[Allocation, int]:
    return judge_allocation([Sight(A1, local, ("8.8.8.8", outside)) for local, outside in pairs])


def test_allocation() -> None:
    assert allocated() == (Allocation.UNKNOWN, 0)
    assert allocated((5, 5), (6, 6)) == (Allocation.PRESERVING, 0)
    assert allocated((5, 9), (6, 10)) == (Allocation.UNKNOWN, 0)
    assert allocated((5, 9), (6, 10), (7, 11)) == (Allocation.SEQUENTIAL, 1)
    assert allocated((5, 9), (6, 11), (7, 13)) == (Allocation.SEQUENTIAL, 2)
    assert allocated((5, 65535), (6, 0), (7, 1)) == (Allocation.SEQUENTIAL, 1), "past the last port"
    assert allocated((5, 9), (6, 10), (7, 11 + STRANGERS)) == (Allocation.RANDOM, 0)
    assert allocated((5, 9), (6, 10), (7, 10 + STRANGERS)) == (Allocation.SEQUENTIAL, 1)
    assert allocated((5, 9), (6, 9 + MAX_STEP), (7, 9 + 2 * MAX_STEP)) == (Allocation.SEQUENTIAL, MAX_STEP)
    assert allocated((5, 9), (6, 10 + MAX_STEP), (7, 11 + 2 * MAX_STEP)) == (Allocation.RANDOM, 0)
    assert allocated((5, 40000), (6, 31000), (7, 52000)) == (Allocation.RANDOM, 0)
    late = [11, 12, 17, 13, 14, 15, 16]
    assert allocated(*enumerate(late)) == (Allocation.SEQUENTIAL, 1), "a packet was sent again"
    assert allocated(*enumerate([65534, 2, 65535, 0, 1])) == (Allocation.SEQUENTIAL, 1)
    assert allocated(*enumerate([11, 17, 12, 16, 13])) == (Allocation.RANDOM, 0), "that is no order"
    assert allocated(*enumerate([14, 13, 12, 11])) == (Allocation.RANDOM, 0), "they do not grow"


def test_whose_dial_back_proves_something() -> None:
    ei = Filtering.ENDPOINT_INDEPENDENT
    assert Behaviour(mapping=Mapping.NONE, filtering=ei).says_public
    assert not Behaviour(mapping=Mapping.NONE).says_public, "there may be a firewall"
    assert Behaviour(mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=ei).says_public
    assert not Behaviour(mapping=Mapping.ENDPOINT_DEPENDENT, filtering=ei).says_public
    assert not Behaviour(
        mapping=Mapping.ENDPOINT_INDEPENDENT, filtering=Filtering.ADDRESS_DEPENDENT
    ).says_public


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour("udp", blocked=True), ["UDP", "blocked"]),
        (Behaviour("tcp"), ["TCP", "cannot be told", "two servers"]),
        (Behaviour("udp", Mapping.NONE), ["no NAT before UDP"]),
        (Behaviour("tcp", Mapping.NONE, Filtering.ADDRESS_DEPENDENT), ["no NAT", "firewall"]),
        (
            Behaviour("tcp", Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT),
            ["endpoint-independent mapping", "lets in everybody"],
        ),
        (
            Behaviour("udp6", Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT),
            ["UDP", "whom we have sent to", "address-and-port-dependent filtering", "hole punches"],
        ),
        (
            Behaviour("udp", Mapping.ADDRESS_DEPENDENT, allocation=Allocation.RANDOM),
            [
                "endpoint-dependent mapping for UDP",
                "address-dependent mapping",
                "nobody can be told",
                "relay",
            ],
        ),
        (
            Behaviour("tcp", Mapping.ENDPOINT_DEPENDENT, allocation=Allocation.SEQUENTIAL, step=2),
            ["endpoint-dependent mapping for TCP", "step 2", "predicted"],
        ),
    ],
)
def test_what_follows_is_said(behaviour: Behaviour, words: list[str]) -> None:
    for word in words:
        assert word in behaviour.sentence
    assert behaviour.as_json()["sentence"] == behaviour.sentence


def test_as_json() -> None:
    peer = Identity.generate().peer_id
    whole = Behaviour(
        "udp",
        Mapping.ADDRESS_DEPENDENT,
        Filtering.ADDRESS_DEPENDENT,
        Allocation.SEQUENTIAL,
        2,
        False,
        "8.8.8.8",
        filtered=(peer,),
        lifetime=Lifetime(15, None, 0.5),
    )
    told = whole.as_json()
    told.pop("sentence")
    assert told == {
        "transport": "udp",
        "mapping": "address-dependent",
        "filtering": "address-dependent",
        "allocation": "sequential",
        "step": 2,
        "hairpin": False,
        "external": "8.8.8.8",
        "blocked": False,
        "lifetime": {"at_least": 15, "at_most": None, "confidence": 0.5},
    }
    assert json.loads(json.dumps(whole.as_json())) == whole.as_json()


@pytest.mark.parametrize(
    ("addr", "transport"),
    [
        ("/ip4/1.2.3.4/tcp/1", "tcp"),
        ("/ip4/1.2.3.4/udp/1/quic-v1", "udp"),
        ("/ip6/2a00::1/tcp/1", "tcp6"),
        ("/ip6/2a00::1/udp/1/quic-v1", "udp6"),
        ("/ip4/1.2.3.4/udp/1", None),
        ("/dns/example.com/tcp/1", None),
        ("/ip4/1.2.3.4/tcp/1/ws", None),
    ],
)
def test_which_behaviour_counts_for_an_address(addr: str, transport: str | None) -> None:
    assert transport_of(Multiaddr(addr)) == transport
