"""Network namespaces that nothing can leave behind: they live by descriptors and children of this process.

No namespace is named, mounted or pinned, so the kernel removes it, its interfaces and its rules when the
process ends, however it ends. The kernel kills the children when their parent dies.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flare.errors import FlareError

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_TUN = "/dev/net/tun"
_libc = ctypes.CDLL(None, use_errno=True)


class LabUnavailable(FlareError):
    """This machine does not let the lab run; the message says what to do about it."""


def _check(result: int, doing: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{doing}: {os.strerror(code)}")


def _setns(fd: int) -> None:
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


def become_able() -> None:
    """Make sure that this process may make network namespaces, entering a user namespace when it is not root.

    Call it while the process has one thread. LabUnavailable when user namespaces or TUN are not to be had.
    """
    if os.geteuid() != 0:
        _enter_user_namespace()
    if not os.access(_TUN, os.R_OK | os.W_OK):
        exists = os.path.exists(_TUN)
        hint = (
            f"ask root for `chmod 0666 {_TUN}`" if exists else "load the kernel's tun module (`modprobe tun`)"
        )
        raise LabUnavailable(f"the lab needs {_TUN} readable and writable: {hint}")


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise LabUnavailable(_no_user_namespaces(os.strerror(ctypes.get_errno())))
    try:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(line)
        # AppArmor lets a process into a user namespace and refuses what it came for. And the way back from a
        # namespace is only open to one of our own, so the one we were in is of no use any more.
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    except OSError as error:
        raise LabUnavailable(_no_user_namespaces(error.strerror or str(error))) from error


def _no_user_namespaces(why: str) -> str:
    refused = f"an ordinary user may not make network namespaces here ({why}): run as root"
    for knob in ("apparmor_restrict_unprivileged_userns=0", "unprivileged_userns_clone=1"):
        path = f"/proc/sys/kernel/{knob.partition('=')[0]}"
        wanted = knob.rpartition("=")[2]
        if os.path.exists(path) and Path(path).read_text().strip() != wanted:
            return f"{refused}, or have root run `sysctl kernel.{knob}`"
    return refused


class Namespace:
    """One network namespace, held open by a descriptor. Use `with namespace.entered():` to act inside it."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            try:
                self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _setns(home)
        finally:
            os.close(home)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside the namespace for the length of the block."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fd)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Let go: the namespace dies when its last process has ended."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open_tun(self, name: str) -> int:
        """A new TUN interface in the namespace; its non-blocking descriptor moves whole packets."""
        with self.entered():
            fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
            except OSError:
                os.close(fd)
                raise
        return fd

    def sysctl(self, name: str, value: int) -> None:
        """Set a `net.*` knob of the namespace, named with slashes as under /proc/sys."""
        with self.entered(), open(f"/proc/sys/{name}", "w") as file:
            file.write(str(value))

    def run(self, argv: Sequence[str], *, stdin: str = "") -> str:
        """Run a short command inside and return its output; OSError with its complaint when it fails."""
        with self.entered():
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=20)
        if done.returncode:
            raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside; it dies with this process."""
        with self.entered():
            return subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                preexec_fn=_die_with(os.getpid()),
            )  # fmt: skip


def _die_with(parent: int) -> Callable[[], None]:
    """Run in the child between fork and exec."""

    def bind() -> None:
        os.setpgid(0, 0)  # Ctrl-C reaches the lab alone, which ends its programs in order
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind
