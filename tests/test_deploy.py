"""The systemd unit: its command line is one that flare takes, and systemd finds nothing wrong with it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from flare.cli import parser

UNIT = Path(__file__).parent.parent / "deploy" / "flare-relay.service"


def settings(name: str) -> list[str]:
    """What the unit sets `name` to."""
    lines = UNIT.read_text().replace("\\\n", " ").splitlines()
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] == name]


def test_its_command_is_one() -> None:
    (command,) = settings("ExecStart")
    program, *words = shlex.split(command)
    assert program == "/opt/flare/bin/flare"
    args = parser("relay").parse_args(words)
    assert args.status == "127.0.0.1:9100"
    assert str(args.identity) == "${STATE_DIRECTORY}/relay.key"
    assert [(addr.transport, addr.port) for addr in args.announce] == [("quic-v1", 4001), ("tcp", 4001)]


def test_it_has_no_privileges() -> None:
    assert settings("CapabilityBoundingSet") == [""]
    assert settings("AmbientCapabilities") == []
    assert settings("NoNewPrivileges") == ["yes"]
    assert settings("DynamicUser") == ["yes"]


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """Where systemd is; the other tests hold without it."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/flare/bin/flare", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "flare-relay" not in done.stderr, "of other units it may complain"
