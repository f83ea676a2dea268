"""What the README and the examples show runs as it stands."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.command import LOOPBACK, TIMEOUT, environment, meeting, running
from tests.support.signals import hears_sigint

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        check=False,
    )


def test_the_first_program_of_the_readme() -> None:
    done = run("-c", PROGRAMS[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'HELLO'\n", "")


def test_the_other_programs_of_the_readme_are_python() -> None:
    for program in PROGRAMS[1:]:
        compile(program, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"echo.py", "direct.py", "relay.py"}


def test_echo() -> None:
    done = run(str(EXAMPLES / "echo.py"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'HELLO'\n", "")


def test_direct_where_it_cannot_be() -> None:
    with meeting() as (circuit, _, _):  # which listens on loopback only, and nobody punches towards that
        done = run(str(EXAMPLES / "direct.py"), circuit)
        assert done.returncode == 0, done.stderr
        connected, relayed = done.stdout.splitlines()
        assert connected == "connected, relayed"
        assert relayed.startswith("still relayed: ")
        assert "no address that can be reached" in relayed


def test_direct() -> None:
    with running("listen", "--listen", LOOPBACK, "--json") as listener:
        done = run(str(EXAMPLES / "direct.py"), listener.fact("listening")["addrs"][0])
        assert done.returncode == 0, done.stderr
        *_, said = done.stdout.splitlines()
        assert said == "b'hello across two NATs'"


def test_relay() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", str(EXAMPLES / "relay.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        preexec_fn=hears_sigint,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:2] == ["relay", "at"]
        url = process.stdout.readline().removeprefix("status at ").strip()
        assert run("-m", "flare", "status", url.removeprefix("http://").rstrip("/")).returncode == 0
        with running("listen", "--relay", words[2], "--listen", LOOPBACK, "--json") as listener:
            peer = listener.fact("reserved")["addrs"][0].rpartition("/")[2]
            assert process.stdout.readline() == f"a place for {peer}\n"
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=TIMEOUT)
