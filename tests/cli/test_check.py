"""`flare check` as a process: what it prints, and how it ends, over loopback."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys

import pytest

from tests.cli.command import LOOPBACK, SIGNALS, TIMEOUT, environment, facts, run, running

BOTH = ("--listen", LOOPBACK, "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")


def test_without_a_relay_it_says_what_it_cannot_tell() -> None:
    done = run("check", "--no-map")
    assert done.returncode == 1
    assert done.stderr == b""
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("IPv4  ")
    assert any(line.startswith("UNKNOWN: nobody was asked. Say --relay ADDR") for line in lines)


def test_without_a_relay_as_json() -> None:
    done = run("check", "--no-map", "--json")
    told = facts(done.stdout)
    assert [fact["event"] for fact in told][:2] == ["ipv4", "ipv6"]
    verdict = told[-1]
    assert (verdict["event"], verdict["verdict"], verdict["code"]) == ("verdict", "unknown", done.returncode)
    assert verdict["relays"] == []


def test_a_relay_is_looked_at_over_each_transport() -> None:
    with running("relay", *BOTH, "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        done = run("check", "--no-map", "--relay", addr, "--json", "--timeout", "8")
    told = facts(done.stdout)
    (seen,) = [fact for fact in told if fact["event"] == "relay"]
    assert (seen["reached"], seen["place"], seen["addr"]) == (True, True, addr)
    assert seen["agent"].startswith("flare/")
    assert sorted(path["addr"].split("/")[3] for path in seen["paths"]) == ["tcp", "udp"]
    assert all(path["rtt_ms"] > 0 for path in seen["paths"])
    verdict = told[-1]
    assert verdict["event"] == "verdict"
    assert (verdict["udp"], verdict["tcp"]) == (True, True)
    assert verdict["relays"] == [{name: value for name, value in seen.items() if name != "event"}]
    assert done.returncode == verdict["code"]


def test_a_relay_that_keeps_no_place_is_said_so() -> None:
    with running("relay", *BOTH, "--max-reservations", "0", "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        done = run("check", "--no-map", "--relay", addr, "--timeout", "8")
    assert b"keeps no place" in done.stdout


def test_a_relay_that_does_not_dial_back_is_said_so() -> None:
    with running("relay", *BOTH, "--no-autonat", "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        done = run("check", "--no-map", "--relay", addr, "--timeout", "8")
    assert b"does not dial back" in done.stdout
    assert b"UNKNOWN: " in done.stdout
    assert done.returncode == 1


def on_a_terminal(*words: str, **env: str) -> str:
    """All that a command shows on a terminal."""
    near, far = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "flare", *words],
            stdin=subprocess.DEVNULL,
            stdout=far,
            stderr=far,
            env=environment(TERM="xterm", **env),
        ) as process:
            os.close(far)
            with contextlib.suppress(OSError):  # EIO: it has ended
                while piece := os.read(near, 4096):
                    shown += piece
            process.wait(TIMEOUT)
    finally:
        os.close(near)
    return shown.decode()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_it_shows_that_it_looks_and_wipes_that(no_color: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = run("id").stdout.decode().strip()
        addr = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        shown = on_a_terminal("check", "--no-map", "--relay", addr, "--timeout", "1.2", NO_COLOR=no_color)
    looking, wiped, screen = shown.rpartition("\r\x1b[K")
    assert wiped
    assert "asking the relays ... 0 s" in looking
    assert "asking the relays ... 1 s" in looking
    assert "UNKNOWN: " in screen
    assert ("\x1b[1m" in screen) is (no_color == "")


def test_elsewhere_it_shows_no_progress() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = run("id").stdout.decode().strip()
        addr = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        done = run("check", "--no-map", "--relay", addr, "--timeout", "0.5")
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout


def test_a_relay_that_is_not_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        peer = run("id").stdout.decode().strip()
        addr = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{peer}"
        done = run("check", "--no-map", "--relay", addr)
    assert done.returncode == 1
    shown = done.stdout.decode()
    assert "not reached: " in shown
    assert "Connection refused" in shown
    assert "UNKNOWN: no relay was reached." in shown


def test_a_relay_that_says_nothing_is_waited_for_no_longer_than_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = run("id").stdout.decode().strip()
        addr = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        done = run("check", "--no-map", "--relay", addr, "--timeout", "0.5", "--json")
    verdict = facts(done.stdout)[-1]
    assert (verdict["verdict"], verdict["cut"], done.returncode) == ("unknown", True, 1)
    assert verdict["relays"][0]["reason"] == "it did not answer in time"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--relay", "nonsense"), "'nonsense' is no multiaddr"),
        (("--relay", "/ip4/127.0.0.1/tcp/1"), "a relay is given as ADDR/p2p/PEER"),
        (("--timeout", "-1"), "-1 is no number of seconds"),
    ],
)
def test_a_wrong_command_line(words: tuple[str, ...], sentence: str) -> None:
    done = run("check", "--no-map", *words)
    assert done.returncode == 2
    assert done.stdout == b""
    assert sentence in done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_it(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = run("id").stdout.decode().strip()
        addr = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer}"
        with running("check", "--no-map", "--relay", addr, "--json") as check:
            check.fact("ipv6")
            mute.accept()[0].close()
            check.signal(number)
            assert check.wait() == 130
            assert check.complaint() == ""
