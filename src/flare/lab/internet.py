"""The internet of the lab: one loop that reads every TUN, runs the NATs, lets time pass, and delivers."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flare.lab.fabric import Fabric
from flare.lab.nat import Nat, Side
from flare.lab.packet import Packet
from flare.lab.trace import Tracer

_MAX_PACKET = 65536
_READS_PER_TURN = 64  # of one TUN, so that a flood from one host does not delay the others' packets


@dataclass(slots=True)
class Site:
    """Where a host meets the internet: a TUN descriptor, its NATs from the inside out, an address."""

    name: str
    fd: int
    public: int
    nats: list[Nat] = field(default_factory=list)


class Internet:
    """Routes between sites by public address. Single-threaded: everything happens inside `run`."""

    def __init__(self, fabric: Fabric, tracer: Tracer | None = None) -> None:
        self.fabric = fabric
        self._tracer = tracer or Tracer()
        self._sites: dict[int, Site] = {}
        self._by_address: dict[int, Site] = {}
        self._watchers: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()

    def attach(self, site: Site) -> None:
        """Connect a site; its descriptor stays the caller's to close, after `close`."""
        self._sites[site.fd] = site
        self._by_address[site.public] = site
        self._epoll.register(site.fd, select.EPOLLIN)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is readable: so the programs' output is followed in the same loop."""
        self._watchers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        del self._watchers[fd]
        self._epoll.unregister(fd)

    def run(self, until: Callable[[], bool], timeout: float) -> bool:
        """Carry packets until `until()` is true, or for `timeout` seconds at most; returns `until()`."""
        deadline = time.monotonic() + timeout
        while not until():
            now = time.monotonic()
            if now >= deadline:
                return False
            self._deliver(now)
            wake = self.fabric.next_arrival
            wait = min(deadline, wake if wake is not None else deadline) - time.monotonic()
            self._poll(max(wait, 0.0))
        return True

    def close(self) -> None:
        self._epoll.close()
        self._tracer.close()

    def _poll(self, wait: float) -> None:
        # epoll_wait counts in milliseconds, select on the epoll descriptor in microseconds
        ready, _, _ = select.select([self._epoll.fileno()], [], [], wait)
        if not ready:
            return
        for fd, _ in self._epoll.poll(0):
            site = self._sites.get(fd)
            if site is not None:
                self._read(site)
            elif fd in self._watchers:
                self._watchers[fd]()

    def _read(self, site: Site) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                raw = os.read(site.fd, _MAX_PACKET)
            except BlockingIOError:
                return
            self._outward(site, 0, raw, time.monotonic())

    def _deliver(self, now: float) -> None:
        for packet in self.fabric.arrived(now):
            site = self._by_address[packet.dst]
            self._inward(site, len(site.nats) - 1, bytes(packet.data), now)

    def _outward(self, site: Site, level: int, raw: bytes, now: float) -> None:
        """A packet that travels from inside towards the internet and has `level` NATs behind it."""
        if self._tracer.active:
            self._tracer.seen(f"{site.name}.{_interface(site, level)}", raw, now)
        if level < len(site.nats):
            self._through(site, level, site.nats[level].from_inside(raw, now), raw, now)
            return
        packet = Packet.parse(raw)
        note = ""
        if packet is None:
            note = "not understood"
        elif packet.src != site.public:
            note = "source address is not this site's"
        elif packet.dst not in self._by_address:
            note = "no such destination"
        elif not self.fabric.send(packet, now):
            note = "lost on the way"
        if note and self._tracer.active:
            self._tracer.seen(f"{site.name}.wan", raw, now, note)

    def _inward(self, site: Site, level: int, raw: bytes, now: float) -> None:
        """A packet that travels towards the host and has the NATs up to `level` before it."""
        if self._tracer.active:
            self._tracer.seen(f"{site.name}.{_interface(site, level + 1)}", raw, now)
        if level >= 0:
            self._through(site, level, site.nats[level].from_outside(raw, now), raw, now)
            return
        try:
            os.write(site.fd, raw)
        except OSError as error:  # the interface is down or gone, or its queue is full: a lost packet
            if self._tracer.active:
                self._tracer.seen(f"{site.name}.lan", raw, now, f"not delivered: {error.strerror}")

    def _through(
        self, site: Site, level: int, output: list[tuple[Side, bytes]], raw: bytes, now: float
    ) -> None:
        if not output and self._tracer.active:
            self._tracer.seen(f"{site.name}.nat", raw, now, f"dropped: {site.nats[level].last_drop}")
        for side, packet in output:
            if side is Side.OUTSIDE:
                self._outward(site, level + 1, packet, now)
            else:
                self._inward(site, level - 1, packet, now)


def _interface(site: Site, level: int) -> str:
    if level == len(site.nats):
        return "wan"
    return "lan" if level == 0 else f"mid{level}"
