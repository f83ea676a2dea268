"""Links and their streams as Python sees them. Methods enter the engine for a moment; none blocks."""

from typing import NamedTuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from flare._core.core cimport (
    core,
    core_ref,
    disown,
    enter_at,
    enter_at_nogil,
    leave,
    leave_nogil,
    set_dirty,
    wake,
)
from flare._core.link_io cimport (
    END_ERRNO,
    END_KEEPALIVE,
    END_LOCAL,
    END_MEMORY,
    END_NONE,
    END_RECORD,
    END_TRUNCATED,
    END_VIOLATION,
    LINK_DEAD,
    LINK_OPEN,
    link,
    link_abort,
    link_close,
    link_feed,
)
from flare._core.records cimport out_finish, out_sent, record_failure
from flare._core.yamux cimport (
    BAD_CREDIT,
    BAD_FLAGS,
    BAD_PARITY,
    BAD_SESSION_ID,
    BAD_STREAM_ZERO,
    BAD_SYN_REUSE,
    BAD_TYPE,
    BAD_UNKNOWN,
    BAD_VERSION,
    BAD_WINDOW,
    INITIAL_WINDOW,
    MUX_ACCEPT,
    MUX_CLOSED,
    MUX_GOAWAY,
    MUX_OUTPUT,
    MUX_PONG,
    PINGS,
    mux,
    mux_accepted,
    mux_open,
    mux_ping,
    ping_slot,
    stream,
    stream_close_write,
    stream_copy,
    stream_discard,
    stream_reset,
    stream_skip,
    stream_write,
)

import os

from flare._core.records import NoiseRecords, PlainRecords, RecordKeys, TlsRecords  # no-cython-lint
from flare.errors import (
    ConnectionClosed,
    DecodeError,
    FrameTooLarge,
    ProtocolViolation,
    ResourceLimit,
    StreamClosed,
    StreamReset,
    UsageError,
)

READABLE = 1
WRITABLE = 2
CLOSED = 4
PONG_LOST_NS = 10_000_000_000  # its place then may be taken

cdef enum:
    NOGIL_FROM = 8 * 1024  # a write of this much lets go of the GIL
    UVARINT_MAX = 9  # bytes (multiformats/unsigned-varint)
    # credit for less than half a window may not have been given yet
    FRAME_MAX = INITIAL_WINDOW // 2 - UVARINT_MAX

cdef dict VIOLATIONS = {
    BAD_VERSION: "a frame of a version other than 0",
    BAD_TYPE: "a frame of an unknown type",
    BAD_FLAGS: "a frame with unknown flags",
    BAD_STREAM_ZERO: "a stream frame for stream 0",
    BAD_SESSION_ID: "a session frame with a stream id",
    BAD_PARITY: "a stream opened with an id of our parity",
    BAD_SYN_REUSE: "a stream opened twice",
    BAD_UNKNOWN: "a frame for a stream that was never opened",
    BAD_WINDOW: "more data than the window allows",
    BAD_CREDIT: "a window beyond 32 bits",
}
GOAWAY_REASONS = {0: "normal termination", 1: "protocol error", 2: "internal error"}


class LinkStats(NamedTuple):
    """Counters of one link: bytes on the wire each way, what is buffered, and streams."""

    bytes_in: int
    bytes_out: int
    unsent: int  # sealed or not, in the output buffer
    buffered: int  # received and not yet read, all streams
    windows: int  # what the peer may have in flight or unread at once, all streams
    streams: int
    inbound_streams: int
    unacked_streams: int  # ours that the peer has not yet acknowledged
    refused_streams: int  # inbound ones, by a limit


cdef class Link:
    """One secured, multiplexed connection, made by `Engine.attach` and kept by the engine until its end."""

    def __init__(self):
        raise TypeError("a Link is made by Engine.attach or Engine.attach_memory")

    def __dealloc__(self):
        if self.ln != NULL:
            disown(self.ln.mux.core, &self.ln.mux.node)

    cdef link* use(self) except NULL:
        if self.ln == NULL:
            raise UsageError("a Link is made by Engine.attach or Engine.attach_memory")
        return self.ln

    cdef void bind(self, object engine, core* c, link* ln):
        self.engine = engine
        self.ln = ln
        self.pings = {}
        core_ref(c)
        ln.mux.wrappers = 1
        ln.mux.node.held = 1
        ln.mux.node.owner = <void*>self

    def open_stream(self):
        cdef link* ln = self.use()
        cdef mux* m = &ln.mux
        cdef stream* s
        cdef core* c
        cdef bint alive
        cdef LinkStream wrapper = LinkStream.__new__(LinkStream)
        if ln.state != LINK_OPEN:
            raise self.closed_error()
        if m.goaway_received:
            raise ConnectionClosed("the peer takes no new streams: it said go-away")
        if m.unacked[0] >= m.limits.backlog:
            raise ResourceLimit(f"{m.unacked[0]} streams wait for the peer's acknowledgement")
        if m.next_id > 0xFFFFFFFF:
            raise ResourceLimit("all stream ids of this connection are used")
        c = enter_at(&m.core)
        alive = ln.state == LINK_OPEN
        s = mux_open(m) if alive else NULL
        if s != NULL:
            adopt(wrapper, self, s)
        leave(c)
        if not alive:
            raise self.closed_error()
        if s == NULL:
            raise MemoryError
        return wrapper

    def close(self, uint32_t goaway_code=0):
        cdef link* ln = self.use()
        cdef core* c = enter_at(&ln.mux.core)
        link_close(ln, goaway_code)
        leave(c)

    def abort(self, reason=None):
        cdef link* ln = self.use()
        cdef core* c
        given = ConnectionClosed(reason) if isinstance(reason, str) else reason
        cdef bint alive
        c = enter_at(&ln.mux.core)
        alive = ln.state != LINK_DEAD
        link_abort(ln)
        leave(c)
        if alive and self.reason is None:
            self.reason = given

    def ping(self, callback):
        cdef link* ln = self.use()
        cdef int i
        cdef int slot = -1
        cdef ping_slot* one
        cdef int64_t lost_after = PONG_LOST_NS
        cdef core* c
        if ln.state != LINK_OPEN:
            raise self.closed_error()
        c = enter_at(&ln.mux.core)
        for i in range(PINGS):
            one = &ln.mux.pings[i]
            if one.sent and one.rtt == 0 and c.now - one.sent > lost_after:
                one.sent = 0  # lost
            if one.sent == 0:
                slot = i
                mux_ping(&ln.mux, one)
                break
        leave(c)
        if slot < 0:
            raise ResourceLimit(f"{PINGS} pings are under way on this connection")
        lost = self.pings.pop(slot, None)
        self.pings[slot] = callback
        if lost is not None:
            lost(None)

    def feed(self, data):
        cdef link* ln = self.use()
        cdef Py_buffer view
        if not ln.in_memory:
            raise UsageError("feed() is for memory links")
        cdef core* c
        cdef bint work
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            c = enter_at_nogil(&ln.mux.core)
            link_feed(ln, <const uint8_t*>view.buf, view.len)
            work = leave_nogil(c)
        if work:
            wake(c)
        PyBuffer_Release(&view)

    def take_output(self):
        cdef link* ln = self.use()
        cdef mux* m = &ln.mux
        cdef size_t n
        cdef bytes data = b""
        cdef core* c
        if not ln.in_memory:
            raise UsageError("take_output() is for memory links")
        c = enter_at(&m.core)
        try:
            if ln.state != LINK_DEAD:
                out_finish(&m.out)
            n = m.out.end - m.out.start
            if n and not m.out.error:
                data = PyBytes_FromStringAndSize(<const char*>m.out.data + m.out.start, n)
                out_sent(c, &m.out, n)
                ln.bytes_out += n
            m.blocked = 0
            set_dirty(c, &m.node)
        finally:
            leave(c)
        return data

    @property
    def rtt_ns(self):
        return self.use().mux.rtt

    @property
    def initiator(self):
        return bool(self.use().mux.initiator)

    @property
    def closed(self):
        return self.use().state == LINK_DEAD

    @property
    def paused(self):
        return bool(self.use().mux.paused)

    @property
    def ciphers(self):
        cdef link* ln = self.use()
        return (ln.key.ctx != NULL) + (ln.mux.out.key.ctx != NULL)

    @property
    def unsent(self):
        cdef mux* m = &self.use().mux
        return m.out.end - m.out.start

    @property
    def stats(self):
        cdef link* ln = self.use()
        cdef mux* m = &ln.mux
        return LinkStats(
            ln.bytes_in, ln.bytes_out, m.out.end - m.out.start, m.buffered, m.window_total,
            m.streams, m.inbound, m.unacked[0], m.refused,
        )

    def __repr__(self):
        if self.ln == NULL:
            return "<Link unbound>"
        state = ("open", "closing", "closed")[self.ln.state]
        return f"<Link {state} to {self.peername or 'memory'}, {self.ln.mux.streams} streams>"

    cdef object error(self):
        """Why the link ended, for on_close and for its streams."""
        cdef link* ln = self.ln
        cdef core* c
        if self.reason is not None:
            return self.reason
        c = enter_at(&ln.mux.core)  # so that all of the end is seen
        leave(c)
        if ln.end == END_NONE or ln.end == END_LOCAL:
            return ConnectionClosed("the connection was closed here")
        if ln.end == END_VIOLATION:
            error = ProtocolViolation(f"the peer sent {VIOLATIONS[ln.mux.violation]}", protocol="yamux")
        elif ln.end == END_RECORD:
            error = record_failure(ln.kind, ln.error, ln.alert)
        elif ln.end == END_ERRNO:
            error = ConnectionClosed(ln.error, os.strerror(ln.error))
        elif ln.end == END_KEEPALIVE:
            seconds = ln.mux.limits.keepalive_timeout / 1e9
            error = ConnectionClosed(f"the peer answered no keepalive ping within {seconds:g} s")
        elif ln.end == END_MEMORY:
            error = MemoryError("no memory for the connection's buffers")
        elif ln.mux.goaway_received and ln.mux.goaway_code:
            why = GOAWAY_REASONS.get(ln.mux.goaway_code, f"code {ln.mux.goaway_code}")
            error = ConnectionClosed(f"the peer ended the connection: {why}")
        elif ln.end == END_TRUNCATED:
            error = ConnectionClosed("the peer closed the connection in the middle of a frame")
        else:
            error = ConnectionClosed("the peer closed the connection")
        self.reason = error
        return error

    cdef object closed_error(self):
        """The same for its users, to whom a violation is an end like any other."""
        error = self.error()
        args = error.args if isinstance(error, ConnectionClosed) else (str(error),)
        closed = ConnectionClosed(*args)
        closed.__cause__ = error
        return closed

    cdef int collect(self, unsigned int events, list batch, list last) except -1:
        """Turn what the pass noted into calls. Runs with the GIL, outside the engine."""
        cdef link* ln = self.ln
        cdef stream* s
        cdef LinkStream wrapper
        cdef int64_t rtts[PINGS]
        cdef int i
        cdef core* c
        while events & MUX_ACCEPT:
            wrapper = LinkStream.__new__(LinkStream)
            c = enter_at(&ln.mux.core)
            s = mux_accepted(&ln.mux)
            if s != NULL:
                adopt(wrapper, self, s)
            leave(c)
            if s == NULL:
                break
            if self.on_stream is not None:
                batch.append((self.on_stream, wrapper))
        if events & MUX_PONG:
            c = enter_at(&ln.mux.core)
            for i in range(PINGS):
                rtts[i] = ln.mux.pings[i].rtt
                if rtts[i]:
                    ln.mux.pings[i].sent = ln.mux.pings[i].rtt = 0
            leave(c)
            for i in range(PINGS):
                if rtts[i]:
                    batch.append((self.pings.pop(i, None), rtts[i]))
        if events & MUX_GOAWAY:
            batch.append((self.on_goaway, ln.mux.goaway_code))
        if events & MUX_OUTPUT:
            batch.append((self.on_output, None))
        if events & MUX_CLOSED:
            for callback in self.pings.values():
                last.append((callback, None))
            self.pings.clear()
            self.engine.links.discard(self)
            error = self.error() if ln.end != END_LOCAL else self.reason
            last.append((self.on_close, error))
        return 0


cdef void adopt(LinkStream wrapper, Link owner, stream* s):
    """Between enter and leave: it calls nothing of Python's."""
    wrapper.s = s
    wrapper.link = owner
    core_ref(s.mux.core)
    s.mux.wrappers += 1
    s.node.held = 1
    s.node.owner = <void*>wrapper


cdef enum:
    FRAME_PARTIAL
    FRAME_WHOLE
    FRAME_TOO_LARGE
    FRAME_BAD_PREFIX


cdef int frame_state(stream* s, size_t limit, size_t* prefix, uint64_t* size) noexcept nogil:
    """Look at the uvarint-delimited frame that stands at the front, and take nothing."""
    cdef uint8_t head[UVARINT_MAX]
    cdef size_t have = stream_copy(s, head, UVARINT_MAX)
    cdef size_t i
    for i in range(have):
        size[0] |= <uint64_t>(head[i] & 0x7F) << (7 * i)
        if size[0] > limit:
            return FRAME_TOO_LARGE  # known before the prefix ends
        if not head[i] & 0x80:
            prefix[0] = i + 1
            if i and head[i] == 0:
                return FRAME_BAD_PREFIX
            return FRAME_WHOLE if s.rx.size - prefix[0] >= size[0] else FRAME_PARTIAL
    return FRAME_BAD_PREFIX if have == UVARINT_MAX else FRAME_PARTIAL


cdef class LinkStream:
    """One yamux stream. Dropping the last reference to one that is not closed resets it."""

    def __init__(self):
        raise TypeError("a LinkStream is made by Link.open_stream, or comes to Link.on_stream")

    def __dealloc__(self):
        if self.s != NULL:
            disown(self.s.mux.core, &self.s.node)

    cdef stream* use(self) except NULL:
        if self.s == NULL:
            raise UsageError("a LinkStream is made by Link.open_stream, or comes to Link.on_stream")
        return self.s

    cdef stream* use_here(self) except NULL:
        if self.s == NULL or self.s.hooks != NULL:
            raise UsageError("this stream is spliced" if self.s != NULL else "not a stream")
        return self.s

    cdef int check(self, stream* s) except -1:
        if s.reset:
            raise StreamReset(f"stream {s.id} was reset")
        if s.lost:
            raise self.link.closed_error()
        return 0

    def read(self, Py_ssize_t max_bytes=65536):
        cdef stream* s = self.use_here()
        cdef bytes data = None
        cdef size_t n
        cdef core* c
        cdef bint ended
        cdef bint failed
        if max_bytes <= 0:
            raise UsageError("read at least 1 byte")
        c = enter_at(&s.mux.core)
        try:
            ended = s.read_closed and not s.reset_here  # also if a reset followed
            failed = s.reset or s.lost
            n = min(<size_t>max_bytes, s.rx.size)
            if n:
                data = PyBytes_FromStringAndSize(NULL, n)
                stream_copy(s, <uint8_t*>PyBytes_AS_STRING(data), n)
                stream_skip(s, n)
        finally:
            leave(c)
        if n:
            return data
        if ended:
            return b""
        if failed:
            self.check(s)
        return None

    def read_frame(self, Py_ssize_t limit):
        cdef stream* s = self.use_here()
        cdef size_t prefix = 0
        cdef uint64_t size = 0
        cdef int state
        cdef bytes data = None
        cdef core* c
        cdef bint ended
        cdef bint failed
        cdef bint empty
        if not 0 < limit <= FRAME_MAX:
            raise UsageError(f"a frame limit from 1 to {FRAME_MAX}, not {limit}")
        c = enter_at(&s.mux.core)
        try:
            ended = s.read_closed and not s.reset_here
            failed = s.reset or s.lost
            empty = s.rx.size == 0
            state = frame_state(s, limit, &prefix, &size)
            if state == FRAME_WHOLE:
                data = PyBytes_FromStringAndSize(NULL, size)
                stream_skip(s, prefix)
                stream_copy(s, <uint8_t*>PyBytes_AS_STRING(data), size)
                stream_skip(s, size)
        finally:
            leave(c)
        if state == FRAME_WHOLE:
            return data
        if state == FRAME_TOO_LARGE:
            raise FrameTooLarge(size, limit)
        if state == FRAME_BAD_PREFIX:
            raise DecodeError("a length prefix that is not minimal, or longer than 9 bytes")
        if ended:
            raise StreamClosed(f"stream {s.id} ended {'before' if empty else 'within'} a frame")
        if failed:
            self.check(s)
        return None

    def write(self, data):
        cdef stream* s = self.use_here()
        cdef Py_buffer view
        cdef size_t taken
        cdef core* c
        cdef bint work
        self.check(s)
        if s.write_closed:
            raise UsageError(f"write after close_write() on stream {s.id}")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if view.len >= NOGIL_FROM:
            with nogil:
                c = enter_at_nogil(&s.mux.core)
                taken = stream_write(s, <const uint8_t*>view.buf, view.len)
                work = leave_nogil(c)
            if work:
                wake(c)
        else:
            c = enter_at(&s.mux.core)
            taken = stream_write(s, <const uint8_t*>view.buf, view.len)
            leave(c)
        PyBuffer_Release(&view)
        return taken

    def close_write(self):
        cdef stream* s = self.use_here()
        cdef core* c = enter_at(&s.mux.core)
        stream_close_write(s)
        leave(c)

    def reset(self):
        cdef stream* s = self.use()
        cdef core* c = enter_at(&s.mux.core)
        s.reset_here |= s.in_table
        stream_reset(s)
        stream_discard(s)
        leave(c)

    def discard(self):
        cdef stream* s = self.use_here()
        cdef core* c = enter_at(&s.mux.core)
        stream_discard(s)
        leave(c)

    def set_priority(self, bint control):
        self.use().control = control

    @property
    def id(self):
        return self.use().id

    @property
    def inbound(self):
        return bool(self.use().inbound)

    @property
    def readable(self):
        return self.use().rx.size

    @property
    def read_closed(self):
        return bool(self.use().read_closed)

    @property
    def write_closed(self):
        return bool(self.use().write_closed)

    @property
    def is_reset(self):
        return bool(self.use().reset)

    @property
    def send_window(self):
        return self.use().send_window

    @property
    def receive_window(self):
        return self.use().window

    def __repr__(self):
        if self.s == NULL:
            return "<LinkStream unbound>"
        return f"<LinkStream {self.s.id} {'inbound' if self.s.inbound else 'outbound'}>"
