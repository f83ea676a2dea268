"""Whether an address that a router calls its own is one that strangers can reach."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.nat.port_mapping.external import Standing, judge
from flare.wire.multiaddr import Multiaddr, is_public


def judged(ip: str, *seen: str) -> tuple[Standing, str]:
    found = judge(ip_address(ip), [ip_address(other) for other in seen], is_public)
    return found.standing, found.sentence


@pytest.mark.parametrize(
    ("ip", "words"),
    [
        ("10.9.0.2", "a private address"),
        ("192.168.178.20", "a private address"),
        ("172.31.255.255", "a private address"),
        ("169.254.1.1", "a private address"),
        ("100.64.0.1", "RFC 6598"),
        ("100.127.255.255", "RFC 6598"),
        ("240.0.0.1", "leads nowhere"),
        ("198.51.100.1", "leads nowhere"),
    ],
)
def test_double_nat(ip: str, words: str) -> None:
    standing, sentence = judged(ip, "102.1.0.1")
    assert standing is Standing.USELESS
    assert sentence.startswith(f"double NAT: the router's own outside address is {ip}")
    assert words in sentence
    assert sentence.endswith("others see us at 102.1.0.1")


def test_a_router_without_an_address() -> None:
    standing, sentence = judged("0.0.0.0", "102.1.0.1")
    assert standing is Standing.USELESS
    assert sentence.startswith("double NAT: the router has no address on the internet itself, yet others see")
    assert judged("0.0.0.0")[1].endswith("it is not connected, or there is another NAT before it")


@pytest.mark.parametrize("ip", ["100.63.255.255", "100.128.0.0", "102.1.0.1"])
def test_nobody_has_told_yet(ip: str) -> None:
    assert judged(ip) == (Standing.UNCONFIRMED, "")


def test_others_see_us_there() -> None:
    assert judged("102.1.0.1", "102.1.0.9", "102.1.0.1") == (Standing.CONFIRMED, "")


def test_others_see_us_elsewhere() -> None:
    standing, sentence = judged("102.1.0.1", "102.1.0.9", "102.1.0.9")
    assert standing is Standing.DISPUTED
    assert "102.1.0.1, and others see us at 102.1.0.9:" in sentence


def test_who_sees_our_ipv6_address_says_nothing_of_ipv4() -> None:
    assert judged("102.1.0.1", "2a00::1")[0] is Standing.UNCONFIRMED


@given(st.ip_addresses(v=4), st.lists(st.ip_addresses(), max_size=5))
def test_only_what_is_public_and_seen_is_confirmed(ip: object, seen: list[object]) -> None:
    found = judge(ip, seen, is_public)  # type: ignore[arg-type]
    if found.standing is Standing.CONFIRMED:
        assert is_public(Multiaddr(f"/ip4/{ip}"))
        assert ip in seen
    assert (found.sentence == "") == (found.standing in (Standing.CONFIRMED, Standing.UNCONFIRMED))
