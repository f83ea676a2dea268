"""Moving a link's bytes: socket, records, yamux; and how a link ends. No Python object is touched here."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

from flare._core.aead cimport aead_free, aead_park
from flare._core.core cimport (
    NO_PLACE,
    bury,
    node_ops,
    notify,
    set_dirty,
    slot_give,
    slot_take,
    timer_clear,
    timer_set,
)
from flare._core.record_error cimport RECORD_CLOSED, RECORD_MEMORY, RECORD_OK
from flare._core.records cimport (
    RECORD_PLAIN,
    out_answer,
    out_farewell,
    out_finish,
    out_forget,
    out_free,
    out_sent,
    out_trim,
    outbox,
    record_header,
    record_open,
    record_size,
)
from flare._core.yamux cimport (
    GOAWAY_PROTOCOL,
    MUX_CLOSED,
    MUX_OUTPUT,
    OUT_OF_MEMORY,
    mux_accepted,
    mux_end,
    mux_goaway,
    mux_init,
    mux_input,
    mux_park,
    mux_ping,
    mux_serve,
    mux_waiting,
    stream,
)

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t n, int flags)
    ssize_t recv(int fd, void* data, size_t n, int flags)
    int shutdown(int fd, int how)
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT
    enum: MSG_TRUNC
    enum: SHUT_WR

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec* parts, int n)


cdef int core_scratch(core* c) noexcept nogil:
    if c.scratch == NULL:
        c.scratch = <uint8_t*>malloc(SCRATCH_FRONT + SCRATCH)
    return 0 if c.scratch != NULL else -1


cdef link* link_new(core* c, int fd, bint initiator, int kind) noexcept nogil:
    cdef link* ln
    if core_scratch(c) < 0:
        return NULL
    ln = <link*>calloc(1, sizeof(link))
    if ln == NULL:
        return NULL
    mux_init(&ln.mux, c, initiator)
    ln.mux.node.ops = &link_ops
    ln.mux.flush_now = link_send_mux
    ln.mux.out.kind = <uint8_t>kind
    ln.kind = <uint8_t>kind
    ln.fd = fd
    ln.in_memory = fd < 0
    ln.place = NO_PLACE
    ln.timer.subject = &ln.mux.node
    ln.timer.fire = link_timer
    return ln


cdef void list_link(link* ln) noexcept nogil:
    cdef core* c = ln.mux.core
    cdef link* first = <link*>c.links
    ln.next = first
    if first != NULL:
        first.previous = ln
    c.links = &ln.mux.node
    c.link_count += 1
    if ln.fd >= 0:
        ln.place = slot_take(c, &ln.mux.node)


cdef void unlist_link(link* ln) noexcept nogil:
    cdef core* c = ln.mux.core
    if ln.next != NULL:
        ln.next.previous = ln.previous
    if ln.previous != NULL:
        ln.previous.next = ln.next
        c.link_count -= 1
    elif c.links == &ln.mux.node:
        c.links = <node*>ln.next
        c.link_count -= 1
    ln.next = ln.previous = NULL
    if ln.place != NO_PLACE:
        slot_give(c, ln.place)
        ln.place = NO_PLACE
    ready_remove(ln)


cdef void link_start(link* ln) noexcept nogil:
    cdef core* c = ln.mux.core
    list_link(ln)
    ln.received_at = c.now
    if ln.fd >= 0 and ln.place == NO_PLACE:
        link_die(ln, END_MEMORY, 0)
        return
    if ln.mux.limits.keepalive and timer_set(c, &ln.timer, c.now + ln.mux.limits.keepalive) < 0:
        link_die(ln, END_MEMORY, 0)
        return
    watch(ln)


cdef void watch(link* ln) noexcept nogil:
    """Ask the poller for what this link waits for, and decide whether it may read on."""
    cdef mux* m = &ln.mux
    cdef int what = WATCH_READ
    cdef int error
    cdef bint was_paused = m.paused
    m.paused = (
        m.buffered >= m.limits.max_receive
        or m.out.end - m.out.start >= m.limits.high_water + CONTROL_SLACK
    )
    if ln.in_memory and was_paused and not m.paused:
        notify(m.core, &m.node, MUX_OUTPUT)  # whoever feeds it may go on
    if m.paused:
        what = WATCH_NONE
    if m.blocked:
        what |= WATCH_WRITE
    if ln.fd < 0 or what == ln.watching:
        return
    error = m.core.watch(m.core, ln.fd, ln.place, ln.watching, what)
    if error:
        link_die(ln, END_ERRNO, error)
        return
    ln.watching = <uint8_t>what


# Those to be read, in turn: [0] those that had little to say, [1] the others

cdef void ready_push(link* ln, int which) noexcept nogil:
    cdef core* c = ln.mux.core
    if ln.ready:
        return
    ln.ready = <uint8_t>(1 + which)
    ln.ready_next = NULL
    ln.ready_previous = <link*>c.readable_last[which]
    if ln.ready_previous == NULL:
        c.readable[which] = &ln.mux.node
    else:
        ln.ready_previous.ready_next = &ln.mux.node
    c.readable_last[which] = &ln.mux.node
    c.readable_count[which] += 1


cdef void ready_remove(link* ln) noexcept nogil:
    cdef core* c = ln.mux.core
    cdef int which = ln.ready - 1
    if not ln.ready:
        return
    ln.ready = 0
    if ln.ready_next != NULL:
        (<link*>ln.ready_next).ready_previous = ln.ready_previous
    else:
        c.readable_last[which] = <node*>ln.ready_previous
    if ln.ready_previous != NULL:
        ln.ready_previous.ready_next = ln.ready_next
    else:
        c.readable[which] = ln.ready_next
    c.readable_count[which] -= 1


cdef link* ready_pop(core* c, int which) noexcept nogil:
    cdef link* ln = <link*>c.readable[which]
    if ln != NULL:
        ready_remove(ln)
    return ln


# From one engine to another

cdef void link_move(link* ln, core* to) noexcept nogil:
    cdef core* c = ln.mux.core
    cdef int64_t deadline = ln.timer.deadline if ln.timer.slot else 0
    if ln.state == LINK_DEAD:
        ln.mux.core = to
        return
    if ln.fd >= 0 and ln.watching:
        c.watch(c, ln.fd, ln.place, ln.watching, WATCH_NONE)
    ln.watching = WATCH_NONE
    unlist_link(ln)
    timer_clear(c, &ln.timer)
    ln.mux.core = to
    ln.mux.reserved = 0
    list_link(ln)
    if deadline:
        timer_set(to, &ln.timer, deadline)


cdef void link_watch(link* ln) noexcept nogil:
    if ln.state != LINK_DEAD:
        watch(ln)


# In

cdef void link_read(link* ln, size_t quantum) noexcept nogil:
    """One receive, and all that follows from it."""
    cdef core* c = ln.mux.core
    cdef iovec parts[2]
    cdef int count = 0
    cdef ssize_t n
    cdef uint8_t* data = c.scratch + SCRATCH_FRONT
    cdef size_t to_partial = 0
    if ln.partial_size:
        # the record that has begun is completed where it lies
        to_partial = ln.partial_size - ln.partial_n
        parts[0].iov_base = ln.partial + ln.partial_n
        parts[0].iov_len = to_partial
        count = 1
    parts[count].iov_base = data
    parts[count].iov_len = quantum
    while True:
        n = readv(ln.fd, parts, count + 1)
        if n >= 0 or errno != EINTR:
            break
    if n < 0:
        if errno != EAGAIN:
            link_die(ln, END_ERRNO, errno)
        return
    if n == 0:
        peer_closed(ln)
        return
    ln.last_read = <size_t>n
    c.counters.receives += 1
    c.counters.bytes_in += n
    ln.bytes_in += n
    if to_partial:
        if <size_t>n < to_partial:
            ln.partial_n += n
            return
        n -= to_partial
        if not finish_partial(ln):
            return
    take(ln, data, n)
    if ln.mux.buffered >= ln.mux.limits.max_receive and ln.state == LINK_OPEN:
        watch(ln)


cdef void peer_closed(link* ln) noexcept nogil:
    if ln.state == LINK_CLOSING:
        link_die(ln, END_LOCAL, 0)
    elif ln.partial_size or ln.head_n or ln.mux.left or ln.mux.header_n:
        link_die(ln, END_TRUNCATED, 0)
    else:
        link_die(ln, END_EOF, 0)


cdef void link_feed(link* ln, const uint8_t* data, size_t n) noexcept nogil:
    """Bytes that came another way. They are copied, since records are opened in place."""
    cdef core* c = ln.mux.core
    cdef uint8_t* scratch = c.scratch + SCRATCH_FRONT
    cdef size_t part
    ln.bytes_in += n
    while n and ln.state != LINK_DEAD:
        if ln.partial_size:
            part = min(n, ln.partial_size - ln.partial_n)
            memcpy(ln.partial + ln.partial_n, data, part)
            ln.partial_n += part
            if ln.partial_n == ln.partial_size and not finish_partial(ln):
                return
        else:
            part = min(n, <size_t>SCRATCH)
            memcpy(scratch, data, part)
            take(ln, scratch, part)
        data += part
        n -= part
    if ln.state == LINK_OPEN:
        watch(ln)


cdef bint finish_partial(link* ln) noexcept nogil:
    cdef uint8_t* record = ln.partial
    cdef size_t size = ln.partial_size
    cdef bint alive
    ln.partial = NULL
    ln.partial_n = ln.partial_size = 0
    alive = one_record(ln, record, size)
    free(record)
    return alive


cdef void drop_partial(link* ln) noexcept nogil:
    free(ln.partial)
    ln.partial = NULL
    ln.partial_n = ln.partial_size = ln.head_n = 0


cdef bint one_record(link* ln, uint8_t* record, size_t size) noexcept nogil:
    cdef outbox* o = &ln.mux.out
    cdef size_t n = 0
    cdef int error = record_open(o, &ln.key, record, size, &n)
    if error != RECORD_OK:
        bad_record(ln, error)
        return False
    if out_answer(ln.mux.core, o):
        set_dirty(ln.mux.core, &ln.mux.node)
    return parse(ln, record + record_header(ln.kind), n)


cdef void bad_record(link* ln, int error) noexcept nogil:
    if error == RECORD_CLOSED:
        peer_closed(ln)
        return
    if ln.mux.out.tls != NULL:
        ln.alert = ln.mux.out.tls.alert
        out_farewell(ln.mux.core, &ln.mux.out, error)
        link_send(ln)
    link_die(ln, END_RECORD, error)


cdef bint parse(link* ln, const uint8_t* data, size_t n) noexcept nogil:
    ln.received_at = ln.mux.core.now  # a peer that never ends a record is not alive, whatever it sends
    if mux_input(&ln.mux, data, n) == 0:
        return True
    if ln.state == LINK_DEAD:
        return False
    if ln.mux.violation == OUT_OF_MEMORY:
        link_die(ln, END_MEMORY, 0)
        return False
    ln.mux.goaway_sent = 0  # the last word
    mux_goaway(&ln.mux, GOAWAY_PROTOCOL)
    link_send(ln)
    link_die(ln, END_VIOLATION, 0)
    return False


cdef void take(link* ln, uint8_t* data, size_t n) noexcept nogil:
    """Whole records of what was received; keep what is left of the last."""
    cdef int size
    cdef size_t header = record_header(ln.kind)
    if ln.state != LINK_OPEN:
        return
    if ln.kind == RECORD_PLAIN:
        parse(ln, data, n)
        return
    if ln.head_n:
        data -= ln.head_n
        memcpy(data, ln.head, ln.head_n)
        n += ln.head_n
        ln.head_n = 0
    while n >= header:
        size = record_size(ln.kind, data)
        if size < 0:
            bad_record(ln, size)
            return
        if n < <size_t>size:
            ln.partial = <uint8_t*>malloc(size)
            if ln.partial == NULL:
                link_die(ln, END_MEMORY, 0)
                return
            memcpy(ln.partial, data, n)
            ln.partial_n = n
            ln.partial_size = size
            return
        if not one_record(ln, data, size):
            return
        data += size
        n -= size
    memcpy(ln.head, data, n)
    ln.head_n = <uint8_t>n


# Out

cdef void link_send(link* ln) noexcept nogil:
    """Seal and send what there is, as far as the socket takes it. May end the link."""
    cdef mux* m = &ln.mux
    cdef ssize_t n
    if ln.state == LINK_DEAD:
        return
    out_finish(&m.out)
    if m.out.error:
        link_die(ln, END_MEMORY if m.out.error == RECORD_MEMORY else END_RECORD, m.out.error)
        return
    if ln.shut:
        out_free(m.core, &m.out)
    if m.out.end == m.out.start:
        return
    if ln.in_memory:
        m.blocked = 1
        notify(m.core, &m.node, MUX_OUTPUT)
        return
    while m.out.end > m.out.start:
        n = send(ln.fd, m.out.data + m.out.start, m.out.end - m.out.start, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                link_die(ln, END_ERRNO, errno)
                return
            m.blocked = 1
            out_trim(m.core, &m.out)
            return
        m.core.counters.sends += 1
        m.core.counters.bytes_out += n
        ln.bytes_out += n
        out_sent(m.core, &m.out, n)


cdef void link_send_mux(mux* m) noexcept nogil:
    link_send(<link*>m)


cdef void link_flush(node* n) noexcept nogil:
    cdef link* ln = <link*>n
    cdef mux* m = &ln.mux
    if not m.blocked or ln.in_memory:
        link_send(ln)
    if not m.blocked and mux_waiting(m):
        mux_serve(m)  # what they write makes the link dirty again
    if ln.state == LINK_DEAD:
        return
    if ln.state == LINK_CLOSING and m.out.end == m.out.start and not ln.shut:
        ln.shut = 1
        if ln.in_memory:
            link_die(ln, END_LOCAL, 0)
            return
        shutdown(ln.fd, SHUT_WR)
    watch(ln)


cdef void link_writable(link* ln) noexcept nogil:
    ln.mux.blocked = 0
    set_dirty(ln.mux.core, &ln.mux.node)


# The end

cdef void link_close(link* ln, uint32_t code) noexcept nogil:
    """Say go-away, send what is left, wait for the peer to close; no longer than `linger`."""
    if ln.state != LINK_OPEN:
        return
    ln.state = LINK_CLOSING
    mux_goaway(&ln.mux, code)
    mux_end(&ln.mux)
    out_farewell(ln.mux.core, &ln.mux.out, RECORD_OK)
    drop_partial(ln)  # what the peer sent before it heard our go-away concerns nobody
    set_dirty(ln.mux.core, &ln.mux.node)
    timer_set(ln.mux.core, &ln.timer, ln.mux.core.now + ln.linger)


cdef void link_abort(link* ln) noexcept nogil:
    link_die(ln, END_LOCAL, 0)


cdef void link_die(link* ln, int end, int error) noexcept nogil:
    cdef core* c = ln.mux.core
    if ln.state == LINK_DEAD:
        return
    ln.state = LINK_DEAD
    ln.end = <uint8_t>end
    ln.error = error
    timer_clear(c, &ln.timer)
    if ln.fd >= 0:
        if ln.watching:
            c.watch(c, ln.fd, ln.place, ln.watching, WATCH_NONE)
        if end == END_VIOLATION or end == END_RECORD:
            # unread input would make the kernel reset the connection, and the go-away be lost with it
            shutdown(ln.fd, SHUT_WR)
            recv(ln.fd, NULL, SCRATCH, MSG_TRUNC | MSG_DONTWAIT)
        close(ln.fd)
        ln.fd = -1
    unlist_link(ln)
    mux_end(&ln.mux)
    if ln.in_memory and not ln.mux.out.error:
        out_finish(&ln.mux.out)  # the last words may still be taken
    else:
        out_free(c, &ln.mux.out)
    drop_partial(ln)
    aead_free(&ln.key)
    out_forget(&ln.mux.out)
    notify(c, &ln.mux.node, MUX_CLOSED)


cdef void park(link* ln) noexcept nogil:
    """An idle link keeps keys, and no ciphers or tables."""
    out_finish(&ln.mux.out)
    aead_park(&ln.key)
    aead_park(&ln.mux.out.key)
    mux_park(&ln.mux)


cdef void link_timer(node* n) noexcept nogil:
    cdef link* ln = <link*>n
    cdef mux* m = &ln.mux
    cdef int64_t now = m.core.now
    cdef int64_t due
    if ln.state == LINK_CLOSING:
        link_die(ln, END_LOCAL, 0)
        return
    if m.own_ping.sent and ln.received_at < m.own_ping.sent and not m.paused:
        due = m.own_ping.sent + m.limits.keepalive_timeout
        if now >= due:
            # what nobody read, since no pass was made or it is not its turn, may have come in time
            if not ln.ready and now - ln.timer.deadline < LATE:
                link_die(ln, END_KEEPALIVE, 0)
                return
            due = now + m.limits.keepalive_timeout
    elif now - ln.received_at >= m.limits.keepalive:
        m.own_ping.sent = 0  # an old one that was never answered, though the peer spoke since
        mux_ping(m, &m.own_ping)
        due = now + min(m.limits.keepalive_timeout, <int64_t>PARK_AFTER)
    else:
        if now - ln.received_at >= PARK_AFTER:
            park(ln)
        due = ln.received_at + m.limits.keepalive
    timer_set(m.core, &ln.timer, due)


cdef void link_orphan(node* n) noexcept nogil:
    cdef link* ln = <link*>n
    cdef stream* s
    ln.mux.wrappers -= 1
    link_die(ln, END_LOCAL, 0)
    while True:
        s = mux_accepted(&ln.mux)
        if s == NULL:
            break
        bury(ln.mux.core, &s.node)
    ln.mux.refs -= 1
    if ln.mux.refs == 0:
        bury(ln.mux.core, n)


cdef void link_free(node* n) noexcept nogil:
    cdef link* ln = <link*>n
    out_free(ln.mux.core, &ln.mux.out)
    free(ln)


cdef core* link_home(node* n) noexcept nogil:
    return (<link*>n).mux.core


cdef node_ops link_ops
link_ops.home = link_home
link_ops.flush = link_flush
link_ops.orphan = link_orphan
link_ops.free = link_free
