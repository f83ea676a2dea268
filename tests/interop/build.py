"""Builds the peers' programs on demand: `program("go")` is the command that starts one."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GO, RUST, JS, PY = HERE / "go", HERE / "rust", HERE / "js", HERE / "py"
PEERS = ("go", "rust", "js", "py")
KUBO = "kubo"  # the go peer as go-libp2p makes it of no options
OPTIONS = {KUBO: ("--defaults",)}

# Seconds; generous, because a first build compiles every dependency on whatever cores there are.
BUILD_TIMEOUT = 1800


class BuildFailed(Exception):
    """A peer's program could not be built; says which tool failed and what it printed last."""


@cache
def program(kind: str) -> tuple[str, ...]:
    """The command of a peer (flare, go, kubo, rust, js or py), built first if need be. Raises BuildFailed."""
    if kind == "flare":
        return (sys.executable, "-m", "flare")
    builders: dict[str, Callable[[], tuple[str, ...]]] = {"go": _go, "rust": _rust, "js": _js, "py": _py}
    made_as = "go" if kind == KUBO else kind
    with _lock(made_as):
        return builders[made_as]()


def version(kind: str) -> str:
    """The version of libp2p that the peer's lock file names."""
    if kind == "go":
        found = re.search(r"github.com/libp2p/go-libp2p (v\S+)", (GO / "go.mod").read_text())
    elif kind == "rust":
        found = re.search(r'name = "libp2p"\nversion = "([^"]+)"', (RUST / "Cargo.lock").read_text())
    elif kind == "py":
        found = re.search(r"^libp2p==(\S+)", (PY / "requirements.txt").read_text(), re.MULTILINE)
    else:
        locked = json.loads((JS / "package-lock.json").read_text())["packages"]["node_modules/libp2p"]
        return str(locked["version"])
    if found is None:
        raise BuildFailed(f"the {kind} peer's lock file names no libp2p")
    return found[1]


def _go() -> tuple[str, ...]:
    binary = GO / "bin" / "interop-go"
    _run(["go", "build", "-mod=readonly", "-o", str(binary), "."], GO, "Go 1.26 or newer, https://go.dev/dl")
    return (str(binary),)


def _rust() -> tuple[str, ...]:
    _run(
        ["cargo", "build", "--quiet", "--release", "--locked"], RUST, "Rust 1.88 or newer, https://rustup.rs"
    )
    return (str(RUST / "target" / "release" / "interop-rust"),)


def _js() -> tuple[str, ...]:
    lock, installed = JS / "package-lock.json", JS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        _run(command, JS, "npm, https://nodejs.org")
    for node in sorted((JS / "node_modules").glob("node-linux-*/bin/node")):
        return (str(node), str(JS / "peer.js"))
    raise BuildFailed("the js peer: the lock file has no Node for this machine (linux on x64 or arm64)")


def _py() -> tuple[str, ...]:
    lock, python = PY / "requirements.txt", PY / "venv" / "bin" / "python"
    stamp = PY / "venv" / "installed"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        _run([sys.executable, "-m", "venv", "--clear", str(PY / "venv")], PY, "Python's venv module")
        _run([str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(lock)], PY, "pip")
        stamp.touch()
    return (str(python), str(PY / "peer.py"))


def _run(command: list[str], where: Path, tool: str) -> None:
    if shutil.which(command[0]) is None:
        raise BuildFailed(f"{where.name} peer: {command[0]} is not installed (needs {tool})")
    try:
        built = subprocess.run(
            command,
            cwd=where,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{where.name} peer: {' '.join(command)} took over {BUILD_TIMEOUT} s") from error
    if built.returncode != 0:
        output = (built.stdout + built.stderr)[-4000:]
        raise BuildFailed(f"{where.name} peer: {' '.join(command)} failed\n{output}")


@contextmanager
def _lock(kind: str) -> Iterator[None]:
    """Keeps two test runs in one tree from building the same peer at once."""
    directory = HERE / "bin"
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory / f"{kind}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    for name in sys.argv[1:] or PEERS:
        print(*program(name))
