"""The timer-precise simultaneous open for Python, and its clock. The machine itself is simopen.pyx."""

import os
import socket
from collections import namedtuple
from operator import index

from flare.errors import PunchFailed, UsageError

from cpython.exc cimport PyErr_CheckSignals
from libc cimport errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from flare._core cimport simopen
from flare._core.simopen cimport DEAD, SPIN, candidate_t, punch_t, simopen_close, simopen_run, target_t
from flare._core.sockets cimport (
    POLLIN,
    close,
    flare_address,
    flare_address_ip,
    flare_bound_socket,
    flare_calm,
    flare_hurry,
    flare_is_v6,
    flare_listen,
    flare_listener_fault,
    flare_make_address,
    flare_nap_until,
    flare_now,
    flare_port,
    flare_relax,
    flare_same_ip,
    flare_scope,
    flare_timer,
    flare_unmap,
    poll,
    pollfd,
)

cdef enum:
    BACKLOG = 16
    RTT_UNKNOWN = 500_000_000

MAX_TARGETS = simopen.MAX_TARGETS
MAX_AHEAD_NS = 60_000_000_000
MAX_TIMEOUT_NS = 600_000_000_000


# Time

cdef int64_t now_ns() noexcept nogil:
    return flare_now()


cdef void nap(int64_t deadline_ns) noexcept nogil:
    """Gives the processor back till shortly before the deadline, or a signal."""
    cdef pollfd timer
    if deadline_ns - flare_now() <= SPIN:
        return
    timer.fd = flare_timer(deadline_ns - SPIN)
    timer.events = POLLIN
    if timer.fd >= 0:
        poll(&timer, 1, -1)
        close(timer.fd)
    else:
        flare_nap_until(deadline_ns - SPIN)


cdef void wait_until(int64_t deadline_ns) noexcept nogil:
    while deadline_ns - flare_now() > SPIN:
        nap(deadline_ns)
    while flare_now() < deadline_ns:
        flare_relax()


def monotonic_ns():
    return flare_now()


def sleep_until_ns(int64_t deadline_ns):
    cdef uint64_t calm = flare_hurry()
    try:
        while deadline_ns - flare_now() > SPIN:
            PyErr_CheckSignals()
            with nogil:
                nap(deadline_ns)
        with nogil:
            wait_until(deadline_ns)
    finally:
        flare_calm(calm)


# One attempt

PunchResult = namedtuple(
    "PunchResult",
    [
        "fd", "how", "target_index", "remote", "attempts", "first_syn_lateness_ns", "syn_times_ns", "errors",
        "others",
    ],
)


class PunchAttemptFailed(PunchFailed):
    def __init__(self, reason, *, attempts=0, errors=(), others=()):
        super().__init__(reason, attempts=attempts)
        self.errors = errors
        self.others = others


def punch(
    local, targets, int64_t deadline_ns, *, int64_t timeout_ns, int64_t rtt_ns=0, int listener_fd=-1,
    listen=True, int cancel_fd=-1, bint speaks_first=True,
):
    attempt = Attempt(local, targets, listener_fd, listen, cancel_fd, speaks_first)
    attempt.set_times(deadline_ns, timeout_ns, rtt_ns)
    return attempt.make()


cdef class Attempt:
    """Owns every descriptor that it makes, till `make` hands some over."""

    cdef punch_t p
    cdef list names
    cdef list notes  # why a target is not tried at all, or ""

    def __cinit__(self, local, targets, int listener_fd, bint listens, int cancel_fd, bint speaks_first):
        memset(&self.p, 0, sizeof(punch_t))
        self.p.listeners[0] = self.p.listeners[1] = self.p.timer_fd = -1
        self.p.cancel_fd = cancel_fd
        self.p.speaks_first = speaks_first
        self.names = []
        self.notes = []
        cdef flare_address locals_[2]  # IPv4's, IPv6's
        cdef flare_address here
        put_address(local, &here)
        port = flare_port(&here)
        put_address(("0.0.0.0", port), &locals_[0])
        put_address(("::", port), &locals_[1])
        locals_[flare_is_v6(&here)] = here
        for target in targets:
            self.add_target(target, locals_)
        if self.p.target_n == 0:
            raise UsageError("no target to punch")
        if listener_fd >= 0:
            fault = flare_listener_fault(listener_fd)
            if fault:
                why = os.strerror(fault)
                raise UsageError(f"descriptor {listener_fd} is no non-blocking listener: {why}")
            self.p.listeners[0] = listener_fd
        elif listens and port:
            self.open_listeners(locals_)

    cdef int add_target(self, object given, const flare_address* locals_) except -1:
        if self.p.target_n == simopen.MAX_TARGETS:
            raise UsageError(f"more than {MAX_TARGETS} targets")
        cdef target_t* t = &self.p.targets[self.p.target_n]
        cdef int i
        cdef str note = ""
        t.fd = -1
        if not put_address(given, &t.addr):
            note = "has port 0"
        flare_unmap(&t.addr)
        t.local = locals_[flare_is_v6(&t.addr)]
        for i in range(self.p.target_n):
            if flare_same_ip(&self.p.targets[i].addr, &t.addr):
                if flare_port(&self.p.targets[i].addr) == flare_port(&t.addr):
                    note = "was given twice"
        if not any(address_bytes(&t.addr)):
            note = "is no address of anybody"
        self.p.target_n += 1
        self.names.append(named(&t.addr))
        self.notes.append(note)
        if note:
            t.state = DEAD
            return 0
        t.fd = flare_bound_socket(&t.local)
        if t.fd < 0:
            t.state = DEAD
            t.error = errno.errno
        return 0

    cdef int open_listeners(self, const flare_address* locals_) except -1:
        cdef int i, side
        self.p.own_listeners = True
        for i in range(self.p.target_n):
            side = flare_is_v6(&self.p.targets[i].addr)
            if self.p.targets[i].state == DEAD or self.p.listeners[side] >= 0:
                continue
            self.p.listeners[side] = flare_bound_socket(&locals_[side])
            if self.p.listeners[side] < 0 or flare_listen(self.p.listeners[side], BACKLOG) != 0:
                self.p.listener_error = errno.errno
                if self.p.listeners[side] >= 0:
                    close(self.p.listeners[side])
                    self.p.listeners[side] = -1
        return 0

    cdef int set_times(self, int64_t deadline, int64_t timeout, int64_t rtt) except -1:
        cdef int64_t now = flare_now()
        if deadline - now > MAX_AHEAD_NS:
            raise UsageError("a deadline more than 60 s ahead")
        if not 0 < timeout <= MAX_TIMEOUT_NS:
            raise UsageError(f"a timeout of {timeout} ns, 1 ns to 600 s allowed")
        if not 0 <= rtt <= MAX_TIMEOUT_NS:
            raise UsageError(f"a round trip of {rtt} ns, 0 to 600 s allowed")
        self.p.deadline = deadline
        self.p.end = max(deadline, now) + timeout
        self.p.rtt = rtt or RTT_UNKNOWN
        self.p.random = int.from_bytes(os.urandom(8), "little")
        if deadline - now > SPIN:
            self.p.timer_fd = flare_timer(deadline - SPIN)
        return 0

    cdef object make(self):
        cdef int end = simopen.INTERRUPTED
        cdef uint64_t calm = flare_hurry()
        try:
            while end == simopen.INTERRUPTED:
                PyErr_CheckSignals()
                with nogil:
                    end = simopen_run(&self.p)
        finally:
            flare_calm(calm)
        if end == simopen.WON:
            return self.result()
        if end == simopen.CANCELLED:
            reason = "cancelled"
        elif end == simopen.BROKEN:
            reason = f"could not wait for sockets: {os.strerror(self.p.poll_error)}"
        else:
            reason = "; ".join(self.sentence(i) for i in range(self.p.target_n))
            if self.p.listener_error:
                reason += f"; listening stopped: {os.strerror(self.p.listener_error)}"
        raise PunchAttemptFailed(
            reason, attempts=self.attempts(), errors=self.errors(), others=self.take_others()
        )

    cdef object result(self):
        cdef candidate_t* c = &self.p.candidates[self.p.winner]
        cdef int i
        times = tuple([self.p.targets[i].first_syn for i in range(self.p.target_n)])
        fired = [time for time in times if time]
        lateness = min(fired) - self.p.deadline if fired else 0
        result = PunchResult(
            c.fd, "connect" if c.how == simopen.BY_CONNECT else "accept", c.target, pair(&c.remote),
            self.attempts(), lateness, times, self.errors(c.target), self.take_others(),
        )
        c.fd = -1
        return result

    cdef int attempts(self):
        cdef int i
        cdef int total = 0
        for i in range(self.p.target_n):
            total += self.p.targets[i].connects
        return total

    cdef tuple errors(self, int winner=-1):
        cdef int i
        return tuple([
            self.sentence(i) if i != winner and (self.p.targets[i].error or self.p.targets[i].state == DEAD)
            else ""
            for i in range(self.p.target_n)
        ])

    cdef str sentence(self, int i):
        cdef target_t* t = &self.p.targets[i]
        name = self.names[i]
        connects = f"{t.connects} connect{'s' if t.connects != 1 else ''}"
        if self.notes[i]:
            return f"{name} {self.notes[i]}"
        if t.is_self:
            return f"{name} is our own address"
        if t.state == DEAD:
            return f"{name} cannot be dialled: {os.strerror(t.error)}"
        if t.error == errno.EADDRNOTAVAIL or t.error == errno.EADDRINUSE:
            return f"{name} is tied to another connection of this port: {os.strerror(t.error)}"
        if t.refused:
            return f"{name} refused {t.refused} of {connects}"
        if t.error:
            return f"{name} failed after {connects}: {os.strerror(t.error)}"
        return f"{name} did not answer {connects}" if t.connects else f"{name} was not dialled"

    cdef tuple take_others(self):
        cdef int i
        others = tuple([
            (self.p.others[i].fd, pair(&self.p.others[i].remote)) for i in range(self.p.other_n)
        ])
        self.p.other_n = 0
        return others

    def __dealloc__(self):
        simopen_close(&self.p)


# Addresses

cdef bint put_address(object given, flare_address* out) except -1:
    """Numeric host and port as the socket module has them; whether the port is one to connect to."""
    try:
        host, port = given[0], index(given[1])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address, _, zone = host.partition("%")
        raw = socket.inet_pton(family, address)
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
        if len(given) == 4 and not scope:
            scope = given[3]
        if not 0 <= port <= 65535:
            raise ValueError("ports have 16 bits")
        flare_make_address(out, family == socket.AF_INET6, raw, port, scope)
    except (OSError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        raise UsageError(f"{given!r} is no numeric address and port: {error}") from None
    return port != 0


cdef bytes address_bytes(const flare_address* address):
    cdef const char* raw = flare_address_ip(address)
    return raw[:16 if flare_is_v6(address) else 4]


cdef tuple pair(const flare_address* address):
    family = socket.AF_INET6 if flare_is_v6(address) else socket.AF_INET
    host = socket.inet_ntop(family, address_bytes(address))
    scope = flare_scope(address)
    if scope:
        try:
            host += "%" + socket.if_indextoname(scope)
        except OSError:
            host += f"%{scope}"
    return host, flare_port(address)


cdef str named(const flare_address* address):
    host, port = pair(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
