"""Two hosts with a wire between them: namespaces joined by a delay in this process, which sees every segment.

The namespaces belong to threads of this process and vanish with them; nothing outside is touched.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Segment:
    """A TCP segment as the wire saw it leave a host."""

    time_ns: int
    source: tuple[bytes, int]
    target: tuple[bytes, int]
    flags: int

    @property
    def is_syn(self) -> bool:
        return bool(self.flags & SYN) and not self.flags & ACK


def parse(packet: bytes) -> Segment | None:
    """A TCP segment of IPv4 or IPv6 without extension headers."""
    if packet[0] >> 4 == 4:
        start, protocol, addresses = (packet[0] & 15) * 4, packet[9], (packet[12:16], packet[16:20])
    else:
        start, protocol, addresses = 40, packet[6], (packet[8:24], packet[24:40])
    if protocol != 6:
        return None
    source, target = struct.unpack_from("!HH", packet, start)
    return Segment(time.monotonic_ns(), (addresses[0], source), (addresses[1], target), packet[start + 13])


class End:
    """A host at one end: a namespace with one interface, and threads that live in it."""

    def __init__(self, ipv4: str, ipv6: str) -> None:
        self.ipv4, self.ipv6 = ipv4, ipv6
        self._namespace = -1
        self._threads = ThreadPoolExecutor(8, initializer=self._enter)
        self.device: int = self.run(self._set_up).result(10)

    def run(self, work: Callable[..., Any], *args: Any, **named: Any) -> Future[Any]:
        """Do `work` in a thread of this host."""
        return self._threads.submit(work, *args, **named)

    def close(self) -> None:
        self._threads.shutdown()
        os.close(self.device)
        os.close(self._namespace)

    def _enter(self) -> None:
        if self._namespace < 0:
            check(libc.unshare(CLONE_NEWNET))
            self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        else:
            check(libc.setns(self._namespace, CLONE_NEWNET))

    def _set_up(self) -> int:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
        for command in (
            "link set lo up",
            "link set wire up",
            f"addr add {self.ipv4}/24 dev wire",
            f"addr add {self.ipv6}/64 dev wire nodad",
        ):
            subprocess.run(["ip", *command.split()], check=True, timeout=10)
        return device


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Wire:
    """Carries packets between two ends after `delay_ns`, unless `drops` says no. `seen`: all TCP segments."""

    def __init__(self, delay_ns: int = 0) -> None:
        self.delay_ns = delay_ns
        self.drops: Callable[[Segment], bool] = lambda segment: False
        self.seen: list[Segment] = []
        self.a = End("10.77.0.1", "fd77::1")
        self.b = End("10.77.0.2", "fd77::2")
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wire")
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join(10)
        os.close(self._stop)
        self.a.close()
        self.b.close()

    def syns(self, port: int) -> list[Segment]:
        """The SYNs that left from `port`."""
        return [segment for segment in self.seen if segment.is_syn and segment.source[1] == port]

    def _carry(self) -> None:
        across = {self.a.device: self.b.device, self.b.device: self.a.device}
        waiting: list[tuple[int, int, int, bytes]] = []
        order = 0
        while True:
            pause = max(0, waiting[0][0] - time.monotonic_ns()) / 1e9 if waiting else None
            ready, _, _ = select.select([self._stop, *across], [], [], pause)
            if self._stop in ready:
                return
            for device in ready:
                packet = os.read(device, 65536)
                segment = parse(packet)
                if segment is not None:
                    self.seen.append(segment)
                    if self.drops(segment):
                        continue
                order += 1
                heapq.heappush(waiting, (time.monotonic_ns() + self.delay_ns, order, across[device], packet))
            while waiting and waiting[0][0] <= time.monotonic_ns():
                _, _, device, packet = heapq.heappop(waiting)
                os.write(device, packet)
