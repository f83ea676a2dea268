"""The lab on the real kernel: both makes of NAT agree, delay is what was asked for, nothing stays."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path as FilePath

import pytest

from flare.lab import kernel
from flare.lab import namespace as namespace_module
from flare.lab.expect import expected
from flare.lab.fabric import Path
from flare.lab.kinds import KINDS
from flare.lab.namespace import LabUnavailable, Namespace, become_able
from flare.lab.nat import Dependence
from flare.lab.ports import Preserving
from flare.lab.world import Lab, Make
from tests.support.signals import hears_sigint

pytestmark = pytest.mark.lab

HERE = FilePath(__file__).parent
PYTHON = sys.executable
MAKES: tuple[Make, ...] = ("user", "kernel")
PAIRS = [
    ("none", "sym", 0.0),
    ("full", "port", 0.0),
    ("full", "sym", 0.3),
    ("addr", "addr", -0.3),
    ("addr", "sym", 0.0),
    ("addr", "sym", 0.3),
    ("port", "port", 0.0),
    ("port", "port", 0.3),
    ("port", "port-rst", 0.3),
    ("port", "port-rst", -0.3),
    ("port", "sym", 0.0),
    ("port-rst", "port-rst", 0.0),
    ("port-rst", "port-rst", 0.3),
    ("port-acc", "port", 0.3),
    ("port-acc", "port", -0.3),
    ("port-acc", "port-rst", 0.3),
    ("port-acc", "port-acc", 0.3),
    ("adm", "addr", 0.0),
    ("adm", "port", 0.0),
    ("cgn", "port", 0.0),
    ("cgn", "cgn-sym", 0.0),
    ("sym", "sym", 0.0),
    ("sym-seq", "full", 0.0),
]


def punch(
    a: str, b: str, make: Make, transport: str = "tcp", skew: float = 0.0, seconds: float = 2.0
) -> list[str]:
    """How each side got through: "connect", "accept", "datagram" or "failed"."""
    with Lab({"a": a, "b": b}, make=make, default=Path(delay=0.02)) as lab:
        start = time.monotonic() + 0.5

        def probe(peer: str, at: float) -> list[str]:
            target = [lab.hosts[peer].public, "4001"]
            return [PYTHON, str(HERE / "probe.py"), transport, "4001", *target, str(at), str(seconds)]

        programs = [lab.spawn("a", probe("b", start)), lab.spawn("b", probe("a", start + skew))]
        assert lab.run(lambda: all(program.done() for program in programs), seconds + 10), "both probes end"
    return [program.events[0].get("how", "failed") for program in programs]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(("a", "b", "skew"), PAIRS)
def test_tcp_punch(a: str, b: str, skew: float, make: Make) -> None:
    works = expected(a, b) == {"direct"}
    how = punch(a, b, make, skew=skew, seconds=10.0 if works else 2.0)
    assert ("failed" not in how) is works, how


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    ("a", "b", "skew", "works"),
    [
        ("port", "port", 0.3, True),
        ("port", "port-rst", 0.3, True),
        ("port", "port-acc", 0.0, True),
        ("port", "port-acc", 0.3, False),  # nat-lab note 1: the early datagram takes the late side's port
        ("port-acc", "port", 0.3, True),  # here it is the accepting side that comes first
        ("addr", "port-acc", 0.3, True),
        ("port", "sym", 0.0, False),
    ],
)
def test_udp_punch(a: str, b: str, skew: float, works: bool, make: Make) -> None:
    assert ("failed" not in punch(a, b, make, "udp", skew)) is works


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    "kind", [name for name, kind in KINDS.items() if len(kind.routers) == 1 and kind.routers[0].passes_udp]
)
def test_behaviour_as_seen_from_inside(kind: str, make: Make) -> None:
    """RFC 5780 section 4: what a host behind the router finds out about it."""
    (config,) = KINDS[kind].routers
    with Lab({"x": "none", "y": "none", "a": kind}, make=make, default=Path(delay=0.005)) as lab:
        x, y = lab.hosts["x"].public, lab.hosts["y"].public
        servers = [
            lab.spawn(host, [PYTHON, str(HERE / "reflect.py"), "serve", other])
            for host, other in (("x", y), ("y", x))
        ]
        assert lab.run(lambda: all(server.first("ready") for server in servers), 10)
        client = lab.spawn("a", [PYTHON, str(HERE / "reflect.py"), "ask", x, y])
        assert lab.run(client.done, 15)
        found = client.first("behaviour")
    assert found == {
        "event": "behaviour",
        "mapping": _short(config.mapping),
        "filtering": _short(config.filtering),
        "kept": isinstance(config.allocation, Preserving),
    }


def _short(dependence: Dependence) -> str:
    return dependence.value.replace("-port-dependent", "-port")


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("delay", [0.02, 0.1])
def test_delay(make: Make, delay: float) -> None:
    """Round trips take twice the delay and little more, through two NATs."""
    code = (
        "import socket, time, json\n"
        "s = socket.create_connection(('{}', 9000)); s.setsockopt(6, 1, 1)\n"
        "for _ in range(10):\n"
        "    t = time.monotonic(); s.send(b'x'); s.recv(1)\n"
        "    print(json.dumps({{'event': 'rtt', 'ms': (time.monotonic() - t) * 1000}}), flush=True)\n"
    )
    server = (
        "import socket\n"
        "l = socket.create_server(('0.0.0.0', 9000)); print('{\"event\": \"ready\"}', flush=True)\n"
        "c, _ = l.accept(); c.setsockopt(6, 1, 1)\n"
        "while data := c.recv(1): c.send(data)\n"
    )
    with Lab({"relay": "none", "a": "port"}, make=make, default=Path(delay=delay)) as lab:
        echo = lab.spawn("relay", [PYTHON, "-c", server])
        assert lab.run(lambda: echo.first("ready") is not None, 10)
        client = lab.spawn("a", [PYTHON, "-c", code.format(lab.hosts["relay"].public)])
        assert lab.run(client.done, 15)
    times = sorted(event["ms"] for event in client.events)
    assert len(times) == 10
    assert 2000 * delay <= times[0], "never faster than asked for"
    assert times[0] < 2000 * delay + 5, f"the fastest of ten, since the machine may be busy: {times}"


def namespaces(mark: str) -> set[str]:
    """Inodes of all network namespaces that a process with `mark` in its environment is in or holds open."""
    found = set()
    for entry in FilePath("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() not in (entry / "environ").read_bytes():
                continue
            found.add(os.readlink(entry / "ns/net"))
            found.update(os.readlink(fd) for fd in (entry / "fd").iterdir())
        except OSError:
            continue
    return {name for name in found if name.startswith("net:")}


HOLDER = """
import sys, time
from flare.lab.fabric import Path
from flare.lab.world import Lab
with Lab({"relay": "none", "a": "port", "b": "sym"}, make=sys.argv[1], default=Path()) as lab:
    programs = [lab.spawn(host, [sys.executable, "-c", "import time; time.sleep(600)"]) for host in lab.hosts]
    print(*(program.process.pid for program in programs), flush=True)
    if sys.argv[2] == "raise":
        raise RuntimeError("on purpose")
    lab.run(lambda: False, 60)
"""


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("end", ["raise", "SIGINT", "SIGKILL"])
def test_nothing_stays(make: Make, end: str) -> None:
    interfaces = os.listdir("/sys/class/net")
    mark = str(uuid.uuid4())  # other tests have namespaces meanwhile
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent / "src"), "FLARE_TEST_MARK": mark}
    with subprocess.Popen(
        [PYTHON, "-c", HOLDER, make, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        preexec_fn=hears_sigint,
    ) as runner:
        assert runner.stdout is not None
        pids = [int(pid) for pid in runner.stdout.readline().split()]
        assert len(pids) == 3, "the world was built"
        if end != "raise":
            assert len(namespaces(mark)) >= 4, "ours and the hosts' while it runs"
            runner.send_signal(signal.Signals[end])
        runner.wait(timeout=20)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (namespaces(mark) or any(map(alive, pids))):
        time.sleep(0.05)
    assert not any(map(alive, pids)), "the programs are gone"
    assert not namespaces(mark), "the namespaces are gone"
    assert os.listdir("/sys/class/net") == interfaces, "no interface was left in ours"


def alive(pid: int) -> bool:
    try:
        state = FilePath(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_missing_nft_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(kernel.LabUnavailable, match="install nftables"), Lab({"a": "port"}, make="kernel"):
        pass


def test_a_namespace_is_left_again() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    namespace = Namespace()
    try:
        with namespace.entered():
            assert os.readlink("/proc/thread-self/ns/net") != home
        assert os.readlink("/proc/thread-self/ns/net") == home
    finally:
        namespace.close()


def as_ordinary_user(check: Callable[[], None]) -> str:
    """Run `check` in a child without privileges, /dev/net/tun open to all as udev makes it; what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            open_tun_to_all()
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours again after setuid
            check()
            os.write(writer, b"fine")
        except BaseException as error:  # noqa: BLE001 - a child of the test must not go on as a second pytest
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


def open_tun_to_all() -> None:
    """In a mount namespace of our own, so that the machine's device stays as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x00020000) == 0, "unshare(CLONE_NEWNS)"
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0, "make / private, recursively"
    assert libc.mount(b"lab", b"/mnt", b"tmpfs", 0, b"mode=755") == 0, "a place for a device"
    os.mknod("/mnt/tun", 0o020666, os.makedev(10, 200))
    os.chmod("/mnt/tun", 0o666)
    assert libc.mount(b"/mnt/tun", b"/dev/net/tun", None, 4096, None) == 0, "bind it"


@pytest.mark.parametrize("make", MAKES)
def test_an_ordinary_user_may(make: Make) -> None:
    def check() -> None:
        become_able()
        with Lab({"relay": "none", "a": "port"}, make=make, default=Path(delay=0.01)) as lab:
            with lab.hosts["relay"].namespace.entered():
                listener = socket.create_server(("0.0.0.0", 9000))
            with lab.hosts["a"].namespace.entered():
                dialler = socket.socket()
            dialler.setblocking(False)
            dialler.connect_ex((lab.hosts["relay"].public, 9000))
            assert lab.run(lambda: bool(select.select([listener], [], [], 0)[0]), 5), (
                "connected through the NAT"
            )
            assert listener.accept()[1][0] == lab.hosts["a"].public, "and seen at the public address"

    assert as_ordinary_user(check) == "fine"


def test_a_closed_tun_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LabUnavailable, match="chmod 0666 /dev/net/tun"):
        become_able()


def test_forbidden_user_namespaces_are_said() -> None:
    def check() -> None:
        namespace_module._libc.unshare = lambda flags: -1
        become_able()

    said = as_ordinary_user(check)
    assert said.startswith("LabUnavailable"), said
    assert "run as root" in said
