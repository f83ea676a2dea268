"""yamux, the stream multiplexer (specs/yamux/README.md): frames, windows, streams. See yamux.pxd."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from flare._core.core cimport bury, core, node, node_ops, notify, set_dirty
from flare._core.queue cimport queue_clear, queue_copy, queue_peek, queue_push, queue_skip
from flare._core.records cimport NOWHERE, out_append, out_appends, out_finish, out_room, out_take, outbox

cdef enum:
    BULK_FRAME = 3 * 1024  # a frame as long is not worth joining with the one before
    WORTHWHILE = 256  # no smaller piece of data is squeezed into the end of a record


cdef extern from *:
    """
    static int64_t flare_all[2];  /* of all sessions, in any thread: bytes that wait, growth of windows */
    static int64_t flare_count(int what, int64_t n) {
        return __atomic_add_fetch(&flare_all[what], n, __ATOMIC_RELAXED);
    }
    """
    int64_t flare_count(int what, int64_t n) noexcept nogil

cdef enum:
    WAITING = 0
    GROWTH = 1


# Memory of all sessions together. Who asks for more gets up to a share of what is left: so one cannot have
# it all, many cannot leave nothing, and nobody has to know how many there are.

cdef inline bint may_keep(const mux* m, size_t n) noexcept nogil:
    """Whether `n` more bytes may wait: always up to a first window, then as many as everybody has left."""
    cdef int64_t left = <int64_t>m.limits.all_receive - flare_count(WAITING, 0)
    return (
        m.buffered + n <= INITIAL_WINDOW or not m.limits.all_receive or <int64_t>(m.buffered + n) <= left
    )


cdef inline uint64_t may_grow(const mux* m) noexcept nogil:
    """By how much more the windows of a session may grow: to a quarter of what everybody has left."""
    cdef int64_t left = <int64_t>m.limits.all_growth - flare_count(GROWTH, 0)
    if not m.limits.all_growth:
        return m.limits.max_receive
    return <uint64_t>max(left // 4 - <int64_t>m.grown, <int64_t>0)


cdef inline void waits_less(mux* m, size_t n) noexcept nogil:
    m.buffered -= n
    if n:
        flare_count(WAITING, -<int64_t>n)


def memory():
    """Of all sessions: bytes that wait to be read, and what windows grew by."""
    return flare_count(WAITING, 0), flare_count(GROWTH, 0)


# Numbers on the wire

cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline void put32(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v


cdef inline void put_header(uint8_t* p, int type, int flags, uint32_t id, uint32_t length) noexcept nogil:
    p[0] = 0
    p[1] = <uint8_t>type
    p[2] = 0
    p[3] = <uint8_t>flags
    put32(p + 4, id)
    put32(p + 8, length)


# The table of streams

cdef inline stream** bucket(mux* m, uint32_t id) noexcept nogil:
    return &m.table[<uint32_t>((id * m.seed) >> 32) & (m.table_size - 1)]


cdef stream* find(mux* m, uint32_t id) noexcept nogil:
    cdef stream* s
    if m.table_size == 0:
        return NULL
    s = bucket(m, id)[0]
    while s != NULL and s.id != id:
        s = s.table_next
    return s


cdef int table_grow(mux* m) noexcept nogil:
    cdef stream** old = m.table
    cdef uint32_t old_size = m.table_size
    cdef stream** place
    cdef stream* s
    cdef stream* following
    cdef uint32_t i
    cdef stream** fresh = <stream**>calloc(old_size * 2 if old_size else 8, sizeof(stream*))
    if fresh == NULL:
        return -1
    m.table = fresh
    m.table_size = old_size * 2 if old_size else 8
    for i in range(old_size):
        s = old[i]
        while s != NULL:
            following = s.table_next
            place = bucket(m, s.id)
            s.table_next = place[0]
            place[0] = s
            s = following
    free(old)
    return 0


cdef stream* stream_new(mux* m, uint32_t id, bint inbound) noexcept nogil:
    cdef stream** place
    cdef stream* s
    if m.streams >= m.table_size and table_grow(m) < 0:
        return NULL
    s = <stream*>calloc(1, sizeof(stream))
    if s == NULL:
        return NULL
    s.node.ops = &stream_ops
    s.mux = m
    s.id = id
    s.inbound = inbound
    s.window = s.credit = INITIAL_WINDOW
    s.send_window = INITIAL_WINDOW
    s.epoch = m.core.now
    s.in_table = 1
    s.unacked = 1
    place = bucket(m, id)
    s.table_next = place[0]
    place[0] = s
    m.streams += 1
    m.inbound += inbound
    m.unacked[inbound] += 1
    m.window_total += INITIAL_WINDOW
    m.refs += 1
    return s


cdef void unlink(stream* s) noexcept nogil:
    """Take a stream out of the table: the peer and we have nothing more to say about it."""
    cdef mux* m = s.mux
    cdef stream** place
    if not s.in_table:
        return
    place = bucket(m, s.id)
    while place[0] != s:
        place = &place[0].table_next
    place[0] = s.table_next
    s.in_table = 0
    m.streams -= 1
    m.inbound -= s.inbound
    m.window_total -= s.window
    m.grown -= s.window - INITIAL_WINDOW
    if s.window > INITIAL_WINDOW:
        flare_count(GROWTH, <int64_t>INITIAL_WINDOW - s.window)
    if not s.read_closed:
        m.strays += s.credit - (m.left if m.cur == s else 0)
    acked(s)
    wait_remove(s)
    if m.cur == s:
        m.cur = NULL
    if not s.node.held and not s.awaits_accept:
        bury(m.core, &s.node)


cdef inline void acked(stream* s) noexcept nogil:
    if s.unacked:
        s.unacked = 0
        s.mux.unacked[s.inbound] -= 1


cdef void stream_free(node* n) noexcept nogil:
    cdef stream* s = <stream*>n
    cdef mux* m = s.mux
    waits_less(m, queue_clear(&s.rx))
    free(s)
    if m.paused and not m.dead:
        set_dirty(m.core, &m.node)
    mux_release(m)


cdef void stream_orphan(node* n) noexcept nogil:
    cdef stream* s = <stream*>n
    s.mux.wrappers -= 1
    if s.in_table and not s.discards:
        stream_reset(s)
    if not s.in_table:
        bury(s.mux.core, n)


cdef void stream_flush(node* n) noexcept nogil:
    """A stream that was opened or first read, and has sent no frame since that could carry its flag."""
    cdef stream* s = <stream*>n
    if s.in_table and (s.syn_due or s.ack_due):
        put_frame(s.mux, TYPE_WINDOW, due_flags(s), s.id, 0)


cdef core* stream_home(node* n) noexcept nogil:
    return (<stream*>n).mux.core


cdef node_ops stream_ops
stream_ops.home = stream_home
stream_ops.flush = stream_flush
stream_ops.orphan = stream_orphan
stream_ops.free = stream_free


cdef void mux_release(mux* m) noexcept nogil:
    m.refs -= 1
    if m.refs == 0:
        bury(m.core, &m.node)


include "yamux_out.pxi"


# Turns

cdef bint mux_waiting(const mux* m) noexcept nogil:
    return m.wait_head[0] != NULL or m.wait_head[1] != NULL


cdef void wait_push(stream* s) noexcept nogil:
    cdef mux* m = s.mux
    cdef int q = 0 if s.control else 1
    if s.in_wait:
        return
    s.in_wait = 1 + q
    s.allowance = 0
    s.wait_next = NULL
    if m.wait_tail[q] == NULL:
        m.wait_head[q] = s
    else:
        m.wait_tail[q].wait_next = s
    m.wait_tail[q] = s


cdef void wait_remove(stream* s) noexcept nogil:
    cdef mux* m = s.mux
    cdef int q = s.in_wait - 1
    cdef stream* before = NULL
    cdef stream* at
    if not s.in_wait:
        return
    s.in_wait = 0
    at = m.wait_head[q]
    while at != s:
        before = at
        at = at.wait_next
    if before == NULL:
        m.wait_head[q] = s.wait_next
    else:
        before.wait_next = s.wait_next
    if m.wait_tail[q] == s:
        m.wait_tail[q] = before


cdef void mux_serve(mux* m) noexcept nogil:
    cdef stream* s
    if m.reserved and not promised(m):
        m.reserved = 0
    while not m.dead and not m.blocked:
        s = m.wait_head[0] if m.wait_head[0] != NULL else m.wait_head[1]
        if s == NULL or room_of(m, s.control) == 0:
            return
        if room_of(m, s.control) <= m.reserved:
            m.core.lazy += 1
            set_dirty(m.core, &m.node)  # in the next pass, if those before it do not write
            return
        wait_remove(s)
        s.allowance = TURN
        if s.hooks == NULL:
            m.reserved += TURN
            m.reserved_pass = m.core.counters.passes
            m.reserved_until = m.core.now + PROMISED
        resume(s)


cdef inline bint promised(const mux* m) noexcept nogil:
    """Whether Python may still write into the room that was kept for it."""
    if m.core.threaded:
        return m.core.now < m.reserved_until
    return m.reserved_pass == m.core.counters.passes


cdef void resume(stream* s) noexcept nogil:
    s.wants_write = 0
    if s.hooks != NULL:
        s.hooks.writable(s)
    else:
        notify(s.mux.core, &s.node, WRITABLE)


cdef inline bint contested(const mux* m, bint control) noexcept nogil:
    """Whether somebody else has, or waits for, the next turn."""
    if m.wait_head[0] != NULL:
        return True
    return not control and (
        m.wait_head[1] != NULL or (m.reserved > 0 and promised(m))
    )


cdef size_t stream_write(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    cdef mux* m = s.mux
    cdef size_t total = 0
    cdef size_t take
    while n and s.in_table and not s.write_closed and not m.dead:
        if s.send_window == 0:
            s.wants_write = 1
            break
        if s.allowance == 0 and contested(m, s.control):
            s.wants_write = 1
            wait_push(s)
            set_dirty(m.core, &m.node)  # whoever has the turn may not write
            break
        take = room_of(m, s.control)
        if take == 0 and not m.blocked:
            m.flush_now(m)
            continue
        if take == 0:
            s.wants_write = 1
            wait_push(s)
            break
        take = min(min(take, n), <size_t>s.send_window)
        if s.allowance:
            take = min(take, <size_t>s.allowance)
            s.allowance -= <uint32_t>take
            if s.hooks == NULL:
                m.reserved -= min(take, m.reserved)
        put_data(m, s, data, take)
        if m.out.error:
            break
        s.send_window -= take
        data += take
        n -= take
        total += take
    return total


# Streams, from above

cdef stream* mux_open(mux* m) noexcept nogil:
    cdef stream* s = stream_new(m, <uint32_t>m.next_id, False)
    if s != NULL:
        m.next_id += 2
        s.syn_due = 1
        set_dirty(m.core, &s.node)
    return s


cdef stream* mux_accepted(mux* m) noexcept nogil:
    cdef stream* s
    while m.accept_head != NULL:
        s = m.accept_head
        m.accept_head = s.accept_next
        if m.accept_head == NULL:
            m.accept_tail = NULL
        s.awaits_accept = 0
        if s.reset:
            bury(m.core, &s.node)  # nobody saw it, and nobody needs to
            continue
        s.ack_due = s.in_table
        return s
    return NULL


cdef size_t stream_peek(stream* s, const uint8_t** data) noexcept nogil:
    return queue_peek(&s.rx, data)


cdef size_t stream_copy(stream* s, uint8_t* out, size_t n) noexcept nogil:
    return queue_copy(&s.rx, out, n)


cdef void stream_skip(stream* s, size_t n) noexcept nogil:
    queue_skip(&s.rx, n)
    waits_less(s.mux, n)
    if s.ack_due:
        set_dirty(s.mux.core, &s.node)
    if s.mux.paused:
        set_dirty(s.mux.core, &s.mux.node)
    stream_credit(s)


cdef int stream_store(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    if not may_keep(s.mux, n) or queue_push(&s.rx, data, n) < 0:
        return -1
    s.mux.buffered += n
    flare_count(WAITING, n)
    return 0


cdef void stream_credit(stream* s) noexcept nogil:
    """Give the peer back what was read, once it is half the window; twice the window if it keeps it full."""
    cdef mux* m = s.mux
    cdef uint32_t owed = s.window - s.credit - <uint32_t>s.rx.size
    cdef uint64_t more
    if owed < s.window >> 1 or s.read_closed or s.discards or not s.in_table:
        return
    if m.rtt_at == 0 or m.core.now - m.rtt_at > <int64_t>RTT_FRESH:
        if m.own_ping.sent and m.core.now - m.own_ping.sent > <int64_t>RTT_FRESH:
            m.own_ping.sent = 0  # never answered: the peer may drop some
        mux_ping(m, &m.own_ping)
    elif (
        m.core.now - s.epoch < 4 * m.rtt
        and s.window < m.limits.max_window
        and m.window_total < m.limits.max_receive
    ):
        more = min(<uint64_t>s.window, <uint64_t>(m.limits.max_window - s.window))
        more = min(more, m.limits.max_receive - m.window_total)
        more = min(more, may_grow(m))
        m.grown += more
        flare_count(GROWTH, more)
        s.window += <uint32_t>more
        m.window_total += more
        owed += <uint32_t>more
    s.epoch = m.core.now
    s.credit += owed
    put_frame(m, TYPE_WINDOW, due_flags(s), s.id, owed)


cdef void stream_close_write(stream* s) noexcept nogil:
    if s.write_closed or not s.in_table:
        return
    s.write_closed = 1
    wait_remove(s)
    put_frame(s.mux, TYPE_DATA, FLAG_FIN | due_flags(s), s.id, 0)
    if s.read_closed:
        unlink(s)


cdef void stream_reset(stream* s) noexcept nogil:
    if not s.in_table:
        return
    if not s.syn_due:  # else the peer never heard of it
        put_frame(s.mux, TYPE_WINDOW, FLAG_RST, s.id, 0)
    ended(s)


cdef void ended(stream* s) noexcept nogil:
    """Reset, here or there."""
    s.reset = 1
    unlink(s)
    if s.hooks != NULL:
        s.hooks.ended(s)
    else:
        notify(s.mux.core, &s.node, CLOSED)


cdef void stream_discard(stream* s) noexcept nogil:
    s.discards = 1
    waits_less(s.mux, queue_clear(&s.rx))
    if s.mux.paused:
        set_dirty(s.mux.core, &s.mux.node)


# The session, from above

cdef void mux_init(mux* m, core* c, bint initiator) noexcept nogil:
    m.core = c
    m.initiator = initiator
    m.next_id = 1 if initiator else 2
    m.seed = (<uint64_t>m ^ <uint64_t>c.now) * <uint64_t>0x9E3779B97F4A7C15 | 1
    m.out.record = m.out.frame = NOWHERE
    m.refs = 1


cdef void mux_goaway(mux* m, uint32_t code) noexcept nogil:
    if not m.goaway_sent:
        m.goaway_sent = 1
        put_frame(m, TYPE_GOAWAY, 0, 0, code)


cdef int mux_ping(mux* m, ping_slot* slot) noexcept nogil:
    if slot.sent or m.dead:
        return -1
    m.ping_id += 1
    slot.id = m.ping_id
    slot.sent = m.core.now
    slot.rtt = 0
    put_frame(m, TYPE_PING, FLAG_SYN, 0, slot.id)
    return 0


cdef void mux_end(mux* m) noexcept nogil:
    cdef uint32_t i
    cdef stream* s
    m.dead = 1
    for i in range(m.table_size):
        while m.table[i] != NULL:
            s = m.table[i]
            s.lost = 1
            unlink(s)
            if s.hooks != NULL:
                s.hooks.ended(s)
            else:
                notify(m.core, &s.node, CLOSED)
    free(m.table)
    m.table = NULL
    m.table_size = 0


cdef void mux_park(mux* m) noexcept nogil:
    if m.streams == 0 and m.table != NULL:
        free(m.table)
        m.table = NULL
        m.table_size = 0


include "yamux_in.pxi"
