"""Links and their streams as Python sees them. Every method enters the engine for a moment; no call blocks."""

from typing import NamedTuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flare._core.core cimport core, core_ref, disown, enter, leave, set_dirty
from flare._core.link_io cimport (
    END_EOF,
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
from flare._core.records cimport NOWHERE, RECORD_EXHAUSTED, out_finish, out_sent
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
    stream,
    stream_close_write,
    stream_copy,
    stream_discard,
    stream_reset,
    stream_skip,
    stream_write,
)

import os

from flare._core.records import NoiseRecords, PlainRecords, RecordKeys
from flare.errors import (
    AuthenticationFailed,
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

cdef enum:
    NOGIL_FROM = 8 * 1024  # a write of this much lets go of the GIL
    UVARINT_MAX = 9  # bytes (multiformats/unsigned-varint)

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
    """One secured, multiplexed connection. `Engine.attach` makes it; the engine keeps it until it is closed."""

    def __init__(self):
        raise TypeError("a Link is made by Engine.attach or Engine.attach_memory")

    def __dealloc__(self):
        if self.l != NULL:
            disown(self.c, &self.l.mux.node)

    cdef link* use(self) except NULL:
        if self.l == NULL:
            raise UsageError("a Link is made by Engine.attach or Engine.attach_memory")
        return self.l

    cdef void bind(self, object engine, core* c, link* l):
        self.engine = engine
        self.c = c
        self.l = l
        self.pings = {}
        core_ref(c)
        l.mux.node.held = 1
        l.mux.node.owner = <void*>self

    def open_stream(self):
        cdef link* l = self.use()
        cdef mux* m = &l.mux
        cdef stream* s
        cdef LinkStream wrapper = LinkStream.__new__(LinkStream)
        if l.state != LINK_OPEN:
            raise self.error()
        if m.goaway_received:
            raise ConnectionClosed("the peer takes no new streams: it said go-away")
        if m.unacked[0] >= m.limits.backlog:
            raise ResourceLimit(f"{m.unacked[0]} streams wait for the peer's acknowledgement")
        if m.next_id > 0xFFFFFFFF:
            raise ResourceLimit("all stream ids of this connection are used")
        enter(self.c)
        s = mux_open(m) if l.state == LINK_OPEN else NULL
        if s != NULL:
            adopt(wrapper, self, s)
        leave(self.c)
        if s == NULL:
            raise MemoryError
        return wrapper

    def close(self, uint32_t goaway_code=0):
        cdef link* l = self.use()
        enter(self.c)
        link_close(l, goaway_code)
        leave(self.c)

    def abort(self, reason=None):
        cdef link* l = self.use()
        if self.reason is None and l.state != LINK_DEAD:
            self.reason = ConnectionClosed(reason) if isinstance(reason, str) else reason
        enter(self.c)
        link_abort(l)
        leave(self.c)

    def ping(self, callback):
        cdef link* l = self.use()
        cdef int i
        cdef int slot = -1
        if l.state != LINK_OPEN:
            raise self.error()
        enter(self.c)
        for i in range(PINGS):
            if l.mux.pings[i].sent == 0:
                slot = i
                mux_ping(&l.mux, &l.mux.pings[i])
                break
        leave(self.c)
        if slot < 0:
            raise ResourceLimit(f"{PINGS} pings are under way on this connection")
        self.pings[slot] = callback

    def feed(self, data):
        cdef link* l = self.use()
        cdef Py_buffer view
        if not l.in_memory:
            raise UsageError("feed() is for memory links")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        enter(self.c)
        with nogil:
            link_feed(l, <const uint8_t*>view.buf, view.len)
        leave(self.c)
        PyBuffer_Release(&view)

    def take_output(self):
        cdef link* l = self.use()
        cdef mux* m = &l.mux
        cdef size_t n
        cdef bytes data = b""
        if not l.in_memory:
            raise UsageError("take_output() is for memory links")
        enter(self.c)
        try:
            if l.state != LINK_DEAD:
                out_finish(&m.out)
            n = m.out.end - m.out.start
            if n and not m.out.error:
                data = PyBytes_FromStringAndSize(<const char*>m.out.data + m.out.start, n)
                out_sent(self.c, &m.out, n)
                l.bytes_out += n
            m.blocked = 0
            set_dirty(self.c, &m.node)
        finally:
            leave(self.c)
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
    def unsent(self):
        cdef mux* m = &self.use().mux
        return m.out.end - m.out.start

    @property
    def stats(self):
        cdef link* l = self.use()
        cdef mux* m = &l.mux
        return LinkStats(
            l.bytes_in, l.bytes_out, m.out.end - m.out.start, m.buffered, m.window_total,
            m.streams, m.inbound, m.unacked[0], m.refused,
        )

    def __repr__(self):
        if self.l == NULL:
            return "<Link unbound>"
        state = ("open", "closing", "closed")[self.l.state]
        return f"<Link {state} to {self.peername or 'memory'}, {self.l.mux.streams} streams>"

    cdef object error(self):
        """Why the link ended, for on_close and for its streams."""
        cdef link* l = self.l
        if self.reason is not None:
            return self.reason
        if l.end == END_NONE or l.end == END_LOCAL:
            return ConnectionClosed("the connection was closed here")
        if l.end == END_VIOLATION:
            error = ProtocolViolation(f"the peer sent {VIOLATIONS[l.mux.violation]}", protocol="yamux")
        elif l.end == END_RECORD and l.error == RECORD_EXHAUSTED:
            error = ResourceLimit("all nonces of this connection's keys are used")
        elif l.end == END_RECORD:
            error = AuthenticationFailed("a record does not verify", protocol="noise")
        elif l.end == END_ERRNO:
            error = ConnectionClosed(l.error, os.strerror(l.error))
        elif l.end == END_KEEPALIVE:
            seconds = l.mux.limits.keepalive_timeout / 1e9
            error = ConnectionClosed(f"the peer answered no keepalive ping within {seconds:g} s")
        elif l.end == END_MEMORY:
            error = MemoryError("no memory for the connection's buffers")
        elif l.mux.goaway_received and l.mux.goaway_code:
            why = GOAWAY_REASONS.get(l.mux.goaway_code, f"code {l.mux.goaway_code}")
            error = ConnectionClosed(f"the peer ended the connection: {why}")
        elif l.end == END_TRUNCATED:
            error = ConnectionClosed("the peer closed the connection in the middle of a frame")
        else:
            error = ConnectionClosed("the peer closed the connection")
        self.reason = error
        return error

    cdef int collect(self, unsigned int events, list batch, list last) except -1:
        """Turn what the pass noted into calls. Runs with the GIL, outside the engine."""
        cdef link* l = self.l
        cdef stream* s
        cdef LinkStream wrapper
        cdef int i
        while events & MUX_ACCEPT:
            enter(self.c)
            s = mux_accepted(&l.mux)
            if s != NULL:
                s.node.held = 1
            leave(self.c)
            if s == NULL:
                break
            wrapper = LinkStream.__new__(LinkStream)
            adopt(wrapper, self, s)
            if self.on_stream is not None:
                batch.append((self.on_stream, wrapper))
        if events & MUX_PONG:
            for i in range(PINGS):
                if l.mux.pings[i].rtt:
                    batch.append((self.pings.pop(i, None), l.mux.pings[i].rtt))
                    l.mux.pings[i].sent = l.mux.pings[i].rtt = 0
        if events & MUX_GOAWAY:
            batch.append((self.on_goaway, l.mux.goaway_code))
        if events & MUX_OUTPUT:
            batch.append((self.on_output, None))
        if events & MUX_CLOSED:
            for callback in self.pings.values():
                last.append((callback, None))
            self.pings.clear()
            self.engine.links.discard(self)
            error = self.error() if l.end != END_LOCAL else self.reason
            last.append((self.on_close, error))
        return 0


cdef void adopt(LinkStream wrapper, Link owner, stream* s):
    wrapper.s = s
    wrapper.c = owner.c
    wrapper.link = owner
    core_ref(owner.c)
    s.node.held = 1
    s.node.owner = <void*>wrapper


cdef class LinkStream:
    """One yamux stream. Dropping the last reference to one that is not closed resets it."""

    def __init__(self):
        raise TypeError("a LinkStream is made by Link.open_stream, or comes to Link.on_stream")

    def __dealloc__(self):
        if self.s != NULL:
            disown(self.c, &self.s.node)

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
            error = self.link.error()
            raise ConnectionClosed(str(error)) from error  # for a stream a violation is an end like any other
        return 0

    def read(self, Py_ssize_t max_bytes=65536):
        cdef stream* s = self.use_here()
        cdef bytes data = None
        cdef size_t n
        if max_bytes <= 0:
            raise UsageError("read at least 1 byte")
        enter(self.c)
        try:
            n = min(<size_t>max_bytes, s.rx.size)
            if n:
                data = PyBytes_FromStringAndSize(NULL, n)
                stream_copy(s, <uint8_t*>PyBytes_AS_STRING(data), n)
                stream_skip(s, n)
        finally:
            leave(self.c)
        if n:
            return data
        if s.read_closed and not s.reset:
            return b""
        self.check(s)
        return None

    def read_frame(self, Py_ssize_t limit):
        cdef stream* s = self.use_here()
        cdef uint8_t prefix[UVARINT_MAX]
        cdef size_t have
        cdef uint64_t size = 0
        cdef size_t i = 0
        cdef bint whole = False
        cdef bytes data
        if not 0 < limit <= INITIAL_WINDOW - UVARINT_MAX:
            raise UsageError(f"a frame limit from 1 to {INITIAL_WINDOW - UVARINT_MAX}, not {limit}")
        have = stream_copy(s, prefix, UVARINT_MAX)
        while i < have:
            size |= <uint64_t>(prefix[i] & 0x7F) << (7 * i)
            i += 1
            if not prefix[i - 1] & 0x80:
                whole = True
                break
        if whole and i > 1 and prefix[i - 1] == 0:
            raise DecodeError("a length prefix that is not minimal")
        if not whole and i == UVARINT_MAX:
            raise DecodeError(f"a length prefix of more than {UVARINT_MAX} bytes")
        if size > <uint64_t>limit:  # known before the prefix ends
            raise FrameTooLarge(size, limit)
        if not whole or s.rx.size - i < size:
            if s.read_closed and not s.reset:
                raise StreamClosed(f"stream {s.id} ended {'before' if s.rx.size == 0 else 'within'} a frame")
            self.check(s)
            return None
        enter(self.c)
        try:
            data = PyBytes_FromStringAndSize(NULL, size)
            stream_skip(s, i)
            stream_copy(s, <uint8_t*>PyBytes_AS_STRING(data), size)
            stream_skip(s, size)
        finally:
            leave(self.c)
        return data

    def write(self, data):
        cdef stream* s = self.use_here()
        cdef Py_buffer view
        cdef size_t taken
        self.check(s)
        if s.write_closed:
            raise UsageError(f"write after close_write() on stream {s.id}")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        enter(self.c)
        if view.len >= NOGIL_FROM:
            with nogil:
                taken = stream_write(s, <const uint8_t*>view.buf, view.len)
        else:
            taken = stream_write(s, <const uint8_t*>view.buf, view.len)
        leave(self.c)
        PyBuffer_Release(&view)
        return taken

    def close_write(self):
        cdef stream* s = self.use_here()
        enter(self.c)
        stream_close_write(s)
        leave(self.c)

    def reset(self):
        cdef stream* s = self.use()
        enter(self.c)
        stream_reset(s)
        if s.hooks == NULL:
            stream_discard(s)
        leave(self.c)

    def discard(self):
        cdef stream* s = self.use_here()
        enter(self.c)
        stream_discard(s)
        leave(self.c)

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
