# Frames out: headers and data, into records of the output buffer. A part of yamux.pyx, which includes it.

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


cdef void append_data(mux* m, stream* s, const uint8_t* data, size_t n) noexcept nogil:
    """As put_data, where a frame is large enough for a header of its own: it is encrypted where it goes."""
    cdef outbox* o = &m.out
    cdef uint8_t head[HEADER]
    cdef size_t take
    while n:
        if not o.in_pieces or out_room(o) < HEADER + min(n, <size_t>WORTHWHILE):
            out_finish(o)
        take = min(n, out_room(o) - HEADER)
        put_header(head, TYPE_DATA, due_flags(s), s.id, <uint32_t>take)
        if out_append(m.core, o, head, HEADER, data, take) < 0:
            break
        data += take
        n -= take
    set_dirty(m.core, &m.node)


cdef void put_data(mux* m, stream* s, const uint8_t* data, size_t n) noexcept nogil:
    """DATA frames that cross no record; the record's last one is made longer where it is this stream's."""
    cdef outbox* o = &m.out
    cdef uint8_t* p
    cdef size_t frame
    cdef size_t behind
    cdef size_t take
    cdef size_t room
    if out_appends(o) and (n >= BULK_FRAME or o.in_pieces):
        append_data(m, s, data, n)
        return
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
    """Bulk may fill little more than a quarter of the output buffer: it stays short for the next."""
    cdef size_t unsent = m.out.end - m.out.start
    cdef size_t limit = m.limits.high_water
    if not control:
        limit = (limit >> 2) + (limit >> 5)  # the 32nd: what one receive brought goes out in one send
    return limit - unsent if unsent < limit else 0
