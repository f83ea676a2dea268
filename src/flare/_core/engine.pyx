"""The engine drives links: one poller of its own, and a pass over C structs that holds no GIL.

Either its descriptor is registered with an event loop as a single reader; each wake-up makes one pass and
then calls back, in one batch, for what concerns Python. Or a thread of its own makes the passes, and never
takes the GIL; then its descriptor is readable when there is something to call back for.
"""

import atexit
import os
import socket
import weakref

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject

from flare._core.aead cimport aead_is_native
from flare._core.core cimport (
    NO_LINK,
    core,
    core_new,
    core_unref,
    enter,
    enter_nogil,
    fire_timers,
    flare_add,
    flare_load32,
    flare_store32,
    flush_dirty,
    give_way,
    leave,
    leave_nogil,
    leave_pass,
    next_deadline,
    next_event,
    node,
    pthread_cond_init,
    pthread_mutex_init,
    pthread_mutex_lock,
    report,
    slot_get,
    unlock,
    wake,
    wake_poller,
)
from flare._core.link cimport Link, LinkStream
from flare._core.link_io cimport (
    END_LOCAL,
    QUANTUM,
    SCRATCH,
    WATCH_READ,
    WATCH_WRITE,
    link,
    link_die,
    link_feed,
    link_new,
    link_read,
    link_start,
    link_writable,
    ready_pop,
    ready_push,
)
from flare._core.records cimport RecordKeys
from flare._core.splice cimport Splice
from flare.errors import UsageError

include "poller.pxi"
include "thread.pxi"

cdef enum:
    ROUNDS = 4  # of flushing in a pass, before others get their turn
    BURST = 1000000  # ns that passes may follow one another before the loop has its turn
    BULK = 16 * 1024  # a link whose last receive brought so much shares the quantum with others of its kind
    EVENTS = 256  # taken out of the engine at a time
    WARM = 8  # links with something to send, before it is sent while their buffers are in the cache

cdef void run(core* c, int64_t timeout) noexcept nogil:
    """A pass, and more while there is something to read and nobody in Python waits."""
    cdef int64_t until
    enter_nogil(c)
    until = c.now + BURST
    leave_nogil(c)
    while one_pass(c, timeout) and c.events_head == NULL and c.now < until and not c.closed:
        timeout = 0


cdef bint one_pass(core* c, int64_t timeout) noexcept nogil:
    """Wait, read, parse, splice, send. False when no link was ready."""
    cdef polled ready[POLLED]
    cdef link* ln
    cdef bint timer = False
    cdef bint busy
    cdef int n
    cdef int i
    n = poller_wait(c, ready, timeout, &timer)
    enter_nogil(c)
    c.passing = 1
    c.woken = 0
    c.counters.passes += 1
    if timer:
        c.armed = 0
    for i in range(n):
        ln = <link*>slot_get(c, ready[i].place)
        if ln == NULL:
            continue
        if ready[i].what & WATCH_WRITE:
            link_writable(ln)
        if ready[i].what & WATCH_READ:
            ready_push(ln, ln.last_read >= BULK)
    serve(c)
    fire_timers(c)  # a pong that waited in the socket while nobody ran passes counts
    flush(c)
    busy = c.readable_count[0] + c.readable_count[1] != 0 or (c.threaded and c.dirty_count > c.lazy)
    leave_pass(c, busy)
    return n > 0 or busy


cdef void serve(core* c) noexcept nogil:
    """Who has little to say is heard first, and sent on; the others share SCRATCH bytes a pass, in turn."""
    cdef uint32_t few = c.readable_count[0]
    cdef int64_t budget = SCRATCH
    cdef size_t quantum
    while few and c.readable[0] != NULL:
        few -= 1
        receive(ready_pop(c, 0), QUANTUM)
        if c.dirty_count >= WARM:
            flush_dirty(c)
        give_way(c)
    if c.readable[1] == NULL:
        return
    if c.dirty_head != NULL:
        flush_dirty(c)
    quantum = max(<size_t>QUANTUM, <size_t>SCRATCH // <size_t>max(c.readable_count[1], <uint32_t>1))
    while budget > 0 and c.readable[1] != NULL:
        budget -= receive(ready_pop(c, 1), quantum)
        give_way(c)


cdef inline int64_t receive(link* ln, size_t quantum) noexcept nogil:
    if not ln.watching & WATCH_READ:
        return 0
    link_read(ln, quantum)
    return <int64_t>ln.last_read


cdef void flush(core* c) noexcept nogil:
    cdef int _i
    for _i in range(ROUNDS):
        if c.dirty_head == NULL:
            break
        flush_dirty(c)
    poller_arm(c, next_deadline(c))


cdef int set_limits(link* ln, object limits) except -1:
    cdef double second = 1e9
    ln.mux.limits.max_window = getattr(limits, "max_window", 16 << 20)
    ln.mux.limits.max_receive = getattr(limits, "max_receive", 64 << 20)
    ln.mux.limits.all_receive = getattr(limits, "max_receive_all", 512 << 20)
    ln.mux.limits.all_growth = getattr(limits, "max_growth_all", 256 << 20)
    ln.mux.limits.max_streams = getattr(limits, "max_streams", 1024)
    ln.mux.limits.backlog = getattr(limits, "backlog", 256)
    ln.mux.limits.high_water = getattr(limits, "send_high_water", 1 << 20)
    ln.mux.limits.keepalive = <int64_t>(<double>getattr(limits, "keepalive", 30.0) * second)
    ln.mux.limits.keepalive_timeout = <int64_t>(<double>getattr(limits, "keepalive_timeout", 10.0) * second)
    ln.linger = <int64_t>(<double>getattr(limits, "linger", 5.0) * second)
    return 0


cdef class Engine:
    """Drives links from one poller of its own."""

    cdef core* c
    cdef readonly set links
    cdef readonly set splices
    cdef object waker
    cdef bint delivering
    cdef pthread_t thread
    cdef object __weakref__

    def __cinit__(self, *, thread=None, Engine beside=None):
        cdef int error
        self.links = set()
        self.splices = set()
        self.c = core_new()
        self.c.engine = <void*>self
        self.c.gil_free = aead_is_native()
        error = poller_open(self.c)
        if not error and thread is not None:
            self.c.threaded = 1
            self.c.told_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            error = errno if self.c.told_fd < 0 else thread_start(self.c, &self.thread, thread.encode())
        if error:
            raise OSError(error, os.strerror(error))
        if self.c.running:
            driven.add(self)
        if beside is not None:
            self.c.beside = beside.c.beside
            beside.c.beside = self.c

    def __dealloc__(self):
        if self.c != NULL:
            self.c.engine = NULL
            self.shut()
            core_unref(self.c)

    cdef void halt(self):
        """End the thread; the links stay."""
        if self.c.running:
            thread_stop(self.c, self.thread)

    cdef void shut(self):
        cdef core* c = self.c
        cdef core* before = c.beside
        while before.beside != c:
            before = before.beside
        before.beside = c.beside
        c.beside = c
        c.on_wake = NULL
        self.halt()
        enter(c)
        c.closed = 1
        while c.links != NULL:
            link_die(<link*>c.links, END_LOCAL, 0)
        poller_close(c)
        leave(c)

    def fileno(self):
        return self.c.told_fd if self.c.threaded else self.c.poll_fd

    @property
    def threaded(self):
        return bool(self.c.threaded)

    @property
    def idle(self):
        cdef core* c = self.c
        cdef bint nothing
        enter(c)
        nothing = (
            c.dirty_head == NULL and c.events_head == NULL and not c.passing and not c.busy
            and c.orphans == NULL and not poller_ready(c.poll_fd, 0)
        )
        leave(c)
        return bool(nothing)

    @property
    def load(self):
        return self.c.pairs, self.c.link_count

    @property
    def closed(self):
        return bool(self.c.closed)

    @property
    def on_wake(self):
        return self.waker

    @on_wake.setter
    def on_wake(self, callback):
        self.waker = callback
        self.c.on_wake = NULL if callback is None else <void*>callback

    def attach(self, int fd, *, RecordKeys record, bint initiator, leftover=b"", limits=None):
        cdef Link made
        try:
            self.check_open()
            if record is not None:
                record.check_unused()
        except UsageError:
            os.close(fd)
            raise
        sock = socket.socket(fileno=fd)
        try:
            sock.setblocking(False)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                peername = sock.getpeername()
            except OSError:
                peername = None  # gone already: the first read says how
        finally:
            sock.detach()
        made = self.make(fd, record, initiator, limits)
        made.peername = peername
        self.begin(made, leftover)
        return made

    def attach_memory(self, *, RecordKeys record, bint initiator, leftover=b"", limits=None):
        cdef Link made
        self.check_open()
        made = self.make(-1, record, initiator, limits)
        self.begin(made, leftover)
        return made

    cdef int check_open(self) except -1:
        if self.c.closed:
            raise UsageError("the engine is closed")
        return 0

    cdef Link make(self, int fd, RecordKeys record, bint initiator, object limits):
        cdef Link made = Link.__new__(Link)
        cdef int kind = record.kind if record is not None else 0
        cdef link* ln
        if kind:
            record.check_unused()
        ln = link_new(self.c, fd, initiator, kind)
        if ln == NULL:
            raise MemoryError
        made.bind(self, self.c, ln)  # from here on the wrapper's death is the link's
        set_limits(ln, limits)
        if kind:
            record.hand_over(&ln.mux.out, &ln.key)
        return made

    cdef int begin(self, Link made, leftover) except -1:
        cdef const uint8_t[::1] data = leftover
        cdef link* ln = made.ln
        self.links.add(made)
        enter(self.c)
        link_start(ln)
        if data.shape[0]:
            link_feed(ln, &data[0], data.shape[0])
        leave(self.c)
        return 0

    def run_pass(self, int64_t timeout_ns=0):
        cdef core* c = self.c
        cdef bint left
        if c.closed or self.delivering:
            return 0
        if c.threaded:
            if timeout_ns:
                with nogil:
                    poller_ready(c.told_fd, timeout_ns)
            return self.look()
        self.delivering = True
        with nogil:
            run(c, timeout_ns)
        try:
            return self.deliver()
        finally:
            self.delivering = False
            with nogil:
                enter_nogil(c)
                if not c.closed:
                    flush(c)
                c.passing = 0
                left = leave_nogil(c)
            if left:
                wake(c)

    cdef int look(self) except -1:
        """Call back for what the thread's passes noted."""
        cdef uint64_t ignored
        read(self.c.told_fd, &ignored, 8)
        self.delivering = True
        try:
            return self.deliver()
        finally:
            self.delivering = False

    cdef int deliver(self) except -1:
        """Call back for everything that passes noted."""
        cdef core* c = self.c
        cdef node* n
        cdef PyObject* owners[EVENTS]
        cdef uint32_t events[EVENTS]
        cdef int count = 0
        cdef int i
        cdef list batch = []
        cdef list last = []
        stop = None
        enter(c)
        c.told = 0
        while count < EVENTS:
            n = next_event(c, &events[count])
            if n == NULL:
                break
            if n.owner != NULL:
                owners[count] = <PyObject*>n.owner
                Py_INCREF(<object>owners[count])
                count += 1
        leave(c)
        for i in range(count):
            owner = <object>owners[i]
            Py_DECREF(owner)
            if type(owner) is LinkStream:
                if (<LinkStream>owner).s.hooks == NULL:
                    batch.append((owner, events[i]))
            elif type(owner) is Link:
                (<Link>owner).collect(events[i], batch, last)
            else:
                (<Splice>owner).collect(last)
        batch.extend(last)
        for callback, argument in batch:
            if type(callback) is LinkStream:
                callback = (<LinkStream>callback).on_event
            if callback is None:
                continue
            try:
                callback(argument)
            except (KeyboardInterrupt, SystemExit) as error:
                stop = error  # after the others had their call
            except BaseException as error:
                report(callback, error)
        if stop is not None:
            raise stop
        return len(batch)

    def close(self):
        cdef core* c = self.c
        cdef bint within = self.delivering
        if c.closed:
            return
        self.delivering = True
        self.shut()
        try:
            while c.events_head != NULL:
                self.deliver()
        finally:
            self.delivering = within

    @property
    def counters(self):
        return {
            "passes": self.c.counters.passes,
            "receives": self.c.counters.receives,
            "sends": self.c.counters.sends,
            "bytes_in": self.c.counters.bytes_in,
            "bytes_out": self.c.counters.bytes_out,
            "events": self.c.counters.events,
        }
