"""The screen of `flare check`: as in the files of tests/cli/screens, which were read by eye; and the JSON.

UPDATE_SCREENS=1 writes the files anew.
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest

from flare.cli.check.findings import Family, Findings, Path, Ports, Relay
from flare.cli.check.ink import MAX_WIDTH, MIN_WIDTH, Ink, ink_for
from flare.cli.check.screen import MAX_LINES, screen
from flare.nat.behaviour import Behaviour
from flare.nat.outlook import Outcome, Peer, Way
from flare.nat.reachability import Reachable
from flare.wire.multiaddr import Multiaddr
from tests.cli.findings import (
    ALONE,
    BLOCKED,
    MAPPED,
    OUTSIDE,
    PORT,
    PUBLIC,
    RELAYS,
    SCREENS,
    SYMMETRIC,
    address,
    relay,
    word,
)

QUIC_ONLY = Multiaddr(f"/ip4/198.51.100.7/udp/4001/quic-v1/p2p/{RELAYS[0]}")
FILES = FilePath(__file__).parent / "screens"


@pytest.mark.parametrize("name", SCREENS)
def test_as_it_was_read_by_eye(name: str) -> None:
    file = FILES / f"{name}.txt"
    shown = screen(SCREENS[name], Ink(width=90)) + "\n"
    if os.environ.get("UPDATE_SCREENS"):
        file.write_text(shown)
    assert shown == file.read_text()


@pytest.mark.parametrize("name", SCREENS)
def test_colour_adds_nothing_but_colour(name: str) -> None:
    plain = screen(SCREENS[name], Ink(width=90))
    painted = screen(SCREENS[name], Ink(colour=True, width=90))
    assert painted != plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain


@pytest.mark.parametrize("width", [MIN_WIDTH, MAX_WIDTH])
def test_the_worst_fits_one_screen(width: int) -> None:
    lost = Relay(
        Multiaddr(f"/ip4/198.51.100.7/tcp/4001/p2p/{RELAYS[0]}"), reason="connection refused, " * 100
    )
    longest = "/ip6/2a01:4f8:1234:5678:9abc:def0:1234:5678/udp/65535/quic-v1"
    found = replace(
        SYMMETRIC,
        ipv6=Family(6, tuple(f"2a01:4f8:1234:5678:9abc:def0:1234:{n}" for n in range(10)), "2a01::1", True),
        relays=(relay(1), relay(2), *([lost] * 20)),
        ports=Ports(True, reason="no " * 100, doubts=("double NAT " * 100,) * 3),
        addrs=tuple(
            address(longest.replace("65535", str(port)), state, word(False, f"reason {port} " * 100))
            for port in range(20)
            for state in Reachable
        ),
    )
    lines = screen(found, Ink(width=width)).splitlines()
    assert len(lines) <= MAX_LINES, "\n".join(lines)
    assert max(map(len, lines)) <= width


def test_what_a_peer_says_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2Jgone\n\r\u202e"
    lost = Relay(Multiaddr(f"/ip4/198.51.100.7/tcp/4001/p2p/{RELAYS[0]}"), reason=evil)
    found = replace(
        PORT,
        relays=(relay(1), lost),
        addrs=(address("/ip4/103.1.0.1/tcp/1", Reachable.PRIVATE, word(False, evil)),),
    )
    assert not [char for char in screen(found, Ink()) if not char.isprintable() and char != "\n"]


class TestVerdict:
    @pytest.mark.parametrize(
        ("found", "outcome", "code"),
        [
            (PUBLIC, Outcome.PUBLIC, 0),
            (PORT, Outcome.PUNCHED, 3),
            (SYMMETRIC, Outcome.PUNCHED, 3),
            (BLOCKED, Outcome.PUNCHED, 3),
            (ALONE, Outcome.UNKNOWN, 1),
        ],
    )
    def test_each_has_its_exit_code(self, found: Findings, outcome: Outcome, code: int) -> None:
        assert (found.outlook.outcome, found.code) == (outcome, code)

    def test_without_udp_a_symmetric_nat_leaves_the_relay(self) -> None:
        found = replace(BLOCKED, behaviours={"tcp": SYMMETRIC.behaviours["tcp"]}, addrs=())
        assert (found.outlook.outcome, found.code) == (Outcome.RELAYED, 4)

    def test_udp_counts_as_blocked_only_by_a_relay_that_answers_otherwise(self) -> None:
        assert PORT.works("udp") is True
        assert BLOCKED.works("udp") is False
        assert ALONE.works("udp") is None
        gone = replace(relay(1), paths=tuple(replace(path, rtt=None) for path in relay(1).paths))
        assert replace(PORT, relays=(gone,)).works("udp") is None

    def test_only_over_ipv6(self) -> None:
        public = address("/ip6/2a01:4f8::2/tcp/4001", Reachable.PUBLIC, word(True, "came"))
        found = replace(
            PORT, ipv6=Family(6, ("2a01:4f8::2",), "2a01:4f8::2", True), addrs=(*PORT.addrs, public)
        )
        assert found.public_over_ipv6
        assert found.outlook.outcome is Outcome.PUNCHED
        assert "Over IPv6 everybody reaches you directly" in screen(found, Ink())
        without_ipv4 = replace(found, ipv4=Family(4))
        assert without_ipv4.outlook.outcome is Outcome.PUBLIC

    def test_one_relay_says_what_it_cannot_tell(self) -> None:
        found = replace(
            PORT, relays=(relay(1),), behaviours={"tcp": Behaviour("tcp", external=OUTSIDE)}, addrs=()
        )
        assert found.outlook.outcome is Outcome.UNKNOWN
        assert "give another one that has another IP" in screen(found, Ink(width=300))
        assert found.outlook.best(Peer.PORT_RESTRICTED) is Way.UNKNOWN

    def test_a_mapped_port_makes_public_as_long_as_it_is_kept(self) -> None:
        assert MAPPED.by_mapping
        assert MAPPED.code == 0
        assert "PUBLIC as long as the router forwards ports" in screen(MAPPED, Ink())
        assert not PUBLIC.by_mapping
        assert not PORT.by_mapping
        (udp, _) = MAPPED.addrs
        forwarded = address(f"/ip4/{OUTSIDE}/tcp/4001", Reachable.PUBLIC, word(True, "the server connected"))
        assert not replace(MAPPED, addrs=(udp, forwarded)).by_mapping

    def test_a_double_nat_is_said_so(self) -> None:
        doubt = "double NAT: the router's own outside address is 100.64.0.2, so that more is before it"
        found = replace(PORT, ports=Ports(True, reason="no", doubts=(doubt,)))
        assert doubt[:70] in screen(found, Ink())
        assert found.as_json()["port_mapping"]["doubts"] == [doubt]

    def test_a_router_that_was_not_asked_is_not_shown(self) -> None:
        assert "port mapping" in screen(PORT, Ink())
        assert "port mapping" not in screen(replace(PORT, ports=Ports()), Ink())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"ipv4": Family(4)}, "this machine is on no network"),
            ({"relays": ()}, "nobody was asked"),
            ({"relays": (Relay(relay(1).addr),)}, "no relay was reached."),
            ({"relays": (Relay(QUIC_ONLY),)}, "over TCP it might be"),
            ({"relays": (replace(relay(1), dials_back=False),)}, "no relay dials back"),
            ({"relays": (relay(1),)}, "one relay does not see enough"),
            ({}, "the relays could not tell"),
        ],
    )
    def test_unknown_says_why(self, change: dict[str, Any], words: str) -> None:
        found = replace(PORT, behaviours={}, addrs=(), **change)
        assert found.code == 1
        assert words in screen(found, Ink(width=300))

    def test_a_transport_that_nobody_could_try_is_left_out(self) -> None:
        only_tcp = replace(relay(1), paths=relay(1).paths[:1])
        found = replace(PORT, relays=(only_tcp,))
        assert found.works("udp") is None
        assert "over UDP" not in screen(found, Ink())
        assert found.as_json()["peers"]["none"]["udp"] is None

    def test_the_time_was_over(self) -> None:
        found = replace(PORT, behaviours={}, addrs=(), cut=True)
        assert "--timeout gives it more" in screen(found, Ink(width=300))


class TestJson:
    @pytest.mark.parametrize("name", SCREENS)
    def test_it_is_plain_and_complete(self, name: str) -> None:
        told = json.loads(json.dumps(SCREENS[name].as_json()))
        assert {"verdict", "code", "udp", "tcp", "ipv4", "ipv6", "nat", "relays", "addrs", "peers"} <= set(
            told
        )
        assert set(told["peers"]) == {peer.value for peer in Peer}

    def test_of_a_port_restricted_nat(self) -> None:
        told = PORT.as_json()
        assert (told["verdict"], told["code"], told["udp"], told["public_addrs"]) == (
            "punched",
            3,
            True,
            [OUTSIDE],
        )
        assert told["nat"]["udp"] == PORT.behaviours["udp"].as_json()
        assert told["peers"]["symmetric random"] == {
            "best": "by prediction",
            "udp": "by prediction",
            "tcp": "only by relay",
        }
        assert told["addrs"][0]["state"] == "private"
        assert told["port_mapping"]["asked"] is True
        assert told["port_mapping"]["reason"].startswith("the router at 10.3.0.1 maps no ports: PCP")
        assert told["addrs"][0]["evidence"][0]["inferred"] is True

    def test_of_mapped_ports(self) -> None:
        told = MAPPED.as_json()
        assert told["by_mapping"] is True
        assert told["port_mapping"]["mapped"][1] == {
            "listener": "/ip4/10.3.0.2/tcp/40123",
            "external": f"/ip4/{OUTSIDE}/tcp/40123",
            "protocol": "UPnP IGD 2",
            "gateway": "10.3.0.1",
            "lifetime": 7200.0,
        }

    def test_a_transport_that_is_blocked_has_no_way(self) -> None:
        assert BLOCKED.as_json()["peers"]["none"]["udp"] is None


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestInk:
    def test_a_pipe_gets_plain_text(self) -> None:
        assert ink_for(io.StringIO(), {}) == Ink(False, MAX_WIDTH)

    @pytest.mark.parametrize(
        ("environment", "colour"),
        [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    )
    def test_a_terminal_gets_colour_unless_told_otherwise(
        self, environment: dict[str, str], colour: bool
    ) -> None:
        assert ink_for(_Terminal(), environment).colour is colour

    @pytest.mark.parametrize(("columns", "width"), [("20", 80), ("80", 80), ("93", 93), ("250", 100)])
    def test_width(self, columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        assert ink_for(_Terminal(), {}).width == width


def test_paths_know_their_transport() -> None:
    assert Path(Multiaddr("/ip4/1.2.3.4/udp/4001/quic-v1")).transport == "udp"
    assert Path(Multiaddr("/ip4/1.2.3.4/tcp/4001")).transport == "tcp"
