"""Moving a link's bytes: socket, records, yamux; and how a link ends. No Python object is touched here."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

from flare._core.aead cimport aead_free
from flare._core.core cimport bury, node_ops, notify, set_dirty, timer_clear, timer_set
from flare._core.records cimport (
    NOISE_HEADER,
    NOISE_TAG,
    RECORD_MEMORY,
    RECORD_NOISE,
    RECORD_OK,
    RECORD_SHORT,
    out_finish,
    out_free,
    out_sent,
    out_trim,
    record_open,
)
from flare._core.yamux cimport (
    GOAWAY_NORMAL,
    GOAWAY_PROTOCOL,
    MUX_CLOSED,
    MUX_OUTPUT,
    OUT_OF_MEMORY,
    mux_accepted,
    mux_end,
    mux_goaway,
    mux_init,
    mux_input,
    mux_ping,
    mux_serve,
    mux_waiting,
    stream,
)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t n, int flags)
    int shutdown(int fd, int how)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT
    enum: SHUT_WR

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec* parts, int n)


cdef link* link_new(core* c, int fd, bint initiator, int kind) noexcept nogil:
    cdef link* l
    if c.scratch == NULL:
        c.scratch = <uint8_t*>malloc(SCRATCH_FRONT + SCRATCH)
        if c.scratch == NULL:
            return NULL
    l = <link*>calloc(1, sizeof(link))
    if l == NULL:
        return NULL
    mux_init(&l.mux, c, initiator)
    l.mux.node.ops = &link_ops
    l.mux.flush_now = link_send_mux
    l.mux.out.kind = <uint8_t>kind
    l.kind = <uint8_t>kind
    l.fd = fd
    l.in_memory = fd < 0
    l.timer.subject = &l.mux.node
    l.timer.fire = link_timer
    return l


cdef void link_start(link* l) noexcept nogil:
    cdef core* c = l.mux.core
    cdef link* first = <link*>c.links
    l.next = first
    if first != NULL:
        first.previous = l
    c.links = &l.mux.node
    l.received_at = c.now
    if l.mux.limits.keepalive and timer_set(c, &l.timer, c.now + l.mux.limits.keepalive) < 0:
        link_die(l, END_MEMORY, 0)
        return
    watch(l)


cdef void watch(link* l) noexcept nogil:
    """Ask the poller for what this link waits for, and decide whether it may read on."""
    cdef mux* m = &l.mux
    cdef int what = WATCH_READ
    cdef int error
    m.paused = (
        m.buffered >= m.limits.max_receive
        or m.out.end - m.out.start >= m.limits.high_water + CONTROL_SLACK
    )
    if m.paused:
        what = WATCH_NONE
    if m.blocked:
        what |= WATCH_WRITE
    if l.fd < 0 or what == l.watching:
        return
    error = m.core.watch(m.core, l.fd, l, l.watching, what)
    if error:
        link_die(l, END_ERRNO, error)
        return
    l.watching = <uint8_t>what


# In

cdef void link_read(link* l, size_t quantum) noexcept nogil:
    """One receive, and all that follows from it."""
    cdef core* c = l.mux.core
    cdef iovec parts[2]
    cdef int count = 0
    cdef ssize_t n
    cdef uint8_t* data = c.scratch + SCRATCH_FRONT
    cdef size_t to_partial = 0
    if l.partial_size:
        # the record that has begun is completed where it lies
        to_partial = l.partial_size - l.partial_n
        parts[0].iov_base = l.partial + l.partial_n
        parts[0].iov_len = to_partial
        count = 1
    parts[count].iov_base = data
    parts[count].iov_len = quantum
    while True:
        n = readv(l.fd, parts, count + 1)
        if n >= 0 or errno != EINTR:
            break
    if n < 0:
        if errno != EAGAIN:
            link_die(l, END_ERRNO, errno)
        return
    if n == 0:
        if l.state == LINK_CLOSING:
            link_die(l, END_LOCAL, 0)
        elif l.partial_size or l.has_first_byte or l.mux.left or l.mux.header_n:
            link_die(l, END_TRUNCATED, 0)
        else:
            link_die(l, END_EOF, 0)
        return
    c.counters.receives += 1
    c.counters.bytes_in += n
    l.bytes_in += n
    l.received_at = c.now
    if to_partial:
        if <size_t>n < to_partial:
            l.partial_n += n
            return
        n -= to_partial
        if not finish_partial(l):
            return
    take(l, data, n)


cdef void link_feed(link* l, const uint8_t* data, size_t n) noexcept nogil:
    """Bytes that came another way. They are copied, since records are opened in place."""
    cdef core* c = l.mux.core
    cdef uint8_t* scratch = c.scratch + SCRATCH_FRONT
    cdef size_t part
    l.bytes_in += n
    l.received_at = c.now
    while n and l.state != LINK_DEAD:
        if l.partial_size:
            part = min(n, l.partial_size - l.partial_n)
            memcpy(l.partial + l.partial_n, data, part)
            l.partial_n += part
            if l.partial_n == l.partial_size and not finish_partial(l):
                return
        else:
            part = min(n, <size_t>SCRATCH)
            memcpy(scratch, data, part)
            take(l, scratch, part)
        data += part
        n -= part


cdef bint finish_partial(link* l) noexcept nogil:
    cdef uint8_t* record = l.partial
    cdef size_t size = l.partial_size
    cdef bint alive
    l.partial = NULL
    l.partial_n = l.partial_size = 0
    alive = one_record(l, record + NOISE_HEADER, size - NOISE_HEADER)
    free(record)
    return alive


cdef bint one_record(link* l, uint8_t* data, size_t n) noexcept nogil:
    cdef int error = record_open(&l.key, data, n)
    if error != RECORD_OK:
        link_die(l, END_RECORD, error)
        return False
    return parse(l, data, n - NOISE_TAG)


cdef bint parse(link* l, const uint8_t* data, size_t n) noexcept nogil:
    if l.state == LINK_CLOSING:
        return True  # what the peer sent before it heard our go-away concerns nobody
    if mux_input(&l.mux, data, n) == 0:
        return True
    if l.state == LINK_DEAD:
        return False
    if l.mux.violation == OUT_OF_MEMORY:
        link_die(l, END_MEMORY, 0)
        return False
    l.mux.goaway_sent = 0  # the last word
    mux_goaway(&l.mux, GOAWAY_PROTOCOL)
    link_send(l)
    link_die(l, END_VIOLATION, 0)
    return False


cdef void take(link* l, uint8_t* data, size_t n) noexcept nogil:
    """Whole records of what was received; keep what is left of the last."""
    cdef size_t size
    if l.state != LINK_OPEN:
        return
    if l.kind != RECORD_NOISE:
        parse(l, data, n)
        return
    if l.has_first_byte and n:
        l.has_first_byte = 0
        data -= 1
        data[0] = l.first_byte
        n += 1
    while n >= NOISE_HEADER:
        size = <size_t>data[0] << 8 | data[1]
        if size < NOISE_TAG:
            link_die(l, END_RECORD, RECORD_SHORT)
            return
        if n < NOISE_HEADER + size:
            l.partial = <uint8_t*>malloc(NOISE_HEADER + size)
            if l.partial == NULL:
                link_die(l, END_MEMORY, 0)
                return
            memcpy(l.partial, data, n)
            l.partial_n = n
            l.partial_size = NOISE_HEADER + size
            return
        if not one_record(l, data + NOISE_HEADER, size):
            return
        data += NOISE_HEADER + size
        n -= NOISE_HEADER + size
    if n:
        l.first_byte = data[0]
        l.has_first_byte = 1


# Out

cdef void link_send(link* l) noexcept nogil:
    """Seal and send what there is, as far as the socket takes it. May end the link."""
    cdef mux* m = &l.mux
    cdef ssize_t n
    if l.state == LINK_DEAD:
        return
    out_finish(&m.out)
    if m.out.error:
        link_die(l, END_MEMORY if m.out.error == RECORD_MEMORY else END_RECORD, m.out.error)
        return
    if l.shut:
        out_free(m.core, &m.out)
    if m.out.end == m.out.start:
        return
    if l.in_memory:
        m.blocked = 1
        notify(m.core, &m.node, MUX_OUTPUT)
        return
    while m.out.end > m.out.start:
        n = send(l.fd, m.out.data + m.out.start, m.out.end - m.out.start, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                link_die(l, END_ERRNO, errno)
                return
            m.blocked = 1
            out_trim(m.core, &m.out)
            return
        m.core.counters.sends += 1
        m.core.counters.bytes_out += n
        l.bytes_out += n
        out_sent(m.core, &m.out, n)


cdef void link_send_mux(mux* m) noexcept nogil:
    link_send(<link*>m)


cdef void link_flush(node* n) noexcept nogil:
    cdef link* l = <link*>n
    cdef mux* m = &l.mux
    if not m.blocked or l.in_memory:
        link_send(l)
    if not m.blocked and mux_waiting(m):
        mux_serve(m)  # what they write makes the link dirty again
    if l.state == LINK_DEAD:
        return
    if l.state == LINK_CLOSING and m.out.end == m.out.start and not l.shut:
        l.shut = 1
        if l.in_memory:
            link_die(l, END_LOCAL, 0)
            return
        shutdown(l.fd, SHUT_WR)
    watch(l)


cdef void link_writable(link* l) noexcept nogil:
    l.mux.blocked = 0
    set_dirty(l.mux.core, &l.mux.node)


# The end

cdef void link_close(link* l, uint32_t code) noexcept nogil:
    """Say go-away, send what is left, wait for the peer to close; no longer than `linger`."""
    if l.state != LINK_OPEN:
        return
    l.state = LINK_CLOSING
    mux_goaway(&l.mux, code)
    mux_end(&l.mux)
    set_dirty(l.mux.core, &l.mux.node)
    timer_set(l.mux.core, &l.timer, l.mux.core.now + l.linger)


cdef void link_abort(link* l) noexcept nogil:
    link_die(l, END_LOCAL, 0)


cdef void link_die(link* l, int end, int error) noexcept nogil:
    cdef core* c = l.mux.core
    if l.state == LINK_DEAD:
        return
    l.state = LINK_DEAD
    l.end = <uint8_t>end
    l.error = error
    timer_clear(c, &l.timer)
    if l.next != NULL:
        l.next.previous = l.previous
    if l.previous != NULL:
        l.previous.next = l.next
    elif c.links == &l.mux.node:
        c.links = <node*>l.next
    l.next = l.previous = NULL
    if l.fd >= 0:
        if l.watching:
            c.watch(c, l.fd, l, l.watching, WATCH_NONE)
        close(l.fd)
        l.fd = -1
    mux_end(&l.mux)
    free(l.partial)
    l.partial = NULL
    l.partial_n = l.partial_size = 0
    if not l.in_memory:
        out_free(c, &l.mux.out)  # a memory link's last words may still be taken
    aead_free(&l.key)
    aead_free(&l.mux.out.key)
    notify(c, &l.mux.node, MUX_CLOSED)


cdef void link_timer(node* n) noexcept nogil:
    cdef link* l = <link*>n
    cdef mux* m = &l.mux
    cdef int64_t now = m.core.now
    cdef int64_t due
    if l.state == LINK_CLOSING:
        link_die(l, END_LOCAL, 0)
        return
    if m.own_ping.sent and l.received_at < m.own_ping.sent and not m.paused:
        due = m.own_ping.sent + m.limits.keepalive_timeout
        if now >= due:
            link_die(l, END_KEEPALIVE, 0)
            return
    elif now - l.received_at >= m.limits.keepalive:
        m.own_ping.sent = 0  # an old one that was never answered, though the peer spoke since
        mux_ping(m, &m.own_ping)
        due = now + m.limits.keepalive_timeout
    else:
        due = l.received_at + m.limits.keepalive
    timer_set(m.core, &l.timer, due)


cdef void link_orphan(node* n) noexcept nogil:
    cdef link* l = <link*>n
    cdef stream* s
    link_die(l, END_LOCAL, 0)
    while True:
        s = mux_accepted(&l.mux)
        if s == NULL:
            break
        bury(l.mux.core, &s.node)
    l.mux.refs -= 1
    if l.mux.refs == 0:
        bury(l.mux.core, n)


cdef void link_free(node* n) noexcept nogil:
    cdef link* l = <link*>n
    out_free(l.mux.core, &l.mux.out)
    free(l)


cdef node_ops link_ops
link_ops.flush = link_flush
link_ops.orphan = link_orphan
link_ops.free = link_free
