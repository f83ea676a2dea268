"""What every command shares: help, versions, mistakes, identities, speed of start."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

import flare
from flare.cli import COMMANDS, main
from flare.wire.keys import Identity
from tests.cli.command import environment, facts, run


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"flare {flare.__version__}\n".encode())


PEER = "12D3KooWFf57q52aK7vMdUPgWyNtVvMq2xjrrraZfFVd1Yeye5vj"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: flare {command}" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert [name for name in COMMANDS if f"    {name} " not in told] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["pong"], "invalid choice: 'pong'"),
        (["ping", "nonsense"], "argument ADDR: 'nonsense' is no multiaddr"),
        (["ping", "/ip4/1.2.3/tcp/1"], "argument ADDR: "),
        (["relay", "--listen", "4001"], "argument --listen: '4001' is no multiaddr"),
        (["ping", "/ip4/127.0.0.1/tcp/1", "--timeout", "-1"], "-1 is no number of seconds"),
        (["ping", "/ip4/127.0.0.1/tcp/1", "--count", "-1"], "-1 is less than nothing"),
        (["connect"], "the following arguments are required: ADDR"),
        (
            ["ping", PEER],
            f"'{PEER}' is no multiaddr: it must begin with a slash and a protocol; as one",
        ),
        (["relay", "--allow", "friend"], "'friend' is no peer id: not hexadecimal"),
    ],
)
def test_a_wrong_command_line_is_code_2_and_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert line.endswith("--help`)")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["listen", "--relay", "/ip4/127.0.0.1/tcp/1"], "a relay is given as ADDR/p2p/PEER"),
        (["ping", "/ip4/127.0.0.1/tcp/1/p2p-circuit"], "no whole circuit address"),
        (["ping", f"/p2p/{PEER}"], f"/p2p/{PEER} says who, and not where: give an address of the peer, or"),
        (["connect", f"/p2p/{PEER}"], f"/p2p/{PEER} says who, and not where"),
        (["relay", "--listen", "/ip4/127.0.0.1/tcp/0/ws"], "is no TCP address"),
    ],
)
def test_what_only_the_host_can_tell_is_code_2_too(words: list[str], sentence: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"flare {words[0]}: ")
    assert sentence in line


def test_with_json_an_error_is_a_fact_too() -> None:
    done = run("relay", "--listen", "/ip4/192.0.2.1/tcp/4001", "--json")
    assert done.returncode == 1
    (fact,) = facts(done.stdout)
    assert fact["event"] == "error"
    assert "listening on /ip4/192.0.2.1/tcp/4001: Cannot assign requested address" in fact["reason"]
    assert fact["reason"] in done.stderr.decode()


def test_only_the_module_of_the_command_is_imported() -> None:
    program = (
        "import sys, flare.cli; flare.cli.main(['id']); print(*[m for m in sys.modules if 'flare.lab' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.splitlines()[1] == ""


class TestId:
    def test_a_new_one_each_time(self) -> None:
        first, second = (run("id", "--json") for _ in range(2))
        (one,), (other,) = facts(first.stdout), facts(second.stdout)
        assert one["event"] == "id"
        assert one["key"] == "ed25519"
        assert one["peer"].startswith("12D3Koo")
        assert one["peer"] != other["peer"]

    def test_a_file_is_made_for_the_owner_only_and_used_again(self, tmp_path: Path) -> None:
        key = tmp_path / "peer.key"
        first, second = (run("id", "--identity", str(key)) for _ in range(2))
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert first.stdout == second.stdout == f"{Identity.load(key).peer_id}\n".encode()
        assert list(tmp_path.iterdir()) == [key]

    def test_a_bad_file_is_named_and_left_alone(self, tmp_path: Path) -> None:
        key = tmp_path / "peer.key"
        key.write_bytes(b"no key")
        done = run("id", "--identity", str(key))
        assert done.returncode == 2
        assert done.stdout == b""
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"flare id: {key}: ")
        assert key.read_bytes() == b"no key"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        key = tmp_path / "none" / "peer.key"
        done = run("id", "--identity", str(key))
        assert done.returncode == 1
        assert done.stderr.decode() == f"flare id: {key}: No such file or directory\n"

    def test_a_folder_in_place_of_a_file(self, tmp_path: Path) -> None:
        done = run("id", "--identity", str(tmp_path))
        assert done.returncode == 1
        assert done.stderr.decode() == f"flare id: {tmp_path}: Is a directory\n"

    def test_a_file_that_others_can_read_is_used_with_a_warning(self, tmp_path: Path) -> None:
        key = tmp_path / "peer.key"
        first = run("id", "--identity", str(key))
        assert first.stderr == b""
        key.chmod(0o640)
        second = run("id", "--identity", str(key))
        assert (second.returncode, second.stdout) == (0, first.stdout)
        assert second.stderr.decode() == f"{key} holds a secret and is open to others (mode 0640)\n"
