"""flare ping: a pong a line with its path, a verdict, and an exit code that agrees with it."""

from __future__ import annotations

import signal

import pytest

from tests.cli.command import LOOPBACK, SIGNALS, facts, meeting, run, running


def test_a_direct_connection_is_code_0() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        told = listener.fact("listening")
        done = run("ping", told["addrs"][0], "--json")
        assert done.returncode == 0
        assert done.stderr == b""
        pong, direct = facts(done.stdout)
        assert pong["event"] == "pong"
        assert pong["path"] == "direct/tcp"
        assert pong["peer"] == told["peer"]
        assert 0 < pong["rtt_ms"] < 5000
        assert direct["event"] == "direct"
        assert direct["path"] == "direct/tcp"
        assert direct["attempts"] == 0
        assert 0 < direct["seconds"] < 20
        assert listener.fact("connection")["path"] == "direct/tcp"


def test_staying_relayed_is_code_1_with_the_reason() -> None:
    with meeting(listen=("--no-punch",)) as (circuit, _, listener):
        done = run("ping", circuit, "--json", "--timeout", "1", "--interval", "0.2")
        assert done.returncode == 1
        *pongs, verdict = facts(done.stdout)
        assert len(pongs) >= 2
        assert {(pong["event"], pong["path"]) for pong in pongs} == {("pong", "relayed")}
        assert verdict["event"] == "relayed"
        assert "began no hole punch within 1 s" in verdict["reason"]
        assert verdict["attempts"] == 0
        assert listener.fact("connection")["path"] == "relayed"


def test_both_sides_say_why_there_is_no_way() -> None:
    with meeting() as (circuit, _, listener):
        done = run("ping", circuit, "--listen", LOOPBACK, "--json")
        assert done.returncode == 1
        verdict = facts(done.stdout)[-1]
        assert verdict["event"] == "relayed"
        assert "no address that can be reached from here" in verdict["reason"]
        assert listener.fact("punch")["role"] == "initiator"
        assert "no address that can be reached from here" in listener.fact("relayed")["reason"]


def test_relay_is_a_way_to_a_bare_peer() -> None:
    with meeting(listen=("--no-punch",)) as (circuit, _, _):
        relay, _, peer = circuit.partition("/p2p-circuit")
        done = run("ping", peer, "--relay", relay, "--count", "2", "--interval", "0", "--json")
        assert done.returncode == 0
        assert [fact["path"] for fact in facts(done.stdout)] == ["relayed", "relayed"]


def test_people_get_sentences() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        done = run("ping", listener.fact("listening")["addrs"][0])
        pong, verdict = done.stdout.decode().splitlines()
        assert pong.startswith("pong from ")
        assert pong.endswith(" ms, direct/tcp")
        assert verdict == "direct: direct/tcp"


def test_a_dead_address_is_code_1_with_the_reason() -> None:
    done = run("ping", "/ip4/127.0.0.1/tcp/1", "--json")
    assert done.returncode == 1
    (fact,) = facts(done.stdout)
    assert fact["event"] == "failed"
    assert fact["reason"] == "could not dial /ip4/127.0.0.1/tcp/1: Connection refused"


def test_a_peer_without_a_place_on_the_relay() -> None:
    with running("relay", "--listen", LOOPBACK, "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        peer = run("id").stdout.decode().strip()
        done = run("ping", f"{addr}/p2p-circuit/p2p/{peer}", "--json")
        assert done.returncode == 1
        (fact,) = facts(done.stdout)
        assert "204 (peer has no reservation)" in fact["reason"]


def test_a_peer_that_goes_away_is_told() -> None:
    with (
        meeting(listen=("--no-punch",)) as (circuit, _, listener),
        running("ping", circuit, "--json", "--interval", "0.1", "--timeout", "2") as ping,
    ):
        assert ping.fact("pong")["path"] == "relayed"
        listener.signal(signal.SIGTERM)
        assert "the connection is gone: the peer closed the connection" in ping.fact("failed")["reason"]
        assert ping.wait() == 1


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_it_before_its_verdict(number: signal.Signals) -> None:
    with (
        meeting(listen=("--no-punch",)) as (circuit, _, _),
        running("ping", circuit, "--json", "--interval", "0.1") as ping,
    ):
        ping.fact("pong")
        ping.signal(number)
        assert ping.wait() == 130
        assert ping.complaint() == ""
