# Where circuits run. A link belongs to one engine, and the two links of a circuit to the same: a link that
# is elsewhere moves, and with it all that splices join it to. A part of splice.pyx, which includes it.
#
# The rule: two links that carry no circuit yet meet in the engine that has the fewest circuits; a link that
# carries none goes to one that does; of two groups of joined links the smaller goes to the larger's engine.
# So peers that are all joined to one another, however indirectly, are served by one engine, and circuits of
# separate peers spread over all. A group falls apart as its circuits end.
#
# Links move under the GIL and both mutexes, so nobody sees one between two engines.

cdef enum:
    FIRST_LOOK = 64  # links counted before the other group has its turn
    SLACK = 1  # circuits that an engine may have beyond the least loaded one before links leave it

cdef uint64_t walks = 0


cdef struct group:
    link* links  # by link.walk_next
    uint32_t count
    uint32_t pairs
    bint whole


cdef void walk(stream* start, uint32_t limit, group* g) noexcept nogil:
    """The links that splices join to this stream's; the core's mutex is held."""
    global walks
    cdef link* at = <link*>start.mux
    cdef link* last = at
    cdef link* found
    cdef way* w
    walks += 1
    g.links = at
    g.count = 1
    g.pairs = 0
    g.whole = True
    at.walk = walks
    at.walk_next = NULL
    while at != NULL:
        w = <way*>at.mux.joined
        while w != NULL:
            g.pairs += w == &w.pair.ways[0]
            found = <link*>w.target.mux
            if found.walk != walks:
                found.walk = walks
                found.walk_next = NULL
                last.walk_next = found
                last = found
                g.count += 1
            w = w.next
        if g.count > limit:
            g.whole = False
            return
        at = at.walk_next


cdef group measure(stream* s, uint32_t limit) noexcept:
    cdef group g
    cdef core* c = enter_at(&s.mux.core)
    walk(s, limit, &g)
    leave(c)
    return g


cdef core* least_loaded(core* c) noexcept:
    """Of those beside each other, the one with the fewest circuits; one with a thread, if any has."""
    cdef core* best = c
    cdef core* at = c.beside
    while at != c:
        if at.threaded > best.threaded or (at.threaded == best.threaded and at.pairs < best.pairs):
            best = at
        at = at.beside
    return best


cdef bint are_beside(core* a, core* b) noexcept:
    cdef core* at = a.beside
    while at != a and at != b:
        at = at.beside
    return at == b


cdef int bring_together(stream* a, stream* b) except -1:
    """See to it that both links have one engine."""
    cdef core* ca = a.mux.core
    cdef core* cb = b.mux.core
    cdef core* best
    cdef group ga
    cdef group gb
    cdef uint32_t limit = FIRST_LOOK
    if ca != cb and not are_beside(ca, cb):
        raise UsageError("both streams of a splice belong to links of engines beside each other")
    if ca.beside == ca:
        return 0
    while True:
        ga = measure(a, limit)
        gb = measure(b, limit)
        if ga.whole or gb.whole:
            break
        limit *= 2
    if ga.pairs == 0 and gb.pairs == 0:
        best = least_loaded(ca)
        if cb.threaded == best.threaded and cb.pairs <= best.pairs + SLACK:
            best = cb
        if ca.threaded == best.threaded and ca.pairs <= best.pairs + SLACK:
            best = ca
        move(a, best)
        move(b, best)
    elif ca != cb:
        if not ga.whole or (gb.whole and gb.count <= ga.count):
            move(b, ca)
        else:
            move(a, cb)
    return 0


cdef int move(stream* s, core* to) except -1:
    """Take a group of links to another engine."""
    cdef core* c = s.mux.core
    cdef group g
    cdef link* ln
    cdef PyObject** owners = NULL
    cdef uint32_t count = 0
    cdef uint32_t i
    if c == to:
        return 0
    enter_two(c, to)
    if s.mux.core != c or to.closed:
        leave(c)
        leave(to)
        if to.closed:
            raise UsageError("the engine is closed")
        return 0  # the caller looks again
    walk(s, 0xFFFFFFFF, &g)
    # a link's own timer and its pairs', and a wrapper each
    owners = <PyObject**>realloc(NULL, (g.count + g.pairs) * sizeof(PyObject*))
    if owners == NULL or core_scratch(to) < 0 or core_reserve(to, g.count, g.count + g.pairs) < 0:
        leave(c)
        leave(to)
        free(owners)
        raise MemoryError
    ln = g.links
    while ln != NULL:
        move_link(ln, c, to, owners, &count)
        ln = ln.walk_next
    move_lists(c, to)
    ln = g.links
    while ln != NULL:
        link_watch(ln)
        resume_shaped(ln)
        ln = ln.walk_next
    leave(c)
    leave(to)
    rehome(owners, count)
    free(owners)
    return 0


cdef void move_link(link* ln, core* c, core* to, PyObject** owners, uint32_t* count) noexcept:
    cdef way* w
    cdef splice_pair* p
    cdef int64_t deadline
    link_move(ln, to)
    move_refs(c, to, ln.mux.wrappers)
    if ln.mux.node.owner != NULL:
        owners[count[0]] = <PyObject*>ln.mux.node.owner
        Py_INCREF(<object>owners[count[0]])
        count[0] += 1
    w = <way*>ln.mux.joined
    while w != NULL:
        p = w.pair
        w = w.next
        if p.core == to:
            continue
        deadline = p.timer.deadline if p.timer.slot else 0
        timer_clear(c, &p.timer)
        p.core = to
        c.pairs -= 1
        to.pairs += 1
        if deadline:
            timer_set(to, &p.timer, deadline)
        if p.ways[0].draw.count and (draw_move(&p.ways[0].draw, to) | draw_move(&p.ways[1].draw, to)) < 0:
            p.ending = 0
            finish(p, DONE_CANCELLED)
        move_refs(c, to, p.node.held)
        if p.node.owner != NULL:
            owners[count[0]] = <PyObject*>p.node.owner
            Py_INCREF(<object>owners[count[0]])
            count[0] += 1


cdef void resume_shaped(link* ln) noexcept:
    """What waited for tokens waits no more: it asks again."""
    cdef way* w = <way*>ln.mux.joined
    cdef way* following
    while w != NULL:
        following = w.next  # also if this one ends
        if w.draw.count:
            pump(w.pair, w)
        w = following


cdef inline void move_refs(core* c, core* to, uint32_t n) noexcept:
    """A wrapper keeps the core of what it wraps. The engines keep both meanwhile."""
    cdef uint32_t i
    for i in range(n):
        core_ref(to)
        core_unref(c)


cdef int rehome(PyObject** owners, uint32_t count) except -1:
    """What Python knows of it: each engine's sets of links and splices."""
    cdef uint32_t i
    cdef Link moved
    for i in range(count):
        owner = <object>owners[i]
        Py_DECREF(owner)
        if type(owner) is Link:
            moved = owner
            engine = <object>moved.ln.mux.core.engine
            moved.engine.links.discard(moved)
            moved.engine = engine
            engine.links.add(moved)
        else:
            engine = <object>(<Splice>owner).p.core.engine
            (<Splice>owner).engine.splices.discard(owner)
            (<Splice>owner).engine = engine
            engine.splices.add(owner)
    return 0
