# Frames in: what a peer's bytes do to a session. A part of yamux.pyx, which includes it.

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
        if s == NULL:
            m.strays += INITIAL_WINDOW
    elif s == NULL and ((not theirs and id >= m.next_id) or (theirs and payload > 0 and id > m.peer_id)):
        # rust-yamux resets and closes streams that it never got to open: only data is too much
        return violate(m, BAD_UNKNOWN)
    m.cur = s
    m.cur_fin = 0
    m.left = payload
    if s == NULL:
        # gone, here or on its way: what was in flight is dropped, but no more than the windows left room for
        if payload > m.strays:
            return violate(m, BAD_WINDOW)
        m.strays -= payload
        return 0
    if flags & FLAG_ACK and not s.inbound:
        acked(s)
    if flags & FLAG_RST:
        if payload > s.credit:
            return violate(m, BAD_WINDOW)
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
