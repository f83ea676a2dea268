"""yamux, the stream multiplexer (specs/yamux/README.md): frames, windows, the table of streams. See yamux.pxd."""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from flare._core.core cimport bury, node, node_ops, notify, set_dirty
from flare._core.records cimport NOWHERE, out_finish, out_room, out_take

cdef enum:
    CHUNK_MIN = 1024
    CHUNK_MAX = 64 * 1024
    WORTHWHILE = 256  # no smaller piece of data is squeezed into the end of a record


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


# Received bytes of a stream

cdef int queue_push(queue* q, const uint8_t* data, size_t n) noexcept nogil:
    cdef chunk* c
    cdef size_t take
    cdef size_t cap
    while n:
        c = q.tail
        if c == NULL or c.end == c.cap:
            # doubles with the queue, so that trickles stay small and floods take few allocations
            cap = max(max(q.size, min(n, <size_t>CHUNK_MAX)), <size_t>CHUNK_MIN)
            cap = min(cap, <size_t>CHUNK_MAX)
            c = <chunk*>malloc(sizeof(chunk) + cap)
            if c == NULL:
                return -1
            c.next = NULL
            c.start = c.end = 0
            c.cap = <uint32_t>cap
            if q.tail == NULL:
                q.head = c
            else:
                q.tail.next = c
            q.tail = c
        take = min(n, <size_t>(c.cap - c.end))
        memcpy(<uint8_t*>(c + 1) + c.end, data, take)
        c.end += <uint32_t>take
        q.size += take
        data += take
        n -= take
    return 0


cdef void queue_skip(queue* q, size_t n) noexcept nogil:
    cdef chunk* c
    cdef size_t take
    while n:
        c = q.head
        take = min(n, <size_t>(c.end - c.start))
        c.start += <uint32_t>take
        q.size -= take
        n -= take
        if c.start == c.end:
            q.head = c.next
            if q.head == NULL:
                q.tail = NULL
            free(c)


cdef size_t queue_clear(queue* q) noexcept nogil:
    cdef size_t n = q.size
    queue_skip(q, n)
    return n


# The table of streams

cdef inline stream** bucket(mux* m, uint32_t id) noexcept nogil:
    # ids of one side are 2 apart
    return &m.table[((id >> 1) * 2 + (id & 1)) & (m.table_size - 1)]


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
    m.buffered -= queue_clear(&s.rx)
    free(s)
    mux_release(m)


cdef void stream_orphan(node* n) noexcept nogil:
    cdef stream* s = <stream*>n
    if s.in_table and not s.discards:
        stream_reset(s)
    if not s.in_table:
        bury(s.mux.core, n)


cdef void stream_flush(node* n) noexcept nogil:
    """A stream that was opened or first read, and has sent no frame since that could carry its flag."""
    cdef stream* s = <stream*>n
    if s.in_table and (s.syn_due or s.ack_due):
        put_frame(s.mux, TYPE_WINDOW, due_flags(s), s.id, 0)


cdef node_ops stream_ops
stream_ops.flush = stream_flush
stream_ops.orphan = stream_orphan
stream_ops.free = stream_free


cdef void mux_release(mux* m) noexcept nogil:
    m.refs -= 1
    if m.refs == 0:
        bury(m.core, &m.node)


# Frames out

cdef void put_frame(mux* m, int type, int flags, uint32_t id, uint32_t length) noexcept nogil:
    cdef uint8_t* p
    if m.dead:
        return
    p = out_take(m.core, &m.out, HEADER)
    if p != NULL:
        put_header(p, type, flags, id, length)
    set_dirty(m.core, &m.node)


cdef inline int due_flags(stream* s) noexcept nogil:
    cdef int flags = 0
    if s.syn_due:
        flags = FLAG_SYN
        s.syn_due = 0
    if s.ack_due:
        flags = FLAG_ACK
        s.ack_due = 0
        acked(s)
    return flags


cdef void put_data(mux* m, stream* s, const uint8_t* data, size_t n) noexcept nogil:
    """DATA frames that never cross a record; the record's last one is made longer where it is this stream's."""
    cdef outbox* o = &m.out
    cdef uint8_t* p
    cdef size_t frame
    cdef size_t behind
    cdef size_t take
    cdef size_t room
    while n:
        room = out_room(o)
        if o.frame != NOWHERE and o.frame_stream == s.id and room > 0:
            take = min(n, room)
            behind = o.end - o.frame
            p = out_take(m.core, o, take)
            if p == NULL:
                break
            frame = <size_t>(p - o.data) - behind  # the buffer may have moved
            put32(o.data + frame + 8, get32(o.data + frame + 8) + <uint32_t>take)
        else:
            if o.record != NOWHERE and room < HEADER + min(n, <size_t>WORTHWHILE):
                out_finish(o)
                room = out_room(o)
            take = min(n, room - HEADER)
            p = out_take(m.core, o, HEADER + take)
            if p == NULL:
                break
            put_header(p, TYPE_DATA, due_flags(s), s.id, <uint32_t>take)
            frame = <size_t>(p - o.data)
            p += HEADER
        memcpy(p, data, take)
        o.frame = frame
        o.frame_stream = s.id
        data += take
        n -= take
    set_dirty(m.core, &m.node)


cdef inline size_t room_of(const mux* m, bint control) noexcept nogil:
    """Bulk may fill a quarter of the output buffer, so that it stays short for whoever comes next."""
    cdef size_t unsent = m.out.end - m.out.start
    cdef size_t limit = m.limits.high_water if control else m.limits.high_water >> 2
    return limit - unsent if unsent < limit else 0


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
    while not m.dead and not m.blocked:
        s = m.wait_head[0] if m.wait_head[0] != NULL else m.wait_head[1]
        if s == NULL or room_of(m, s.control) == 0:
            return
        wait_remove(s)
        s.allowance = TURN
        resume(s)


cdef void resume(stream* s) noexcept nogil:
    s.wants_write = 0
    if s.hooks != NULL:
        s.hooks.writable(s)
    else:
        notify(s.mux.core, &s.node, WRITABLE)


cdef size_t stream_write(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    cdef mux* m = s.mux
    cdef size_t total = 0
    cdef size_t take
    while n and s.in_table and not s.write_closed:
        if s.send_window == 0:
            s.wants_write = 1
            break
        if s.allowance == 0 and (m.wait_head[0] if s.control else m.wait_head[1]) != NULL:
            s.wants_write = 1
            wait_push(s)
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
    cdef stream* s = m.accept_head
    if s != NULL:
        m.accept_head = s.accept_next
        if m.accept_head == NULL:
            m.accept_tail = NULL
        s.awaits_accept = 0
        s.ack_due = s.in_table
    return s


cdef size_t stream_peek(stream* s, const uint8_t** data) noexcept nogil:
    cdef chunk* c = s.rx.head
    if c == NULL:
        return 0
    data[0] = <const uint8_t*>(c + 1) + c.start
    return c.end - c.start


cdef size_t stream_copy(stream* s, uint8_t* out, size_t n) noexcept nogil:
    cdef chunk* c = s.rx.head
    cdef size_t total = 0
    cdef size_t take
    while c != NULL and total < n:
        take = min(n - total, <size_t>(c.end - c.start))
        memcpy(out + total, <const uint8_t*>(c + 1) + c.start, take)
        total += take
        c = c.next
    return total


cdef void stream_skip(stream* s, size_t n) noexcept nogil:
    queue_skip(&s.rx, n)
    s.mux.buffered -= n
    if s.ack_due:
        set_dirty(s.mux.core, &s.node)
    if s.mux.paused:
        set_dirty(s.mux.core, &s.mux.node)
    stream_credit(s)


cdef int stream_store(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    if queue_push(&s.rx, data, n) < 0:
        return -1
    s.mux.buffered += n
    return 0


cdef void stream_credit(stream* s) noexcept nogil:
    """Give the peer back what was read, once it is half the window; twice the window if it keeps it full."""
    cdef mux* m = s.mux
    cdef uint32_t owed = s.window - s.credit - <uint32_t>s.rx.size
    cdef uint64_t more
    if owed < s.window >> 1 or s.read_closed or s.discards or not s.in_table:
        return
    if m.rtt_at == 0 or m.core.now - m.rtt_at > <int64_t>RTT_FRESH:
        mux_ping(m, &m.own_ping)
    elif m.core.now - s.epoch < 4 * m.rtt and s.window < m.limits.max_window and m.window_total < m.limits.max_receive:
        more = min(<uint64_t>s.window, <uint64_t>(m.limits.max_window - s.window))
        more = min(more, m.limits.max_receive - m.window_total)
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
    s.mux.buffered -= queue_clear(&s.rx)
    if s.mux.paused:
        set_dirty(s.mux.core, &s.mux.node)


# The session, from above

cdef void mux_init(mux* m, core* c, bint initiator) noexcept nogil:
    m.core = c
    m.initiator = initiator
    m.next_id = 1 if initiator else 2
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


# Frames in

cdef inline int violate(mux* m, int what) noexcept nogil:
    m.violation = what
    return -1


cdef int mux_input(mux* m, const uint8_t* data, size_t n) noexcept nogil:
    cdef size_t take
    cdef const uint8_t* header
    while n:
        if m.left:
            take = min(n, <size_t>m.left)
            m.left -= <uint32_t>take
            if m.cur != NULL and on_payload(m.cur, data, take) < 0:
                return violate(m, OUT_OF_MEMORY)
            if m.left == 0 and m.cur != NULL and m.cur_fin:
                on_fin(m.cur)
        else:
            take = min(n, <size_t>(HEADER - m.header_n))
            if take == HEADER:
                header = data
            else:
                memcpy(m.header + m.header_n, data, take)
                m.header_n += <uint8_t>take
                if m.header_n < HEADER:
                    return 0
                m.header_n = 0
                header = m.header
            if on_header(m, header) < 0:
                return -1
        if m.dead:
            return -1
        data += take
        n -= take
    return 0


cdef int on_header(mux* m, const uint8_t* h) noexcept nogil:
    cdef int flags = <int>h[2] << 8 | h[3]
    cdef uint32_t id = get32(h + 4)
    cdef uint32_t length = get32(h + 8)
    if h[0] != 0:
        return violate(m, BAD_VERSION)
    if flags > 15:
        return violate(m, BAD_FLAGS)
    if h[1] == TYPE_DATA or h[1] == TYPE_WINDOW:
        if id == 0:
            return violate(m, BAD_STREAM_ZERO)
        return on_stream_frame(m, h[1], flags, id, length)
    if h[1] == TYPE_PING or h[1] == TYPE_GOAWAY:
        if id != 0:
            return violate(m, BAD_SESSION_ID)
        if h[1] == TYPE_PING:
            on_ping(m, flags, length)
        else:
            m.goaway_received = 1
            m.goaway_code = length
            notify(m.core, &m.node, MUX_GOAWAY)
        return 0
    return violate(m, BAD_TYPE)


cdef int on_stream_frame(mux* m, int type, int flags, uint32_t id, uint32_t length) noexcept nogil:
    cdef stream* s = find(m, id)
    cdef bint theirs = (id & 1) != m.initiator
    cdef uint32_t payload = length if type == TYPE_DATA else 0
    if flags & FLAG_SYN:
        if not theirs:
            return violate(m, BAD_PARITY)
        if s != NULL:
            return violate(m, BAD_SYN_REUSE)
        if payload > INITIAL_WINDOW:
            return violate(m, BAD_WINDOW)
        m.peer_id = max(m.peer_id, id)
        s = on_syn(m, id)
    elif s == NULL and (id > m.peer_id if theirs else id >= m.next_id):
        return violate(m, BAD_UNKNOWN)
    m.cur = s
    m.cur_fin = 0
    m.left = payload
    if s == NULL:
        # gone, here or on its way: what was in flight is dropped, up to what a window can hold
        return violate(m, BAD_WINDOW) if payload > m.limits.max_window else 0
    if flags & FLAG_ACK and not s.inbound:
        acked(s)
    if flags & FLAG_RST:
        ended(s)  # and m.cur is NULL: a payload is dropped
        return 0
    if type == TYPE_WINDOW:
        if s.send_window + length > <uint64_t>0xFFFFFFFF:
            return violate(m, BAD_CREDIT)
        s.send_window += length
        if length and s.wants_write and not s.in_wait:
            resume(s)
    elif payload > s.credit:
        return violate(m, BAD_WINDOW)
    elif payload and s.read_closed:
        stream_reset(s)  # data after a FIN costs the stream
        return 0
    if flags & FLAG_FIN and m.cur == s:
        if payload:
            m.cur_fin = 1
        else:
            on_fin(s)
    return 0


cdef stream* on_syn(mux* m, uint32_t id) noexcept nogil:
    cdef stream* s = NULL
    if not m.goaway_sent and m.inbound < m.limits.max_streams and m.unacked[1] < m.limits.backlog:
        s = stream_new(m, id, True)
    if s == NULL:
        m.refused += 1
        put_frame(m, TYPE_WINDOW, FLAG_RST, id, 0)
        return NULL
    s.awaits_accept = 1
    if m.accept_tail == NULL:
        m.accept_head = s
    else:
        m.accept_tail.accept_next = s
    m.accept_tail = s
    notify(m.core, &m.node, MUX_ACCEPT)
    return s


cdef int on_payload(stream* s, const uint8_t* data, size_t n) noexcept nogil:
    s.credit -= <uint32_t>n
    if s.discards:
        return 0
    if s.hooks != NULL:
        return s.hooks.data(s, data, n)
    if stream_store(s, data, n) < 0:
        return -1
    notify(s.mux.core, &s.node, READABLE)
    return 0


cdef void on_fin(stream* s) noexcept nogil:
    if s.read_closed:
        return
    s.read_closed = 1
    if s.write_closed:
        unlink(s)
    if s.hooks != NULL:
        s.hooks.fin(s)
    elif not s.discards:
        notify(s.mux.core, &s.node, READABLE)


cdef void on_ping(mux* m, int flags, uint32_t value) noexcept nogil:
    cdef int i
    cdef int64_t now = m.core.now
    if flags & FLAG_SYN:
        # as much as 64 at once and 100 a second; a flood of pings is answered in part
        m.pong_time = max(m.pong_time, now - PONG_BURST * <int64_t>PONG_INTERVAL)
        if m.pong_time + PONG_INTERVAL <= now:
            m.pong_time += PONG_INTERVAL
            put_frame(m, TYPE_PING, FLAG_ACK, 0, value)
        return
    if m.own_ping.sent and m.own_ping.id == value:
        measured(m, now - m.own_ping.sent)
        m.own_ping.sent = 0
        return
    for i in range(PINGS):
        if m.pings[i].sent and m.pings[i].id == value and m.pings[i].rtt == 0:
            m.pings[i].rtt = max(now - m.pings[i].sent, <int64_t>1)
            measured(m, m.pings[i].rtt)
            notify(m.core, &m.node, MUX_PONG)
            return


cdef void measured(mux* m, int64_t rtt) noexcept nogil:
    # the smallest of late: what is above it is our own queueing, which must not open windows
    if m.rtt_at == 0 or rtt < m.rtt:
        m.rtt = rtt
    else:
        m.rtt += (rtt - m.rtt) >> 3
    m.rtt_at = m.core.now
