"""flare connect: stdin and stdout over a stream, direct and relayed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

from tests.cli.command import LOOPBACK, TIMEOUT, environment, facts, meeting, run, running


def test_there_and_back() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        addr = listener.fact("listening")["addrs"][0]
        done = run("connect", addr, "--json", stdin=b"hello")
        assert (done.returncode, done.stdout) == (0, b"hello")
        (fact,) = facts(done.stderr)
        assert fact["event"] == "connected"
        assert fact["path"] == "direct/tcp"


def test_nothing_to_say() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        done = run("connect", listener.fact("listening")["addrs"][0], stdin=b"")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"connected, direct/tcp\n")


def test_much() -> None:
    data = random.Random(1).randbytes(8 << 20)
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        done = run("connect", listener.fact("listening")["addrs"][0], stdin=data)
        assert done.returncode == 0
        assert done.stdout == data


def test_relayed() -> None:
    data = random.Random(2).randbytes(1 << 20)
    with meeting("--no-limits", listen=("--no-punch",)) as (circuit, relay, _):
        done = run("connect", circuit, "--relayed", "--json", stdin=data)
        assert done.returncode == 0, done.stderr
        assert done.stdout == data
        assert facts(done.stderr)[-1]["path"] == "relayed"
        closed = relay.fact("circuit-closed")
        assert closed["source_bytes"] > len(data)
        assert closed["target_bytes"] > len(data)


def test_why_it_stays_relayed_is_told() -> None:
    with meeting(listen=("--no-punch",)) as (circuit, _, _):
        done = run("connect", circuit, "--timeout", "0.5", "--json", stdin=b"x")
        assert (done.returncode, done.stdout) == (0, b"x")
        relayed, connected = facts(done.stderr)
        assert relayed["event"] == "relayed"
        assert "began no hole punch" in relayed["reason"]
        assert connected["path"] == "relayed"


def test_past_the_relays_limit_it_fails() -> None:
    with meeting(listen=("--no-punch",)) as (circuit, relay, _):
        done = run("connect", circuit, "--relayed", stdin=bytes(1 << 20))
        assert done.returncode == 1
        assert b"flare connect: " in done.stderr
        assert relay.fact("circuit-closed")["reason"] == "limit"


def test_a_protocol_that_the_peer_does_not_speak() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        told = listener.fact("listening")
        done = run("connect", told["addrs"][0], "/none/1", stdin=b"x")
        assert done.returncode == 1
        last = done.stderr.decode().splitlines()[-1]
        assert last == f"flare connect: peer {told['peer']} does not speak /none/1"


def test_a_dead_address() -> None:
    done = run("connect", "/ip4/127.0.0.1/tcp/1", "--json")
    assert (done.returncode, done.stdout) == (1, b""), "stdout is the stream's alone"
    assert b"Connection refused" in done.stderr


def test_a_silent_stdin_holds_nothing_up() -> None:
    """The peer leaves while nobody types: the thread that waits for stdin must not keep the process."""
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        addr = listener.fact("listening")["addrs"][0]
        words = [sys.executable, "-m", "flare", "connect", addr]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as connect:
            assert connect.stdin is not None
            assert connect.stdout is not None
            connect.stdin.write(b"x")
            connect.stdin.flush()
            assert connect.stdout.read(1) == b"x", "what is typed goes out at once"
            listener.signal(signal.SIGTERM)
            assert connect.wait(TIMEOUT) == 1


def test_a_signal_ends_it() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        addr = listener.fact("listening")["addrs"][0]
        words = [sys.executable, "-m", "flare", "connect", addr]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as connect:
            assert connect.stderr is not None
            assert connect.stderr.readline() == b"connected, direct/tcp\n"
            connect.send_signal(signal.SIGINT)
            assert connect.wait(TIMEOUT) == 130


def test_nobody_takes_what_comes_back() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        addr = listener.fact("listening")["addrs"][0]
        words = [sys.executable, "-m", "flare", "connect", addr]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as connect:
            assert connect.stdin is not None
            assert connect.stdout is not None
            assert connect.stderr is not None
            connect.stderr.readline()
            connect.stdout.close()
            connect.stdin.write(b"x")
            connect.stdin.flush()
            assert connect.wait(TIMEOUT) == 1
            assert connect.stderr.read() == b""
