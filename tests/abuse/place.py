"""Where it happens: a network of its own, a relay on one core, honest peers and attackers on the other."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from flare.lab import netlink
from flare.lab.namespace import Namespace

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.66.0.1/16"
LISTEN = "/ip4/10.66.0.1/tcp/4001"
LISTEN_QUIC = "/ip4/10.66.0.1/udp/4001/quic-v1"
DESCRIPTORS = 20_000
REALTIME = os.environ.get("FLARE_ABUSE_REALTIME") == "1"  # against the noise of a machine with other work
PATIENCE = 60.0  # seconds for a process to answer
MIB = 1024 * 1024


def pinned(core: int, realtime: bool = False) -> list[str]:
    """A prefix that pins a command to one of this process's cores, and puts it before all others."""
    cores = sorted(os.sched_getaffinity(0))
    prefix = ["taskset", "-c", str(cores[core % len(cores)])]
    return [*prefix, "chrt", "--rr", "1"] if realtime else prefix


class Child:
    """A process that is asked line by line."""

    def __init__(self, namespace: Namespace, core: int, *words: str, nice: bool = False) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT / "src"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            ),
        }
        realtime = REALTIME and not nice
        argv = [*pinned(core, realtime), *(["nice"] if nice else []), sys.executable, "-m", *words]
        with namespace.entered():
            self.process = subprocess.Popen(
                argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )

    def line(self) -> Any:
        """The next line, read as JSON."""
        assert self.process.stdout is not None
        found: list[str] = []
        reading = threading.Thread(target=lambda: found.append(self.process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reading.start()
        reading.join(PATIENCE)
        assert found, f"{self.process.args} is silent"
        assert found[0], f"{self.process.args} ended with {self.process.wait(5)}"
        return json.loads(found[0])

    def ask(self, command: str) -> Any:
        """The answer to one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.line()

    def drain(self) -> None:
        """Nobody reads what else it says."""
        output = self.process.stdout
        assert output is not None
        threading.Thread(target=lambda: [None for _ in output], daemon=True).start()

    def leave(self, patience: float = 10.0) -> None:
        """No more commands: it says goodbye to its peers, which over QUIC nobody else does for it."""
        assert self.process.stdin is not None
        with suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(patience)

    def end(self, patience: float = 15.0) -> int:
        """Ask it to end, and see to it that it does; its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


@dataclass
class Phase:
    """A stretch of time: what the honest circuit carried in it, and what the relay used."""

    rate: float  # bytes a second
    cpu: float  # of a core
    rss: int  # bytes, at its highest


@dataclass
class Measured:
    """An attack beside the same time without it."""

    name: str
    quiet: list[Phase] = field(default_factory=list)
    attacked: list[Phase] = field(default_factory=list)
    newcomer: float | None = None  # seconds until a new peer had its reservation under attack
    newcomer_error: str = ""
    probe: float | None = None  # seconds of a round trip over the circuit under attack
    did: list[dict[str, Any]] = field(default_factory=list)  # what the attackers say they did

    @property
    def kept(self) -> float:
        """The share of its throughput that the circuit kept, by medians."""
        quiet = statistics.median(phase.rate for phase in self.quiet)
        return statistics.median(phase.rate for phase in self.attacked) / quiet

    @property
    def grew(self) -> int:
        """Bytes of RSS above the highest before."""
        return max(phase.rss for phase in self.attacked) - self.quiet[0].rss

    @property
    def cpu(self) -> float:
        """Cores that the attack cost the relay."""
        quiet = statistics.median(phase.cpu for phase in self.quiet)
        return statistics.median(phase.cpu for phase in self.attacked) - quiet


class Place:
    """A relay and an honest circuit through it."""

    def __init__(self, namespace: Namespace, relay: Child, bystander: Child, addr: str) -> None:
        self.namespace = namespace
        self.relay = relay
        self.bystander = bystander
        self.addr = addr

    def __enter__(self) -> Self:
        return self

    @property
    def rss(self) -> int:
        """Resident memory of the relay, bytes."""
        pages = int(Path(f"/proc/{self.relay.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    @property
    def cpu(self) -> float:
        """CPU seconds that the relay has used."""
        return time.clock_gettime_ns((~self.relay.process.pid << 3) | 2) / 1e9

    @property
    def descriptors(self) -> int:
        """Open descriptors of the relay."""
        return len(os.listdir(f"/proc/{self.relay.process.pid}/fd"))

    def phase(self, seconds: float) -> Phase:
        """Watch for a while."""
        began, cpu = self.bystander.ask("bytes"), self.cpu
        rss = self.rss
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
            rss = max(rss, self.rss)
        ended = self.bystander.ask("bytes")
        assert ended["right"], "the circuit delivered something else than was sent"
        assert ended["feeding"], "the circuit broke"
        took = ended["at"] - began["at"]
        return Phase((ended["received"] - began["received"]) / took, (self.cpu - cpu) / took, rss)

    def attack(self, name: str, seconds: float = 3.0, rounds: int = 3, warm: float = 1.0) -> Measured:
        """Quiet and attacked in turns. `warm` seconds of each attack pass before it is measured."""
        found = Measured(name)
        for turn in range(rounds):
            found.quiet.append(self.phase(seconds))
            attacker = Child(self.namespace, 1, "tests.abuse.attacker", name, self.addr, nice=True)
            try:
                attacker.line()  # it is ready
                attacker.ask("go")
                time.sleep(warm)
                found.attacked.append(self.phase(seconds))
                if turn == rounds - 1:
                    answer = self.bystander.ask("newcomer")
                    found.newcomer = answer.get("seconds")
                    found.newcomer_error = answer.get("error", "")
                    found.probe = self.bystander.ask("probe").get("seconds")
                found.did.append(attacker.ask("stop"))
            finally:
                attacker.end()
            time.sleep(0.5)
        return found


@contextmanager
def place(*relay_options: str, listen: str = LISTEN) -> Iterator[Place]:
    """All of it, in a network namespace that ends with the block; circuits run over what is listened on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    namespace = Namespace()
    children: list[Child] = []
    try:
        with namespace.entered():
            netlink.set_up("lo")
            netlink.add_address("lo", NETWORK)
        relay = Child(namespace, 0, "flare", "relay", "--listen", listen, "--json", *relay_options)
        children.append(relay)
        addr = relay.line()["addrs"][0]
        relay.drain()
        bystander = Child(namespace, 1, "tests.abuse.bystander", addr)
        children.append(bystander)
        bystander.line()
        yield Place(namespace, relay, bystander, addr)
        assert relay.process.poll() is None, "the relay ended"
        bystander.leave()
    finally:
        codes = [child.end() for child in reversed(children)]
        namespace.close()
    assert codes[-1] == 0, f"the relay ended with {codes[-1]}"


def table(rows: Sequence[Measured]) -> str:
    """The report."""
    lines = [
        f"{'attack':28} {'kept':>6} {'90 %':>5} {'CPU':>6} {'RSS +MiB':>9} {'newcomer s':>11} {'probe ms':>9}"
        "  did"
    ]
    for row in rows:
        newcomer = f"{row.newcomer:.2f}" if row.newcomer is not None else "never"
        probe = f"{row.probe * 1e3:.1f}" if row.probe is not None else "none"
        lines.append(
            f"{row.name:28} {row.kept:6.1%} {'yes' if row.kept >= 0.9 else 'NO':>5} {row.cpu:6.1%} "
            f"{row.grew / MIB:9.1f} {newcomer:>11} {probe:>9}  {row.did[-1]}"
        )
    return "\n".join(lines)
