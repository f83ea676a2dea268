"""flare relay and flare listen: what they print, and how they end."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import LOOPBACK, SIGNALS, TIMEOUT, environment, meeting, run, running


def test_relay_says_where_it_listens_and_what_it_does(tmp_path: Path) -> None:
    key = str(tmp_path / "relay.key")
    me = run("id", "--identity", key).stdout.decode().strip()
    with running("relay", "--listen", LOOPBACK, "--identity", key, "--json") as relay:
        told = relay.fact("listening")
        assert told["peer"] == me
        assert len(told["addrs"]) == 1
        (addr,) = told["addrs"]
        assert addr.startswith("/ip4/127.0.0.1/tcp/")
        assert addr.endswith(f"/p2p/{me}")
        with running("listen", "--relay", addr, "--listen", LOOPBACK, "--json") as listener:
            listening = listener.fact("listening")
            peer = listening["peer"]
            assert [a.partition("/tcp/")[0] for a in listening["addrs"]] == ["/ip4/127.0.0.1"]
            reserved = listener.fact("reserved")
            assert reserved["relay"] == me
            assert reserved["addrs"] == [f"{addr}/p2p-circuit/p2p/{peer}"]
            assert reserved["limit"] == {"duration": 120, "data": 131072}
            reservation = relay.fact("reservation")
            assert reservation["peer"] == peer
            assert reservation["expires"] == reserved["expires"]


def test_without_limits_none_is_told() -> None:
    with running("relay", "--listen", LOOPBACK, "--no-limits", "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        with running("listen", "--relay", addr, "--listen", LOOPBACK, "--json") as listener:
            assert listener.fact("reserved")["limit"] is None


@pytest.mark.parametrize("threads", ["auto", "1"])
def test_with_data_threads_it_relays_too(threads: str) -> None:
    with running("relay", "--listen", LOOPBACK, "--no-limits", "--threads", threads, "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        with running("listen", "--relay", addr, "--listen", LOOPBACK, "--json") as listener:
            peer = listener.fact("listening")["peer"]
            listener.fact("reserved")
            assert run("ping", f"{addr}/p2p-circuit/p2p/{peer}", "--count", "1").returncode == 0
            relay.fact("circuit-opened")


@pytest.mark.parametrize("threads", ["-1", "many", "1025"])
def test_threads_that_cannot_be(threads: str) -> None:
    ended = run("relay", "--listen", LOOPBACK, f"--threads={threads}")
    assert ended.returncode == 2
    assert b"auto, or 0 to 1024" in ended.stderr


def test_people_get_sentences() -> None:
    with running("relay", "--listen", LOOPBACK) as relay:
        assert relay.line() == "relay listening on"
        addr = relay.line().strip()
        with running("listen", "--relay", addr, "--listen", LOOPBACK) as listener:
            assert listener.line() == "listening on"
            peer = listener.line().rpartition("/")[2]
            assert listener.line() == f"reserved on {addr[-8:]}: reach me at"
            assert listener.line() == f"  {addr}/p2p-circuit/p2p/{peer}"
            assert relay.line() == f"reserved for {peer}"
            assert run("ping", f"{addr}/p2p-circuit/p2p/{peer}", "--count", "1").returncode == 0
            assert relay.line().startswith("circuit ")
            assert listener.line().endswith("is here, relayed")


def test_announced_addresses_come_first() -> None:
    with running(
        "relay", "--listen", LOOPBACK, "--announce", "/dns4/relay.example/tcp/4001", "--json"
    ) as relay:
        assert relay.fact("listening")["addrs"][0].startswith("/dns4/relay.example/tcp/4001/p2p/12D3Koo")


def test_a_lost_relay_is_told_with_when_it_is_tried_again() -> None:
    with meeting() as (_, relay, listener):
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 0
        lost = listener.fact("reservation-lost")
        assert "the connection to the relay was lost" in lost["reason"]
        assert 0 < lost["retry_in"] < 5
        again = listener.fact("reservation-lost")
        assert "Connection refused" in again["reason"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_each_cleanly(number: signal.Signals, loop: str) -> None:
    with running("relay", "--listen", LOOPBACK, "--json", FLARE_LOOP=loop) as relay:
        addr = relay.fact("listening")["addrs"][0]
        with running("listen", "--relay", addr, "--listen", LOOPBACK, "--json", FLARE_LOOP=loop) as listener:
            listener.fact("reserved")
            for server in (listener, relay):
                server.signal(number)
                assert server.wait() == 0
                assert server.complaint() == ""


def test_a_second_signal_does_not_wait() -> None:
    """Stopped peers say no goodbye; the first signal waits Timeouts.close for them, the second does not."""
    with meeting() as (_, relay, listener):
        relay.signal(signal.SIGSTOP)
        listener.signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            listener.process.wait(0.5)
        listener.signal(signal.SIGTERM)
        assert listener.process.wait(3) == 130
        assert listener.complaint() == ""


def test_who_reads_no_more_ends_it() -> None:
    with running("relay", "--listen", LOOPBACK, "--json") as relay:
        addr = relay.fact("listening")["addrs"][0]
        process = subprocess.Popen(
            [sys.executable, "-m", "flare", "listen", "--relay", addr, "--listen", LOOPBACK, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        relay.signal(signal.SIGTERM)  # so that there is more to say, however late we were to close
        _, complaint = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 1
        assert complaint == b""


def test_a_port_that_is_taken() -> None:
    with running("relay", "--listen", LOOPBACK, "--json") as relay:
        addr = relay.fact("listening")["addrs"][0].partition("/p2p/")[0]
        done = run("relay", "--listen", addr)
        assert done.returncode == 1
        assert done.stderr.decode() == f"flare relay: listening on {addr}: Address already in use\n"


def test_a_relay_asks_for_all_the_descriptors_it_may_have() -> None:
    with running("relay", "--listen", LOOPBACK, "--json") as relay:
        relay.fact("listening")
        soft, hard = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard or soft >= 1 << 20


@pytest.mark.parametrize("command", ["relay", "listen"])
def test_ports_that_no_router_can_map_are_said_and_keep_nobody(command: str) -> None:
    with running(command, "--listen", LOOPBACK, "--map-ports", "--json") as server:
        assert server.fact("listening")["addrs"]
        failed = server.fact("port-mapping-failed")
        assert failed["listener"] is None
        assert failed["reason"]
